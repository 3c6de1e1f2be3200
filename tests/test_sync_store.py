"""The blocking store: who uses which connection, and what a failure takes with it."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import fakeredis
import pytest
import redis
from tidings.connections import IDLE_SECONDS, Connections
from tidings.errors import UnavailableError
from tidings.link import pack
from tidings.operations import Append, Ping
from tidings.scripts import Script
from tidings.settings import GivenSettings
from tidings.store import SyncRedisStore


class Do:
    """Commands as an operation; the reply to the last one is its result."""

    def __init__(self, *commands):
        self.commands = commands

    def parse(self, replies):
        return replies[-1]


CLIENT_ID = Do(("CLIENT", "ID"))


@pytest.fixture
def store(url):
    made = SyncRedisStore.connect(GivenSettings(url=url))
    yield made
    made.close()


def test_a_read_gives_a_value_for_each_key_in_order(store, client):
    client.mset({"a": "A", "b": "B"})
    client.rpush("list", "no string")
    assert store.read(("b", "absent", "a", "b", "list")) == [b"B", None, b"A", b"B", None]


def test_one_thread_uses_one_connection(store):
    assert len({store.run(CLIENT_ID) for _ in range(10)}) == 1


def test_many_threads_get_their_own_replies_on_no_more_connections_than_threads(store, client):
    client.mset({f"key:{n}": n for n in range(1000)})
    together = threading.Barrier(16)

    def work(first):
        together.wait()
        for n in range(first, 1000, 16):
            assert store.read((f"key:{n}", "absent")) == [str(n).encode(), None]
            assert store.run(Do(("ECHO", "x"), ("ECHO", n))) == str(n).encode()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    ours = [c for c in client.client_list(_type="normal") if int(c["id"]) != client.client_id()]
    assert 0 < len(ours) <= 16


def test_an_error_reply_leaves_the_connection_in_step(store):
    before = store.run(CLIENT_ID)
    with pytest.raises(UnavailableError, match="ResponseError"):
        store.run(Do(("ECHO", "a"), ("NOSUCH",), ("ECHO", "b")))
    assert store.run(Do(("ECHO", "c"))) == b"c"
    assert store.run(CLIENT_ID) == before


def test_a_connection_closed_while_idle_is_noticed_before_it_is_used(store, client):
    client.client_kill_filter(_id=store.run(CLIENT_ID))
    assert store.read(("a",)) == [None]
    client.client_kill_filter(_id=store.run(CLIENT_ID))
    store.run(Append("events", {"type": "x"}))
    assert client.xlen("events") == 1


def test_an_event_whose_reply_was_lost_is_not_sent_again():
    """It may be in the stream; whoever publishes decides whether to publish it again."""
    received = []

    def take_and_hang_up(listener):
        while True:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                received.append(connection.recv(65536))
            if not received[-1]:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=take_and_hang_up, args=(listener,), daemon=True).start()
        client = redis.Redis(port=listener.getsockname()[1], lib_name=None, lib_version=None)
        store = SyncRedisStore(client, client, "peer")
        with pytest.raises(UnavailableError):
            store.run(Append("events", {"type": "x"}))
        socket.create_connection(listener.getsockname()).close()  # ends the peer
        store.close()
    assert sum(b"XADD" in data for data in received) == 1


def test_a_restarted_server_is_used_again_and_gets_its_scripts_again(new_server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = new_server(port=port)
    store = SyncRedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{port}"))
    script = Do((Script.of("return 7"), 0))
    assert store.run(script) == 7
    server.stop()
    with pytest.raises(UnavailableError):
        store.run(script)
    new_server(port=port)
    assert store.run(script) == 7
    store.run(Do(("SCRIPT", "FLUSH")))
    assert store.run(Do(("ECHO", "x"), *script.commands)) == 7
    store.close()


def test_a_reply_that_came_too_late_is_nobody_elses(new_server):
    server = new_server()
    store = SyncRedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{server.port}", operation_timeout=0.2))
    store.run(Do(("SET", "a", "1")))
    server._process.send_signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError, match="TimeoutError"):
        store.run(Do(("ECHO", "late")))
    server._process.send_signal(signal.SIGCONT)
    assert store.read(("a",)) == [b"1"]
    store.close()


def test_a_server_that_is_no_primary_any_more_is_left(new_server):
    server = new_server()
    store = SyncRedisStore.connect(GivenSettings(url=f"redis://127.0.0.1:{server.port}"))
    before = store.run(CLIENT_ID)
    store.client.replicaof("127.0.0.1", 1)
    with pytest.raises(UnavailableError, match="ReadOnlyError"):
        store.run(Do(("SET", "a", "1")))
    assert store.run(CLIENT_ID) != before
    store.close()


def test_closing_closes_what_is_idle_and_what_is_in_use_when_it_is_done(store, client):
    idle = store.run(CLIENT_ID)
    result = []
    busy = threading.Thread(target=lambda: result.append(store.run(Do(("BLPOP", "list", 0)))))
    busy.start()  # takes the idle connection
    while not client.info("clients")["blocked_clients"]:
        pass
    store.close()
    client.rpush("list", "x")
    busy.join()
    assert result == [[b"list", b"x"]]
    assert store.run(CLIENT_ID) > idle  # a later command connects anew
    assert idle not in {int(c["id"]) for c in client.client_list()}


def test_fakeredis_connections_work_the_same_way():
    fake = fakeredis.FakeServer()
    store = SyncRedisStore(fakeredis.FakeRedis(server=fake), fakeredis.FakeRedis(server=fake), "fake")
    store.run(Do(("SET", "a", "1"), ("SET", "b", "2")))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(store.read, [("a", "b", "c")] * 20)) == [[b"1", b"2", None]] * 20
    store.close()
    assert store.read(("a",)) == [b"1"]
    store.close()


def test_no_server_is_an_unavailable_error_that_shows_no_password():
    store = SyncRedisStore.connect(GivenSettings(url="redis://app:s3cret@127.0.0.1:1/0"))
    for attempt in (lambda: store.read(("a",)), lambda: store.run(Ping())):
        with pytest.raises(UnavailableError) as caught:
            attempt()
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        assert "s3cret" not in str(caught.value)


FORKING = """
import multiprocessing, sys
from tidings.settings import GivenSettings
from tidings.store import SyncRedisStore

