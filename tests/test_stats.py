"""What `stats()` says: counters that are exact under threads, by namespace and by function."""

import ast
import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from inspect import getsource
from pathlib import Path

import pytest
import tidings
from pydantic import BaseModel
from tidings import Cache
from tidings.counting import AGE_SAMPLE, Counts, Histogram
from tidings.errors import EncodeError
from tidings.telemetry import Telemetry

SECONDS = 20


@pytest.fixture(params=["memory", "server"])
def cache(request):
    made = Cache("memory://" if request.param == "memory" else request.getfixturevalue("url"))
    yield made
    made.sync.close()


@pytest.fixture
def switching():
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(number: int, work) -> None:
    barrier = threading.Barrier(number)

    def run(index: int):
        barrier.wait(SECONDS)
        work(index)

    with ThreadPoolExecutor(number) as pool:
        list(pool.map(run, range(number)))


# Exact under threads


@pytest.mark.usefixtures("switching")
def test_counting_by_one_loses_nothing_under_threads():
    """Without a lock: see `Counts` for why that is so."""
    counts, each = Counts(), 100_000

    def work(_):
        for _ in range(each):
            counts.hits += 1
            counts.bytes_read += 7

    in_threads(8, work)
    assert (counts.hits, counts.bytes_read) == (8 * each, 7 * 8 * each)


@pytest.mark.usefixtures("switching")
def test_a_histogram_loses_nothing_under_threads():
    histogram, each = Histogram(), 30_000

    def work(_):
        for value in range(each):
            histogram.add(value)

    in_threads(8, work)
    assert (histogram.count, histogram.total) == (8 * each, 8 * sum(range(each)))


