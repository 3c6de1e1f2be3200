"""One connection for every caller of an event loop: what is shared, and what a failure takes with it."""

import asyncio

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from tidings.batching import Multiplexer


class Peer:
    """Accepts connections and answers when the test says so."""

    def __init__(self):
        self.connections = 0
        self.received = bytearray()
        self.writer = None
        self.arrived = asyncio.Event()

    async def start(self):
        self.listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.listener.sockets[0].getsockname()[1]
        return redis.asyncio.ConnectionPool(host="127.0.0.1", port=port, lib_name=None, lib_version=None)

    async def _serve(self, reader, writer):
        self.connections += 1
        self.writer = writer
        while data := await reader.read(65536):
            self.received += data
            self.arrived.set()
        writer.close()

    async def next_arrival(self):
        self.arrived.clear()
        await self.arrived.wait()

    async def stop(self):
        self.listener.close()
        if self.writer is not None:
            self.writer.close()


@pytest.fixture
async def peer():
    made = Peer()
    yield made
    await made.stop()


@pytest.fixture
async def multiplexer(peer):
    pool = await peer.start()
    made = Multiplexer(pool.make_connection, timeout=5)
    yield made
    await made.aclose()


async def test_replies_belong_to_those_who_asked_whatever_the_order_of_awaiting(url):
    pool = redis.asyncio.ConnectionPool.from_url(url)
    multiplexer = Multiplexer(pool.make_connection, timeout=5)
    futures = [multiplexer.exchange([("ECHO", f"{n}"), ("ECHO", "again")]) for n in range(500)]
    assert [await future for future in reversed(futures)] == [[f"{n}".encode(), b"again"] for n in reversed(range(500))]
    await multiplexer.aclose()


async def test_an_error_reply_is_a_reply_and_the_others_get_theirs(url):
    pool = redis.asyncio.ConnectionPool.from_url(url)
    multiplexer = Multiplexer(pool.make_connection, timeout=5)
    before, wrong, after = (multiplexer.exchange([c]) for c in (("ECHO", "a"), ("NOSUCH",), ("ECHO", "b")))
    assert [await before, await after] == [[b"a"], [b"b"]]
    assert isinstance((await wrong)[0], ResponseError)
    await multiplexer.aclose()


async def test_what_one_tick_sends_goes_out_together_on_one_connection(multiplexer, peer):
    first = multiplexer.exchange([("PING",)])
    await peer.next_arrival()
    peer.writer.write(b"+PONG\r\n")
    await first
    peer.received.clear()
    futures = [multiplexer.exchange([("ECHO", str(n))]) for n in range(3)]
    await peer.next_arrival()
    assert peer.received.count(b"ECHO") == 3
    peer.writer.write(b"$1\r\n0\r\n$1\r\n1\r\n$1\r\n2\r\n")
    assert await asyncio.gather(*futures) == [[b"0"], [b"1"], [b"2"]]
    assert peer.connections == 1


async def test_a_caller_that_goes_away_does_not_shift_the_replies(multiplexer, peer):
    first, second = multiplexer.exchange([("ECHO", "a")]), multiplexer.exchange([("ECHO", "b")])
    await peer.next_arrival()
    first.cancel()
    peer.writer.write(b"$1\r\na\r\n$1\r\nb\r\n")
    assert await second == [b"b"]


async def test_a_lost_connection_fails_what_is_under_way_and_the_next_call_makes_another(multiplexer, peer):
    under_way = [multiplexer.exchange([("PING",)]) for _ in range(2)]
    await peer.next_arrival()
    peer.writer.close()
    for future in under_way:
        with pytest.raises(RedisConnectionError):
            await future
    after = multiplexer.exchange([("PING",)])
    await peer.next_arrival()
    peer.writer.write(b"+PONG\r\n")
    assert await after == [b"PONG"]
    assert peer.connections == 2


async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again(multiplexer, peer):
    first = multiplexer.exchange([("PING",)])
    await peer.next_arrival()
    peer.writer.write(b"+PONG\r\n")
    await first
    peer.writer.close()
    async with asyncio.timeout(5):
        while not multiplexer._link.lost:
            await asyncio.sleep(0)
    after = multiplexer.exchange([("PING",)])
    await peer.next_arrival()
    peer.writer.write(b"+PONG\r\n")
    assert await after == [b"PONG"]


async def test_an_answer_that_does_not_come_fails_all_who_wait_behind_it(peer):
    pool = await peer.start()
    multiplexer = Multiplexer(pool.make_connection, timeout=0.05)
    futures = [multiplexer.exchange([("PING",)]) for _ in range(3)]
    for future in futures:
        with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
            await future
    await multiplexer.aclose()


async def test_nobody_listening_fails_at_once(peer):
    pool = await peer.start()
    await peer.stop()
    multiplexer = Multiplexer(pool.make_connection, timeout=5)
    with pytest.raises(RedisConnectionError):
        await multiplexer.exchange([("PING",)])
    await multiplexer.aclose()


async def test_closing_fails_what_is_under_way(multiplexer, peer):
    future = multiplexer.exchange([("PING",)])
    await peer.next_arrival()
    await multiplexer.aclose()
    with pytest.raises(RedisConnectionError):
        await future


def test_an_event_loop_that_ends_without_closing_leaves_no_warning(url):
    async def use():
        pool = redis.asyncio.ConnectionPool.from_url(url)
        assert await Multiplexer(pool.make_connection, timeout=5).exchange([("PING",)]) == [b"PONG"]

    for _ in range(2):
        asyncio.run(use())  # warnings are errors here


async def test_a_command_that_cannot_be_packed_shifts_nobodys_replies(url):
    pool = redis.asyncio.ConnectionPool.from_url(url)
    multiplexer = Multiplexer(pool.make_connection, timeout=5)
    before = multiplexer.exchange([("ECHO", "before")])
    with pytest.raises(UnicodeEncodeError):
        multiplexer.exchange([("ECHO", "fine"), ("ECHO", "\ud800")])
    after = multiplexer.exchange([("ECHO", "after")])
    assert [await before, await after] == [[b"before"], [b"after"]]
    await multiplexer.aclose()
