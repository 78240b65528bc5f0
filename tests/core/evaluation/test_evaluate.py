from __future__ import annotations

import json

import numpy as np
import pytest
from localize_core.dataset.windows import Label
from localize_core.errors import ConfigError
from localize_core.evaluation.bound import area_box_m
from localize_core.evaluation.evaluate import MODEL, box_around, evaluate, usual_baselines, window_s
from localize_core.evaluation.metrics import Answers
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel


class Oracle:
    """Answers with the truth and what is added to it, where `answers` lets it."""

    def __init__(self, add_m=(0.0, 0.0), every=1):
        self.add_m, self.every = np.array(add_m), every
        self.largest = 0

    def locate(self, windows):
        answers = Answers.nothing(len(windows))
        self.largest = max(self.largest, len(windows))
        which = windows.source % self.every == 0
        answers.position_m[which] = windows.truth_m[which] + self.add_m
        answers.covariance_m2[which] = np.eye(2) * 25.0
        return answers


@pytest.fixture(scope="module")
def compiled(make_spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    spec = make_spec()
    compile_model(spec, path)
    return OnnxModel(path)


def test_a_model_beside_baselines(compiled, make_source):
    source = make_source(60, snr_db=12.0, time_steps=16)
    training = make_source(60, seed=2)
    baselines, missing = usual_baselines(
        source, box_m=area_box_m(source.spec.area), compiled=compiled, training=training
    )
    assert list(baselines) == ["compiled", "tdoa", "knn5", "centroid"]
    assert missing == {}
    seen = []
    found = evaluate(
        compiled, source, baselines=baselines, spec=source.spec, batch=16, progress=lambda count: seen.append(count)
    )
    assert seen == [16, 16, 16, 12]
    assert found.windows == {"all": 60, "inside": 48, "no_emitter": 6, "outside": 6}
    assert list(found.figures) == [MODEL, "compiled", "tdoa", "knn5", "centroid"]
    assert found.figures[MODEL] == found.figures["compiled"]
    assert found.figures[MODEL].accuracy.median_m < 10.0
    assert found.figures["tdoa"].answered == 48
    assert found.figures["centroid"].accuracy.median_m > 500.0
    groups = found.figures[MODEL].reliability.groups
    assert groups["emitter_clear"].quantiles["0.5"] > 0.9
    assert groups["no_emitter"].quantiles["0.5"] < 0.1
    # clocks are true in these windows, the bound allows for 3 m
    assert found.bound.windows == 48
    assert found.bound.unbounded == 0
    assert found.bound.rmse_m == pytest.approx(found.bound.with_area_rmse_m, rel=0.01)
    expected = found.figures[MODEL].accuracy.rmse_m / found.bound.rmse_m
    assert found.bound.ratio[MODEL] == pytest.approx(expected)
    (row,) = [row for row in found.figures[MODEL].by_snr if row.label == "10 to 15"]
    assert row.bound_rmse_m == pytest.approx(found.bound.with_area_rmse_m)
    assert row.windows == 48


def test_a_model_with_true_clocks_reaches_the_bound(make_spec, make_source, tmp_path):
    """120 windows by exact phase ramps: a standard error of 5 % round a ratio of 1."""
    spec = make_spec(clock_m=0.3, lag_step=0.5)
    compile_model(spec, tmp_path / "model.onnx")
    source = make_source(120, spec, snr_db=10.0, period=1000, time_steps=16)
    found = evaluate(OnnxModel(tmp_path / "model.onnx"), source, spec=make_spec(clock_m=0.0))
    assert found.bound.ratio[MODEL] == pytest.approx(1.0, abs=0.15)


def test_batches_make_no_difference(compiled, make_source):
    source = make_source(12)
    one, many = (evaluate(compiled, source, batch=size) for size in (1, 12))
    assert one.answers[MODEL].position_m == pytest.approx(many.answers[MODEL].position_m, abs=1e-2)
    small = Oracle()
    evaluate(compiled, source, baselines={"oracle": small}, batch=5)
    assert small.largest == 5


def test_what_a_baseline_does_not_answer_is_not_held_against_the_model(compiled, make_source):
    source = make_source(40, period=100)
    found = evaluate(compiled, source, baselines={"oracle": Oracle((3.0, 4.0), every=4)}, spec=source.spec)
    assert (found.figures["oracle"].windows, found.figures["oracle"].answered) == (40, 10)
    assert found.figures["oracle"].accuracy.rmse_m == pytest.approx(5.0)
    assert found.figures["oracle"].accuracy.mean_nees == pytest.approx(1.0)
    error_m = np.linalg.norm(found.answers[MODEL].position_m - found.truth.position_m, axis=1)
    assert found.same_windows["oracle"].count == 10
    assert found.same_windows["oracle"].rmse_m == pytest.approx(np.sqrt(np.mean(error_m[::4] ** 2)))
    bound_m = np.sqrt(np.mean(found.least_squared_m2[::4]))
    assert found.bound.with_area_ratio["oracle"] == pytest.approx(5.0 / bound_m)


def test_json_is_json(compiled, make_source, make_spec):
    source = make_source(12, make_spec(level=True))
    baselines, missing = usual_baselines(source, box_m=box_around(source.contract))
    assert set(missing) == {"compiled", "knn5"}
    found = evaluate(compiled, source, baselines=baselines, notes=missing)
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["model"]["sha256"] == compiled.sha256
    assert told["model"]["provenance"]["kind"] == "compiled"
    assert told["windows"]["inside"] == 10
    assert told["window"]["channels"] == {"log_mel": 4, "cross_correlation": 6}
    assert told["window"]["duration_s"] == pytest.approx((7 * 768 + 1024) / 2e6)
    assert told["figures"]["model"]["accuracy"]["containment"]["39.35"].keys() == {"share", "low", "high"}
    assert (told["bound"], told["no_bound"]) == (None, "nothing is known of the scene")
    assert told["notes"] == missing


def test_baselines_that_the_windows_do_not_allow(make_source, make_spec):
    levels = make_source(3, make_spec(timing=False, level=True))
    found, missing = usual_baselines(levels, box_m=box_around(levels.contract), training=make_source(3, levels.spec))
    assert list(found) == ["centroid"]
    assert missing["tdoa"].startswith("compiled-test: time differences need cross_correlation")
    assert missing["knn5"].startswith("k=5: needs as many training windows with an emitter, found 3")


def test_without_snr_there_is_no_bound(compiled, make_source):
    source = make_source(10)

    class Recorded:
        contract, time_steps = source.contract, source.time_steps

        def __len__(self):
            return 10

        def batches(self, size):
            for windows in source.batches(size):
                windows.snr_db[:], windows.bandwidth_hz[:] = np.nan, np.nan
                yield windows

    found = evaluate(compiled, Recorded(), spec=source.spec)
    assert found.bound is None
    assert found.no_bound == "no window has an emitter in the area of known SNR and bandwidth"
    assert found.figures[MODEL].by_snr == ()
    assert found.figures[MODEL].accuracy.count == 8


def test_two_receivers_leave_windows_unbounded(make_spec, make_source, tmp_path):
    spec = make_spec(np.array([[-2000.0, 0.0], [2000.0, 0.0]]))
    compile_model(spec, tmp_path / "model.onnx")
    found = evaluate(OnnxModel(tmp_path / "model.onnx"), make_source(8, spec, period=100), spec=spec)
    assert (found.bound.windows, found.bound.unbounded, found.bound.rmse_m, found.bound.ratio) == (8, 8, None, {})
    assert 0.7 < found.bound.with_area_ratio[MODEL] < 1.5
    assert json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_to_evaluate(compiled, make_source):
    with pytest.raises(ConfigError, match="no window to evaluate"):
        evaluate(compiled, make_source(0))


def test_a_bound_of_another_scene(compiled, make_source, make_spec):
    with pytest.raises(ConfigError, match="the bound is for receivers r0, r1, the windows are of others"):
        evaluate(compiled, make_source(2), spec=make_spec(np.array([[0.0, 0.0], [10.0, 9.0]])))


def test_labels_of_toy_windows(make_source):
    """What the tests here are built on: one window in ten of noise, one from far away."""
    (windows,) = make_source(20).batches(20)
    assert [Label(label) for label in windows.label[[7, 8, 9]]] == [Label.INSIDE, Label.OUTSIDE, Label.NONE]
    assert window_s(make_source(1).contract, 1) == 1024 / 2e6
