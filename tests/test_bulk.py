"""Many keys at once: one exchange for what is there, one call of the loader for what is missing; on both sides."""

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs
from tidings import Cache
from tidings.errors import ArgumentError, ConfigurationError, EncodeError

SECONDS = 10


class Sides:
    """A cache's bulk methods, whichever side is asked, as coroutines; loaders are plain functions."""

    def __init__(self, cache: Cache, side: str) -> None:
        self.cache = cache
        self._async = side == "async"

    async def get_many(self, keys, **options):
        if self._async:
            return await self.cache.get_many(keys, **options)
        return await asyncio.to_thread(self.cache.sync.get_many, keys, **options)

    async def set_many(self, values, **options):
        if self._async:
            return await self.cache.set_many(values, **options)
        return await asyncio.to_thread(self.cache.sync.set_many, values, **options)

    async def get_or_set_many(self, keys, loader: Callable, **options):
        if not self._async:
            return await asyncio.to_thread(self.cache.sync.get_or_set_many, keys, loader, **options)

        async def load(missing):
            return await asyncio.to_thread(loader, missing)

        load.__annotations__ = getattr(loader, "__annotations__", {})
        return await self.cache.get_or_set_many(keys, load, **options)


@pytest.fixture(params=["async", "sync"])
def side(request):
    return request.param


@pytest.fixture(params=["memory", "server"])
async def many(request, side):
    url = "memory://" if request.param == "memory" else request.getfixturevalue("url")
    async with Cache(url) as cache:
        yield Sides(cache, side)


@pytest.fixture
async def on_server(url, side):
    async with Cache(url) as cache:
        yield Sides(cache, side)


@pytest.fixture
def two_caches(url, side):
    """Two caches on one server that know nothing of each other, as in two processes."""
    return [Sides(Cache(url, lease_ttl=600), side) for _ in range(2)]


class Loader:
    """Loads what it is asked for, and remembers what that was."""

    def __init__(self, left_out=()):
        self.asked = []
        self.left_out = set(left_out)

    def __call__(self, missing: list[str]) -> dict[str, str]:
        self.asked.append(missing)
        return {key: f"{key}{len(self.asked)}" for key in missing if key not in self.left_out}


class Paused(Loader):
    """The same, and says that it has begun and ends when it is let."""

    def __init__(self, left_out=()):
        super().__init__(left_out)
        self.begun = threading.Event()
        self.release = threading.Event()

    def __call__(self, missing: list[str]) -> dict[str, str]:
        loaded = super().__call__(missing)
        self.begun.set()
        assert self.release.wait(SECONDS)
        return loaded


def commands(client) -> dict[str, int]:
    """How often each command was called by clients since the last `config resetstat`, but for our own."""
    found = {name.removeprefix("cmdstat_"): stats["calls"] for name, stats in client.info("commandstats").items()}
    return {name: calls for name, calls in found.items() if not re.match(r"info|config|client|hello|select", name)}


# Reading and storing


async def test_values_come_back_by_key_in_the_order_asked_and_the_rest_is_the_default(many):
    await many.set_many({"a": 1, "b": None, "c": {"x": [1]}}, ttl=60, tags=["t"])
    assert await many.get_many(["c", "none", "b", "a", "c"], default=7) == {
        "c": {"x": [1]},
        "none": 7,
        "b": None,
        "a": 1,
    }
    assert list(await many.get_many(["c", "a"])) == ["c", "a"]
    assert await many.cache.get("a") == 1
    assert await many.get_many(["a"], namespace="other") == {"a": None}


async def test_no_keys_are_no_question(many):
    loader = Loader()
    assert await many.get_many([]) == {}
    assert await many.get_or_set_many([], loader) == {}
    await many.set_many({})
    assert loader.asked == []


async def test_one_string_is_no_list_of_keys(many):
    with pytest.raises(ConfigurationError, match=r"keys is the string 'abc'; write \['abc'\]"):
        await many.get_many("abc")
    with pytest.raises(ConfigurationError, match=r"keys is the string 'abc'; write \['abc'\]"):
        await many.get_or_set_many("abc", Loader())
    with pytest.raises(ConfigurationError, match="tags"):
        await many.set_many({"a": 1}, tags="t")
    with pytest.raises(ConfigurationError, match="tags"):
        await many.get_or_set_many(["a"], Loader(), tags="t")
    with pytest.raises(ConfigurationError, match="tags"):
        await many.get_or_set_many(["a"], Loader(), tags=lambda key: key)


