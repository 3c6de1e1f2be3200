"""Plain functions under `@cached`, and `cache.sync`: the promises of the asynchronous side, kept among threads."""

import asyncio
import contextvars
import inspect
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial

import pytest
import tidings
from pydantic import BaseModel
from structlog.testing import capture_logs
from tidings import Cache, CachedSyncFunction, Event
from tidings.errors import ConfigurationError, EncodeError, InvalidationError, PublishError, UnavailableError
from tidings.fence import Ticket
from tidings.sync import SyncCache
from tidings.threadflight import ThreadFlights

UNREACHABLE = "redis://127.0.0.1:1/0"
SECONDS = 10


@pytest.fixture(params=["memory", "server"])
def cache(request):
    made = Cache("memory://" if request.param == "memory" else request.getfixturevalue("url"))
    yield made
    made.sync.close()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(40) as made:
        yield made


class Loader:
    """A load that says that it has begun and ends when it is let; each call answers with its number."""

    def __init__(self):
        self.begun = threading.Event()
        self.release = threading.Event()
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        self.begun.set()
        assert self.release.wait(SECONDS)
        return number


@pytest.fixture
def loader():
    made = Loader()
    yield made
    made.release.set()


def callers(cache) -> int:
    """How many threads share the loads in flight."""
    return sum(flight.callers for flight in cache.sync.reader.flights._flights.values())


# One load a key


def test_one_load_for_thirty_two_threads_that_ask_at_once(cache, pool):
    barrier, calls = threading.Barrier(32), []

    @cache.cached()
    def load(number: int) -> list[int]:
        calls.append(number)
        threading.Event().wait(0.05)
        return [number]

    def ask(_):
        barrier.wait(SECONDS)
        return load(7)

    results = list(pool.map(ask, range(32)))
    assert results == [[7]] * 32
    assert len(calls) == 1
    assert len(set(map(id, results))) == 32


def test_different_keys_load_side_by_side(cache, pool):
    both = threading.Barrier(2)

    @cache.cached()
    def load(number: int) -> int:
        both.wait(SECONDS)
        return number

    assert list(pool.map(load, [1, 2])) == [1, 2]


def test_a_caller_that_changes_its_result_changes_nobody_elses(cache, pool, loader, until):
    @cache.cached()
    def load() -> list[int]:
        return [loader()]

    asked = [pool.submit(load)]
    assert loader.begun.wait(SECONDS)
    asked += [pool.submit(load) for _ in range(3)]
    until(lambda: callers(cache) == 4)
    loader.release.set()
    results = [future.result(SECONDS) for future in asked]
    for result in results:
        result.append(99)
    assert results == [[1, 99]] * 4
    assert load() == [1]


def test_who_starts_after_an_invalidation_is_not_served_by_a_load_from_before_it(cache, pool, until):
    """A shared load is under way when the row changes; who asked before may get the old value, who asks after not."""
    row, old_read, release = ["old"], threading.Event(), threading.Event()

    @cache.cached(tags=["row"])
    def load() -> str:
        value = row[0]
        if value == "old":
            old_read.set()
            assert release.wait(SECONDS)
        return value

    before = [pool.submit(load) for _ in range(3)]
    assert old_read.wait(SECONDS)
    until(lambda: callers(cache) == 3)
    row[0] = "new"
    cache.sync.invalidate_tags("row")
    assert [future.result(SECONDS) for future in [pool.submit(load) for _ in range(3)]] == ["new"] * 3
    release.set()
    assert {future.result(SECONDS) for future in before} <= {"old", "new"}, "who waited for the lease looks again"
    assert load() == "new"


def test_a_load_from_before_an_invalidation_of_the_entry_is_not_kept(cache, pool, loader):
    @cache.cached()
    def load() -> int:
        return loader()

    before = pool.submit(load)
    assert loader.begun.wait(SECONDS)
    load.invalidate()
    loader.release.set()
    assert before.result(SECONDS) == 1
    assert [load(), load()] == [2, 2]


