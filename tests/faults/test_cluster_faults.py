"""A worker on a Redis Cluster: its usual work, and nodes that go away, come back empty, or are replaced by a replica.

Tokens, entries, streams and what workers keep are spread over the nodes, so that one node that is away holds up
whatever has a part there, and nothing is told to be applied before all of it is invalidated.
"""

import asyncio
import json
import time

import pytest
from redis.crc import key_slot
from tidings import Cache, Event
from tidings.errors import DeadLetteredError

THINGS = 50


class Keys:
    """The commands that a world looks at a server with, each sent to the node that has the key."""

    def __init__(self, cluster) -> None:
        self._cluster = cluster

    def __getattr__(self, name):
        def call(key, *arguments, **options):
            return getattr(self._cluster.client_of(key), name)(key, *arguments, **options)

        return call

    def pipeline(self, **_):
        return _OneByOne(self)


class _OneByOne:
    def __init__(self, keys) -> None:
        self._keys = keys
        self._found = []

    def exists(self, key) -> None:
        self._found.append(self._keys.exists(key))

    def execute(self):
        return self._found


RULES = """
from tidings import cached
from tidings_worker import Invalidate, Rules, Warm

rules = Rules()


@cached(namespace="warmed", tags=["number:{number}"])
async def double(number: int) -> int:
    return 2 * number


@rules.on("cluster.changed")
def changed(event):
    if event.number < 0:
        raise ZeroDivisionError("a bug in a rule")
    yield Invalidate(tags=[f"number:{event.number}"])
    yield Warm(double, number=event.number)
"""


async def test_the_usual_work_on_a_cluster(new_world, cluster, url, shell, until):
    """Invalidations, receipts, the local tier, warms on a server of their own, dead letters, stats."""
    shell.write("rules.py", RULES)
    variables = {"TIDINGS_URL": cluster.url, "TIDINGS_JOBS_URL": url, "TIDINGS_WORKER_RETRY_DELAY": "0.01"}
    worker = shell.start("worker", "rules:rules", **variables)
    worker.event("worker_started", 20)
    loads = []
    async with Cache(cluster.url) as cache:

        @cache.cached(namespace="numbers", tags=["number:{number}"], local_ttl=60)
        async def get(number: int) -> int:
            loads.append(number)
            return len(loads)

        for number in range(10):
            first = await get(number)
            assert await get(number) == first
            receipt = await cache.publish(Event.of("cluster.changed", {"number": number}))
            async with cache.after(receipt, timeout=5):
                assert await get(number) == first + 1
        poison = await cache.publish(Event.of("cluster.changed", {"number": -1}))
        with pytest.raises(DeadLetteredError, match="a bug in a rule"):
            await poison.applied(10)
    until(lambda: len(worker.events("warmed")) >= 10, "warms")
    keys = Keys(cluster)
    assert keys.xlen("events:dead") == 1
    shown = shell.run("stats", "--json", **variables)
    assert (shown.code, shown.err) == (0, "")
    stats = json.loads(shown.out)
    assert stats["events"] == 11
    assert [group["pending"] for group in stats["groups"]] == [0]
    assert stats["worker"]["applied"] == 10
    assert stats["entries"] == {"numbers": 10, "warmed": 10}
    assert stats["dead_letters"] == 1
    shown = shell.run("explain", get.key(1), "--json", **variables)
    assert (shown.code, shown.err) == (0, "")
    told = json.loads(shown.out)
    assert told["served"]
    assert told["changes"][-1]["type"] == "cluster.changed"
    worker.send(2)
    assert worker.wait() == 0, worker.err


ON_DISK = {"appendonly": "yes", "appendfsync": "always"}
#: A key of the node that is killed; the first also has what every read needs, the second what workers keep.
NODES = {"the node with the stream": "events", "the node with the ledger": "events:seen", "the third": "events:0"}