@pytest.mark.parametrize("keys", [["a", ""], ["a", 1], ["a", None]])
async def test_a_key_that_is_no_text_is_refused_before_anything_is_loaded(many, keys):
    loader = Loader()
    for ask in (many.get_many(keys), many.get_or_set_many(keys, loader), many.set_many(dict.fromkeys(keys, 1))):
        with pytest.raises(ArgumentError):
            await ask
    assert loader.asked == []


async def test_keys_and_tags_may_be_any_iterable_and_count_for_every_key(many):
    await many.set_many({"a": 1, "b": 2}, tags=(tag for tag in ["t", "u"]))
    loader = Loader()
    await many.get_or_set_many((key for key in "cd"), loader, tags=iter(["t"]))
    await many.cache.invalidate_tags("t")
    assert await many.get_many(iter("abcd")) == dict.fromkeys("abcd")


async def test_a_value_that_json_would_change_stores_none_of_them(many):
    with pytest.raises(EncodeError):
        await many.set_many({"a": 1, "b": object()})
    assert await many.get_many(["a", "b"]) == {"a": None, "b": None}


async def test_every_tag_and_the_namespace_invalidates_what_was_stored_together(many):
    for invalidate in (
        lambda: many.cache.invalidate_tags("t"),
        lambda: many.cache.invalidate_namespace("default"),
        many.cache.invalidate_all,
    ):
        await many.set_many({"a": 1, "b": 2}, tags=["t"])
        assert await many.get_many(["a", "b"]) == {"a": 1, "b": 2}
        await invalidate()
        assert await many.get_many(["a", "b"]) == {"a": None, "b": None}


# Loading


async def test_what_is_missing_is_loaded_at_once_and_kept(many):
    loader = Loader()
    await many.set_many({"b": "kept", "d": "kept"})
    assert await many.get_or_set_many(["a", "b", "c", "d", "a"], loader) == {
        "a": "a1",
        "b": "kept",
        "c": "c1",
        "d": "kept",
    }
    assert loader.asked == [["a", "c"]]
    assert list(await many.get_or_set_many(["d", "c", "b", "a"], loader)) == ["d", "c", "b", "a"]
    assert loader.asked == [["a", "c"]]


async def test_what_the_loader_leaves_out_is_left_out_and_asked_for_again(many):
    loader = Loader(left_out=["b"])
    assert await many.get_or_set_many(["a", "b"], loader) == {"a": "a1"}
    assert await many.get_or_set_many(["a", "b"], loader) == {"a": "a1"}
    assert loader.asked == [["a", "b"], ["b"]]


async def test_what_the_loader_gives_besides_is_not_kept(many):
    def load(missing: list[str]) -> dict[str, int]:
        return {**dict.fromkeys(missing, 1), "other": 2}

    assert await many.get_or_set_many(["a"], load) == {"a": 1}
    assert await many.get_many(["other"]) == {"other": None}


async def test_a_loader_that_returns_no_mapping_is_told_so(many):
    def load(missing):
        return [1] * len(missing)

    with pytest.raises(EncodeError, match="returned a list, not a mapping of keys to values"):
        await many.get_or_set_many(["a"], load)


class Model(BaseModel):
    id: int


async def test_values_are_of_the_type_that_the_loader_promises(many):
    def load(missing: list[str]) -> dict[str, Model]:
        return {key: Model(id=len(missing)) for key in missing}

    for _ in range(2):
        assert await many.get_or_set_many(["a", "b"], load) == {"a": Model(id=2), "b": Model(id=2)}


async def test_a_value_that_would_come_back_changed_is_refused_and_nothing_is_kept(many):
    def load(missing):
        return {key: Model(id=1) for key in missing}

    with pytest.raises(EncodeError, match="annotate the return type"):
        await many.get_or_set_many(["a", "b"], load)
    assert await many.get_or_set_many(["a", "b"], Loader()) == {"a": "a1", "b": "b1"}


async def test_tags_may_be_a_callable_of_the_key(many):
    loader = Loader()

    async def read():
        return await many.get_or_set_many(["a", "b"], loader, tags=lambda key: [f"row:{key}", "all"])

    await read()
    await many.cache.invalidate_tags("row:b")
    assert await read() == {"a": "a1", "b": "b2"}
    await many.cache.invalidate_tags("all")
    assert await read() == {"a": "a3", "b": "b3"}
    assert loader.asked == [["a", "b"], ["b"], ["a", "b"]]


