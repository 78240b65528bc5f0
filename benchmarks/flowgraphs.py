"""What benchmarks put round the blocks they measure: paced sources, small models of a known cost, subscribers."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pmt
import spox
import spox.opset.ai.onnx.v17 as op
from gnuradio import gr, localize
from gnuradio.localize.guard import WORK_DONE, guarded
from gnuradio.localize.pmt_codec import fix_from_pmt
from localize_benchmarks.process import start_python
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.model.contract import METADATA_KEY, Channel, Contract, Frame, Receiver
from localize_core.model.session import SessionSettings
from localize_core.types.fix import Fix

RECEIVERS = (("north", 45.1360, 7.6230), ("east", 45.0808, 7.7672), ("south", 44.9953, 7.6043), ("west", 45.07, 7.51))
N_FFT = 1024
STEPS = 4
WINDOW = N_FFT * STEPS
"""Samples of a window: its frames stand side by side."""
WINDOWS_PER_S = 100.0
RATE_HZ = WINDOW * WINDOWS_PER_S
ROWS = 64
CHUNK = WINDOW // 2
SIDE, LARGE_SIDE, LARGE_S = 96, 320, 0.02
"""Of the matrices that a padded model multiplies, which stay in a core's cache; large ones for models that take longer
than that, which would have thousands of layers."""
CALIBRATION_S = 0.25
SETTLE_S = 0.02
PATIENCE_S = 30.0


class FlowGraph(gr.top_block):
    """A graph whose rate is counted where it ends, in `sink`. `block`: what is measured."""

    def __init__(self, name: str, block: Any, sink: Any) -> None:
        gr.top_block.__init__(self, name)
        self.block = block  # GNU Radio alone does not keep a block alive that is Python's
        self.sink = sink

    def rate(self, turn_s: float) -> tuple[float, float]:
        """Items a second while the graph is in full run, and how many cores the process keeps busy meanwhile.

        Start and end, which are no matter of the blocks, are left out.
        """
        self.start()
        try:
            wait_until(lambda: self.sink.nitems_read(0) > 0, f"the first item of {self.name()}")
            time.sleep(SETTLE_S)
            count, began_s, busy_s = self.sink.nitems_read(0), time.perf_counter(), time.process_time()
            time.sleep(turn_s)
            count, taken_s = self.sink.nitems_read(0) - count, time.perf_counter() - began_s
            return count / taken_s, (time.process_time() - busy_s) / taken_s
        finally:
            self.stop()
            self.wait()


class paced_source(gr.sync_block):
    """`samples`, (streams, n), over and over at `rate_hz`, handed over in chunks when their last sample is due.

    As a receiver does, and unlike GNU Radio's throttle, which lets bursts through. `window`: samples after whose last
    one the moment is noted in `stamps_s`. `total`: samples after which it falls silent until `ended` is set. `tagged`:
    `rx_time` and `rx_rate` at the start and each second. `behind_s`: how long after it was due the last chunk was
    handed over, which grows without end where the graph cannot keep up; `late_s`: the longest of that.
    """

    def __init__(
        self,
        samples: np.ndarray,
        rate_hz: float,
        *,
        chunk: int,
        window: int = 0,
        total: int | None = None,
        tagged: bool = False,
    ) -> None:
        gr.sync_block.__init__(self, "paced_source", None, [np.complex64] * len(samples))
        self.failure: Exception | None = None
        self.stamps_s: list[float] = []
        self.behind_s = self.late_s = 0.0
        self.ended = threading.Event()
        self._samples, self._rate_hz, self._chunk, self._window = samples, rate_hz, chunk, window
        self._total = math.inf if total is None else total
        self._tagged = tagged
        self.set_min_output_buffer(2 * chunk)

    def start(self) -> bool:
        self._started_s = time.monotonic()
        self._epoch_s = int(time.time()) + 1
        return True

    @guarded
    def work(self, input_items: Any, output_items: Any) -> int:
        first = self.nitems_written(0)
        count = int(min(len(output_items[0]), self._chunk - first % self._chunk, self._total - first))
        if count == 0:
            self.ended.wait()
            return WORK_DONE
        place, length = first % self._samples.shape[1], self._samples.shape[1]
        head = min(count, length - place)
        for output, stream in zip(output_items, self._samples, strict=True):
            output[:head] = stream[place : place + head]
            output[head:count] = stream[: count - head]
        if self._tagged:
            self._tag(first, count)
        ahead_s = self._started_s + (first + count) / self._rate_hz - time.monotonic()
        if ahead_s > 0.0:
            time.sleep(ahead_s)
        self.behind_s = max(-ahead_s, 0.0)
        self.late_s = max(self.late_s, self.behind_s)
        if self._window:
            now_s = time.monotonic()
            self.stamps_s += [now_s] * ((first + count) // self._window - first // self._window)
        return count

    def _tag(self, first: int, count: int) -> None:
        second = -(-first // round(self._rate_hz))
        offset = second * round(self._rate_hz)
        if offset < first + count:
            value = pmt.make_tuple(pmt.from_uint64(self._epoch_s + second), pmt.from_double(0.0))
            for port in range(len(self._samples)):
                self.add_item_tag(port, offset, pmt.intern("rx_time"), value)
                self.add_item_tag(port, offset, pmt.intern("rx_rate"), pmt.from_double(self._rate_hz))


class fix_listener(gr.sync_block):
    """Hands fixes to a function."""

    def __init__(self, on_fix: Callable[[Fix], None]) -> None:
        gr.sync_block.__init__(self, "fix_listener", None, None)
        self._on_fix = on_fix
        self.message_port_register_in(pmt.intern("fix"))
        self.set_msg_handler(pmt.intern("fix"), self._handle_fix)

    def _handle_fix(self, message: Any) -> None:
        self._on_fix(fix_from_pmt(message))


def noise(streams: int, count: int) -> np.ndarray:
    """White noise at -20 dBFS, (streams, count)."""
    rng = np.random.default_rng(1)
    return 0.07 * rng.standard_normal((streams, 2 * count), np.float32).view(np.complex64)


def window_contract(n_receivers: int) -> Contract:
    """WINDOWS_PER_S windows a second of log-mel, and of every correlation where there is more than one receiver."""
    places = RECEIVERS[:n_receivers]
    names = [name for name, *_ in places]
    mel = MelConfig(RATE_HZ, n_fft=N_FFT, hop=N_FFT, n_mels=ROWS)
    channels = [Channel(feature="log_mel", receivers=(name,), parameters=mel.as_dict()) for name in names]
    if n_receivers > 1:
        correlation = CorrelationConfig(RATE_HZ, len(names), n_fft=N_FFT, hop=N_FFT, n_lags=ROWS)
        channels += [
            Channel(feature="cross_correlation", receivers=(names[i], names[j]), parameters=correlation.as_dict())
            for i, j in correlation.pairs
        ]
    return Contract(
        name="padded",
        sample_rate_hz=RATE_HZ,
        rows=ROWS,
        time_steps=STEPS,
        channels=tuple(channels),
        receivers=tuple(Receiver(name=name, latitude=lat, longitude=lon) for name, lat, lon in places),
        frame=Frame(kind="wgs84_deg"),
    )


def write_padded_model(path: Path, contract: Contract, layers: int, side: int = SIDE) -> None:
    """A model that answers with one place, and multiplies matrices meanwhile, for each window of a batch on its own."""
    shape = ("batch", len(contract.channels), contract.rows, contract.time_steps)
    features = spox.argument(spox.Tensor(np.float32, shape))
    rng = np.random.default_rng(1)
    weights = op.const((rng.standard_normal((side, side)) / math.sqrt(side)).astype(np.float32))
    state = op.reduce_mean(features, axes=[1, 2, 3], keepdims=True)
    state = op.mul(op.squeeze(state, op.const(np.array([1]))), op.const(np.ones((side, side), np.float32)))
    for _ in range(layers):
        state = op.tanh(op.matmul(state, weights))
    rest = op.reduce_mean(state, axes=[1, 2], keepdims=False)
    # The work counts for next to nothing in the answer, but it does: what counts for nothing may be left out.
    rest = op.unsqueeze(op.mul(rest, op.const(np.float32(1e-12))), op.const(np.array([1])))
    answers = {"position": (45.07, 7.65), "uncertainty": (200.0, 100.0, 30.0), "confidence": (0.9,)}
    outputs = {name: op.add(rest, op.const(np.array([values], np.float32))) for name, values in answers.items()}
    model = spox.build({"features": features}, outputs)
    onnx.helper.set_model_props(model, {METADATA_KEY: contract.model_dump_json()})
    onnx.save(model, path)


def inference_s(path: Path, contract: Contract) -> float:
    """Median time of one window on this machine, as it is now."""
    session = SessionSettings().open(str(path))
    window = np.ones((1, len(contract.channels), contract.rows, contract.time_steps or STEPS), np.float32)
    taken_s: list[float] = []
    while sum(taken_s) < CALIBRATION_S or len(taken_s) < 3:
        began_s = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: window})
        taken_s.append(time.perf_counter() - began_s)
    return float(np.median(taken_s[1:]))


def calibrated_model(path: Path, contract: Contract, wanted_s: float) -> None:
    """A padded model that takes `wanted_s` for a window, as far as the machine keeps its pace."""
    side, layers = SIDE if wanted_s < LARGE_S else LARGE_SIDE, 8
    for _ in range(2):  # from a guess to about right, from there to right
        write_padded_model(path, contract, layers, side)
        layers = max(round(layers * wanted_s / inference_s(path, contract)), 1)
    write_padded_model(path, contract, layers, side)


class WindowGraph(gr.top_block):
    """A paced source of WINDOWS_PER_S windows a second → the features of a contract → inference, live."""

    def __init__(self, model: Path, contract: Contract, *, total_windows: int | None = None) -> None:
        gr.top_block.__init__(self, "windows")
        count = len(contract.receivers)
        total = None if total_windows is None else total_windows * WINDOW
        self.source = paced_source(noise(count, 16 * WINDOW), RATE_HZ, chunk=CHUNK, window=WINDOW, total=total)
        self.localizer = localize.localizer(str(model), count, align=False, live=True, name="bench")
        self.inference = self.localizer.inference
        for port in range(count):
            self.connect((self.source, port), (self.localizer, port))


def free_endpoint() -> str:
    """A port on loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


class Subscriber:
    """A subscriber in another process, listening before anything is published."""

    def __init__(self, endpoint: str) -> None:
        self._process = start_python("subscriber", endpoint, stdin=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def finish(self) -> list[dict[str, Any]]:
        """What came until now. Raises RuntimeError if it failed."""
        printed, _ = self._process.communicate(timeout=PATIENCE_S)
        if self._process.returncode:
            raise RuntimeError(f"the subscriber ended with status {self._process.returncode}")
        came: list[dict[str, Any]] = json.loads(printed)
        return came


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Raises RuntimeError naming `what` if it does not come about."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.01)


def percentiles_ms(seconds: Sequence[float]) -> list[float]:
    """P50, P95 and P99 in milliseconds."""
    return [float(1e3 * value) for value in np.percentile(seconds, (50, 95, 99))]
