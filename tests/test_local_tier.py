"""The local tier as functions use it: coherent across processes by the log, bypassed when the log cannot be heard."""

import asyncio
import gc
import signal

import pytest
from pydantic import BaseModel, ConfigDict
from tidings import Cache


class Model(BaseModel):
    n: int


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    n: int


@pytest.fixture
async def other(url):
    """What another process would be."""
    async with Cache(url) as made:
        yield made


@pytest.fixture
async def alive(cache, eventually):
    """Wait until the tier of a cache serves: its tail has found the log."""

    async def wait(which=cache):
        which._shared.note()
        await eventually(lambda: which.tier.clock() < which.tier.alive_until, "the tail")

    return wait


def hits(cache, namespace="default"):
    return cache.stats()[namespace]["local_hits"]


async def test_a_second_call_is_served_in_process_and_asks_redis_nothing(cache, client, alive):
    await alive()

    @cache.cached(local_ttl=60)
    async def load(n: int) -> int:
        return n

    await load(1)
    before = client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
    assert [await load(1), await load(n=1)] == [1, 1]
    assert hits(cache) == 2
    assert client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"] == before


@pytest.mark.parametrize("how", ["tag", "namespace", "all", "entry", "pattern"])
async def test_what_another_process_invalidates_is_dropped_here(cache, other, alive, eventually, how):
    await alive()
    state = {"n": 1}

    @cache.cached(namespace="ns", local_ttl=60, tags=["t:{key}"])
    async def load(key: str) -> int:
        return state["n"]

    assert [await load("a"), await load("a")] == [1, 1]
    assert hits(cache, "ns") == 1
    state["n"] = 2
    match how:
        case "tag":
            await other.invalidate_tags("t:a")
        case "namespace":
            await other.invalidate_namespace("ns")
        case "all":
            await other.invalidate_all()
        case "entry":
            await other.invalidate_call(load.call_of("a"))
        case "pattern":
            await other.invalidate_pattern("*load*", namespace="ns")
    await eventually(lambda: len(cache.tier) == 0, "the tail to apply it")
    assert await load("a") == 2


async def test_a_process_reads_its_own_invalidations_at_once(cache, alive):
    await alive()
    state = {"n": 1}

    @cache.cached(local_ttl=60, tags=["t"])
    async def load() -> int:
        return state["n"]

    assert [await load(), await load()] == [1, 1]
    state["n"] = 2
    await cache.invalidate_tags("t")
    assert await load() == 2


async def test_an_entry_that_redis_has_evicted_is_dropped_by_a_pattern_too(cache, other, client, alive, eventually):
    await alive()
    state = {"n": 1}

    @cache.cached(local_ttl=60)
    async def load() -> int:
        return state["n"]

    await load()
    await cache.reader().flights.drain()
    client.delete(load.key())
    assert (await load(), hits(cache)) == (1, 1)
    state["n"] = 2
    await other.invalidate_pattern("*")
    await eventually(lambda: len(cache.tier) == 0, "the tail to apply it")
    assert await load() == 2


async def test_result_tags_invalidate_what_is_held_here(cache, other, alive, eventually):
    await alive()
    state = {"n": 1}

    @cache.cached(local_ttl=60, result_tags=lambda result: [f"n:{result}"])
    async def load() -> int:
        return state["n"]

    assert [await load(), await load()] == [1, 1]
    assert hits(cache) == 1
    state["n"] = 2
    await other.invalidate_tags("n:1")
    await eventually(lambda: len(cache.tier) == 0, "the tail to apply it")
    assert await load() == 2


async def test_a_value_that_could_be_changed_is_each_callers_own(cache, alive):
    await alive()

    @cache.cached(local_ttl=60)
    async def load() -> Model:
        return Model(n=1)

    first, second, third = await load(), await load(), await load()
    assert hits(cache) == 2
    assert len({id(first), id(second), id(third)}) == 3
    second.n = 9
    assert (await load()).n == 1


async def test_a_frozen_value_and_one_shared_on_request_are_the_same_object(cache, alive):
    await alive()

    @cache.cached(local_ttl=60)
    async def frozen() -> Frozen:
        return Frozen(n=1)

    @cache.cached(local_ttl=60, local_shared=True)
    async def shared() -> Model:
        return Model(n=1)

    for load in (frozen, shared):
        first = await load()
        assert await load() is first


