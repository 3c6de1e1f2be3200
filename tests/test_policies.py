"""Every option of `cached` by what it does: in memory and on a server, for `async def` and `def` alike.

Time passes when a test says so. In memory by the frozen clock; on a server, whose clock nobody can move, everything
that is there is made older instead.
"""

import asyncio
import struct
import threading
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs
from tidings import Cache, Settings
from tidings.entries import Look
from tidings.errors import ConfigurationError, EncodeError
from tidings.layout import ENTRY_KINDS, STAMP_LENGTH, TOKENS_START, UNIQUE_LENGTH, header_tokens
from tidings.settings import GivenSettings
from tidings.shared import Shared
from tidings.testing import FrozenClock, RecordingCache

MOST_SECONDS = 10


class Load:
    """The function behind the cache: counts its calls, and waits, answers and raises as the test says."""

    def __init__(self):
        self.begun = 0
        self.error = None
        self.on_begin = lambda: None
        #: what it returns; None: the number of the call
        self.results = None
        self._may_end = threading.Event()
        self._may_end_here = asyncio.Event()
        self.release()

    def hold(self):
        """Let no load end from now on."""
        self._may_end.clear()
        self._may_end_here.clear()

    def release(self):
        self._may_end.set()
        self._may_end_here.set()

    async def in_coroutine(self):
        number = self._begin()
        await asyncio.wait_for(self._may_end_here.wait(), MOST_SECONDS)
        return self._end(number)

    def in_thread(self):
        number = self._begin()
        assert self._may_end.wait(MOST_SECONDS)
        return self._end(number)

    def _begin(self):
        self.begun += 1
        self.on_begin()
        return self.begun

    def _end(self, number):
        if self.error is not None:
            raise self.error
        return number if self.results is None else self.results[0]


class World:
    """A cache, the functions cached there, and the time that passes for them. `threads`: the functions are sync."""

    def __init__(self, cache, clock, client, *, threads):
        self.cache = cache
        self.clock = clock
        self.client = client
        self.threads = threads

    def cached(self, load, **options):
        """Return a coroutine function over a cached function of this world's kind, with `load` behind it."""
        decorate = self.cache.cached(**{"namespace": "policies", "ttl": 60, "tags": ["a", "b"], **options})
        if not self.threads:

            @decorate
            async def function(number: int = 0) -> int | None:
                return await load.in_coroutine()

            return function

        @decorate
        def function_in_thread(number: int = 0) -> int | None:
            return load.in_thread()

        async def call(number=0):
            return await asyncio.to_thread(function_in_thread, number)

        async def invalidate(number=0):
            await asyncio.to_thread(function_in_thread.invalidate, number)

        call.key = function_in_thread.key
        call.request = function_in_thread.request
        call.uncached = function_in_thread.uncached
        call.invalidate = invalidate
        return call

    async def read(self, request, looked):
        """Go on with a read whose look was made before."""
        if self.threads:
            return await asyncio.to_thread(self.cache.sync.reader.read, request, looked)
        return await self.cache.reader().read(request, looked)

    def advance(self, seconds):
        self.clock.advance(seconds)
        if self.client is not None:
            for key in self.client.scan_iter():
                make_older(self.client, key, seconds)

    async def drain(self):
        """Wait for what goes on in the background."""
        await self.cache.reader().flights.drain()
        await asyncio.to_thread(self.cache.sync.reader.flights.drain)

    async def left_ms(self, key):
        return (await self.cache.reader().ask(Look((key,), ttl=True))).left_ms

    @property
    def counts(self):
        return self.cache.stats()["policies"]

    def chance(self, chance):
        """Let each draw come out like this."""
        for reader in (self.cache.reader(), self.cache.sync.reader):
            reader.reading._chance = lambda: chance


