"""GNU Radio's performance counters: they are read where they exist, and nothing is said where they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys, time
from gnuradio import blocks, gr, localize
from gnuradio.localize import counters as module
from gnuradio.localize.counters import BlockCounters, switch_on
if sys.argv[1] == "on":
    switch_on()
graph = gr.top_block()
source, sink = blocks.null_source(gr.sizeof_gr_complex), blocks.null_sink(128 * gr.sizeof_float)
mel = localize.mel_spectrogram(2.4e6)
graph.connect(source, mel, sink)
counters = BlockCounters([mel, source])
graph.start()
found = []
for module.LEAST_S in (0.0, 0.0, 1000.0):
    before = mel.nitems_written(0)
    while mel.nitems_written(0) < before + 2000:
        time.sleep(0.01)
    found.append(counters())
graph.stop()
graph.wait()
print(json.dumps(found))
"""


def found(switch: str) -> list[dict[str, dict[str, float]]]:
    environment = {key: value for key, value in os.environ.items() if key != "GR_CONF_PERFCOUNTERS_ON"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, switch], capture_output=True, text=True, env=environment, timeout=120
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_blocks_say_how_busy_they_are_since_they_were_last_asked():
    times = []
    for told in found("on"):
        ((name, counts),) = [each for each in told.items() if each[0].startswith("mel_spectrogram")]
        assert name.startswith("mel_spectrogram(")
        # Nothing holds the source back: the block works all the time that its machine lets it, and its input is full.
        assert 0.0 < counts["cores"] < 1.5
        assert 0.5 < counts["input_full"] <= 1.0
        assert 0.0 <= counts["output_full"] <= 1.0
        times.append(counts["work_s"])
    first_s, second_s, asked_again_s = times
    assert 0.0 < first_s < second_s
    assert asked_again_s == second_s  # too soon to say anything new


def test_nothing_is_said_while_nobody_counts():
    assert found("off") == [{}, {}, {}]
