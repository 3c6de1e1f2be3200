"""The row about a stampede: 800 calls of one cold key in 4 processes at once, with a load of 50 ms.

The processes live through all rounds. In each, everybody warms up first, on numbers of its own and as many at a time,
so that code and connections are there; then all start at one moment on one clock. What the processes send is counted on
the server, by a MONITOR that is read when all is over; what a script does on the server is not sent by anybody.
"""

import asyncio
import contextlib
import multiprocessing
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import peers
import redis
from common import fail, rounds, server
from payloads import TAGS, TENANT, User, small
from peers import Decorator
from redis.asyncio import Redis
from redis.client import Monitor
from rows import NOTHING, OURS, Outcome, Row, Run

PROCESSES, CALLS, LOAD_SECONDS = 4, 200, 0.05
#: The bars: loads, seconds until all are answered, commands a process without the loads' own.
LOADS, SECONDS, COMMANDS = 1, 1.5 * LOAD_SECONDS, 10
#: From "everybody is ready" to the calls.
RUN_UP_SECONDS = 0.3
COLD = 0
ANSWER_SECONDS = 60
END = "stampede-is-over"

THREADS = "dogpile.cache"
TASKS: dict[str, Callable[[str, str], AbstractAsyncContextManager[Decorator]]] = {
    OURS: peers.tidings,
    "cashews": peers.cashews,
    "cashews, lock": partial(peers.cashews, lock=True),
    "cashews, tags": partial(peers.cashews, tags=TAGS, lock=True),
    "aiocache": partial(peers.aiocache_redis, stampede=True),
    "fastapi-cache2": peers.fastapi_cache2,
}


def flood(pipe: Connection, url: str, run: Run, first: int) -> None:
    """Be one of the processes: take jobs until None; `first` is the first of the numbers that are its own."""
    while (job := pipe.recv()) is not None:
        column, space = job
        if column == THREADS:
            flood_from_threads(pipe, url, space, first)
        else:
            run.run(flood_from_tasks(pipe, url, column, space, first))


async def flood_from_tasks(pipe: Connection, url: str, column: str, space: str, first: int) -> None:
    """Warm up, wait for the start, make the calls from as many tasks, and tell when the last was answered."""
    value = small().value

    async def load(number: int, tenant: str = TENANT) -> User:  # noqa: ARG001
        await counter.incr(space)
        await asyncio.sleep(LOAD_SECONDS)
        return value(number)  # type: ignore[no-any-return]

    async with TASKS[column](url, space) as decorate, Redis.from_url(url) as counter:
        cached: Callable[[int], Awaitable[Any]] = decorate(load)
        await asyncio.gather(*(cached(first + call) for call in range(CALLS)))
        start = await asyncio.to_thread(_meet, pipe)
        await asyncio.sleep(start - time.monotonic())
        answers = await asyncio.gather(*(cached(COLD) for _ in range(CALLS)))
        pipe.send((time.monotonic(), all(answer == value(COLD) for answer in answers)))
        await asyncio.to_thread(pipe.recv)  # nobody closes what others may still wait for


def flood_from_threads(pipe: Connection, url: str, space: str, first: int) -> None:
    """Do the same from as many threads."""
    value = small().value
    lock = {"distributed_lock": True, "thread_local_lock": False, "lock_timeout": 10, "lock_sleep": 0.01}

    def load(number: int, tenant: str = TENANT) -> User:  # noqa: ARG001
        counter.incr(space)
        time.sleep(LOAD_SECONDS)
        return value(number)  # type: ignore[no-any-return]

    with (
        peers.dogpile(url, space, **lock) as decorate,
        redis.Redis.from_url(url) as counter,
        ThreadPoolExecutor(CALLS) as threads,
    ):
        cached = decorate(load)
        list(threads.map(cached, range(first, first + CALLS)))
        time.sleep(_meet(pipe) - time.monotonic())
        answers = list(threads.map(cached, [COLD] * CALLS))
        pipe.send((time.monotonic(), all(answer == value(COLD) for answer in answers)))
        pipe.recv()