def test_a_load_that_raises_raises_to_all_who_wait_and_is_tried_again_by_the_next(cache, pool, loader, until):
    broken = [True]

    @cache.cached()
    def load() -> int:
        number = loader()
        if broken[0]:
            raise LookupError("no such row")
        return number

    asked = [pool.submit(load)]
    assert loader.begun.wait(SECONDS)
    asked += [pool.submit(load) for _ in range(4)]
    until(lambda: callers(cache) == 5)
    loader.release.set()
    for future in asked:
        with pytest.raises(LookupError, match="no such row"):
            future.result(SECONDS)
    assert loader.calls == 1
    broken[0] = False
    assert load() == 2


@pytest.mark.parametrize("error", [TimeoutError("of the load's own"), CancelledError("of the load's own")])
def test_errors_that_waiting_knows_too_are_the_loads_own_to_all(cache, pool, loader, until, error):
    @cache.cached()
    def load() -> int:
        loader()
        raise error

    asked = [pool.submit(load)]
    assert loader.begun.wait(SECONDS)
    asked += [pool.submit(load) for _ in range(3)]
    until(lambda: callers(cache) == 4)
    loader.release.set()
    for future in asked:
        with pytest.raises(type(error), match="of the load's own"):
            future.result(SECONDS)
    assert loader.calls == 1


class Interrupted(BaseException):
    """What ends a thread, as KeyboardInterrupt and SystemExit do."""


def test_a_thread_that_is_interrupted_while_it_loads_lets_another_take_over(cache, pool, loader, until):
    calls = []

    @cache.cached()
    def load() -> int:
        calls.append(1)
        if len(calls) == 1:
            loader()
            raise Interrupted
        return len(calls)

    first = pool.submit(load)
    assert loader.begun.wait(SECONDS)
    others = [pool.submit(load) for _ in range(3)]
    until(lambda: callers(cache) == 4)
    loader.release.set()
    with pytest.raises(Interrupted):
        first.result(SECONDS)
    assert {future.result(SECONDS) for future in others} == {2}
    assert len(calls) == 2


def test_a_load_that_was_interrupted_leaves_no_lease_behind(url):
    """Another process would wait for it until it expires."""

    def interrupted() -> int:
        raise Interrupted

    here, elsewhere = Cache(url, lease_ttl=600, operation_timeout=5), Cache(url, lease_ttl=600, operation_timeout=5)
    with pytest.raises(Interrupted):
        here.sync.get_or_set("k", interrupted)
    assert elsewhere.sync.get_or_set("k", lambda: 1) == 1
    here.sync.close()
    elsewhere.sync.close()


def test_a_function_that_asks_for_itself_does_not_wait_for_itself(cache):
    depth = []

    @cache.cached()
    def load(key: int) -> int:
        depth.append(key)
        return 1 if len(depth) > 2 else load(key) + 1

    assert load(7) == 3
    assert load(7) == 3


def test_a_load_sees_its_callers_context(cache):
    user = contextvars.ContextVar("user", default="nobody")

    @cache.cached()
    def load() -> str:
        return user.get()

    def ask():
        user.set("somebody")
        return load()

    assert contextvars.copy_context().run(ask) == "somebody"


def test_two_caches_on_one_server_load_once(url, pool, loader):
    """Processes without a common memory: the lease keeps the second from loading."""
    caches = [Cache(url, lease_ttl=600) for _ in range(2)]

    @caches[0].cached(namespace="n", key="{n}")
    def load(n: int) -> int:
        return loader()

    other = caches[1].cached(namespace="n", key="{n}")(load.uncached)
    first = pool.submit(load, 1)
    assert loader.begun.wait(SECONDS)
    second = pool.submit(other, 1)
    loader.release.set()
    assert [first.result(SECONDS), second.result(SECONDS)] == [1, 1]
    assert loader.calls == 1
    for cache in caches:
        cache.sync.close()


# In the background


