"""A cache on a real Redis Cluster of three nodes: what it promises, while slots move and nodes die."""

import asyncio
import signal
from itertools import islice

import pytest
from redis.crc import key_slot
from running_cluster import RunningCluster, wait_until
from tidings import Cache, Event
from tidings.cluster_store import ClusterStore
from tidings.cluster_threads import SyncClusterStore
from tidings.errors import ConfigurationError, InvalidationError, UnavailableError
from tidings.operations import Scan
from tidings.settings import GivenSettings


class ClusterChanged(Event, type="test.cluster.changed"):
    name: str


@pytest.fixture
async def cache(cluster):
    async with Cache(cluster.url) as made:
        yield made


@pytest.fixture
async def other(cluster):
    """As another process would have it."""
    async with Cache(cluster.url) as made:
        yield made


def names_at(cluster, node, number, prefix="cache:default:"):
    """Return names whose entries are on a node."""
    found = (name for index in range(10_000) if cluster.node_of(prefix + (name := f"k{index}")) is node)
    return list(islice(found, number))


# URLs


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("redis+cluster://h1:6379/1", "has none but 0"),
        ("redis+cluster://h1:6379/main", "has none but 0"),
        ("redis+cluster://h1:6379,h2:x", "no valid host and port"),
        ("redis+cluster://h1:6379,", "no valid host and port"),
        ("redis+cluster://h1?socket_timeout=1", "operation_timeout"),
        (
            "redis+cluster://h1?ssl_ca_certs=x",
            "has the option ssl_ca_certs; with a cluster it may be one of client_name",
        ),
        ("redis+cluster://h1?sentinel_password=x", "has the option sentinel_password"),
        ("redis+cluster://h1?protocol=4", "protocol must be 2 or 3"),
        ("unix+cluster://h1", "does not start with"),
        ("redis+clusters://h1", "does not start with"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_the_cure(url, wrong):
    for connect in (ClusterStore.connect, SyncClusterStore.connect, Cache.from_settings):
        with pytest.raises(ConfigurationError, match=wrong):
            connect(GivenSettings(url=url))


def test_a_url_says_how_every_node_is_reached():
    nodes = ClusterStore.connect(
        GivenSettings(url="rediss+cluster://app:s%2Fcret@h1,[::1]:7000/0?ssl_cert_reqs=none&client_name=shop")
    ).cluster.nodes
    assert nodes.named == (("h1", 6379), ("::1", 7000))
    assert nodes.where == "rediss+cluster://h1,[::1]:7000/0"
    for made in (nodes.sync_servers("h9", 9), nodes.async_servers("h9", 9)):
        options = made.client.get_connection_kwargs()
        assert (options["host"], options["port"], options["username"], options["password"]) == (
            "h9",
            9,
            "app",
            "s/cret",
        )
        assert options["client_name"] == "shop"
        assert made.client.connection_pool.connection_class.__name__ == "SSLConnection"


async def test_user_password_and_protocol_are_those_of_every_node(cluster):
    for node in cluster.nodes:
        node.client.execute_command("ACL SETUSER", "app", "on", ">s/cret", "~*", "+@all")
    url = cluster.url.replace("://", "://app:s%2Fcret@") + "?protocol=3&client_name=shop"
    async with Cache(url) as cache:
        await cache.set_many({f"k{n}": n for n in range(9)})
        assert await cache.get_many([f"k{n}" for n in range(9)]) == {f"k{n}": n for n in range(9)}
        await cache.invalidate_pattern("k*")
        assert await cache.get("k1") is None
        assert cache.sync.get("k2") is None
        names = [client["name"] for node in cluster.nodes for client in node.client.client_list()]
        assert "shop" in names
    async with Cache(url.replace("s%2Fcret", "wrong")) as refused:
        with pytest.raises(UnavailableError) as caught:
            await refused.set("k", 1)
        assert "wrong" not in str(caught.value)


async def test_one_node_that_answers_is_enough_to_find_the_others(cluster):
    alive = cluster.nodes[1].port
    async with Cache(f"redis+cluster://127.0.0.1:1,127.0.0.1:{alive}") as cache:
        await cache.set("k", 1)
        assert await cache.get("k") == 1
        assert cache.sync.get("k") == 1


async def test_no_node_that_answers_is_an_outage_like_any_other():
    async with Cache("redis+cluster://127.0.0.1:1,127.0.0.1:2") as cache:

        async def load() -> int:
            return 7

        assert [await cache.get_or_set("k", load), await cache.get_or_set("k", load)] == [7, 7]
        assert cache.sync.get_or_set("k", lambda: 8) == 8
        with pytest.raises(InvalidationError):
            await cache.invalidate_all()
        health = await cache.health()
        assert (health["ok"], health["reads"]) == (False, "direct")


# What a cache does


async def test_keys_of_every_node_are_stored_read_and_deleted(cache, cluster):
    values = {f"k{n}": n for n in range(30)}
    await cache.set_many(values, tags=["t"])
    assert len({cluster.node_of(f"cache:default:{name}") for name in values}) == 3
    assert await cache.get_many(values) == values
    assert [await cache.delete("k1"), await cache.delete("k1"), await cache.get("k1")] == [True, False, None]
    await cache.invalidate_pattern("k2*")
    assert sorted(name for name, value in (await cache.get_many(values)).items() if value is None) == sorted(
        {"k1", "k2", *(f"k2{n}" for n in range(10))}
    )
    await cache.invalidate_tags("t")
    assert set((await cache.get_many(values)).values()) == {None}


def test_threads_have_the_same(cluster):
    with Cache(cluster.url).sync as cache:
        values = {f"k{n}": n for n in range(30)}
        cache.set_many(values, tags=["t"])
        assert cache.get_many(values) == values
        assert [cache.delete("k1"), cache.delete("k1"), cache.get("k1")] == [True, False, None]
        cache.invalidate_pattern("k2*")
        assert cache.get("k25") is None
        assert [cache.get_or_set("new", lambda: 1), cache.get_or_set("new", lambda: 2)] == [1, 1]
        cache.invalidate_tags("t")
        assert set(cache.get_many(values).values()) == {None}
        assert cache.health()["ok"]


@pytest.mark.parametrize("way", ["tag", "namespace", "everything", "entry"])
async def test_cached_functions_are_invalidated_from_another_process(cache, other, way):
    loads = []

    def cached_in(where):
        @where.cached(namespace="n", key="row:{x}", tags=["t:{x}"])
        async def load(x: int) -> int:
            loads.append(x)
            return len(loads)

        return load

    here, there = cached_in(cache), cached_in(other)
    assert [await here(1), await here(1), await there(1)] == [1, 1, 1]
    await {
        "tag": lambda: other.invalidate_tags("t:1"),
        "namespace": lambda: other.invalidate_namespace("n"),
        "everything": other.invalidate_all,
        "entry": lambda: there.invalidate(1),
    }[way]()
    assert [await here(1), await there(1)] == [2, 2]


@pytest.mark.parametrize("how", ["coroutine", "thread"])
async def test_two_processes_that_miss_at_once_load_once(cache, other, how):
    """The second is told of the end of the load through the stream of wakes, which is on another node."""
    begun, gate, loads = asyncio.Event(), asyncio.Event(), []

    async def load() -> int:
        loads.append(1)
        begun.set()
        await gate.wait()
        return len(loads)

    first = asyncio.create_task(cache.get_or_set("k", load))
    await begun.wait()
    if how == "thread":
        second = asyncio.create_task(asyncio.to_thread(other.sync.get_or_set, "k", lambda: 0))
    else:
        second = asyncio.create_task(other.get_or_set("k", load))
    lease = cache.keys.lease("default", "k")
    client = await cache.reader().store.client_for(lease)

    async def is_waited_for():
        return (await client.get(lease) or b"").endswith(b" w")

    while not await is_waited_for():
        await asyncio.sleep(0.005)
    gate.set()
    assert [await first, await second] == [1, 1]
    assert len(loads) == 1


async def test_the_local_tier_hears_what_another_process_invalidates(cache, other, eventually):
    loads = []

    @cache.cached(key="row:{x}", tags=["t:{x}"], local_ttl=60)
    async def load(x: int) -> int:
        loads.append(x)
        return len(loads)

    while not len(cache.tier):  # until the tail is there nothing is kept here
        await load(1)
        await asyncio.sleep(0.005)
    await other.invalidate_tags("t:1")
    await eventually(lambda: not len(cache.tier), "the tail")
    before = len(loads)
    assert await load(1) == before + 1


async def test_a_receipt_hears_that_its_event_was_applied(cache, other):
    receipt = await cache.publish(ClusterChanged(name="x"))
    waiting = asyncio.create_task(receipt.applied(timeout=5))
    threads = await asyncio.to_thread(other.sync.publish, ClusterChanged(name="y"))
    hearing = asyncio.create_task(asyncio.to_thread(threads.applied, 5))
    await other.invalidate_tokens({"all": "test"}, events=f"{receipt.id} {threads.id}")
    await waiting
    await hearing


async def test_health_asks_every_node(cache):
    assert (await cache.health())["ok"]


# While slots move


async def test_a_slot_that_has_moved_is_found(cache, cluster):
    await cache.set("k", 1, tags=["t"])
    assert [await cache.get("k"), cache.sync.get("k")] == [1, 1]
    for key in ("cache:default:k", "token:tag:t", "token:all", "invalidations", "events"):
        cluster.move(key)
    assert [await cache.get("k"), cache.sync.get("k")] == [1, 1]
    await cache.publish(ClusterChanged(name="x"))
    assert cluster.client_of("events").xlen("events") == 1
    await cache.invalidate_tags("t")
    assert [await cache.get("k"), cache.sync.get("k")] == [None, None]
    await cache.set("k", 2)
    await asyncio.to_thread(cache.sync.invalidate_all)
    assert await cache.get("k") is None


@pytest.mark.parametrize("moved", [False, True], ids=["still there", "moved already"])
@pytest.mark.parametrize("key", ["cache:default:k", "token:tag:t", "invalidations", "events"])
async def test_a_slot_on_its_way_serves_old_keys_and_new_ones(cache, cluster, key, moved):
    await cache.set("k", 1, tags=["t"])
    source = cluster.node_of(key)
    target = next(node for node in cluster.nodes if node is not source)
    cluster.begin_to_move(key, target)
    if moved:
        cluster.move_keys(key, source, target)
    try:
        assert [await cache.get("k"), cache.sync.get("k")] == [1, 1]
        await cache.invalidate_tags("t")
        assert [await cache.get("k"), cache.sync.get("k")] == [None, None]
        await cache.set("k", 2, tags=["t"])
        assert [await cache.get("k"), cache.sync.get("k")] == [2, 2]
        await cache.publish(ClusterChanged(name="x"))
    finally:
        cluster.move_keys(key, source, target)
        cluster.finish_moving(key, source, target)
    assert [await cache.get("k"), cache.sync.get("k")] == [2, 2]
    assert cluster.client_of("events").xlen("events") == 1


async def test_the_tail_follows_the_log_to_another_node(cache, other, cluster, eventually):
    loads = []

    @cache.cached(key="row:{x}", tags=["t:{x}"], local_ttl=60)
    async def load(x: int) -> int:
        loads.append(x)
        return len(loads)

    while not len(cache.tier):
        await load(1)
        await asyncio.sleep(0.005)
    cluster.move("invalidations")
    await eventually(lambda: cache.tier.clock() < cache.tier.alive_until, "the tail at the other node")
    assert len(cache.tier), "the log goes on where it was, so nothing is dropped"
    await other.invalidate_tags("t:1")
    await eventually(lambda: not len(cache.tier), "the tail")
    before = len(loads)
    assert await load(1) == before + 1


async def test_a_scan_is_refused_while_a_slot_is_on_its_way(cache, cluster):
    """A key could move from a node that is still to be walked to one that has been."""
    source = cluster.node_of("cache:default:k")
    target = next(node for node in cluster.nodes if node is not source)
    cluster.begin_to_move("cache:default:k", target)
    try:
        for invalidate in (
            cache.invalidate_pattern,
            lambda glob: asyncio.to_thread(cache.sync.invalidate_pattern, glob),
        ):
            with pytest.raises(InvalidationError, match="slots are being moved"):
                await invalidate("k*")
    finally:
        cluster.finish_moving("cache:default:k", source, target)
    await cache.set("k", 1)
    await cache.invalidate_pattern("k*")
    assert await cache.get("k") is None


async def test_a_scan_begins_again_when_slots_have_moved_meanwhile(cache, cluster):
    """Step by step: the first node is walked, and then a key of the last comes to it."""
    store = cache.reader().store
    await cache.set("k0", 0)
    first, *_, last = (next(n for n in cluster.nodes if n.port == a.port) for a in store.cluster.slots.primaries)
    (name,) = names_at(cluster, last, 1)
    await cache.set(name, 1)
    key = f"cache:default:{name}"
    cursor, found = await store.run(Scan("cache:default:*"))
    cluster.move(key, first)
    while cursor:
        cursor, keys = await store.run(Scan("cache:default:*", cursor))
        found += keys
    assert key.encode() in found


# While nodes die


@pytest.fixture(scope="module")
def mortal_cluster():
    """The first node has a replica, and the others go on when one of them is away."""
    made = RunningCluster(replicas=1, cluster_require_full_coverage="no", cluster_node_timeout="300")
    yield made
    made.end()


@pytest.fixture
def mortal(mortal_cluster):
    """The same in good health, and empty."""
    wait_until(lambda: all(node.is_ok() for node in mortal_cluster.nodes), "the cluster")
    mortal_cluster.flush()
    return mortal_cluster


def third_of(key):
    return key_slot(key.encode()) * 3 // 16384


def prefix_at(node):
    """Return a prefix under which what all reads and invalidations need is on one of the three nodes, wakes are not."""
    needed = ("token:all", "token:namespace:default", "invalidations")
    return next(
        prefix
        for prefix in map(str, range(10_000))
        if {third_of(f"{prefix}:{key}") for key in needed} == {node} and third_of(f"{prefix}:lease:ended") == 1
    )


async def read(cache, names, value):
    async def load() -> int:
        return value

    return [await cache.get_or_set(name, load) for name in names]


async def test_a_node_that_hangs_costs_one_deadline_and_then_nothing(mortal, eventually):
    async with Cache(mortal.url, prefix=prefix_at(2), operation_timeout=0.3) as cache:
        assert await read(cache, ["k"], 1) == [1]
        process = mortal.nodes[2].server._process
        process.send_signal(signal.SIGSTOP)
        try:
            assert await read(cache, ["k"], 2) == [2]
            assert not cache._shared.breaker.closed
            assert await read(cache, ["k"] * 50, 3) == [3] * 50
        finally:
            process.send_signal(signal.SIGCONT)
        await eventually(lambda: cache._shared.breaker.closed, "the probe")


async def test_without_one_node_the_others_are_read_and_what_needs_it_says_so(mortal, eventually):
    prefix, dead = prefix_at(0), mortal.nodes[1]
    async with Cache(mortal.url, prefix=prefix, operation_timeout=0.5) as cache:
        (gone,) = names_at(mortal, dead, 1, f"{prefix}:cache:default:")
        there, new = names_at(mortal, mortal.nodes[0], 2, f"{prefix}:cache:default:")
        assert await read(cache, [gone, there], 1) == [1, 1]
        assert await read(cache, [gone, there], 2) == [1, 1]
        dead.kill()
        assert await read(cache, [gone, there], 3) == [3, 1]
        assert [cache.sync.get_or_set(name, lambda: 4) for name in (gone, there)] == [4, 1]
        assert cache._shared.breaker.closed
        assert await read(cache, [new], 3) + await read(cache, [new], 4) == [3, 3], "without wakes"
        with pytest.raises(InvalidationError, match=str(dead.port)):
            await cache.delete(gone)
        with pytest.raises(InvalidationError, match=str(dead.port)):
            cache.sync.delete(gone)
        assert await cache.delete(there)
        health = await cache.health()
        assert (health["ok"], health["reads"]) == (False, "direct")
        assert str(dead.port) in health["error"]
        dead.start()
        await eventually(dead.is_ok, "the node to be back")
        while await read(cache, [gone], 5) + await read(cache, [gone], 6) != [5, 5]:
            await asyncio.sleep(0.02)
        assert (await cache.health())["ok"]


async def test_when_a_replica_takes_over_it_is_found(mortal, eventually):
    first, replica = mortal.nodes[0], mortal.nodes[3]
    async with Cache(mortal.url, prefix=prefix_at(0), operation_timeout=0.5) as cache:
        assert await read(cache, ["k"], 1) == [1]
        first.kill()
        assert await read(cache, ["k"], 2) == [2]
        with pytest.raises(InvalidationError, match=str(first.port)):
            await cache.invalidate_all()
        await eventually(lambda: replica.client.role()[0] == b"master", "the replica to take over")
        while not await invalidates(cache):
            await asyncio.sleep(0.02)
        while (found := await read(cache, ["k"], 3) + await read(cache, ["k"], 4)) != [3, 3]:
            assert 1 not in found, "a value from before the invalidation"
            await asyncio.sleep(0.02)
        assert cache.sync.get("k") == 3


async def invalidates(cache):
    try:
        await cache.invalidate_all()
    except InvalidationError:
        return False
    return True
