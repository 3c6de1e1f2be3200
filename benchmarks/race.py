"""The race of loads with invalidations: readers and a writer, each a process of its own, over a few hot keys.

The truth is a version for each key in memory that the processes share, outside of all caches:

    writer    commits version n of a key -> invalidates it -> is told so -> notes "n is acknowledged"
    reader    notes the acknowledged version -> reads -> the result is stale if it is older than that
    load      looks at the committed version -> takes 1 to 5 ms -> returns it

The writer changes each key twice within 0 to 6 ms, so that the second change overtakes loads that the first one caused,
and then leaves it alone for a while, so that a stale value that was stored meanwhile is there to be read.
"""

import asyncio
import multiprocessing
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from common import fail
from pydantic import BaseModel

KEYS = 32
#: Readers and writers in a process, as tasks or as threads.
READERS, WRITERS = 32, 8
#: Seconds, from nothing to so much, at random: between a reader's reads, between a key's two changes, after them.
PAUSE, BETWEEN, AFTER = 0.004, 0.006, 0.02
LOAD = (0.001, 0.005)
WAIT_SECONDS = 120
#: From the last change to the last look.
SETTLE_SECONDS = 0.5
#: Changes of a key whose times are kept: more than a race makes.
REMEMBERED = 8192


class Versioned(BaseModel):
    """What is cached: the version of a key that a load saw."""

    number: int
    version: int


class Truth:
    """The versions, by key, and when each was acknowledged."""

    def __init__(self) -> None:
        self.committed = multiprocessing.RawArray("Q", KEYS)
        self.acknowledged = multiprocessing.RawArray("Q", KEYS)
        self._acknowledged_ns = multiprocessing.RawArray("Q", KEYS * REMEMBERED)

    def acknowledge(self, number: int, version: int) -> None:
        """Note that a key's older versions may not be read any more, from now on."""
        self._acknowledged_ns[number * REMEMBERED + version % REMEMBERED] = time.monotonic_ns()
        self.acknowledged[number] = version

    def acknowledged_at(self, number: int, version: int) -> int:
        """Return when that was, in ns."""
        return int(self._acknowledged_ns[number * REMEMBERED + version % REMEMBERED])


