"""Warming what is read most, within a budget, through outages; and the list of what keeps failing."""

import asyncio
import json
import signal
import time

import pytest
import redis
from pydantic import SecretStr
from structlog.testing import capture_logs
from tidings import Cache, Event, cached, set_cache
from tidings.errors import ArgumentError, ConfigurationError
from tidings.hot import window_at
from tidings.keys import Keyspace
from tidings.settings import Settings
from tidings_worker import Rules, Warm
from tidings_worker.budget import Bucket, Budget
from tidings_worker.failing import MOST, FailingWarms
from tidings_worker.hot import warms_of
from tidings_worker.jobs import jobs_pool
from tidings_worker.outage import Outage
from tidings_worker.plans import Hot, Plan, merge
from tidings_worker.queueing import WarmQueue, warm_name
from tidings_worker.rules import Schedule
from tidings_worker.settings import WorkerSettings
from tidings_worker.warming import WarmWorker, delay_seconds

loaded: list[int] = []
acts = {}


@cached(namespace="shop", tags=["item:{item}"])
async def get_item(item: int) -> int:
    loaded.append(item)
    if item in acts:
        await acts[item]()
    return item


@cached(namespace="elsewhere")
async def get_other(item: int) -> int:
    loaded.append(-item)
    return item


@pytest.fixture
async def noting(url):
    async with Cache(url, hot_sample=1) as made:
        set_cache(made)
        loaded.clear()
        acts.clear()
        yield made
        set_cache(None)


async def sent(cache):
    await cache.reader().drive(cache.hot.flush())


@pytest.fixture
async def work():
    """Start a worker of a server's queue; give what stops it and waits for its end."""
    running = []

    def start(url, schedules=(), idle=lambda: True, outage=None, **settings):
        pool = jobs_pool(Settings(url=SecretStr(url), operation_timeout=0.5))
        options = WorkerSettings(**{"poll": 0.01, "drain_timeout": 5, **settings})
        worker = WarmWorker(pool, "warms", schedules, options, idle=idle, outage=outage)
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))

        async def finish(timeout=10):  # noqa: ASYNC109
            stop.set()
            await asyncio.wait_for(asyncio.shield(task), timeout)

        finish.task = task
        finish.ended = lambda: all(job.done() for job in worker._worker.tasks.values())
        finish.queue = WarmQueue(pool, "warms")
        running.append((stop, task, pool))
        return finish

    yield start
    for stop, task, pool in running:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        await pool.aclose()


def queued(client):
    return client.zcard("warms")


# What is read most


async def test_what_is_read_most_is_warm_again_after_an_invalidation(noting, client, url, work, eventually):
    for item in (1, 1, 1, 2, 2, 3):
        await get_item(item)
    await sent(noting)
    await noting.invalidate_namespace("shop")
    loaded.clear()
    finish = work(url)
    await finish.queue.hand_off([], [Warm.hot("shop", top=2)])
    await eventually(lambda: len(loaded) == 2 and not queued(client), "two warms")
    assert sorted(loaded) == [1, 2]
    assert await get_item(1) == 1
    assert len(loaded) == 2


async def test_a_schedule_refreshes_what_is_read_most(noting, url, work, eventually):
    await get_item(1)
    await sent(noting)
    loaded.clear()
    work(url, [Schedule(Warm.hot("shop"), None, None, None, None, None, set(range(60)))])
    await eventually(lambda: loaded, "the refresh")


async def test_what_is_read_most_is_looked_for_once_a_second_however_often_it_is_asked_for(noting, client, url, work):
    finish = work(url, idle=lambda: False)
    await asyncio.sleep(1 - time.time() % 1)  # the beginning of a second
    for _ in range(20):
        await finish.queue.hand_off([], [Warm.hot("shop")])
    assert queued(client) <= 2
    ((_, due), *_) = client.zrange("warms", 0, -1, withscores=True)
    assert due % 1000 == 0


HOSTILE = {
    "no text": b"\xff\xfe",
    "no call": b"nonsense",
    "a module that is not loaded": b"antigravity:fly {}",
    "a function that is not cached": b'os:system {"command":["any","J\\"true\\""]}',
    "arguments of another function": f'{get_item.identity} {{"other":["any","J1"]}}'.encode(),
    "a cached function of another namespace": f'{get_other.identity} {{"item":["any","J1"]}}'.encode(),
}


