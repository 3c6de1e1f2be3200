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
from dataclasses import replace

import pytest
import redis
from tidings import Cache
from tidings.entries import Put
from tidings.naming import named, untyped
from tidings.targets import Request, Target


def url_of(request) -> str:
    """Return what a fixture is to use, for its parameter."""
    if request.param == "cluster":
        return request.getfixturevalue("cluster").url
    return "memory://" if request.param == "memory" else request.getfixturevalue("url")


#: Each of its nodes costs what a server does: the conformance of the stores is tested on one all the time.
CLUSTER = pytest.param("cluster", marks=pytest.mark.slow)


@pytest.fixture(params=["memory", "server", CLUSTER])
async def cache(request):
    # A short lease: with result tags, whoever must not join a load still waits for the lease that it has taken.
    async with Cache(url_of(request), lease_ttl=0.2) as made:
        yield made


#: For tests that count on the one exchange that a fill with result tags is there: on a cluster it takes several.
on_one_server = pytest.mark.parametrize("cache", ["memory", "server"], indirect=True)


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
    made = Database()
    yield made
    made.gate.set()  # a load that a failed test has left must not keep the cache from closing


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


# Every mode of a cached function, and every way of invalidating, by coroutines and by threads


MODES = {
    "plain": {},
    "result tags": {"result_tags": lambda row: ["rows", f"row:{row}"]},
    "local": {"local_ttl": 60},
    "local and result tags": {"local_ttl": 60, "result_tags": lambda row: ["rows", f"row:{row}"]},
    "stale": {"stale_while_revalidate": 60, "stale_if_error": 60, "early": 1.0},
}
WAYS = ["tag", "namespace", "everything", "entry", "pattern", "result tag"]


@pytest.fixture(
    params=[(mode, way) for mode in MODES for way in WAYS if way != "result tag" or "result" in mode], ids=", ".join
)
def mode_and_way(request):
    return request.param


@pytest.fixture
def load_in_mode(cache, database, mode_and_way):
    @cache.cached(namespace="n", tags=["t:{x}"], key="row:{x}", **MODES[mode_and_way[0]])
    async def load(x: int) -> str:
        return await database.load()

    return load


def by_way(way: str, cache, load) -> Awaitable[None]:
    """Invalidate with whatever `cache` is: for coroutines, or its blocking twin."""
    ways = {
        "tag": lambda: cache.invalidate_tags("t:1"),
        "namespace": lambda: cache.invalidate_namespace("n"),
        "everything": cache.invalidate_all,
        "entry": lambda: load.invalidate(1),
        "pattern": lambda: cache.invalidate_pattern("*:row:1:*", namespace="n"),
        "result tag": lambda: cache.invalidate_tags("row:old"),
    }
    return ways[way]()


async def test_a_load_overtaken_by_an_invalidation_is_not_served_afterwards(
    cache, load_in_mode, database, mode_and_way
):
    early = asyncio.create_task(load_in_mode(1))
    await database.read.wait()
    await database.change(lambda: by_way(mode_and_way[1], cache, load_in_mode))
    database.read.clear()
    late = asyncio.create_task(load_in_mode(1))
    await database.read.wait()  # it has not joined the load from before
    database.gate.set()
    assert [await early, await late] == ["old", "new"]
    assert [await load_in_mode(1), await load_in_mode(1)] == ["new", "new"]


async def test_what_was_cached_before_an_invalidation_is_not_served_after_it(
    cache, load_in_mode, database, mode_and_way
):
    database.gate.set()
    assert [await load_in_mode(1), await load_in_mode(1)] == ["old", "old"]
    await database.change(lambda: by_way(mode_and_way[1], cache, load_in_mode))
    assert [await load_in_mode(1), await load_in_mode(1)] == ["new", "new"]


async def test_a_refresh_overtaken_by_an_invalidation_is_not_served_afterwards(
    cache, load_in_mode, database, mode_and_way
):
    refresh = asyncio.create_task(load_in_mode.refresh(1))
    await database.read.wait()
    await database.change(lambda: by_way(mode_and_way[1], cache, load_in_mode))
    database.gate.set()
    assert await refresh == "old"
    assert [await load_in_mode(1), await load_in_mode(1)] == ["new", "new"]


class Table:
    """The row and the gate for threads."""

    def __init__(self):
        self.row = "old"
        self.read = threading.Event()
        self.gate = threading.Event()

    def load(self) -> str:
        row = self.row
        self.read.set()
        assert self.gate.wait(10)
        return row


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list]:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


