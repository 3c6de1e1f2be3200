"""`@cached` as a service uses it, in memory and on a server."""

import asyncio
import contextvars
import copy
import functools
import inspect
import pickle
import random
from dataclasses import dataclass
from datetime import date, timedelta

import pytest
import tidings
from pydantic import BaseModel
from structlog.testing import capture_logs
from tidings import Cache
from tidings.errors import (
    ArgumentError,
    ConfigurationError,
    EncodeError,
    InvalidationError,
    TemplateError,
    UnavailableError,
)

UNREACHABLE = "redis://app:s3cret@127.0.0.1:1/0"


@pytest.fixture(params=["memory", "server"])
async def cache(request):
    url = "memory://" if request.param == "memory" else request.getfixturevalue("url")
    async with Cache(url) as made:
        yield made


class Counting:
    """A loader that counts its calls, and says which one answered."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)
        return len(self.calls)


@pytest.fixture
def count():
    return Counting()


async def test_none_is_a_value(cache, count):
    @cache.cached()
    async def find(user_id: int) -> str | None:
        count(user_id)

    assert [await find(1), await find(1)] == [None, None]
    assert len(count.calls) == 1


class Profile(BaseModel):
    id: int
    since: date


@dataclass
class Page:
    rows: list[Profile]
    next: str | None


async def test_results_come_back_as_their_annotated_types(cache, count):
    @cache.cached()
    async def page(number: int) -> tuple[Page, dict[date, Profile]]:
        count(number)
        profile = Profile(id=number, since=date(2026, 1, 1))
        return Page([profile], None), {date(2026, 1, 1): profile}

    assert await page(1) == await page(1)
    assert isinstance((await page(1))[0], Page)
    assert len(count.calls) == 1


async def test_an_unannotated_result_that_would_change_is_refused_to_the_caller(cache):
    @cache.cached()
    async def load():
        return {"at": date(2026, 1, 1)}

    with pytest.raises(EncodeError, match=r"load: .* date at \$\['at'\] came back as str; annotate the return type"):
        await load()


async def test_a_caller_that_changes_its_result_changes_nobody_elses(cache, count):
    release = asyncio.Event()

    @cache.cached()
    async def load() -> list[int]:
        await release.wait()
        return [count()]

    waiting = [asyncio.create_task(load()) for _ in range(3)]
    await until(lambda: cache.reader().flights.waiting == 3)
    release.set()
    results = await asyncio.gather(*waiting)
    results[0].append(99)
    assert results[1:] == [[1], [1]]
    assert await load() == [1]


async def until(condition):
    """Let everything else run until the condition holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_one_load_runs_for_all_who_ask_at_once(cache, count):
    @cache.cached()
    async def load(user_id: int) -> int:
        await asyncio.sleep(0.01)
        return count(user_id)

    assert await asyncio.gather(*(load(1) for _ in range(20)), *(load(user_id=1) for _ in range(20))) == [1] * 40