@pytest.mark.parametrize("member", HOSTILE.values(), ids=HOSTILE)
async def test_what_nobody_read_is_not_warmed(member, noting, client):
    await get_item(1)
    await sent(noting)
    key = noting.keys.hot("shop", window_at(time.time())[0])
    client.zadd(key, {member: 1e9})
    client.zadd(key, {b"another": "inf"})
    assert await warms_of(Hot("shop", 10), noting) == [Warm(get_item, 1)]


async def test_what_was_read_in_the_window_before_counts_for_the_rest_of_this_one(noting):
    await get_item(1)
    await sent(noting)
    now = time.time()
    window, over = window_at(now)
    later = now + (1 - over) * 600 + 1
    assert await warms_of(Hot("shop", 10), noting, clock=lambda: later) == [Warm(get_item, 1)]
    assert await warms_of(Hot("shop", 10), noting, clock=lambda: later + 600) == []
    assert window_at(later)[0] == window + 1


class Restocked(Event, type="hot.restocked"):
    shop: str


def test_a_plan_shows_what_is_read_most_and_merging_keeps_the_larger_number():
    rules = Rules()
    rules.map(Restocked, namespaces=["shop"], warm=[Warm.hot("shop", top=5)])

    @rules.on(Restocked)
    def more(event):
        yield Warm.hot(event.shop, top=7)

    plan = rules.simulate(Restocked(shop="shop"))
    assert plan.hot == (Hot("shop", 5), Hot("shop", 7))
    assert merge([plan, Plan(hot=(Hot("shop", 6), Hot("b", 1)))]).hot == (Hot("shop", 7), Hot("b", 1))
    assert "Warm.hot('shop', top=7)" in repr(plan)
    rules.schedule(Warm.hot("shop"), minute=0)
    rules.check()


@pytest.mark.parametrize("top", [0, 1001, True, "10", 2.0])
def test_a_number_of_calls_that_cannot_be_is_a_configuration_error(top):
    with pytest.raises(ConfigurationError, match="top="):
        Warm.hot("shop", top=top)


def test_a_namespace_that_cannot_be_is_an_argument_error_since_events_name_it():
    with pytest.raises(ArgumentError):
        Warm.hot("a b")


# The budget


def test_a_bucket_gives_so_many_a_second_and_keeps_one_second_of_them():
    now = 0.0
    bucket = Bucket(10, lambda: now)
    assert bucket.available(100) == 10
    bucket.take(10)
    assert bucket.available(100) == 0
    now = 0.5
    assert bucket.available(3) == 3
    bucket.take(3)
    assert bucket.available(100) == 2
    now = 100.0
    assert bucket.available(100) == 10


def test_a_bucket_slower_than_one_a_second_gives_one_now_and_then():
    now = 0.0
    bucket = Bucket(0.1, lambda: now)
    bucket.take(bucket.available(1))
    now = 9.0
    assert bucket.available(1) == 0
    now = 10.0
    assert bucket.available(1) == 1


def test_a_rate_of_zero_is_no_limit():
    assert Bucket(0, lambda: 0.0).available(10**6) == 10**6


def test_while_events_wait_no_warm_may_start():
    busy = True
    budget = Budget(0, lambda: not busy)
    assert budget.available(5) == 0
    busy = False
    assert budget.available(5) == 5


async def test_warms_wait_while_there_are_events_and_run_when_there_are_none(noting, client, url, work, eventually):
    busy, asked = True, 0

    def idle():
        nonlocal asked
        asked += 1
        return not busy

    finish = work(url, idle=idle)
    await finish.queue.hand_off([Warm(get_item, 1)])
    await eventually(lambda: asked > 5, "some looks")
    assert (loaded, queued(client)) == ([], 1)
    busy = False
    await eventually(lambda: loaded == [1], "the warm")


async def test_a_worker_starts_no_more_warms_than_its_budget(noting, client, url, work, eventually):
    finish = work(url, warms_per_second=0.001)
    await finish.queue.hand_off([Warm(get_item, item) for item in range(5)])
    await eventually(lambda: len(loaded) == 1 and queued(client) == 4, "the first warm")
    await finish()
    assert len(loaded) == 1


# Failures


def test_delays_double_up_to_a_minute_and_half_of_each_is_chance():
    assert [delay_seconds(tries, 1.0) for tries in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]
    assert delay_seconds(3, 0.0) == 2


