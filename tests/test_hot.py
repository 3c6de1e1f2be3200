"""Which calls are read most: what is noted of a process's reads, and what becomes of it in Redis."""

import asyncio
import os
from datetime import date

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs
from tidings import Cache, cached, set_cache
from tidings.calls import decode_call
from tidings.errors import ConfigurationError, DecodeError
from tidings.hot import CALLS_KEPT, FLUSH_SECONDS, MOST_GATHERED, WINDOW_SECONDS, HotCalls, hottest, parsed, window_at
from tidings.keys import Keyspace
from tidings.settings import Settings


class Reader(BaseModel):
    name: str


@cached(namespace="hot", local_ttl=60)
async def by_id(user_id: int, since: date = date(2026, 1, 1)) -> int:
    return user_id


@cached(namespace="hot")
def by_id_sync(user_id: int) -> int:
    return user_id


@cached(namespace="hot-other")
async def by_model(reader: Reader) -> str:
    return reader.name


@cached(namespace="hot-other")
async def by_anything(value) -> int:
    return len(value)


class Service:
    @cached(namespace="hot-other")
    async def method(self, number: int) -> int:
        return number


@pytest.fixture
async def noting(url):
    """A cache in which every read is noted."""
    async with Cache(url, hot_sample=1) as cache:
        set_cache(cache)
        yield cache
    set_cache(None)


def noted(client):
    """Return every noted call with its count."""
    found = {}
    for key in client.scan_iter("hot:*"):
        for member, count in client.zrange(key, 0, -1, withscores=True):
            found[member.decode()] = found.get(member.decode(), 0) + count
    return found


async def sent(cache):
    """Send what has been noted now, and not in a few seconds."""
    await cache.reader().drive(cache.hot.flush())


# What is noted


async def test_reads_of_all_kinds_are_noted_misses_and_hits_of_redis_and_of_the_local_tier(noting, client):
    reads = 0
    while reads < 3 or not noting.stats()["hot"]["local_hits"]:  # which there are when the tail is alive
        await by_id(7)
        reads += 1
    await by_id(8)
    await sent(noting)
    counts = {decode_call(by_id, parsed(call.encode())[1])[0][0]: count for call, count in noted(client).items()}
    assert counts == {7: reads, 8: 1}


async def test_a_noted_call_is_the_text_from_which_a_worker_makes_the_same_call(noting, client):
    await by_id(user_id=7, since=date(2026, 11, 20))
    await sent(noting)
    (call,) = noted(client)
    identity, arguments = parsed(call.encode())
    assert identity == by_id.identity
    args, kwargs = decode_call(by_id, arguments)
    assert by_id.key(*args, **kwargs) == by_id.key(7, date(2026, 11, 20))


async def test_an_argument_that_can_change_is_noted_as_it_was_when_it_was_read(noting, client):
    reader = Reader(name="ada")
    await by_model(reader)
    reader.name = "grace"
    await sent(noting)
    (call,) = noted(client)
    assert decode_call(by_model, parsed(call.encode())[1])[0] == (Reader(name="ada"),)


async def test_calls_that_no_worker_can_warm_are_not_noted(noting, client):
    @cached(namespace="hot-other")
    async def inner(number: int) -> int:
        return number

    await inner(1)
    await Service().method(1)
    await by_anything("x" * 5000)
    await sent(noting)
    assert noted(client) == {}


def test_reads_of_threads_are_noted_and_sent_in_the_background(url, client, until):
    cache = Cache(url, hot_sample=1)
    set_cache(cache)
    try:
        by_id_sync(7)
        until(lambda: noted(client), "the note of the first read")
    finally:
        set_cache(None)
        cache.sync.close()


async def test_the_first_read_is_sent_at_once_and_the_next_seconds_are_gathered(noting, client, eventually):
    await by_id(7)
    await eventually(lambda: noted(client), "the first note")
    for _ in range(20):
        await by_id(8)
    await asyncio.sleep(0)
    assert len(noted(client)) == 1
    await sent(noting)
    assert sorted(noted(client).values()) == [1, 20]


async def test_a_fraction_of_the_reads_is_noted_whatever_their_rhythm(url):
    """Two calls in turn: a countdown of 100 would meet the same one each time."""
    async with Cache(url, hot_sample=0.05) as cache:
        set_cache(cache)
        for _ in range(5000):
            await by_id(1)
            await by_id(2)
        found = sorted(one.reads for one in cache.hot._gathered.values())
        set_cache(None)
    first, second = found
    assert 150 < first <= second < 350