@pytest.fixture(params=["memory", "server", CLUSTER])
def blocking_cache(request):
    made = Cache(url_of(request), lease_ttl=0.2)
    yield made
    made.sync.close()


def test_a_load_in_a_thread_overtaken_by_an_invalidation_is_not_served_afterwards(blocking_cache, mode_and_way):
    mode, way = mode_and_way
    table = Table()

    @blocking_cache.cached(namespace="n", tags=["t:{x}"], key="row:{x}", **MODES[mode])
    def load(x: int) -> str:
        return table.load()

    early, early_result = in_thread(lambda: load(1))
    assert table.read.wait(10)
    table.row = "new"
    by_way(way, blocking_cache.sync, load)
    table.read.clear()
    late, late_result = in_thread(lambda: load(1))
    assert table.read.wait(10)
    table.gate.set()
    early.join(10)
    late.join(10)
    assert [early_result, late_result] == [["old"], ["new"]]
    assert [load(1), load(1)] == ["new", "new"]


# Result tags


@pytest.fixture
def owned(cache, database):
    @cache.cached(key="row:{x}", result_tags=lambda row: [f"owner:{row}"])
    async def load(x: int) -> str:
        return await database.load()

    return load


async def test_a_result_tag_that_nobody_knew_does_not_keep_a_value_from_being_stored(cache, owned, database):
    database.gate.set()
    assert [await owned(1), await owned(1)] == ["old", "old"]
    assert database.loads == 1


async def test_a_result_tag_invalidated_before_the_load_does_not_keep_it_from_being_stored(cache, owned, database):
    await cache.invalidate_tags("owner:old")
    database.gate.set()
    assert [await owned(1), await owned(1)] == ["old", "old"]
    assert database.loads == 1


@on_one_server
async def test_an_unknown_result_tag_is_not_believed_while_others_are_invalidated(cache, owned, database):
    """Its token could have been invalidated and lost: the first load is not stored, the second is."""
    reader = asyncio.create_task(owned(1))
    await database.read.wait()
    await cache.invalidate_tags("another")
    database.gate.set()
    await reader
    assert [await owned(1), await owned(1)] == ["old", "old"]
    assert database.loads == 2


async def test_a_row_that_moved_is_found_by_its_new_tag_and_not_by_its_old_one(cache, owned, database):
    database.gate.set()
    assert await owned(1) == "old"
    database.row = "new"
    await cache.invalidate_tags("owner:old")
    assert await owned(1) == "new"
    await cache.invalidate_tags("owner:old")
    assert await owned(1) == "new"
    assert database.loads == 2
    database.row = "newer"
    await cache.invalidate_tags("owner:new")
    assert await owned(1) == "newer"


async def test_two_loads_with_different_tags_may_fill_in_either_order(cache, owned, database):
    early = asyncio.create_task(owned(1))
    await database.read.wait()
    early_gate, database.gate = database.gate, asyncio.Event()
    database.gate.set()
    await database.change(lambda: cache.invalidate_tags("owner:old"))
    assert await owned(1) == "new"
    early_gate.set()
    assert await early == "old"
    assert await owned(1) == "new"
    database.row = "newer"
    await cache.invalidate_tags("owner:new")
    assert await owned(1) == "newer"


@pytest.mark.parametrize("local_ttl", [0, 60])
async def test_a_process_that_knows_the_old_tags_obeys_the_new_ones(url, database, local_ttl, eventually):
    database.gate.set()
    caches, loads = [Cache(url), Cache(url)], []
    for each in caches:

        @each.cached(key="row:{x}", result_tags=lambda row: [f"owner:{row}"], local_ttl=local_ttl)
        async def load(x: int) -> str:
            return await database.load()

        loads.append(load)
    here, there = loads
    assert [await here(1), await there(1)] == ["old", "old"]
    await database.change(lambda: caches[1].invalidate_tags("owner:old"))
    assert await there(1) == "new"
    await eventually_equals(eventually, here, "new")
    database.row = "newer"
    await caches[1].invalidate_tags("owner:new")
    await eventually_equals(eventually, here, "newer")
    assert await there(1) == "newer"
    for each in caches:
        await each.aclose()


async def eventually_equals(eventually, load, wanted) -> None:
    """Another process's local tier lags; once it has heard, it stays so."""
    seen = []

    async def read() -> None:
        while not seen or seen[-1] != wanted:
            seen.append(await load(1))
            await asyncio.sleep(0.005)

    reading = asyncio.create_task(read())
    await eventually(reading.done, f"{wanted} after {seen}")
    await reading
    assert await load(1) == wanted