def make_older(client, key, seconds):
    """Let seconds pass for one key of the server: for how long it is kept, and for the times that it has inside."""
    value, left_ms = (client.get(key), client.pttl(key)) if client.type(key) == b"string" else (None, -1)
    if left_ms < 0:
        return
    older_us = round(seconds * 1_000_000)
    if left_ms * 1000 <= older_us:
        client.delete(key)
        return
    if key.startswith(b"token:"):
        value = older_stamp(value, UNIQUE_LENGTH + 1, older_us)
    elif value[:2] in ENTRY_KINDS:
        filled = TOKENS_START + UNIQUE_LENGTH * len(header_tokens(value))
        seen = filled + STAMP_LENGTH
        (seen_us,) = struct.unpack_from(">Q", value, seen)
        value = older_stamp(value, filled, older_us)
        value = value[:seen] + struct.pack(">Q", seen_us and seen_us - older_us) + value[seen + 8 :]
    client.set(key, value, px=left_ms - older_us // 1000)


def older_stamp(value, start, older_us):
    stamp = int(value[start : start + STAMP_LENGTH]) - older_us
    return value[:start] + b"%0*d" % (STAMP_LENGTH, stamp) + value[start + STAMP_LENGTH :]


def on_server(url, clock, **options):
    """A cache on a server that measures by our clock what it measures in this process."""
    shared = Shared(GivenSettings.of(url, options))
    shared.clock = shared.tier.clock = clock
    cache = Cache.__new__(Cache)
    cache._set_up(shared)
    return cache


@pytest.fixture(params=["memory", "server"])
def place(request):
    return request.param


@pytest.fixture(params=["async", "threads"])
def kind(request):
    return request.param


@pytest.fixture
def new_world(request, place, kind):
    """Make a world whose cache has the options given."""

    @asynccontextmanager
    async def make(**options):
        clock, client = FrozenClock(), None
        if place == "memory":
            cache = RecordingCache(clock=clock, **options)
        else:
            client = request.getfixturevalue("client")
            cache = on_server(request.getfixturevalue("url"), clock, **options)
        async with cache:
            yield World(cache, clock, client, threads=kind == "threads")

    return make


@pytest.fixture
async def world(new_world):
    async with new_world() as made:
        yield made


@pytest.fixture
async def load():
    made = Load()
    yield made
    made.release()


# --- ttl, jitter, negative_ttl


async def test_a_value_is_served_until_its_ttl_and_loaded_again_after_it(world, load):
    get = world.cached(load, ttl=600)
    assert [await get(), await get()] == [1, 1]
    world.advance(590)
    assert await get() == 1
    world.advance(10)
    assert await get() == 2


async def test_jitter_spreads_the_ttls(world, load):
    get = world.cached(load, ttl=100, jitter=0.5)
    for number in range(200):
        await get(number)
    await world.drain()
    lifetimes = [await world.left_ms(get.key(number)) / 1000 for number in range(200)]
    assert 50 - MOST_SECONDS < min(lifetimes) < 70
    assert 130 < max(lifetimes) <= 150


async def test_without_jitter_all_ttls_are_the_same(world, load):
    get = world.cached(load, ttl=100)
    for number in range(20):
        await get(number)
    await world.drain()
    for number in range(20):
        assert 100 - MOST_SECONDS < await world.left_ms(get.key(number)) / 1000 <= 100


@pytest.mark.parametrize(
    ("ttl", "namespace", "seconds"),
    [
        ("short", "policies", 10),
        ("default", "policies", 100),
        ("long", "policies", 1000),
        ("short", "explorer", 10),
        ("default", "explorer", 100),
        (None, "policies", 100),
        (None, "explorer", 30),
        (5, "explorer", 5),
    ],
)
@pytest.mark.parametrize("how", ["options", "environment"])
async def test_ttl_words_and_the_ttl_of_a_namespace_come_from_the_settings(
    request, monkeypatch, place, kind, load, how, ttl, namespace, seconds
):
    url = "memory://" if place == "memory" else request.getfixturevalue("url")
    if how == "options":
        cache = Cache(url, ttl_short=10, default_ttl=100, ttl_long=1000, ttls={"explorer": 30})
    else:
        monkeypatch.setenv("TIDINGS_URL", url)
        monkeypatch.setenv("TIDINGS_TTL_SHORT", "10")
        monkeypatch.setenv("TIDINGS_DEFAULT_TTL", "100")
        monkeypatch.setenv("TIDINGS_TTL_LONG", "1000")
        monkeypatch.setenv("TIDINGS_TTLS", '{"explorer": 30}')
        cache = Cache.from_settings(Settings.load())
    async with cache:
        world = World(cache, None, None, threads=kind == "threads")
        get = world.cached(load, ttl=ttl, namespace=namespace)
        await get()
        await world.drain()
        assert seconds / 2 < await world.left_ms(get.key()) / 1000 <= seconds


def test_a_ttl_in_the_settings_is_above_zero(monkeypatch):
    monkeypatch.setenv("TIDINGS_TTLS", '{"explorer": 0}')
    with pytest.raises(ConfigurationError, match=r"TIDINGS_TTLS\.EXPLORER"):
        Settings.load()


async def test_none_is_kept_for_the_negative_ttl_and_other_values_for_the_ttl(world, load):
    get = world.cached(load, ttl=60, negative_ttl=5)
    load.results = [None]
    assert [await get(), await get()] == [None, None]
    assert load.begun == 1
    world.advance(5)
    load.results = [7]
    assert await get() == 7
    world.advance(50)
    assert await get() == 7
    assert load.begun == 2


async def test_without_a_negative_ttl_none_is_kept_like_any_value(world, load):
    get = world.cached(load, ttl=60)
    load.results = [None]
    await get()
    world.advance(50)
    assert await get() is None
    assert load.begun == 1
    world.advance(10)
    await get()
    assert load.begun == 2


# --- when


async def test_a_call_that_when_refuses_neither_reads_nor_fills_and_is_counted(world, load):
    get = world.cached(load, when=lambda number: number > 0)
    assert [await get(0), await get(0)] == [1, 2]
    await world.drain()
    assert await world.left_ms(get.key(0)) is None
    assert world.counts["bypassed"] == 2
    assert world.counts["hits"] + world.counts["misses"] + world.counts["loads"] == 0
    assert [await get(1), await get(1)] == [3, 3]
    assert world.counts["bypassed"] == 2


# --- early


@pytest.mark.parametrize("grace", [0, 500])
async def test_a_value_is_refreshed_early_in_proportion_to_its_loads_time(world, load, grace, eventually):
    """At even odds XFetch leads by ln 2 of the load's 20 seconds, so by 14 s."""
    get = world.cached(load, ttl=100, early=1.0, stale_while_revalidate=grace)
    load.on_begin = lambda: world.clock.advance(20)
    await get()
    await world.drain()
    world.chance(0.5)
    load.on_begin = lambda: None
    world.advance(100 - 20 if world.client is None else 80)
    assert await get() == 1
    await world.drain()
    assert load.begun == 1
    world.advance(10)
    load.hold()
    assert [await get() for _ in range(10)] == [1] * 10
    await eventually(lambda: load.begun == 2)
    load.release()
    await world.drain()
    assert await get() == 2
    assert load.begun == 2
    assert world.counts["refreshes"] == 1
    assert world.counts["stale"] == 0


async def test_without_early_a_value_is_not_refreshed_before_its_end(world, load):
    get = world.cached(load, ttl=100)
    load.on_begin = lambda: world.clock.advance(50)
    await get()
    await world.drain()
    world.chance(1 - 1e-12)
    world.advance(90)
    assert await get() == 1
    await world.drain()
    assert load.begun == 1


# --- stale_while_revalidate


async def test_an_expired_value_is_served_while_one_refresh_runs(world, load, eventually):
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    world.advance(65)
    load.hold()
    assert [await get() for _ in range(10)] == [1] * 10
    await eventually(lambda: load.begun == 2)
    load.release()
    await world.drain()
    assert await get() == 2
    assert load.begun == 2
    assert world.counts["stale"] == 10
    assert world.counts["refreshes"] == 1


async def test_an_expired_value_is_a_miss_after_its_window(new_world, load):
    async with new_world(max_refreshes=0) as world:
        get = world.cached(load, ttl=600, stale_while_revalidate=300)
        await get()
        world.advance(600 + 290)
        assert await get() == 1
        assert load.begun == 1
        world.advance(10)
        assert await get() == 2


async def test_stale_while_revalidate_is_not_for_what_was_invalidated(world, load):
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    await world.cache.invalidate_tags("a")
    assert await get() == 2
    world.advance(65)
    await world.cache.invalidate_tags("a")
    assert await get() == 3
    assert world.counts["stale"] == 0


async def test_one_refresh_runs_for_all_processes(request, kind, load, eventually):
    clock, client, url = FrozenClock(), request.getfixturevalue("client"), request.getfixturevalue("url")
    async with on_server(url, clock) as one, on_server(url, clock) as other:
        worlds = [World(cache, clock, client, threads=kind == "threads") for cache in (one, other)]
        gets = [world.cached(load, ttl=60, stale_while_revalidate=30) for world in worlds]
        await gets[0]()
        await worlds[0].drain()
        worlds[0].advance(65)
        load.hold()
        assert await gets[0]() == 1
        await eventually(lambda: load.begun == 2)
        assert [await gets[1]() for _ in range(5)] == [1] * 5
        load.release()
        for world in worlds:
            await world.drain()
        assert [await get() for get in gets] == [2, 2]
        assert load.begun == 2


async def test_a_value_that_was_loaded_since_the_look_is_not_loaded_again(world, load):
    """No policy is needed for that, only a load that is long enough to ask who else loads."""
    get = world.cached(load)
    load.on_begin = lambda: world.clock.advance(1)
    await get()
    await world.cache.invalidate_tags("a")
    request = get.request(get.uncached)
    looked = await world.cache.reader().ask(request.target.look)
    assert await get() == 2
    await world.drain()
    assert await world.read(request, looked) == 2
    assert load.begun == 2
    await world.drain()
    assert world.client is None or not world.client.exists(request.target.places.lease)


async def test_a_value_that_was_refreshed_since_the_look_is_not_refreshed_again(world, load):
    """Under load there is always a read on its way when a refresh ends: its answer is the old value."""
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    world.advance(65)
    request = get.request(get.uncached)
    looked = await world.cache.reader().ask(request.target.look)
    assert await get() == 1
    await world.drain()
    assert await world.read(request, looked) == 1
    await world.drain()
    assert load.begun == 2
    assert world.counts["refreshes"] == 1
    assert world.client is None or not world.client.exists(request.target.places.lease)
    assert await get() == 2


# --- max_staleness


async def test_an_invalidated_value_is_served_while_one_refresh_runs(world, load, eventually):
    get = world.cached(load, ttl=3600, max_staleness=100)
    await get()
    await world.cache.invalidate_tags("a")
    load.hold()
    world.advance(90)
    assert [await get() for _ in range(10)] == [1] * 10
    await eventually(lambda: load.begun == 2)
    load.release()
    await world.drain()
    assert await get() == 2
    assert load.begun == 2
    assert world.counts["stale"] == 10


async def test_an_invalidated_value_is_served_within_the_window_alone(new_world, load):
    async with new_world(max_refreshes=0) as world:
        get = world.cached(load, ttl=3600, max_staleness=100)
        await get()
        world.advance(400)
        await world.cache.invalidate_tags("a")
        world.advance(90)
        assert await get() == 1
        world.advance(10)
        assert await get() == 2


@pytest.mark.parametrize("second", ["a", "b"])
async def test_staleness_counts_from_the_first_invalidation_after_the_load(new_world, load, second):
    """Whether the second one is of the same tag, whose token then does not say when the first was, or of another."""
    async with new_world(max_refreshes=0) as world:
        get = world.cached(load, ttl=3600, max_staleness=100)
        await get()
        world.advance(20)
        await world.cache.invalidate_tags("a")
        world.advance(50)
        await world.cache.invalidate_tags(second)
        world.advance(10)
        assert await get() == 1
        world.advance(40)
        assert await get() == 2


async def test_an_invalidation_before_the_load_does_not_count(new_world, load):
    async with new_world(max_refreshes=0) as world:
        get = world.cached(load, ttl=3600, max_staleness=100)
        await world.cache.invalidate_tags("a")
        world.advance(200)
        await get()
        world.advance(200)
        await world.cache.invalidate_tags("a")
        world.advance(90)
        assert await get() == 1


@pytest.mark.parametrize("options", [{}, {"stale_while_revalidate": 30}, {"stale_if_error": 30}])
async def test_without_max_staleness_an_invalidated_value_is_never_served(world, load, options):
    get = world.cached(load, **options)
    await get()
    await world.cache.invalidate_tags("a")
    assert await get() == 2
    await world.cache.invalidate_namespace("policies")
    assert await get() == 3
    await world.cache.invalidate_all()
    assert await get() == 4
    assert world.counts["stale"] == 0


async def test_an_entry_invalidated_by_itself_leaves_nothing_to_serve(world, load):
    get = world.cached(load, max_staleness=30, stale_while_revalidate=30, stale_if_error=30)
    await get()
    await get.invalidate()
    assert await get() == 2
    await get.invalidate()
    load.error = KeyError("no such row")
    with pytest.raises(KeyError):
        await get()
    assert world.counts["stale"] == 0


async def test_a_value_expired_and_invalidated_needs_both_permissions(new_world, load):
    async with new_world(max_refreshes=0) as world:
        get = world.cached(load, ttl=600, max_staleness=300, stale_while_revalidate=100)
        await get()
        world.advance(650)
        await world.cache.invalidate_tags("a")
        assert await get() == 1
        world.advance(50)
        assert await get() == 2


# --- stale_if_error


@pytest.mark.parametrize("ended", ["expired", "invalidated"])
async def test_a_stale_value_covers_a_load_that_raises_for_a_while(world, load, ended):
    get = world.cached(load, ttl=600, stale_if_error=300)
    await get()
    if ended == "expired":
        world.advance(600)
    else:
        await world.cache.invalidate_tags("a")
    load.error = KeyError("no such row")
    with capture_logs() as logs:
        assert await get() == 1
        world.advance(290)
        assert await get() == 1
    assert load.begun == 3
    assert [(entry["event"], entry["log_level"], entry["error"]) for entry in logs] == [
        ("stale_served_on_error", "warning", "KeyError")
    ] * 2
    assert logs[0]["key"] == get.key()
    assert world.counts["stale"] == 2
    assert world.counts["load_errors"] == 2
    world.advance(10)
    with pytest.raises(KeyError):
        await get()
    load.error = None
    assert await get() == 5


async def test_a_value_that_ends_is_loaded_again_although_it_could_cover_an_error(world, load):
    """Also in the very millisecond in which it ends."""
    get = world.cached(load, ttl=60, stale_if_error=30)
    await get()
    world.advance(60)
    assert await get() == 2
    assert world.counts["stale"] == 0


async def test_a_load_that_raises_too_late_is_not_covered(world, load):
    """It could have been served before the load, and its time ran out meanwhile."""
    get = world.cached(load, ttl=60, stale_if_error=30)
    await get()
    world.advance(65)
    load.error = KeyError("no such row")
    load.on_begin = lambda: world.clock.advance(30)
    with pytest.raises(KeyError):
        await get()


async def test_without_stale_if_error_the_error_is_the_callers(world, load):
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    await world.cache.invalidate_tags("a")
    load.error = KeyError("no such row")
    with pytest.raises(KeyError):
        await get()


async def test_a_result_that_cannot_be_kept_is_not_covered(world, load):
    """It is a mistake of the function, not of what it asks."""
    get = world.cached(load, ttl=60, stale_if_error=30)
    await get()
    world.advance(65)
    load.results = [object()]
    with pytest.raises(EncodeError):
        await get()
    assert world.counts["stale"] == 0


# --- timeout


async def test_a_stale_value_covers_a_load_that_is_late_and_the_load_goes_on_and_fills(world, load):
    get = world.cached(load, ttl=60, stale_if_error=30, timeout=0.02)
    await get()
    world.advance(65)
    load.hold()
    assert await get() == 1
    assert load.begun == 2
    assert await get() == 1
    assert load.begun == 2
    assert world.counts["stale"] == 2
    load.release()
    await world.drain()
    assert await get() == 2
    assert load.begun == 2


async def test_a_load_that_is_late_and_fails_after_its_callers_have_gone_is_logged(world, load):
    get = world.cached(load, ttl=60, stale_if_error=30, timeout=0.02)
    await get()
    world.advance(65)
    load.hold()
    load.error = KeyError("nobody hears this")
    with capture_logs() as logs:
        assert await get() == 1
        load.release()
        await world.drain()
    assert [entry["event"] for entry in logs] == ["stale_served_on_error", "load_failed_unheard"]


async def test_a_load_that_is_late_is_waited_for_where_nothing_can_be_served(world, load, eventually):
    get = world.cached(load, ttl=60, stale_if_error=30, timeout=0.02)
    load.hold()
    waiting = asyncio.create_task(get())
    await eventually(lambda: load.begun == 1)
    assert not (await asyncio.wait({waiting}, timeout=0.1))[0]
    load.release()
    assert await waiting == 1


async def test_a_load_that_is_late_is_waited_for_when_its_cover_has_run_out(world, load, eventually):
    get = world.cached(load, ttl=60, stale_if_error=30, timeout=0.02)
    await get()
    world.advance(65)
    load.hold()
    load.on_begin = lambda: world.clock.advance(30)
    waiting = asyncio.create_task(get())
    await eventually(lambda: load.begun == 2)
    assert not (await asyncio.wait({waiting}, timeout=0.1))[0]
    load.release()
    assert await waiting == 2
    assert load.begun == 2


async def test_an_early_load_is_not_cut_short(world, load):
    get = world.cached(load, ttl=60, stale_if_error=30, timeout=MOST_SECONDS)
    await get()
    world.advance(65)
    assert await get() == 2
    assert world.counts["stale"] == 0


# --- local_ttl


@asynccontextmanager
async def with_tier(new_world, eventually, **options):
    """A world whose local tier is alive; `follow` waits until it is again, after time has passed."""
    async with new_world(**options) as world:

        async def follow():
            world.cache._shared.note()
            await eventually(lambda: world.clock() < world.cache.tier.alive_until, "the tail")

        world.follow = follow
        await follow()
        yield world


async def test_a_value_in_this_process_does_not_outlive_its_ttl(new_world, load, eventually):
    """It is looked up again when it is 350 s old, and kept here for the rest of its time alone."""
    async with with_tier(new_world, eventually) as world:
        get = world.cached(load, ttl=600, local_ttl=300)
        assert [await get(), await get()] == [1, 1]
        assert world.counts["local_hits"] == 1
        await world.drain()
        world.advance(350)
        await world.follow()
        assert [await get(), await get()] == [1, 1]
        assert world.counts["hits"] == 1
        assert world.counts["local_hits"] == 2
        world.advance(240)
        await world.follow()
        assert await get() == 1
        assert world.counts["local_hits"] == 3
        world.advance(10)
        await world.follow()
        assert await get() == 2


async def test_a_none_in_this_process_does_not_outlive_the_negative_ttl(new_world, load, eventually):
    async with with_tier(new_world, eventually) as world:
        get = world.cached(load, ttl=60, local_ttl=60, negative_ttl=5)
        load.results = [None]
        assert [await get(), await get()] == [None, None]
        assert world.counts["local_hits"] == 1
        await world.drain()
        world.advance(5)
        await world.follow()
        await get()
        assert load.begun == 2


async def test_a_stale_value_is_not_kept_in_this_process(new_world, load, eventually):
    async with with_tier(new_world, eventually, max_refreshes=0) as world:
        get = world.cached(load, ttl=60, local_ttl=60, stale_while_revalidate=30, max_staleness=30)
        await get()
        await world.drain()
        world.advance(65)
        await world.follow()
        assert [await get(), await get()] == [1, 1]
        await world.cache.invalidate_tags("a")
        assert [await get(), await get()] == [1, 1]
        assert world.counts["local_hits"] == 0
        assert world.counts["stale"] == 4
        assert len(world.cache.tier) == 0


# --- refreshes in the background


async def test_a_refresh_that_fails_is_logged_and_disturbs_nobody(world, load):
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    world.advance(65)
    load.error = KeyError("no such row")
    with capture_logs() as logs:
        assert await get() == 1
        await world.drain()
        assert await get() == 1
        await world.drain()
    assert [(entry["event"], entry["log_level"], entry["key"]) for entry in logs] == [
        ("refresh_failed", "error", get.key())
    ] * 2
    assert [type(entry["exc_info"]) for entry in logs] == [KeyError] * 2
    assert world.counts["load_errors"] == 2
    load.error = None
    assert await get() == 1
    await world.drain()
    assert await get() == 4


async def test_a_refresh_whose_result_cannot_be_kept_is_logged(world, load):
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    world.advance(65)
    load.results = [object()]
    with capture_logs() as logs:
        assert await get() == 1
        await world.drain()
    assert [entry["event"] for entry in logs] == ["refresh_failed"]
    assert type(logs[0]["exc_info"]) is EncodeError


async def test_refreshes_are_bounded_and_what_is_not_refreshed_is_served_all_the_same(new_world, load, eventually):
    async with new_world(max_refreshes=2) as world:
        get = world.cached(load, ttl=60, stale_while_revalidate=30)
        assert [await get(number) for number in range(5)] == [1, 2, 3, 4, 5]
        world.advance(65)
        load.hold()
        assert [await get(number) for number in range(5)] == [1, 2, 3, 4, 5]
        await eventually(lambda: load.begun == 7)
        load.release()
        await world.drain()
        assert load.begun == 7
        assert world.counts["refreshes"] == 2
        load.hold()
        assert [await get(number) for number in (2, 3)] == [3, 4]
        await eventually(lambda: load.begun == 9)
        load.release()
        await world.drain()


async def test_closing_waits_for_refreshes(new_world, load, eventually):
    async with new_world() as world:
        get = world.cached(load, ttl=60, stale_while_revalidate=30)
        await get()
        world.advance(65)
        load.hold()
        assert await get() == 1
        await eventually(lambda: load.begun == 2)
        closing = asyncio.create_task(world.cache.aclose())
        assert not (await asyncio.wait({closing}, timeout=0.05))[0]
        load.release()
        await closing
        assert world.counts["fills"] == 2


async def test_a_refresh_survives_whoever_set_it_off(world, load, eventually):
    """A coroutine that is cancelled; a thread that has ended."""
    get = world.cached(load, ttl=60, stale_while_revalidate=30)
    await get()
    world.advance(65)
    load.hold()
    served = asyncio.Event()

    async def caller():
        assert await get() == 1
        served.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(caller())
    await served.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: load.begun == 2)
    load.release()
    await world.drain()
    assert await get() == 2
