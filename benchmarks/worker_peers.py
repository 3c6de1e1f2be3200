"""The rows about the two usual ways of doing this: a job for each event, and a subscriber to the stream.

All do the same to the same cache: check the data against the event's class, and invalidate the tags and namespaces that
the rules above name. A peer's handler calls `cache.invalidate`, as a service would write it.

arq runs at its ceiling: 1 000 jobs at a time, 10 ms between two looks at the queue, no results kept. FastStream reads
for a consumer group, 500 messages at a time, and hands them to its subscriber one by one, which is its default; the bar
is for that. Without a bar stand its other ways: 100 messages at the same time (`max_workers`); batches (`batch=True`)
with a call of `cache.invalidate` for each event of a batch; and a batch whose handler merges by hand what its events
make wrong. The last is the worker's own idea, written into a service, and does less: there are no receipts, retries,
counts and delays, and one event that cannot be read stops the whole batch.
"""

import asyncio
import logging
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal

from arq.connections import ArqRedis
from arq.worker import Worker, func
from common import fail, rounds, server
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel, Discriminator, TypeAdapter
from redis.asyncio import ConnectionPool, Redis
from tidings import Cache, Event
from worker_backlog import BATCH, OURS, applied, backlog
from worker_load import PackageIngested, PricesChanged, UserUpdated, events
from worker_rows import Outcome, Row, Run

#: Events that a peer works off in a round; ours has more, since it takes as long.
PEER_EVENTS, OUR_EVENTS = 4_000, 50_000
#: At least this many times the peer's rate.
BAR = 20.0
JOBS, POLL_SECONDS, WORKERS = 1000, 0.01, 100
STREAM, GROUP = "peer:events", "peer"
WAIT_SECONDS = 120

logging.getLogger("arq.worker").setLevel(logging.WARNING)


class User(BaseModel):
    """As `worker_load.UserUpdated`, for whoever knows nothing of its envelope."""

    type: Literal["user"]
    data: UserUpdated


class Prices(BaseModel):
    """As `worker_load.PricesChanged`."""

    type: Literal["prices"]
    data: PricesChanged


class Package(BaseModel):
    """As `worker_load.PackageIngested`."""

    type: Literal["package"]
    data: PackageIngested


Message = Annotated[User | Prices | Package, Discriminator("type")]
_message: TypeAdapter[Any] = TypeAdapter(Message)


def message(event: Event) -> dict[str, Any]:
    """Return an event as JSON for a peer."""
    kind = {UserUpdated: "user", PricesChanged: "prices", PackageIngested: "package"}[type(event)]  # type: ignore[index]
    return {"type": kind, "data": event.model_dump(mode="json")}


def wrong(found: Any) -> tuple[list[str], list[str]]:
    """Return the namespaces and tags that an event makes wrong, as the rules have them."""
    match found:
        case User(data=user):
            return [], [f"user:{user.user_id}"]
        case Prices(data=prices):
            return ["prices"], [f"shop:{prices.shop}"]
        case _:
            return ["stats"], [f"package:{found.data.package}"]


class Countdown:
    """Tells when so many events are done."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._over = asyncio.Event()

    def done(self, count: int = 1) -> None:
        """Count events that are invalidated."""
        self._left -= count
        if self._left <= 0:
            self._over.set()

    async def over(self) -> None:
        """Wait until all are."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self._over.wait()


async def arq_jobs(cache: Cache, url: str, messages: list[dict[str, Any]]) -> float:
    """Return events a second with a job for each, from the first look at the queue until the last job has ended."""

    async def invalidate(_: dict[str, Any], body: dict[str, Any]) -> None:
        namespaces, tags = wrong(_message.validate_python(body))
        await cache.invalidate(namespaces=namespaces, tags=tags)

    pool = ArqRedis(ConnectionPool.from_url(url), default_queue_name="peer:jobs")
    for first in range(0, len(messages), 100):
        await asyncio.gather(*(pool.enqueue_job("invalidate", one) for one in messages[first : first + 100]))
    worker = Worker(
        [func(invalidate, name="invalidate")],
        queue_name="peer:jobs",
        redis_pool=pool,
        burst=True,
        max_jobs=JOBS,
        poll_delay=POLL_SECONDS,
        keep_result=0,
        log_results=False,
        handle_signals=False,
    )
    started = time.perf_counter()
    await worker.async_run()
    seconds = time.perf_counter() - started
    if worker.jobs_complete != len(messages):
        fail(f"{worker.jobs_complete} jobs of {len(messages)}")
    await worker.close()
    return len(messages) / seconds