async def test_a_result_tags_token_lost_after_its_invalidation_does_not_revive_the_load(url, client, database):
    async with Cache(url) as cache:

        @cache.cached(result_tags=lambda row: [f"owner:{row}"])
        async def load() -> str:
            return await database.load()

        reader = asyncio.create_task(load())
        await database.read.wait()
        await database.change(lambda: cache.invalidate_tags("owner:old"))
        client.delete(cache.keys.token("tag:owner:old"))
        database.gate.set()
        assert await reader == "old"
        assert await load() == "new"


# Patterns


async def test_a_pattern_reaches_a_load_that_has_stored_nothing_yet(cache, database):
    reader = asyncio.create_task(cache.get_or_set("row:1", database.load))
    await database.read.wait()
    await database.change(lambda: cache.invalidate_pattern("row:*"))
    database.gate.set()
    assert await reader == "old"
    assert await cache.get_or_set("row:1", database.load) == "new"


async def test_a_load_whose_vacancy_has_expired_is_not_stored_whatever_a_pattern_has_found(url, client, database):
    """The scan finds nothing to delete, and the fill nothing to replace; a vacancy made since is another lineage."""
    async with Cache(url) as cache:
        reader = asyncio.create_task(cache.get_or_set("row:1", database.load))
        await database.read.wait()
        client.delete(cache.keys.entry("default", "row:1"))
        await database.change(lambda: cache.invalidate_pattern("row:*"))
        database.read.clear()
        early_gate, database.gate = database.gate, asyncio.Event()
        late = asyncio.create_task(cache.get_or_set("row:1", database.load))
        await database.read.wait()
        early_gate.set()
        assert await reader == "old"
        assert await cache.get("row:1") is None
        database.gate.set()
        assert await late == "new"
        assert await cache.get("row:1") == "new"


PATTERNS = [
    (r"a\*c", ["a*c"]),
    ("a*c", ["a*c", "abc", "a[c"]),
    ("a?c", ["a*c", "abc", "a[c"]),
    ("a[b]c", ["abc"]),
    ("a[^b]c", ["a*c", "a[c"]),
    (r"a\[c", ["a[c"]),
    ("[!a]", ["!", "a"]),
    ("é*", ["é:1"]),
]


@pytest.mark.parametrize(("glob", "matched"), PATTERNS, ids=[glob for glob, _ in PATTERNS])
async def test_a_pattern_reaches_the_keys_that_match_as_redis_matches_and_no_others(cache, glob, matched):
    keys = ["a*c", "abc", "a[c", "!", "a", "é:1", "other"]
    await cache.set_many(dict.fromkeys(keys, 1))
    await cache.set_many(dict.fromkeys(keys, 1), namespace="other")
    await cache.invalidate_pattern(glob)
    left = await cache.get_many(keys)
    assert [key for key in keys if left[key] is None] == [key for key in keys if key in matched]
    assert all((await cache.get_many(keys, namespace="other")).values())
    await cache.invalidate_pattern(glob, namespace=None)
    left = await cache.get_many(keys, namespace="other")
    assert [key for key in keys if left[key] is None] == [key for key in keys if key in matched]


async def test_a_pattern_leaves_other_prefixes_and_versions_alone(url):
    spaces = [{}, {"prefix": "p"}, {"version": "2"}, {"prefix": "p", "version": "2"}]
    caches = [Cache(url, **space) for space in spaces]
    for invalidating in caches:
        for each in caches:
            await each.set("k", "kept")
        await invalidating.invalidate_pattern("*", namespace=None)
        assert [await each.get("k") for each in caches] == [None if each is invalidating else "kept" for each in caches]
    for each in caches:
        await each.aclose()


async def test_a_pattern_reaches_what_only_a_local_tier_still_has(url, client, database, eventually):
    database.gate.set()
    async with Cache(url) as here, Cache(url) as there:

        @here.cached(key="row:{x}", local_ttl=60)
        async def load(x: int) -> str:
            return await database.load()

        await load(1)
        await eventually(lambda: here.tier.note() is not None, "the tail")
        await load(1)
        client.delete(load.key(1))
        assert await load(1) == "old"
        assert database.loads == 1
        await database.change(lambda: there.invalidate_pattern("*:row:1:*"))
        await eventually_equals(eventually, load, "new")


# Refreshes behind a value that is served


