"""Whole worker processes, and the row about how many of them do more than one.

The backlog is copied into the stream by a script on the server, which serves nobody meanwhile: the workers, all of them
waiting, find it complete at the moment that the script ends.
"""

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import redis
from common import fail, rounds, server
from redis.asyncio import Redis
from tidings import Cache
from tidings_worker.groups import MARK
from worker_load import fill, stream_fields, unacknowledged
from worker_rows import Outcome, Row, Run

BACKLOG, COUNTS = 50_000, (1, 2, 4)
STAGED = "staged"
START_SECONDS, STOP_SECONDS, WORK_SECONDS = 20, 20, 120
_COPY = """
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
  redis.call('XADD', KEYS[2], '*', unpack(entry[2]))
end
"""


@contextmanager
def workers(url: str, count: int) -> Iterator[None]:
    """Run so many workers with the benchmark's rules, and wait until each reads the stream."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    command = [str(Path(sys.executable).with_name("tidings")), "worker", "--quiet", "worker_load:rules"]
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(_process(command, clean | {"TIDINGS_URL": url}))
        with redis.Redis.from_url(url) as client:
            _wait_for(client, Cache(url), count)
        yield


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a process until the end, and show the last of what it logged if that is not as it should be."""
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            if process.wait(STOP_SECONDS) != 0:
                log.seek(0)
                sys.stderr.write("".join(log.readlines()[-20:]))
                sys.stderr.write(f"the worker ended with exit code {process.returncode}\n")


def _wait_for(client: redis.Redis, cache: Cache, count: int) -> None:
    stream, group = cache.keys.events, cache.settings.group
    deadline = time.monotonic() + START_SECONDS
    reading = 0
    while reading < count:
        if time.monotonic() > deadline:
            fail(f"{reading} of {count} workers read the stream")
        time.sleep(0.05)
        if client.exists(stream):
            found: Any = client.xinfo_consumers(stream, group)
            reading = sum(not one["name"].startswith(MARK.encode()) for one in found)


async def work_off(url: str, count: int) -> float:
    """Return events a second, from the moment that the backlog is there until all of it is acknowledged."""
    async with Redis.from_url(url) as client, Cache(url) as cache:
        stream, group = cache.keys.events, cache.settings.group
        await client.eval(_COPY, 2, STAGED, stream)  # type: ignore[misc]  # redis-py's annotation covers both its clients
        started = time.perf_counter()
        while await unacknowledged(client, stream, group):
            if time.perf_counter() - started > WORK_SECONDS:
                fail("the workers do not finish")
            await asyncio.sleep(0.005)
        return count / (time.perf_counter() - started)


async def stage(url: str, count: int, seed: int) -> None:
    """Put a backlog beside the stream."""
    async with Redis.from_url(url) as client:
        await client.flushall()
        await fill(client, STAGED, stream_fields(count, seed))


def measure(run: Run) -> Outcome:
    """Measure each number of workers in every round."""
    found: list[dict[int, float]] = []
    with server() as url:
        for number, counts in enumerate(rounds(run.rounds, "processes")):
            rates: dict[int, float] = {}
            for count in random.sample(COUNTS, len(COUNTS)):
                run.run(stage(url, run.scaled(BACKLOG), number))
                with workers(url, count):
                    rates[count] = run.run(work_off(url, run.scaled(BACKLOG)))
            if counts:
                found.append(rates)
    medians = {count: statistics.median(rates[count] for rates in found) for count in COUNTS}
    figure = ", ".join(f"{count}: {medians[count]:,.0f}" for count in COUNTS)
    note = f"events/s on {os.cpu_count()} cores, of which the server takes its part"
    return Outcome(figure, note, met=True, details={"medians": medians, "rounds": found})


ROW = Row("processes", "events/s of 1, 2 and 4 workers", "none", measure)
