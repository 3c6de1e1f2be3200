"""How long after a publish the caches are fresh: publisher and reader in this process, `tidings worker` in another.

Measured from just before `publish`, until `receipt.applied()` returns, until a read after it returns the fresh value,
and until a reader that does not wait for the receipt but reads over and over is given the fresh value. The base is the
least that any such design pays, in the same run: an XADD of the same fields from this process, until another process
that was blocked in XREADGROUP has the entry in hand. One way: nothing comes back. redis-py's asynchronous client sends
it, since the publisher is a coroutine, and its blocking one receives it, which is quicker; beside it stands the same
with a blocking XADD. Bar: p50 within 5 times the floor.

All processes stamp CLOCK_MONOTONIC, which is one clock for the whole machine. Events come one at a time with a short
random pause between them, so that every reader is blocked again when the next one comes.
"""

import argparse
import asyncio
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis
import tidings
from common import EXIT_FAILED, Samples, Times, fail, receiving, rounds, say, server, show, write_json
from redis.asyncio import Redis
from tidings import Cache, Event
from tidings.events import to_fields
from tidings.keys import tag_token
from tidings_worker import Invalidate, Rules

#: At most this many times the floor, p50.
BAR = 5.0

FLOOR, BLOCKING_FLOOR = "floor: XADD to XREADGROUP", "  with a blocking XADD"
ACKED, PLANNED, INVALIDATED = "  publish acked", "  worker has planned it", "  tokens changed in Redis"
APPLIED, READ, LOOP = "applied", "fresh, read after applied", "fresh, reading in a loop"

ITEM, TAG = 1, "item:1"
#: Names a file of one native 64-bit integer for each event: when the worker planned it, in CLOCK_MONOTONIC ns.
STAMPS = "BENCHMARK_STAMPS"
FLOOR_STREAM, FLOOR_GROUP = "floor:events", "floor"


class ItemChanged(Event, type="item.changed"):
    """What is published."""

    item: int
    version: int


#: The service's database.
versions: dict[int, int] = {ITEM: 0}


@tidings.cached(namespace="items", tags=["item:{item}"])
async def version_of(item: int) -> int:
    """Load the item's version; this is what is cached."""
    return versions[item]


rules = Rules()
stamps: memoryview | None = None


@rules.on(ItemChanged)
def item_changed(event: ItemChanged) -> Invalidate:
    """Run in the worker: stamp the event's place in the shared file."""
    if stamps is not None:
        stamps[event.version] = time.monotonic_ns()
    return Invalidate(tags=[f"item:{event.item}"])


def map_stamps(path: str) -> memoryview:
    """Open the shared file as an array of integers."""
    with Path(path).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


if STAMPS in os.environ:  # in the worker, which imports this module for its rules
    stamps = map_stamps(os.environ[STAMPS])


def receive(url: str, pipe: Connection) -> None:
    """Run in the floor's process: stamp each entry as it is in hand. Blocking redis-py, the fastest there is."""
    with redis.Redis.from_url(url) as client:
        client.xgroup_create(FLOOR_STREAM, FLOOR_GROUP, id="0", mkstream=True)
        pipe.send(0)
        while True:
            if client.xreadgroup(FLOOR_GROUP, "reader", {FLOOR_STREAM: ">"}, block=1000, noack=True):
                pipe.send(time.monotonic_ns())


@contextmanager
def worker(url: str, folder: Path, events: int) -> Iterator[memoryview]:
    """Run `tidings worker` with the rules above; give the array in which they stamp events."""
    stamp_file, log = folder / "stamps", folder / "worker.log"
    stamp_file.write_bytes(bytes(8 * events))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    command = [str(Path(sys.executable).with_name("tidings")), "worker", f"{Path(__file__).stem}:rules"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env=clean | {"TIDINGS_URL": url, STAMPS: str(stamp_file)},
            stderr=output,
        )
    try:
        yield map_stamps(str(stamp_file))
    finally:
        process.terminate()
        if process.wait(20) != 0:
            sys.stderr.write("".join(log.read_text().splitlines(keepends=True)[-20:]))
            sys.stderr.write(f"the worker ended with exit code {process.returncode}\n")


