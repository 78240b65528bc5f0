"""What an engine has done comes out of a scrape, and only ever grows, whichever models come and go."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import redis
from localize_core.cache.settings import CacheSettings, SimilaritySettings
from localize_core.serving.health import CONDITIONS
from localize_core.serving.requests import Request


def request(engine, name: str, **changes) -> Request:
    contract = engine.contract
    data = changes.pop("data", np.full((len(contract.channels), contract.rows, 4), 0.5, np.float32))
    return Request(name, data, **changes)


def test_windows_of_a_stream(make_version, watched):
    station = watched(make_version(1))
    for _ in range(5):
        station.locate()
    assert station.locate(station.window(silent=True)).reason == "silence"
    scrape = station.scrape()
    assert scrape("fixes_total", status="ok", reason="") == 5
    assert scrape("fixes_total", status="no_fix", reason="silence") == 1
    assert scrape("queue_duration_seconds_count") == scrape("inference_duration_seconds_count") == 6
    assert scrape("model_run_duration_seconds_count", backend="onnxruntime") == 5
    assert scrape("inferences_total", arm="champion") == 5
    assert scrape("inference_errors_total", arm="champion") == 0
    assert scrape("preprocessing_duration_seconds_count") == 0
    assert 0.0 < scrape("model_run_duration_seconds_sum") < scrape("inference_duration_seconds_sum")


def test_requests(make_version, watched):
    station = watched(make_version(1))
    engine = station.engine
    several = [request(engine, "a"), request(engine, "b", data=np.zeros(3)), request(engine, "c", cache=False)]
    assert [fix.reason for fix in engine.predict(several)] == [None, "invalid_request", None]
    assert engine.refuse(request(engine, "d"), "overloaded").reason == "overloaded"
    scrape = station.scrape()
    assert scrape("fixes_total", status="ok") == 2
    assert scrape.by("fixes_total", "reason") == {"": 2, "invalid_request": 1, "overloaded": 1}
    assert scrape("preprocessing_duration_seconds_count") == scrape("inference_duration_seconds_count") == 2
    assert scrape("queue_duration_seconds_count") == 0


def test_a_batch_is_one_run_of_the_model(make_version, watched):
    station = watched(make_version(1))
    station.engine.predict([request(station.engine, str(n), cache=False) for n in range(7)])
    scrape = station.scrape()
    assert scrape("model_run_duration_seconds_count") == 1
    assert scrape("inferences_total") == scrape("inference_duration_seconds_count") == 7


def test_windows_that_a_model_fails_on(make_version, watched):
    station = watched(make_version(1, uncertainty=(-1.0, 100.0, 0.0)))
    assert station.locate().reason == "model_error"
    scrape = station.scrape()
    assert scrape("inference_errors_total", arm="champion") == scrape("inferences_total", arm="champion") == 1
    assert scrape("fixes_total", reason="model_error") == 1
    assert scrape("health_state", state="degraded") == scrape("health_condition", condition="model_error") == 1


def test_an_inference_server_that_is_away(make_version, watched):
    station = watched("grpc://127.0.0.1:1/nothing", fallback=str(make_version(1)))
    assert station.locate().model.backend == "fallback:onnxruntime"
    scrape = station.scrape()
    assert scrape("inferences_total", arm="fallback") == 1
    assert scrape("model_run_duration_seconds_count", backend="fallback:onnxruntime") == 1
    assert scrape.by("model_loaded", "arm") == {"champion": 0, "fallback": 1}
    assert scrape("health_condition", condition="model_unavailable") == 1


def test_counts_survive_the_models_that_they_are_of(make_version, watched, tmp_path):
    station = watched(make_version(1))
    for _ in range(3):
        station.locate()
    make_version(2)
    station.engine.execute("reload")
    station.locate()
    scrape = station.scrape()
    assert scrape("inferences_total", arm="champion") == 4
    assert scrape("model_loaded", arm="champion", name="tiny", version="2") == 1
    assert scrape("model_loaded", version="1") is None
    station.engine.execute("rollback")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(Exception, match=r"model\.onnx"):
        station.engine.execute("reload")
    station.locate()
    scrape = station.scrape()
    assert scrape.by("model_reloads_total", "outcome") == {"served": 2, "rejected": 1}
    assert scrape("model_loaded", version="1") == 1
    assert scrape("health_condition", condition="model_rejected") == 1
    assert scrape("inferences_total", arm="champion") == 5


def test_counts_survive_an_experiment(make_version, watched, wait_until):
    beside = str(make_version(2, name="beside.onnx"))
    station = watched(make_version(1), challenger={"uri": beside, "mode": "shadow"})
    for _ in range(4):
        station.locate()
    wait_until(lambda: station.scrape()("inferences_total", arm="challenger") == 4)
    assert station.scrape().by("model_loaded", "arm") == {"champion": 1, "challenger": 1}
    station.engine.execute("promote")
    scrape = station.scrape()
    assert scrape.by("model_loaded", "version") == {"2": 1}
    assert scrape.by("inferences_total", "arm") == {"champion": 4, "challenger": 4}
    assert scrape("model_reloads_total", arm="champion", outcome="served") == 1
    assert scrape("comparisons_dropped_total") == 0


def test_accuracy_that_a_contract_claims(make_version, watched):
    claimed = {"split": "by place", "median_m": 37.5, "p90_m": 214.0, "rmse_m": 274.0, "windows": {"all": 600}}
    scrape = watched(make_version(1, contract={"accuracy": claimed})).scrape()
    assert scrape.by("model_accuracy_metres", "statistic") == {"median": 37.5, "p90": 214.0, "rmse": 274.0}
    assert watched(make_version(2)).scrape()("model_accuracy_metres") is None


def test_health_is_one_state(make_version, watched):
    station = watched(make_version(1))
    assert station.scrape().by("health_state", "state") == {
        "starting": 0,
        "ready": 1,
        "degraded": 0,
        "failed": 0,
        "stopped": 0,
    }
    assert set(station.scrape().by("health_condition", "condition")) == set(CONDITIONS)
    station.engine.stop()
    assert station.scrape()("health_state", state="stopped") == 1


def test_answers_that_were_known(make_version, watched):
    station = watched(make_version(1), options={"cache": CacheSettings()})
    for value in (0.1, 0.2, 0.1, 0.1):
        station.locate(station.window(value))
    scrape = station.scrape()
    assert (scrape("cache_hits_total"), scrape("cache_misses_total"), scrape("cache_hit_ratio")) == (2, 2, 0.5)
    assert scrape("cache_store_hits_total", store="memory") == scrape("cache_items", store="memory") == 2
    assert scrape("cache_store_up", store="memory") == 1
    assert scrape("cache_bytes", store="memory") > 600
    assert scrape("cache_saved_seconds_total") > 0.0 < scrape("cache_spent_seconds_total")
    assert scrape("inferences_total") == 2
    assert scrape("redis_memory_bytes") is None


def test_there_is_no_ratio_before_the_first_window(make_version, watched):
    station = watched(make_version(1), options={"cache": CacheSettings()})
    assert (station.scrape()("cache_hits_total"), station.scrape()("cache_hit_ratio")) == (0, None)
    without = watched(make_version(1))
    assert without.scrape()("cache_hits_total") is None


def test_memory_of_redis(make_version, watched, start_redis, wait_until):
    server = start_redis()
    station = watched(make_version(1), options={"cache": CacheSettings(redis=server.url, timeout_ms=100.0)})
    station.locate()
    wait_until(lambda: station.scrape()("redis_memory_bytes") is not None)
    with redis.Redis.from_url(server.url) as client:
        told = client.info("memory")["used_memory"]
    assert station.scrape()("redis_memory_bytes") == pytest.approx(told, rel=0.3)
    server.stop()
    for value in range(5):
        station.locate(station.window(float(value)))
    wait_until(lambda: station.scrape()("cache_store_up", store="redis") == 0)
    assert station.scrape()("redis_memory_bytes") is None
    assert station.scrape()("cache_store_errors_total", store="redis") > 0


def test_a_user_who_may_not_know_the_memory_is_asked_once(make_version, watched, start_redis, wait_until):
    server = start_redis()
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "some", "on", ">word", "~gr-localize:*", "+mget", "+set", "+del")
        url = server.url.replace("redis://", "redis://some:word@")
        station = watched(make_version(1), options={"cache": CacheSettings(redis=url, timeout_ms=100.0)})

        def refusals() -> float:
            return sum(int(entry["count"]) for entry in client.acl_log())

        wait_until(lambda: station.scrape()("cache_store_up", store="redis") == 1)
        wait_until(lambda: station.scrape() is not None and refusals() == 1)
        for value in range(20):
            station.locate(station.window(float(value)))
            assert station.scrape()("redis_memory_bytes") is None
        assert refusals() == 1
    scrape = station.scrape()
    assert scrape("cache_store_errors_total", store="redis") == 0
    assert scrape("cache_store_misses_total", store="redis") == 20


def test_windows_that_are_like_a_recent_one_over_two_starts(make_version, watched):
    options = {"cache": CacheSettings(similar=SimilaritySettings())}
    station = watched(make_version(1), live=True, options=options)
    rng = np.random.default_rng(1)
    for start in (1, 2):
        for _ in range(20):
            window = station.window(steps=24)
            window.features[:] = rng.normal(size=window.features.shape) * 0.05
            station.locate(window)
        scrape = station.scrape()
        hits, misses = scrape("similar_hits_total"), scrape("similar_misses_total")
        assert hits + misses == 20 * start
        assert scrape("similar_misses_total", arm="champion", reason="empty") == start
        assert scrape("inferences_total") == misses
        assert hits > 0
        station.engine.stop()
        station.engine.start(live=True)


def test_scrapes_while_windows_are_answered(make_version, watched):
    station = watched(make_version(1))
    stopped = threading.Event()

    def answer() -> None:
        while not stopped.is_set():
            station.locate(station.window(station.sequence % 7))

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        before: dict[tuple, float] = {}
        for _ in range(20):
            scrape = station.scrape()
            counts = {
                (sample.name, *sorted(sample.labels.items())): sample.value
                for sample in scrape.samples
                if sample.name.endswith(("_total", "_count", "_bucket"))
            }
            assert all(counts[key] >= value for key, value in before.items())
            before = counts
    finally:
        stopped.set()
        thread.join()
    scrape = station.scrape()
    assert scrape("fixes_total") == scrape("inference_duration_seconds_count") == station.sequence > 0