async def test_a_refresh_of_an_expired_value_overtaken_by_an_invalidation_is_not_served(url, client, database):
    async with Cache(url) as cache:

        @cache.cached(tags=["t"], ttl=60, stale_while_revalidate=60)
        async def load() -> str:
            return await database.load()

        database.gate.set()
        await load()
        client.pexpire(load.key(), 30_000)  # expired, and kept for another half minute
        database.gate.clear()
        database.read.clear()
        assert await load() == "old"
        await database.read.wait()  # it is refreshed behind that
        refresh_gate, database.gate = database.gate, asyncio.Event()
        database.gate.set()
        await database.change(lambda: cache.invalidate_tags("t"))
        assert await load() == "new"
        refresh_gate.set()
        await cache.reader().flights.drain()
        assert await load() == "new"


async def test_an_early_refresh_overtaken_by_an_invalidation_is_not_served(cache, database):
    @cache.cached(tags=["t"], ttl=60, early=1e12)
    async def load() -> str:
        return await database.load()

    first = asyncio.create_task(load())
    await database.read.wait()
    database.gate.set()
    await first
    database.gate = asyncio.Event()
    database.read.clear()
    assert await load() == "old"
    await database.read.wait()
    refresh_gate, database.gate = database.gate, asyncio.Event()
    database.gate.set()
    await database.change(lambda: cache.invalidate_tags("t"))
    assert await load() == "new"
    refresh_gate.set()
    await cache.reader().flights.drain()
    assert await load() == "new"


async def test_a_refresh_of_an_invalidated_value_overtaken_by_another_invalidation_is_done_again(cache, database):
    @cache.cached(tags=["t"], max_staleness=60)
    async def load() -> str:
        return await database.load()

    database.gate.set()
    await load()
    await database.change(lambda: cache.invalidate_tags("t"))
    database.gate = asyncio.Event()
    database.read.clear()
    assert await load() == "old", "permitted for a minute"
    await database.read.wait()
    database.row = "newer"
    await cache.invalidate_tags("t")
    database.gate.set()
    await cache.reader().flights.drain()
    assert await load() == "new", "what the overtaken refresh brought is as stale as what it replaced"
    await cache.reader().flights.drain()
    assert await load() == "newer"
    assert database.loads == 3


async def test_an_entry_invalidated_by_itself_is_not_served_however_much_staleness_is_permitted(cache, database):
    @cache.cached(max_staleness=60, stale_while_revalidate=60, stale_if_error=60)
    async def load() -> str:
        return await database.load()

    database.gate.set()
    await load()
    await database.change(load.invalidate)
    assert await load() == "new"


# Between processes: the lease


async def test_who_waits_for_another_processes_load_is_not_served_it_after_an_invalidation(
    url, client, database, eventually
):
    async with Cache(url) as here, Cache(url) as there:
        leads = asyncio.create_task(here.get_or_set("k", database.load, tags=["t"]))
        await database.read.wait()
        leader_gate, database.gate = database.gate, asyncio.Event()
        database.gate.set()
        waits = asyncio.create_task(there.get_or_set("k", database.load, tags=["t"]))
        lease = here.keys.lease("default", "k")
        await eventually(lambda: (client.get(lease) or b"").endswith(b" w"), "somebody who waits")
        assert database.loads == 1
        await database.change(lambda: there.invalidate_tags("t"))
        assert await there.get_or_set("k", database.load, tags=["t"]) == "new", "the lease is of older tokens"
        leader_gate.set()
        assert await leads == "old"
        assert await waits == "new"
        assert [await each.get_or_set("k", database.load, tags=["t"]) for each in (here, there)] == ["new", "new"]


# Many keys, and values set by hand


@pytest.mark.parametrize("way", ["tag", "entry", "pattern", "everything"])
async def test_a_load_of_many_overtaken_by_an_invalidation_is_not_served_afterwards(cache, database, way):
    async def rows(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, await database.load())

    async def read() -> dict[str, str]:
        return await cache.get_or_set_many(["a", "b"], rows, tags=lambda key: [f"row:{key}"])

    ways = {
        "tag": lambda: cache.invalidate_tags("row:a"),
        "entry": lambda: cache.delete("a"),
        "pattern": lambda: cache.invalidate_pattern("a"),
        "everything": cache.invalidate_all,
    }
    early = asyncio.create_task(read())
    await database.read.wait()
    await database.change(ways[way])
    early_gate, database.gate = database.gate, asyncio.Event()
    database.gate.set()
    assert await cache.get_or_set("a", database.load, tags=["row:a"]) == "new"
    early_gate.set()
    assert await early == {"a": "old", "b": "old"}
    again = await read()
    assert again == {"a": "new", "b": "new" if way == "everything" else "old"}
    assert await cache.get("a") == "new"


