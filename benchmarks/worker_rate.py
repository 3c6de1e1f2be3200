"""The row about the time from publish to applied while events come at 1 000 a second.

The base is what `latency.py` takes for it: the least that any such design pays, an XADD of the same fields from this
process until another process, blocked in XREADGROUP, has the entry in hand; here at the same rate, in turns with ours.
Every event is published from a task of its own, at its own moment, whatever became of those before it. The receipt of
every tenth is waited for: those who publish and do not wait are the rule, and what waits costs this process its time,
which is not the worker's.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import redis
from common import fail, quantile, receiving, rounds, server
from redis.asyncio import Redis
from redis.typing import EncodableT
from tidings import Cache
from tidings.events import to_fields
from tidings.publisher import entries_of
from worker_load import SOURCE, events
from worker_processes import workers
from worker_rows import Outcome, Row, Run

RATE, SECONDS, AWAITED = 1000, 3, 10
#: At most this many times the floor (p50), and this many milliseconds (p99).
BAR, BAR_MS = 4.0, 20.0
STREAM, GROUP, SENT = "floor:events", "floor", "sent"
WAIT_SECONDS = 30.0


def receive(url: str, pipe: Connection) -> None:
    """Run in the floor's process: note how long each entry took, and give the times in ms when asked for them."""
    taken: list[float] = []
    with redis.Redis.from_url(url) as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        pipe.send("ready")
        while True:
            reply: Any = client.xreadgroup(GROUP, "reader", {STREAM: ">"}, count=500, block=100, noack=True)
            now = time.monotonic_ns()
            taken += [(now - int(fields[SENT.encode()])) / 1e6 for _, fields in entries_of(reply)]
            if pipe.poll():
                pipe.recv()
                pipe.send(taken)
                taken = []


async def at_rate(count: int, send: Callable[[int], Awaitable[None]]) -> None:
    """Start `send` so many times, `RATE` times a second, each in a task of its own; wait for all."""
    start = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            if (early := start + number / RATE - time.monotonic()) > 0:
                await asyncio.sleep(early)
            tasks.create_task(_sent(send, number))


async def _sent(send: Callable[[int], Awaitable[None]], number: int) -> None:
    await send(number)


async def floor(client: Redis, pipe: Connection, count: int, seed: int) -> list[float]:
    """Return the milliseconds from XADD to in hand, of each."""
    prepared: list[dict[EncodableT, EncodableT]] = [
        {**to_fields(event, source=SOURCE, subject=subject)} for event, subject in events(count, seed)
    ]

    async def add(number: int) -> None:
        await client.xadd(STREAM, {**prepared[number], SENT: str(time.monotonic_ns())})

    await at_rate(count, add)
    pipe.send("times")
    times: list[float] = await asyncio.to_thread(pipe.recv)
    if len(times) != count:
        fail(f"{len(times)} of {count} entries reached the floor's process")
    return times


async def applied(cache: Cache, count: int, seed: int) -> list[float]:
    """Return the milliseconds from publish to applied, of those whose receipts were waited for."""
    prepared = list(events(count, seed))
    times: list[float] = []

    async def publish(number: int) -> None:
        event, subject = prepared[number]
        started = time.monotonic_ns()
        receipt = await cache.publish(event, subject=subject)
        if number % AWAITED == 0:
            await receipt.applied(WAIT_SECONDS)
            times.append((time.monotonic_ns() - started) / 1e6)

    await at_rate(count, publish)
    return times


async def one_round(url: str, pipe: Connection, count: int, seed: int) -> tuple[list[float], list[float]]:
    """Return the floor's times and ours."""
    async with Redis.from_url(url) as client, Cache(url) as cache:
        return await floor(client, pipe, count, seed), await applied(cache, count, seed)


def measure(run: Run) -> Outcome:
    """Measure both in every round."""
    found: list[tuple[list[float], list[float]]] = []
    with server() as url, receiving(receive, url) as pipe, workers(url, 1):
        for number, counts in enumerate(rounds(run.rounds, f"{RATE} events a second")):
            times = run.run(one_round(url, pipe, run.scaled(RATE * SECONDS), number))
            if counts:
                found.append(times)
    ratio = statistics.median(statistics.median(ours) / statistics.median(least) for least, ours in found)
    least, ours = [[one for times in found for one in times[index]] for index in (0, 1)]
    p50, p99 = quantile(ours, 0.5), quantile(ours, 0.99)
    note = (
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms of {len(ours)}; "
        f"floor p50 {quantile(least, 0.5):.2f} ms, p99 {quantile(least, 0.99):.2f} ms"
    )
    details = {"ratio": ratio, "p50_ms": p50, "p99_ms": p99, "floor_p50_ms": quantile(least, 0.5)}
    return Outcome(f"{ratio:.2f} times, p99 {p99:.1f} ms", note, ratio <= BAR and p99 < BAR_MS, details)


ROW = Row(
    "rate",
    f"publish to applied at {RATE} events/s, p50 against the floor",
    f"at most {BAR:g} times, p99 under {BAR_MS:g} ms",
    measure,
)