class Bench:
    """The publisher and reader. Each measurement returns milliseconds since just before its publish, by name."""

    def __init__(
        self, cache: Cache, client: Redis, blocking: redis.Redis, floor: Connection, planned: memoryview
    ) -> None:
        self._cache, self._client, self._blocking = cache, client, blocking
        self._floor, self._planned = floor, planned
        self._version = 0

    async def change(self) -> ItemChanged:
        """Commit a new version, with the one before it in the cache and served from there."""
        versions[ITEM] = self._version
        await version_of(ITEM)
        self._version += 1
        versions[ITEM] = self._version
        if await version_of(ITEM) != self._version - 1:
            fail("the old version was not cached")
        return ItemChanged(item=ITEM, version=self._version)

    async def floor(self) -> dict[str, float]:
        """XADD until the other process has it."""
        fields = self._fields()
        for _ in range(2):
            await self._client.ping()  # as before a publish: this process, its connection and the server are awake
        started = time.monotonic_ns()
        await self._client.xadd(FLOOR_STREAM, fields)
        return {FLOOR: (self._floor.recv() - started) / 1e6}

    async def blocking_floor(self) -> dict[str, float]:
        """Do the same without an event loop."""
        fields = self._fields()
        for _ in range(2):
            self._blocking.ping()
        started = time.monotonic_ns()
        self._blocking.xadd(FLOOR_STREAM, fields)
        return {BLOCKING_FLOOR: (self._floor.recv() - started) / 1e6}

    def _fields(self) -> dict[Any, Any]:
        """Return what a publish would send."""
        return {**to_fields(ItemChanged(item=ITEM, version=self._version), source="/benchmark")}

    async def receipt(self) -> dict[str, float]:
        """Publish, wait until it is applied, read; and the stages on the way."""
        event = await self.change()
        wall_us, started = time.time_ns() // 1000, time.monotonic_ns()
        receipt = await self._cache.publish(event)
        acked = time.monotonic_ns()
        await receipt.applied()
        applied = time.monotonic_ns()
        read = await version_of(ITEM)
        fresh = time.monotonic_ns()
        if read != event.version:
            fail(f"a stale value after applied: {read}, not {event.version}")
        # A token is its unique part, the server's time in microseconds, and why.
        token = await self._client.get(self._cache.keys.token(tag_token(TAG)))
        invalidated_us = int(token.split(b" ")[1]) - wall_us
        stages = {ACKED: acked, PLANNED: self._planned[event.version], APPLIED: applied, READ: fresh}
        return {INVALIDATED: invalidated_us / 1e3} | {name: (at - started) / 1e6 for name, at in stages.items()}

    async def loop(self) -> dict[str, float]:
        """Publish, then read over and over until the value is fresh."""
        event = await self.change()
        started = time.monotonic_ns()
        receipt = await self._cache.publish(event)
        while await version_of(ITEM) != event.version:
            pass
        fresh = time.monotonic_ns()
        await receipt.applied()
        return {LOOP: (fresh - started) / 1e6}


async def one_round(bench: Bench, events: int) -> Times:
    """Take turns, event by event and in random order."""
    times: Times = {name: [] for name in (FLOOR, BLOCKING_FLOOR, ACKED, PLANNED, INVALIDATED, APPLIED, READ, LOOP)}
    for _ in range(events):
        variants = [bench.floor, bench.blocking_floor, bench.receipt, bench.loop]
        for variant in random.sample(variants, len(variants)):
            await asyncio.sleep(random.uniform(0.002, 0.006))
            for name, milliseconds in (await variant()).items():
                times[name].append(milliseconds)
    return times


async def measure(count: int, events: int) -> Samples:
    """Measure with one server, one worker and one floor process."""
    samples = Samples(FLOOR)
    total = 3 * events * (count + 1) + 2
    with (
        server() as url,
        tempfile.TemporaryDirectory() as folder,
        receiving(receive, url) as floor,
        worker(url, Path(folder), total) as planned,
        redis.Redis.from_url(url) as blocking,
    ):
        async with Redis.from_url(url) as client, tidings.configure(url) as cache:
            receipt = await cache.publish(ItemChanged(item=0, version=0))
            await receipt.applied(30)  # the worker has started
            bench = Bench(cache, client, blocking, floor, planned)
            for counts in rounds(count, f"{events} events of each kind"):
                times = await one_round(bench, events)
                if counts:
                    samples.by_round.append(times)
    return samples


def main() -> int:
    """Measure, print, and return 0 when the bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds; one more warms up")
    parser.add_argument("--events", type=int, default=100, help="events of each kind in a round")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    samples = asyncio.run(measure(options.rounds, options.events))
    ratios = {name: samples.summary(name)["ratio"] for name in (APPLIED, READ, LOOP)}
    if options.json:
        write_json({"variants": samples.as_json(), "met": {name: ratio <= BAR for name, ratio in ratios.items()}})
    else:
        show("milliseconds since just before the publish", samples)
        for name, ratio in ratios.items():
            say(f"{name}: {ratio:.2f} times the floor, bar {BAR:g}: {'met' if ratio <= BAR else 'NOT met'}")
    return 0 if max(ratios.values()) <= BAR else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