async def test_equal_arguments_of_different_types_have_slots_of_their_own(cache, alive):
    await alive()

    @cache.cached(local_ttl=60)
    async def load(n: object) -> str:
        return repr(n)

    for _ in range(2):
        found = [await load(n) for n in (1, True, 1.0, "1", 0.0, -0.0)]
        assert found == ["1", "True", "1.0", "'1'", "0.0", "-0.0"]


async def test_plain_functions_share_the_tier_and_its_tail(cache, other, alive, eventually):
    await alive()
    state = {"n": 1}

    @cache.cached(local_ttl=60, tags=["t"])
    def load() -> int:
        return state["n"]

    assert await asyncio.to_thread(lambda: [load(), load()]) == [1, 1]
    assert hits(cache) == 1
    state["n"] = 2
    await other.invalidate_tags("t")
    await eventually(lambda: len(cache.tier) == 0, "the tail to apply it")
    assert await asyncio.to_thread(load) == 2


async def test_a_frozen_server_takes_the_tier_out_of_service(new_server, alive, eventually):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:
        await alive(cache)
        calls = []

        @cache.cached(local_ttl=60)
        async def load() -> int:
            calls.append(1)
            return 1

        assert [await load(), await load()] == [1, 1]
        assert (len(calls), hits(cache)) == (1, 1)
        server._process.send_signal(signal.SIGSTOP)
        await eventually(lambda: cache.tier.clock() >= cache.tier.alive_until, "the bound")
        await load()
        assert (len(calls), hits(cache)) == (2, 1)
        server._process.send_signal(signal.SIGCONT)
        breaker, tier = cache._shared.breaker, cache.tier
        await eventually(lambda: breaker.closed and tier.clock() < tier.alive_until, "the server")
        await load()
        assert len(calls) == 2, "what was held is valid still: the log says so"


async def test_the_log_deleted_drops_what_is_held(cache, client, alive, eventually):
    await alive()

    @cache.cached(local_ttl=60)
    async def load() -> int:
        return 1

    await load()
    assert len(cache.tier) == 1
    client.delete(cache.keys.log)
    await eventually(lambda: len(cache.tier) == 0, "the gap to be seen")


async def test_memory_has_a_tier_that_hears_at_once():
    async with Cache("memory://") as cache:
        state = {"n": 1}

        @cache.cached(local_ttl=60, tags=["t"])
        async def load() -> int:
            return state["n"]

        assert [await load(), await load()] == [1, 1]
        assert hits(cache) == 1
        state["n"] = 2
        await cache.invalidate_tags("t")
        assert await load() == 2


async def test_health_reports_the_tail(cache, other, alive, eventually):
    await alive()
    await other.invalidate_all()
    await eventually(lambda: cache._shared.tail.lag, "an entry applied")
    local = (await cache.health())["local_tier"]
    assert local["alive"]
    assert local["lag_ms"]["max"] > 0


async def test_closing_ends_the_tail_and_a_later_call_begins_again(url, eventually):
    cache = Cache(url)

    @cache.cached(local_ttl=60)
    async def load() -> int:
        return 1

    await load()
    thread = cache._shared.tail._thread
    await cache.aclose()
    assert not thread.is_alive()
    await load()
    await eventually(lambda: cache.tier.clock() < cache.tier.alive_until, "a new tail")
    await load()
    await load()
    assert hits(cache) >= 1
    await cache.aclose()


async def test_a_cache_that_was_dropped_without_being_closed_leaves_no_tail(url, eventually):
    threads = []
    for _ in range(3):
        dropped = Cache(url)
        dropped._shared.note()
        threads.append(dropped._shared.tail._thread)
    assert all(thread.is_alive() for thread in threads)
    del dropped
    gc.collect()
    await eventually(lambda: not any(thread.is_alive() for thread in threads), "the tails to end")


async def test_a_value_from_redis_is_kept_no_longer_than_redis_keeps_it(cache, client, alive):
    await alive()

    @cache.cached(ttl=60, local_ttl=50)
    async def load() -> int:
        return 1

    await load()
    await cache.reader().flights.drain()
    client.pexpire(load.key(), 5000)
    cache.tier.lost()
    await alive()
    await load()
    slot = cache.tier.get(load.key())
    assert slot is not None
    assert slot.expires - cache.tier.clock() <= 5