async def test_what_keeps_failing_is_listed_until_it_succeeds(noting, client, url, work, eventually):
    async def fail():
        raise ConnectionError("the shop's database is away " + "x" * 1000)

    acts[1] = fail
    finish = work(url, warm_tries=1)
    listed = FailingWarms(finish.queue._client, Keyspace().failing)
    for failures in (1, 2):
        await finish.queue.hand_off([Warm(get_item, 1)])
        await eventually(lambda: len(loaded) == failures and not queued(client), "the end of the job")  # noqa: B023
    (failing,) = (await listed.read()).values()
    assert (failing.call, failing.error, failing.failures) == (get_item.identity, "ConnectionError", 2)
    assert failing.message.startswith("the shop's database")
    assert len(failing.message) <= 300
    assert json.loads(failing.arguments) == {"item": ["any", "J1"]}
    assert failing.first < failing.last <= time.time()
    acts.clear()
    await finish.queue.hand_off([Warm(get_item, 1)])
    await eventually(lambda: len(loaded) == 3 and not queued(client), "the end of the job")
    assert await listed.read() == {}


async def test_a_warm_that_fails_once_is_not_one_that_keeps_failing(noting, client, url, work, eventually):
    async def fail_once():
        acts.clear()
        raise ConnectionError("away")

    acts[1] = fail_once
    finish = work(url)
    await finish.queue.hand_off([Warm(get_item, 1)])
    await eventually(lambda: len(loaded) == 2 and not queued(client), "the second try")
    assert client.exists("warms:failing") == 0


async def test_the_list_of_what_fails_is_bounded_and_what_failed_longest_ago_goes(client, url):
    async with redis.asyncio.Redis.from_url(url) as connection:
        now = 0.0
        listed = FailingWarms(connection, "warms:failing", lambda: now)
        client.hset("warms:failing", "foreign", b"\xff no note")
        for number in range(MOST):
            now = float(number)
            await listed.failed(f"shop:{number}", "m:f", "{}", ValueError("no"))
        found = await listed.read()
    assert len(found) == client.hlen("warms:failing") == MOST * 9 // 10
    assert next(iter(found)) == f"shop:{MOST - 1}"
    assert "shop:0" not in found


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b'{"call": 1}', b"1" * 100_000])
async def test_a_note_of_a_failure_that_nobody_wrote_is_left_out(data, client, url):
    client.hset("warms:failing", "foreign", data)
    async with redis.asyncio.Redis.from_url(url) as connection:
        listed = FailingWarms(connection, "warms:failing")
        assert await listed.read() == {}
        await listed.failed("foreign", "m:f", "{}", ValueError("no"))
        assert [one.failures for one in (await listed.read()).values()] == [1]


def test_a_job_s_name_tells_the_warm_s():
    assert warm_name("warms", "warms:shop:get_item:0123") == "shop:get_item:0123"
    assert warm_name("warms", "warms:shop:get_item:0123:refresh") == "shop:get_item:0123"
    assert warm_name("warms", "warms:!hot:shop:10:1763741234") == "!hot:shop:10"


# Outages


def changes():
    told = []
    return told, Outage("jobs", lambda there, _: told.append(there))


async def test_a_restart_of_redis_is_ridden_out(new_server, url, work, eventually):
    server = new_server()
    async with Cache(url) as cache:
        set_cache(cache)
        loaded.clear()
        acts.clear()
        jobs = f"redis://127.0.0.1:{server.port}"
        told, outage = changes()
        finish = work(jobs, outage=outage)
        with capture_logs() as logs:
            server.stop()
            await eventually(lambda: told == [False], "the outage")
            server.start()
            await eventually(lambda: told == [False, True], "its end")
        assert [entry["event"] for entry in logs] == ["redis_away", "redis_back"]
        await finish.queue.hand_off([Warm(get_item, 1)])
        await eventually(lambda: loaded == [1], "the warm")
        await finish()
        set_cache(None)


