"""The race that caches lose: a load that began before an invalidation fills after it. Deterministic, then by the
thousand.

Every interleaving here is forced with events; nothing waits for time to pass, except the stochastic run at the end,
where time passing is the point.
"""

import asyncio
import multiprocessing
import random
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
import redis
from tidings import Cache


@pytest.fixture(params=["memory", "server"])
async def cache(request):
    url = "memory://" if request.param == "memory" else request.getfixturevalue("url")
    async with Cache(url) as made:
        yield made


class Database:
    """One row, and a gate at which a load that has read the row waits."""

    def __init__(self):
        self.row = "old"
        self.read = asyncio.Event()
        self.gate = asyncio.Event()
        self.loads = 0

    async def load(self) -> str:
        self.loads += 1
        row = self.row
        self.read.set()
        await self.gate.wait()
        return row

    async def change(self, invalidate: Callable[[], Awaitable[object]]) -> None:
        """Commit, then invalidate; when this returns, the invalidation is acknowledged."""
        self.row = "new"
        await invalidate()


@pytest.fixture
def database():
    return Database()


@pytest.fixture
def load(cache, database):
    @cache.cached(namespace="n", tags=["t:{x}"])
    async def load(x: int) -> str:
        return await database.load()

    return load


INVALIDATIONS = {
    "tag": lambda cache, _: cache.invalidate_tags("t:1"),
    "namespace": lambda cache, _: cache.invalidate_namespace("n"),
    "everything": lambda cache, _: cache.invalidate_all(),
    "entry": lambda _, load: load.invalidate(1),
}


@pytest.fixture(params=INVALIDATIONS)
def invalidate(request, cache, load):
    return lambda: INVALIDATIONS[request.param](cache, load)


async def test_a_load_from_before_an_invalidation_is_not_served_after_it(database, load, invalidate):
    reader = asyncio.create_task(load(1))
    await database.read.wait()
    await database.change(invalidate)
    database.gate.set()
    assert await reader == "old"  # it asked before the change was acknowledged
    assert [await load(1), await load(1)] == ["new", "new"]
    assert database.loads == 2


async def test_who_starts_after_an_invalidation_does_not_join_a_load_from_before_it(database, load, invalidate):
    early = asyncio.create_task(load(1))
    await database.read.wait()
    await database.change(invalidate)
    database.read.clear()
    late = asyncio.create_task(load(1))
    await database.read.wait()  # it loads for itself
    database.gate.set()
    assert [await early, await late] == ["old", "new"]
    assert await load(1) == "new"


async def test_two_loads_across_an_invalidation_may_fill_in_either_order(cache, load, database, invalidate):
    """The old fill comes last and overwrites the new one: it is not served, whatever was there before it."""
    early = asyncio.create_task(load(1))
    await database.read.wait()
    await database.change(invalidate)
    late_gate, early_gate = asyncio.Event(), database.gate
    database.gate = late_gate
    late_gate.set()
    assert await load(1) == "new"
    early_gate.set()
    assert await early == "old"
    assert await load(1) == "new"


async def test_a_refresh_from_before_an_invalidation_is_not_served_after_it(database, load, invalidate):
    database.gate.set()
    assert await load(1) == "old"
    database.gate.clear()
    database.read.clear()
    refresh = asyncio.create_task(load.refresh(1))
    await database.read.wait()
    await database.change(invalidate)
    database.gate.set()
    await refresh
    assert await load(1) == "new"


async def test_a_refresh_does_not_join_a_load_that_began_before_it(database, load):
    early = asyncio.create_task(load(1))
    await database.read.wait()
    database.row = "new"
    database.read.clear()
    refresh = asyncio.create_task(load.refresh(1))
    await database.read.wait()
    database.gate.set()
    assert [await early, await refresh] == ["old", "new"]


async def test_many_invalidations_during_one_load_leave_nothing_stale(database, load, invalidate):
    for version in range(5):
        await invalidate()
        database.read.clear()
        database.gate.clear()
        reader = asyncio.create_task(load(1))
        await database.read.wait()
        database.row = f"version {version}"
        await invalidate()
        await invalidate()
        database.gate.set()
        await reader
        assert await load(1) == f"version {version}"


