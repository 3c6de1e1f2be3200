"""Faults of the server and of the way to it: killed and restarted, away for long, out of memory, cut off."""

import asyncio
import random
import signal
import socket
import time

import pytest
import redis
from proxy import Proxy
from tidings.errors import UnavailableError

THINGS = 50


@pytest.fixture
def server_on_disk(new_server, tmp_path):
    """Start a server that finds its data again when it is started again, on the same port.

    Outside the ports of outgoing connections: one that is tried again and again could get the port that it wants to
    reach, and be connected to itself.
    """
    port = next(port for port in random.sample(range(20_000, 32_000), 100) if _is_free(port))

    def start():
        return new_server(port=port, data_dir=tmp_path / "data", appendonly="yes", appendfsync="always")

    return start


def _is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def address(port):
    return f"redis://127.0.0.1:{port}"


@pytest.mark.parametrize("seconds", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 3, 30))])
async def test_a_server_that_was_killed_and_comes_back_with_its_data_is_caught_up_with(
    new_world, server_on_disk, recovered, seconds
):
    """Redis gets SIGKILL while events flow, and is started again on its append-only file some seconds later.

    The worker does not end. It invalidates everything once, since a server that started may have lost what it had
    acknowledged, and applies every event.
    """
    server = server_on_disk()
    world = new_world(address(server.port))
    workers = [world.start_worker(), world.start_worker()]
    async with world.readers(THINGS):
        publishing = asyncio.create_task(world.publish_many(2_000, THINGS))
        await world.until_published(700)
        server.terminate()
        with pytest.raises((UnavailableError, redis.RedisError)):
            await world.explain(0)
        await asyncio.sleep(seconds)
        server = await asyncio.to_thread(server_on_disk)
        began = time.monotonic()
        await publishing
        with redis.Redis(port=server.port, socket_timeout=2) as client:
            await world.settle(client)
            recovered(time.monotonic() - began)
            await world.check(client)
            world.check_every_change(client)
            assert await world.told_lost(0) == {"history"}
    assert [worker.code for worker in workers] == [None, None]
    assert 1 <= len(world.events("events_lost")) <= len(workers)


@pytest.mark.slow
async def test_a_server_without_memory_that_is_given_some_loses_nothing(new_world, new_server, recovered):
    """Redis refuses writes for 2 s. New events wait meanwhile, and some that a dead worker had are claimed.

    Nothing is set aside for that: refusals say nothing about an event. With memory again everything is applied.
    """
    server = new_server()
    world = new_world(address(server.port), TIDINGS_WORKER_MAX_DELIVERIES="2", TIDINGS_WORKER_CLAIM_IDLE="0.2")
    workers = [world.start_worker(), world.start_worker()]
    with redis.Redis(port=server.port, socket_timeout=2) as client:
        await world.publish_many(500, THINGS)
        await world.settle(client)
        for worker in workers:
            worker.send(signal.SIGSTOP)
        await asyncio.sleep(0.5)  # their reads end
        changes = [await world.change(thing) for thing in range(THINGS)]
        client.xreadgroup("tidings", "a dead worker", {"events": ">"}, count=30)
        client.config_set("maxmemory", 1)
        for worker in workers:
            worker.send(signal.SIGCONT)
        async with world.readers(THINGS):
            publishing = asyncio.create_task(world.publish_many(500, THINGS))
            assert changes[0][0].id in await world.waiting(0)
            await asyncio.sleep(2)
            client.config_set("maxmemory", 0)
            began = time.monotonic()
            await asyncio.gather(*map(world.applied, changes))
            await publishing
            await world.settle(client)
            recovered(time.monotonic() - began)
        await world.check(client)
        world.check_every_change(client)
    assert [worker.code for worker in workers] == [None, None]
    assert [await world.rode_out(worker) for worker in workers] == [True, True]
    assert world.events("events_lost") == []


FAULTS = {"black hole": Proxy.black_hole, "resets": Proxy.reset}


