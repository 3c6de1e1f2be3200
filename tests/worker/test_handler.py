"""A batch: decoded, planned, invalidated, handed off, acknowledged. On a real server."""

import json

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from tidings import Cache, Event, cached
from tidings.errors import DeadLetteredError, InvalidationError
from tidings.publisher import covers
from tidings_worker import Invalidate, Rules, Warm
from tidings_worker.batches import digest
from tidings_worker.delivery import Entry, RetryPolicy, ranges
from tidings_worker.groups import Group
from tidings_worker.handler import Handler, dead_letter


class Updated(Event, type="handler.updated"):
    user_id: int


class Many(Event, type="handler.many"):
    ids: list[int]


@cached(tags=["user:{user_id}"])
async def get_user(user_id: int) -> int:
    return user_id


RULES = Rules()
RULES.map(Updated, tags=["user:{user_id}"], warm=[get_user])
RULES.map(Many, namespaces=["users"])
RULES.map("handler.by_hand", tags=["user:{user_id}"])


@pytest.fixture
def deliver(client):
    """Deliver what is in the stream, as to a worker."""
    client.xgroup_create("events", "tidings", id="0", mkstream=True)

    def read():
        reply = client.xreadgroup("tidings", "me", {"events": ">"})
        return [Entry(stream_id.decode(), fields) for _, entries in reply for stream_id, fields in entries]

    return read


@pytest.fixture
async def handle(cache, deliver):
    """Handle what is in the stream."""
    group = Group(cache.reader().store, cache.keys.stream(), "tidings", "me")

    async def handle(to=cache, rules=RULES, warmer=None):
        return await Handler(to, rules, warmer or Warmer(), RetryPolicy()).handle(group, deliver())

    return handle


@pytest.fixture
def pending(client):
    return lambda: client.xpending("events", "tidings")["pending"]


class Warmer:
    """Remembers what it was handed, and what the server looked like at that moment."""

    def __init__(self, look=lambda: None):
        self.look = look
        self.warms = []
        self.seen = []

    async def hand_off(self, warms, _hot, *, carriers):
        self.seen.append(self.look())
        self.warms.extend(warms)


class BrokenWarmer:
    async def hand_off(self, _warms, _hot, *, carriers):
        raise RedisConnectionError("the queue is away")


async def test_an_event_is_invalidated_before_its_warms_are_handed_off_and_acknowledged_after(
    cache, client, handle, pending
):
    client.set("token:tag:user:7", "the token of before")
    warmer = Warmer(lambda: (client.get("token:tag:user:7"), client.xlen("invalidations"), pending()))
    await cache.publish(Updated(user_id=7))
    await handle(warmer=warmer)

    token, logged, unacknowledged = warmer.seen[0]
    assert token != b"the token of before"
    assert (logged, unacknowledged) == (1, 1)
    assert warmer.warms == [Warm(get_user, 7)]
    assert pending() == 0


async def test_a_batch_is_one_invalidation(cache, client, handle, pending):
    for number in range(200):
        await cache.publish(Updated(user_id=number % 2))
    warmer = Warmer()
    await handle(warmer=warmer)
    assert client.xlen("invalidations") == 1
    assert len(warmer.warms) == 2
    assert pending() == 0


async def test_the_log_and_the_token_say_which_event_and_rule_were_the_cause(cache, client, handle):
    receipt = await cache.publish(Updated(user_id=7))
    await handle()
    ((_, fields),) = client.xrange("invalidations")
    cause = json.loads(fields[b"what"])["tokens"]["tag:user:7"]
    assert cause.startswith(f"event:{receipt.event_id} entry:{receipt.id} rule:rules.map('handler.updated')")
    assert client.get("token:tag:user:7").decode().endswith(f" {cause}")


async def test_nothing_is_handed_off_or_acknowledged_when_the_invalidation_fails(url, cache, client, handle, pending):
    """The worker's user may do everything but invalidate."""
    client.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-eval", "-evalsha"])
    await cache.publish(Updated(user_id=7))
    warmer = Warmer()
    try:
        async with Cache(url.replace("redis://", "redis://limited:any@")) as limited:
            with pytest.raises(InvalidationError):
                await handle(limited, warmer=warmer)
    finally:
        client.acl_deluser("limited")
    assert warmer.seen == []
    assert pending() == 1
    assert client.exists("events:applied", "events:dead", "events:counts") == 0


