"""Write the compiled model: a likelihood over the area as an ONNX graph, with its contract and golden vector."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v17 as op
from spox import Tensor, Var, argument

import localize_core
from localize_core.model.compiled.algebra import between, expressions
from localize_core.model.compiled.level import levels
from localize_core.model.compiled.posterior import AREA_CELLS, Posterior, area_points, confidence, ellipse
from localize_core.model.compiled.spec import MIN_TIME_STEPS, LikelihoodSpec
from localize_core.model.compiled.timing import arrival_times
from localize_core.model.contract import (
    INPUT_NAME,
    LIKELIHOOD_NAME,
    METADATA_KEY,
    Channel,
    Contract,
    Frame,
    Golden,
    LikelihoodGrid,
)
from localize_core.model.golden import golden_features
from localize_core.model.onnx_model import OnnxModel

GOLDEN_SEED = 20260101
GOLDEN_STEPS = 32


def contract_of(spec: LikelihoodSpec) -> Contract:
    """The contract of models that take a station's windows and answer in its area's frame."""
    names = [receiver.name for receiver in spec.receivers]
    channels: list[Channel] = []
    if spec.level is not None:
        parameters = spec.level.config.as_dict()
        channels += [Channel(feature="log_mel", receivers=(name,), parameters=parameters) for name in names]
    if spec.timing is not None:
        parameters = spec.timing.config.as_dict()
        channels += [
            Channel(feature="cross_correlation", receivers=(names[i], names[j]), parameters=parameters)
            for i, j in spec.timing.config.pairs
        ]
    frame = spec.area.frame
    return Contract(
        name=f"compiled-{spec.name}",
        sample_rate_hz=spec.sample_rate_hz,
        frequency_hz=spec.frequency_hz,
        rows=spec.rows,
        min_time_steps=MIN_TIME_STEPS,
        channels=tuple(channels),
        receivers=spec.receivers,
        min_receivers=min(len(spec.receivers), 3),
        frame=Frame(kind="enu_m", latitude=frame.latitude, longitude=frame.longitude, altitude_m=frame.altitude_m),
        provenance={
            "kind": "compiled",
            "by": f"gr-localize {localize_core.__version__}",
            "probability": spec.probability,
        },
    )


def answers(features: Var, spec: LikelihoodSpec) -> dict[str, Var]:
    """The model's outputs by name, for features (batch, channels, rows, time_steps) of the kinds that `spec` has."""
    receivers = len(spec.receivers)
    with expressions():
        found = arrivals = None
        if spec.level is not None:
            found = levels(between(features, 1, 0, receivers), spec)
        if spec.timing is not None:
            first = receivers if spec.level is not None else 0
            _, area_length_m = area_points(spec)
            pairs = len(spec.timing.config.pairs)
            arrivals = arrival_times(between(features, 1, first, first + pairs), spec, area_length_m)
        posterior = Posterior(spec, arrivals, found)
        solution = posterior.solve()
        return {
            "position": solution.centre,
            "uncertainty": ellipse(solution.covariance),
            "confidence": confidence(solution, arrivals, found, spec),
            LIKELIHOOD_NAME: op.reshape(
                solution.likelihood, op.const(np.array([-1, AREA_CELLS, AREA_CELLS], np.int64))
            ),
        }


def build_graph(spec: LikelihoodSpec, contract: Contract) -> onnx.ModelProto:
    """The likelihood as an ONNX graph, without metadata."""
    features = argument(Tensor(np.float32, ("batch", len(contract.channels), contract.rows, "time_steps")))
    return spox.build({INPUT_NAME: features}, {name: op.identity(var) for name, var in answers(features, spec).items()})


def compile_model(spec: LikelihoodSpec, path: str | Path) -> Contract:
    """Write a station's compiled model to `path` and return its contract.

    Raises ConfigError for a station that cannot be compiled, ModelError when the result does not run.
    """
    area = spec.area
    grid = LikelihoodGrid(
        south=area.south, west=area.west, north=area.north, east=area.east, rows=AREA_CELLS, columns=AREA_CELLS
    )
    contract = contract_of(spec).model_copy(update={"likelihood": grid})
    contract.check()
    graph = build_graph(spec, contract)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        save_model(graph, contract, draft)
        contract = with_golden(draft, contract, seed=GOLDEN_SEED, time_steps=GOLDEN_STEPS)
    save_model(graph, contract, Path(path))
    return contract


def with_golden(path: Path, contract: Contract, *, seed: int, time_steps: int) -> Contract:
    """The contract with what the model at `path` answers today. Raises ModelError when it does not run."""
    model = OnnxModel(path)
    features = golden_features(contract, seed=seed, time_steps=time_steps)
    answer = model.run(contract.normalisation.apply(features[0])[None])
    golden = Golden(
        seed=seed,
        time_steps=time_steps,
        position=tuple(answer.position[0].tolist()),
        uncertainty=tuple(answer.uncertainty[0].tolist()),
        confidence=float(answer.confidence[0, 0]),
    )
    return contract.model_copy(update={"golden": golden})


def save_model(graph: onnx.ModelProto, contract: Contract, path: Path) -> None:
    """Write a graph with its contract."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    onnx.helper.set_model_props(model, {METADATA_KEY: contract.model_dump_json()})
    model.producer_name = "gr-localize"
    model.producer_version = localize_core.__version__
    onnx.save(model, str(path))