def test_a_refresh_in_the_background_sees_its_callers_context_and_its_error_is_said(cache, until):
    user, seen = contextvars.ContextVar("user", default="nobody"), []

    @cache.cached(max_staleness=600)
    def load() -> str:
        seen.append(user.get())
        if len(seen) > 1:
            raise LookupError("no such row")
        return "old"

    def ask():
        user.set("somebody")
        return load()

    assert load() == "old"
    load_tags = cache.sync.invalidate_namespace
    load_tags("default")
    with capture_logs() as logs:
        assert contextvars.copy_context().run(ask) == "old"
        until(lambda: any(entry["event"] == "refresh_failed" for entry in logs))
    assert seen == ["nobody", "somebody"]
    [said] = [entry for entry in logs if entry["event"] == "refresh_failed"]
    assert isinstance(said["exc_info"], LookupError)


def test_a_slow_load_goes_on_in_the_background_and_its_value_is_kept(cache, loader, until):
    @cache.cached(max_staleness=0, stale_if_error=600, timeout=0.05)
    def load() -> int:
        return loader()

    loader.release.set()
    assert load() == 1
    loader.release.clear()
    cache.sync.invalidate_namespace("default")
    assert load() == 1
    loader.release.set()
    until(lambda: cache.stats()["default"]["fills"] == 2, "the fill")  # a read before it would load as well
    assert load() == 2


def test_a_load_that_fails_after_its_callers_have_given_up_is_said(cache, loader, until):
    broken = []

    @cache.cached(stale_if_error=600, timeout=0.05)
    def load() -> int:
        number = loader()
        if broken:
            raise LookupError("no such row")
        return number

    loader.release.set()
    assert load() == 1
    loader.release.clear()
    broken.append(True)
    cache.sync.invalidate_namespace("default")
    with capture_logs() as logs:
        assert load() == 1
        loader.release.set()
        until(lambda: any(entry["event"] == "load_failed_unheard" for entry in logs))


def test_where_no_thread_can_be_had_a_stale_value_is_served_and_a_load_runs_on_its_callers(cache, monkeypatch):
    """As while the interpreter ends: Python refuses new threads then."""
    calls = []

    @cache.cached(max_staleness=600)
    def refreshed() -> int:
        calls.append("refreshed")
        return len(calls)

    @cache.cached(stale_if_error=600, timeout=5)
    def patient() -> int:
        calls.append("patient")
        return len(calls)

    @cache.cached(local_ttl=60, namespace="local")
    def local() -> int:
        return 1

    assert [refreshed(), patient()] == [1, 2]
    cache.sync.invalidate_namespace("default")

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(threading.Thread, "start", refuse)
        assert refreshed() == 1
        assert patient() == 3
        assert [local(), local()] == [1, 1]
    said = [entry["event"] for entry in logs]
    assert said in (["background_failed"] * 2, ["background_failed"] * 2 + ["local_tier_lost"])
    assert cache.sync.reader.flights.drain(5)
    assert refreshed() == 1  # and now there is one


def test_closing_waits_for_what_runs_in_the_background_and_no_longer_than_told(cache, loader, until):
    @cache.cached(max_staleness=600)
    def load() -> int:
        return loader()

    loader.release.set()
    assert load() == 1
    loader.release.clear()
    loader.begun.clear()
    cache.sync.invalidate_namespace("default")
    assert load() == 1
    assert loader.begun.wait(SECONDS)
    cache.sync.close(drain_timeout=0.01)
    assert not cache.sync.reader.flights.drain(0)
    closing = threading.Thread(target=cache.sync.close)
    closing.start()
    assert closing.is_alive()
    loader.release.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert load() == 2


# What is decorated