@pytest.mark.parametrize("path", sorted(Path(tidings.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_nothing_is_called_in_a_line_that_counts(path):
    """``counts.bytes += len(data)`` loses what others add while a thread is switched behind the call."""
    counters = {name for name in Counts.__slots__ if not name.endswith(("_us", "_s"))}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute) and node.target.attr in counters:
            called = [part for part in ast.walk(node.value) if isinstance(part, ast.Call | ast.Await)]
            assert not called, ast.unparse(node)


@pytest.mark.usefixtures("switching")
def test_every_call_of_eight_threads_is_counted_once(cache):
    each = 300

    @cache.cached(namespace="n")
    def load(key: int) -> str:
        return "x" * 100

    @cache.cached(namespace="n", local_ttl=600)
    def local(key: int) -> int:
        return key

    @cache.cached(namespace="n", when=lambda key: key < 0)
    def bypassed(key: int) -> int:
        return key

    for key in range(5):
        load(key)
        local(key)
    assert cache.stats()["n"]["fills"] == 10
    cache.reset_stats()

    def work(_):
        for number in range(each):
            load(number % 5)
            local(number % 5)
            bypassed(number)

    in_threads(8, work)
    found = cache.stats()["n"]
    by_name = {label.rpartition(".")[2]: counts for label, counts in found["functions"].items()}
    assert by_name["load"]["hits"] == 8 * each
    assert by_name["load"]["bytes_read"] == 8 * each * len('J"' + "x" * 100 + '"')
    assert by_name["local"]["hits"] + by_name["local"]["local_hits"] == 8 * each
    assert by_name["bypassed"]["bypassed"] == 8 * each
    assert (found["hits"] + found["local_hits"], found["bypassed"]) == (2 * 8 * each, 8 * each)
    assert (found["misses"], found["loads"], found["invalidated"], found["errors"]) == (0, 0, 0, 0)
    assert found["hit_rate"] == 1.0


@pytest.mark.usefixtures("switching")
def test_threads_that_meet_a_function_first_at_once_count_together():
    telemetry = Telemetry("server")

    def work(_):
        for number in range(2000):
            telemetry.of("n", f"f{number}").hits += 1

    in_threads(8, work)
    found = telemetry.snapshot()["n"]
    assert found["hits"] == 16_000
    assert {counts["hits"] for counts in found["functions"].values()} == {8}


# What is counted


def test_a_miss_a_hit_an_invalidation_and_a_reset(cache):
    @cache.cached(namespace="n", tags=["t"])
    def load(key: int) -> int:
        return key

    assert load(1) == load(1) == load(1) == 1
    cache.sync.invalidate_tags("t")
    assert load(1) == 1
    found = cache.stats()["n"]
    names = ("misses", "hits", "invalidated", "loads", "fills", "refused_fills", "stale", "local_hits", "load_errors")
    assert [found[name] for name in names] == [1, 2, 1, 2, 2, 0, 0, 0, 0]
    assert found["hit_rate"] == 0.5
    assert found["bytes_filled"] > 0
    [own] = found["functions"].values()
    assert own == {name: value for name, value in found.items() if name != "functions"}
    cache.reset_stats()
    found = cache.stats()["n"]
    assert [found[name] for name in names] == [0] * len(names)
    assert found["hit_rate"] is None
    assert load(1) == 1
    assert cache.stats()["n"]["hits"] == 1


def test_functions_are_counted_apart_and_together_by_namespace(cache):
    @cache.cached(namespace="a")
    def first() -> int:
        return 1

    @cache.cached(namespace="a")
    def second() -> int:
        return 2

    @cache.cached(namespace="b")
    def third() -> int:
        return 3

    for function, times in ((first, 3), (second, 2), (third, 1)):
        for _ in range(times):
            function()
    found = cache.stats()
    assert list(found) == ["a", "b"]
    assert {label.rpartition(".")[2]: own["hits"] for label, own in found["a"]["functions"].items()} == {
        "first": 2,
        "second": 1,
    }
    assert (found["a"]["hits"], found["a"]["misses"], found["b"]["misses"]) == (3, 2, 1)


def test_a_refused_fill_and_one_that_is_too_large(cache):
    small = Cache("memory://", max_value_bytes=10)

    @cache.cached(tags=["t"])
    def overtaken() -> int:
        cache.sync.invalidate_tags("t")
        cache.sync.delete("none")
        overtaken.invalidate()
        return 1

    @small.cached()
    def large() -> str:
        return "x" * 100

    assert overtaken() == 1
    assert large() == "x" * 100
    assert (cache.stats()["default"]["refused_fills"], cache.stats()["default"]["fills"]) == (1, 0)
    assert (small.stats()["default"]["too_large"], small.stats()["default"]["fills"]) == (1, 0)


def test_loads_that_raise_and_results_that_cannot_be_kept(cache):
    @cache.cached()
    def broken() -> int:
        raise LookupError

    @cache.cached()
    def strange():
        return object()

    with pytest.raises(LookupError):
        broken()
    with pytest.raises(EncodeError):
        strange()
    found = cache.stats()["default"]
    assert (found["loads"], found["load_errors"], found["fills"], found["misses"]) == (2, 2, 0, 2)


def test_stale_values_and_refreshes_in_the_background(cache, until):
    @cache.cached(max_staleness=600)
    def load() -> int:
        return 1

    load()
    cache.sync.invalidate_namespace("default")
    load()
    until(lambda: cache.stats()["default"]["fills"] == 2)
    found = cache.stats()["default"]
    assert (found["stale"], found["refreshes"], found["loads"], found["invalidated"]) == (1, 1, 2, 1)


def test_a_stale_value_is_served_and_counts_once_in_the_rate(cache, until):
    """A read is a hit, a stale value, or a load: the rate says how many were not loads."""

    @cache.cached(max_staleness=600)
    def load() -> int:
        return 1

    load()
    cache.sync.invalidate_namespace("default")
    load()
    until(lambda: cache.stats()["default"]["fills"] == 2)
    load()
    assert cache.stats()["default"]["hit_rate"] == round(2 / 3, 4)


def test_what_is_read_without_redis(until):
    away = Cache("redis://127.0.0.1:1/0", operation_timeout=0.5)

    @away.cached()
    def load() -> int:
        return 1

    load()
    load()
    found = away.stats()["default"]
    assert (found["direct"], found["errors"], found["hits"]) == (2, 1, 0)
    away.sync.close()


class Model(BaseModel):
    id: int


def test_bytes_that_are_no_value_of_the_type(url, client):
    cache = Cache(url)

    @cache.cached()
    def load() -> Model:
        return Model(id=1)

    load()
    key = load.key()
    stored = client.get(key)
    client.set(key, stored.replace(b'{"id":1}', b'{"id":"x"}'), ex=60)
    assert load() == Model(id=1)
    found = cache.stats()["default"]
    assert found["undecodable"] == 1
    assert (found["hits"], found["loads"]) == (0, 2)
    cache.sync.close()


def test_load_times_and_the_age_of_hits(cache):
    @cache.cached()
    def load(key: int) -> int:
        threading.Event().wait(0.02)
        return key

    for _ in range(AGE_SAMPLE + 1):
        load(1)
    found = cache.stats()["default"]
    assert 20 <= found["load_ms"]["p50"] <= found["load_ms"]["p99"] < 2000
    assert 0 <= found["age_at_hit_s"]["p50"] <= found["age_at_hit_s"]["p99"] < 60
    [counts] = cache.telemetry._counts.values()
    assert (counts.load_us.count, counts.age_s.count) == (1, 1)


async def test_both_sides_count_into_one(url):
    async with Cache(url) as cache:

        @cache.cached(namespace="n")
        async def coroutine() -> int:
            return 1

        @cache.cached(namespace="n")
        def plain() -> int:
            return 1

        for _ in range(3):
            await coroutine()
            await asyncio.to_thread(plain)
        await cache.set("k", 1, namespace="n")
        await cache.get_many(["k", "none"], namespace="n")
        found = cache.stats()["n"]
        assert (found["hits"], found["misses"]) == (5, 3)
        assert cache.sync.stats() == cache.stats()
        cache.sync.reset_stats()
        assert cache.stats()["n"]["hits"] == 0


async def test_hits_on_the_local_tier(cache):
    @cache.cached(local_ttl=600)
    async def load() -> list[int]:
        return [1]

    async def is_local() -> bool:
        before = cache.stats()["default"]["local_hits"]
        await load()
        return cache.stats()["default"]["local_hits"] > before

    await load()
    while not await is_local():
        await asyncio.sleep(0.01)
    cache.reset_stats()
    for _ in range(10):
        await load()
    found = cache.stats()["default"]
    assert (found["local_hits"], found["hits"], found["hit_rate"]) == (10, 0, 1.0)
    await cache.aclose()


def test_summaries_of_histograms_are_right_to_a_factor_of_two():
    histogram = Histogram()
    assert (histogram.count, histogram.quantile(0.5)) == (0, 0)
    for value in range(1, 1001):
        histogram.add(value)
    histogram.add(-5)
    assert histogram.count == 1001
    assert 500 <= histogram.quantile(0.5) < 1000
    assert 990 <= histogram.quantile(0.99) < 2000
    other = Histogram()
    other.add(1 << 60)
    histogram.merge(other)
    assert histogram.count == 1002
    histogram.reset()
    assert (histogram.count, histogram.total) == (0, 0)


def test_every_counter_is_documented():
    source = getsource(Counts)
    for name in Counts.__slots__:
        before = source.partition(f"    {name}: ")[0].splitlines()[-1]
        assert before.strip().startswith(("#:", "bytes_read")), name


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_while_a_thread_held_the_lock_counts():
    telemetry = Telemetry("server")
    with telemetry._lock:
        child = os.fork()
        if child == 0:
            held = telemetry._lock.locked()
            os._exit(1 if held else telemetry.of("ns", "new").hits)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