class ClientId:
    commands = (("CLIENT", "ID"),)
    def parse(self, replies):
        return replies[0]

store = SyncRedisStore.connect(GivenSettings(url=sys.argv[1]))
before = store.run(ClientId())

def child(results):
    first = store.run(ClientId())
    assert store.run(ClientId()) == first
    store.close()
    results.put(first)

fork = multiprocessing.get_context("fork")
results = fork.Queue()
children = [fork.Process(target=child, args=(results,)) for _ in range(3)]
for process in children:
    process.start()
theirs = {results.get(timeout=10) for _ in children}
for process in children:
    process.join()
assert len(theirs) == 3 and before not in theirs, (before, theirs)
assert store.run(ClientId()) == before, "the parent's connection was closed"
print("done")
"""


def test_forked_children_have_connections_of_their_own_and_leave_the_parents_alone(url):
    command = [sys.executable, "-W", "error", "-c", FORKING, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "done\n", done.stderr


def test_connections_that_a_burst_has_opened_are_closed_when_they_are_not_needed(url, client):
    now = 0.0
    connections = Connections(redis.ConnectionPool.from_url(url), lambda: now)
    before = len(client.client_list())
    together = threading.Barrier(4)

    def use(_):
        together.wait()
        connections.exchange(pack(("BLPOP", "nothing", "0.3")), 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    opened = len(client.client_list()) - before
    assert opened > 1
    now = IDLE_SECONDS + 1
    for left in range(opened - 1, 0, -1):  # one with each exchange, but the one that is used
        connections.exchange(pack(("PING",)), 1)
        assert len(connections._idle) == left
    connections.exchange(pack(("PING",)), 1)
    assert len(connections._idle) == 1
    connections.close()
