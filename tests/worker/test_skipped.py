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


def is_read(client):
    """Not by the server's `lag`, which some servers have wrong after a trim."""
    return client.xinfo_groups("events")[0]["last-delivered-id"] == client.xinfo_stream("events")["last-generated-id"]


async def test_what_was_trimmed_unread_is_a_loss_although_the_group_read_on_before_anybody_looked(
    client, rules, publish, new_parts, eventually
):
    parts = await new_parts(rules, batch=10)
    publish(100)
    await parts.handler.handle(parts.group, await parts.group.read(50, 1))
    client.xtrim("events", maxlen=20, approximate=False)
    await consume(parts, lambda: is_read(client), eventually)
    assert parts.losses == []
    await parts.watch.check()
    assert parts.codes == ["trimmed"]
    assert b"lost:" in client.get("token:all")
    await parts.watch.check()
    assert parts.codes == ["trimmed"]


async def test_what_a_look_has_made_up_for_is_not_made_up_for_again_by_the_read(
    client, rules, publish, new_parts, eventually
):
    parts = await new_parts(rules, batch=10)
    publish(100)
    await parts.handler.handle(parts.group, await parts.group.read(50, 1))
    client.xtrim("events", maxlen=20, approximate=False)
    await parts.watch.check()
    assert parts.codes == ["trimmed"]
    await consume(parts, lambda: is_read(client), eventually)
    assert parts.codes == ["trimmed"]


async def test_what_two_workers_read_is_no_loss_for_either(client, rules, publish, new_parts):
    one, other = await new_parts(rules), await new_parts(rules)
    publish(30)
    for parts in (one, other, one):
        assert len(await parts.group.read(10, 1)) == 10
        await parts.watch.check()
    await other.watch.check()
    assert (one.losses, other.losses) == ([], [])


async def test_workers_trim_no_further_than_they_have_looked(client, rules, publish, new_parts, eventually):
    """Else they could not tell their own trimming from anybody's."""
    parts = await new_parts(rules)
    publish(500)
    await consume(parts, lambda: is_read(client), eventually)
    assert await parts.group.trim(0, parts.watch.looked_at("events")) == 0
    await parts.watch.check()
    assert await parts.group.trim(0, parts.watch.looked_at("events")) > 0
    await parts.watch.check()
    assert parts.losses == []


async def test_what_somebody_trims_beyond_the_last_look_is_a_loss_though_it_may_have_been_read(
    client, rules, publish, new_parts, eventually
):
    parts = await new_parts(rules)
    publish(50)
    await consume(parts, lambda: is_read(client), eventually)
    client.xtrim("events", maxlen=0, approximate=False)
    await parts.watch.check()
    assert parts.codes == ["trimmed"]