async def test_a_job_whose_end_could_not_be_noted_is_run_again_and_not_left_marked(
    new_server, url, work, eventually, tmp_path
):
    """The queue outlives the outage (appendonly), with the job in it and its mark."""
    server = new_server(data_dir=tmp_path, persist=True, appendonly="yes", appendfsync="always")
    async with Cache(url) as cache:
        set_cache(cache)
        loaded.clear()
        jobs = f"redis://127.0.0.1:{server.port}"
        told, outage = changes()
        go = asyncio.Event()
        acts.clear()
        acts[1] = go.wait
        finish = work(jobs, outage=outage)
        await finish.queue.hand_off([Warm(get_item, 1)])
        await eventually(lambda: loaded == [1], "the load")
        server.stop()
        await eventually(lambda: told == [False], "the outage")
        go.set()
        await eventually(finish.ended, "the end of the job, which cannot be noted")
        server.start()
        with redis.Redis.from_url(jobs) as client:
            assert client.pttl(f"arq:in-progress:warms:{Warm(get_item, 1).name}") > 5000
            await eventually(lambda: client.zcard("warms") == 0, "the end of the job", timeout=5)
            assert told == [False, True]
            assert client.keys("arq:*") == []
        await finish()
        set_cache(None)


async def test_a_worker_that_is_stopped_in_an_outage_stops(new_server, url, work, eventually):
    server = new_server()
    async with Cache(url) as cache:
        set_cache(cache)
        loaded.clear()
        acts.clear()
        go = asyncio.Event()
        acts[1] = go.wait
        told, outage = changes()
        finish = work(f"redis://127.0.0.1:{server.port}", outage=outage, drain_timeout=0)
        await finish.queue.hand_off([Warm(get_item, 1)])
        await eventually(lambda: loaded == [1], "the load")
        server.stop()
        await eventually(lambda: told == [False], "the outage")
        with capture_logs() as logs:
            await finish()
        go.set()
        assert {"event": "jobs_not_given_back", "jobs": 1, "log_level": "warning"} in logs
        set_cache(None)


async def test_a_frozen_redis_is_ridden_out(new_server, url, work, eventually):
    server = new_server()
    told, outage = changes()
    finish = work(f"redis://127.0.0.1:{server.port}", outage=outage)
    await asyncio.sleep(0)
    server._process.send_signal(signal.SIGSTOP)
    try:
        await eventually(lambda: told == [False], "the outage")
    finally:
        server._process.send_signal(signal.SIGCONT)
    await eventually(lambda: told == [False, True], "its end")
    await finish()


async def test_a_schedule_that_was_due_in_an_outage_is_handed_off_after_it(new_server, url, work, eventually):
    server = new_server()
    async with Cache(url) as cache:
        set_cache(cache)
        loaded.clear()
        acts.clear()
        told, outage = changes()
        second = (int(time.time()) + 3) % 60
        finish = work(
            f"redis://127.0.0.1:{server.port}",
            [Schedule(Warm(get_item, 1), None, None, None, None, None, second)],
            outage=outage,
        )
        with redis.Redis.from_url(f"redis://127.0.0.1:{server.port}") as client:
            await eventually(lambda: client.keys("warms:health:*"), "the first look")
        server.stop()
        await eventually(lambda: told == [False], "the outage")
        await eventually(lambda: int(time.time()) % 60 == (second + 1) % 60, "the time after")
        server.start()
        await eventually(lambda: loaded == [1], "the scheduled warm")
        await finish()
        set_cache(None)


async def test_a_server_that_is_out_of_memory_is_ridden_out(noting, new_server, work, eventually):
    server = new_server(**{"maxmemory-policy": "noeviction"})
    jobs = f"redis://127.0.0.1:{server.port}"
    told, outage = changes()
    full = False
    finish = work(jobs, idle=lambda: full, outage=outage)
    with redis.Redis.from_url(jobs) as client:
        await finish.queue.hand_off([Warm(get_item, 1)])
        client.config_set("maxmemory", 1)
        full = True
        await eventually(lambda: told == [False], "the refusal")
        client.config_set("maxmemory", 0)
        await eventually(lambda: loaded == [1] and client.zcard("warms") == 0, "the warm")
    await finish()
    assert told == [False, True]


async def test_a_password_that_is_not_taken_ends_the_worker(new_server, work):
    server = new_server()
    with redis.Redis.from_url(f"redis://127.0.0.1:{server.port}") as client:
        client.config_set("requirepass", "secret")
    finish = work(f"redis://:wrong@127.0.0.1:{server.port}")
    with pytest.raises(redis.AuthenticationError):
        await asyncio.wait_for(finish.task, 5)


