"""The contract in a model's metadata: what it promises is checked when it is read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from localize_core.errors import ModelError
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.model.contract import Contract, Golden


def as_json(contract: Contract, **changes: Any) -> str:
    return json.dumps(json.loads(contract.model_dump_json()) | changes)


def changed_channel(contract: Contract, index: int, **changes: Any) -> dict[str, Any]:
    channels = json.loads(contract.model_dump_json())["channels"]
    channels[index]["parameters"] |= changes
    return {"channels": channels}


def test_json_goes_both_ways(make_contract):
    golden = Golden(seed=3, time_steps=8, position=(1.5, -2.5), uncertainty=(3.0, 2.0, 10.0), confidence=0.75)
    contract = make_contract(golden=golden, accuracy={"median_m": 12.5}, provenance={"by": "a test"}, time_steps=8)
    assert Contract.from_json(contract.model_dump_json()) == contract


def test_configurations_come_out_as_they_went_in(make_contract):
    contract = Contract.from_json(make_contract().model_dump_json())
    assert contract.mel_config == MelConfig(8000.0, n_fft=128, hop=64, n_mels=16)
    assert contract.correlation_config == CorrelationConfig(8000.0, 3, n_fft=64, hop=64, n_lags=16)
    assert (contract.hop, contract.n_fft) == (64, 128)
    assert contract.pairs == [(0, 1), (0, 2), (1, 2)]


def test_parameters_include_the_defaults(make_contract):
    """A contract may leave out what is at its default; what feature blocks announce is complete."""
    complete = make_contract(1, correlation=False)
    short = {"sample_rate_hz": 8000.0, "n_fft": 128, "hop": 64, "n_mels": 16}
    channels = [{"feature": "log_mel", "receivers": ["r0"], "parameters": short}]
    contract = Contract.from_json(as_json(complete, channels=channels))
    assert contract.parameters == {"log_mel": complete.mel_config.as_dict()}


def test_a_feature_that_is_not_there(make_contract):
    assert make_contract(mel=False).mel_config is None
    assert make_contract(correlation=False).correlation_config is None


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"version": 2}, "version"),
        ({"name": ""}, "name"),
        ({"sample_rate_hz": 0.0}, "sample_rate_hz"),
        ({"sample_rate_hz": "NaN"}, "sample_rate_hz"),
        ({"rows": 0}, "rows"),
        ({"rows": 17}, "rows=17, its log_mel gives 16"),
        ({"time_steps": 0}, "time_steps"),
        ({"channels": []}, "channels"),
        ({"receivers": []}, "receivers"),
        ({"min_receivers": 4}, "min_receivers=4 of 3"),
        ({"min_receivers": 0}, "min_receivers"),
        ({"normalisation": {"kind": "minmax"}}, "normalisation.kind"),
        ({"normalisation": {"kind": "constants", "std": 0.0}}, "normalisation.std"),
        ({"frame": {"kind": "utm"}}, "frame.kind"),
        ({"frame": {"kind": "enu_m", "latitude": 91.0}}, "91.0"),
        ({"comment": "hello"}, "comment"),
        ({"sample_rate_hz": 9000.0}, "sample_rate_hz=9000.0, its log_mel gives 8000.0"),
    ],
)
def test_what_a_contract_must_not_say(make_contract, changes, names):
    with pytest.raises(ModelError, match=names):
        Contract.from_json(as_json(make_contract(), **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 1}'])
def test_what_is_no_contract(text):
    with pytest.raises(ModelError, match="contract is not usable"):
        Contract.from_json(text)


@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4, 5], [3, 4, 5, 0, 1, 2], [0, 1, 2, 4, 3, 5], [0, 1, 2], [0, 3, 4, 5]])
def test_channels_are_in_order_and_complete(make_contract, order):
    channels = json.loads(make_contract().model_dump_json())["channels"]
    text = as_json(make_contract(), channels=[channels[k] for k in order])
    if order == [0, 1, 2]:
        assert len(Contract.from_json(text).channels) == 3
        return
    with pytest.raises(ModelError, match="channels must be"):
        Contract.from_json(text)


def test_a_pair_is_named_in_the_order_of_the_receivers(make_contract):
    channels = json.loads(make_contract().model_dump_json())["channels"]
    channels[3]["receivers"] = ["r1", "r0"]
    with pytest.raises(ModelError, match="channels must be"):
        Contract.from_json(as_json(make_contract(), channels=channels))


def test_receivers_differ_in_name(make_contract):
    contract = make_contract(2, correlation=False)
    encoded = json.loads(contract.model_dump_json())
    encoded["receivers"][1]["name"] = "r0"
    with pytest.raises(ModelError, match="differ in name"):
        Contract.from_json(json.dumps(encoded))


@pytest.mark.parametrize(
    ("index", "changes", "names"),
    [
        (0, {"hop": 32}, "share their parameters"),
        (5, {"signal": "envelope"}, "share their parameters"),
        (0, {"windowing": "hann"}, "windowing"),
        (3, {"n_lags": "many"}, "n_lags"),
    ],
)
def test_parameters_of_channels(make_contract, index, changes, names):
    with pytest.raises(ModelError, match=names):
        Contract.from_json(as_json(make_contract(), **changed_channel(make_contract(), index, **changes)))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"hop": 32}, "hop=64, its cross_correlation gives 32"),
        ({"n_lags": 32}, "rows=16, its cross_correlation gives 32"),
        ({"n_receivers": 4}, "lists 3 receivers, its cross_correlation has 4"),
    ],
)
def test_features_of_one_model_fit_each_other(make_contract, changes, names):
    channels = json.loads(make_contract().model_dump_json())["channels"]
    for channel in channels[3:]:
        channel["parameters"] |= changes
    with pytest.raises(ModelError, match=names):
        Contract.from_json(as_json(make_contract(), channels=channels))


def test_normalisation_none_is_the_identity(make_contract):
    features = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    assert make_contract().normalisation.apply(features) is features