async def test_cancelling_one_caller_cancels_neither_the_load_nor_the_others(cache, count):
    started, release = asyncio.Event(), asyncio.Event()

    @cache.cached()
    async def load() -> int:
        started.set()
        await release.wait()
        return count()

    first = asyncio.create_task(load())
    await started.wait()
    second = asyncio.create_task(load())
    await until(lambda: cache.reader().flights.waiting == 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()
    assert await second == 1
    assert await load() == 1


async def test_a_load_whose_only_caller_has_gone_still_fills(cache, count):
    started, release = asyncio.Event(), asyncio.Event()

    @cache.cached()
    async def load() -> int:
        started.set()
        await release.wait()
        return count()

    caller = asyncio.create_task(load())
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    release.set()
    await cache.reader().flights.drain()
    assert await load() == 1


async def test_a_load_that_fails_fails_for_all_its_callers_and_is_tried_again_by_the_next(cache, count):
    release = asyncio.Event()

    @cache.cached()
    async def load() -> int:
        await release.wait()
        if count() == 1:
            raise KeyError("no such row")
        return 7

    waiting = [asyncio.create_task(load()) for _ in range(3)]
    await until(lambda: cache.reader().flights.waiting == 3)
    release.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [KeyError] * 3
    assert await load() == 7


async def test_a_load_that_fails_after_its_callers_have_gone_is_logged(cache):
    started, release = asyncio.Event(), asyncio.Event()

    @cache.cached()
    async def load() -> int:
        started.set()
        await release.wait()
        raise KeyError("nobody hears this")

    caller = asyncio.create_task(load())
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with capture_logs() as logs:
        release.set()
        await cache.reader().flights.drain()
        await until(lambda: logs)
    assert [entry["event"] for entry in logs] == ["load_failed_unheard"]


async def test_a_load_sees_its_first_callers_context(cache):
    request_id = contextvars.ContextVar("request_id", default="none")

    @cache.cached()
    async def load() -> str:
        return request_id.get()

    request_id.set("r1")
    assert await load() == "r1"


async def test_a_function_that_asks_for_itself_does_not_wait_for_itself(cache):
    depth = []

    @cache.cached()
    async def load(n: int) -> int:
        depth.append(n)
        return await load(n) if len(depth) < 3 else n

    async with asyncio.timeout(5):
        assert await load(1) == 1


async def test_namespaces_and_tags_and_everything_invalidate_what_they_name(cache, count):
    @cache.cached(namespace="users", tags=["user:{user_id}", "users"])
    async def profile(user_id: int) -> int:
        return count(user_id)

    @cache.cached(namespace="stats")
    async def total() -> int:
        return count()

    async def loads(action):
        await profile(1), await profile(2), await total()
        before = len(count.calls)
        await action
        await profile(1), await profile(2), await total()
        return len(count.calls) - before

    assert await loads(cache.invalidate_tags("user:1")) == 1
    assert await loads(cache.invalidate_tags("users")) == 2
    assert await loads(cache.invalidate_namespace("users")) == 2
    assert await loads(cache.invalidate_namespace("stats")) == 1
    assert await loads(cache.invalidate(namespaces=["stats"], tags=["user:2"])) == 2
    assert await loads(cache.invalidate_all()) == 3
    assert await loads(profile.invalidate(1)) == 1
    assert await loads(cache.invalidate_tags("nobody")) == 0
    assert await loads(cache.invalidate()) == 0


async def test_invalidating_from_a_thread_is_the_same(cache, count):
    @cache.cached(namespace="users", tags=["user:{user_id}"])
    async def profile(user_id: int) -> int:
        return count(user_id)

    for invalidate in (
        lambda: cache.sync.invalidate_tags("user:1"),
        lambda: cache.sync.invalidate_namespace("users"),
        cache.sync.invalidate_all,
        lambda: cache.sync.invalidate(tags=["user:1"]),
    ):
        before = await profile(1)
        await asyncio.to_thread(invalidate)
        assert await profile(1) == before + 1


async def test_refresh_loads_although_the_entry_is_fresh_and_fills(cache, count):
    @cache.cached()
    async def load() -> int:
        return count()

    assert [await load(), await load.refresh(), await load()] == [1, 2, 2]


async def test_uncached_is_the_function_itself(cache, count):
    @cache.cached()
    async def load() -> int:
        return count()

    assert [await load(), await load.uncached(), await load()] == [1, 2, 1]


async def test_a_ttl_ends_an_entry(cache, count):
    @cache.cached(ttl=timedelta(milliseconds=1))
    async def load() -> int:
        return count()

    first = await load()
    async with asyncio.timeout(5):
        while await load() == first:
            await asyncio.sleep(0)


async def test_methods_share_entries_between_instances_unless_self_is_asked_for(cache, count):
    class Repository:
        def __init__(self, tenant):
            self.tenant = tenant

        @cache.cached(tags=["user:{user_id}"])
        async def shared(self, user_id: int) -> int:
            return count(user_id)

        @cache.cached(key="{self.tenant}:{user_id}")
        async def own(self, user_id: int) -> int:
            return count(user_id)

    a, b = Repository("a"), Repository("b")
    assert [await a.shared(1), await b.shared(1), await b.shared(user_id=1)] == [1, 1, 1]
    assert [await a.own(1), await b.own(1), await a.own(1)] == [2, 3, 2]
    assert b.own.key(1).startswith("cache:default:Repository.own:b:1:")
    assert inspect.iscoroutinefunction(b.own) or asyncio.iscoroutinefunction(b.own)
    await a.shared.invalidate(1)
    assert await b.shared(1) == 4
    assert await b.shared.refresh(1) == 5
    assert await b.shared.uncached(1) == 6


async def test_static_and_class_methods_are_cached_too(cache, count):
    class Repository:
        @staticmethod
        @cache.cached()
        async def fixed(n: int) -> int:
            return count(n)

        @cache.cached()
        @classmethod
        async def of_class(cls, n: int) -> int:
            assert cls is Repository
            return count(n)

    assert [await Repository.fixed(1), await Repository().fixed(1)] == [1, 1]
    assert [await Repository.of_class(1), await Repository().of_class(1)] == [2, 2]
    await Repository.of_class.invalidate(1)
    assert await Repository.of_class(1) == 3


async def test_a_key_template_names_the_entry_readably_and_alone(cache):
    @cache.cached(namespace="users", key="{user_id}:{team}")
    async def profile(user_id: str | None, team: str, verbose: bool = False) -> str:
        return f"{user_id!r} {team!r}"

    assert profile.key("7", "red").startswith("cache:users:profile:7:red:")
    assert profile.key("7", "red") == profile.key("7", team="red", verbose=True)
    assert await profile("a:b", "c") == "'a:b' 'c'"
    assert await profile("a", "b:c") == "'a' 'b:c'"
    assert await profile(None, "c") == "None 'c'"
    assert await profile("null", "c") == "'null' 'c'"


async def test_two_functions_of_one_name_do_not_share_entries(cache):
    def get(kind):
        @cache.cached(key="{row_id}")
        async def get(row_id: int) -> str:
            return kind

        get.signature.identity = f"{kind}:get"  # as if from another module
        return get

    assert [await get("users")(1), await get("orders")(1)] == ["users", "orders"]


async def test_tags_may_be_computed_from_all_arguments_by_name(cache, count):
    @cache.cached(tags=lambda *, user_id, team="none", **_: [f"user:{user_id}", f"team:{team}"])
    async def profile(user_id: int, team: str = "red") -> int:
        return count(user_id)

    await profile(1)
    await cache.invalidate_tags("team:red")
    assert await profile(1) == 2


async def test_a_decorated_function_looks_like_the_function(cache):
    @cache.cached()
    async def profile(user_id: int) -> int:
        """Say who."""
        return user_id

    assert profile.__name__ == "profile"
    assert profile.__doc__ == "Say who."
    assert inspect.signature(profile) == inspect.signature(profile.uncached)
    assert inspect.iscoroutinefunction(profile) or asyncio.iscoroutinefunction(profile)


async def test_a_value_over_the_limit_is_served_and_not_cached_and_said_once(url):
    loads = []
    async with Cache(url, max_value_bytes=10) as cache:

        @cache.cached()
        async def load() -> str:
            loads.append(1)
            return "x" * 20

        with capture_logs() as logs:
            assert [await load(), await load()] == ["x" * 20] * 2
        assert len(loads) == 2
        assert [(entry["event"], entry["bytes"]) for entry in logs] == [("value_too_large", 23)]
        assert cache.stats()["default"]["too_large"] == 2


async def test_a_load_slower_than_its_vacancy_is_served_and_not_cached(url):
    async with Cache(url, vacancy_ttl=1) as cache:
        client = cache.reader().store.client

        @cache.cached()
        async def load() -> int:
            await client.delete(load.key())  # as its expiry would
            return 1

        assert await load() == 1
        await cache.reader().flights.drain()
        assert cache.stats()["default"]["refused_fills"] == 1


async def test_bytes_that_no_longer_decode_are_a_miss_and_are_replaced(cache, count):
    async def old() -> str:
        return "text"

    await cache.get_or_set("k", old)

    async def new() -> list[int]:
        return [count()]

    assert [await cache.get_or_set("k", new), await cache.get_or_set("k", new)] == [[1], [1]]
    assert cache.stats()["default"]["undecodable"] == 1


async def test_redis_unreachable_reads_load_and_say_so_once_without_the_password():
    async with Cache(UNREACHABLE) as cache:

        @cache.cached()
        async def load() -> int:
            return 1

        with capture_logs() as logs:
            assert [await load(), await load(), await load.refresh()] == [1, 1, 1]
            assert await cache.get("k", default="none") == "none"
        assert [entry["event"] for entry in logs] == ["cache_unavailable"]
        assert "s3cret" not in str(logs)
        assert cache.stats()["default"]["errors"] == 1, "who finds it away does not ask again"
        assert cache.stats()["default"]["direct"] == 4
        health = await cache.health()
        assert not health["ok"]
        assert "s3cret" not in str(health)


async def test_redis_unreachable_invalidations_raise():
    async with Cache(UNREACHABLE) as cache:

        @cache.cached()
        async def load() -> int:
            return 1

        for invalidation in (
            cache.invalidate_all(),
            cache.invalidate_tags("a"),
            cache.invalidate_namespace("a"),
            cache.delete("k"),
            load.invalidate(),
        ):
            with pytest.raises(InvalidationError):
                await invalidation
        with pytest.raises(InvalidationError):
            cache.sync.invalidate_all()
        with pytest.raises(UnavailableError):
            await cache.set("k", 1)


async def test_get_set_delete_by_hand(cache):
    assert await cache.get("k", default="none") == "none"
    await cache.set("k", {"a": [1, None]}, tags=["t"], namespace="n")
    assert await cache.get("k", namespace="n") == {"a": [1, None]}
    assert await cache.get("k") is None
    await cache.invalidate_tags("t")
    assert await cache.get("k", namespace="n") is None
    await cache.set("k", None)
    assert await cache.get("k", default="none") is None
    assert [await cache.delete("k"), await cache.delete("k")] == [True, False]
    with pytest.raises(EncodeError):
        await cache.set("k", {1, 2})


async def test_get_or_set_keeps_what_the_function_returns(cache, count):
    async def load() -> tuple[int, date]:
        return count(), date(2026, 1, 1)

    assert await cache.get_or_set("k", load, tags=["t"]) == (1, date(2026, 1, 1))
    assert await cache.get_or_set("k", load, tags=["t"]) == (1, date(2026, 1, 1))
    await cache.invalidate_tags("t")
    assert (await cache.get_or_set("k", load, tags=["t"]))[0] == 2


async def test_counters_say_what_happened(cache, count):
    @cache.cached(namespace="n")
    async def load() -> int:
        return count()

    await load(), await load()
    await cache.invalidate_namespace("n")
    await load()
    await cache.reader().flights.drain()
    counted = {name: cache.stats()["n"][name] for name in ("hits", "misses", "invalidated", "loads", "fills")}
    assert counted == {"hits": 1, "misses": 1, "invalidated": 1, "loads": 2, "fills": 2}
    cache.reset_stats()
    assert cache.stats()["n"]["fills"] == 0


# What is wrong at decoration


def decorate(function, **options):
    return Cache("memory://").cached(**options)(function)


async def find(user_id: int) -> int: ...


async def ticks():
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "error", "says"),
    [
        (find, {"tags": ["user:{id}"]}, TemplateError, r"test_cached:find, tags: .*names 'id'; there is: user_id"),
        (find, {"tags": ["user:{}"]}, TemplateError, "no argument's name"),
        (find, {"tags": ["user:{{user_id}}"]}, TemplateError, "doubled braces"),
        (find, {"key": "{id}"}, TemplateError, "find, key"),
        (find, {"key": "same for all"}, ConfigurationError, "all calls would share one entry"),
        (find, {"tags": "user:{user_id}"}, ConfigurationError, r"write tags=\['user:\{user_id\}'\]"),
        (find, {"namespace": "a:b"}, ConfigurationError, "namespace 'a:b'"),
        (find, {"ttl": 0}, ConfigurationError, "ttl must be a positive number"),
        (find, {"ttl": float("nan")}, ConfigurationError, "ttl must be a positive number"),
        (find, {"tags": ["t"] * 254}, ConfigurationError, "at most 253"),
        (ticks, {}, ConfigurationError, "a generator's values cannot be cached"),
        (staticmethod(find), {}, ConfigurationError, "put @staticmethod above @cached"),
    ],
)
def test_a_mistake_is_an_error_at_decoration_that_names_the_function(function, options, error, says):
    with pytest.raises(error, match=says):
        decorate(function, **options)


