"""Failovers under Sentinel: the primary killed, a replica that lacks what the primary had acknowledged, a swap of both.

What was acknowledged by the old primary and has not reached the new one is lost: invalidations, acks and events. The
worker cannot know what, so it invalidates everything, once, before it reads anything from the new primary. An event
that was lost with its XADD stays lost, unless its publisher had asked for a replica; what it had changed is fresh all
the same, because everything is.
"""

import asyncio
import time
from functools import partial

import pytest
from running_sentinels import RunningSentinels
from tidings import Cache
from tidings_worker.servers import histories

THINGS = 50


async def until_noticed(world, timeout=20):  # noqa: ASYNC109 what the test has patience for
    """Wait until a worker has made up for what may be lost; return the reasons that it gave."""
    deadline = time.monotonic() + timeout
    while not (found := world.events("events_lost")):
        assert time.monotonic() < deadline, "no worker has noticed the failover"
        await asyncio.sleep(0.01)
    return [event["reason"] for event in found]


def lost_events(world, client):
    """Return the ids of events that were acknowledged to their publisher and are not in the new primary's stream."""
    there = {stream_id.decode() for stream_id, _ in client.xrange("events")}
    return [stream_id for stream_id in world.published if stream_id not in there]


@pytest.mark.slow
async def test_a_primary_that_is_killed_while_events_flow(new_world, sentinels, recovered):
    """The primary gets SIGKILL. Workers, publishers and readers find the new one.

    Until the worker has invalidated everything a value may be stale, since an invalidation may have been lost;
    afterwards none is.
    """
    world = new_world(sentinels.url)
    workers = [world.start_worker(), world.start_worker()]
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await world.until_published(700)
        sentinels.kill_primary()
        began = time.monotonic()
        assert all("another took over" in reason for reason in await until_noticed(world))
        recovered(time.monotonic() - began, "noticed within")
    world.stale.clear()
    client = sentinels.clients[1]
    async with world.readers(THINGS):
        await publishing
        await world.settle(client)
        recovered(time.monotonic() - began, f"{len(lost_events(world, client))} events lost; recovery")
    await world.check(client)
    assert await world.told_lost(0) == {"history"}
    assert [worker.code for worker in workers] == [None, None]
    assert 1 <= len(world.events("events_lost")) <= len(workers)


async def test_a_replica_that_lacks_what_was_acknowledged(new_world, sentinels, recovered):
    """The replica is cut off, events are published, applied and acknowledged; then the primary is killed.

    The new primary has the old entries under the old tokens, and has never heard of those events. Whatever is told to
    be applied from then on, no value is stale any more.
    """
    world = new_world(sentinels.url, TIDINGS_WORKER_CHECK_INTERVAL="30")
    worker = world.start_worker()
    for thing in range(THINGS):
        await world.applied(await world.change(thing))
        await world.read(thing)
    old, new = sentinels.clients
    assert old.execute_command("WAIT", 1, 5000) == 1
    before = new.get("token:tag:thing:1")
    sentinels.cut_off_replica()
    for thing in range(THINGS):
        await world.applied(await world.change(thing))
        await world.read(thing)
    assert new.get("token:tag:thing:1") == before != old.get("token:tag:thing:1")

    sentinels.kill_primary()
    began = time.monotonic()
    change = await world.change(THINGS)
    recovered(time.monotonic() - began, "published within")
    await world.applied(change)
    recovered(time.monotonic() - began, "applied within")
    for thing in range(THINGS):
        await world.read(thing)
    assert world.stale == []
    assert len(lost_events(world, new)) == THINGS
    await world.settle(new)
    await world.check(new)
    assert await world.told_lost(0) == {"history"}
    assert worker.code is None
    assert len(world.events("events_lost")) == 1


@pytest.mark.slow
async def test_acks_that_are_lost_are_done_again(new_world, sentinels, recovered):
    """The replica is cut off between the events and their acks: on the new primary they are unread."""
    world = new_world(sentinels.url)
    worker = world.start_worker()
    await world.publish_many(200, THINGS)
    old, new = sentinels.clients
    await world.settle(old)
    worker.send(2)
    assert worker.wait() == 0
    changes = [await world.change(thing) for thing in range(THINGS)]
    assert old.execute_command("WAIT", 1, 5000) == 1
    sentinels.cut_off_replica()
    worker = world.start_worker()
    await asyncio.gather(*map(world.applied, changes))
    await world.settle(old)
    sentinels.kill_primary()
    began = time.monotonic()
    await until_noticed(world)
    recovered(time.monotonic() - began, "noticed within")
    await world.settle(new)
    recovered(time.monotonic() - began)
    assert lost_events(world, new) == []
    await world.check(new)
    assert await world.told_lost(0) == {"history"}
    world.check_every_change(new)
    assert worker.code is None