@pytest.mark.parametrize("word", ["arq:job:", "arq:retry:", "arq:in-progress:"])
async def test_a_word_of_arq_s_that_is_of_another_type_costs_the_job_and_not_the_worker(
    word, noting, client, url, work, eventually
):
    with capture_logs() as logs:
        client.rpush(f"{word}hostile", "a list")
        client.zadd("warms", {"hostile": 1})
        finish = work(url)
        await finish.queue.hand_off([Warm(get_item, 1)])
        await eventually(lambda: finish.task.done() or (loaded == [1] and not queued(client)), "the warm")
        assert not finish.task.done()
    assert {"event": "jobs_refused", "jobs": 1, "log_level": "error"} in logs
    assert client.keys("arq:*") == []


async def test_a_number_of_tries_that_is_none_costs_the_job_and_not_the_worker(noting, client, url, work, eventually):
    client.set("arq:retry:hostile", "many")
    client.zadd("warms", {"hostile": 1})
    finish = work(url)
    await eventually(lambda: finish.task.done() or not queued(client), "the end of the job")
    assert not finish.task.done()


async def test_the_jobs_of_a_worker_that_was_killed_are_looked_at_when_its_marks_expire(
    noting, client, url, work, eventually
):
    finish = work(url)
    client.set("arq:in-progress:warms:" + Warm(get_item, 1).name, "another worker", px=300)
    await finish.queue.hand_off([Warm(get_item, 1), Warm(get_item, 2)])
    await eventually(lambda: loaded == [2], "the job that nobody has")
    await eventually(lambda: loaded == [2, 1], "the other")


# Where jobs live


async def test_jobs_may_live_on_another_server(noting, new_server, client):
    elsewhere, password = new_server(), "p@ss:/w%rd#"
    with redis.Redis.from_url(f"redis://127.0.0.1:{elsewhere.port}") as admin:
        admin.config_set("requirepass", password)
    url = f"redis://:p%40ss%3A%2Fw%25rd%23@127.0.0.1:{elsewhere.port}/1"
    pool = jobs_pool(Settings(url=noting.settings.url, jobs_url=SecretStr(url)))
    await WarmQueue(pool, pool.default_queue_name).hand_off([Warm(get_item, 1)])
    assert await pool.zcard("warms") == 1
    await pool.aclose()
    assert queued(client) == 0


@pytest.mark.parametrize(
    ("url", "jobs_url", "reason"),
    [
        ("redis+cluster://:secret@a:1,b:2", None, "TIDINGS_JOBS_URL"),
        ("redis://localhost", "redis+cluster://:secret@a:1", "TIDINGS_JOBS_URL"),
        (None, None, "TIDINGS_URL"),
        ("memory://", None, "TIDINGS_URL"),
        ("redis://localhost", "nonsense", "redis://"),
    ],
)
def test_a_place_where_jobs_cannot_live_is_a_configuration_error_without_its_password(url, jobs_url, reason):
    settings = Settings(url=url and SecretStr(url), jobs_url=jobs_url and SecretStr(jobs_url))
    with pytest.raises(ConfigurationError, match=reason) as raised:
        jobs_pool(settings)
    assert "secret" not in str(raised.value)


def test_the_jobs_url_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TIDINGS_JOBS_URL", "redis://:secret@jobs")
    settings = Settings.load(development_server=False)
    assert settings.jobs_url.get_secret_value() == "redis://:secret@jobs"
    assert "secret" not in repr(settings)


# In bulk


async def test_thousands_of_warms_are_handed_off_in_a_few_exchanges(noting, client, url, work):
    finish = work(url, idle=lambda: False)
    warms = [Warm(get_item, item) for item in range(2500)]
    client.config_resetstat()
    await finish.queue.hand_off(warms)
    scripts = client.info("commandstats")["cmdstat_evalsha"]
    assert scripts["calls"] - scripts["failed_calls"] == 3  # one fails if the server has yet to be given the script
    assert queued(client) == 2500


async def test_a_trace_context_travels_in_the_job(noting, client, url, work):
    finish = work(url, idle=lambda: False)
    warm = Warm(get_item, 1)
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    await finish.queue.hand_off([warm, Warm(get_item, 2)], carriers={warm.name: carrier})
    jobs = [json.loads(client.get(f"arq:job:warms:{Warm(get_item, item).name}"))["k"] for item in (1, 2)]
    assert jobs == [carrier, {}]
