"""Rows about hits: the time, or the client's CPU time, of a cached call beside a bare command of redis-py.

All variants of a row read the same numbers in turn, so that none profits from one hot key. After each variant's turn
in each round its loads are counted, which must be none, and every number is read once more and compared.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from functools import partial
from typing import Any

import peers
import redis
from common import Samples, Times, fail, rounds, server
from payloads import TAGS, Payload, immutable, large, small
from peers import Decorator
from redis.asyncio import Redis
from rows import OURS, Outcome, Row, Run
from tidings import Cache

Call = Callable[[int], Awaitable[Any]]
#: Makes calls, and returns what one took in ms.
Arrival = Callable[[Call], Awaitable[float]]
#: Ours and the peers by column.
Variants = dict[str, AbstractAsyncContextManager[Decorator]]

GET, DECODED = "GET", "GET + decode"
#: Reads at a time when numbers are checked: more than the peers' pools only wait.
CHECKED_AT_A_TIME = 50


async def in_turn(call: Call, count: int) -> float:
    """Make one call after the other."""
    started = time.perf_counter()
    for number in range(count):
        await call(number)
    return (time.perf_counter() - started) * 1000 / count


async def at_once(call: Call, tasks: int, count: int) -> float:
    """Make calls from so many tasks; at any moment each is at another number."""

    async def one(first: int) -> None:
        for number in range(first, count, tasks):
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*map(one, range(tasks)))
    return (time.perf_counter() - started) * 1000 / count


async def jittered(call: Call, tasks: int, count: int) -> float:
    """Pause for 0 to 2 ms before each call; return the CPU time of one, with that of the pauses."""
    pauses = random.Random(3)

    async def one(first: int) -> None:
        for number in range(first, count, tasks):
            await asyncio.sleep(pauses.random() * 0.002)
            await call(number)

    started = time.process_time()
    await asyncio.gather(*map(one, range(tasks)))
    return (time.process_time() - started) * 1000 / count


def in_redis(url: str) -> Variants:
    """Return those that keep small models in Redis."""
    return {
        OURS: peers.tidings(url),
        "cashews": peers.cashews(url),
        "cashews, tags": peers.cashews(url, "cashews-tags", tags=TAGS),
        "aiocache": peers.aiocache_redis(url),
        "fastapi-cache2": peers.fastapi_cache2(url),
    }


def in_process(url: str) -> Variants:
    """Return those that keep results in this process; the coherent ones, ours and the second cashews, with 3 tags.

    All peers hand the same object to every caller. Ours does if it cannot be changed, or if asked to, as it is here;
    otherwise each caller gets a copy, which is the second of ours.
    """
    return {
        OURS: peers.tidings(url, local_ttl=peers.TTL, local_shared=True),
        "tidings, copies": peers.tidings(url, "copies", local_ttl=peers.TTL),
        "async-lru": peers.async_lru(),
        "cachebox": peers.cachebox_ttl(),
        "cashews": peers.cashews("mem://", size=peers.SIZE),
        "cashews, tags": peers.cashews(url, "cashews-client", tags=TAGS, client_side=True),
        "aiocache": peers.aiocache_memory(),
        "fastapi-cache2": peers.fastapi_cache2_memory(),
    }


class Contest:
    """The calls of one row, by column."""

    def __init__(self, payload: Payload, stack: AsyncExitStack) -> None:
        self.payload, self.calls = payload, dict[str, Call]()
        self._stack = stack

    async def enter(self, variants: Variants) -> None:
        """Decorate the payload's function with each."""
        for column, variant in variants.items():
            decorate = await self._stack.enter_async_context(variant)
            self._add(column, decorate(self.payload.function()))

    async def enter_redis_py(self, url: str) -> None:
        """Add the bare command, and the bare command with its result decoded."""
        client = await self._stack.enter_async_context(Redis.from_url(url))
        keys = [f"raw:{number}" for number in range(self.payload.numbers)]
        await client.mset({key: self.payload.encoded(number) for number, key in enumerate(keys)})

        async def decoded(key: str) -> Any:
            return decode(await client.get(key))

        decode = self.payload.adapter.validate_json
        modulus = len(keys)
        self.calls[GET] = lambda number: client.get(keys[number % modulus])
        self.calls[DECODED] = lambda number: decoded(keys[number % modulus])

    def _add(self, column: str, cached: Callable[[int], Awaitable[Any]]) -> None:
        modulus = self.payload.numbers
        self.calls[column] = lambda number: cached(number % modulus)

    async def read_all(self, column: str) -> None:
        """Read every number once and compare it."""
        call, numbers = self.calls[column], range(self.payload.numbers)
        for first in numbers[::CHECKED_AT_A_TIME]:
            some = numbers[first : first + CHECKED_AT_A_TIME]
            for number, got in zip(some, await asyncio.gather(*map(call, some)), strict=True):
                value = self.payload.value(number)
                if got != value and not (column == GET and got == self.payload.encoded(number)):
                    fail(f"{column} returned {got!r:.200} for {number}")

    async def measure(self, count: int, arrive: Arrival, *, idle: bool = False) -> Samples:
        """Let the variants take turns in random order; `idle` measures arrivals that call nothing and takes it off."""
        samples = Samples(next(iter(self.calls)))
        for column in self.calls:
            await self.read_all(column)  # fills
        for counts in rounds(count, "hits"):
            self.payload.loads = 0
            times: Times = {}
            for column in random.sample(list(self.calls), len(self.calls)):
                times[column] = [await arrive(self.calls[column])]
                await self.read_all(column)
                if self.payload.loads:
                    fail(f"{column}: {self.payload.loads} of the timed calls were no hits")
            if idle:
                spent = await arrive(_nothing)
                times = {column: [value - spent for value in values] for column, values in times.items()}
            if counts:
                samples.by_round.append({column: times[column] for column in self.calls})
        return samples


