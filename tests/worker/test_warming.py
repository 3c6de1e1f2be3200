"""Warms: from a plan to the queue, from the queue to the very entry that readers look up."""

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
import redis.asyncio
import structlog
from arq.connections import ArqRedis
from pydantic import BaseModel
from tidings import cached, set_cache
from tidings.errors import ArgumentError, ConfigurationError, DecodeError
from tidings_worker import Warm
from tidings_worker.calls import decode_call, encode_call, resolve
from tidings_worker.rules import Schedule
from tidings_worker.settings import WorkerSettings
from tidings_worker.warming import JOB_NAME, WarmQueue, WarmWorker, from_json, to_json


class Loader:
    """What a cached function calls: counts, and does what the test says."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.calls: list[object] = []
        self.act: Callable[[int], Awaitable[None]] | None = None

    async def load(self, argument: object = None) -> int:
        self.calls.append(argument)
        number = len(self.calls)
        if self.act is not None:
            await self.act(number)
        return number


loader = Loader()


@cached(namespace="warming", tags=["user:{user_id}"])
async def get_user(user_id: int) -> int:
    return await loader.load(user_id)


class Color(Enum):
    RED = "red"


class User(BaseModel):
    id: int
    born: date


@dataclass(frozen=True)
class Point:
    x: float
    y: Decimal


@cached()
async def by_date(day: date) -> int:
    return await loader.load(day)


@cached()
async def by_defaults(a: int, b: str = "b", *, c: date = date(2026, 1, 1)) -> int:
    return await loader.load((a, b, c))


@cached()
async def by_rest(*numbers: int | date, **options: date | str) -> int:
    return await loader.load((numbers, options))


@cached()
async def by_model(user: User, others: list[User] | None = None) -> int:
    return await loader.load((user, others))


@cached()
async def by_models(*users: User, **named: Point) -> int:
    return await loader.load((users, named))


@cached()
async def by_point(point: Point, color: Color = Color.RED) -> int:
    return await loader.load((point, color))


@cached()
async def by_anything(value) -> int:
    return await loader.load(value)


@cached(key="{user.id}:profile")
async def by_template(user: User) -> int:
    return await loader.load(user)


@cached()
async def by_position(first: int, /, second: int = 2) -> int:
    return await loader.load((first, second))


@cached()
async def by_unknown(user: User, other: "Unknown | None" = None) -> int:  # noqa: F821 as under TYPE_CHECKING
    return await loader.load((user, other))


async def not_cached(user_id: int) -> int:
    return user_id


ADA = User(id=1, born=date(1815, 12, 10))
POINT = Point(0.1, Decimal("0.10"))


@pytest.fixture(autouse=True)
def _fresh_loader(cache):
    set_cache(cache)
    loader.reset()
    yield
    set_cache(None)


@pytest.fixture
async def queue(url):
    async with redis.asyncio.Redis.from_url(url) as connection:
        yield WarmQueue(connection, "warms")


@pytest.fixture
async def work(url):
    """Start a worker of the queue; give what stops it and waits for its end."""
    running = []
    pools = []

    def start(schedules=(), **settings):
        pool = redis.asyncio.ConnectionPool.from_url(url)
        pools.append(pool)
        arq = ArqRedis(pool, job_serializer=to_json, job_deserializer=from_json, default_queue_name="warms")
        worker = WarmWorker(arq, "warms", schedules, WorkerSettings(**{"poll": 0.01, "drain_timeout": 5, **settings}))
        stop = asyncio.Event()
        task = asyncio.create_task(worker.run(stop))

        async def finish(timeout=10):  # noqa: ASYNC109
            stop.set()
            await asyncio.wait_for(asyncio.shield(task), timeout)

        finish.stop = stop
        finish.task = task
        running.append((stop, task))
        return finish

    yield start
    for stop, task in running:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
    for pool in pools:
        await pool.disconnect()


def queued(client):
    return client.zcard("warms")


# Into the queue


async def test_a_job_is_json_that_names_function_and_arguments(client, queue):
    await queue.hand_off([Warm(by_date, date(2026, 11, 20))])
    (job_id,) = client.zrange("warms", 0, -1)
    job = json.loads(client.get(b"arq:job:" + job_id))
    assert job["f"] == JOB_NAME
    assert job["a"][0] == "test_warming:by_date"
    assert "2026-11-20" in job["a"][1]


async def test_warms_of_one_entry_are_one_job_while_it_is_queued(client, queue):
    await queue.hand_off([Warm(get_user, 7)])
    await queue.hand_off([Warm(get_user, user_id=7), Warm(get_user, 8)])
    await queue.hand_off([Warm(get_user, 8), Warm(get_user, 7)])
    assert queued(client) == 2
    assert len(client.keys("arq:job:*")) == 2


async def test_handing_off_nothing_asks_the_server_for_nothing(client, queue):
    before = client.info("stats")["total_commands_processed"]
    await queue.hand_off([])
    assert client.info("stats")["total_commands_processed"] == before + 1  # the question itself


# Out of the queue


async def test_a_warm_is_an_entry_that_the_next_reader_is_served(client, queue, work, eventually):
    await queue.hand_off([Warm(get_user, 7)])
    work()
    await eventually(lambda: not queued(client), "the end of the job")
    assert await get_user(7) == 1
    assert loader.calls == [7]
    assert client.keys("arq:*") == []


async def test_a_warm_of_an_entry_that_is_there_loads_nothing(client, queue, work, eventually):
    await get_user(7)
    await queue.hand_off([Warm(get_user, 7)])
    work()
    await eventually(lambda: not queued(client), "the end of the job")
    assert loader.calls == [7]


CALLS = [
    (by_date, (date(2026, 11, 20),), {}),
    (by_date, (), {"day": date(2026, 11, 20)}),
    (by_defaults, (1,), {}),
    (by_defaults, (), {"a": 1, "b": "x", "c": date(2020, 2, 29)}),
    (by_rest, (), {}),
    (by_rest, (1, date(2026, 11, 20), 3), {"since": date(2026, 1, 1), "kind": "all"}),
    (by_model, (ADA,), {}),
    (by_model, (ADA,), {"others": [ADA, ADA]}),
    (by_models, (ADA, ADA), {"home": POINT}),
    (by_point, (POINT,), {}),
    (by_point, (), {"color": Color.RED, "point": POINT}),
    (by_anything, (None,), {}),
    (by_anything, ([1, 2.5, "three", True, None, {"four": [5]}],), {}),
    (by_anything, ((1, (2, {3: "x", date(2026, 1, 1): b"\xff"})),), {}),
    (by_anything, ({1, 2, 3},), {}),
    (by_anything, ({"!": ["date", "2026-01-01"]},), {}),
    (by_anything, ([Decimal("1.10"), UUID(int=7), timedelta(seconds=1.5), datetime(2026, 1, 1, tzinfo=UTC)],), {}),
    (by_anything, ("2026-11-20",), {}),
    (by_anything, (1.0,), {}),
    (by_anything, (float("inf"),), {}),
    (by_anything, (10**30,), {}),
    (by_anything, ("\x00 \n é 🗞",), {}),
    (by_template, (ADA,), {}),
    (by_position, (1,), {}),
    (by_position, (1,), {"second": 3}),
]


def name_of(call):
    return f"{call[0].__name__}-{CALLS.index(call)}"


@pytest.mark.parametrize("call", CALLS, ids=name_of)
async def test_a_warm_fills_the_very_entry_that_readers_look_up(call, client, queue, work, eventually):
    function, args, kwargs = call
    await queue.hand_off([Warm(function, *args, **kwargs)])
    finish = work()
    await eventually(lambda: not queued(client), "the end of the job")
    await finish()
    (entry,) = client.keys("cache:*")
    assert entry.decode() == function.key(*args, **kwargs)
    assert await function(*args, **kwargs) == 1


@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_arguments_come_back_with_their_types(call):
    function, args, kwargs = call
    text = encode_call(function, args, kwargs)
    again = decode_call(function, text)
    assert function.signature.bind(*again[0], **again[1]) == function.signature.bind(*args, **kwargs)
    assert function.key(*again[0], **again[1]) == function.key(*args, **kwargs)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "7", '{"user_id": 7}', '{"user_id": ["any", "J7", "?"]}', '{"user_id": ["any", "nonsense"]}'],
)
def test_arguments_that_nobody_encoded_are_a_decode_error(text):
    with pytest.raises(DecodeError, match="test_warming:get_user"):
        decode_call(get_user, text)


def test_an_argument_that_only_its_missing_annotation_could_say_cannot_travel():
    with pytest.raises(ArgumentError, match=r"by_anything.*'value'.*travel"):
        encode_call(by_anything, (ADA,), {})


def test_an_argument_beside_an_annotation_that_is_not_there_travels():
    """What is imported for the type checker alone is nobody's business but its own parameter's."""
    assert decode_call(by_unknown, encode_call(by_unknown, (ADA,), {})) == ((ADA, None), {})


def test_an_argument_whose_annotation_is_not_there_cannot_travel():
    with pytest.raises(ArgumentError, match=r"by_unknown.*'other'.*Unknown.*import it"):
        encode_call(by_unknown, (ADA, ADA), {})


@pytest.mark.parametrize(
    "identity",
    ["no.such.module:function", "test_warming:nothing", "test_warming:not_cached", "test_warming", ""],
)
def test_a_function_that_is_not_there_is_a_configuration_error(identity):
    with pytest.raises(ConfigurationError):
        resolve(identity)


# A load that fails, hangs, or is overtaken


async def test_a_load_that_fails_is_tried_again(client, queue, work, eventually):
    async def fail_once(number):
        if number == 1:
            raise ConnectionError("the database is away")

    loader.act = fail_once
    await queue.hand_off([Warm(get_user, 7)])
    work()
    await eventually(lambda: not queued(client), "the end of the job")
    assert loader.calls == [7, 7]
    assert await get_user(7) == 2


async def test_a_load_that_fails_every_time_is_given_up_and_the_next_event_queues_it_anew(
    client, queue, work, eventually
):
    async def fail(_):
        raise ConnectionError("the database is away")

    loader.act = fail
    work(warm_tries=1)
    with structlog.testing.capture_logs() as logs:
        await queue.hand_off([Warm(get_user, 7)])
        await eventually(lambda: not queued(client), "the end of the job")
    assert [entry["event"] for entry in logs] == ["warm_failed"]
    assert client.keys("arq:*") == []
    loader.act = None
    await queue.hand_off([Warm(get_user, 7)])
    await eventually(lambda: not queued(client), "the end of the job")
    assert loader.calls == [7, 7]


async def test_a_load_that_takes_too_long_is_tried_again(client, queue, work, eventually):
    never = asyncio.Event()

    async def hang_once(number):
        if number == 1:
            await never.wait()

    loader.act = hang_once
    await queue.hand_off([Warm(get_user, 7)])
    work(warm_timeout=0.1)
    try:
        await eventually(lambda: not queued(client), "the end of the job")
        assert len(loader.calls) == 2, "the second try waits for the first"
    finally:
        never.set()
    assert await get_user(7) == 2


async def test_an_entry_that_is_invalidated_while_it_is_warmed_is_loaded_again(cache, client, queue, work, eventually):
    async def invalidate_once(number):
        if number == 1:
            await cache.invalidate_tags("user:7")

    loader.act = invalidate_once
    await queue.hand_off([Warm(get_user, 7)])
    work()
    await eventually(lambda: not queued(client), "the end of the job")
    assert loader.calls == [7, 7]
    assert await get_user(7) == 2


async def test_a_warm_that_is_handed_off_just_before_its_job_ends_is_not_lost(cache, client, queue, work, eventually):
    """The job has seen its entry fresh and is about to leave the queue, where the next warm finds it still."""
    overtaken = threading.Event()

    def overtake(_, __, entry):
        """Invalidate and hand off again, as a handler elsewhere would, at the moment at which the job says its last."""
        if entry["event"] == "warmed" and not overtaken.is_set():
            overtaken.set()

            async def elsewhere():
                async with redis.asyncio.Redis.from_url(f"redis://{cache.telemetry.server[8:]}") as connection:
                    await WarmQueue(connection, "warms").hand_off([Warm(get_user, 7)])

            cache.sync.invalidate_tags("user:7")
            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            thread.join(10)
        raise structlog.DropEvent

    structlog.configure(processors=[overtake])
    try:
        await queue.hand_off([Warm(get_user, 7)])
        work()
        await eventually(overtaken.is_set, "the end of the first load")
        # The queue says nothing: it is empty for a moment, between the end of the job and the second hand-off.
        await eventually(lambda: loader.calls == [7, 7], "the second load")
        await eventually(lambda: not queued(client), "the end of the second job")
    finally:
        structlog.reset_defaults()


# What else may be in the queue


def execute():
    loader.calls.append("executed")


class Boom:
    def __reduce__(self):
        return execute, ()


def job(name, *arguments, **more):
    return json.dumps({"t": None, "f": name, "a": arguments, "k": {}, "et": 0, **more}).encode()


FOREIGN = {
    "pickle": pickle.dumps({"t": None, "f": JOB_NAME, "a": (Boom(),), "k": {}, "et": 0}),
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "a list": b"[]",
    "another job": job("shell", "rm -rf /"),
    "a job's name that is a list": job(["tidings.warm"], "test_warming:get_user", "{}"),
    "a time that is a word": job(JOB_NAME, "test_warming:get_user", '{"user_id": ["any", "J1"]}', et="now"),
    "a number of tries that is a word": job(JOB_NAME, "test_warming:get_user", '{"user_id": ["any", "J1"]}', t="one"),
    "no arguments": job(JOB_NAME),
    "a function that is not cached": job(JOB_NAME, "os:system", '{"command": ["any", "J\\"true\\""]}'),
    "arguments that do not bind": job(JOB_NAME, "test_warming:get_user", "{}"),
}


@pytest.mark.parametrize("payload", FOREIGN.values(), ids=FOREIGN)
async def test_what_nobody_handed_off_does_not_run_and_does_not_stop_the_others(
    payload, client, queue, work, eventually
):
    client.set("arq:job:foreign", payload)
    client.zadd("warms", {"foreign": 1})
    await queue.hand_off([Warm(get_user, 7)])
    finish = work()
    await eventually(lambda: not queued(client) or finish.task.done(), "an empty queue")
    assert not finish.task.done(), finish.task.exception()
    assert "executed" not in loader.calls
    assert 7 in loader.calls


async def test_a_job_whose_name_is_no_text_does_not_stop_the_others(client, queue, work, eventually):
    client.zadd("warms", {b"\xff": 1})
    await queue.hand_off([Warm(get_user, 7)])
    finish = work()
    await eventually(lambda: loader.calls or finish.task.done(), "the warm")
    assert not finish.task.done(), finish.task.exception()


# The end of a worker


async def test_a_stop_lets_the_running_loads_finish_and_starts_no_more(client, queue, work, eventually):
    gate = asyncio.Event()

    async def wait(_):
        await gate.wait()

    loader.act = wait
    await queue.hand_off([Warm(get_user, user_id) for user_id in range(5)])
    finish = work(max_warms=2)
    await eventually(lambda: len(loader.calls) == 2, "two loads")
    finish.stop.set()
    gate.set()
    await finish()
    assert queued(client) == 3
    assert len(client.keys("cache:*")) == 2
    assert client.keys("arq:in-progress:*") == []


async def test_a_load_that_outlives_the_drain_is_warmed_by_the_next_worker(client, queue, work, eventually):
    never = asyncio.Event()

    async def hang_once(number):
        if number == 1:
            await never.wait()

    loader.act = hang_once
    await queue.hand_off([Warm(get_user, 7)])
    finish = work(drain_timeout=0)
    await eventually(lambda: loader.calls, "the load")
    await finish()
    never.set()
    assert queued(client) == 1
    work()
    await eventually(lambda: not queued(client), "the end of the job")
    assert await get_user(7) in {1, 2}


async def test_a_stop_in_the_middle_of_picking_jobs_leaves_none_behind_as_running(client, queue, work):
    """A job that stays marked as running is looked at again only when the mark expires, a minute later."""
    stopping = asyncio.Event()

    async def stop(_):
        finish.stop.set()
        await stopping.wait()

    loader.act = stop
    await queue.hand_off([Warm(get_user, user_id) for user_id in range(50)])
    finish = work(max_warms=50, drain_timeout=0.2)
    await finish.task
    stopping.set()
    assert client.keys("arq:in-progress:*") == []


async def test_what_the_server_refuses_ends_the_worker_with_an_error(client, work):
    client.set("warms", "not a queue")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        await asyncio.wait_for(work().task, 5)


# By the clock


def in_two_seconds():
    return (datetime.now().astimezone().second + 2) % 60


async def test_a_schedule_loads_what_is_cached_already(client, work, eventually):
    await get_user(7)
    before = client.get(get_user.key(7))
    work([Schedule(Warm(get_user, 7), None, None, None, None, None, set(range(60)))])
    # By the value at its end: a refresh gives the entry a new lineage before it loads, and leaves the value meanwhile.
    await eventually(lambda: not client.get(get_user.key(7)).endswith(before[-2:]), "the scheduled load")
    assert await get_user(7) > 1


async def test_a_scheduled_load_that_fails_is_tried_again_before_its_next_time(work, eventually):
    async def fail_once(number):
        if number == 1:
            raise ConnectionError("the database is away")

    loader.act = fail_once
    work([Schedule(Warm(get_user, 7), None, None, None, None, None, in_two_seconds())])
    await eventually(lambda: len(loader.calls) > 1, "the second try", timeout=5)


async def test_a_schedule_that_a_worker_does_not_have_is_left_to_one_that_has_it(client, url, queue, work, eventually):
    """As while rules are read again, by one worker after the other."""
    schedule = Schedule(Warm(get_user, 7), None, None, None, None, None, in_two_seconds())
    name, now_ms = f"warms:schedule:{schedule.name}", time.time_ns() // 1_000_000
    ids = {f"{name}:{now_ms}", f"{name}:{now_ms - 61_000}", f"{name}:{now_ms + 3_600_000}", f"{name}:soon"}
    async with redis.asyncio.Redis.from_url(url) as connection:
        arq = ArqRedis(connection.connection_pool, job_serializer=to_json, default_queue_name="warms")
        for job_id in ids:
            await arq.enqueue_job(name, _job_id=job_id)
    work()
    left = [f"{name}:{now_ms}".encode()]
    await eventually(lambda: client.zrange("warms", 0, -1) == left, "the end of what is nobody's")
    await queue.hand_off([Warm(get_user, 8)])
    await eventually(lambda: loader.calls == [8] and client.zrange("warms", 0, -1) == left, "a warm after it")
    work([schedule])
    await eventually(lambda: 7 in loader.calls, "the schedule's load")


async def test_two_workers_load_a_schedule_once(work, eventually):
    schedule = [Schedule(Warm(get_user, 7), None, None, None, None, None, in_two_seconds())]
    finishes = [work(schedule), work(schedule)]
    await eventually(lambda: loader.calls, "the scheduled load")
    for finish in finishes:
        await finish()
    assert loader.calls == [7]