async def test_an_event_whose_warms_cannot_be_handed_off_is_invalidated_and_stays_pending(
    cache, client, handle, pending
):
    await cache.publish(Updated(user_id=7))
    with pytest.raises(RedisConnectionError):
        await handle(warmer=BrokenWarmer())
    assert client.exists("token:tag:user:7")
    assert pending() == 1


async def test_an_event_over_which_a_rule_fails_stays_pending_and_takes_nothing_from_the_others(
    cache, client, handle, pending
):
    rules = Rules()
    rules.map(Updated, tags=["user:{user_id}"])

    @rules.on("handler.by_hand")
    def broken(event):
        raise ZeroDivisionError

    await cache.publish(Updated(user_id=7))
    client.xadd("events", {"type": "handler.by_hand"})
    outcome = await handle(rules=rules)
    assert client.exists("token:tag:user:7")
    assert client.xlen("events:dead") == 0
    assert pending() == 1
    ((entry, error),) = outcome.failed
    assert entry.fields[b"type"] == b"handler.by_hand"
    assert isinstance(error, ZeroDivisionError)


async def test_what_the_other_rules_ask_for_is_done_also_for_an_event_that_is_tried_again(
    cache, client, handle, pending
):
    rules = Rules()

    @rules.on("handler.by_hand")
    def broken(event):
        raise ZeroDivisionError

    rules.map("handler.by_hand", tags=["user:{user_id}"], warm=[get_user])
    client.xadd("events", {"type": "handler.by_hand", "data": '{"user_id": 7}'})
    warmer = Warmer()
    await handle(rules=rules, warmer=warmer)
    assert client.exists("token:tag:user:7")
    assert warmer.warms == [Warm(get_user, 7)]
    assert pending() == 1
    assert client.hgetall("events:counts") == {b"retried": b"1", b"tokens": b"1", b"warms": b"1"}


def test_what_the_other_rules_ask_for_is_done_also_for_an_event_that_is_set_aside():
    rules = Rules()

    @rules.on("handler.by_hand")
    def broken(event):
        raise ZeroDivisionError("of a rule")

    rules.map("handler.by_hand", tags=["name:{name}"])
    rules.map("handler.by_hand", tags=["user:{user_id}"])
    entry = Entry("1-0", {b"type": b"handler.by_hand", b"data": b'{"user_id": 7}'})
    again = digest("events", [entry], rules, RetryPolicy())
    assert [one.stream_id for one, _ in again.failed] == ["1-0"]
    assert again.plan.tags == {"user:7"}

    last = digest("events", [entry._replace(deliveries=5)], rules, RetryPolicy(max_deliveries=5))
    ((_, reason),) = last.dead
    assert "name" in reason
    assert "of a rule" in reason
    assert (last.plan.tags, last.applied) == ({"user:7"}, ())


def test_a_batch_says_which_event_was_the_last_to_ask_for_a_warm():
    entries = [Entry(f"{number}-0", {b"type": b"handler.updated", b"data": b'{"user_id": 7}'}) for number in (1, 2)]
    batch = digest("events", entries, RULES, RetryPolicy())
    assert batch.askers == {Warm(get_user, 7).name: "2-0"}
    assert batch.types == {"handler.updated": 2}


def test_an_event_that_fails_at_its_last_delivery_is_dead():
    rules = Rules()

    @rules.on("handler.by_hand")
    def broken(event):
        raise ZeroDivisionError("of a rule")

    entries = [Entry(f"{number}-0", {b"type": b"handler.by_hand"}, number) for number in range(1, 7)]
    batch = digest("events", entries, rules, RetryPolicy(max_deliveries=5))
    assert [entry.deliveries for entry, _ in batch.failed] == [1, 2, 3, 4]
    assert [(entry.deliveries, "of a rule" in reason) for entry, reason in batch.dead] == [(5, True), (6, True)]
    assert batch.done == ["5-0", "6-0"]


async def test_applying_an_event_twice_is_harmless(cache, client, handle, pending):
    await cache.publish(Updated(user_id=7))
    await handle()
    client.xgroup_setid("events", "tidings", id="0")
    await handle()
    assert pending() == 0
    assert client.hget("events:counts", "applied") == b"2"


DEEP = '{"user_id": ' + "[" * 100_000 + "]" * 100_000 + "}"
WORDS = json.dumps({"ids": ["x"] * 100_000})

