"""`tidings.testing` as a service's own tests use it; pytest has found the fixtures by itself."""

import asyncio
import re
import sys
import threading
from datetime import timedelta

import pytest
import tidings
from tidings import Cache, Event, cached, get_cache, publish, set_cache
from tidings.errors import ConfigurationError, EventError
from tidings.testing import (
    FrozenClock,
    RecordingCache,
    assert_invalidated,
    assert_not_invalidated,
    assert_not_published,
    assert_published,
    recording,
)


class NameChanged(Event, type="testing.name_changed"):
    user_id: int
    name: str = ""


class Moved(Event, type="testing.moved"):
    user_id: int


loads = []


@cached(namespace="profiles", ttl=60, tags=["user:{user_id}"])
async def get_profile(user_id: int) -> int:
    loads.append(user_id)
    return len(loads)


@cached(namespace="profiles", ttl=60, tags=["user:{user_id}"])
def get_profile_sync(user_id: int) -> int:
    loads.append(user_id)
    return len(loads)


@pytest.fixture(autouse=True)
def _no_loads():
    loads.clear()


# --- the cache


def test_the_cache_is_the_default_of_a_plain_test(tidings_cache):
    assert get_cache() is tidings_cache
    assert [get_profile_sync(7), get_profile_sync(7)] == [1, 1]


async def test_the_cache_is_the_default_of_a_coroutine(tidings_cache):
    assert get_cache() is tidings_cache
    assert [await get_profile(7), await get_profile(7)] == [1, 1]
    await tidings.invalidate_tags("user:7")
    assert await get_profile(7) == 2


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_cache_of_its_own(tidings_cache, turn):
    assert get_profile_sync(7) == 1
    assert loads == [7]
    assert len(tidings_cache.invalidated) == 0
    tidings_cache.sync.invalidate_tags("of this test alone")


def test_afterwards_the_default_cache_is_the_one_before():
    mine = Cache("memory://")
    before = set_cache(mine)
    try:
        with recording(default_ttl=5) as cache:
            assert get_cache() is cache
            assert cache.settings.default_ttl == 5
        assert get_cache() is mine
        with pytest.raises(KeyError), recording():
            raise KeyError
        assert get_cache() is mine
    finally:
        set_cache(before)


def test_the_end_waits_for_refreshes_in_threads():
    started, release, ended = threading.Event(), threading.Event(), threading.Event()
    clock = FrozenClock()
    with recording(clock=clock) as cache:

        @cache.cached(ttl=1, stale_while_revalidate=60)
        def load() -> int:
            loads.append(1)
            if len(loads) > 1:
                started.set()
                release.wait(10)
                ended.set()
            return len(loads)

        assert load() == 1
        clock.advance(2)
        assert load() == 1
        assert started.wait(10)
        threading.Timer(0.05, release.set).start()
    assert ended.is_set()


def test_options_are_checked_as_those_of_a_cache():
    with pytest.raises(ConfigurationError, match="DEFAULT_TTL"):
        RecordingCache(default_ttl=-1)


# --- events


async def test_what_is_published_by_any_way_is_recorded_in_order_and_of_its_class(tidings_cache):
    await publish(NameChanged(user_id=1))
    await tidings_cache.publish(NameChanged(user_id=2), subject="user:2")
    await asyncio.to_thread(tidings_cache.sync.publish, Moved(user_id=3))
    await publish(Event.of("testing.unknown", {"anything": [1]}))
    first, second, third, fourth = tidings_cache.published
    assert [first, second, third] == [NameChanged(user_id=1), NameChanged(user_id=2), Moved(user_id=3)]
    assert second.envelope.subject == "user:2"
    assert fourth.anything == [1]
    assert fourth.envelope.type == "testing.unknown"


async def test_an_event_that_could_not_be_published_is_not_recorded(tidings_cache):
    class Nameless(Event):
        user_id: int

    with pytest.raises(EventError):
        await publish(Nameless(user_id=1))
    assert tidings_cache.published == []


async def test_a_published_event_is_found_by_class_or_type_and_any_of_its_fields(tidings_cache):
    await publish(NameChanged(user_id=1, name="Ada"))
    await publish(NameChanged(user_id=2, name="Bea"))
    await publish(Event.of("testing.unknown", {"anything": [1]}))
    assert assert_published(NameChanged).name == "Ada"
    assert assert_published(NameChanged, user_id=2).name == "Bea"
    assert assert_published("testing.name_changed", name="Bea") == NameChanged(user_id=2, name="Bea")
    assert_published("testing.unknown", anything=[1])
    assert_not_published(Moved)
    assert_not_published(NameChanged, user_id=3)
    assert_not_published("testing.unknown", anything=[2])