@pytest.mark.parametrize("seconds", [2, *(pytest.param(s, marks=pytest.mark.slow) for s in (3, 12))])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_worker_that_is_cut_off_catches_up(new_world, url, client, recovered, fault, seconds):
    """A network between the only worker and Redis swallows everything, or resets connections; then it heals.

    Publishers and readers reach Redis all the time. What is not applied is not told to be, and is when it has healed.
    """
    world = new_world(url, TIDINGS_OPERATION_TIMEOUT="0.5")
    with Proxy(int(url.rpartition(":")[2])) as proxy:
        worker = world.start_worker(TIDINGS_URL=address(proxy.port))
        async with world.readers(THINGS):
            publishing = asyncio.create_task(world.publish_many(1_500, THINGS))
            await world.until_published(500)
            fault(proxy)
            await asyncio.sleep(seconds)
            receipt, *_ = await world.change(0)
            assert receipt.id in await world.waiting(0)
            proxy.heal()
            began = time.monotonic()
            await publishing
            await world.settle(client)
            recovered(time.monotonic() - began)
        await world.check(client)
        world.check_every_change(client)
        assert worker.code is None
        assert await world.rode_out(worker)
    assert world.events("events_lost") == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_cut_off_workers_set_each_failing_event_aside_once(new_world, url, client, recovered, fault):
    """One event in a hundred fails, while one of two workers is cut off for 1.5 s again and again.

    Answers get lost, and what was sent arrives late. Exactly those events are dead letters, each once.
    """
    world = new_world(url, TIDINGS_OPERATION_TIMEOUT="0.5", TIDINGS_WORKER_MAX_DELIVERIES="2")
    with Proxy(int(url.rpartition(":")[2])) as proxy:
        world.start_worker(TIDINGS_URL=address(proxy.port))
        world.start_worker()
        async with world.readers(THINGS):
            publishing = asyncio.create_task(world.publish_with_poison(10_000, THINGS, "raise"))
            while not publishing.done():
                await asyncio.sleep(random.uniform(0.2, 0.5))
                fault(proxy)
                await asyncio.sleep(1.5)
                proxy.heal()
            recovered(await world.settle(client))
        poisonous = await publishing
        assert sorted(letter[b"stream_id"] for _, letter in client.xrange("events:dead")) == poisonous
        await world.check(client, dead=len(poisonous))
        world.check_every_change(client)
    assert [worker.code for worker in world.workers] == [None, None]
    assert world.events("events_lost") == []


@pytest.mark.slow
async def test_a_worker_that_is_cut_off_leaves_its_events_to_another(new_world, url, client, recovered):
    """One of two workers is cut off for 3 s while events flow. The other applies everything meanwhile.

    What the first had sent arrives late, and does no harm.
    """
    world = new_world(url)
    with Proxy(int(url.rpartition(":")[2])) as proxy:
        world.start_worker(TIDINGS_URL=address(proxy.port))
        world.start_worker()
        async with world.readers(THINGS):
            publishing = asyncio.create_task(world.publish_many(3_000, THINGS))
            await world.until_published(500)
            proxy.black_hole()
            until = time.monotonic() + 3
            await publishing
            recovered(await world.settle(client), "all applied by the other worker after")
            await asyncio.sleep(until - time.monotonic())
            proxy.heal()
            await world.publish_many(500, THINGS)
            recovered(await world.settle(client))
        await world.check(client)
        world.check_every_change(client)
    assert [worker.code for worker in world.workers] == [None, None]
    assert world.events("events_lost") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_all_of_it_at_once(new_world, server_on_disk, recovered):
    """For 40 s Redis is killed and restarted, workers are killed, one is cut off, and one event in a hundred fails.

    Every other event is applied, no stale value is served, and the dead letters are those that fail, each once.
    """
    server = server_on_disk()
    world = new_world(address(server.port), TIDINGS_OPERATION_TIMEOUT="1")
    until = time.monotonic() + 40

    async def kill_redis():
        nonlocal server
        while time.monotonic() < until:
            await asyncio.sleep(random.uniform(4, 8))
            server.terminate()
            await asyncio.sleep(random.uniform(0, 1.5))
            server = await asyncio.to_thread(server_on_disk)

    async def kill_workers(running):
        while time.monotonic() < until:
            await asyncio.sleep(random.uniform(2, 5))
            random.choice(running).send(signal.SIGKILL)

    async def cut_off(proxy):
        while time.monotonic() < until:
            await asyncio.sleep(random.uniform(0.5, 4))
            random.choice(list(FAULTS.values()))(proxy)
            await asyncio.sleep(random.uniform(0.2, 2))
            proxy.heal()

    async def publish():
        poisonous = []
        while time.monotonic() < until:
            poisonous += await world.publish_with_poison(400, THINGS, "raise")
            await asyncio.sleep(0.2)
        return sorted(poisonous)

    with Proxy(server.port) as proxy:
        cut = world.start_worker(TIDINGS_URL=address(proxy.port))
        async with world.supervised(2) as running, world.readers(THINGS):
            poisonous, *_ = await asyncio.gather(publish(), kill_redis(), kill_workers(running), cut_off(proxy))
            with redis.Redis(port=server.port, socket_timeout=2) as client:
                recovered(await world.settle(client))
                # A publisher repeats what was not acknowledged, although it may be in the stream.
                letters = [letter for _, letter in client.xrange("events:dead")]
                assert all(b'"poison"' in letter[b"original:data"] for letter in letters)
                dead = [letter[b"stream_id"] for letter in letters]
                assert len(dead) == len(set(dead))
                assert set(poisonous) <= set(dead)
                await world.check(client, dead=len(dead))
                world.check_every_change(client)
        assert cut.code is None