@dataclass
class Tally:
    """What one process has seen, or several together."""

    reads: int = 0
    stale: int = 0
    loads: int = 0
    #: loads that a change overtook: what they saw was no longer true when they returned
    overtaken: int = 0
    changes: int = 0
    #: keys that are stale when all is over
    left: int = 0
    #: reads that raised; ours may not
    failed: int = 0
    #: seconds from a change's acknowledgement to the last read that did not know it, by key and version
    lags: dict[tuple[int, int], float] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Count what another process has seen."""
        for name in ("reads", "stale", "loads", "overtaken", "changes", "left", "failed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for change, lag in other.lags.items():
            self.lags[change] = max(lag, self.lags.get(change, 0.0))


@dataclass
class Loader:
    """The functions that are cached."""

    truth: Truth
    tally: Tally = field(default_factory=Tally)

    async def load(self, number: int) -> Versioned:
        """Look, take a while, return what was seen."""
        version = self.truth.committed[number]
        await asyncio.sleep(random.uniform(*LOAD))
        return self._loaded(number, version)

    def load_blocking(self, number: int) -> Versioned:
        """Do the same in a thread."""
        version = self.truth.committed[number]
        time.sleep(random.uniform(*LOAD))
        return self._loaded(number, version)

    def _loaded(self, number: int, version: int) -> Versioned:
        self.tally.loads += 1
        self.tally.overtaken += self.truth.committed[number] != version
        return Versioned(number=number, version=version)


@dataclass(frozen=True)
class Subject:
    """A cached load and what invalidates a key of it; in a mode of threads both block."""

    read: Callable[[int], Awaitable[Versioned]]
    invalidate: Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class Mode:
    """One way to use one cache."""

    name: str
    open: Callable[[str, Loader], AbstractAsyncContextManager[Subject]]
    ours: bool = False
    #: readers and writers are threads, not tasks
    threads: bool = False
    #: processes that read
    processes: int = 1
    #: seconds for which a stale value may be read after the acknowledgement
    bound: float = 0.0
    #: one reader reads one key without a pause, to see when each change arrives; its reads are not of the race
    watch: bool = False


async def read(subject: Subject, loader: Loader, reads: int, numbers: range, pause: float, *, strict: bool) -> None:
    """Be one reader."""
    truth, tally = loader.truth, loader.tally
    for _ in range(reads):
        await asyncio.sleep(random.uniform(0, pause))
        number = random.choice(numbers)
        acknowledged = truth.acknowledged[number]
        began = time.monotonic_ns()
        tally.reads += 1
        try:
            version = (await subject.read(number)).version
        except Exception:
            if strict:
                raise
            tally.failed += 1
            continue
        if version < acknowledged:
            tally.stale += 1
            missed = version + 1  # the first change that it does not know
            lag = (began - truth.acknowledged_at(number, missed)) / 1e9
            tally.lags[number, missed] = max(lag, tally.lags.get((number, missed), 0.0))


async def write(subject: Subject, loader: Loader, numbers: range, over: Callable[[], bool]) -> None:
    """Be one writer, the only one of these keys."""
    truth = loader.truth
    while not over():
        number = random.choice(numbers)
        for pause in (BETWEEN, AFTER):
            truth.committed[number] += 1
            await subject.invalidate(number)
            truth.acknowledge(number, truth.committed[number])
            loader.tally.changes += 1
            await asyncio.sleep(random.uniform(0, pause))


async def take_part(mode: Mode, url: str, truth: Truth, pipe: Connection, reads: int) -> Tally:
    """Be a process of readers, or with no reads that of the writers, until the word comes that it is over."""
    loader = Loader(truth)
    async with mode.open(url, loader) as subject:
        numbers, readers, pause = (range(1), 1, 0.0) if mode.watch else (range(KEYS), READERS, PAUSE)
        if reads:
            work = [partial(read, subject, loader, -(-reads // readers), numbers, pause, strict=mode.ours)] * readers
        else:
            parts = [range(1)] if mode.watch else [range(first, KEYS, WRITERS) for first in range(WRITERS)]
            work = [partial(write, subject, loader, part, pipe.poll) for part in parts]
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        if mode.threads:
            with ThreadPoolExecutor(len(work)) as pool:
                loop = asyncio.get_running_loop()
                await asyncio.gather(*(loop.run_in_executor(pool, run_in_thread, one) for one in work))
        else:
            await asyncio.gather(*(one() for one in work))
        if reads:
            pipe.send("read")
            await asyncio.to_thread(pipe.recv)
            await look(subject, loader, numbers)
    return loader.tally


async def look(subject: Subject, loader: Loader, numbers: range) -> None:
    """Read every key when nothing changes any more."""
    for number in numbers:
        loader.tally.left += (await subject.read(number)).version != loader.truth.committed[number]


def run_in_thread(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a reader or writer on a loop of its thread's own, which what it calls may block."""
    asyncio.run(work())


def process(mode: Mode, url: str, truth: Truth, pipe: Connection, reads: int) -> None:
    """Take part, and send what was seen, or why not."""
    try:
        pipe.send(asyncio.run(take_part(mode, url, truth, pipe, reads)))
    except Exception:  # noqa: BLE001 the parent ends the run with it
        pipe.send(traceback.format_exc())


def race(mode: Mode, url: str, reads: int) -> Tally:
    """Let so many reads race with a writer."""
    context = multiprocessing.get_context("spawn")
    truth, total = Truth(), Tally()
    pipes: list[Connection] = []
    running = []
    try:
        for share in [reads // mode.processes] * mode.processes + [0]:
            here, there = context.Pipe()
            running.append(context.Process(target=process, args=(mode, url, truth, there, share), daemon=True))
            running[-1].start()
            there.close()
            pipes.append(here)
        for pipe in pipes:
            _receive(mode, pipe)
        for pipe in pipes:
            pipe.send("go")
        for pipe in pipes[:-1]:
            _receive(mode, pipe)
        pipes[-1].send("over")
        total.add(_receive(mode, pipes[-1]))
        time.sleep(SETTLE_SECONDS)
        for pipe in pipes[:-1]:
            pipe.send("look")
        for pipe in pipes[:-1]:
            total.add(_receive(mode, pipe))
        for one in running:
            one.join(10)
    finally:
        for one in running:
            one.kill()
    return total


def _receive(mode: Mode, pipe: Connection) -> Any:
    if not pipe.poll(WAIT_SECONDS):
        fail(f"{mode.name}: a process did not answer")
    got = pipe.recv()
    if isinstance(got, str) and got not in {"ready", "read"}:
        fail(f"{mode.name}: {got}")
    return got