def test_these_are_on_all_nodes_of_a_new_cluster():
    assert {key_slot(key.encode()) * 3 // 16384 for key in NODES.values()} == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("key", NODES.values(), ids=NODES)
async def test_a_node_that_was_killed_and_comes_back_with_its_data_is_caught_up_with(
    new_world, new_cluster, url, recovered, key
):
    """One node gets SIGKILL while events flow, and is started again on its append-only file 2 s later.

    Everything is invalidated once, every event is applied, the workers do not end.
    """
    cluster = new_cluster(**ON_DISK)
    world = new_world(cluster.url, TIDINGS_JOBS_URL=url)
    workers = [world.start_worker(), world.start_worker()]
    keys = Keys(cluster)
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await world.until_published(700)
        node = cluster.node_of(key)
        node.kill()
        await asyncio.sleep(2)
        await asyncio.to_thread(node.start)
        began = time.monotonic()
        await publishing
        await world.settle(keys)
        recovered(time.monotonic() - began)
    await world.check(keys)
    world.check_every_change(keys)
    assert await world.told_lost(0) == {"history"}
    assert [worker.code for worker in workers] == [None, None]
    assert 1 <= len(world.events("events_lost")) <= len(workers)


@pytest.mark.slow
@pytest.mark.parametrize("key", NODES.values(), ids=NODES)
async def test_a_node_that_comes_back_empty_is_made_up_for(new_world, new_cluster, url, recovered, key):
    """The same without persistence: tokens and entries of that node are gone, or the stream with all in it."""
    cluster = new_cluster()
    world = new_world(cluster.url, TIDINGS_JOBS_URL=url)
    workers = [world.start_worker(), world.start_worker()]
    keys = Keys(cluster)
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await world.until_published(700)
        node = cluster.node_of(key)
        node.kill()
        await asyncio.sleep(2)
        await asyncio.to_thread(node.start)
        began = time.monotonic()
        await publishing
        while not world.events("events_lost"):
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 20
        recovered(time.monotonic() - began, "noticed within")
    await world.settle(keys)
    recovered(time.monotonic() - began)
    await world.check(keys)
    assert await world.told_lost(0)
    assert [worker.code for worker in workers] == [None, None]


@pytest.mark.slow
async def test_a_replica_that_is_promoted_in_place_of_the_node_with_the_stream(new_world, new_cluster, url, recovered):
    """The node with the stream, and with what every read needs, gets SIGKILL while events flow. Its replica takes over.

    What it had acknowledged and the replica had not got is lost, so everything is invalidated.
    """
    cluster = new_cluster(replicas=1, of=1)
    assert cluster.node_of("events") is cluster.node_of("token:all") is cluster.nodes[1]
    world = new_world(cluster.url, TIDINGS_JOBS_URL=url)
    workers = [world.start_worker(), world.start_worker()]
    keys = Keys(cluster)
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await world.until_published(700)
        cluster.nodes[1].kill()
        began = time.monotonic()
        while not world.events("events_lost"):
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 30
        recovered(time.monotonic() - began, "noticed within")
    world.stale.clear()
    async with world.readers(THINGS):
        await publishing
        await world.settle(keys)
        recovered(time.monotonic() - began)
    await world.check(keys)
    assert await world.told_lost(0)
    assert [worker.code for worker in workers] == [None, None]
    assert cluster.node_of("events") is cluster.nodes[3]


@pytest.mark.slow
async def test_a_stream_that_moves_to_another_node_is_followed(new_world, new_cluster, url, recovered):
    """The slot of the stream is moved while events flow, then that of the word to receipts."""
    cluster = new_cluster()
    world = new_world(cluster.url, TIDINGS_JOBS_URL=url)
    workers = [world.start_worker(), world.start_worker()]
    keys = Keys(cluster)
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        for number, key in enumerate(("events", "events:applied", "events:seen", "token:all", "events:counts"), 1):
            await world.until_published(300 * number)
            await asyncio.to_thread(cluster.move, key)
        began = time.monotonic()
        await publishing
        await world.settle(keys)
        recovered(time.monotonic() - began)
    await world.check(keys)
    world.check_every_change(keys)
    assert [worker.code for worker in workers] == [None, None]
    assert world.events("events_lost") == []
