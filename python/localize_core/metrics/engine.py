"""What an engine has counted, as metrics. It is read when somebody scrapes, and costs nothing in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from localize_core.metrics.families import StationFamilies, Values
from localize_core.serving.engine import Engine
from localize_core.serving.health import CONDITIONS, State

ACCURACIES = {"median_m": "median", "p90_m": "p90", "rmse_m": "rmse"}
"""Figures of a contract's accuracy, and what they are called here."""
STORE_COUNTS = {
    "hits": "Answers that the store had.",
    "misses": "Answers that it did not have.",
    "errors": "Requests to the store that failed.",
    "evictions": "Answers that had to go for others, as far as the store sees it.",
    "skipped": "Look-ups that asked nobody, because the store was away or busy.",
    "dropped": "Writes that were not carried out.",
}


class EngineCollector(Collector):
    """Metrics of the engine that is watched; before there is one, they have no values."""

    def __init__(self, station: str) -> None:
        self._make = StationFamilies(station)
        self.engine: Engine | None = None

    def collect(self) -> Iterator[Metric]:
        engine = self.engine
        yield from self._health(engine)
        yield from self._answers(engine)
        yield from self._models(engine)
        yield from self._windows(_observed(engine, "windows"))
        yield from self._cache({} if engine is None or engine.cache is None else engine.cache.as_dict())
        yield from self._similar({} if engine is None else engine.similar)
        yield from self._blocks(_observed(engine, "blocks"))
        yield from self._sanity({} if engine is None else engine.sanity)

    def _health(self, engine: Engine | None) -> Iterator[Metric]:
        states: dict[str, float] = {}
        conditions: dict[str, float] = {}
        if engine is not None:
            now, present = engine.health.state, {each.name for each in engine.health.conditions}
            states = {state: state == now for state in get_args(State)}
            conditions = {condition: condition in present for condition in CONDITIONS}
        yield self._make.gauge("health_state", "1 for the state that the engine is in.", states, ("state",))
        yield self._make.gauge("health_condition", "1 for what is not as it should be.", conditions, ("condition",))

    def _answers(self, engine: Engine | None) -> Iterator[Metric]:
        fixes: Values = {}
        inferences: dict[str, float] = {}
        errors: dict[str, float] = {}
        if engine is not None:
            tally, none_yet = engine.tally, dict.fromkeys(engine.serving, 0)
            fixes = {("ok", ""): 0} | {
                ("ok" if reason is None else "no_fix", reason or ""): count for reason, count in tally.fixes.items()
            }
            inferences, errors = {**none_yet, **tally.inferences}, {**none_yet, **tally.failures}
        yield self._make.counter(
            "fixes", "Answers to windows and requests; without a position for this reason.", fixes, ("status", "reason")
        )
        yield self._make.counter(
            "inferences", "Windows that a model was asked about, comparisons included.", inferences, ("arm",)
        )
        yield self._make.counter(
            "inference_errors", "Windows that a model failed on, or did not answer in time.", errors, ("arm",)
        )

    def _models(self, engine: Engine | None) -> Iterator[Metric]:
        loaded: dict[tuple[str, str, str], float] = {}
        accuracies: dict[tuple[str, str], float] = {}
        for arm, version in ({} if engine is None else engine.serving).items():
            if version is None:
                loaded[arm, "", ""] = 0
                continue
            model = version.locator.model
            loaded[arm, model.identity.name, model.identity.version] = 1
            claimed = model.contract.accuracy or {}
            for key, statistic in ACCURACIES.items():
                if isinstance(claimed.get(key), int | float):
                    accuracies[arm, statistic] = claimed[key]
        yield self._make.gauge(
            "model_loaded",
            "1 for the model that serves in an arm, 0 while none does.",
            loaded,
            ("arm", "name", "version"),
        )
        yield self._make.gauge(
            "model_accuracy_metres",
            "Error of positions that was measured when the model was made, by its contract.",
            accuracies,
            ("arm", "statistic"),
        )
        yield self._make.counter(
            "model_reloads",
            "Versions that were to take over from another, by what came of it.",
            {} if engine is None else engine.tally.changes,
            ("arm", "outcome"),
        )
        yield self._make.counter(
            "comparisons_dropped",
            "Windows that were not compared, because time was short.",
            None if engine is None else engine.shadow_dropped,
        )

    def _sanity(self, told: Mapping[str, Any]) -> Iterator[Metric]:
        make = self._make
        pairs = {tuple(pair["receivers"]): pair for pair in told.get("pairs", ())}
        receivers = {each["name"]: each for each in told.get("receivers", ())}
        for name, key, help_text in (
            ("pair_residual_seconds", "residual_ns", "Mean of measured less expected arrival-time difference."),
            ("pair_residual_deviation_seconds", "deviation_ns", "Standard deviation of that between windows."),
        ):
            values: Values = {pair: each[key] * 1e-9 for pair, each in pairs.items()}
            yield make.gauge(name, help_text, values, ("first", "second"))
        for name, key, help_text in (
            ("receiver_bias_seconds", "bias_ns", "How late a receiver's times are, if the others are right."),
            ("receiver_bias_sigma_seconds", "sigma_ns", "Standard deviation of that."),
        ):
            yield make.gauge(name, help_text, {each: receivers[each][key] * 1e-9 for each in receivers}, ("receiver",))
        hdop = told.get("geometry", {}).get("hdop")
        yield make.gauge("fix_hdop_ratio", "Error of position to error of the paths, of the latest fixes.", hdop)

    def _windows(self, told: Mapping[str, Any]) -> Iterator[Metric]:
        make = self._make
        yield make.counter("windows_offered", "Windows that the streams have filled.", told.get("offered"))
        yield make.counter("windows_served", "Windows that were answered.", told.get("served"))
        yield make.counter("windows_dropped", "Windows that were lost.", told.get("dropped"), ("stage",))
        interrupted = told.get("interrupted")
        yield make.counter("windows_interrupted", "Windows that a boundary cut short, not offered.", interrupted)
        yield make.gauge("windows_waiting", "Windows that wait to be answered.", told.get("waiting"))
        yield make.gauge("windows_answering", "Windows that are being answered.", told.get("answering"))
        yield make.gauge("windows_oldest_age_seconds", "Of the one that waits longest.", _seconds(told.get("age_ms")))

    def _cache(self, told: Mapping[str, Any]) -> Iterator[Metric]:
        make = self._make
        stores: Mapping[str, Mapping[str, Any]] = told.get("stores", {})

        def by_store(figure: str) -> dict[str, float]:
            return {store: figures[figure] for store, figures in stores.items() if figures[figure] is not None}

        yield make.counter("cache_hits", "Windows whose answer the cache had.", told.get("hits"))
        yield make.counter("cache_misses", "Windows whose answer it did not have.", told.get("misses"))
        yield make.gauge("cache_hit_ratio", "Hits to all windows looked up so far.", told.get("hit_ratio"))
        yield make.counter("cache_saved_seconds", "Inference that hits saved.", _seconds(told.get("saved_ms")))
        yield make.counter("cache_spent_seconds", "Looking up and keeping.", _seconds(told.get("spent_ms")))
        for figure, help_text in STORE_COUNTS.items():
            yield make.counter(f"cache_store_{figure}", help_text, by_store(figure), ("store",))
        up = {store: figures["state"] == "ready" for store, figures in stores.items()}
        yield make.gauge("cache_store_up", "1 while the store is asked.", up, ("store",))
        yield make.gauge("cache_items", "Answers that the store holds.", by_store("items"), ("store",))
        yield make.gauge("cache_bytes", "Memory for the answers that the store holds.", by_store("bytes"), ("store",))
        yield make.gauge(
            "redis_memory_bytes",
            "Memory of the Redis server, with all that is not the cache's.",
            by_store("server_bytes").get("redis"),
        )

    def _similar(self, told: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
        def by_reason(figure: str) -> dict[tuple[str, str], float]:
            return {(arm, reason): count for arm, counts in told.items() for reason, count in counts[figure].items()}

        hits = {arm: figures["hits"] for arm, figures in told.items()}
        yield self._make.counter("similar_hits", "Windows that got the answer of a recent one.", hits, ("arm",))
        yield self._make.counter(
            "similar_misses", "Windows that were inferred all the same.", by_reason("misses"), ("arm", "reason")
        )
        yield self._make.counter(
            "similar_refused", "Answers that no other window could get.", by_reason("refused"), ("arm", "reason")
        )

    def _blocks(self, told: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
        work = {block: figures["work_s"] for block, figures in told.items()}
        full = {
            (block, side): figures[f"{side}_full"] for block, figures in told.items() for side in ("input", "output")
        }
        yield self._make.counter("block_work_seconds", "Time that a block of the flowgraph worked.", work, ("block",))
        yield self._make.gauge(
            "block_buffer_full_ratio",
            "Mean filling of a block's fullest buffer, since asked last.",
            full,
            ("block", "side"),
        )


def _observed(engine: Engine | None, section: str) -> Mapping[str, Any]:
    return (None if engine is None else engine.observed(section)) or {}


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