async def faststream(
    cache: Cache, url: str, messages: list[dict[str, Any]], *, workers: int | None = None, batch: str = ""
) -> float:
    """Return events a second through a subscriber, from its start until the last event is acknowledged."""
    countdown = Countdown(len(messages))
    broker = RedisBroker(url, logger=None)
    stream = StreamSub(STREAM, group=GROUP, consumer="benchmark", batch=bool(batch), max_records=BATCH)

    async def one(body: Message) -> None:
        namespaces, tags = wrong(body)
        await cache.invalidate(namespaces=namespaces, tags=tags)
        countdown.done()

    async def each(bodies: list[Message]) -> None:
        for body in bodies:
            namespaces, tags = wrong(body)
            await cache.invalidate(namespaces=namespaces, tags=tags)
        countdown.done(len(bodies))

    async def merged(bodies: list[Message]) -> None:
        found = [wrong(body) for body in bodies]
        await cache.invalidate(namespaces=_all(names for names, _ in found), tags=_all(tags for _, tags in found))
        countdown.done(len(bodies))

    if workers is None:
        broker.subscriber(stream=stream)({"": one, "each": each, "merged": merged}[batch])
    else:
        broker.subscriber(stream=stream, max_workers=workers)(one)
    await broker.connect()
    async with Redis.from_url(url) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        for first in range(0, len(messages), 100):
            await asyncio.gather(*(broker.publish(body, stream=STREAM) for body in messages[first : first + 100]))
        started = time.perf_counter()
        await broker.start()
        await countdown.over()
        while (await client.xpending(STREAM, GROUP))["pending"]:  # noqa: ASYNC110 the acks are FastStream's
            await asyncio.sleep(0)
        seconds = time.perf_counter() - started
    await broker.stop()
    return len(messages) / seconds


def _all(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


Peer = Callable[[Cache, str, list[dict[str, Any]]], Awaitable[float]]

ARQ, MERGED = "arq job", "batch, merged by hand"
#: The bar is for the first.
SUBSCRIBERS: dict[str, Peer] = {
    "one by one": faststream,
    f"{WORKERS} workers": partial(faststream, workers=WORKERS),
    "batch": partial(faststream, batch="each"),
    MERGED: partial(faststream, batch="merged"),
}


async def one_round(url: str, peers: dict[str, Peer], run: Run, seed: int) -> dict[str, float]:
    """Return events a second, of ours and of each peer."""
    messages = [message(event) for event, _ in events(run.scaled(PEER_EVENTS), seed)]
    rates: dict[str, float] = {}
    for name in random.sample([OURS, *peers], len(peers) + 1):
        async with Redis.from_url(url) as client, Cache(url) as cache:
            await client.flushall()
            if name == OURS:
                await backlog(cache, client, run.scaled(OUR_EVENTS), seed)
                rates[name] = await applied(cache, client, run.scaled(OUR_EVENTS))
            else:
                rates[name] = await peers[name](cache, url, messages)
            for token in ("namespace:prices", "namespace:stats", "tag:user:1", "tag:shop:1", "tag:package:package-1"):
                if not await client.exists(cache.keys.token(token)):
                    fail(f"{name} did not invalidate {token}")
    return rates


def measure(run: Run, peers: dict[str, Peer]) -> Outcome:
    """Measure ours and the peers in every round; the bar is for the first of them."""
    found: list[dict[str, float]] = []
    with server() as url:
        for number, counts in enumerate(rounds(run.rounds, " and ".join(peers))):
            rates = run.run(one_round(url, peers, run, number))
            if counts:
                found.append(rates)
    times = {name: statistics.median(rates[OURS] / rates[name] for rates in found) for name in peers}
    medians = {name: statistics.median(rates[name] for rates in found) for name in found[0]}
    least = next(iter(times.values()))
    said = ", ".join(f"{name} {medians[name]:,.0f} ({times[name]:.1f})" for name in peers)
    note = f"events/s: ours {medians[OURS]:,.0f}; {said}"
    return Outcome(f"{least:.1f} times", note, least >= BAR, {"times": times, "medians": medians, "rounds": found})


ROWS = (
    Row("arq", "beside an arq job for each event", f"at least {BAR:g}", partial(measure, peers={ARQ: arq_jobs})),
    Row("faststream", "beside a FastStream subscriber", f"at least {BAR:g}", partial(measure, peers=SUBSCRIBERS)),
)
