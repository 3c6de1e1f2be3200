"""Publishing that waits for replicas: what it promises, and what it says when they do not answer."""

import asyncio

import pytest
import redis
from tidings import Cache, Event
from tidings.errors import ArgumentError, ConfigurationError, PublishError
from tidings.testing import assert_published, recording


class Told(Event, type="replicas.told"):
    number: int


@pytest.fixture
def pair(new_server, until):
    """A primary and its replica: clients of both."""
    servers = new_server(), new_server()
    primary, replica = (redis.Redis(port=server.port) for server in servers)
    primary.config_set("repl-diskless-sync-delay", 0)
    replica.replicaof("127.0.0.1", servers[0].port)
    until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica")
    yield primary, replica
    primary.close()
    replica.close()


@pytest.fixture
async def cache(pair):
    primary, _ = pair
    port = primary.connection_pool.connection_kwargs["port"]
    async with Cache(f"redis://127.0.0.1:{port}", operation_timeout=1) as made:
        yield made


def publish(cache, how, **options):
    if how == "thread":
        return asyncio.to_thread(cache.sync.publish, Told(number=1), **options)
    return cache.publish(Told(number=1), **options)


def leave(pair):
    """Let the replica be one no more."""
    _, replica = pair
    replica.replicaof("NO", "ONE")


HOW = pytest.mark.parametrize("how", ["coroutine", "thread"])


@HOW
async def test_the_replica_has_the_event_when_publish_returns(cache, pair, how):
    _, replica = pair
    for _ in range(20):
        receipt = await publish(cache, how, replicas=1)
        assert replica.xrange("events", receipt.id, receipt.id)


@HOW
async def test_too_few_replicas_are_an_error_that_says_where_the_event_is(cache, pair, how):
    primary, _ = pair
    with pytest.raises(PublishError, match=r"is in the stream events as \d+-\d, but 1 of 2 replicas"):
        await publish(cache, how, replicas=2)
    assert primary.xlen("events") == 1


@HOW
async def test_without_replicas_nobody_is_waited_for(cache, pair, how):
    leave(pair)
    await publish(cache, how)
    assert "cmdstat_wait" not in pair[0].info("commandstats")


async def test_many_that_wait_for_a_replica_in_vain_hold_up_no_read(cache, pair):
    """Twenty publishers block; reads of any size go on, and nobody takes the server to be away."""

    @cache.cached(namespace="replicas")
    async def get(number: int) -> str:
        return "x" * 100_000 * number

    await get(0), await get(1)
    leave(pair)
    publishing = [asyncio.ensure_future(publish(cache, "coroutine", replicas=1)) for _ in range(20)]
    while not any(task.done() for task in publishing):
        assert (await get(0), len(await get(1))) == ("", 100_000)
        await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*publishing, return_exceptions=True)
    assert all("0 of 1 replicas" in str(outcome) for outcome in outcomes)
    assert cache.stats()["replicas"]["direct"] == 0


async def test_a_number_below_zero_is_an_error_before_anything_is_written(cache, pair):
    with pytest.raises(ArgumentError, match="-1"):
        await cache.publish(Told(number=1), replicas=-1)
    assert not pair[0].exists("events")


async def test_memory_has_no_replicas():
    async with Cache("memory://") as cache:
        with pytest.raises(ConfigurationError, match="no replicas"):
            await cache.publish(Told(number=1), replicas=1)


async def test_a_recording_takes_every_replica_to_be_well():
    with recording() as cache:
        await cache.publish(Told(number=7), replicas=2)
        assert_published("replicas.told", number=7)


@pytest.mark.slow
@HOW
async def test_on_a_cluster_both_commands_go_to_the_node_with_the_stream(new_cluster, how):
    cluster = new_cluster(replicas=1, of=1)
    assert cluster.node_of("events") is cluster.nodes[1]
    async with Cache(cluster.url) as cache:
        receipt = await publish(cache, how, replicas=1)
        replica = cluster.nodes[3].client
        replica.execute_command("READONLY")
        assert cluster.nodes[1].client.xrange("events", receipt.id, receipt.id)
        with pytest.raises(PublishError, match="1 of 2"):
            await publish(cache, how, replicas=2)


def test_the_command_line_asks_for_replicas(shell, pair):
    primary, _ = pair
    address = f"redis://127.0.0.1:{primary.connection_pool.connection_kwargs['port']}"
    assert shell.run("publish", "replicas.told", "--replicas", "1", TIDINGS_URL=address).code == 0
    refused = shell.run("publish", "replicas.told", "--replicas", "2", TIDINGS_URL=address)
    assert refused.code == 3
    assert "1 of 2 replicas" in refused.err
