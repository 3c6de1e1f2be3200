"""The row about the worker's own cost: a backlog through typed validation, rules, merged invalidation and ack.

The base is the least that any consumer of the stream pays: XREADGROUP of as many entries, JSON decoding of their data,
XACK, with the same client. Both work off the same stream, each for a group of its own.
"""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from common import fail, quantile, rounds, server
from redis.asyncio import Redis
from tidings import Cache
from tidings.publisher import entries_of
from tidings.store import RedisStore
from tidings_worker.consumer import Consumer
from tidings_worker.delivery import Entry, Retries, RetryPolicy
from tidings_worker.groups import Group, Reading
from tidings_worker.handler import Handler
from tidings_worker.handler import Outcome as HandlerOutcome
from tidings_worker.ledger import Ledger
from tidings_worker.outage import Outage, Patience
from tidings_worker.servers import histories
from tidings_worker.warming import WarmQueue
from tidings_worker.watch import Watch
from worker_load import fill, rules, stream_fields, unacknowledged
from worker_rows import Outcome, Row, Run

#: Entries read and acknowledged together: the worker's default.
BATCH = 500
BACKLOG = 50_000
#: At least this part of the base.
BAR = 0.35
OURS, BARE = "tidings", "bare"
CONSUMER = "benchmark"
BLOCK_MS = 1000


async def backlog(cache: Cache, client: Redis, count: int, seed: int) -> None:
    """Fill the stream, and make the group of the bare loop."""
    await fill(client, cache.keys.events, stream_fields(count, seed))
    await client.xgroup_create(cache.keys.events, BARE, id="0")


async def bare(cache: Cache, client: Redis, count: int) -> float:
    """Work the stream off without doing anything about it; return events a second."""
    stream, done = cache.keys.events, 0
    started = time.perf_counter()
    while done < count:
        reply: Any = await client.xreadgroup(BARE, CONSUMER, {stream: ">"}, count=BATCH, block=BLOCK_MS)
        entries = entries_of(reply)
        for _, fields in entries:
            json.loads(fields[b"data"])
        done += await client.xack(stream, BARE, *(stream_id for stream_id, _ in entries))
    seconds = time.perf_counter() - started
    await _check(client, stream, BARE)
    return count / seconds


class _Counting(Handler):
    """The worker's handler, which stops the worker when so many events are handled."""

    def __init__(self, cache: Cache, warmer: WarmQueue, policy: RetryPolicy, count: int, stop: asyncio.Event) -> None:
        super().__init__(cache, rules, warmer, policy)
        self._left = count
        self._stop = stop
        #: when the last of them was acknowledged: stopping then takes until the read that waits for more returns
        self.finished = 0.0

    async def handle(
        self,
        group: Group,
        entries: Sequence[Entry],
        *,
        contiguous: bool = True,
        ahead: Callable[[], Reading | None] = lambda: None,
    ) -> HandlerOutcome:
        """Handle a batch, and count it."""
        outcome = await super().handle(group, entries, contiguous=contiguous, ahead=ahead)
        self._left -= len(entries)
        if self._left <= 0:
            self.finished = time.perf_counter()
            self._stop.set()
        return outcome


async def applied(cache: Cache, client: Redis, count: int) -> float:
    """Work the stream off as the worker does, with its own parts; return events a second."""
    keys, settings, store = cache.keys, cache.settings, cache.reader().store
    if not isinstance(store, RedisStore):
        fail("this is not a Redis")
    stop, policy = asyncio.Event(), RetryPolicy()
    handler = _Counting(cache, WarmQueue(client, keys.jobs), policy, count, stop)
    group = Group(store, keys.stream(), settings.group, CONSUMER, dead=keys.dead, counts=keys.counts)
    watch = Watch(cache, [group], Ledger(store, keys.ledger), lambda: histories(store), lambda _: None)
    await watch.check()
    consumer = Consumer(group, handler, watch, Retries(), policy, batch=BATCH, block_ms=BLOCK_MS)
    patience = Patience("consumer", Outage("the server", lambda _there, _why: None), stop)
    started = time.perf_counter()
    await consumer.run(stop, patience)
    seconds = handler.finished - started
    await group.aclose()
    await _check(client, group.stream.events, settings.group)
    if int(await client.hget(keys.counts, "applied") or 0) != count:
        fail("not every event was applied")
    return count / seconds


async def _check(client: Redis, stream: str, group: str) -> None:
    if left := await unacknowledged(client, stream, group):
        fail(f"{group} left {left} events unacknowledged")


async def one_round(url: str, count: int, seed: int) -> dict[str, float]:
    """Return events a second, of both."""
    async with Redis.from_url(url) as client, Cache(url) as cache:
        await client.flushall()
        await backlog(cache, client, count, seed)
        works = [(OURS, applied), (BARE, bare)]
        return {name: await work(cache, client, count) for name, work in random.sample(works, 2)}


def measure(run: Run) -> Outcome:
    """Measure both in every round."""
    found: list[dict[str, float]] = []
    with server() as url:
        for number, counts in enumerate(rounds(run.rounds, "backlog")):
            rates = run.run(one_round(url, run.scaled(BACKLOG), number))
            if counts:
                found.append(rates)
    ratios = [rates[OURS] / rates[BARE] for rates in found]
    ratio = statistics.median(ratios)
    medians = {name: statistics.median(rates[name] for rates in found) for name in found[0]}
    said = f"{ratio:.2f} (quartiles {quantile(ratios, 0.25):.2f} to {quantile(ratios, 0.75):.2f})"
    note = f"{medians[OURS]:,.0f} events/s; bare {medians[BARE]:,.0f}"
    return Outcome(said, note, ratio >= BAR, {"ratio": ratio, "medians": medians, "rounds": found})


ROW = Row("backlog", "backlog, as a part of reading, decoding and acking it", f"at least {BAR:g}", measure)