class Shop:
    made = 0

    def __init__(self, name: str = "shop") -> None:
        self.name = name

    @tidings.cached(namespace="shop")
    def total(self, day: int, *, tax: bool = False) -> int:
        Shop.made += 1
        return day + tax

    @tidings.cached(namespace="shop", key="{self.name}:{day}", tags=["shop:{self.name}"])
    def own(self, day: int) -> str:
        Shop.made += 1
        return f"{self.name}{day}"

    @tidings.cached(namespace="shop")
    @classmethod
    def of_class(cls, day: int) -> str:
        Shop.made += 1
        return f"{cls.__name__}{day}"

    @staticmethod
    @tidings.cached(namespace="shop")
    def static(day: int) -> int:
        Shop.made += 1
        return day


@pytest.fixture
def shop(cache):
    tidings.set_cache(cache)
    Shop.made = 0
    yield Shop()
    tidings.set_cache(None)


def test_methods_share_entries_between_instances_unless_self_is_asked_for(shop):
    other = Shop("other")
    assert [shop.total(1), other.total(day=1), Shop.total(shop, 1)] == [1, 1, 1]
    assert Shop.made == 1
    assert [shop.own(1), other.own(1), shop.own(1)] == ["shop1", "other1", "shop1"]
    assert Shop.made == 3
    assert shop.total.key(1) == other.total.key(1, tax=False) != shop.total.key(1, tax=True)
    assert shop.own.key(1) != other.own.key(1)


def test_bound_methods_have_everything_that_the_function_has(shop):
    assert shop.total(1, tax=True) == 2
    assert shop.total.refresh(1, tax=True) == 2
    assert Shop.made == 2
    shop.total.invalidate(1, tax=True)
    assert shop.total(1, tax=True) == 2
    assert Shop.made == 3
    assert shop.total.uncached(1) == 1
    assert Shop.made == 4
    assert shop.total.__name__ == "total"
    assert inspect.signature(Shop.static) == inspect.signature(Shop.static.uncached)


def test_class_methods_and_static_methods(shop):
    assert [Shop.of_class(1), shop.of_class(1), Shop.static(2), shop.static(2)] == ["Shop1", "Shop1", 2, 2]
    assert Shop.made == 2
    Shop.of_class.invalidate(1)
    shop.static.invalidate(2)
    assert [shop.of_class(1), Shop.static(2)] == ["Shop1", 2]
    assert Shop.made == 4


def test_the_wrong_order_of_decorators_is_refused_with_the_right_one():
    def method(cls):
        return 1

    with pytest.raises(ConfigurationError, match="put @staticmethod above @cached"):
        tidings.cached()(staticmethod(method))
    with pytest.raises(ConfigurationError, match="put @cached above @classmethod"):
        classmethod(tidings.cached()(method))


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_generator_function_is_refused(kind):
    def generator():
        yield 1

    async def async_generator():
        yield 1

    with pytest.raises(ConfigurationError, match="a generator's values cannot be cached; return a list"):
        tidings.cached()(generator if kind == "generator" else async_generator)


def test_a_generator_that_a_plain_function_returns_is_refused_to_its_caller(cache):
    @cache.cached()
    def load():
        return (number for number in [1, 2])

    with pytest.raises(EncodeError, match=r"load: .*generator"):
        load()


@pytest.mark.filterwarnings("error")
def test_a_coroutine_that_a_plain_function_returns_is_refused_with_the_cure(cache):
    async def really() -> int:
        return 1

    @cache.cached()
    def load():
        return really()

    with pytest.raises(EncodeError, match=r"load: .*coroutine.*async def"):
        load()
    with pytest.raises(EncodeError, match=r"coroutine.*async def"):
        cache.sync.get_or_set("k", really)


@pytest.mark.parametrize("thing", [partial(int, "1"), Loader(), 7])
def test_what_has_no_name_is_refused_at_decoration(thing):
    with pytest.raises(ConfigurationError, match="def"):
        tidings.cached()(thing)


def test_the_default_cache_is_whichever_is_current_at_the_call(cache):
    calls = []

    @tidings.cached()
    def load() -> int:
        calls.append(1)
        return len(calls)

    first, second = Cache("memory://"), Cache("memory://")
    try:
        tidings.set_cache(first)
        assert [load(), load()] == [1, 1]
        tidings.set_cache(second)
        assert load() == 2
        tidings.set_cache(first)
        assert load() == 1
    finally:
        tidings.set_cache(None)