async def test_an_argument_that_cannot_be_part_of_a_key_is_refused_at_the_call(cache):
    @cache.cached()
    async def load(session: object) -> int:
        return 1

    with pytest.raises(ArgumentError, match="the argument 'session'"):
        await load(object())


# The default cache


@pytest.fixture
def default(monkeypatch):
    for name in ("TIDINGS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    tidings.set_cache(None)
    yield
    tidings.set_cache(None)


async def test_the_default_is_whatever_is_current_at_the_call(default):
    loads = []

    @tidings.cached(tags=["t"])
    async def load() -> int:
        loads.append(1)
        return len(loads)

    first = tidings.configure("memory://")
    assert [await load(), await load()] == [1, 1]
    second = tidings.configure("memory://")
    assert load.cache is second
    assert await load() == 2
    tidings.set_cache(first)
    assert await load() == 1
    await tidings.invalidate_tags("t")
    assert await load() == 3
    await tidings.invalidate(namespaces=["default"])
    await tidings.invalidate_namespace("default")
    await tidings.invalidate_all()
    assert await load() == 4


async def test_without_a_url_it_caches_in_memory_and_says_so_once(default, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with capture_logs() as logs:
        assert tidings.get_cache() is tidings.get_cache()
    assert [entry["event"] for entry in logs] == ["cache_in_memory"]


async def test_the_environment_configures_it(default, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("TIDINGS_PREFIX", "shop")
    monkeypatch.setenv("TIDINGS_DEFAULT_TTL", "60")
    cache = tidings.get_cache()
    assert cache.keys.prefix == "shop"
    assert cache.settings.default_ttl == 60
    assert cache.telemetry.server == "redis://127.0.0.1:1/0"
    monkeypatch.setenv("TIDINGS_URL", "memory://")
    tidings.set_cache(None)
    assert tidings.get_cache().telemetry.server.startswith("memory:")


def test_every_problem_of_the_environment_is_listed_at_once(default, monkeypatch):
    monkeypatch.setenv("TIDINGS_DEFAULT_TTL", "soon")
    monkeypatch.setenv("TIDINGS_PREFIX", "a b")
    with pytest.raises(ConfigurationError, match=r"(?s)TIDINGS_PREFIX.*TIDINGS_DEFAULT_TTL") as caught:
        tidings.get_cache()
    assert "soon" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "foo", "http://x", "redis://h:port", "redis+cluster://h/1"])
def test_a_url_that_is_none_is_a_configuration_error(url):
    with pytest.raises(ConfigurationError):
        Cache(url)


def test_a_cache_made_by_hand_does_not_read_the_environment(monkeypatch):
    monkeypatch.setenv("TIDINGS_PREFIX", "shop")
    assert Cache("memory://").keys.prefix == ""


async def test_one_cache_serves_two_event_loops_one_after_the_other(url):
    cache = Cache(url)

    @cache.cached()
    async def load() -> int:
        return 1

    async def use():
        try:
            return await load()
        finally:
            await cache.aclose()

    assert [await asyncio.to_thread(asyncio.run, use()) for _ in range(2)] == [1, 1]
    assert cache.stats()["default"]["hits"] == 1


async def test_a_cancellation_during_a_read_is_never_lost(url):
    """redis-py's own socket timeout loses it before Python 3.12, when it comes as a command ends."""
    async with Cache(url) as cache:
        await cache.set("k", 1)
        chance = random.Random(3)

        async def read_for_ever() -> None:
            while True:
                await cache.get("k")

        for _ in range(100):
            task = asyncio.create_task(read_for_ever())
            await asyncio.sleep(chance.uniform(0, 0.002))
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=2)
            assert done
            assert task.cancelled()


