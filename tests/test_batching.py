"""One connection for every caller of an event loop: what is shared, and what a failure takes with it."""

import asyncio
import signal
import socket
import subprocess
import sys

import hiredis
import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError
from tidings import link
from tidings.batching import Multiplexer
from tidings.errors import UnavailableError
from tidings.operations import Ping
from tidings.scripts import Script
from tidings.settings import GivenSettings
from tidings.store import RedisStore


def mget(*keys):
    return hiredis.pack_command(("MGET", *keys))


class Do:
    """Any one command as an operation."""

    def __init__(self, *command):
        self.commands = [command]

    def parse(self, replies):
        return replies[0]


CLIENT_ID = Do("CLIENT", "ID")


class Peer:
    """Accepts connections and answers when the test says so."""

    def __init__(self):
        self.connections = 0
        self.received = bytearray()
        self.writer = None
        self.arrived = asyncio.Event()
        self.reading = asyncio.Event()

    async def start(self, *, reads=True):
        if reads:
            self.reading.set()
        self.listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.listener.sockets[0].getsockname()[1]
        return redis.asyncio.ConnectionPool(host="127.0.0.1", port=port, lib_name=None, lib_version=None)

    async def _serve(self, reader, writer):
        self.connections += 1
        self.writer = writer
        await self.reading.wait()
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


@pytest.fixture(params=["hiredis", "redis-py"])
def reading(request, monkeypatch):
    """Who reads the replies: our protocol, or redis-py where hiredis is missing."""
    if request.param == "redis-py":
        monkeypatch.setattr(link, "hiredis", None)


@pytest.fixture
async def multiplexer(reading, peer):
    pool = await peer.start()
    made = Multiplexer(pool.make_connection, timeout=5)
    yield made
    await made.aclose()


@pytest.fixture
async def opened(multiplexer, peer):
    """A multiplexer whose connection is made: the rest of the tick decides what goes out."""
    first = multiplexer.exchange([("PING",)])
    await peer.next_arrival()
    peer.writer.write(b"+PONG\r\n")
    await first
    peer.received.clear()
    return multiplexer


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


async def test_what_one_tick_sends_goes_out_together_on_one_connection(opened, peer):
    futures = [opened.exchange([("ECHO", str(n))]) for n in range(3)]
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


async def test_what_comes_after_the_closing_fails_and_connects_no_more(multiplexer, peer):
    await multiplexer.aclose()
    for future in (multiplexer.exchange([("PING",)]), multiplexer.read(("a",))):
        with pytest.raises(link.ClosedError):
            await future
    assert peer.connections == 0


async def test_a_store_that_was_closed_makes_no_second_connection_either(url, client):
    before = len(client.client_list())
    store = RedisStore.connect(GivenSettings(url=url))
    await store.run(Ping())
    await store.aclose()
    for bulk in (False, True):
        with pytest.raises(UnavailableError):
            await store.run(Ping(), bulk=bulk)
        with pytest.raises(UnavailableError):
            await store.read(("a",), bulk=bulk)
    assert len(client.client_list()) == before


def test_an_event_loop_that_ends_without_closing_leaves_no_warning(url):
    async def use():
        pool = redis.asyncio.ConnectionPool.from_url(url)
        assert await Multiplexer(pool.make_connection, timeout=5).exchange([("PING",)]) == [b"PONG"]

    for _ in range(2):
        asyncio.run(use())  # warnings are errors here


async def test_no_commands_have_no_replies(multiplexer):
    assert await multiplexer.exchange([]) == []


async def test_a_command_that_cannot_be_packed_shifts_nobodys_replies(url):
    pool = redis.asyncio.ConnectionPool.from_url(url)
    multiplexer = Multiplexer(pool.make_connection, timeout=5)
    before = multiplexer.exchange([("ECHO", "before")])
    with pytest.raises(UnicodeEncodeError):
        multiplexer.exchange([("ECHO", "fine"), ("ECHO", "\ud800")])
    after = multiplexer.exchange([("ECHO", "after")])
    assert [await before, await after] == [[b"before"], [b"after"]]
    await multiplexer.aclose()


# Reads: one MGET a tick


async def test_reads_of_one_tick_are_one_mget_of_the_distinct_keys(opened, peer):
    futures = [opened.read(keys) for keys in (("a", "t"), ("b", "t"), ("t", "a", "a"))]
    await peer.next_arrival()
    assert peer.received == mget("a", "t", "b")
    peer.writer.write(b"*3\r\n$1\r\nA\r\n$1\r\nT\r\n$-1\r\n")
    assert await asyncio.gather(*futures) == [[b"A", b"T"], [None, b"T"], [b"T", b"A", b"A"]]


async def test_readers_who_share_a_reply_get_lists_of_their_own(opened, peer):
    first, second = opened.read(("a",)), opened.read(("a",))
    await peer.next_arrival()
    peer.writer.write(b"*1\r\n$1\r\nA\r\n")
    (await first).clear()
    assert await second == [b"A"]