async def _nothing(number: int) -> None:
    pass


def async_row(
    run: Run,
    arrive: Arrival,
    payload: Callable[[], Payload],
    variants: Callable[[str], Variants],
    *,
    base: str,
    bar: float,
    idle: bool = False,
) -> Outcome:
    """Measure a row of coroutines."""

    async def measure(url: str) -> Outcome:
        async with AsyncExitStack() as stack:
            contest = Contest(payload(), stack)
            if base in (GET, DECODED):
                await contest.enter_redis_py(url)
            await contest.enter(variants(url))
            samples = await contest.measure(run.rounds, arrive, idle=idle)
        samples.base = base
        return outcome(samples, bar)

    with server() as url:
        return run.run(measure(url))


def outcome(samples: Samples, bar: float) -> Outcome:
    """Judge ours by its ratio to the base."""
    summaries = samples.as_json()
    cells = {column: f"{row['ratio']:.2f}" for column, row in summaries.items()}
    return Outcome(cells, summaries[OURS]["ratio"] <= bar, {"base": samples.base, "variants": summaries})


def sync_row(run: Run, bar: float, count: int) -> Outcome:
    """Measure a row of plain functions, in turn."""
    payload = small()
    with server() as url, ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(url))
        for number in range(payload.numbers):
            client.set(f"raw:{number}", payload.encoded(number))
        decode = payload.adapter.validate_json
        calls: dict[str, Callable[[int], Any]] = {
            GET: lambda number: client.get(f"raw:{number}"),
            DECODED: lambda number: decode(client.get(f"raw:{number}")),
            "dogpile.cache": stack.enter_context(peers.dogpile(url))(payload.sync_function()),
        }
        cache = Cache(url)
        stack.callback(cache.sync.close)
        decorate: Any = cache.cached(namespace="ours", ttl=peers.TTL, tags=list(TAGS))
        calls[OURS] = decorate(payload.sync_function())
        samples = _sync_rounds(run, payload, calls, count)
    return outcome(samples, bar)


def _sync_rounds(run: Run, payload: Payload, calls: dict[str, Callable[[int], Any]], count: int) -> Samples:
    samples = Samples(GET)
    for call in calls.values():
        for number in range(payload.numbers):
            call(number)  # fills
    for counts in rounds(run.rounds, "sync hits"):
        payload.loads = 0
        times: Times = {}
        for column in random.sample(list(calls), len(calls)):
            call = calls[column]
            started = time.perf_counter()
            for number in range(count):
                call(number % payload.numbers)
            times[column] = [(time.perf_counter() - started) * 1000 / count]
            if column != GET and any(call(number) != payload.value(number) for number in range(payload.numbers)):
                fail(f"{column} returned another value")
            if payload.loads:
                fail(f"{column}: {payload.loads} of the timed calls were no hits")
        if counts:
            samples.by_round.append({column: times[column] for column in calls})
    return samples


def _redis_row(name: str, title: str, bar: float, arrive: Arrival, *, idle: bool = False) -> Row:
    def measure(run: Run) -> Outcome:
        return async_row(run, arrive, small, in_redis, base=GET, bar=bar, idle=idle)

    return Row(name, title, f"{bar:.2f}", measure)


def _local_row(name: str, title: str, payload: Callable[[], Payload]) -> Row:
    def measure(run: Run) -> Outcome:
        return async_row(run, partial(in_turn, count=20_000), payload, in_process, base="async-lru", bar=1.0)

    return Row(name, title, "1.00", measure)


ROWS = (
    _redis_row("sequential", "Redis hit, in turn", 1.0, partial(in_turn, count=1000)),
    _redis_row("tasks-50", "Redis hit, 50 tasks", 0.2, partial(at_once, tasks=50, count=3000)),
    _redis_row("tasks-200", "Redis hit, 200 tasks", 0.15, partial(at_once, tasks=200, count=4000)),
    _redis_row("jitter", "100 tasks, 0 to 2 ms apart (CPU)", 0.35, partial(jittered, tasks=100, count=2000), idle=True),
    Row(
        "list",
        "20 KB list, 50 tasks (to GET + decode)",
        "0.85",
        lambda run: async_row(run, partial(at_once, tasks=50, count=600), large, in_redis, base=DECODED, bar=0.85),
    ),
    _local_row("local", "in process, frozen model (to async-lru)", immutable),
    _local_row("local-mutable", "in process, mutable model, shared (to async-lru)", small),
    Row("sync", "sync Redis hit, in turn (to sync GET)", "1.10", lambda run: sync_row(run, 1.1, 1000)),
)