# What reviewers found


async def test_text_that_no_server_can_hold_is_refused_and_harms_nobody_else(cache):
    @cache.cached(tags=["user:{user}"])
    async def inbox(user: str) -> str:
        return f"mail of {user}"

    users = [f"user{n}" for n in range(6)]
    calls = [inbox(users[0]), inbox("\ud800"), *(inbox(user) for user in users[1:])]
    first, wrong, *others = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(wrong, ArgumentError)
    assert [first, *others] == [f"mail of {user}" for user in users]
    assert [await inbox(user) for user in users] == [first, *others]


@pytest.mark.parametrize("tag", [["user:1"], 1, None, "", "\ud800"])
async def test_a_tag_that_is_none_is_refused_and_not_taken_for_its_text(cache, tag):
    with pytest.raises(ArgumentError):
        await cache.invalidate_tags(tag)
    with pytest.raises(ArgumentError):
        await cache.invalidate(tags=[tag])


async def test_computed_tags_that_are_one_string_are_refused(cache):
    @cache.cached(tags=lambda user: f"user:{user}")
    async def load(user: int) -> int:
        return user

    with pytest.raises(ArgumentError, match="where a list of tags belongs"):
        await load(1)


async def test_annotations_of_parameters_may_exist_for_the_type_checker_alone(cache, count):
    @cache.cached(key="{user_id}")
    async def load(session: "NowhereDefined", user_id: int) -> int:  # noqa: F821 the point
        return count(user_id)

    assert [await load(object(), 1), await load(object(), 1)] == [1, 1]


