"""What `tidings groups` and `tidings warms` look at, on a real server, and what they call late."""

import json

import pytest
from tidings import Settings, cached
from tidings_worker import Invalidate, Rules, Warm
from tidings_worker.failing import FailingWarms
from tidings_worker.groups import MARK
from tidings_worker.jobs import jobs_pool
from tidings_worker.looking.groups import Groups, GroupView, StreamView, view_groups
from tidings_worker.looking.warms import LOOKED_AT, view_warms
from tidings_worker.queueing import WarmQueue
from tidings_worker.servers import store_of


@cached(namespace="viewed")
async def viewed(number: int) -> int:
    return number


@pytest.fixture
def look(cache):
    async def view(partitions=1):
        return await view_groups(store_of(cache), cache.keys, partitions, "tidings")

    return view


# Groups


async def test_a_group_shows_what_it_has_to_read_what_is_pending_and_who_is_in_it(look, new_parts, client):
    rules = Rules()
    rules.on("groups.changed")(lambda _: Invalidate(tags=["groups"]))
    parts = await new_parts(rules)
    for _ in range(3):
        client.xadd("events", {"type": "groups.changed"})
    first, _ = await parts.group.read(2, 1)
    (stream,) = (await look()).streams
    (group,) = stream.groups
    assert (stream.name, stream.exists, stream.events) == ("events", True, 3)
    assert (group.name, group.ours, group.lag, group.pending) == ("tidings", True, 1, 2)
    assert group.last_delivered > first.stream_id
    assert group.oldest_pending_seconds >= group.oldest_unread_seconds >= 0
    (consumer,) = group.consumers
    assert (consumer.name, consumer.pending) == (parts.group.name, 2)
    assert not consumer.name.startswith(MARK)


async def test_groups_of_others_come_after_ours_whatever_their_names_are(look, new_parts, client):
    client.xgroup_create("events", b"\xff\x1b", "0", mkstream=True)
    await new_parts(Rules())
    ours, other = (await look()).streams[0].groups
    assert (ours.name, ours.ours) == ("tidings", True)
    assert (other.name, other.ours) == ("\\xff\x1b", False)
    json.dumps((await look()).as_json())


async def test_streams_that_are_not_there_and_partitions_that_nobody_reads_are_shown(look, client):
    client.xadd("events:2", {"type": "groups.changed"})
    found = await look(partitions=2)
    assert [(stream.name, stream.exists) for stream in found.streams] == [
        ("events", False),
        ("events:0", False),
        ("events:1", False),
    ]
    assert found.beyond == ("events:2",)
    assert found.late(0, None) == ["events:2: nobody reads this partition"]
    assert found.late(None, None) == []


def groups_of(lag=0, unread=0.0, pending=0.0, *, ours=True):
    group = GroupView("g", ours, lag, 0, unread, pending, "0-0", ())
    return Groups("g", (StreamView("events", True, 9, (group,)),), ())


@pytest.mark.parametrize(
    ("found", "max_lag", "max_age", "late"),
    [
        (groups_of(5), 5, None, False),
        (groups_of(6), 5, None, True),
        (groups_of(6), None, 10, False),
        (groups_of(None), 5, None, False),
        (groups_of(None, unread=1.0), 5, None, True),
        (groups_of(unread=11.0), None, 10, True),
        (groups_of(pending=11.0), None, 10, True),
        (groups_of(6, 11.0, 11.0), None, None, False),
        (groups_of(ours=False), 5, None, True),
    ],
)
def test_late_is_what_is_further_behind_than_permitted(found, max_lag, max_age, late):
    assert bool(found.late(max_lag, max_age)) == late


# Warms


@pytest.fixture
async def pool(url):
    made = jobs_pool(Settings(url=url))
    yield made
    await made.aclose()


async def test_warms_are_queued_running_due_later_and_failing(pool, cache, client):
    warms = [Warm(viewed, number) for number in range(3)]
    queue = cache.keys.jobs
    await WarmQueue(pool, queue).hand_off(warms, [Warm.hot("viewed")])
    client.set(f"arq:in-progress:{queue}:{warms[1].name}", "somebody")
    await FailingWarms(pool, cache.keys.failing).failed(
        warms[2].name, viewed.identity, warms[2].arguments, ValueError("no")
    )
    now = client.zscore(queue, f"{queue}:{warms[0].name}") / 1000
    found = await view_warms(pool, queue, cache.keys.failing, limit=2, clock=lambda: now)
    assert (found.queued, found.later, found.oldest_seconds, found.complete) == (4, 1, 0.0, True)
    assert (found.running_count, [(job.call, job.worker) for job in found.running]) == (
        1,
        [(viewed.identity, "somebody")],
    )
    assert sorted((job.call, job.arguments) for job in found.next) == [
        (viewed.identity, warms[0].arguments),
        (viewed.identity, warms[2].arguments),
    ]
    assert [(one.name, one.error, one.failures) for one in found.failing] == [(warms[2].name, "ValueError", 1)]
    (_, hot) = (await view_warms(pool, queue, cache.keys.failing, limit=3, clock=lambda: now)).next[1:]
    assert (hot.call, hot.arguments, hot.overdue_seconds < 0) == ("hot:viewed", "100", True)


async def test_what_is_no_job_in_the_queue_breaks_nothing(pool, cache, client):
    queue = cache.keys.jobs
    client.zadd(queue, {b"\xff": "-inf", f"{queue}:gone": 2, f"{queue}:other": "inf"})
    client.set(f"arq:job:{queue}:other", b"\x80\x04pickle")
    note = {"call": "m:f", "arguments": "", "error": "E", "message": "", "failures": 1, "first": 1.0, "last": 1.0}
    for name in ("first", "last"):
        client.hset(cache.keys.failing, name, json.dumps(note | {name: float("inf")}))
    found = await view_warms(pool, queue, cache.keys.failing, limit=10)
    assert [job.call for job in found.next] == ["?"] * 3
    json.dumps(found.as_json(), allow_nan=False)


async def test_of_a_long_queue_the_front_is_looked_at(pool, cache, client):
    queue = cache.keys.jobs
    client.zadd(queue, {f"{queue}:{number}": number for number in range(LOOKED_AT + 1)})
    client.set(f"arq:in-progress:{queue}:0", "somebody")
    found = await view_warms(pool, queue, cache.keys.failing, limit=1)
    assert (found.queued, found.running_count, found.complete) == (LOOKED_AT + 1, 1, False)


async def test_an_empty_queue_is_empty(pool, cache):
    found = await view_warms(pool, cache.keys.jobs, cache.keys.failing, limit=1)
    assert (found.queued, found.oldest_seconds, found.running, found.next, found.failing) == (0, None, (), (), ())
