"""The loop that reads the stream and feeds the handler, on a real server."""

import asyncio
import re

import pytest
import redis.asyncio
from redis.exceptions import ResponseError
from tidings import Event, Settings, cached
from tidings.store import RedisStore
from tidings_worker import Rules
from tidings_worker.consumer import Consumer
from tidings_worker.delivery import Retries, RetryPolicy
from tidings_worker.groups import MARK, Group
from tidings_worker.handler import Handler, Outcome
from tidings_worker.ledger import Ledger
from tidings_worker.outage import Outage, Patience
from tidings_worker.warming import WarmQueue
from tidings_worker.watch import Watch


class Changed(Event, type="consumer.changed"):
    user_id: int


@cached(tags=["user:{user_id}"])
async def get_user(user_id: int) -> int:
    return user_id


RULES = Rules()
RULES.map(Changed, tags=["user:{user_id}"], warm=[get_user])


@pytest.fixture
async def new_consumer(url, cache):
    stores, groups = [], []

    async def make(handler, batch=500, block_ms=20, address=url):
        store = RedisStore.connect(Settings(url=address))
        stores.append(store)
        group = Group(store, cache.keys.stream(), "tidings", f"consumer:{len(stores)}")
        watch = Watch(cache, [group], Ledger(store, "events:seen"), no_histories, lambda _: None)
        await watch.check()
        groups.append(group)
        return Consumer(group, handler, watch, Retries(), RetryPolicy(), batch=batch, block_ms=block_ms)

    yield make
    for group in groups:
        await group.aclose()
    for store in stores:
        await store.aclose()


async def no_histories():
    return frozenset(), True


@pytest.fixture
async def handler(url, cache):
    async with redis.asyncio.Redis.from_url(url) as connection:
        yield Handler(cache, RULES, WarmQueue(connection, "warms"), RetryPolicy())


@pytest.fixture
async def running():
    """Run a consumer until the test stops it."""
    stop = asyncio.Event()
    tasks = []
    outage = Outage("the test's", lambda _there, _why: None)

    def run(consumer):
        tasks.append(asyncio.create_task(consumer.run(stop, Patience("consumer", outage, stop))))
        return tasks[-1], stop

    yield run
    stop.set()
    await asyncio.gather(*tasks, return_exceptions=True)


class Recorder:
    """A handler that remembers its batches; `gate` holds one up."""

    def __init__(self, client):
        self.client = client
        self.batches = []
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, _group, entries, *, contiguous, ahead):
        assert contiguous
        self.entered.set()
        await self.gate.wait()
        self.batches.append([entry.stream_id for entry in entries])
        self.client.xack("events", "tidings", *self.batches[-1])
        return Outcome((), incomplete=False)

    @property
    def handled(self):
        return [stream_id for batch in self.batches for stream_id in batch]


@pytest.fixture
def recorder(client):
    return Recorder(client)


def pending(client):
    return client.xpending("events", "tidings")["pending"]


def consumers(client):
    names = [found["name"].decode() for found in client.xinfo_consumers("events", "tidings")]
    return [name for name in names if not name.startswith(MARK)]


def all_acknowledged(client):
    (group,) = client.xinfo_groups("events")
    return group["lag"] == group["pending"] == 0


async def test_the_commands_of_a_batch_are_invalidate_then_hand_off_then_acknowledge(
    client, new_consumer, handler, running, eventually
):
    with client.monitor() as monitor:
        client.xadd("events", {"type": "consumer.changed", "data": '{"user_id": 7}'})
        running(await new_consumer(handler))
        await eventually(lambda: all_acknowledged(client))
        client.echo("the end")
        commands = list(iter(lambda: monitor.next_command()["command"], "ECHO the end"))
    invalidated, handed_off, acknowledged = (
        max(index for index, command in enumerate(commands) if re.match(pattern, command))
        for pattern in (
            r"EVAL.* token:tag:user:7 ",
            r"ZADD warms NX \d+ warms:default:get_user:",
            r"XACK events tidings ",
        )
    )
    assert invalidated < handed_off < acknowledged, commands


async def test_the_group_begins_with_what_was_published_before_the_first_worker(
    client, new_consumer, recorder, running, eventually
):
    ids = [client.xadd("events", {"type": "consumer.changed"}).decode() for _ in range(3)]
    running(await new_consumer(recorder))
    await eventually(lambda: recorder.handled == ids)


async def test_a_group_that_exists_goes_on_where_it_was(client, new_consumer, recorder, running, eventually):
    first = client.xadd("events", {"type": "consumer.changed"}).decode()
    task, stop = running(await new_consumer(recorder))
    await eventually(lambda: recorder.handled == [first])
    stop.set()
    await task
    second = client.xadd("events", {"type": "consumer.changed"}).decode()
    stop.clear()
    running(await new_consumer(recorder))
    await eventually(lambda: recorder.handled == [first, second])