async def test_an_invalidation_between_the_two_steps_of_a_set_makes_its_value_wrong(cache):
    """`set` reads the tokens, then stores: here the tag is invalidated in between."""
    target = cache.target(named("k", "default", None, ["t"]))
    steps = cache.reader().reading.filling.put([Request(target, None, untyped)], ["old"])
    step = next(steps)
    while not isinstance(step.operation.operations[0], Put):
        step = steps.send(await cache.reader().ask(step.operation))
    await cache.invalidate_tags("t")
    await cache.reader().ask(step.operation)
    assert await cache.get("k") is None


# The local tier against the log


@on_one_server
@pytest.mark.parametrize("when", ["before the answer", "after the put"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_value_that_was_looked_up_before_an_invalidation_does_not_stay_in_the_local_tier(
    cache, database, way, when
):
    """Step by step: the position is noted, Redis is asked, the log is applied, the answer arrives."""

    @cache.cached(
        namespace="n", key="row:{x}", tags=["t:{x}"], local_ttl=60, result_tags=lambda row: ["rows", f"row:{row}"]
    )
    async def load(x: int) -> str:
        return await database.load()

    database.gate.set()
    await load(1)
    cache.tier.lost()  # as in a process that has not read it yet; then its tail is there
    cache.tier.alive(float("inf"))
    reader, request = cache.reader(), load.request(database.load, 1)
    steps = reader.reading.read(request)
    looked = await reader.ask(next(steps).operation)
    if when == "before the answer":
        await database.change(lambda: by_way(way, cache, load))
    with pytest.raises(StopIteration) as served:
        steps.send(looked)
    assert served.value.value.value == "old", "it was asked for before"
    assert (request.target.slot is not None) == (when == "after the put")
    if when == "after the put":
        await database.change(lambda: by_way(way, cache, load))
    assert [await load(1), await load(1)] == ["new", "new"]


@on_one_server
async def test_a_value_is_kept_here_under_its_own_tags_whatever_another_load_learns_meanwhile(cache, database):
    """The answer to the look is on its way while a refresh finds the row with another owner."""

    @cache.cached(key="row:{x}", local_ttl=60, result_tags=lambda row: [f"owner:{row}"])
    async def load(x: int) -> str:
        return await database.load()

    database.gate.set()
    await load(1)
    cache.tier.lost()
    cache.tier.alive(float("inf"))
    reader, request = cache.reader(), load.request(database.load, 1)
    steps = reader.reading.read(request)
    looked = await reader.ask(next(steps).operation)
    database.row = "new"
    await load.refresh(1)
    with pytest.raises(StopIteration) as served:
        steps.send(looked)
    assert served.value.value.value == "old"
    await cache.invalidate_tags("owner:old")
    assert await load(1) == "new"


def test_a_value_is_kept_here_under_its_own_tags_although_another_thread_learns_others(blocking_cache):
    """The other thread comes between the moments at which this one takes the tags and the keys to look at."""
    row = "old"

    @blocking_cache.cached(key="row:{x}", local_ttl=60, result_tags=lambda row: [f"owner:{row}"])
    def load(x: int) -> str:
        return row

    load(1)
    blocking_cache.tier.alive(float("inf"))

    class Overtaken(Target):
        """Lets the other thread come whenever the keys are asked for."""

        @property
        def look(self):
            nonlocal row
            if row == "old" and hasattr(self, "overtaken"):
                row = "new"
                self.know(["owner:new"])
                load.refresh(1)
            return Target.look.__get__(self)

        @look.setter
        def look(self, value):
            Target.look.__set__(self, value)

    request = load.request(lambda: row, 1)
    known = request.target
    overtaken = Overtaken(
        known.call, known.keys, known.names, known.tags, known.places, known.counts, known.keyspace, known.plain
    )
    overtaken.know(["owner:old"])
    overtaken.overtaken = True
    reader = blocking_cache.sync.reader
    noted = blocking_cache.tier.note()
    assert noted is not None
    assert reader.read(replace(request, target=overtaken)) == "new"
    row = "newer"
    blocking_cache.sync.invalidate_tags("owner:new")
    assert overtaken.slot is None or not overtaken.slot.expires, "it is not in the local tier any more"
    assert load(1) == "newer"
