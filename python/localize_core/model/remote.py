"""A model that runs on an inference server: the Open Inference Protocol (KServe v2) over gRPC, as Triton speaks it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from localize_core.errors import (
    ConfigError,
    EngineError,
    LocalizeError,
    MissingExtraError,
    ModelError,
    UnavailableError,
)
from localize_core.model.admission import admit
from localize_core.model.base import ModelOutput, Release
from localize_core.model.contract import METADATA_KEY, OUTPUT_NAMES, Contract, agreed_contract
from localize_core.model.golden import golden_features
from localize_core.model.onnx_model import check_interface, checked_output
from localize_core.model.source import RemoteUri
from localize_core.model.triton_repository import contract_of
from localize_core.types.fix import ModelIdentity

log = logging.getLogger(__name__)

ASK_S = 5.0
"""How long a server may take to say what it has, and to answer a model's first window."""
FAILURES = 3
"""So many requests in a row without an answer, and the server is left alone until it is well again."""
FIRST_PROBE_S, LAST_PROBE_S = 0.1, 1.0
"""Between two looks at a server that is away: the first pause, and the longest."""
PLAIN_STEPS = 32

NO_CONTRACT = (
    f"the server says nothing of its contract; give it the parameter '{METADATA_KEY}' in the model's configuration "
    "('gr-localize models export' writes one), or give a contract beside it here"
)

NO_ANSWER = {
    f"StatusCode.{name}"
    for name in (
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        "CANCELLED",
        "NOT_FOUND",  # the version that is asked for is gone
        "RESOURCE_EXHAUSTED",
        "UNIMPLEMENTED",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
    )
}
"""Of gRPC's status codes, those that say nothing of the window that was asked about."""

_SERVICE_CONFIG = {
    # A headless service of Kubernetes names all its servers: each gets its share, and a second try goes to another.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": "ModelInfer"}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
CHANNEL = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    ("grpc.per_rpc_retry_buffer_size", 1 << 28),  # by default gRPC silently retries nothing above 256 KiB: one window
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # what a connection may take, despite its name
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A dead host shows by bytes that nobody acknowledges for the timeout. More frequent pings make servers hang up.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),  # or a new connection would wait for the back-off of another
)


@dataclass(frozen=True)
class _Served:
    """What a server has under one version: "" where it does not count them. `max_batch`: windows in one request."""

    version: str
    contract: Contract
    sha256: str
    input: str
    flat: bool
    max_batch: int | None

    @property
    def key(self) -> str:
        told = f"{self.sha256} {self.contract.model_dump_json()}"
        return f"{self.version}-{hashlib.sha256(told.encode()).hexdigest()}"


