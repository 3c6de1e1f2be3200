"""Reads that share: nothing is left behind, nobody waits for himself, and nothing older comes back."""

import asyncio
from contextvars import ContextVar
from datetime import timedelta

import pytest
from tidings import Cache
from tidings.errors import EncodeError

depth: ContextVar[int] = ContextVar("depth", default=0)


@pytest.fixture(params=["memory", "server"])
async def either(request, url):
    async with Cache(url if request.param == "server" else "memory://") as made:
        yield made


async def test_a_load_that_reads_its_own_entry_beside_another_caller_waits_for_nobody(either):
    """The other caller's read has not begun when the nested one asks; joined, each would wait for the other."""
    go, entered = asyncio.Event(), asyncio.Event()

    @either.cached(ttl=60)
    async def load() -> int:
        if depth.get() == 0:
            depth.set(1)
            entered.set()
            await go.wait()
            return await load() + 1
        return 1

    async def other():
        await go.wait()
        return await load()

    waiting = asyncio.create_task(other())
    await asyncio.sleep(0)
    first = asyncio.create_task(load())
    await entered.wait()
    go.set()
    assert await asyncio.wait_for(asyncio.gather(first, waiting), 10)


async def test_callers_who_give_up_while_a_load_hangs_leave_nothing_behind(cache):
    gate, loading = asyncio.Event(), asyncio.Event()

    @cache.cached(ttl=60)
    async def load() -> int:
        loading.set()
        await gate.wait()
        return 1

    first = asyncio.create_task(load())
    await loading.wait()
    callers = [asyncio.create_task(load()) for _ in range(300)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(cache.reader().flights._tasks) <= 3
    gate.set()
    assert await first == 1, "the load went on"


async def test_each_caller_of_a_crowd_is_counted(cache):
    @cache.cached(ttl=60, stale_while_revalidate=5)
    async def load() -> int:
        return 1

    await load()
    await cache.reader().flights.drain()
    cache.reset_stats()
    await asyncio.gather(*(load() for _ in range(100)))
    assert cache.stats()["default"]["hits"] == 100


async def test_a_refresh_is_not_undone_in_the_local_tier_by_an_older_load(either, eventually):
    row, gate, started = ["old"], asyncio.Event(), asyncio.Event()

    @either.cached(ttl=60, local_ttl=30)
    async def load() -> str:
        seen = row[0]
        if seen == "old":
            started.set()
            await gate.wait()
        return seen

    await eventually(lambda: either._shared.note() is not None)
    older = asyncio.create_task(load())
    await started.wait()
    row[0] = "new"
    assert await load.refresh() == "new"
    gate.set()
    assert await older == "old"
    assert await load() == "new"


async def test_a_load_that_is_late_keeps_its_lease(url):
    """Its callers are served a stale value; another process waits for it and does not load beside it."""
    async with Cache(url) as a, Cache(url) as b:
        loads, gate, hot = [], asyncio.Event(), []

        def made(cache, who):
            async def load() -> str:
                if hot:
                    loads.append(who)
                    await gate.wait()
                else:
                    await asyncio.sleep(0.01)  # long enough to be worth a lease next time
                return "v"

            return cache.cached(ttl=60, stale_if_error=60, timeout=0.05, tags=["t"])(load)

        of_a, of_b = made(a, "a"), made(b, "b")
        await of_a()
        await a.reader().flights.drain()
        hot.append(True)
        await a.invalidate_tags("t")
        assert await of_a() == "v", "late, and covered"
        waiting = asyncio.create_task(of_b())
        await asyncio.wait({waiting}, timeout=0.3)
        gate.set()
        await waiting
        assert loads == ["a"]


async def test_a_lease_of_another_length_is_not_waited_for_longer_than_ones_own(url):
    async with Cache(url, lease_ttl=3600) as dead, Cache(url, lease_ttl=0.2) as alive:
        gate, loading = asyncio.Event(), asyncio.Event()

        async def hang() -> int:
            loading.set()
            await gate.wait()
            return 1

        async def load() -> int:
            return 2

        hanging = asyncio.create_task(dead.get_or_set("k", hang))
        await loading.wait()
        assert await asyncio.wait_for(alive.get_or_set("k", load), 10) == 2
        gate.set()
        await hanging


async def test_result_tags_are_refused_when_log_and_token_were_lost_together(url, client):
    """Invalidated, then both evicted; a token made anew without a log has a time that says nothing."""
    async with Cache(url) as cache:
        row, gate, loading = ["old"], asyncio.Event(), asyncio.Event()

        @cache.cached(ttl=60, result_tags=lambda _: ["T"])
        async def load() -> str:
            seen = row[0]
            if seen == "old":
                loading.set()
                await gate.wait()
            return seen

        @cache.cached(ttl=60, tags=["T"])
        async def other() -> int:
            return 1

        await cache.invalidate_tags("before")
        older = asyncio.create_task(load())
        await loading.wait()
        row[0] = "new"
        await cache.invalidate_tags("T")
        client.delete(cache.keys.token("tag:T"), cache.keys.log)
        await other()
        await cache.invalidate_tags("unrelated")
        gate.set()
        assert await older == "old"
        await cache.reader().flights.drain()
        assert await load() == "new"


async def test_a_hostile_token_is_replaced_and_caching_goes_on(either, url, client):
    loads = []

    @either.cached(ttl=60)
    async def load() -> int:
        loads.append(1)
        return 1

    await load()
    await either.reader().flights.drain()
    if either._shared.memory is None:
        client.set(either.keys.token("all"), "x")
    else:
        either._shared.memory._set("token:all", b"x", 60_000)
    for _ in range(3):
        await load()
        await either.reader().flights.drain()
    assert len(loads) == 2


async def test_a_value_that_may_cover_errors_for_months_is_kept(cache):
    loads = []

    @cache.cached(ttl=60, stale_if_error=timedelta(days=60))
    async def load() -> int:
        loads.append(1)
        return 1

    for _ in range(3):
        await load()
        await cache.reader().flights.drain()
    assert len(loads) == 1


async def test_bypassing_needs_no_key(cache):
    @cache.cached(ttl=60, when=lambda session: session is None)
    async def load(session: object) -> int:
        return 1

    assert await load(object()) == 1
    assert cache.stats()["default"]["bypassed"] == 1


async def test_a_value_over_the_limit_is_not_set(url):
    async with Cache(url, max_value_bytes=1000) as cache:
        with pytest.raises(EncodeError, match="at most 1000"):
            await cache.set("k", "a" * 2000)


async def test_a_truncated_entry_is_not_remembered_as_a_header(cache, client):
    """What a target remembers of its last hit must not make a hit of bytes that are none."""

    @cache.cached(ttl=60)
    async def load() -> int:
        return 1

    await load()
    await cache.reader().flights.drain()
    whole = client.get(load.key())
    client.set(load.key(), whole[:-2])
    assert await load() == 1
    client.set(load.key(), whole)
    assert await load() == 1
    client.set(load.key(), whole[:-2])
    assert await load() == 1
    assert cache.stats()["default"]["loads"] >= 2
