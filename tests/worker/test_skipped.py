"""Entries that were removed before they were read, on a real server, when the group goes on reading right after."""

import asyncio

import pytest
from tidings_worker import Invalidate, Rules


@pytest.fixture
def rules():
    made = Rules()
    made.on("skipped.changed")(lambda event: Invalidate(tags=[f"number:{event.number}"]))
    return made


@pytest.fixture
def publish(client):
    def add(count):
        for number in range(count):
            client.xadd("events", {"type": "skipped.changed", "data": f'{{"number": {number}}}'})

    return add


async def consume(parts, until, eventually):
    """Run the consumer until a condition holds."""
    running = asyncio.create_task(parts.consumer.run(parts.stop, parts.patience()))
    try:
        await eventually(until)
    finally:
        parts.stop.set()
        await running
        parts.stop.clear()


def lag(client):
    return client.xinfo_groups("events")[0]["lag"]


async def test_what_was_trimmed_unread_is_a_loss_although_the_group_read_on_before_anybody_looked(
    client, rules, publish, new_parts, eventually
):
    parts = await new_parts(rules, batch=10)
    publish(100)
    await parts.consumer.apply((await parts.group.next(50)).entries, parts.stop, parts.patience())
    client.xtrim("events", maxlen=20, approximate=False)
    await consume(parts, lambda: lag(client) == 0, eventually)
    assert parts.codes == ["trimmed"]
    assert parts.losses[0].text.startswith("30 events")
    assert b"lost:" in client.get("token:all")
    await parts.watch.check()
    assert parts.codes == ["trimmed"]


async def test_what_a_look_has_made_up_for_is_not_made_up_for_again_by_the_read(
    client, rules, publish, new_parts, eventually
):
    parts = await new_parts(rules, batch=10)
    publish(100)
    await parts.consumer.apply((await parts.group.next(50)).entries, parts.stop, parts.patience())
    client.xtrim("events", maxlen=20, approximate=False)
    await parts.watch.check()
    assert parts.codes == ["trimmed"]
    await consume(parts, lambda: lag(client) == 0, eventually)
    assert parts.codes == ["trimmed"]


async def test_what_two_workers_read_is_no_loss_for_either(client, rules, publish, new_parts):
    one, other = await new_parts(rules), await new_parts(rules)
    publish(30)
    for parts in (one, other, one):
        following = await parts.group.next(10)
        assert len(following.entries) == 10
        assert following.skipped == 0


async def test_what_was_read_and_trimmed_is_no_loss(client, rules, publish, new_parts):
    parts = await new_parts(rules)
    for _ in range(3):
        publish(50)
        following = await parts.group.next(100)
        assert (len(following.entries), following.skipped) == (50, 0)
        client.xtrim("events", maxlen=0, approximate=False)
    assert (await parts.group.next(100)).skipped == 0