async def test_what_was_published_instead_is_said(tidings_cache):
    with pytest.raises(AssertionError, match=r"^not published: Moved\(user_id=1\)\nnothing was published$"):
        assert_published(Moved, user_id=1)
    await publish(NameChanged(user_id=1, name="Ada"))
    await publish(Event.of("testing.unknown", {"anything": [1]}))
    with pytest.raises(AssertionError) as caught:
        assert_published(NameChanged, user_id=2)
    assert str(caught.value) == (
        "not published: NameChanged(user_id=2)\n"
        "published:\n"
        "  NameChanged(user_id=1, name='Ada')\n"
        "  testing.unknown(anything=[1])"
    )
    with pytest.raises(AssertionError) as caught:
        assert_not_published("testing.name_changed", name="Ada")
    assert str(caught.value) == (
        "published all the same: testing.name_changed(name='Ada')\npublished:\n  NameChanged(user_id=1, name='Ada')"
    )


@pytest.mark.parametrize("kind", [NameChanged, "testing.name_changed"])
@pytest.mark.parametrize("asserting", [assert_published, assert_not_published])
def test_a_field_that_the_class_does_not_have_is_a_mistake_of_the_test(tidings_cache, asserting, kind):
    """Otherwise a typing error would make `assert_not_published` hold for ever."""
    with pytest.raises(TypeError, match="NameChanged has no field usr_id"):
        asserting(kind, usr_id=1)


def test_what_is_neither_class_nor_type_is_a_mistake_of_the_test(tidings_cache):
    with pytest.raises(TypeError, match="event class"):
        assert_not_published(Moved(user_id=1))


# --- invalidations


async def test_what_is_invalidated_by_any_way_is_recorded(tidings_cache):
    await tidings.invalidate(namespaces=["stats"], tags=["user:7"])
    await asyncio.to_thread(tidings_cache.sync.invalidate_tags, "user:8", "user:9")
    await get_profile.invalidate(7)
    await tidings_cache.invalidate_pattern("*", namespace="profiles")
    await tidings.invalidate_all()
    both, tags, entry, pattern, everything = tidings_cache.invalidated
    assert list(both.causes) == ["namespace:stats", "tag:user:7"]
    assert both.causes["tag:user:7"].startswith("call:invalidate ")
    assert list(tags.causes) == ["tag:user:8", "tag:user:9"]
    assert entry.keys == (get_profile.key(7),)
    assert pattern.patterns == ("cache:profiles:*",)
    assert list(everything.causes) == ["all"]

    assert_invalidated()
    assert_invalidated(tags=["user:7", "user:9"], namespaces=["stats"])
    assert_invalidated(keys=[get_profile.key(7)], everything=True)
    assert_not_invalidated(tags=["user:1"], namespaces=["profiles"], keys=[get_profile.key(8)])


async def test_what_was_invalidated_instead_is_said(tidings_cache):
    with pytest.raises(AssertionError, match=r"^not invalidated: tag:user:7\nnothing was invalidated$"):
        assert_invalidated(tags=["user:7"])
    with pytest.raises(AssertionError, match=r"^nothing was invalidated$"):
        assert_invalidated()
    assert_not_invalidated()
    assert_not_invalidated(everything=True)
    await tidings.invalidate(namespaces=["stats"], tags=["user:7"])
    await get_profile.invalidate(7)
    entry = re.escape(f"key:{get_profile.key(7)}")
    lines = rf"\ninvalidated:\n  namespace:stats, tag:user:7  \(call:invalidate \S+\)\n  {entry}$"
    with pytest.raises(AssertionError, match=f"^not invalidated: namespace:profiles, tag:user:8, all{lines}"):
        assert_invalidated(tags=["user:8", "user:7"], namespaces=["profiles"], everything=True)
    with pytest.raises(AssertionError, match=f"^invalidated all the same: tag:user:7{lines}"):
        assert_not_invalidated(tags=["user:7", "user:8"])
    with pytest.raises(AssertionError, match=lines[2:]):  # without the end of the line before
        assert_not_invalidated()


@pytest.mark.parametrize("named", [{"tags": "user:7"}, {"namespaces": "stats"}, {"keys": "a"}])
@pytest.mark.parametrize("asserting", [assert_invalidated, assert_not_invalidated])
def test_one_string_where_a_list_belongs_is_a_mistake_of_the_test(tidings_cache, asserting, named):
    with pytest.raises(ConfigurationError, match="one string where a list of them belongs"):
        asserting(**named)


async def test_records_begin_anew_and_values_stay(tidings_cache):
    await get_profile(7)
    await publish(Moved(user_id=7))
    await tidings.invalidate_tags("user:8")
    tidings_cache.forget_records()
    assert_not_published(Moved)
    assert_not_invalidated()
    assert await get_profile(7) == 1


def test_a_default_cache_that_does_not_record_is_a_mistake_of_the_test():
    before = set_cache(Cache("memory://"))
    try:
        with pytest.raises(ConfigurationError, match="does not record: use the fixture tidings_cache"):
            assert_not_published(Moved)
    finally:
        set_cache(before)


# --- time


async def test_values_expire_by_the_frozen_clock(tidings_cache, tidings_clock):
    assert await get_profile(7) == 1
    tidings_clock.advance(59.999)
    assert await get_profile(7) == 1
    tidings_clock.advance(timedelta(milliseconds=1))
    assert await get_profile(7) == 2