def _meet(pipe: Connection) -> float:
    """Say that this process is ready, and learn when to start."""
    pipe.send("ready")
    return pipe.recv()  # type: ignore[no-any-return]


@contextlib.contextmanager
def processes(url: str, run: Run) -> Iterator[list[Connection]]:
    """Run the processes, and end them."""
    context = multiprocessing.get_context("spawn")
    pipes, running = [], []
    for number in range(PROCESSES):
        here, there = context.Pipe()
        process = context.Process(target=flood, args=(there, url, run, (number + 1) * 10 * CALLS), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        running.append(process)
    try:
        yield pipes
        for pipe in pipes:
            pipe.send(None)
        for process in running:
            process.join(10)
    finally:
        for process in running:
            process.kill()


def stampede(client: redis.Redis, pipes: list[Connection], column: str, space: str) -> dict[str, float]:
    """Let all processes call the cold key at once."""
    for pipe in pipes:
        pipe.send((column, space))
    _answers(pipes)
    warmed = _count(client, space)
    time.sleep(RUN_UP_SECONDS)  # fills and whatever else follows a load are done
    with client.monitor() as monitor:
        start = time.monotonic() + RUN_UP_SECONDS
        for pipe in pipes:
            pipe.send(start)
        answers = _answers(pipes)
        client.echo(END)
        sent = _sent(monitor)
    loads = _count(client, space) - warmed
    for pipe in pipes:
        pipe.send("done")
    if not all(right for _, right in answers):
        fail(f"{column} answered with another value")
    seconds = max(ended for ended, _ in answers) - start
    return {"loads": loads, "seconds": seconds, "commands": (sent - loads) / PROCESSES}


def _answers(pipes: list[Connection]) -> list[Any]:
    for pipe in pipes:
        if not pipe.poll(ANSWER_SECONDS):
            fail("a process did not answer")
    return [pipe.recv() for pipe in pipes]


def _count(client: redis.Redis, counter: str) -> int:
    return int(client.get(counter) or 0)  # type: ignore[arg-type]  # redis-py's annotation covers both its clients


def _sent(monitor: Monitor) -> int:
    count = 0
    while not (seen := monitor.next_command())["command"].endswith(END):
        count += seen["client_type"] != "lua"
    return count


def measure(run: Run) -> Outcome:
    """Measure all; ours must meet every bar by its median, and make one load every time."""
    figures: dict[str, list[dict[str, float]]] = {column: [] for column in [*TASKS, THREADS]}
    with server() as url, redis.Redis.from_url(url) as client, processes(url, run) as pipes:
        for number, counts in enumerate(rounds(run.rounds, "stampede")):
            for column in random.sample(list(figures), len(figures)):
                got = stampede(client, pipes, column, f"flood-{column.replace(', ', '-')}-{number}")
                client.flushall()
                if counts:
                    figures[column].append(got)
    medians = {
        column: {name: statistics.median(got[name] for got in many) for name in many[0]}
        for column, many in figures.items()
    }
    ours = medians[OURS]
    met = (
        max(got["loads"] for got in figures[OURS]) <= LOADS
        and ours["seconds"] <= SECONDS
        and ours["commands"] < COMMANDS
    )
    cells = {column: _cell(figure) for column, figure in medians.items()}
    return Outcome({OURS: NOTHING} | cells, met, {"medians": medians, "rounds": figures})


def _cell(figure: dict[str, float]) -> str:
    return f"{figure['loads']:.0f}, {figure['seconds'] * 1000:.0f} ms, {figure['commands']:.0f}"


ROW = Row(
    "stampede",
    "800 cold calls in 4 processes: loads, time, commands a process",
    f"{LOADS}, {SECONDS * 1000:.0f} ms, {COMMANDS}",
    measure,
)