class _Connection:
    """What is asked of a server. Threads may share it."""

    def __init__(self, uri: RemoteUri) -> None:
        self._triton = _client_library()
        self._name, self._server = uri.name, _text(uri, None).rpartition("/")[0]
        self._client = self._triton.InferenceServerClient(uri.address, ssl=uri.tls, channel_args=list(CHANNEL))

    def close(self) -> None:
        self._client.close()

    def describe(self, version: str | None, given: Contract | None) -> _Served:
        """What it has under a version, None for the highest.

        `given`: the contract where the server has none. Raises UnavailableError where nothing answers or that version
        is not ready, ModelError for a model that cannot be used.
        """
        if version is None:
            version = _highest(self._ask(self._client.get_model_metadata, self._name).versions)
        metadata = self._ask(self._client.get_model_metadata, self._name, version)
        label = f"{self._server}/{self._name}" + (f"/{version}" if version else "")
        # Not the whole server: one is not ready when anybody's model on it is broken.
        if not self._ask(self._client.is_model_ready, self._name, version):
            raise UnavailableError(f"{label}: the model is not ready")
        config = self._config(version)
        parameters = {key: value.string_value for key, value in config.parameters.items()} if config else {}
        try:
            carried, sha256 = contract_of(parameters, version)
        except ModelError as error:
            raise ModelError(f"{label}: {error}") from error
        contract = agreed_contract(carried, given, label=label, mending=NO_CONTRACT)
        inputs = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs]
        outputs = {tensor.name: list(tensor.shape) for tensor in metadata.outputs if tensor.datatype == "FP32"}
        name, flat = check_interface(contract, inputs, outputs, "FP32", label=label)
        batch = inputs[0][2][0]
        max_batch = config.max_batch_size if config and config.max_batch_size > 0 else batch if batch > 0 else None
        return _Served(version, contract, sha256, name, flat, max_batch)

    def infer(self, served: _Served, features: np.ndarray, until_s: float, *, label: str) -> ModelOutput:
        """Answer windows, in as many requests as the server wants them in.

        Raises UnavailableError without an answer by `until_s` of the monotonic clock, EngineError for one of no use.
        """
        size = served.max_batch or len(features)
        parts = [self._infer(served, features[k : k + size], until_s, label) for k in range(0, len(features), size)]
        return checked_output([np.concatenate(each) for each in zip(*parts, strict=True)], len(features), label=label)

    def _infer(self, served: _Served, features: np.ndarray, until_s: float, label: str) -> list[np.ndarray]:
        fed = np.ascontiguousarray(features[:, 0] if served.flat else features, np.float32)
        entry = self._triton.InferInput(served.input, list(fed.shape), "FP32")
        entry.set_data_from_numpy(fed)
        left_s = until_s - time.monotonic()
        if left_s <= 0.0:
            raise UnavailableError(f"{label}: no answer in time")
        try:
            result = self._client.infer(
                self._name,
                [entry],
                model_version=served.version,
                outputs=[self._triton.InferRequestedOutput(name) for name in OUTPUT_NAMES],
                client_timeout=left_s,
            )
            found = [(name, _values(result, name)) for name in OUTPUT_NAMES]
        except self._triton.InferenceServerException as error:
            if error.status() in NO_ANSWER:
                raise UnavailableError(f"{label}: no answer: {error}") from error
            raise EngineError(f"{label}: inference failed on {features.shape}: {error}") from error
        except ValueError as error:  # gRPC's for a channel that was closed meanwhile, NumPy's for bytes that do not fit
            raise EngineError(f"{label}: inference failed on {features.shape}: {error}") from error
        answers = [values for _, values in found if values is not None]
        if missing := [name for name, values in found if values is None]:
            raise EngineError(f"{label}: the answer lacks {', '.join(missing)} in FP32")
        answered = result.get_response().model_version
        if served.version and answered not in ("", served.version):
            raise EngineError(f"{label}: version {answered} answered instead")
        checked_output(answers, len(features), label=label)
        return answers

    def _config(self, version: str) -> Any:
        """The model's configuration, which is Triton's own extension of the protocol; None on another server."""
        answer = self._ask(self._client.get_model_config, self._name, version, unless="StatusCode.UNIMPLEMENTED")
        return None if answer is None else answer.config

    def _ask(self, call: Callable[..., Any], *arguments: str, unless: str | None = None) -> Any:
        """What the server answers; None where it does so with the status `unless`."""
        try:
            return call(*arguments, client_timeout=ASK_S)
        except self._triton.InferenceServerException as error:
            if unless is not None and error.status() == unless:
                return None
            raise UnavailableError(f"{self._server}: {error}") from error
        except ValueError as error:  # gRPC's for a channel that was closed meanwhile
            raise UnavailableError(f"{self._server}: {error}") from error