def test_refresh_loads_and_fills_although_the_entry_is_fresh(cache):
    calls = []

    @cache.cached()
    def load(x: int) -> int:
        calls.append(x)
        return len(calls)

    assert isinstance(load, CachedSyncFunction)
    assert [load(1), load(1), load.refresh(1), load(1)] == [1, 1, 2, 2]
    assert load.uncached(1) == 3


@pytest.mark.parametrize("local_ttl", [0, 60])
def test_every_way_of_invalidating_reaches_a_plain_function(cache, local_ttl):
    calls = []

    @cache.cached(namespace="prices", tags=["article:{article}"], key="{article}", local_ttl=local_ttl)
    def price(article: int) -> int:
        calls.append(article)
        return len(calls)

    sync = cache.sync
    ways = [
        partial(price.invalidate, 1),
        partial(sync.invalidate, tags=["article:1"]),
        partial(sync.invalidate, namespaces=["prices"]),
        partial(sync.invalidate_namespace, "prices"),
        partial(sync.invalidate_tags, "else", "article:1"),
        sync.invalidate_all,
        partial(sync.invalidate_pattern, "*price:1:*", namespace="prices"),
        partial(sync.invalidate_pattern, "*", namespace=None),
    ]
    for number, invalidate in enumerate(ways, 1):
        assert [price(1), price(1)] == [number, number]
        invalidate()
    assert price(1) == len(ways) + 1
    sync.invalidate_tags("article:2")
    sync.invalidate_namespace("default")
    assert price(1) == len(ways) + 1


# The methods of `cache.sync`


def test_get_set_delete(cache):
    sync = cache.sync
    assert sync.get("k") is None
    assert sync.get("k", default=7) == 7
    sync.set("k", {"a": [1, None]}, ttl=60, tags=["t"])
    assert sync.get("k") == {"a": [1, None]}
    assert sync.get("k", namespace="other") is None
    assert [sync.delete("k"), sync.delete("k")] == [True, False]
    assert sync.get("k") is None
    sync.set("k", None)
    assert sync.get("k", default=7) is None
    sync.set("k", 1, tags=["t"])
    sync.invalidate_tags("t")
    assert sync.get("k") is None


class Model(BaseModel):
    id: int


def test_get_or_set_keeps_what_the_function_returns_as_its_type(cache):
    calls = []

    def load() -> Model:
        calls.append(1)
        return Model(id=len(calls))

    sync = cache.sync
    assert [sync.get_or_set("k", load, tags=["t"]), sync.get_or_set("k", load, tags=["t"])] == [Model(id=1)] * 2
    sync.invalidate(tags=["t"])
    assert sync.get_or_set("k", load, tags=["t"], ttl=60) == Model(id=2)


class Renamed(Event, type="test.sync.renamed"):
    number: int


def test_publish_appends_to_the_stream(url, client):
    cache = Cache(url)
    receipt = cache.sync.publish(Renamed(number=1), subject="s")
    [(entry, fields)] = client.xrange("events")
    assert entry.decode() == receipt.id
    assert (fields[b"type"], fields[b"subject"]) == (b"test.sync.renamed", b"s")
    assert fields[b"id"].decode() == receipt.event_id
    cache.sync.close()


def test_health_of_a_server_that_answers_and_of_one_that_does_not(cache):
    found = cache.sync.health()
    assert found["ok"] is True
    assert found["latency_ms"] >= 0
    away = Cache(UNREACHABLE, operation_timeout=0.2)
    found = away.sync.health()
    assert found["ok"] is False
    assert "127.0.0.1:1" in found["error"]
    away.sync.close()


