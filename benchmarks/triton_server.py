"""The Triton server that the wheel nvidia-pytriton holds, with its Python backend: for tests and figures."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

START_S = 60.0
STOP_S = 20.0


def missing() -> str | None:
    """Why there is no server to run here; None where there is one."""
    if importlib.util.find_spec("pytriton") is None:
        return "no tritonserver: the package nvidia-pytriton is not installed (it exists for x86_64 only)"
    return None


class TritonServer:
    """A server over `folder`/models on ports of its own, which it keeps when it is started again.

    Models are loaded when asked for; those loaded once are so again after the next start.
    """

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.find_spec("pytriton")
        assert spec is not None
        assert spec.origin is not None
        self._package = Path(spec.origin).parent
        self._folder = folder
        self.repository = folder / "models"
        self.repository.mkdir(parents=True)
        self._backends = folder / "backends"
        shutil.copytree(self._package / "tritonserver" / "backends", self._backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self._package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, self._backends / "python")
        self._grpc_port, self._http_port = _free_ports(2)
        self._shared_memory = f"gr_localize_{uuid.uuid4().hex[:8]}_"
        self._loaded: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._grpc_port}"

    @property
    def site_packages(self) -> Path:
        """Where this environment's packages lie: the server's own interpreter does not look there."""
        spec = importlib.util.find_spec("onnxruntime")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent.parent

    @property
    def log(self) -> Path:
        """What the server says."""
        return self._folder / "server.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run it, and wait until it is ready with the models it had."""
        assert self._process is None
        command = [
            self._package / "tritonserver" / "bin" / "tritonserver",
            f"--model-repository={self.repository}",
            f"--backend-directory={self._backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self._loaded),
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._grpc_port}",
            "--http-address=127.0.0.1",
            f"--http-port={self._http_port}",
            "--allow-metrics=false",
        ]
        libraries = self._package.parent / "nvidia_pytriton.libs"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its group then holds all it starts, and nothing else
            )
        until_s = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.kill()
                raise RuntimeError(f"tritonserver did not start: {self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)

    def load(self, name: str) -> None:
        """Load a model of the repository, or load it again as it is now."""
        with triton.InferenceServerClient(self.address) as client:
            client.load_model(name, client_timeout=START_S)
        self._loaded = [*(each for each in self._loaded if each != name), name]

    def unload(self, name: str) -> None:
        with triton.InferenceServerClient(self.address) as client:
            client.unload_model(name, client_timeout=START_S)
        self._loaded.remove(name)

    def kill(self) -> None:
        """End it without warning."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order; nothing to do where it does not run."""
        if self._process is not None:
            self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # interpreters of Python models outlive a server that was killed
        for left in Path("/dev/shm").glob(f"{self._shared_memory}*"):
            left.unlink(missing_ok=True)

    def _is_ready(self) -> bool:
        try:
            with triton.InferenceServerClient(self.address) as client:
                return bool(client.is_server_ready(client_timeout=1.0))
        except InferenceServerException:
            return False


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, held together until all are found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