FAULTS = {"killed": RunningSentinels.kill_primary, "relieved": RunningSentinels.fail_over}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_no_event_is_lost_of_publishers_that_ask_for_a_replica(new_world, sentinels, recovered, fault):
    """They publish with `replicas=1`, and again where that is not acknowledged: while nobody replicates, nothing is."""
    world = new_world(sentinels.url)
    worker = world.start_worker()
    world.cache.publish = partial(world.cache.publish, replicas=1)
    publishing = asyncio.create_task(world.publish_many(1_000_000, THINGS))
    await world.until_published(300)
    fault(sentinels)
    began = time.monotonic()
    await until_noticed(world)
    publishing.cancel()
    await asyncio.wait({publishing})
    new = sentinels.clients[1]
    await world.settle(new)
    recovered(time.monotonic() - began)
    assert lost_events(world, new) == []
    assert await world.told_lost(0) == {"history"}
    assert worker.code is None


@pytest.mark.slow
async def test_a_primary_that_is_relieved(new_world, sentinels, recovered):
    """The sentinels promote the replica while the primary is well, which becomes its replica: no worker ends."""
    world = new_world(sentinels.url)
    workers = [world.start_worker(), world.start_worker()]
    new = sentinels.clients[1]
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(3_000, THINGS))
        await world.until_published(700)
        sentinels.fail_over()
        began = time.monotonic()
        await until_noticed(world)
        recovered(time.monotonic() - began, "noticed within")
        await publishing
    await world.settle(new)
    recovered(time.monotonic() - began, f"{len(lost_events(world, new))} events lost; recovery")
    world.stale.clear()
    await world.check(new)
    assert await world.told_lost(0) == {"history"}
    assert [worker.code for worker in workers] == [None, None]


async def connected_to_successor(sentinels, timeout=8):  # noqa: ASYNC109 so long the old primary goes on
    """Return a cache that is connected to the new primary, as soon as the sentinels lead there."""
    deadline = time.monotonic() + timeout
    attempt = 0
    while True:
        attempt += 1
        cache = Cache(sentinels.url)
        await cache.invalidate_tags(f"attempt:{attempt}")
        old, new = (client.exists(f"token:tag:attempt:{attempt}") for client in sentinels.clients)
        if new and not old:
            return cache
        await cache.aclose()
        assert time.monotonic() < deadline, "the sentinels lead nobody to the new primary"
        await asyncio.sleep(0.05)


async def test_the_history_is_that_of_the_server_that_invalidations_go_to(sentinels):
    """A primary that is relieved goes on for seconds; whoever connects meanwhile is led to its successor."""
    async with Cache(sentinels.url) as cache:
        await cache.invalidate_tags("before")
        old = await histories(cache.reader().store)
        sentinels.fail_over()
        async with await connected_to_successor(sentinels) as other:
            store = cache.reader().store
            assert (await store.client.info("server"))["tcp_port"] == sentinels.servers[1].port  # it connects now
            assert await histories(store) == old
            await cache.invalidate_tags("after")
            assert not sentinels.clients[1].exists("token:tag:after")
            assert await histories(other.reader().store) != old


@pytest.mark.slow
async def test_a_worker_that_stays_with_a_relieved_primary_invalidates_everything_when_it_comes_over(
    new_world, sentinels, eventually, recovered
):
    """A second worker has made up for the failover at the new primary, and the first one still works at the old.

    What the first one has applied since is lost with the old primary. A value that was cached at the new one is stale
    until the first worker comes over, and not longer.
    """
    world = new_world(sentinels.url)
    stays = world.start_worker()
    await world.applied(await world.change(1))
    sentinels.fail_over()
    async with await connected_to_successor(sentinels) as reader:
        get = reader.cached(namespace="others", tags=["thing:{thing}"])(world._load)
        world.start_worker()
        await until_noticed(world)
        assert stays.events("events_lost") == []
        assert await get(1) == 1
        await world.applied(await world.change(1))  # by the first worker, at the old primary
        assert await get(1) == 1
        began = time.monotonic()
        await eventually(lambda: stays.events("events_lost"), "the first worker to come over", timeout=30)
        recovered(time.monotonic() - began, "came over within")
        assert await get(1) == 2
    assert await world.told_lost(1) == {"history"}
    assert stays.code is None
