"""The row about the worker's own cost: a backlog through typed validation, rules, merged invalidation and ack.

The base is the least that any consumer of the stream pays: XREADGROUP of as many entries, JSON decoding of their data,
XACK, with the same client. Both work off the same stream, each for a group of its own.
"""

import json
import random
import statistics
import time
from typing import Any

from common import fail, quantile, rounds, server
from redis.asyncio import Redis
from tidings import Cache
from tidings.publisher import entries_of
from tidings_worker.delivery import RetryPolicy
from tidings_worker.groups import Clients, Group
from tidings_worker.handler import Handler
from tidings_worker.warming import WarmQueue
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
    """Fill the stream, and make a group for each."""
    await fill(client, cache.keys.events, stream_fields(count, seed))
    for group in (BARE, cache.settings.group):
        await client.xgroup_create(cache.keys.events, group, id="0")


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


async def applied(cache: Cache, client: Redis, count: int) -> float:
    """Work the stream off as the worker does; return events a second."""
    stream = cache.keys.stream()
    async with Redis(**client.get_connection_kwargs()) as blocking:
        clients = Clients.of_one_server(client, blocking)
        group = Group(clients, stream, cache.settings.group, CONSUMER, dead=cache.keys.dead, counts=cache.keys.counts)
        handler = Handler(cache, rules, WarmQueue(client, cache.keys.jobs), RetryPolicy())
        done = 0
        started = time.perf_counter()
        while done < count:
            entries = await group.read(BATCH, BLOCK_MS)
            await handler.handle(group, entries)
            done += len(entries)
        seconds = time.perf_counter() - started
    await _check(client, stream.events, cache.settings.group)
    if int(await client.hget(cache.keys.counts, "applied") or 0) != count:
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
