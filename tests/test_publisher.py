"""Publishing and receipts, against a server whose worker the test plays itself."""

import asyncio
import signal
import sys
import threading
from dataclasses import replace

import pytest
from redis.exceptions import ClusterDownError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from tidings import Cache, Event
from tidings.applied import FIRST_ASK, Board, Waiter
from tidings.errors import DeadLetteredError, EventError, NotAppliedError, PublishError, UnavailableError
from tidings.keys import Keyspace
from tidings.publisher import SyncReceipt, covers
from tidings.thread_hearing import _ThreadDesk


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
            pipe.xadd(self.keys.dead, {"reason": dead, "stream": self.keys.events, "stream_id": stream_id})
        pipe.xack(self.keys.events, "tidings", stream_id)
        pipe.xadd(self.keys.stream().applied, {"ids": "" if dead else stream_id, "dead": stream_id if dead else ""})
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
    async with Cache("redis://127.0.0.1:1/0") as gone:
        lost = replace(receipt, _hearing=gone.reader().hearing)
        with pytest.raises(UnavailableError, match=receipt.event_id):
            await lost.applied(1)


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


# Many who wait


def asked_of(client, *commands):
    """How often the server was asked any of these."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in commands)


def connections(client):
    return client.info("clients")["connected_clients"]


async def applied_at_once(cache, worker, receipts):
    """Have the worker take all of them, and acknowledge them in one word."""
    taken = await worker.client.xreadgroup("tidings", "me", {cache.keys.events: ">"}, count=len(receipts))
    ids = [stream_id.decode() for stream_id, _ in taken[0][1]]
    await worker.client.xadd(cache.keys.stream().applied, {"ids": f"{ids[0]}..{ids[-1]}", "dead": ""})
    await worker.client.xack(cache.keys.events, "tidings", *ids)


async def test_a_thousand_who_wait_cost_the_server_what_a_few_do(cache, worker, client, eventually):
    """They are asked after once at least before the word comes; each had a connection and questions of its own once."""
    receipts = await asyncio.gather(*(cache.publish(Paid(order_id=n)) for n in range(1000)))
    client.config_resetstat()
    before = connections(client)
    waiting = [asyncio.create_task(receipt.applied(60)) for receipt in receipts]
    await eventually(lambda: asked_of(client, "xinfo|groups"), "a question")
    assert connections(client) <= before + 4
    await applied_at_once(cache, worker, receipts)
    await asyncio.gather(*waiting)
    assert asked_of(client, "xread", "xinfo|groups", "xpending", "xrange") < 100


async def test_threads_that_wait_share_one_connection_and_one_question(cache, worker, client, eventually):
    receipts = await asyncio.gather(*(cache.publish(Paid(order_id=n)) for n in range(100)))
    sync = [replace_hearing(receipt, cache) for receipt in receipts]
    client.config_resetstat()
    before = connections(client)
    threads = [threading.Thread(target=receipt.applied, args=(60,)) for receipt in sync]
    for thread in threads:
        thread.start()
    await eventually(lambda: asked_of(client, "xinfo|groups"), "a question")
    assert connections(client) <= before + 4
    await applied_at_once(cache, worker, receipts)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert asked_of(client, "xread", "xinfo|groups", "xpending", "xrange") < 60


def replace_hearing(receipt, cache):
    """The receipt as a thread would have it."""
    return SyncReceipt(receipt.id, receipt.event_id, receipt.stream, cache.keys, cache.sync.reader.hearing)


async def test_who_is_cancelled_leaves_the_others_waiting(cache, worker):
    receipt = await cache.publish(Paid(order_id=1))
    first, second = (asyncio.create_task(receipt.applied(60)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await worker.acknowledge(await worker.take())
    await second


async def test_whoever_comes_when_the_word_was_read_for_others_is_told_of_it(cache, worker, client):
    """The listener listens for `other`; the word about `receipt` comes before anybody waits for it."""
    other, receipt = await cache.publish(Paid(order_id=1)), await cache.publish(Paid(order_id=2))
    waiting = asyncio.create_task(other.applied(60))
    first, second = await worker.take(), await worker.take()
    await worker.acknowledge(second)
    board = cache.reader().hearing._desks[cache.keys.stream()]._board
    while not board._words:
        await asyncio.sleep(0.001)
    client.config_resetstat()
    await receipt.applied(0)
    assert asked_of(client, "xinfo|groups") == 0, "it was remembered"
    await worker.acknowledge(first)
    await waiting


async def test_a_thread_that_goes_leaves_the_listening_to_another_at_once(board):
    woken = []
    desk = _ThreadDesk(board, None, None)
    listener, other = (Waiter("5-0", "event", 60.0, 60.0, lambda name=name: woken.append(name), 1.0) for name in "ab")
    board.add(listener, listening=False)
    board.add(other, listening=True)
    desk._listener = listener
    desk._leave(listener)
    assert (woken, desk._listener) == (["b"], None)


async def test_timeouts_of_their_own_and_reasons_of_their_own(cache, worker):
    taken, unread = await cache.publish(Paid(order_id=1)), await cache.publish(Paid(order_id=2))
    await worker.take()
    outcomes = await asyncio.gather(taken.applied(0.01), unread.applied(0.02), return_exceptions=True)
    assert [str(outcome).partition(": ")[2] for outcome in outcomes] == [
        "a worker has it and has not acknowledged it",
        "no worker has read it yet",
    ]


async def test_more_pending_than_one_answer_holds(cache, worker, monkeypatch):
    monkeypatch.setattr("tidings.applied._PENDING_PAGE", 3)
    receipts = [await cache.publish(Paid(order_id=n)) for n in range(12)]
    ids = [await worker.take() for _ in receipts]
    await worker.client.xack(cache.keys.events, "tidings", ids[1], ids[10])
    outcomes = await asyncio.gather(*(receipt.applied(0) for receipt in receipts), return_exceptions=True)
    assert [index for index, outcome in enumerate(outcomes) if outcome is None] == [1, 10]


async def test_more_dead_letters_than_one_answer_holds(cache, worker, monkeypatch):
    monkeypatch.setattr("tidings.applied._DEAD_PAGE", 2)
    receipts = [await cache.publish(Paid(order_id=n)) for n in range(5)]
    for index in range(len(receipts)):
        await worker.acknowledge(await worker.take(), dead=f"reason {index}")
    outcomes = await asyncio.gather(*(receipt.applied(1) for receipt in receipts), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == [f"reason {index}" for index in range(5)]


async def test_the_dead_letter_of_another_partition_is_not_ones_own(url):
    """Two partitions have an entry with the same id; the other's is dead."""
    async with Cache(url, partitions=2) as cache:
        receipt = await cache.publish(Paid(order_id=1), subject="a")
        client = cache.reader().store.client
        [other] = set(cache.keys.streams(2)[1:]) - {receipt.stream}
        await client.xadd(cache.keys.dead, {"reason": "x", "stream": other.events, "stream_id": receipt.id})
        await client.xgroup_create(receipt.stream.events, "tidings", id="0")
        await client.xreadgroup("tidings", "me", {receipt.stream.events: ">"})
        await client.xadd(other.applied, {"ids": receipt.id, "dead": ""})
        with pytest.raises(NotAppliedError, match="has not acknowledged it"):
            await receipt.applied(0.01)
        await client.xack(receipt.stream.events, "tidings", receipt.id)
        await receipt.applied(0)


