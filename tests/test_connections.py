"""Every way to reach a server that a URL can name, for both drivers."""

import asyncio
import contextlib
import ssl
import subprocess
import threading
from concurrent.futures import Future

import pytest
import redis
from tidings import link
from tidings.errors import ConfigurationError, UnavailableError
from tidings.operations import Append
from tidings.settings import GivenSettings, redact
from tidings.store import RedisStore, SyncRedisStore


class Do:
    """Any one command as an operation."""

    def __init__(self, *command):
        self.commands = [command]

    def parse(self, replies):
        return replies[0]


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    made, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    try:
        subprocess.run([*command, "-keyout", key, "-out", made], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    return made, key


@pytest.fixture
def tls_port(server, certificate):
    """Where the server can be reached through TLS, which the one of the tests does not have itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def forward(reader, writer):
        behind = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, behind[1]), copy(behind[0], writer))

    async def serve():
        stop = asyncio.Event()
        listener = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
        started.set_result((asyncio.get_running_loop(), stop, listener.sockets[0].getsockname()[1]))
        await stop.wait()
        listener.close()

    started = Future()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    loop, stop, port = started.result(10)
    yield port
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@pytest.fixture(params=["plain", "password", "resp3", "database", "unix", "tls"])
def address(request, url, server, new_server, tmp_path):
    """A server's URL for each way to connect."""
    match request.param:
        case "password":
            own = new_server()
            with redis.Redis(port=own.port) as client:
                client.config_set("requirepass", "s3cret/@")
            return f"redis://:s3cret%2F%40@127.0.0.1:{own.port}"
        case "unix":
            new_server(unix_socket_path=tmp_path / "socket")
            return f"unix://{tmp_path / 'socket'}"
        case "tls":
            return f"rediss://127.0.0.1:{request.getfixturevalue('tls_port')}?ssl_ca_certs={tmp_path / 'cert.pem'}"
    return url + {"plain": "", "resp3": "?protocol=3", "database": "/5?protocol=3"}[request.param]


@pytest.fixture(params=["hiredis", "redis-py"])
def reading(request, monkeypatch):
    """Who reads the replies: our protocol, or redis-py where hiredis is missing."""
    if request.param == "redis-py":
        monkeypatch.setattr(link, "hiredis", None)


BIG = bytes(3 * 1024 * 1024)


async def test_reads_and_operations_of_coroutines(reading, address):
    store = RedisStore.connect(GivenSettings(url=address))
    for n in range(3):
        fills = [store.run(Do("SET", f"key:{k}", f"{n}:{k}")) for k in range(50)]
        await asyncio.gather(store.run(Do("SET", "big", BIG)), *fills)
        values = await asyncio.gather(*(store.read((f"key:{k}", "absent", "big")) for k in range(50)))
        assert values == [[f"{n}:{k}".encode(), None, BIG] for k in range(50)]
    await store.run(Append("events", {"type": "x"}))
    assert await store.client.xlen("events") == 1
    await store.aclose()


def test_reads_and_operations_of_threads(address):
    store = SyncRedisStore.connect(GivenSettings(url=address))
    for n in range(3):
        store.run(Do("SET", "big", BIG))
        store.run(Do("SET", "key", n))
        assert store.read(("key", "absent", "big")) == [str(n).encode(), None, BIG]
    store.run(Append("events", {"type": "x"}))
    assert store.client.xlen("events") == 1
    store.close()


# Sentinels

PORT = Do("CONFIG", "GET", "port")


def port_of(reply):
    return int(reply[b"port"] if isinstance(reply, dict) else reply[1])


async def test_after_a_failover_the_next_connection_leads_to_the_new_primary(sentinels):
    store = RedisStore.connect(GivenSettings(url=sentinels.url))
    blocking = SyncRedisStore.connect(GivenSettings(url=sentinels.url))
    old, new = (server.port for server in sentinels.servers)
    assert [port_of(await store.run(PORT)), port_of(blocking.run(PORT))] == [old, old]
    await store.run(Do("SET", "a", "1"))
    assert await store.run(Do("WAIT", 1, 5000)) == 1
    sentinels.kill_primary()
    while True:
        with contextlib.suppress(UnavailableError):
            await store.run(Do("SET", "b", "2"))
            break
        await asyncio.sleep(0.05)
    assert port_of(await store.run(PORT)) == new
    assert blocking.read(("a", "b")) == [b"1", b"2"]
    assert port_of(blocking.run(PORT)) == new
    blocking.close()
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("redis+sentinel://h1:26379,h2:x/main", "no valid host and port"),
        ("redis+sentinel://h1:26379,/main", "no valid host and port"),
        ("redis+sentinel://h1:26379", "does not end with /service"),
        ("redis+sentinel://h1:26379/main/first", "does not end with /service"),
        ("redis+sentinel://h1:26379/main?socket_timeout=1", "operation_timeout"),
        ("redis://h1:6379?health_check_interval=5", "has the option health_check_interval"),
        ("redis://h1:6379?max_connections=10", "has the option max_connections: .* leave it out"),
        ("redis+sentinel://h1:26379/main?max_connections=1", "has the option max_connections"),
        ("redis+sentinel://h1:26379/main?ssl_ca_certs=x", "has the option ssl_ca_certs"),
        ("redis+sentinel://h1:26379/main?protocol=x", "protocol must be 2 or 3"),
        ("redis://h1:26379?protocol=4", "protocol must be 2 or 3"),
        ("redis+cluster://h1:6379", "names a cluster where one server"),
        ("unix+sentinel://h1:6379/main", "does not start with"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_the_cure(url, wrong):
    for connect in (RedisStore.connect, SyncRedisStore.connect):
        with pytest.raises(ConfigurationError, match=wrong):
            connect(GivenSettings(url=url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://app:s3cret@h1:1,h2:2/main/0?sentinel_password=x", "redis+sentinel://h1:1,h2:2/main/0"),
        ("rediss+sentinel://h1,h2/main", "rediss+sentinel://h1,h2/main"),
        ("redis+cluster://app:s3cret@h1:1,h2:2", "redis+cluster://h1:1,h2:2"),
        ("redis+sentinel://app:s3cret,h2:2/main", "<not a URL>"),
        ("redis+sentinel://h1:1,app:s3cret/main", "<not a URL>"),
    ],
)
def test_a_url_of_several_servers_is_shown_without_its_passwords(url, shown):
    assert redact(url) == shown
