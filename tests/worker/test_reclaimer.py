"""What was delivered and not finished, on a real server: retries, dead workers, poison, and the housekeeping."""

import asyncio

import pytest
from redis.exceptions import ResponseError
from tidings_worker import Invalidate, Rules
from tidings_worker.delivery import RetryPolicy
from tidings_worker.reclaimer import Upkeep

#: An id beyond all others.
END = f"{2**64 - 1}-0"


class Died(BaseException):
    """The end of a process, in the middle of a rule."""


class World:
    """Rules over what tests decide: `bad` ids fail, `deadly` ones end the worker; `seen` has every attempt."""

    def __init__(self):
        self.bad = set()
        self.deadly = set()
        self.seen = []
        self.rules = Rules()
        self.rules.on("reclaim.changed")(self._changed)

    def _changed(self, event):
        self.seen.append(event.number)
        if event.number in self.deadly:
            raise Died
        if event.number in self.bad:
            raise ZeroDivisionError
        return Invalidate(tags=[f"number:{event.number}"])


@pytest.fixture
def world():
    return World()


@pytest.fixture
def publish(client):
    def add(count, start=0):
        return [
            client.xadd("events", {"type": "reclaim.changed", "data": f'{{"number": {number}}}'}).decode()
            for number in range(start, start + count)
        ]

    return add


@pytest.fixture
def applied(client):
    return lambda: sorted(int(key.rpartition(b":")[2]) for key in client.keys("token:tag:number:*"))


async def take(parts, count=500):
    """Read a batch and handle it, as the consumer does."""
    entries = await parts.group.read(count, 1)
    await parts.consumer.apply(entries, parts.stop, parts.patience())


async def turn(parts, until, what="the reclaimer's work"):
    """Run the reclaimer until a condition holds."""
    running = asyncio.create_task(parts.reclaimer.run(parts.stop, parts.patience()))
    try:
        for _ in range(2000):
            if until() or running.done():
                break
            await asyncio.sleep(0.005)
        assert running.done() or until(), f"waited in vain for {what}"
    finally:
        parts.stop.set()
        await asyncio.wait({running})
        parts.stop.clear()
    if error := running.exception():
        raise error


FAST = Upkeep(claim_idle=0.05, interval=0.005)
NEVER = Upkeep(claim_idle=3600, interval=0.005)


async def test_an_event_that_failed_is_applied_once_its_cause_is_gone(world, new_parts, publish, pending, applied):
    publish(3)
    world.bad = {1}
    parts = await new_parts(world.rules, upkeep=NEVER)
    await take(parts)
    assert applied() == [0, 2]
    assert list(pending().values()) == [1]
    world.bad = set()
    await turn(parts, lambda: applied() == [0, 1, 2])
    assert pending() == {}


async def test_one_bad_event_delays_none_of_the_other_499(world, new_parts, publish, applied, pending):
    publish(500)
    world.bad = {250}
    parts = await new_parts(world.rules, upkeep=NEVER)
    await take(parts)
    assert len(applied()) == 499
    assert len(pending()) == 1


async def test_the_last_delivery_makes_a_dead_letter_in_the_transaction_of_the_ack(
    client, world, new_parts, publish, pending
):
    (stream_id,) = publish(1)
    world.bad = {0}
    parts = await new_parts(world.rules, policy=RetryPolicy(max_deliveries=3, first_delay=0.001), upkeep=NEVER)
    await take(parts)
    await turn(parts, lambda: client.xlen("events:dead"))
    ((_, letter),) = client.xrange("events:dead")
    assert letter[b"stream_id"] == stream_id.encode()
    assert letter[b"deliveries"] == b"3"
    assert b"ZeroDivisionError" in letter[b"reason"]
    assert letter[b"original:type"] == b"reclaim.changed"
    assert world.seen == [0, 0, 0]
    assert pending() == {}


async def test_a_retry_waits_for_its_delay(world, new_parts, publish):
    now = 1000.0
    publish(1)
    world.bad = {0}
    policy = RetryPolicy(first_delay=10)
    parts = await new_parts(world.rules, policy=policy, upkeep=NEVER, clock=lambda: now)
    await take(parts)
    assert parts.consumer.retries.take(now + 9.9, 10) == {}
    assert len(parts.consumer.retries.take(now + 10, 10)) == 1


async def test_what_a_dead_worker_had_is_applied_by_another(world, new_parts, publish, applied, pending):
    publish(250)
    dead, alive = await new_parts(world.rules), await new_parts(world.rules, upkeep=FAST)
    assert len(await dead.group.read(250, 1)) == 250  # and never handled
    await turn(alive, lambda: len(applied()) == 250)
    assert pending() == {}


async def test_what_another_worker_works_on_is_not_claimed(world, new_parts, publish, pending, eventually):
    """It says three times in the claim time that it is at it."""
    publish(5)
    slow = await new_parts(world.rules, upkeep=Upkeep(claim_idle=0.2, interval=0.005))
    other = await new_parts(world.rules, upkeep=Upkeep(claim_idle=0.2, interval=0.005))
    entered, gate = asyncio.Event(), asyncio.Event()

    class Slow:
        async def handle(self, *arguments, **keywords):
            entered.set()
            await gate.wait()
            return await slow.handler.handle(*arguments, **keywords)

    slow.consumer._handler = Slow()
    renewing = asyncio.create_task(slow.reclaimer.renew(slow.stop))
    handling = asyncio.create_task(take(slow))
    await entered.wait()
    other_running = asyncio.create_task(other.reclaimer.run(other.stop, other.patience()))
    await asyncio.sleep(0.8)  # four times the claim time, which is the server's own and cannot be injected
    assert world.seen == []
    assert set(pending().values()) == {1}
    gate.set()
    await handling
    slow.stop.set()
    other.stop.set()
    await asyncio.gather(renewing, other_running)
    assert world.seen == [0, 1, 2, 3, 4]
    assert pending() == {}