async def test_a_word_that_cannot_be_read_is_found_out_by_asking(cache, worker):
    receipt = await cache.publish(Paid(order_id=1))
    waiting = asyncio.create_task(receipt.applied(60))
    stream_id = await worker.take()
    await worker.client.xadd(cache.keys.stream().applied, {"ids": "x..\xff", "else": "1-1"})
    await worker.client.xack(cache.keys.events, "tidings", stream_id)
    await waiting


async def test_a_refusal_is_no_word(cache, worker):
    """What is not a stream there is answered with an error; it says nothing of the event."""
    receipt = await cache.publish(Paid(order_id=1))
    await worker.client.set(cache.keys.stream().applied, "no stream")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        await receipt.applied(60)


async def test_a_frozen_server_raises_for_all_who_wait(new_server):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:
        receipt = await cache.publish(Paid(order_id=1))
        sync = replace_hearing(receipt, cache)
        server._process.send_signal(signal.SIGSTOP)
        waiting = [receipt.applied(60), receipt.applied(60), asyncio.to_thread(sync.applied, 60)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 3


async def test_closing_ends_the_waits_and_leaves_no_task(url):
    before = asyncio.all_tasks()
    cache = Cache(url)
    receipt = await cache.publish(Paid(order_id=1))
    waiting = asyncio.create_task(receipt.applied(60))
    await asyncio.sleep(0.1)  # it has been asked once
    await cache.aclose()
    with pytest.raises(UnavailableError, match="closed"):
        await waiting
    assert asyncio.all_tasks() == before


async def test_nobody_listens_when_nobody_waits(cache, worker, eventually):
    receipt = await cache.publish(Paid(order_id=1))
    await worker.acknowledge(await worker.take())
    await receipt.applied(5)
    desk = cache.reader().hearing._desks[cache.keys.stream()]
    await eventually(lambda: desk._listener.done() and desk._timer is None, "the listener and the timer to end")


def test_each_event_loop_listens_for_itself(url):
    cache = Cache(url)

    async def run(order_id):
        worker = Worker(cache)
        if order_id == 1:
            await worker.start()
        receipt = await cache.publish(Paid(order_id=order_id))
        waiting = asyncio.create_task(receipt.applied(60))
        await worker.acknowledge(await worker.take())
        await waiting
        if order_id == 2:
            await cache.aclose()

    for order_id in (1, 2):
        asyncio.run(run(order_id))


FORKS = """
import os, sys, threading
from tidings import Cache, Event

class Paid(Event, type="test.paid_forked"):
    order_id: int

cache = Cache(sys.argv[1])
client = cache.sync.reader.store.client
receipt = cache.sync.publish(Paid(order_id=1))
threading.Thread(target=receipt.applied, args=(60,), daemon=True).start()
while not client.info("clients")["blocked_clients"]:
    pass
child = os.fork()
if child == 0:
    assert not cache.sync.reader.hearing._desks
    waiting = threading.Thread(target=receipt.applied, args=(60,))
    waiting.start()
    client.xgroup_create("events", "tidings", id="0")
    client.xreadgroup("tidings", "me", {"events": ">"})
    client.xack("events", "tidings", receipt.id)
    client.xadd("events:applied", {"ids": receipt.id, "dead": ""})
    waiting.join()
    receipt.applied(0)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
receipt.applied(60)
"""


def test_a_forked_child_waits_for_itself(shell, url):
    """A thread of the parent listens, and is not there in the child."""
    shell.write("forks.py", FORKS)
    process = shell.start_program(sys.executable, "-W", "ignore", "forks.py", url)
    assert (process.wait(30), process.out, process.err) == (0, "0\n", "")


SCRIPT = """
import asyncio, sys
from tidings import Cache, Event
from tidings.errors import NotAppliedError

class Paid(Event, type="test.paid_script"):
    order_id: int

async def main():
    receipt = await Cache(sys.argv[1]).publish(Paid(order_id=1))
    try:
        await receipt.applied(0.1)
    except NotAppliedError:
        print("not applied")

asyncio.run(main())
"""


def test_a_script_that_simply_ends_is_told_nothing_of_connections(shell, url):
    shell.write("script.py", SCRIPT)
    process = shell.start_program(sys.executable, "-X", "dev", "script.py", url)
    assert (process.wait(30), process.out, process.err) == (0, "not applied\n", "")


# The board, without a server


@pytest.fixture
def board():
    return Board(Keyspace().stream(), Keyspace(), "tidings")


def waiter(stream_id, *, due=1.0):
    return Waiter(stream_id, "event", 60.0, 60.0, lambda: None, due)


def heard(*words):
    """The reply to a read that brought these words, each an id and the events that it says are applied."""
    entries = [(word.encode(), {b"ids": ids.encode(), b"dead": b""}) for word, ids in words]
    return [[[b"events:applied", entries]]]


def test_one_from_before_the_listening_began_is_asked_after_at_once(board):
    early, late = waiter("5-0"), waiter("9-0")
    board.add(late, listening=False)
    board.add(early, listening=True)
    assert (board.ask_at(late), board.ask_at(early)) == (1.0, float("-inf"))


def test_one_from_before_the_listening_began_is_listened_for_when_nobody_listens(board):
    early, late = waiter("5-0"), waiter("9-0")
    board.add(late, listening=False)
    board.add(early, listening=False)
    assert board.position == "4-0"
    board.take(heard(("6-0", "5-0")))
    assert (early.over, late.over) == (True, False)


def test_one_from_before_what_is_remembered_is_asked_after_at_once(board, monkeypatch):
    monkeypatch.setattr("tidings.applied._REMEMBERED", 2)
    board.add(waiter("2-0"), listening=False)
    board.take(heard(("10-0", "3-0"), ("20-0", "4-0"), ("30-0", "15-0")))
    forgotten, remembered = waiter("3-0"), waiter("15-0")
    board.add(forgotten, listening=True)
    board.add(remembered, listening=True)
    assert (forgotten.over, board.ask_at(forgotten), remembered.over) == (False, float("-inf"), True)


def test_a_word_from_before_the_event_is_not_about_it(board):
    """The stream was deleted and begun anew: its ids are used again."""
    board.add(waiter("2-0"), listening=False)
    event = waiter("50-0")
    board.add(event, listening=True)
    board.take(heard(("10-0", "50-0")))
    again = waiter("50-0")
    board.add(again, listening=True)
    assert (event.over, again.over) == (False, False)


def test_questions_keep_their_distance(board):
    board.add(waiter("5-0", due=1.0), listening=False)
    assert board.ask_at() == 1.0
    next(board.asking(1.0))
    board.add(waiter("6-0", due=1.01), listening=True)
    assert board.ask_at() == 1.0 + FIRST_ASK


def test_what_a_deadline_ends_is_asked_after_once_more(board):
    one = waiter("5-0", due=59.5)
    board.add(one, listening=False)
    asking = board.asking(59.5)
    next(asking)
    with pytest.raises(StopIteration):
        asking.send([ResponseError("no such key"), ResponseError("NOGROUP")])
    assert (one.over, board.ask_at()) == (False, 60.0)
    asking = board.asking(60.0)
    next(asking)
    with pytest.raises(StopIteration):
        asking.send([ResponseError("no such key"), ResponseError("NOGROUP")])
    assert (one.over, bool(board)) == (True, False)
    with pytest.raises(NotAppliedError, match="not applied after 60 s: its stream is gone"):
        one.result()


@pytest.mark.parametrize("error", [MovedError("5 127.0.0.1:1"), ClusterDownError("x"), RedisConnectionError("x")])
def test_a_server_that_does_not_serve_the_stream_says_nothing_of_it(board, error):
    board.add(waiter("5-0"), listening=False)
    asking = board.asking(1.0)
    next(asking)
    with pytest.raises(type(error)):
        asking.send([error, error])


def test_a_word_of_a_dead_letter_has_it_asked_after_at_once(board):
    one, other = waiter("5-0"), waiter("6-0")
    board.add(one, listening=False)
    board.add(other, listening=True)
    reply = heard(("9-0", ""))
    reply[0][0][1][0][1][b"dead"] = b"5-0"
    assert board.take(reply)
    assert (board.ask_at(one), board.ask_at(other)) == (float("-inf"), 1.0)