async def test_a_refresh_is_not_undone_by_an_older_load_that_ends_after_it(cache):
    row, started, release = ["old"], asyncio.Event(), asyncio.Event()

    @cache.cached()
    async def load() -> str:
        value = row[0]
        if value == "old":
            started.set()
            await release.wait()
        return value

    older = asyncio.create_task(load())
    await started.wait()
    row[0] = "new"
    assert await load.refresh() == "new"
    release.set()
    assert await older == "old"
    assert await load() == "new"


async def test_a_refresh_leaves_the_value_it_refreshes_to_readers_meanwhile(cache, count):
    started, release = asyncio.Event(), asyncio.Event()

    @cache.cached()
    async def load() -> int:
        value = count()
        if value == 2:
            started.set()
            await release.wait()
        return value

    await load()
    refresh = asyncio.create_task(load.refresh())
    await started.wait()
    assert await load() == 1
    release.set()
    assert [await refresh, await load()] == [2, 2]


async def test_facts_of_hostile_bytes_are_a_miss(url):
    async with Cache(url) as cache:
        await cache.set("k", 1, tags=["t"])
        key = cache.keys.entry("default", "k")
        client = cache.reader().store.client
        raw = await client.get(key)
        for tags in (b'["t"', b'[""]', b"[1]", b"{}", b'["\\ud800"]', b"9"):
            await client.set(key, raw.replace(b'["t"]', tags.ljust(5)))
            assert await cache.get("k", default="none") == "none"