def test_stats_are_the_same_on_both_sides_and_can_be_reset(cache):
    cache.sync.set("k", 1)
    assert cache.sync.get("k") == 1
    assert cache.sync.stats() == cache.stats()
    assert cache.stats()["default"]["hits"] == 1
    cache.sync.reset_stats()
    assert cache.stats()["default"]["hits"] == 0


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_a_closed_cache_can_be_used_again_and_closed_again(cache):
    @cache.cached(local_ttl=60)
    def load() -> int:
        return 1

    for _ in range(3):
        assert load() == 1
        cache.sync.set("k", 1)
        assert cache.sync.get("k") == 1
        cache.sync.close()
        cache.sync.close()


def test_without_redis_reads_load_and_what_must_not_fail_silently_raises():
    cache, calls = Cache(UNREACHABLE, operation_timeout=0.5), []

    @cache.cached(local_ttl=60)
    def load() -> int:
        calls.append(1)
        return len(calls)

    with capture_logs() as logs:
        assert [load(), load(), load.refresh()] == [1, 2, 3]
        assert cache.sync.get("k", default=7) == 7
        assert cache.sync.get_or_set("k", lambda: 5) == 5
        assert cache.sync.get_many(["a"], default=0) == {"a": 0}
        for write in (
            partial(cache.sync.invalidate_tags, "t"),
            partial(cache.sync.invalidate_pattern, "*"),
            partial(cache.sync.delete, "k"),
            load.invalidate,
        ):
            with pytest.raises(InvalidationError):
                write()
        with pytest.raises(PublishError):
            cache.sync.publish(Renamed(number=1))
        with pytest.raises(UnavailableError):
            cache.sync.set("k", 1)
        with pytest.raises(UnavailableError):
            cache.sync.set_many({"k": 1})
    assert [entry["event"] for entry in logs].count("cache_unavailable") == 1
    cache.sync.close()


# Both sides of one cache


@pytest.mark.parametrize("local_ttl", [0, 60])
async def test_both_sides_see_each_others_values_and_invalidations(url, local_ttl):
    """One function for coroutines and one for threads under one name are not one key; values set by hand are."""
    async with Cache(url) as here, Cache(url) as there:
        await here.set("k", 1)
        assert await asyncio.to_thread(there.sync.get, "k") == 1
        await asyncio.to_thread(there.sync.set, "k", 2)
        assert await here.get("k") == 2
        assert await asyncio.to_thread(here.sync.delete, "k")
        assert await there.get("k") is None

        calls = []

        @here.cached(tags=["row"], local_ttl=local_ttl)
        async def coroutine() -> int:
            calls.append("coroutine")
            return len(calls)

        @here.cached(tags=["row"], local_ttl=local_ttl)
        def plain() -> int:
            calls.append("plain")
            return len(calls)

        assert [await coroutine(), await asyncio.to_thread(plain)] == [1, 2]
        await asyncio.to_thread(here.sync.invalidate_tags, "row")
        assert [await coroutine(), await asyncio.to_thread(plain)] == [3, 4]
        await here.invalidate_tags("row")
        assert [await coroutine(), await asyncio.to_thread(plain)] == [5, 6]
        await asyncio.to_thread(plain.invalidate)
        assert [await coroutine(), await asyncio.to_thread(plain)] == [5, 7]


async def test_a_thread_waits_for_the_load_of_a_coroutine_elsewhere_and_the_other_way_round(url, loader):
    """The lease knows nothing of the two sides."""
    calls = []
    async with Cache(url, lease_ttl=600) as here, Cache(url, lease_ttl=600) as there:
        started, release = asyncio.Event(), asyncio.Event()

        async def load() -> int:
            calls.append("coroutine")
            started.set()
            await release.wait()
            return 1

        def load_in_thread() -> int:
            calls.append("thread")
            return loader()

        first = asyncio.create_task(here.get_or_set("a", load))
        await started.wait()
        second = asyncio.create_task(asyncio.to_thread(there.sync.get_or_set, "a", load_in_thread))
        await asyncio.sleep(0.05)
        release.set()
        assert [await first, await second] == [1, 1]
        first = asyncio.create_task(asyncio.to_thread(there.sync.get_or_set, "b", load_in_thread))
        await asyncio.to_thread(loader.begun.wait, SECONDS)
        second = asyncio.create_task(here.get_or_set("b", load))
        await asyncio.sleep(0.05)
        loader.release.set()
        assert [await first, await second] == [1, 1]
    assert calls == ["coroutine", "thread"]


