"""Faults of the stream and the server's data: FLUSHALL, a destroyed group, events trimmed before they were read."""

import asyncio
import time

import pytest

THINGS = 50


@pytest.fixture
async def world(new_world, url):
    world = new_world(url)
    world.start_worker()
    return world


async def warm_up(world):
    """Events and reads as usual, so that there is something to lose."""
    await world.publish_many(200, THINGS)
    for thing in range(THINGS):
        await world.read(thing)


FAULTS = {
    "flushall": lambda client: client.flushall(),
    "the group is destroyed": lambda client: client.xgroup_destroy("events", "tidings"),
    "the stream is deleted": lambda client: client.delete("events"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_the_stream_loses_invalidates_everything_once(world, client, recovered, fault):
    """Injected while events flow and readers read. Everything is invalidated, loudly; the worker lives and goes on."""
    await warm_up(world)
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2000, THINGS))
        await world.until_published(1000)
        fault(client)
        began = time.monotonic()
        await publishing
        while not world.events("events_lost"):
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 10
        recovered(time.monotonic() - began, "noticed within")
        await world.settle(client)
    await world.check(client)
    assert world.workers[0].code is None
    assert b"lost:" in client.get("token:all")
    assert await world.told_lost(0) & {"group", "stream"}


async def test_events_that_were_trimmed_before_they_were_read_invalidate_everything(world, client, recovered):
    """The worker is stopped; 1 000 events come and 900 of them are trimmed; the next worker makes up for them."""
    await warm_up(world)
    await world.settle(client)
    world.workers[0].send(2)
    assert world.workers[0].wait() == 0
    for thing in range(THINGS):
        world.truth[thing] = world.truth.get(thing, 0) + 1
    with client.pipeline() as pipe:
        for number in range(1000):
            pipe.xadd(
                "events", {"type": "faults.changed", "data": f'{{"thing": {number % THINGS if number < 900 else 0}}}'}
            )
        pipe.execute()
    client.xtrim("events", maxlen=100, approximate=False)
    assert (await world.explain(0)).backlog.waiting >= 100
    assert len(await world.waiting(0)) == 100
    began = time.monotonic()
    worker = world.start_worker()
    await world.settle(client)
    recovered(time.monotonic() - began)
    assert worker.events("events_lost")[0]["reason"].startswith("900 events were removed")
    assert "trimmed" in await world.told_lost(0)
    await world.check(client)