async def test_tokens_lost_during_a_load_cost_a_miss_and_nothing_stale(database, url):
    async with Cache(url) as cache:

        @cache.cached(tags=["t"])
        async def load() -> str:
            return await database.load()

        reader = asyncio.create_task(load())
        await database.read.wait()
        database.row = "new"
        await cache.invalidate_tags("t")
        await cache.reader().store.client.flushall()
        database.gate.set()
        assert await reader == "old"
        assert await load() == "new"


async def test_a_value_set_by_hand_survives_a_load_in_flight(cache, database):
    reader = asyncio.create_task(cache.get_or_set("k", database.load))
    await database.read.wait()
    await cache.set("k", "by hand")
    database.gate.set()
    assert await reader == "old"
    assert await cache.get("k") == "by hand"


# The stochastic run: readers here, writers in another process, the row in a hash of the same server


KEYS = 2000
LANES = 8


def write(url: str, name: str, seed: int) -> None:
    """Take each key that readers are about to read, change its row at a random moment, and note the acknowledgement."""
    rows = redis.Redis.from_url(url)
    cache = Cache(url, prefix=name)

    def lane(number: int) -> None:
        chance = random.Random(seed + number)
        while (key := rows.blpop([f"{name}:turn"])[1]) != b"end":
            time.sleep(chance.uniform(0, 0.006))
            rows.hset(f"{name}:rows", key, 1)
            cache.sync.invalidate_tags(f"row:{key.decode()}")
            rows.hset(f"{name}:acked", key, 1)

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.sync.close()
    rows.close()


class Races:
    """Reads of one row each, racing a change of it; counts what a cache without a fence would have got wrong."""

    def __init__(self, cache: Cache, name: str) -> None:
        self.rows = cache.reader().store.client
        self.name = name
        self.chance = random.Random(11)
        self.called: set[int] = set()
        self.stale = self.reads_after_ack = self.overtaken_loads = 0

        @cache.cached(tags=["row:{key}"])
        async def read(key: int) -> int:
            await self.call_the_writer(key)
            value = int(await self.rows.hget(f"{name}:rows", str(key)) or 0)
            await asyncio.sleep(self.chance.uniform(0.001, 0.005))
            overtaken = value == 0 and await self.acked(key)  # first: += reads its left side before it awaits
            self.overtaken_loads += overtaken
            return value

        self.read = read

    async def call_the_writer(self, key: int) -> None:
        if key not in self.called:
            self.called.add(key)
            await self.rows.rpush(f"{self.name}:turn", key)

    async def acked(self, key: int) -> bool:
        return bool(await self.rows.hget(f"{self.name}:acked", str(key)))

    async def reader(self, key: int) -> None:
        await asyncio.sleep(self.chance.uniform(0, 0.006))
        acked = await self.acked(key)
        value = await self.read(key)
        if acked:
            self.reads_after_ack += 1
            self.stale += value != 1

    async def race(self, key: int) -> None:
        if self.chance.random() < 0.5:
            await self.call_the_writer(key)  # else its first load does, so that the change falls into it
        await asyncio.gather(*(self.reader(key) for _ in range(3)))
        while not await self.acked(key):
            await asyncio.sleep(0.002)
        for _ in range(2):
            value = await self.read(key)
            self.reads_after_ack += 1
            self.stale += value != 1

    async def run(self) -> None:
        keys = iter(range(KEYS))

        async def lane() -> None:
            for key in keys:
                await self.race(key)

        async with asyncio.timeout(100):
            await asyncio.gather(*(lane() for _ in range(LANES)))
        await self.rows.rpush(f"{self.name}:turn", *["end"] * LANES)


async def test_no_stale_value_is_served_in_two_thousand_races_with_another_process(url):
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(url, "race", 7))
    writer.start()
    try:
        async with Cache(url, prefix="race") as cache:
            races = Races(cache, "race")
            await races.run()
        await asyncio.to_thread(writer.join, 20)
    finally:
        writer.kill()
        writer.join()
    assert writer.exitcode == 0
    assert races.stale == 0
    assert races.reads_after_ack >= 2 * KEYS
    assert races.overtaken_loads > KEYS / 10, "too few loads were overtaken by a change: this raced nothing"