async def test_a_read_that_is_under_way_is_not_joined(opened, peer):
    """What it will see may be from before an invalidation that was acknowledged since."""
    first = opened.read(("a",))
    await peer.next_arrival()
    second = opened.read(("a",))
    await peer.next_arrival()
    assert peer.received == mget("a") * 2
    peer.writer.write(b"*1\r\n$3\r\nold\r\n*1\r\n$3\r\nnew\r\n")
    assert [await first, await second] == [[b"old"], [b"new"]]


async def test_operations_of_a_tick_go_out_before_its_reads(opened, peer):
    read, fill = opened.read(("a",)), opened.exchange([("SET", "a", "1")])
    await peer.next_arrival()
    assert peer.received == hiredis.pack_command(("SET", "a", "1")) + mget("a")
    peer.writer.write(b"+OK\r\n*1\r\n$1\r\n1\r\n")
    assert [await fill, await read] == [[b"OK"], [b"1"]]


async def test_whoever_reads_after_a_fill_was_sent_finds_it(url):
    store = RedisStore.connect(GivenSettings(url=url))
    for n in range(200):
        fill = asyncio.ensure_future(store.run(Do("SET", "key", n)))
        await asyncio.sleep(0)  # the fill is sent; nobody has waited for its reply
        assert await store.read(("key",)) == [str(n).encode()]
        await fill
    await store.aclose()


async def test_a_reader_that_goes_away_leaves_the_others_theirs(opened, peer):
    gone, stays = opened.read(("a", "t")), opened.read(("a", "t"))
    await peer.next_arrival()
    gone.cancel()
    peer.writer.write(b"*2\r\n$1\r\nA\r\n$1\r\nT\r\n")
    assert await stays == [b"A", b"T"]


async def test_reads_that_wait_for_the_connection_go_out_together(multiplexer, peer):
    first = multiplexer.read(("a",))
    await asyncio.sleep(0)
    second = multiplexer.read(("a",))
    await peer.next_arrival()
    assert peer.received == mget("a")
    peer.writer.write(b"*1\r\n$1\r\nA\r\n")
    assert [await first, await second] == [[b"A"], [b"A"]]


async def test_an_error_reply_fails_all_who_share_the_read_and_nobody_else(opened, peer):
    first, second = opened.read(("a",)), opened.read(("b",))
    await peer.next_arrival()
    later = opened.read(("c",))
    await peer.next_arrival()
    peer.writer.write(b"-NOPERM no\r\n*1\r\n$1\r\nC\r\n")
    failures = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(failure) for failure in failures] == [NoPermissionError] * 2
    assert await later == [b"C"]


async def test_a_key_that_cannot_be_sent_fails_its_reader_alone(opened, peer):
    wrong, right = opened.read(("a", "\ud800")), opened.read(("a",))
    with pytest.raises(UnicodeEncodeError):
        await wrong
    await peer.next_arrival()
    peer.writer.write(b"*1\r\n$1\r\nA\r\n")
    assert await right == [b"A"]


async def test_a_thousand_readers_at_once_cost_two_commands(url, client):
    store = RedisStore.connect(GivenSettings(url=url))
    client.mset({f"key:{n}": n for n in range(100)})
    await store.run(Ping())
    client.config_resetstat()
    keys = [(f"key:{n % 100}", "absent", f"key:{n % 7}") for n in range(1000)]
    values = await asyncio.gather(*map(store.read, keys))
    assert values == [[str(n % 100).encode(), None, str(n % 7).encode()] for n in range(1000)]
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == 2
    await store.aclose()


# Losing the connection


async def test_what_has_not_been_sent_when_the_connection_is_lost_goes_out_on_the_next(opened, peer):
    sent = opened.read(("a",))
    await peer.next_arrival()
    opened._link.pause_writing()
    unsent = opened.read(("b",))
    peer.writer.close()
    with pytest.raises(RedisConnectionError):
        await sent
    await peer.next_arrival()
    assert peer.received == mget("a") + mget("b")
    peer.writer.write(b"*1\r\n$1\r\nB\r\n")
    assert await unsent == [b"B"]


async def test_reads_become_fewer_while_the_server_takes_nothing(peer):
    pool = await peer.start(reads=False)
    multiplexer = Multiplexer(pool.make_connection, timeout=5)
    big = multiplexer.exchange([("SET", "a", bytes(32 * 1024 * 1024))])
    while multiplexer._link.writable or not multiplexer._link.waiting:
        await asyncio.sleep(0)
    reads = []
    for _ in range(10):
        reads.append(multiplexer.read(("b",)))
        await asyncio.sleep(0)
    peer.reading.set()
    while not peer.received.endswith(mget("b")):
        await peer.next_arrival()
    assert peer.received.count(b"MGET") == 1
    peer.writer.write(b"+OK\r\n*1\r\n$1\r\nB\r\n")
    assert await asyncio.gather(big, *reads) == [[b"OK"], *([[b"B"]] * 10)]
    await multiplexer.aclose()


