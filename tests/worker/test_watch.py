"""What can make a group skip events, done to a real server, and what the watch makes of it."""

import asyncio

import pytest
from redis.exceptions import ResponseError
from tidings import cached
from tidings_worker import Rules

RULES = Rules()
RULES.map("watch.changed", tags=["user:{user_id}"])


@cached(tags=["user:{user_id}"])
async def get_user(user_id: int) -> int:
    return user_id


def add(client, count=1):
    return [client.xadd("events", {"type": "watch.changed", "data": '{"user_id": 7}'}).decode() for _ in range(count)]


@pytest.fixture
def token(client):
    """Return the value of the token that every entry depends on."""
    return lambda: client.get("token:all")


@pytest.fixture
async def parts(new_parts):
    return await new_parts(RULES)


async def read_all(parts):
    """Read and apply what there is."""
    while entries := await parts.group.read(100, 1):
        await parts.handler.handle(parts.group, entries)


async def test_a_first_worker_makes_the_group_and_has_nothing_to_make_up_for(client, parts, token, consumers):
    (group,) = client.xinfo_groups("events")
    assert group["name"] == b"tidings"
    assert parts.losses == []
    assert token() is None
    assert consumers() == []


async def test_what_was_published_before_the_first_worker_is_read(client, new_parts):
    ids = add(client, 3)
    parts = await new_parts(RULES)
    assert [entry.stream_id for entry in await parts.group.read(10, 1)] == ids
    assert parts.losses == []


async def test_a_quiet_hour_is_no_loss(client, parts, token):
    add(client, 5)
    for _ in range(3):
        await read_all(parts)
        await parts.watch.check()
        await parts.group.trim(0, parts.watch.looked_at("events"))
        await parts.watch.check()
    assert parts.losses == []
    assert token() is None


def flush(client):
    client.flushall()


def delete_stream(client):
    client.delete("events")


def destroy(client):
    client.xgroup_destroy("events", "tidings")


def destroy_and_make_at_the_end(client):
    client.xgroup_destroy("events", "tidings")
    client.xgroup_create("events", "tidings", id="$")


def replace_stream(client):
    client.delete("events")
    add(client, 2)
    client.xgroup_create("events", "tidings", id="0")


def trim_unread(client):
    add(client, 300)
    client.xtrim("events", maxlen=10, approximate=False)


def trim_everything(client):
    add(client, 3)
    client.xtrim("events", maxlen=0, approximate=False)


def delete_unread(client):
    client.xdel("events", *add(client, 3)[1:])


def jump(client):
    add(client, 3)
    client.xgroup_setid("events", "tidings", id=add(client, 3)[1])


FAULTS = {
    flush: "group",
    delete_stream: "group",
    destroy: "group",
    destroy_and_make_at_the_end: "group",
    replace_stream: "group",
    trim_unread: "trimmed",
    trim_everything: "trimmed",
    delete_unread: "deleted",
    jump: "position",
}


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
async def test_everything_is_invalidated_once(client, parts, token, cache, fault):
    """And not again with the next looks, nor when the group has read on."""
    add(client, 5)
    await read_all(parts)
    await parts.watch.check()
    get_user_here = cache.cached(tags=["user:{user_id}"])(get_user.uncached)
    await get_user_here(7)
    fault(client)
    await parts.watch.check()
    assert parts.codes == [FAULTS[fault]]
    value = token()
    assert b"lost:" in value
    for _ in range(2):
        await parts.watch.check()
        await read_all(parts)
        await parts.watch.check()
    assert parts.codes == [FAULTS[fault]]
    assert token() == value


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
async def test_what_happens_while_no_worker_runs_is_seen_by_the_next(client, new_parts, token, fault):
    first = await new_parts(RULES)
    add(client, 5)
    await read_all(first)
    await first.watch.check()
    fault(client)
    second = await new_parts(RULES)
    if fault is flush:  # the cache and the ledger went with the events: there is nothing left that could be wrong
        assert second.losses == []
    else:
        assert second.codes == [FAULTS[fault]]
        assert b"lost:" in token()


@pytest.mark.parametrize("fault", [trim_unread, destroy], ids=["trimmed", "destroyed"])
async def test_of_two_workers_that_see_a_loss_one_makes_up_for_it(client, new_parts, token, fault):
    first, second = await new_parts(RULES), await new_parts(RULES)
    fault(client)
    await first.watch.check()
    value = token()
    await second.watch.check()
    assert (first.codes, second.codes) == ([FAULTS[fault]], [])
    assert token() == value


async def test_two_workers_that_start_at_once_agree_on_the_group(client, new_parts):
    first, second = await new_parts(RULES, checked=False), await new_parts(RULES, checked=False)
    await asyncio.gather(first.watch.check(), second.watch.check())
    await asyncio.gather(first.watch.check(), second.watch.check())
    assert first.losses == second.losses == []
    assert len(client.xinfo_consumers("events", "tidings")) == 1


async def test_a_group_that_was_made_by_hand_may_have_skipped_anything(client, new_parts, token):
    add(client, 5)
    client.xgroup_create("events", "tidings", id="$")
    parts = await new_parts(RULES)
    assert parts.codes == ["group"]
    assert b"lost:" in token()


async def test_the_group_is_made_again_from_the_beginning_of_what_is_left(client, parts):
    ids = add(client, 3)
    await read_all(parts)
    destroy(client)
    await parts.watch.check()
    assert [entry.stream_id for entry in await parts.group.read(10, 1)] == ids


async def test_pending_entries_whose_data_are_gone_are_a_loss(client, parts, token):
    add(client, 5)
    await parts.group.read(5, 1)
    await parts.watch.check()
    client.xtrim("events", maxlen=2, approximate=False)
    await parts.watch.check()
    assert parts.codes == ["pending"]
    value = token()
    await parts.watch.check()
    assert token() == value


async def test_a_server_with_another_history_is_a_loss_for_running_and_for_new_workers(new_parts, token):
    first = await new_parts(RULES)
    first.histories.symmetric_difference_update({"first", "second"})
    await first.watch.check()
    assert first.codes == ["history"]
    value = token()
    await first.watch.check()
    third = await new_parts(RULES)
    assert third.codes == ["history"]  # its server shows the first one's again
    assert token() != value


async def test_while_everything_cannot_be_invalidated_the_loss_is_not_forgotten(client, parts, token):
    destroy(client)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match="maxmemory"):
            await parts.watch.check()
    finally:
        client.config_set("maxmemory", 0)
    assert parts.losses == []
    await parts.watch.check()
    assert parts.codes == ["group"]
    assert b"lost:" in token()


async def test_a_ledger_that_cannot_be_read_is_as_if_it_were_not_there(client, new_parts):
    await new_parts(RULES)
    client.hset("events:seen", "events", b"\xff{")
    client.hset("events:seen", "histories", b"\xff")
    await new_parts(RULES)


async def test_a_key_that_is_no_stream_is_an_error(client, new_parts):
    client.set("events", "something else")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await new_parts(RULES)
