"""Where the demo plays: a temporary folder with a server, a worker process and a cache, all gone afterwards.

async or threads: one event loop. Starting and stopping the server blocks it, when nothing else is running.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tidings import Cache, set_cache

from tidings_worker.embedded import EmbeddedServer

from .result import CheckFailed
from .service import DATABASE_VARIABLE

_START_SECONDS = 15.0
#: A worker ends its own stop after 10.
_STOP_SECONDS = 12.0
_LINES_KEPT = 8
_LONGEST_LINE = 1 << 20


class WorkerProcess:
    """A worker in a process of its own. It logs to a pipe: the last lines are in `log`."""

    def __init__(self, process: Process) -> None:
        self.log: deque[str] = deque(maxlen=_LINES_KEPT)
        #: by which entries name who loaded them; see `tidings.reader.process_name`
        self.name = f"{socket.gethostname()}:{process.pid}"
        self._process = process
        self._said_something = asyncio.Event()
        self._reading = False
        self._listening = asyncio.create_task(self._listen())

    async def started(self) -> None:
        """Wait until it reads events; raise CheckFailed when it ends or takes too long."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._said_something.wait()
        except TimeoutError:
            raise CheckFailed("worker", f"it was not ready after {_START_SECONDS:g} s") from None
        if not self._reading:
            raise CheckFailed("worker", f"it ended with exit code {await self._process.wait()} before it was ready")

    def fate(self) -> str:
        """Return what is to be said when it has ended by itself, else nothing."""
        code = self._process.returncode
        return "" if code is None else f"; the worker ended with exit code {code}"

    async def stop(self) -> int:
        """Ask it to stop as an operator would, and return its exit code; kill it when it does not."""
        try:
            if self._process.returncode is None:
                self._process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):  # it is killed then, and its exit code says so
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
        await self._listening
        return await self._process.wait()

    async def _listen(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 it was started with a pipe
        async for line in self._process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
            if "worker_started" in self.log[-1]:
                self._reading = True
                self._said_something.set()
        self._said_something.set()


@dataclass(frozen=True, slots=True)
class Stage:
    """What a play needs."""

    cache: Cache
    worker: WorkerProcess
    #: for copies of source; it is removed with everything else
    folder: Path


@asynccontextmanager
async def stage(rules: str) -> AsyncIterator[Stage]:
    """Set up a folder, a server, the default cache, and a worker for ``MODULE:RULES``; take all of it down on leaving.

    Nothing of the user's is touched: no ``.tidings`` folder, no configured server. Raises CheckFailed when the worker
    does not stop as it should.
    """
    with tempfile.TemporaryDirectory(prefix="tidings-demo-") as name:
        folder = Path(name)
        try:
            with EmbeddedServer(folder) as server, _database(folder / "catalog.sqlite"):
                async with _default_cache(server.url) as cache, _worker(rules, server.url, folder) as worker:
                    yield Stage(cache, worker, folder)
        finally:
            # A thread that nobody waits for any more may still write to the folder.
            await asyncio.get_running_loop().shutdown_default_executor()


@contextmanager
def _database(file: Path) -> Iterator[None]:
    os.environ[DATABASE_VARIABLE] = str(file)
    try:
        yield
    finally:
        del os.environ[DATABASE_VARIABLE]


@asynccontextmanager
async def _default_cache(url: str) -> AsyncIterator[Cache]:
    async with Cache(url) as cache:
        set_cache(cache)
        try:
            yield cache
        finally:
            set_cache(None)


@asynccontextmanager
async def _worker(rules: str, url: str, folder: Path) -> AsyncIterator[WorkerProcess]:
    # The user's settings, a prefix say, would make it another system than the cache here, which has none.
    inherited = {name: value for name, value in os.environ.items() if not _is_ours(name)}
    demo = {"TIDINGS_URL": url, DATABASE_VARIABLE: os.environ[DATABASE_VARIABLE]}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidings_worker", "worker", rules),
        cwd=folder,
        env={**inherited, **demo},
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        limit=_LONGEST_LINE,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the worker in order
    )
    worker = WorkerProcess(process)
    try:
        yield worker
    finally:
        code = await worker.stop()
    if code != 0:
        raise CheckFailed("worker", f"it was asked to stop and ended with exit code {code}")


def _is_ours(variable: str) -> bool:
    return variable.upper().startswith("TIDINGS_") or variable.upper() == "REDIS_URL"
