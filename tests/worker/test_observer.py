"""What the worker sees of its servers, and whether it sees them."""

import asyncio
import signal

import pytest
import redis
import redis.asyncio
from redis.exceptions import ResponseError
from tidings.store import RedisStore
from tidings_worker.health import Health
from tidings_worker.metrics import Metrics
from tidings_worker.observer import SERVERS, Observer, Watched, stream_state

STREAM, GROUP, DEAD, JOBS = "observed", "readers", "observed:dead", "observed:jobs"


@pytest.fixture
async def aclient(url):
    async with redis.asyncio.Redis.from_url(url) as made:
        yield made


@pytest.fixture
def health():
    return Health(SERVERS)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def make(aclient, metrics, health):
    def observer(client=aclient, jobs_client=aclient):
        watched = Watched(GROUP, [STREAM], DEAD, RedisStore(client, client, "the test's"), JOBS, jobs_client)
        return Observer(watched, metrics, health, timeout=1.0)

    return observer


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def add(client, *ids):
    for stream_id in ids:
        client.xadd(STREAM, {"type": "x"}, id=stream_id)


async def test_a_stream_whose_group_is_up_to_date(client, aclient):
    add(client, "1-0", "2-0")
    client.xgroup_create(STREAM, GROUP, id="0")
    read = client.xreadgroup(GROUP, "me", {STREAM: ">"})
    client.xack(STREAM, GROUP, *(stream_id for stream_id, _ in read[0][1]))
    state = await stream_state(aclient, STREAM, GROUP)
    assert (state.entries, state.lag, state.pending) == (2, 0, 0)
    assert (state.oldest_pending_age, state.oldest_unread_age) == (0, 0)


async def test_what_is_pending_and_what_is_unread_have_ages_by_the_server_s_clock(client, aclient):
    now = client.time()[0]
    pending, unread = (now - 100) * 1000, (now - 10) * 1000
    add(client, f"{pending}-0", f"{unread}-0", f"{unread}-1")
    client.xgroup_create(STREAM, GROUP, id="0")
    client.xreadgroup(GROUP, "me", {STREAM: ">"}, count=1)
    state = await stream_state(aclient, STREAM, GROUP)
    assert (state.entries, state.lag, state.pending) == (3, 2, 1)
    assert 100 <= state.oldest_pending_age < 130
    assert 10 <= state.oldest_unread_age < 40


async def test_the_age_shows_what_the_lag_does_not_know(client, aclient):
    """After an entry was deleted behind the group's position the server has lost count."""
    add(client, "1-0", "2-0", "3-0", "4-0")
    client.xgroup_create(STREAM, GROUP, id="2-0")
    client.xdel(STREAM, "3-0")
    state = await stream_state(aclient, STREAM, GROUP)
    assert state.lag is None
    assert state.oldest_unread_age > 0


async def test_without_stream_or_group_nothing_is_known(client, aclient):
    state = await stream_state(aclient, STREAM, GROUP)
    assert (state.entries, state.lag, state.pending, state.oldest_unread_age) == (0, None, 0, None)
    add(client, "1-0")
    client.xgroup_create(STREAM, "another", id="0")
    state = await stream_state(aclient, STREAM, GROUP)
    assert (state.entries, state.lag, state.oldest_pending_age) == (1, None, None)


async def test_ids_made_by_hand_are_read(client, aclient):
    greatest = f"{2**64 - 1}-{2**64 - 1}"
    add(client, greatest)
    client.xgroup_create(STREAM, GROUP, id="0")
    client.xreadgroup(GROUP, "me", {STREAM: ">"})
    state = await stream_state(aclient, STREAM, GROUP)
    assert (state.pending, state.oldest_pending_age, state.oldest_unread_age) == (1, 0, 0)


async def test_the_newer_protocol_says_the_same(client, url, aclient):
    add(client, "1-0", "2-0")
    client.xgroup_create(STREAM, GROUP, id="0")
    client.xreadgroup(GROUP, "me", {STREAM: ">"}, count=1)
    async with redis.asyncio.Redis.from_url(f"{url}?protocol=3") as newer:
        state = await stream_state(newer, STREAM, GROUP)
    assert (state.entries, state.lag, state.pending) == (2, 1, 1)
    assert state.oldest_pending_age > 0


async def test_a_look_fills_the_gauges_and_makes_the_servers_well(client, make, metrics, health):
    add(client, "1-0")
    client.xadd(DEAD, {"reason": "x"})
    client.zadd(JOBS, {"a": 1, "b": 2})
    await make().look()
    assert value(metrics, "tidings_stream_entries", stream=STREAM) == 1
    assert value(metrics, "tidings_dead_letters") == 1
    assert value(metrics, "tidings_warms_queued") == 2
    assert value(metrics, "tidings_redis_up", server="events") == 1
    assert value(metrics, "tidings_redis_up", server="jobs") == 1
    assert health.report().ready


async def test_a_jobs_server_that_is_away_hides_nothing_of_the_events(client, make, metrics, health):
    add(client, "1-0")
    async with redis.asyncio.Redis.from_url("redis://127.0.0.1:1") as away:
        await make(jobs_client=away).look()
    assert value(metrics, "tidings_stream_entries", stream=STREAM) == 1
    assert value(metrics, "tidings_warms_queued") is None
    assert value(metrics, "tidings_redis_up", server="jobs") == 0
    assert health.report().unready == ("jobs server: does not answer: ConnectionError",)


async def test_a_frozen_server_is_away_after_the_timeout_and_back_when_it_answers(new_server, make, metrics, health):
    server = new_server()
    up = []
    async with redis.asyncio.Redis(port=server.port) as there:
        observer = make(client=there)
        for number in (signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
            server._process.send_signal(number)
            await observer.look()
            up.append(value(metrics, "tidings_redis_up", server="events"))
            if number == signal.SIGSTOP:
                assert health.report().unready == ("events server: does not answer: TimeoutError",)
    assert up == [1, 0, 1]
    assert health.report().ready


async def test_what_is_no_outage_is_raised(client, make):
    client.set(STREAM, "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await make().look()


async def test_it_looks_until_the_stop(client, make, eventually, metrics):
    stop = asyncio.Event()
    running = asyncio.create_task(make().run(stop, 0.01))
    await eventually(lambda: value(metrics, "tidings_dead_letters") == 0, "a look")
    client.xadd(DEAD, {"reason": "x"})
    await eventually(lambda: value(metrics, "tidings_dead_letters") == 1, "the next look")
    stop.set()
    await running