async def test_a_connection_closed_while_the_event_loop_was_held_up_is_noticed_before_it_is_used(url, client):
    """Nobody has looked at the socket when the next command comes."""
    store = RedisStore.connect(GivenSettings(url=url))
    before = await store.run(CLIENT_ID)
    client.client_kill_filter(_id=before)  # blocking: the loop sees nothing of it
    store._small._link.used_at -= 2
    assert await store.run(CLIENT_ID) != before
    await store.aclose()


async def test_a_restarted_server_is_used_again_and_gets_its_scripts_again(new_server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = new_server(port=port)
    store = RedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{port}"))
    script = Do(Script.of("return 7"), 0)
    assert await store.run(script) == 7
    server.stop()
    with pytest.raises(UnavailableError):
        await store.run(script)
    new_server(port=port)
    assert await store.run(script) == 7
    await store.run(Do("SCRIPT", "FLUSH"))
    assert await asyncio.gather(store.run(script), store.read(("a",)), store.run(script)) == [7, [None], 7]
    await store.aclose()


async def test_a_frozen_server_fails_what_is_under_way_and_is_used_again_when_it_thaws(new_server):
    server = new_server()
    store = RedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{server.port}", operation_timeout=0.2))
    await store.run(Do("SET", "a", "1"))
    server._process.send_signal(signal.SIGSTOP)
    failures = await asyncio.gather(store.read(("a",)), store.run(Ping()), store.read(("b",)), return_exceptions=True)
    assert [type(failure) for failure in failures] == [UnavailableError] * 3
    assert len({id(failure) for failure in failures}) == 3
    with pytest.raises(UnavailableError, match=r"no connection in 0\.2 s"):
        await store.read(("a",))
    server._process.send_signal(signal.SIGCONT)
    assert await store.read(("a",)) == [b"1"]
    await store.aclose()


async def test_a_server_that_is_no_primary_any_more_is_left(new_server):
    server = new_server()
    store = RedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{server.port}"))
    before = await store.run(CLIENT_ID)
    await store.client.replicaof("127.0.0.1", 1)
    with pytest.raises(UnavailableError, match="ReadOnlyError"):
        await store.run(Do("SET", "a", "1"))
    assert await store.run(CLIENT_ID) != before
    await store.aclose()


# Two connections


async def test_big_values_travel_on_a_connection_of_their_own(url):
    """Structural: while the one waits for its reply, the other answers."""
    store = RedisStore.connect(GivenSettings(url=url))
    small, bulk = await store.run(CLIENT_ID), await store.run(CLIENT_ID, bulk=True)
    assert small != bulk
    waiting = asyncio.ensure_future(store.run(Do("BLPOP", "never", 0), bulk=True))
    big = store.read(("big",), bulk=True)
    assert await store.read(("small",)) == [None]
    assert not big.done()
    await store.client.rpush("never", "now")
    await waiting
    assert await big == [None]
    assert [await store.run(CLIENT_ID), await store.run(CLIENT_ID, bulk=True)] == [small, bulk]
    await store.aclose()


async def test_the_second_connection_is_made_when_it_is_first_used(new_server):
    server = new_server()
    store = RedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{server.port}"))
    await asyncio.gather(*(store.read((f"{n}",)) for n in range(100)))
    clients = Do("CLIENT", "LIST", "TYPE", "normal")
    assert (await store.run(clients)).count(b"\n") == 1
    await store.read(("a",), bulk=True)
    assert (await store.run(clients)).count(b"\n") == 2
    await store.aclose()


# RESP3 has messages that are no replies


async def test_push_messages_are_nobodys_replies(reading, url, client):
    store = RedisStore.connect(GivenSettings(url=f"{url}?protocol=3"))
    await store.run(Do("CLIENT", "TRACKING", "ON", "BCAST"))
    for n in range(20):
        client.set("key", n)  # the server tells the tracking connection
        assert await store.read(("key",)) == [str(n).encode()]
    await store.aclose()


# Loops and processes


def test_each_event_loop_has_a_connection_of_its_own(url):
    async def use():
        store = RedisStore.connect(GivenSettings(url=url))
        number = await store.run(CLIENT_ID)
        await store.read(("a",), bulk=True)
        return number  # without aclose: the loop's end closes, and warnings are errors here

    assert len({asyncio.run(use()) for _ in range(3)}) == 3


FORKING = """
import asyncio, os, sys
from tidings.operations import Ping
from tidings.settings import GivenSettings
from tidings.scripts import Script
from tidings.store import RedisStore

settings = GivenSettings(url=sys.argv[1])

async def child():
    store = RedisStore.connect(settings)
    print(await store.read(("key",)), flush=True)
    await store.aclose()

async def parent():
    store = RedisStore.connect(settings)
    await store.read(("key",))
    if (pid := os.fork()) == 0:
        try:
            asyncio.events._set_running_loop(None)
            asyncio.run(child())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for _ in range(3):
        print(await store.read(("key",)), flush=True)
    await store.aclose()

asyncio.run(parent())
"""


def test_a_forked_child_with_a_loop_of_its_own_leaves_the_parents_connection_alone(url, client):
    client.set("key", "value")
    command = [sys.executable, "-W", "error", "-c", FORKING, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("[b'value']\n" * 4, 0), done.stderr