async def test_an_event_that_ends_its_worker_is_set_aside_and_takes_no_other_with_it(
    client, world, new_parts, publish, applied, pending
):
    publish(50)
    world.deadly = {20}
    first = await new_parts(world.rules)
    with pytest.raises(Died):
        await take(first)
    deaths = 1
    while not client.xlen("events:dead"):
        following = await new_parts(world.rules, upkeep=FAST)
        try:
            await turn(following, lambda: client.xlen("events:dead"))
        except Died:
            deaths += 1
        assert deaths < 10
    assert deaths == 5
    assert applied() == [number for number in range(50) if number != 20]
    ((_, letter),) = client.xrange("events:dead")
    assert b"delivered 5 times" in letter[b"reason"]
    assert pending() == {}


async def test_entries_that_were_removed_while_they_were_pending_are_a_loss(client, world, new_parts, publish, pending):
    ids = publish(3)
    dead, alive = await new_parts(world.rules), await new_parts(world.rules, upkeep=FAST)
    await dead.group.read(3, 1)
    client.xdel("events", ids[1])
    await turn(alive, lambda: not pending())
    assert "pending" in alive.codes
    assert b"lost:" in client.get("token:all")


async def test_an_entry_that_vanished_before_its_retry_is_a_loss(client, world, new_parts, publish, pending):
    (stream_id,) = publish(1)
    world.bad = {0}
    parts = await new_parts(world.rules, upkeep=NEVER)
    await take(parts)
    client.xdel("events", stream_id)
    await turn(parts, lambda: parts.losses)
    assert parts.codes == ["pending"]
    assert pending() == {}


async def test_an_entry_that_another_worker_finished_before_its_retry_is_none(client, world, new_parts, publish):
    (stream_id,) = publish(1)
    world.bad = {0}
    parts = await new_parts(world.rules, upkeep=NEVER)
    await take(parts)
    client.xack("events", "tidings", stream_id)
    await turn(parts, lambda: not parts.consumer.retries)
    assert parts.losses == []
    assert world.seen == [0]


async def test_the_stream_is_trimmed_to_what_every_group_has_acknowledged(client, world, new_parts, publish):
    ids = publish(1000)
    client.xgroup_create("events", "another", id="0")
    client.xreadgroup("another", "me", {"events": ">"}, count=500)
    client.xack("events", "another", *ids[:300], *ids[301:500])
    parts = await new_parts(world.rules)
    await take(parts, 1000)
    await parts.group.trim(0, END)
    left = [stream_id.decode() for stream_id, _ in client.xrange("events")]
    assert ids[300] in left  # delivered to the other group, and not acknowledged
    assert len(left) < 1000
    assert left == ids[-len(left) :]


async def test_nothing_is_trimmed_that_was_not_read(client, world, new_parts, publish):
    publish(1000)
    parts = await new_parts(world.rules)
    await take(parts, 10)
    await parts.group.trim(0, END)
    assert client.xlen("events") >= 990
    assert parts.losses == []


async def test_acknowledged_events_are_kept_up_to_a_number(client, world, new_parts, publish):
    publish(1000)
    parts = await new_parts(world.rules)
    await take(parts, 1000)
    await parts.group.trim(400, END)
    assert 400 <= client.xlen("events") <= 600  # whole nodes of the server's tree go at once


async def test_a_stream_without_groups_is_not_trimmed(client, world, new_parts, publish):
    parts = await new_parts(world.rules)
    client.xgroup_destroy("events", "tidings")
    publish(500)
    await parts.group.trim(0, END)
    assert client.xlen("events") == 500


async def test_a_silent_consumer_with_nothing_pending_is_removed_and_no_other(
    client, world, new_parts, publish, consumers, eventually
):
    publish(2)
    parts = await new_parts(world.rules)
    ((_, ((finished, _),)),) = client.xreadgroup("tidings", "finished", {"events": ">"}, count=1)
    client.xreadgroup("tidings", "unfinished", {"events": ">"}, count=1)
    client.xack("events", "tidings", finished)
    await eventually(lambda: all(row["idle"] > 5 for row in client.xinfo_consumers("events", "tidings")))
    assert await parts.group.remove_idle(5) == ["finished"]
    assert consumers() == ["unfinished"]


async def test_a_lost_group_is_made_again_and_the_reclaimer_goes_on(client, world, new_parts, publish, applied):
    publish(3)
    parts = await new_parts(world.rules, upkeep=FAST)
    client.xgroup_destroy("events", "tidings")
    await turn(parts, lambda: client.xinfo_groups("events"))
    assert parts.codes == ["group"]


async def test_an_error_that_is_no_outage_ends_the_reclaimer(client, world, new_parts):
    parts = await new_parts(world.rules, upkeep=FAST)
    client.delete("events")
    client.set("events", "something else")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await turn(parts, lambda: False)
