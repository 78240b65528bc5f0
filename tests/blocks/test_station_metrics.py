"""A flowgraph that runs, as a scrape shows it."""

from __future__ import annotations

import pytest
from gnuradio import blocks, gr, localize
from localize_core.metrics.metrics import Metrics
from prometheus_client.parser import text_string_to_metric_families

ROWS, STEPS = 16, 4


def scraped(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Values by name and labels, without the station's."""
    return {
        (sample.name, *(value for label, value in sorted(sample.labels.items()) if label != "station")): sample.value
        for family in text_string_to_metric_families(metrics.render()[0].decode())
        for sample in family.samples
    }


@pytest.fixture
def model(make_contract, make_model) -> str:
    return str(make_model(make_contract(1, correlation=False)))


def run(block, frames: int) -> None:
    graph = gr.top_block()
    source = blocks.vector_source_f([0.5] * (ROWS * frames), False, ROWS)
    graph.connect(source, block)
    graph.run()


def test_windows_are_counted_over_all_starts(model):
    block = localize.onnx_inference(model, station="s", time_steps=STEPS)
    metrics = Metrics("s")
    metrics.watch(block.engine)
    for start in (1, 2, 3):
        run(block, 5 * STEPS)
        found = scraped(metrics)
        assert found["localize_windows_offered_total",] == found["localize_windows_served_total",] == 5 * start
        assert found["localize_fixes_total", "", "ok"] == found["localize_queue_duration_seconds_count",] == 5 * start
        assert found["localize_windows_waiting",] == found["localize_windows_answering",] == 0
        assert found["localize_windows_dropped_total", "queue"] == found["localize_windows_dropped_total", "end"] == 0
    assert block.published == 5  # of the last start


def test_windows_of_a_worker_that_has_failed_are_lost(model):
    block = localize.onnx_inference(model, time_steps=STEPS, queue_windows=20)

    def fail(windows, contexts):
        raise RuntimeError("no more")

    block.engine.begin = fail
    run(block, 5 * STEPS)
    assert str(block.failure) == "no more"
    windows = block.windows
    assert windows["offered"] == windows["dropped"]["end"] >= 1
    assert (windows["served"], windows["waiting"], windows["answering"]) == (0, 0, 0)


def test_a_live_stream_that_is_too_slow(model):
    block = localize.onnx_inference(model, station="s", time_steps=STEPS, live=True, queue_windows=2, max_batch=1)
    metrics = Metrics("s")
    metrics.watch(block.engine)
    run(block, 500 * STEPS)
    found = scraped(metrics)
    offered, served = found["localize_windows_offered_total",], found["localize_windows_served_total",]
    lost = found["localize_windows_dropped_total", "queue"]
    assert offered == 500 == served + lost
    assert lost > 0
    assert found["localize_fixes_total", "", "ok"] == served == found["localize_inference_duration_seconds_count",]