DEAD = {
    "no type": ({"data": "{}"}, "type"),
    "empty type": ({"type": "", "data": "{}"}, "type"),
    "nothing we know": ({"some": "thing", "else": "entirely"}, "else"),
    "value is not UTF-8": ({"type": "handler.updated", "data": b'{"user_id": "\xff"}'}, "UTF-8"),
    "name is not UTF-8": ({"type": "handler.updated", b"\xfe": "x"}, "UTF-8"),
    "data are not JSON": ({"type": "handler.updated", "data": "user 7"}, "JSON"),
    "data are half JSON": ({"type": "handler.updated", "data": '{"user_id": 7'}, "JSON"),
    "data are a list": ({"type": "handler.updated", "data": "[7]"}, "list"),
    "data are null": ({"type": "handler.updated", "data": "null"}, "object"),
    "data are XML": ({"type": "handler.updated", "datacontenttype": "application/xml", "data": "<a/>"}, "xml"),
    "data do not validate": ({"type": "handler.updated", "data": '{"user_id": "seven"}'}, "user_id"),
    "data are missing": ({"type": "handler.updated"}, "user_id"),
    "data are nested too deeply": ({"type": "handler.updated", "data": DEEP}, "nested"),
    "time is none": ({"type": "handler.updated", "time": "noon", "data": '{"user_id": 7}'}, "time"),
    "template lacks a field": ({"type": "handler.by_hand", "data": "{}"}, "user_id"),
    "number of 5000 digits": ({"type": "handler.updated", "data": '{"user_id": ' + "9" * 5000 + "}"}, ""),
    "body is huge": ({"type": "handler.by_hand", "data": json.dumps({"user_id": 7, "x": "x" * 8_000_000})}, "bytes"),
    "a hundred thousand errors": ({"type": "handler.many", "data": WORDS}, "ids"),
    "text is no Unicode": ({"type": "handler.by_hand", "data": '{"user_id": "\\ud800"}'}, "user_id"),
    "name of a field is no Unicode": ({"type": "handler.updated", "data": '{"\\ud800": 1}'}, "not Unicode"),
    "name of a field is huge": ({"n" * 500_000: "x"}, "type"),
}


@pytest.mark.parametrize("what", DEAD)
async def test_what_cannot_be_understood_is_set_aside_with_its_reason_and_the_rest_flows(
    what, cache, client, handle, pending
):
    fields, reason = DEAD[what]
    stream_id = client.xadd("events", fields)
    await cache.publish(Updated(user_id=7))
    await handle()

    ((_, letter),) = client.xrange("events:dead")
    original = {
        (b"original:" + (name if isinstance(name, bytes) else name.encode())): (
            value if isinstance(value, bytes) else value.encode()
        )
        for name, value in fields.items()
    }
    why = letter.pop(b"reason").decode()
    assert letter == {
        b"stream": b"events",
        b"stream_id": stream_id,
        b"group": b"tidings",
        b"deliveries": b"1",
        **original,
    }
    assert reason in why
    assert len(why) < 2000, f"a reason of {len(why)} characters"
    assert client.exists("token:tag:user:7")
    assert pending() == 0
    assert client.hget("events:counts", "dead") == b"1"
    assert client.hget("events:counts", "applied") == b"1"


@pytest.mark.parametrize("fields", [{"id": "x" * 500_000}, {"source": "x" * 500_000}], ids=["id", "source"])
async def test_a_token_stays_small_whatever_the_event_carries(fields, cache, client, handle):
    """Every read of an entry under the tag fetches the token."""
    client.xadd("events", {"type": "handler.updated", "data": '{"user_id": 7}', **fields})
    await handle()
    assert client.strlen("token:tag:user:7") < 2000


@pytest.mark.parametrize(
    "stream_id", ["1732180000000000-0", "18446744073709551615-1"], ids=["microseconds", "the largest"]
)
async def test_an_event_without_a_time_whose_id_is_no_time_either_does_not_stop_the_worker(
    stream_id, cache, client, handle, pending
):
    client.xadd("events", {"type": "handler.updated", "data": '{"user_id": 7}'}, id=stream_id)
    await handle()
    assert pending() == 0


async def test_an_event_whose_warm_cannot_be_made_still_invalidates(cache, client, handle):
    """To warm is a favour, to invalidate is the promise."""
    rules = Rules()
    rules.map("handler.by_hand", tags=["user:{name}"], warm=[get_user])
    client.xadd("events", {"type": "handler.by_hand", "data": '{"name": "ada"}'})
    await handle(rules=rules)
    assert client.exists("token:tag:user:ada")