async def test_a_ttl_ends_what_was_loaded(on_server, client):
    await on_server.get_or_set_many(["a"], Loader(), ttl=60)
    [key] = client.keys("cache:*")
    assert 0 < client.pttl(key) <= 60_000


async def test_an_invalidation_during_the_load_keeps_its_values_from_being_served_afterwards(many):
    loader = Paused()
    asked = asyncio.create_task(many.get_or_set_many(["a", "b", "c"], loader, tags=lambda key: [f"row:{key}"]))
    await asyncio.to_thread(loader.begun.wait, SECONDS)
    await many.cache.invalidate_tags("row:b")
    await many.cache.delete("c")
    loader.release.set()
    assert await asked == {"a": "a1", "b": "b1", "c": "c1"}
    again = Loader()
    assert await many.get_or_set_many(["a", "b", "c"], again, tags=lambda key: [f"row:{key}"]) == {
        "a": "a1",
        "b": "b1",
        "c": "c1",
    }
    assert again.asked == [["b", "c"]]


async def test_who_starts_after_an_invalidation_is_not_served_by_a_bulk_load_from_before_it(many):
    old, new = Paused(), Loader()
    new.asked.append("the first was the old loader's")
    before = asyncio.create_task(many.get_or_set_many(["a", "b"], old, tags=["t"]))
    await asyncio.to_thread(old.begun.wait, SECONDS)
    await many.cache.invalidate_tags("t")
    assert await many.get_or_set_many(["a", "b"], new, tags=["t"]) == {"a": "a2", "b": "b2"}
    old.release.set()
    assert await before == {"a": "a1", "b": "b1"}
    # What stands now, whoever filled last, is not served if it is from before.
    assert await many.get_or_set_many(["a"], new, tags=["t"]) in ({"a": "a2"}, {"a": "a3"})


async def test_a_load_that_raises_is_heard_and_leaves_nobody_waiting(two_caches):
    """Its leases end with it, or the next call would wait for them."""
    here, elsewhere = two_caches

    def load(missing: list[str]) -> dict[str, str]:
        raise LookupError("no such rows")

    with pytest.raises(LookupError, match="no such rows"):
        await here.get_or_set_many(["a", "b"], load)
    assert await elsewhere.get_or_set_many(["a", "b"], Loader()) == {"a": "a1", "b": "b1"}
    for sides in two_caches:
        await sides.cache.aclose()


async def test_keys_that_were_left_out_leave_nobody_waiting(two_caches):
    here, elsewhere = two_caches
    assert await here.get_or_set_many(["a", "b"], Loader(left_out=["a", "b"])) == {}
    assert await elsewhere.get_or_set_many(["a", "b"], Loader()) == {"a": "a1", "b": "b1"}
    for sides in two_caches:
        await sides.cache.aclose()


async def test_overlapping_loads_of_two_processes_load_each_key_once(two_caches, eventually, client):
    here, elsewhere = two_caches
    first, second = Paused(), Loader()
    asked = asyncio.create_task(here.get_or_set_many(["a", "b"], first))
    await asyncio.to_thread(first.begun.wait, SECONDS)
    overlapping = asyncio.create_task(elsewhere.get_or_set_many(["b", "c"], second))
    await eventually(lambda: second.asked)
    await eventually(lambda: any("xread" in entry["cmd"] for entry in client.client_list()), "a wait for the lease")
    assert not overlapping.done()
    first.release.set()
    assert await asked == {"a": "a1", "b": "b1"}
    assert await overlapping == {"b": "b1", "c": "c1"}
    assert (first.asked, second.asked) == ([["a", "b"]], [["c"]])
    for sides in two_caches:
        await sides.cache.aclose()


async def test_what_another_process_fails_to_load_is_loaded_in_one_more_call(two_caches, eventually, client):
    here, elsewhere = two_caches
    first, second = Paused(left_out=["b", "c"]), Loader()
    asked = asyncio.create_task(here.get_or_set_many(["b", "c"], first))
    await asyncio.to_thread(first.begun.wait, SECONDS)
    waiting = asyncio.create_task(elsewhere.get_or_set_many(["b", "c"], second))
    await eventually(lambda: any("xread" in entry["cmd"] for entry in client.client_list()), "a wait for the lease")
    first.release.set()
    assert await asked == {}
    assert await waiting == {"b": "b1", "c": "c1"}
    assert sorted(key for keys in second.asked for key in keys) == ["b", "c"]
    for sides in two_caches:
        await sides.cache.aclose()