async def test_a_key_that_is_no_stream_is_an_error(client, new_consumer):
    client.set("events", "something else")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await new_consumer(None)


async def test_a_batch_has_no_more_than_the_limit(client, new_consumer, recorder, running, eventually):
    for _ in range(7):
        client.xadd("events", {"type": "consumer.changed"})
    running(await new_consumer(recorder, batch=3))
    await eventually(lambda: len(recorder.handled) == 7)
    assert list(map(len, recorder.batches)) == [3, 3, 1]


async def test_a_stop_finishes_the_batch_in_hand_and_takes_no_more(client, new_consumer, recorder, running):
    for _ in range(5):
        client.xadd("events", {"type": "consumer.changed"})
    recorder.gate.clear()
    task, stop = running(await new_consumer(recorder, batch=2))
    await recorder.entered.wait()
    stop.set()
    recorder.gate.set()
    await asyncio.wait_for(task, 5)
    assert len(recorder.handled) == 2
    assert pending(client) == 0
    assert client.xinfo_groups("events")[0]["lag"] == 3


async def test_what_comes_while_the_last_read_blocks_is_handled_not_lost(
    client, new_consumer, recorder, running, eventually
):
    """The stop is asked for in the middle of a read that the server then still answers."""
    task, stop = running(await new_consumer(recorder, block_ms=1000))
    await eventually(lambda: client.info("clients")["blocked_clients"] == 1, "the blocked read")
    stop.set()
    stream_id = client.xadd("events", {"type": "consumer.changed"}).decode()
    await asyncio.wait_for(task, 5)
    assert recorder.handled == [stream_id]
    assert pending(client) == 0


async def test_what_the_handler_raises_ends_the_loop_with_the_batch_pending(client, new_consumer, running):
    class Broken:
        async def handle(self, *_, contiguous, ahead):
            raise ZeroDivisionError

    client.xadd("events", {"type": "consumer.changed"})
    consumer = await new_consumer(Broken())
    task, _ = running(consumer)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(task, 5)
    assert pending(client) == 1
    await consumer.group.leave()
    assert pending(client) == 1
    assert consumers(client) == [consumer.group.name]


async def test_a_consumer_with_nothing_pending_leaves_no_trace_in_the_group(client, new_consumer, recorder, running):
    consumer = await new_consumer(recorder)
    client.xadd("events", {"type": "consumer.changed"})
    task, stop = running(consumer)
    await recorder.entered.wait()
    stop.set()
    await asyncio.wait_for(task, 5)
    await consumer.group.leave()
    assert consumers(client) == []


async def test_two_consumers_share_the_work_and_do_nothing_twice(client, new_consumer, running, eventually):
    ids = [client.xadd("events", {"type": "consumer.changed"}).decode() for _ in range(100)]
    recorders = [Recorder(client), Recorder(client)]
    for recorder in recorders:
        running(await new_consumer(recorder, batch=5))
    await eventually(lambda: sum(len(recorder.handled) for recorder in recorders) >= 100)
    assert sorted(recorders[0].handled + recorders[1].handled, key=ids.index) == ids
    assert recorders[0].handled
    assert recorders[1].handled
    assert pending(client) == 0


async def test_a_stream_of_good_and_bad_entries_is_worked_off_with_nothing_left(
    client, new_consumer, handler, running, eventually
):
    for number in range(60):
        client.xadd(
            "events",
            [
                {"type": "consumer.changed", "data": f'{{"user_id": {number}}}'},
                {"type": "consumer.changed", "data": b"\xff"},
                {"type": "consumer.nobody"},
            ][number % 3],
        )
    running(await new_consumer(handler, batch=7))
    await eventually(lambda: all_acknowledged(client))
    assert client.xlen("events:dead") == 20
    assert client.hget("events:counts", "applied") == b"40"
    assert client.hget("events:counts", "unruled") == b"20"


async def test_a_url_may_ask_for_the_third_version_of_the_protocol(url, client, new_consumer, recorder, running):
    stream_id = client.xadd("events", {"type": "consumer.changed"}).decode()
    consumer = await new_consumer(recorder, address=f"{url}?protocol=3")
    task, stop = running(consumer)
    await asyncio.wait({task, asyncio.create_task(recorder.entered.wait())}, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    await asyncio.wait_for(task, 5)
    assert recorder.handled == [stream_id]
    await consumer.group.leave()
    assert consumers(client) == []
