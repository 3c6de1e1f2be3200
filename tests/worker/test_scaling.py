"""Several workers in one group, and events that are spread over partitions: real processes on a real server."""

import asyncio
import json
import signal

import pytest
from tidings import Cache, Event
from tidings.errors import DeadLetteredError
from tidings.keys import partition_of

RULES = """
from tidings_worker import Invalidate, Rules

rules = Rules()


@rules.on("scaling.changed")
def changed(event):
    if event.number < 0:
        raise ZeroDivisionError("a bug in a rule")
    return Invalidate(tags=[f"number:{event.number}"])
"""

QUICK = {
    "TIDINGS_WORKER_BLOCK_MS": "100",
    "TIDINGS_WORKER_CLAIM_IDLE": "1",
    "TIDINGS_WORKER_RETRY_DELAY": "0.01",
    "TIDINGS_WORKER_BATCH": "10",
}


@pytest.fixture
def start(shell, url):
    """Start a worker, and wait until it reads; `variables` are added to its environment."""
    shell.write("rules.py", RULES)

    def one(**variables):
        worker = shell.start("worker", "rules:rules", TIDINGS_URL=url, **QUICK, **variables)
        worker.event("worker_started", 20)
        return worker

    return one


@pytest.fixture
async def publish(url):
    """Publish events about numbers, each with its own subject; gives the receipts."""
    caches = []

    async def many(numbers, partitions=1):
        cache = Cache(url, partitions=partitions)
        caches.append(cache)
        events = [Event.of("scaling.changed", {"number": number}) for number in numbers]
        return [await cache.publish(event, subject=f"number:{event.number}") for event in events]

    yield many
    for cache in caches:
        await cache.aclose()


def applied_by(worker):
    return sum(event["events"] for event in worker.events("events_applied"))


def invalidated(client, numbers):
    return client.exists(*(f"token:tag:number:{number}" for number in numbers))


async def settle(receipts):
    for receipt in receipts:
        await receipt.applied(10)


# Several workers in a group


async def test_work_is_shared_and_nothing_is_applied_twice(start, publish, client):
    workers = [start() for _ in range(3)]
    receipts = await publish(range(600))
    await settle(receipts)
    assert invalidated(client, range(600)) == 600
    assert all(applied_by(worker) > 0 for worker in workers)
    assert sum(map(applied_by, workers)) == 600
    assert int(client.hget("events:counts", "applied")) == 600
    assert client.xpending("events", "tidings")["pending"] == 0


@pytest.mark.slow
async def test_a_worker_that_joins_takes_its_share_and_one_that_leaves_leaves_nothing(
    start, publish, client, eventually
):
    first = start()
    await settle(await publish(range(100)))
    assert applied_by(first) == 100
    second = start()
    await settle(await publish(range(100, 400)))
    assert applied_by(second) > 0
    first.send(signal.SIGTERM)
    receipts = await publish(range(400, 600))  # while it leaves
    assert first.wait() == 0
    await settle(receipts)
    assert applied_by(first) + applied_by(second) == 600
    consumers = [row["name"] for row in client.xinfo_consumers("events", "tidings")]
    assert len(consumers) == 2  # the mark of the group, and who is still there
    assert client.xpending("events", "tidings")["pending"] == 0


# Partitions

FOUR = {"TIDINGS_PARTITIONS": "4"}


async def test_partitions_are_drained_by_all_workers_and_the_plain_stream_is_read_as_well(
    start, publish, client, until
):
    workers = [start(**FOUR) for _ in range(2)]
    receipts = await publish(range(400), partitions=4)
    client.xadd("events", {"type": "scaling.changed", "data": '{"number": 400}'})  # from who knows of no partitions
    await settle(receipts)
    until(lambda: client.exists("token:tag:number:400"), "the plain stream")
    assert invalidated(client, range(401)) == 401
    assert sum(map(applied_by, workers)) == 401
    assert all(applied_by(worker) > 0 for worker in workers)
    for number in range(4):
        assert client.xlen(f"events:{number}") > 0
        assert client.xpending(f"events:{number}", "tidings")["pending"] == 0


async def test_the_events_of_one_subject_are_in_one_stream(publish, client):
    for _ in range(3):
        await publish([7, 8, 9], partitions=4)
    where = {number: f"events:{partition_of(f'number:{number}', 4)}" for number in (7, 8, 9)}
    for number, stream in where.items():
        there = [json.loads(fields[b"data"])["number"] for _, fields in client.xrange(stream)]
        assert there.count(number) == 3


@pytest.mark.slow
async def test_the_dead_letter_of_a_partition_says_where_it_came_from_and_its_receipt_hears_of_it(
    start, publish, client
):
    start(**FOUR)
    [receipt] = await publish([-1], partitions=4)
    with pytest.raises(DeadLetteredError, match="a bug in a rule"):
        await receipt.applied(20)
    [(_, letter)] = client.xrange("events:dead")
    assert letter[b"stream"].decode() == f"events:{partition_of('number:-1', 4)}"
    assert letter[b"stream_id"].decode() == receipt.id


@pytest.mark.slow
async def test_what_a_worker_that_was_killed_had_of_a_partition_is_applied_by_another(start, publish, client):
    [killed, left] = [start(**FOUR) for _ in range(2)]
    killed.send(signal.SIGSTOP)
    await asyncio.sleep(0.3)  # its reads end
    receipts = await publish(range(40), partitions=4)
    killed.send(signal.SIGKILL)
    await settle(receipts)
    assert applied_by(left) >= 1
    assert invalidated(client, range(40)) == 40


@pytest.mark.slow
async def test_stats_are_of_all_streams(start, publish, shell, url):
    start(**FOUR)
    await settle(await publish(range(40), partitions=4))
    shown = json.loads(shell.run("stats", "--json", TIDINGS_URL=url, **FOUR).out)
    assert shown["events"] == 40
    assert [(group["stream"], group["pending"]) for group in shown["groups"]] == [
        ("events", 0),
        *((f"events:{number}", 0) for number in range(4)),
    ]
    assert shown["worker"]["applied"] == 40


async def test_a_worker_that_knows_of_fewer_partitions_than_publishers_says_so(start, publish, client):
    await publish(range(40), partitions=4)
    worker = start(TIDINGS_PARTITIONS="2")
    said = worker.event("partitions_unread")
    assert (said["streams"], said["partitions"]) == (["events:2", "events:3"], 2)
    assert start().event("partitions_unread")["streams"] == ["events:2", "events:3"]  # the others are read to their end


async def test_partitions_that_were_read_to_their_end_are_no_cause_for_alarm(start, publish, client):
    start(**FOUR)
    await settle(await publish(range(40), partitions=4))
    worker = start()
    await settle(await publish(range(40)))
    assert worker.events("partitions_unread") == []