async def test_what_was_filled_between_looking_and_opening_is_not_loaded_again(two_caches):
    """The other process's load ended in between: its lease is free, and its value is there."""
    here, elsewhere = two_caches
    loader, store = Loader(), elsewhere.cache.reader().store if elsewhere._async else elsewhere.cache.sync.reader.store
    run, batches = store.run, []

    def overtaken(operation, **options):
        batches.append(operation)
        if len(batches) == 2:  # the first is the look
            filled.set()
            assert go_on.wait(SECONDS)
        return run(operation, **options)

    filled, go_on = threading.Event(), threading.Event()

    async def overtaken_async(operation, **options):
        batches.append(operation)
        if len(batches) == 2:
            filled.set()
            await asyncio.to_thread(go_on.wait, SECONDS)
        return await run(operation, **options)

    store.run = overtaken_async if elsewhere._async else overtaken
    asked = asyncio.create_task(elsewhere.get_or_set_many(["a", "b"], loader))
    await asyncio.to_thread(filled.wait, SECONDS)
    await here.get_or_set_many(["a"], Loader())
    go_on.set()
    assert await asked == {"a": "a1", "b": "b1"}
    assert loader.asked == [["b"]]
    for sides in two_caches:
        await sides.cache.aclose()


async def test_one_exchange_reads_any_number_of_hits(on_server, client):
    keys = [str(number) for number in range(100)]
    await on_server.set_many(dict.fromkeys(keys, 1))
    await on_server.get_many(keys)
    client.config_resetstat()
    assert len(await on_server.get_many(keys)) == 100
    assert set(commands(client)) == {"mget"}
    client.config_resetstat()
    loader = Loader()
    assert len(await on_server.get_or_set_many(keys, loader)) == 100
    assert set(commands(client)) == {"mget"}
    assert loader.asked == []


async def test_redis_away_loads_all_of_them_directly(side):
    sides, loader = Sides(Cache("redis://127.0.0.1:1/0", operation_timeout=0.5), side), Loader()
    with capture_logs():
        assert await sides.get_or_set_many(["a", "b"], loader, tags=["t"]) == {"a": "a1", "b": "b1"}
        assert await sides.get_or_set_many(["a", "b"], loader) == {"a": "a2", "b": "b2"}
        assert await sides.get_many(["a", "b"], default=0) == {"a": 0, "b": 0}
    assert loader.asked == [["a", "b"], ["a", "b"]]
    assert sides.cache.stats()["default"]["direct"] >= 4
    await sides.cache.aclose()


async def test_redis_that_goes_away_in_the_middle_loads_what_is_missing_and_no_more(new_server, side):
    server = new_server()
    sides, loader = Sides(Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=1), side), Loader()
    await sides.set_many({"a": "kept"})

    def load(missing: list[str]) -> dict[str, str]:
        server.stop()
        return loader(missing)

    with capture_logs():
        assert await sides.get_or_set_many(["a", "b"], load) == {"a": "kept", "b": "b1"}
    assert loader.asked == [["b"]]
    await sides.cache.aclose()


async def test_cancelling_the_caller_does_not_cancel_the_load(url, eventually):
    async with Cache(url) as cache:
        started, release, calls = asyncio.Event(), asyncio.Event(), []

        async def load(missing: list[str]) -> dict[str, int]:
            calls.append(missing)
            started.set()
            await release.wait()
            return dict.fromkeys(missing, 1)

        asked = asyncio.create_task(cache.get_or_set_many(["a", "b"], load))
        await started.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        release.set()
        assert await cache.get_or_set_many(["a", "b"], load) == {"a": 1, "b": 1}
        assert calls == [["a", "b"]]


def test_threads_that_ask_for_overlapping_keys_get_their_own_answers(url):
    cache = Cache(url)
    barrier = threading.Barrier(8)

    def ask(number: int) -> dict[str, str]:
        barrier.wait(SECONDS)
        return cache.sync.get_or_set_many([str(number), str(number + 1), "both"], Loader())

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, range(8)))
    assert results == [{str(n): f"{n}1", str(n + 1): f"{n + 1}1", "both": "both1"} for n in range(8)]
    cache.sync.close()
