"""Faults of the processes: workers killed at random moments, frozen workers and servers, events that fail or kill."""

import asyncio
import random
import signal
import time

import pytest
import redis
from tidings.errors import UnavailableError

THINGS = 50


@pytest.mark.parametrize(
    ("kills", "events"),
    [pytest.param(3, 1_500, id="3 kills"), pytest.param(50, 20_000, id="50 kills", marks=pytest.mark.slow)],
)
@pytest.mark.timeout(400)
async def test_workers_killed_at_random_moments_lose_no_event(new_world, url, client, recovered, kills, events):
    """One of three workers is killed with SIGKILL at random moments while events flow, and is started again.

    Every event is applied, none is a dead letter, no stale value is served.
    """
    world = new_world(url)
    async with world.supervised(3) as running, world.readers(THINGS):
        for number in range(kills):
            share = events * (number + 1) // kills - events * number // kills
            while not all(worker.code is None and worker.events("worker_started") for worker in running):
                await asyncio.sleep(0.01)
            publishing = asyncio.create_task(world.publish_many(share, THINGS))
            await asyncio.sleep(random.uniform(0, 0.3))
            victim = random.choice(running)
            victim.send(signal.SIGKILL)
            await asyncio.to_thread(victim.wait)
            await publishing
        recovered(await world.settle(client))
        assert sum(worker.code == -signal.SIGKILL for worker in world.workers) == kills
    await world.check(client)
    world.check_every_change(client)
    assert world.events("events_lost") == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 10])
async def test_what_a_frozen_worker_has_is_applied_by_another(new_world, url, client, recovered, seconds):
    """One of two workers gets SIGSTOP while events flow, later SIGCONT.

    The other applies everything meanwhile; the one that was frozen does no harm with what it still has in hand.
    """
    world = new_world(url)
    frozen = world.start_worker()
    world.start_worker()
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(1_000 * seconds, THINGS))
        await world.until_published(500)
        frozen.send(signal.SIGSTOP)
        until = time.monotonic() + seconds
        await publishing
        recovered(await world.settle(client), "all applied by the other worker after")
        await asyncio.sleep(until - time.monotonic())
        frozen.send(signal.SIGCONT)
        await world.publish_many(1_000, THINGS)
        recovered(await world.settle(client))
    await world.check(client)
    world.check_every_change(client)
    assert world.events("events_lost") == []
    assert [worker.code for worker in world.workers] == [None, None]


@pytest.mark.parametrize("seconds", [2, pytest.param(10, marks=pytest.mark.slow)])
async def test_a_frozen_server_is_ridden_out(new_world, new_server, recovered, seconds):
    """Redis gets SIGSTOP while events flow and readers read, later SIGCONT.

    Reads load directly, publishers repeat what was not acknowledged, the worker lives and catches up.
    """
    server = new_server()
    world = new_world(f"redis://127.0.0.1:{server.port}", TIDINGS_OPERATION_TIMEOUT="0.5")
    worker = world.start_worker()
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await world.until_published(500)
        server._process.send_signal(signal.SIGSTOP)
        reads = world.reads
        with pytest.raises((UnavailableError, redis.RedisError)):
            await world.explain(0)
        await asyncio.sleep(seconds)
        assert world.reads > reads
        server._process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        await publishing
        with redis.Redis(port=server.port, socket_timeout=2) as client:
            await world.settle(client)
            recovered(time.monotonic() - began)
            await world.check(client)
            world.check_every_change(client)
    assert worker.code is None
    assert await world.rode_out(worker)
    assert worker.events("events_lost") == []


@pytest.mark.parametrize("events", [500, pytest.param(20_000, marks=pytest.mark.slow)])
async def test_events_that_fail_end_in_the_dead_letters_and_no_other_does(new_world, url, client, recovered, events):
    """One event in a hundred makes its rule raise. Exactly those are dead letters after the last delivery."""
    world = new_world(url)
    world.start_worker()
    world.start_worker()
    async with world.readers(THINGS):
        poisonous = await world.publish_with_poison(events, THINGS, "raise")
        recovered(await world.settle(client), "the last one set aside after")
    letters = [letter for _, letter in client.xrange("events:dead")]
    assert sorted(letter[b"stream_id"] for letter in letters) == poisonous
    assert {letter[b"deliveries"] for letter in letters} == {b"5"}
    assert all(b"a bug in a rule" in letter[b"reason"] for letter in letters)
    await world.check(client, dead=len(poisonous))
    world.check_every_change(client)
    assert (await world.explain(0)).backlog.dead_letters == len(poisonous)


@pytest.mark.parametrize(
    ("events", "workers", "deliveries"),
    [
        pytest.param(100, 2, 2, id="1 of 100"),
        pytest.param(1_000, 3, 5, id="10 of 1000", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(300)
async def test_events_that_end_their_worker_are_set_aside_and_take_no_other_with_them(
    new_world, url, client, recovered, events, workers, deliveries
):
    """One event in a hundred ends its process. Workers are started again, and in the end exactly those are set aside.

    A dead letter says how often its event was delivered before it was.
    """
    world = new_world(url, TIDINGS_WORKER_MAX_DELIVERIES=str(deliveries))
    async with world.supervised(workers), world.readers(THINGS):
        poisonous = await world.publish_with_poison(events, THINGS, "die")
        recovered(await world.settle(client, timeout=200), "the last one set aside after")
    letters = [letter for _, letter in client.xrange("events:dead")]
    assert sorted(letter[b"stream_id"] for letter in letters) == poisonous
    assert all(b"delivered %d times" % deliveries in letter[b"reason"] for letter in letters)
    assert {letter[b"deliveries"] for letter in letters} == {b"%d" % deliveries}
    assert {worker.code for worker in world.workers} == {None, 66}
    await world.check(client, dead=len(poisonous))
    world.check_every_change(client)
    assert (await world.explain(0)).backlog.dead_letters == len(poisonous)