class RemoteModel:
    """A model that answers from a server, within a deadline or not at all. Threads may share it.

    `version`: the one asked for in every request, so that no server changes it under a stream; None for the highest
    now. `deadline_s`: for each window of a run, with the wait for one of `max_in_flight` places and a second try where
    the first found nobody. `contract`: where the server carries none.

    After three runs in a row without an answer it is not `available`: `run` then raises at once, while a thread looks
    whether the same model is back and answers as it should.

    Its identity has the server's name and version of it: those are what an operator finds there.

    Raises MissingExtraError without the extra `triton`, ConfigError for a deadline or a bound that cannot be,
    UnavailableError where the server does not answer, ModelError for a model without contract, with another than the
    one given, or with other tensors than those of the contract.
    """

    def __init__(
        self,
        uri: RemoteUri,
        *,
        version: str | None = None,
        deadline_s: float = 0.2,
        max_in_flight: int = 8,
        contract: Contract | None = None,
    ) -> None:
        _check_bounds(deadline_s, max_in_flight)
        breaker = _breaker_library()
        self._deadline_s, self._max_in_flight, self._given = deadline_s, max_in_flight, contract
        self._connection = _Connection(uri)
        try:
            self._served = self._connection.describe(version or uri.version, contract)
        except BaseException:
            self._connection.close()
            raise
        self.contract = self._served.contract
        self.label = _text(uri, self._served.version)
        self.identity = ModelIdentity(
            name=uri.name,
            version=self._served.version or self.contract.model_version,
            sha256=self._served.sha256,
            backend="kserve",
        )
        golden = self.contract.golden
        self._time_steps = (
            self.contract.time_steps
            or (golden.time_steps if golden else None)
            or max(self.contract.min_time_steps, PLAIN_STEPS)
        )
        # It never half-opens by itself: a stream's windows are no probes.
        self._breaker = breaker.CircuitBreaker(fail_max=FAILURES, reset_timeout=1e9, throw_new_error_on_trip=False)
        self._opened: type[Exception] = breaker.CircuitBreakerError
        self._slots = threading.BoundedSemaphore(max_in_flight)
        self._lock = threading.Lock()
        self._because: str | None = None
        self._closed = threading.Event()
        self._recovery: threading.Thread | None = None
        self._warm_up()

    @property
    def key(self) -> str:
        """Differs between any two models of the server, see Release."""
        return self._served.key

    @property
    def available(self) -> bool:
        return self.unavailable_because is None

    @property
    def unavailable_because(self) -> str | None:
        """Why `run` asks nobody; None while it does."""
        if self._closed.is_set():
            return "closed"
        if self._breaker.current_state == "closed":
            return None
        return self._because or "the server does not answer"

    def run(self, features: np.ndarray) -> ModelOutput:
        """Answer a batch of normalised windows, float32 (batch, channels, rows, time_steps).

        Raises UnavailableError without an answer by the deadline, at once while not `available`; EngineError where the
        server fails on these windows or the answer has the wrong shape.
        """
        until_s = time.monotonic() + self._deadline_s * len(features)
        self._check_available()
        if not self._slots.acquire(timeout=self._deadline_s):
            raise UnavailableError(
                f"{self.label}: {self._max_in_flight} requests are in flight, none ended within {self._deadline_s} s"
            )
        try:
            self._check_available()
            self._time_steps = features.shape[-1]
            return self._judged(features, until_s)
        finally:
            self._slots.release()

    def close(self) -> None:
        """End the connection, the requests on it and the thread."""
        self._closed.set()
        self._connection.close()
        with self._lock:
            recovery = self._recovery
        if recovery is not None:
            recovery.join()

    def _check_available(self) -> None:
        if (because := self.unavailable_because) is not None:
            raise UnavailableError(f"{self.label}: not asked: {because}")

    def _judged(self, features: np.ndarray, until_s: float) -> ModelOutput:
        """Ask, and let the breaker know how it went."""
        fair = until_s - time.monotonic() > 0.5 * self._deadline_s * len(features)
        try:
            answer = self._connection.infer(self._served, features, until_s, label=self.label)
        except UnavailableError as error:
            # Time that went by in our own queue is not the server's fault.
            if fair or time.monotonic() < until_s:
                self._failed(error)
            raise
        except EngineError:
            self._answered()
            raise
        self._answered()
        return answer

    # The breaker is told afterwards: it holds its lock while what it guards runs, one request at a time.

    def _answered(self) -> None:
        with contextlib.suppress(self._opened):  # open already: only a probe closes it
            self._breaker.call(lambda: None)

    def _failed(self, error: UnavailableError) -> None:
        def fail() -> None:
            raise error

        with contextlib.suppress(self._opened, UnavailableError):
            self._breaker.call(fail)
        with self._lock:
            if self._breaker.current_state == "closed" or self._recovery is not None or self._closed.is_set():
                return
            self._because = str(error)
            log.warning("%s is not asked until it is well again: %s", self.label, error)
            self._recovery = threading.Thread(target=self._recover, name=f"recovery of {self.label}", daemon=True)
            self._recovery.start()

    def _recover(self) -> None:
        """Look again and again, until the model is back or this one closed."""
        pause_s = FIRST_PROBE_S
        while not self._closed.wait(pause_s * random.uniform(0.5, 1.0)):
            pause_s = min(2.0 * pause_s, LAST_PROBE_S)
            because = self._probe()
            with self._lock:
                if because is None:
                    self._recovery = None
                    self._because = None
                    self._breaker.close()
                    log.warning("%s answers again", self.label)
                    return
                if because != self._because and not self._closed.is_set():
                    log.info("%s: still not asked: %s", self.label, because)
                self._because = because

    def _probe(self) -> str | None:
        """Why the server cannot be used; None where it has the same model as ever and that answers well, in time."""
        try:
            now = self._connection.describe(self._served.version, self._given)
            if now.key != self._served.key:
                return (
                    f"the server has another model under version {now.version} now, sha256 {now.sha256 or 'unknown'} "
                    f"instead of {self._served.sha256 or 'unknown'}"
                )
            self._warm_up()
            admit(_Probed(self), time_steps=self._time_steps)
        except Exception as error:  # whatever it is, the next look may find it over
            if not isinstance(error, LocalizeError):
                log.exception("%s: looking whether it is back failed", self.label)
            return str(error)
        return None

    def _warm_up(self) -> None:
        """Have one window answered without hurry: a server's first takes long, and must not look like a failure."""
        features = golden_features(self.contract, seed=0, time_steps=self._time_steps)
        window = self.contract.normalisation.apply(features[0])[None]
        with contextlib.suppress(EngineError):  # admission says it, if it stays so
            self._connection.infer(self._served, window, time.monotonic() + ASK_S, label=self.label)