async def test_a_value_set_by_hand_keeps_its_tokens_as_long_as_itself(url):
    async with Cache(url, token_ttl=60) as cache:
        await cache.set("k", 1, ttl=86_400, tags=["t"])
        assert await cache.reader().store.client.ttl("token:tag:t") > 86_400


async def test_a_server_that_refuses_writes_is_said_once(url, client):
    async with Cache(url) as cache:

        @cache.cached()
        async def load() -> int:
            return 1

        await load()
        await cache.invalidate_all()
        client.config_set("maxmemory", "1")
        try:
            with capture_logs() as logs:
                assert [await load() for _ in range(5)] == [1] * 5
        finally:
            client.config_set("maxmemory", "0")
        assert [entry["event"] for entry in logs] == ["cache_refused"]


async def test_get_or_set_takes_functions_whose_annotations_are_text(cache):
    namespace = {"Profile": Profile, "date": date}
    source = "from __future__ import annotations\nasync def load() -> Profile: return Profile(id=1, since=date.today())"
    exec(source, namespace)  # noqa: S102 the test's own source
    assert isinstance(await cache.get_or_set("k", namespace["load"]), Profile)
    assert isinstance(await cache.get_or_set("k", namespace["load"]), Profile)


# --- mistakes that are found at decoration, and say what to change


async def _always(**_: object) -> bool:
    return False


class _Awaited:
    async def __call__(self, **_: object) -> bool:
        return False


@pytest.mark.parametrize("given", [_always, _Awaited(), functools.partial(_always)])
@pytest.mark.parametrize("option", ["when", "tags", "result_tags"])
def test_a_callable_that_would_have_to_be_awaited_is_refused(option, given):
    """A coroutine is always true: `when` would never send a call past the cache."""
    with pytest.raises(ConfigurationError, match=rf"find: {option} is an async function"):

        @tidings.cached(**{option: given})
        async def find(user_id: int) -> int:
            return user_id


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tags": None}, "tags must be a list of templates or a callable, not None"),
        ({"tags": 5}, "tags must be a list of templates or a callable, not 5"),
        ({"tags": [1]}, "a tag is a template over the arguments, not 1"),
        ({"key": 5}, "key must be a template over the arguments, not 5"),
        ({"namespace": None}, "a namespace is a string, not None"),
        ({"namespace": "a b"}, "the namespace 'a b' must be"),
    ],
)
def test_an_option_of_the_wrong_type_names_the_function(options, said):
    with pytest.raises(ConfigurationError, match=f"find: {said}"):

        @tidings.cached(**options)
        async def find(user_id: int) -> int:
            return user_id


def test_an_unknown_option_is_named_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"cached\(\) got an unexpected option 'tag'; there is: .*tags"):
        tidings.cached(tag=["user:{user_id}"])