def test_the_clock_alone_brings_the_cache(tidings_clock):
    assert get_profile_sync(7) == 1
    tidings_clock.advance(60)
    assert get_profile_sync(7) == 2


async def test_the_local_tier_follows_the_frozen_clock(tidings_cache, tidings_clock):
    @cached(namespace="profiles", ttl=60, local_ttl=10)
    async def load() -> int:
        loads.append(1)
        return len(loads)

    def served() -> tuple[int, int]:
        counts = tidings_cache.stats()["profiles"]
        return counts["local_hits"], counts["hits"]

    assert [await load(), await load()] == [1, 1]
    assert served() == (1, 0)
    tidings_clock.advance(9.999)
    await load()
    assert served() == (2, 0)
    tidings_clock.advance(0.001)
    await load()
    assert served() == (2, 1)


async def test_a_load_is_as_long_as_the_frozen_clock_says(tidings_cache, tidings_clock):
    @cached(namespace="slow")
    async def load() -> int:
        tidings_clock.advance(2)
        return 1

    await load()
    assert tidings_cache.stats()["slow"]["functions"][load.identity]["loads"] == 1
    assert tidings_cache._shared.telemetry.of("slow", load.identity).load_us.total == 2_000_000


def test_time_does_not_go_back():
    clock = FrozenClock()
    clock.advance(0)
    assert clock() == 0
    with pytest.raises(ValueError, match="time does not go back"):
        clock.advance(-1)
    for _ in range(10):
        clock.advance(0.1)
    assert clock() == 1


def test_without_the_clock_time_goes_on(tidings_cache):
    before = tidings_cache.clock()
    while tidings_cache.clock() == before:
        pass
    assert tidings_cache.clock() > before


# --- the plugin, in a pytest of its own

SERVICE_TESTS = """
import asyncio

import pytest
import tidings
from tidings import Cache, Event, cached, get_cache, publish, set_cache
from tidings.testing import assert_published

class Moved(Event, type="moved"):
    user_id: int

loads = []
mine = Cache("memory://")
set_cache(mine)

@cached(ttl=60, tags=["user:{user_id}"])
async def load(user_id: int) -> int:
    loads.append(user_id)
    return len(loads)

async def use(cache):
    assert get_cache() is cache
    before = len(loads)
    assert await load(7) == before + 1
    assert await load(7) == before + 1
    await publish(Moved(user_id=7))
    assert_published(Moved, user_id=7)
    assert len(cache.published) == 1

def test_plain(tidings_cache):
    asyncio.run(use(tidings_cache))

def test_again(tidings_cache, tidings_clock):
    asyncio.run(use(tidings_cache))
    tidings_clock.advance(60)
    asyncio.run(load(7))
    assert len(loads) == 3

def test_without():
    assert get_cache() is mine
"""

ASYNC_TESTS = """
import pytest

async def test_coroutine(tidings_cache):
    await use(tidings_cache)

async def test_a_refresh_that_nobody_waits_for(tidings_cache, tidings_clock):
    @cached(ttl=1, stale_while_revalidate=9)
    async def slow() -> int:
        loads.append(0)
        if len(loads) > 1:
            await asyncio.Event().wait()
        return 1

    loads.clear()
    await slow()
    tidings_clock.advance(2)
    assert await slow() == 1
    while len(loads) < 2:
        await asyncio.sleep(0)
"""

TOO_LATE = """
def test_late(tidings_cache, request):
    request.getfixturevalue("tidings_clock")
"""

STRICT = ("-q", "-W", "error", "-p", "no:cacheprovider")
AUTO = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")


def test_the_fixtures_need_no_other_plugin(shell):
    shell.write("test_service.py", SERVICE_TESTS)
    process = shell.start_program(sys.executable, "-m", "pytest", *STRICT, "-p", "no:asyncio")
    assert process.wait(60) == 0, process.output
    assert "3 passed" in process.out


def test_the_fixtures_work_with_pytest_asyncio(shell):
    shell.write("test_service.py", SERVICE_TESTS + ASYNC_TESTS)
    process = shell.start_program(sys.executable, "-m", "pytest", *STRICT, *AUTO)
    assert process.wait(60) == 0, process.output
    assert "5 passed" in process.out


def test_a_clock_that_comes_too_late_says_what_to_do(shell):
    shell.write("test_service.py", TOO_LATE)
    process = shell.start_program(sys.executable, "-m", "pytest", *STRICT, *AUTO)
    assert process.wait(60) == 1, process.output
    assert "tidings_clock must be among the test's arguments" in process.out


def test_a_service_without_pytest_can_use_all_but_the_fixtures(shell):
    program = "import sys, tidings, tidings.testing; assert not {'pytest', '_pytest'} & set(sys.modules)"
    process = shell.start_program(sys.executable, "-c", program)
    assert process.wait(60) == 0, process.err