async def test_a_type_without_a_rule_is_acknowledged_and_counted(cache, client, handle, pending):
    for event_type in ("handler.nobody", "handler.nobody", "handler.noone"):
        client.xadd("events", {"type": event_type})
    await handle()
    counts = client.hgetall("events:counts")
    assert counts[b"unruled"] == b"3"
    assert counts[b"unruled:handler.nobody"] == b"2"
    assert counts[b"unruled:handler.noone"] == b"1"
    assert counts[b"applied"] == b"3"
    assert client.xlen("events:dead") == 0
    assert pending() == 0


async def test_a_producer_of_ever_new_types_does_not_fill_the_server(cache, client, handle):
    for number in range(300):
        client.xadd("events", {"type": f"handler.nobody.{number}" + "x" * 1000})
    await handle()
    counts = client.hgetall("events:counts")
    assert counts[b"unruled"] == b"300"
    assert len(counts) < 110
    assert max(map(len, counts)) < 200


async def test_what_was_done_is_counted(cache, client, handle):
    for user_id in (1, 2, 2):
        await cache.publish(Updated(user_id=user_id))
    await handle()
    assert client.hgetall("events:counts") == {b"applied": b"3", b"tokens": b"2", b"warms": b"2"}


async def test_a_receipt_hears_of_its_event(cache, client, handle):
    good = await cache.publish(Updated(user_id=7))
    unruled = await cache.publish(Event.of("handler.nobody", {}))
    client.xadd("events", {"type": "handler.updated"})
    bad = await cache.publish(Event.of("handler.by_hand", {}))
    await handle()
    await good.applied(timeout=1)
    await unruled.applied(timeout=1)
    with pytest.raises(DeadLetteredError, match="user_id"):
        await bad.applied(timeout=1)


async def test_a_receipt_hears_of_its_event_among_a_thousand_dead_letters(cache, client, handle):
    with client.pipeline() as pipe:
        for _ in range(1500):
            pipe.xadd("events", {"type": "handler.updated"})
        pipe.execute()
    bad = await cache.publish(Event.of("handler.by_hand", {}))
    await handle()
    with pytest.raises(DeadLetteredError, match="user_id"):
        await bad.applied(timeout=1)


def test_a_batch_is_digested_without_a_server():
    entries = [
        Entry("1-0", {b"type": b"handler.updated", b"data": b'{"user_id": 7}'}),
        Entry("2-0", {b"type": b"handler.updated", b"data": b'{"user_id": 7}'}),
        Entry("3-0", {b"type": b"handler.updated"}),
        Entry("4-0", {b"type": b"handler.nobody"}),
    ]
    batch = digest("events", entries, RULES, RetryPolicy())
    assert batch.plan.tags == {"user:7"}
    assert batch.plan.warms == (Warm(get_user, 7),)
    assert batch.delivered == ("1-0", "2-0", "3-0", "4-0")
    assert [entry for entry, _ in batch.dead] == [entries[2]]
    assert batch.unruled == {"handler.nobody": 1}


def test_a_rule_may_ask_for_nothing_and_its_event_is_not_unruled():
    rules = Rules()
    rules.on("handler.by_hand")(lambda _: None)
    assert not digest("events", [Entry("1-0", {b"type": b"handler.by_hand"})], rules, RetryPolicy()).unruled


def test_a_rule_may_reach_for_everything():
    rules = Rules()
    rules.on("handler.by_hand")(lambda _: Invalidate(everything=True))
    assert digest("events", [Entry("1-0", {b"type": b"handler.by_hand"})], rules, RetryPolicy()).plan.everything


@pytest.mark.parametrize(
    ("delivered", "but", "expected"),
    [
        (["5-0", "5-1", "7-0"], [], "5-0..7-0"),
        (["5-0"], [], "5-0"),
        (["5-0", "5-1", "5-2", "5-3"], ["5-1"], "5-0 5-2..5-3"),
        (["5-0", "5-1"], ["5-0", "5-1"], ""),
        ([], [], ""),
    ],
    ids=["run", "one", "gap", "none left", "nothing"],
)
def test_applied_ids_are_told_in_runs_around_the_dead(delivered, but, expected):
    told = ranges(delivered, but)
    assert told == expected
    assert [stream_id for stream_id in delivered if covers(told, stream_id)] == [i for i in delivered if i not in but]


def test_a_dead_letter_keeps_the_entry_byte_for_byte():
    fields = {b"\xfe": b"\xff\x00", b"type": b""}
    letter = dead_letter("events", "tidings", Entry("1-0", fields), "why")
    kept = {name.removeprefix(b"original:"): value for name, value in letter.items() if isinstance(name, bytes)}
    assert kept == fields