class _Probed:
    """A remote model as its own recovery sees it: past the breaker."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model
        self.label, self.contract, self.identity = model.label, model.contract, model.identity

    def run(self, features: np.ndarray) -> ModelOutput:
        model = self._model
        until_s = time.monotonic() + model._deadline_s
        return model._connection.infer(model._served, features, until_s, label=self.label)

    def close(self) -> None:
        """The model is not its own."""


class RemoteSource:
    """A model of an inference server: the highest version it has, or the one that the string pins.

    Arguments as those of RemoteModel. Raises MissingExtraError, and ConfigError for a bound that cannot be.
    """

    def __init__(
        self,
        uri: RemoteUri,
        *,
        deadline_s: float = 0.2,
        max_in_flight: int = 8,
        contract: Contract | None = None,
    ) -> None:
        _check_bounds(deadline_s, max_in_flight)
        _client_library()
        _breaker_library()
        self._uri, self._deadline_s, self._max_in_flight, self._contract = uri, deadline_s, max_in_flight, contract

    @property
    def uri(self) -> str:
        return _text(self._uri, self._uri.version)

    def latest(self) -> Release:
        """What the server has now. Raises UnavailableError where it does not answer or is not ready, ModelError."""
        return self._release(self._uri.version)

    def release(self, version: str) -> Release:
        """Another version that the server has. Raises as `latest`, and ConfigError for what is no version."""
        if not version.isdecimal():
            raise ConfigError(f"model {self.uri}: version {version!r}: a server's versions are whole numbers")
        return self._release(version)

    def remember(self, release: Release) -> None:
        """Nothing is kept here: without the server there is no model."""

    def remembered(self) -> Release | None:
        return None

    def _release(self, version: str | None) -> Release:
        connection = _Connection(self._uri)
        try:
            served = connection.describe(version, self._contract)
        finally:
            connection.close()
        return Release(f"{self._uri.address} {self._uri.name} {served.key}", served.version, lambda: self._open(served))

    def _open(self, served: _Served) -> RemoteModel:
        model = RemoteModel(
            self._uri,
            version=served.version,
            deadline_s=self._deadline_s,
            max_in_flight=self._max_in_flight,
            contract=self._contract,
        )
        if model.key != served.key:
            model.close()
            raise ModelError(f"{model.label}: the server has loaded another model under this version meanwhile")
        return model


def _values(result: Any, name: str) -> np.ndarray | None:
    """An output's values, writable; None where there is none of that name and type."""
    output = result.get_output(name)
    if output is None or output.datatype != "FP32":
        return None
    # tritonclient reads raw bytes only; the protocol has typed contents, too.
    values = output.contents.fp32_contents or result.as_numpy(name)
    return np.array(values, np.float32).reshape(tuple(output.shape))


def _highest(versions: list[str]) -> str:
    """Of the versions of a model, the highest number; "" for the server's choice where it does not count them."""
    return max((version for version in versions if version.isdecimal()), key=int, default="")


def _text(uri: RemoteUri, version: str | None) -> str:
    return f"grpc{'s' if uri.tls else ''}://{uri.address}/{uri.name}" + (f"/{version}" if version else "")


def _check_bounds(deadline_s: float, max_in_flight: int) -> None:
    if not 0.0 < deadline_s < float("inf"):
        raise ConfigError(f"deadline_s={deadline_s}: more than 0 is wanted")
    if max_in_flight < 1:
        raise ConfigError(f"max_in_flight={max_in_flight}: at least 1 is wanted")


def _client_library() -> Any:
    try:
        import tritonclient.grpc as triton
    except (ImportError, RuntimeError) as error:  # the latter where tritonclient lacks its own extra
        raise MissingExtraError("grpc:// models", "triton") from error
    return triton


def _breaker_library() -> Any:
    try:
        import pybreaker
    except ImportError as error:
        raise MissingExtraError("grpc:// models", "triton") from error
    return pybreaker
