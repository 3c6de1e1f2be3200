"""What an outage, a lost answer or a slow worker must not do to events that are delivered again."""

import pytest
import redis.exceptions as redis_errors
from tidings.errors import InvalidationError
from tidings_worker import Invalidate, Rules
from tidings_worker.delivery import RetryPolicy
from tidings_worker.groups import Receipts
from tidings_worker.reclaimer import Upkeep

FAST = Upkeep(claim_idle=0.001, interval=0.001)


class Service:
    """Rules that fail for `bad` numbers, and a way to have invalidating fail for a number of times."""

    def __init__(self):
        self.bad = set()
        self.refusals = 0
        self.rules = Rules()
        self.rules.on("again.changed")(self._changed)

    def _changed(self, event):
        if event.number in self.bad:
            raise ZeroDivisionError
        return Invalidate(tags=[f"number:{event.number}"])

    def refuse(self, parts):
        """Let the handler of these parts run into an outage so often."""
        handle = parts.handler.handle

        async def refusing(*arguments, **keywords):
            if self.refusals:
                self.refusals -= 1
                error = InvalidationError("no memory")
                raise error from redis_errors.OutOfMemoryError("OOM")
            return await handle(*arguments, **keywords)

        parts.handler.handle = refusing


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def publish(client):
    def add(count):
        return [
            client.xadd("events", {"type": "again.changed", "data": f'{{"number": {number}}}'}).decode()
            for number in range(count)
        ]

    return add


async def take(parts, count=500):
    """Read a batch and handle it, as the consumer does."""
    await parts.consumer.apply(await parts.group.read(count, 1), parts.stop, parts.patience())


async def turn(parts, until):
    """Take turns of the watch and the reclaimer until a condition holds."""
    patience = parts.patience()
    for _ in range(200):
        if until():
            return
        try:
            await parts.watch.check()
            await parts.reclaimer._turn(parts.stop, patience)
        except Exception as error:  # noqa: BLE001 as their loops
            await patience.wait(error)
    pytest.fail("waited in vain")


@pytest.mark.parametrize("failed_before", [False, True], ids=["of a dead worker", "that failed before"])
async def test_an_outage_counts_as_no_delivery(client, service, new_parts, publish, pending, failed_before):
    """It would use up the deliveries of events that are good, and set them aside when it is over."""
    publish(3)
    policy = RetryPolicy(max_deliveries=3, first_delay=0.001)
    parts = await new_parts(service.rules, policy=policy, upkeep=FAST)
    if failed_before:
        service.bad = {0, 1, 2}
        await take(parts)
        service.bad = set()
    else:
        await (await new_parts(service.rules)).group.read(3, 1)
    service.refuse(parts)
    service.refusals = 4
    await turn(parts, lambda: not pending())
    assert service.refusals == 0
    assert client.xlen("events:dead") == 0
    assert len(client.keys("token:tag:number:*")) == 3


async def test_a_letter_says_how_often_its_event_was_delivered_before_it_was_set_aside_unseen(
    client, service, new_parts, publish, pending
):
    (stream_id,) = publish(1)
    parts = await new_parts(service.rules, policy=RetryPolicy(max_deliveries=4), upkeep=FAST)
    client.xreadgroup("tidings", "dead", {"events": ">"})
    client.xclaim("events", "tidings", "dead", 0, [stream_id], retrycount=4)
    await turn(parts, lambda: not pending())
    ((_, letter),) = client.xrange("events:dead")
    assert letter[b"deliveries"] == b"4"
    assert letter[b"reason"].startswith(b"delivered 4 times")


async def test_a_dead_letter_is_not_written_again_when_its_answer_got_lost(client, service, new_parts, publish):
    publish(1)
    service.bad = {0}
    parts = await new_parts(service.rules, policy=RetryPolicy(max_deliveries=1))
    entries = await parts.group.read(1, 1)
    for _ in range(2):
        await parts.handler.handle(parts.group, entries)
    assert client.xlen("events:dead") == 1


async def test_a_worker_that_was_frozen_leaves_an_event_to_whoever_has_claimed_it(
    client, service, new_parts, publish, pending
):
    """It neither sets the event aside nor acknowledges it: the other has still to do that."""
    (stream_id,) = publish(1)
    service.bad = {0}
    policy = RetryPolicy(max_deliveries=1)
    frozen, other = [await new_parts(service.rules, policy=policy) for _ in range(2)]
    entries = await frozen.group.read(1, 1)
    claimed = (await other.group.claim([stream_id])).entries
    await frozen.handler.handle(frozen.group, entries)
    assert client.xlen("events:dead") == 0
    assert list(pending()) == [stream_id]
    await other.handler.handle(other.group, claimed)
    assert client.xlen("events:dead") == 1
    assert pending() == {}


async def test_an_event_that_another_worker_applied_and_that_was_trimmed_since_is_no_loss(
    client, service, new_parts, publish
):
    (stream_id,) = publish(1)
    service.bad = {0}
    parts = await new_parts(service.rules, upkeep=FAST)
    await take(parts)
    await parts.watch.check()
    client.xack("events", "tidings", stream_id)
    client.xtrim("events", maxlen=0, approximate=False)
    await turn(parts, lambda: not parts.consumer.retries)
    assert parts.losses == []


@pytest.mark.parametrize("how", ["deleted in the middle", "that failed before"])
async def test_a_loss_that_is_found_in_an_outage_is_made_up_for_after_it(
    client, service, new_parts, publish, pending, how
):
    """The server forgets a pending entry without data when it is claimed: no later look would find it."""
    ids = publish(3)
    parts = await new_parts(service.rules, upkeep=FAST)
    if how == "that failed before":
        service.bad = {1}
        await take(parts)
    else:
        await (await new_parts(service.rules)).group.read(3, 1)
    await parts.watch.check()  # has seen that it was read
    client.xdel("events", ids[1])
    invalidate, refusals = parts.watch._cache.invalidate_tokens, [1, 2]

    async def refusing(causes, **keywords):
        if refusals and "all" in causes:
            refusals.pop()
            error = InvalidationError("no memory")
            raise error from redis_errors.OutOfMemoryError("OOM")
        await invalidate(causes, **keywords)

    parts.watch._cache.invalidate_tokens = refusing
    await turn(parts, lambda: not pending() and parts.losses)
    assert parts.codes == ["pending"]
    assert refusals == []
    assert b"lost:" in client.get("token:all")


@pytest.mark.parametrize("part", ["consumer", "reclaimer"])
async def test_after_an_outage_nothing_is_asked_for_before_a_look_has_gone_through(client, service, new_parts, part):
    """Another server may answer then, which lacks what this one had acknowledged."""
    parts = await new_parts(service.rules)
    calls, name = [], {"consumer": "read", "reclaimer": "claim_idle"}[part]
    ask, check = getattr(parts.group, name), parts.watch.check

    async def asking(*arguments):
        calls.append("ask")
        if calls.count("ask") == 1:
            raise redis_errors.ConnectionError("gone")
        parts.stop.set()
        return await ask(*arguments)

    async def checking():
        calls.append("look")
        if calls.count("look") < 3:
            raise redis_errors.ConnectionError("still gone")
        await check()

    setattr(parts.group, name, asking)
    parts.watch.check = checking
    await getattr(parts, part).run(parts.stop, parts.patience())
    assert calls == ["ask", "look", "look", "look", "ask"]


async def test_acknowledging_nothing_is_nothing(new_parts, service):
    parts = await new_parts(service.rules)
    assert await parts.group.acknowledge([], Receipts()) == 0
