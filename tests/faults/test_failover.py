"""Failovers under Sentinel: the primary killed, a replica that lacks what the primary had acknowledged, a swap of both.

What was acknowledged by the old primary and has not reached the new one is lost: invalidations, acks and events. The
worker cannot know what, so it invalidates everything, once, before it applies anything on the new primary. An event that
was lost with its XADD stays lost, unless its publisher had asked for a replica; what it had changed is fresh all the
same, because everything is.
"""

import asyncio
import time

THINGS = 50


async def until_published(world, count):
    while len(world.published) < count:
        await asyncio.sleep(0.001)


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


async def test_a_primary_that_is_killed_while_events_flow(new_world, sentinels, recovered):
    """The primary gets SIGKILL. Workers, publishers and readers find the new one.

    Until the worker has invalidated everything a value may be stale, since an invalidation may have been lost;
    afterwards none is.
    """
    world = new_world(sentinels.url)
    workers = [world.start_worker(), world.start_worker()]
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await until_published(world, 700)
        sentinels.kill_primary()
        began = time.monotonic()
        assert all("another took over" in reason for reason in await until_noticed(world))
        recovered(time.monotonic() - began, "noticed within")
    world.stale.clear()
    client = sentinels.clients[1]
    async with world.readers(THINGS):
        await publishing
        await world.settle(client)
        recovered(time.monotonic() - began)
    lost = lost_events(world, client)
    recovered(float(len(lost)), "events lost with their XADD:")
    await world.check(client)
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
    assert worker.code is None
    assert len(world.events("events_lost")) == 1


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
    world.check_every_change(new)
    assert worker.code is None


async def test_a_primary_that_is_relieved(new_world, sentinels, recovered):
    """The sentinels promote the replica while the primary is well, which becomes its replica: no worker ends."""
    world = new_world(sentinels.url)
    workers = [world.start_worker(), world.start_worker()]
    new = sentinels.clients[1]
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(3_000, THINGS))
        await until_published(world, 700)
        sentinels.fail_over()
        began = time.monotonic()
        await until_noticed(world)
        recovered(time.monotonic() - began, "noticed within")
        await publishing
    await world.settle(new)
    recovered(time.monotonic() - began)
    world.stale.clear()
    recovered(float(len(lost_events(world, new))), "events lost with their XADD:")
    await world.check(new)
    assert [worker.code for worker in workers] == [None, None]