async def test_a_fraction_of_zero_notes_nothing(url, client):
    async with Cache(url, hot_sample=0) as cache:
        set_cache(cache)
        for _ in range(50):
            await by_id(7)
        await sent(cache)
        set_cache(None)
    assert noted(client) == {}


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), True])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(ConfigurationError, match="HOT_SAMPLE"):
        Cache("redis://localhost", hot_sample=fraction)


async def test_in_memory_nothing_is_noted():
    async with Cache("memory://", hot_sample=1) as cache:
        set_cache(cache)
        for _ in range(50):
            await by_id(7)
        set_cache(None)
        assert not cache.hot._gathered


async def test_statistics_do_not_show_the_countdown_and_survive_a_reset(noting, client):
    await by_id(7)
    assert "sample_at" not in noting.stats()["hot"]
    noting.reset_stats()
    for _ in range(3):
        await by_id(7)
    await sent(noting)
    assert sum(noted(client).values()) == 4


# What it may cost


async def test_a_process_gathers_so_many_calls_and_no_more(noting):
    for number in range(MOST_GATHERED + 50):
        noting.hot._due_at = float("inf")
        await by_id(number)
    assert len(noting.hot._gathered) <= MOST_GATHERED


async def test_a_set_keeps_the_calls_that_are_read_most_and_expires(noting, client):
    window, _ = window_at(noting.hot.clock())
    key = noting.keys.hot("hot", window)
    client.zadd(key, {f"m:f {number}": 1 + number for number in range(CALLS_KEPT + 10)})
    for _ in range(2000):
        await by_id(7)
    await sent(noting)
    assert client.zcard(key) == CALLS_KEPT
    assert client.zscore(key, "m:f 0") is None
    assert 0 < client.pttl(key) <= 2 * WINDOW_SECONDS * 1000


async def test_a_key_of_another_type_is_said_once_and_reads_go_on(noting, client):
    window, _ = window_at(noting.hot.clock())
    client.set(noting.keys.hot("hot", window), "not a set")
    with capture_logs() as logs:
        for _ in range(3):
            assert await by_id(7) == 7
            await sent(noting)
    assert [entry["event"] for entry in logs] == ["hot_calls_refused"]
    assert noting.reader().breaker.closed


async def test_a_server_that_is_away_is_no_reason_to_say_anything_here(new_server, eventually):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", hot_sample=1, operation_timeout=0.2) as cache:
        set_cache(cache)
        await by_id(7)
        server.stop()
        with capture_logs() as logs:
            assert await by_id(8) == 8
            await sent(cache)
        set_cache(None)
    assert {entry["event"] for entry in logs} <= {"cache_unavailable", "local_tier_lost"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_does_not_send_what_its_parent_has_noted(url):
    hot = HotCalls(Keyspace(), 1)
    cache = Cache(url, hot_sample=1)
    target = cache.target(by_id.call_of(7))
    hot.note(by_id, target, (7,), {})
    child = os.fork()
    if not child:
        os._exit(0 if hot._taken() == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert hot._taken()
    cache.sync.close()


def test_it_is_time_to_send_every_few_seconds():
    now = 0.0
    hot = HotCalls(Keyspace(), 1, elapsed=lambda: now)
    cache = Cache("redis://localhost")
    due = []
    for second in range(3 * int(FLUSH_SECONDS)):
        now = float(second)
        due.append(hot.note(by_id, cache.target(by_id.call_of(second)), (second,), {}))
    assert [second for second, yes in enumerate(due) if yes] == [0, FLUSH_SECONDS, 2 * FLUSH_SECONDS]
    cache.sync.close()


# What is made of it


def test_the_hottest_are_those_of_now_and_the_less_of_before_the_more_of_now_there_is():
    assert hottest({b"a": 1}, {b"b": 10}, 0.0) == [b"b", b"a"]
    assert hottest({b"a": 2}, {b"b": 10}, 0.9) == [b"a", b"b"]
    assert hottest({b"a": 2, b"b": 1}, {b"b": 10}, 0.5) == [b"b", b"a"]


def test_windows_follow_each_other():
    assert window_at(0) == (0, 0.0)
    assert window_at(WINDOW_SECONDS * 2.5) == (2, 0.5)


@pytest.mark.parametrize("member", [b"", b"\xff\xfe", b"module:function"])
def test_a_member_that_is_no_call_is_a_decode_error(member):
    with pytest.raises(DecodeError):
        parsed(member)


def test_the_setting_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TIDINGS_HOT_SAMPLE", "0.5")
    assert Settings.load(development_server=False).hot_sample == 0.5