# What ends a thread in the middle


def test_a_load_with_a_timeout_that_exits_is_carried_out_once_and_raised(cache):
    loads = []

    @cache.cached(ttl=60, timeout=SECONDS, stale_if_error=60, tags=["t"])
    def load() -> str:
        loads.append(len(loads))
        if 1 < len(loads) < 5:  # or it would never end
            raise SystemExit(3)
        return "v"

    load()
    cache.sync.invalidate_tags("t")
    with pytest.raises(SystemExit):
        load()
    assert loads == [0, 1]


def test_what_ends_a_load_on_a_thread_of_its_own_is_raised_to_everybody_who_waits(pool):
    flights, begun, release = ThreadFlights(), threading.Event(), threading.Event()

    def load():
        begun.set()
        assert release.wait(SECONDS)
        raise KeyboardInterrupt

    def join():
        with pytest.raises(KeyboardInterrupt):
            flights.join("k", load, SECONDS)
        return True

    waiting = [pool.submit(join) for _ in range(5)]
    assert begun.wait(SECONDS)
    release.set()
    assert all(waiter.result(SECONDS) for waiter in waiting)
    assert "k" not in flights


@pytest.mark.parametrize("step", ["_fly", "_start"])
def test_an_interrupt_between_the_taking_off_and_the_load_holds_nobody_up(step):
    flights = ThreadFlights()

    def interrupt(frame, _event, _arg):
        if frame.f_code.co_name == step:
            sys.settrace(None)
            raise KeyboardInterrupt

    def join():
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                flights.join("k", lambda: 1, SECONDS if step == "_start" else None)
        finally:
            sys.settrace(None)

    interrupted = threading.Thread(target=join)
    interrupted.start()
    interrupted.join()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(flights.join, "k", lambda: 2, SECONDS).result(SECONDS) == (2, True)


def test_threads_and_log_lines_name_a_load_by_its_key_alone():
    flights, names = ThreadFlights(), []
    ticket = Ticket("cache:n:f:1", b"lineage", (b"token",))
    flights.join(ticket, lambda: names.append(threading.current_thread().name), SECONDS)
    assert names == ["tidings-cache:n:f:1"]


# The same names on both sides


def test_every_method_of_the_asynchronous_side_is_there_and_takes_the_same():
    own = {"from_settings", "key_of", "target", "reader", "aclose"}
    for name, method in inspect.getmembers(Cache, inspect.isfunction):
        if not name.startswith("_") and name not in own:
            assert list(inspect.signature(getattr(SyncCache, name)).parameters) == list(
                inspect.signature(method).parameters
            )


def test_functions_and_resources_are_decorated_from_the_blocking_side_too(cache):
    with cache.sync as blocking:
        calls = []
        user = blocking.resource("user", "user_id")

        @user.cache_read()
        def read(user_id: int) -> int:
            calls.append(user_id)
            return user_id

        @blocking.cached()
        def load() -> int:
            return len(calls)

        assert [read(1), read(1), load(), calls] == [1, 1, 1, [1]]
        assert load.cache is cache


async def test_a_pattern_is_invalidated_in_the_default_cache():
    before = tidings.set_cache(Cache("memory://"))
    try:
        await tidings.get_cache().set("a:1", 1)
        await tidings.invalidate_pattern("a:*")
        assert await tidings.get_cache().get("a:1") is None
    finally:
        tidings.set_cache(before)


def test_a_load_may_raise_stop_iteration(url):
    with Cache(url).sync as cache:

        @cache.cached(ttl=60)
        def load() -> int:
            return next(iter([]))

        with pytest.raises(StopIteration):
            load()
