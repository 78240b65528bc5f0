"""A Mosquitto broker on a port of its own: for tests and figures."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

START_S = 20.0
STOP_S = 10.0


def executable() -> str | None:
    """Debian puts it where only the administrator's PATH looks."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def missing() -> str | None:
    """Why there is no broker to run here; None where there is one."""
    return "no mosquitto here: apt-get install mosquitto" if executable() is None else None


class MosquittoServer:
    """A broker with its log, and what it keeps, in `folder`. Killed and started again it has the same port.

    `settings`: further lines of mosquitto.conf, such as `password_file PATH`. Anybody may connect without that one.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        open_to_all = not any(line.startswith("password_file") for line in settings)
        lines = [f"listener {self.port} 127.0.0.1", f"allow_anonymous {str(open_to_all).lower()}"]
        lines += [f"user {getpass.getuser()}", *settings]  # started by root it would become one who may not read here
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run it, and wait until it takes connections."""
        assert self._process is None
        program = executable()
        assert program is not None
        command = [program, "-c", str(self._folder / "mosquitto.conf")]
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until_s = time.monotonic() + START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.stop()
                text = (self._folder / "mosquitto.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"mosquitto did not start: {text[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, also one that hangs; nothing to do where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def hang(self) -> None:
        """It goes on to take connections, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """After `hang`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