async def test_a_decorator_without_parentheses_says_so(cache):
    async def find(user_id: int) -> int:
        return user_id

    for bare in (tidings.cached, cache.cached):
        for decorated in (find, classmethod(find)):
            with pytest.raises(ConfigurationError, match=r"find: write @cached\(\) with parentheses"):
                bare(decorated)
        with pytest.raises(ConfigurationError, match="options by name"):
            bare("users")


async def test_a_generator_of_tags_serves_every_function_that_is_decorated(cache):
    decorator = cache.cached(tags=(template for template in ["user:{user_id}"]))
    for kind in ("first", "second"):

        async def find(user_id: int) -> int:
            return user_id

        find.__qualname__ = kind
        assert decorator(find).call_of(1).tags == ("user:1",)


def test_a_function_that_is_cached_already_is_refused():
    class Users:
        @tidings.cached()
        async def find(self, user_id: int) -> int:
            return user_id

        @tidings.cached()
        @classmethod
        def count(cls) -> int:
            return 1

    @tidings.cached()
    def plain(user_id: int) -> int:
        return user_id

    @functools.wraps(plain)
    def wrapping(user_id: int) -> int:
        return plain(user_id)

    for again in (Users.find, Users().find, Users.count, plain, wrapping):
        with pytest.raises(ConfigurationError, match="it is cached already"):
            tidings.cached()(again)


async def test_callables_that_return_no_list_of_tags_are_named(cache):
    @cache.cached(tags=lambda **_: None)
    async def nothing(user_id: int) -> int:
        return user_id

    @cache.cached(result_tags=lambda _: [5])
    async def number(user_id: int) -> int:
        return user_id

    with pytest.raises(ArgumentError, match=r"nothing: tags returned None where a list"):
        await nothing(1)
    with pytest.raises(ArgumentError, match=r"number: result_tags returned 5 among its tags"):
        await number(1)


async def test_values_and_arguments_that_contain_themselves_are_refused(cache):
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]

    @cache.cached()
    async def find(which: object) -> list[object]:
        return loop if which == "loop" else deep

    for argument in (loop, deep):
        with pytest.raises(ArgumentError, match="find: an argument is nested too deep, or contains itself"):
            await find(argument)
    for which in ("loop", "deep"):
        with pytest.raises(EncodeError, match="find"):
            await find(which)


async def test_entries_by_hand_name_their_key_in_errors(cache):
    async def load() -> object:
        return object()

    with pytest.raises(EncodeError, match=r"get_or_set\('k'\)"):
        await cache.get_or_set("k", load)
    with pytest.raises(EncodeError, match=r"set\('k'\)"):
        await cache.set("k", object())
    for tags in (None, 5):
        with pytest.raises(ConfigurationError, match="k: tags must be a list of strings"):
            await cache.get_or_set("k", load, tags=tags)
        with pytest.raises(ConfigurationError, match="k: tags must be a list of strings"):
            await cache.set("k", 1, tags=tags)
    with pytest.raises(ArgumentError, match="k: a tag is a string, not 1"):
        await cache.set("k", 1, tags=[1])
    with pytest.raises(ConfigurationError, match="a namespace is a string, not None"):
        await cache.get("k", namespace=None)


@tidings.cached()
async def importable(user_id: int) -> int:
    return user_id


class Importable:
    def __init__(self, tenant: str) -> None:
        self.tenant = tenant

    @tidings.cached(key="{self.tenant}:{user_id}")
    async def find(self, user_id: int) -> int:
        return user_id

    @tidings.cached(key="{self.tenant}:{user_id}")
    def find_blocking(self, user_id: int) -> int:
        return user_id

    @tidings.cached()
    @classmethod
    async def of_class(cls, user_id: int) -> int:
        return user_id


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 the test's own bytes


def test_a_cached_function_is_pickled_by_its_name_and_copied_as_itself():
    for function in (importable, Importable.find, Importable.find_blocking):
        assert pickled(function) is function
        assert copy.copy(function) is function
        assert copy.deepcopy({"handler": function})["handler"] is function


def test_a_cached_method_is_pickled_with_its_instance():
    users = Importable("acme")
    for method in (users.find, users.find_blocking):
        for made in (pickled(method), copy.copy(method), copy.deepcopy(method)):
            assert made.key(1) == method.key(1)
    assert pickled(Importable.of_class).key(1) == Importable.of_class.key(1)


def test_a_cached_function_that_nobody_can_import_is_not_pickled():
    @tidings.cached()
    def find() -> int:
        return 1

    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(find)
