"""Publishing and receipts, against a server whose worker the test plays itself."""

import asyncio

import pytest
from tidings import Cache, Event
from tidings.errors import DeadLetteredError, EventError, NotAppliedError, PublishError, UnavailableError
from tidings.publisher import covers


class Paid(Event, type="test.paid"):
    order_id: int


class Worker:
    """Reads and acknowledges one event at a time, as a worker's handler does."""

    def __init__(self, cache):
        self.client = cache.reader().store.client
        self.keys = cache.keys

    async def start(self):
        await self.client.xgroup_create(self.keys.events, "tidings", id="0", mkstream=True)

    async def take(self):
        [[_, [(stream_id, _)]]] = await self.client.xreadgroup("tidings", "me", {self.keys.events: ">"}, count=1)
        return stream_id.decode()

    async def acknowledge(self, stream_id, *, dead=None):
        pipe = self.client.pipeline(transaction=True)
        if dead:
            pipe.xadd(self.keys.dead, {"reason": dead, "stream_id": stream_id})
        pipe.xack(self.keys.events, "tidings", stream_id)
        pipe.xadd(self.keys.applied, {"ids": "" if dead else stream_id, "dead": stream_id if dead else ""})
        await pipe.execute()


@pytest.fixture
async def worker(cache):
    worker = Worker(cache)
    await worker.start()
    return worker


async def test_a_receipt_names_the_entry_and_the_event(cache):
    receipt = await cache.publish(Paid(order_id=1))
    [(stream_id, fields)] = await cache.reader().store.client.xrange(cache.keys.events)
    assert (receipt.id, receipt.event_id) == (stream_id.decode(), fields[b"id"].decode())


async def test_publishing_from_a_thread_writes_the_same(cache):
    receipt = await asyncio.to_thread(cache.sync.publish, Paid(order_id=1), subject="order:1")
    [(stream_id, fields)] = await cache.reader().store.client.xrange(cache.keys.events)
    assert receipt.id == stream_id.decode()
    assert fields[b"subject"] == b"order:1"


async def test_data_that_do_not_fit_write_nothing(cache):
    with pytest.raises(EventError):
        await cache.publish(Paid.model_construct(order_id="x"))
    assert not await cache.reader().store.client.exists(cache.keys.events)


async def test_applied_returns_once_the_worker_has_acknowledged(cache, worker):
    receipt = await cache.publish(Paid(order_id=1))
    waiting = asyncio.create_task(receipt.applied(5))
    stream_id = await worker.take()
    with pytest.raises(NotAppliedError, match="a worker has it and has not acknowledged it"):
        await receipt.applied(0)
    await worker.acknowledge(stream_id)
    await waiting
    await receipt.applied(0)  # and it stays applied


async def test_applied_from_a_thread(cache, worker):
    receipt = await asyncio.to_thread(cache.sync.publish, Paid(order_id=1))
    waiting = asyncio.create_task(asyncio.to_thread(receipt.applied, 5))
    await worker.acknowledge(await worker.take())
    await waiting


async def test_the_ack_of_another_event_is_not_taken_for_ones_own(cache, worker):
    first, second = await cache.publish(Paid(order_id=1)), await cache.publish(Paid(order_id=2))
    waiting = asyncio.create_task(second.applied(5))
    await worker.acknowledge(await worker.take())
    await first.applied(1)
    with pytest.raises(NotAppliedError, match="no worker has read it yet"):
        await second.applied(0)
    assert not waiting.done()
    await worker.acknowledge(await worker.take())
    await waiting


async def test_a_worker_that_dies_between_ack_and_word_is_noticed_all_the_same(cache, worker):
    receipt = await cache.publish(Paid(order_id=1))
    waiting = asyncio.create_task(receipt.applied(10))
    await worker.client.xack(cache.keys.events, "tidings", await worker.take())
    await waiting


@pytest.mark.parametrize("late", [False, True])
async def test_a_dead_letter_is_an_error_with_its_reason(cache, worker, late):
    receipt = await cache.publish(Paid(order_id=1))
    stream_id = await worker.take()
    waiting = None if late else asyncio.create_task(receipt.applied(5))
    await worker.acknowledge(stream_id, dead="nobody can read this")
    with pytest.raises(DeadLetteredError, match="nobody can read this"):
        await (receipt.applied(5) if waiting is None else waiting)


async def test_without_a_worker_the_timeout_says_so(cache):
    receipt = await cache.publish(Paid(order_id=1))
    with pytest.raises(NotAppliedError, match=r"no worker of the group 'tidings' has read the stream yet") as caught:
        await receipt.applied(0.01)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(NotAppliedError):
        (await asyncio.to_thread(cache.sync.publish, Paid(order_id=1))).applied(0.01)


async def test_a_stream_that_is_gone_is_said_to_be(cache, worker):
    receipt = await cache.publish(Paid(order_id=1))
    await cache.reader().store.client.flushall()
    with pytest.raises(NotAppliedError, match="its stream is gone"):
        await receipt.applied(0.01)


async def test_redis_unreachable_raises_and_shows_no_password():
    async with Cache("redis://app:s3cret@127.0.0.1:1/0") as cache:
        with pytest.raises(PublishError) as caught:
            await cache.publish(Paid(order_id=1))
        assert "s3cret" not in str(caught.value)
        with pytest.raises(PublishError):
            cache.sync.publish(Paid(order_id=1))


async def test_a_receipt_whose_server_goes_away_raises_unavailable(cache, worker):
    receipt = await cache.publish(Paid(order_id=1))
    gone = Cache("redis://127.0.0.1:1/0")
    lost = type(receipt)(receipt.id, receipt.event_id, cache.keys, "tidings", gone.reader().store)
    with pytest.raises(UnavailableError):
        await lost.applied(1)
    await gone.aclose()


async def test_in_memory_nothing_applies_events():
    async with Cache("memory://") as cache:
        receipt = await cache.publish(Paid(order_id=1))
        with pytest.raises(NotAppliedError, match="no worker"):
            await receipt.applied(1)


@pytest.mark.parametrize(
    ("ranges", "stream_id", "covered"),
    [
        ("5-0", "5-0", True),
        ("5-0..5-9", "5-9", True),
        ("5-0..5-9 7-1", "7-1", True),
        ("5-0..5-9 7-1", "6-0", False),
        ("5-2..10-0", "9-99", True),
        ("", "5-0", False),
    ],
)
def test_ranges_cover_what_they_say(ranges, stream_id, covered):
    assert covers(ranges, stream_id) is covered
