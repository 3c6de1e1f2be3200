"""Dead letters on a real server: read whatever they hold, put back once, dropped."""

import asyncio
import json

import pytest
from tidings import Cache, Settings
from tidings.errors import UnavailableError
from tidings.store import RedisStore
from tidings_worker import Invalidate, Rules
from tidings_worker.dead_letters.box import CUT, PAGE, DeadLetters, became
from tidings_worker.dead_letters.letters import Wanted, cure, letter_of
from tidings_worker.delivery import Entry, RetryPolicy
from tidings_worker.escaping import escaped
from tidings_worker.handler import dead_letter
from tidings_worker.servers import store_of

#: Entries that no worker has written, or only half.
HOSTILE = [
    {b"\xff\xfe": b"\x1b[2J"},
    {"reason": b"\xc3\x28 [red]"},
    {"reason": "", "stream": "", "stream_id": "none", "deliveries": "-1"},
    {"deliveries": "9" * 400, "original:": "", "stream": "events"},
    {"deliveries": "٣", "original:type": b"\xff", "original:data": b"\x00"},
    {"original:value": "{", "stream": b"\xff", "stream_id": "\n"},
    {"original:data": "[" * 5000},
]


@pytest.fixture
async def box(cache):
    return DeadLetters(store_of(cache), cache.keys, 1)


@pytest.fixture
def add(client):
    """Write dead letters as a worker does; give their ids."""

    def write(count=1, *, event_type="dead.changed", reason="the reason", stream="events", start=0):
        pipe = client.pipeline(transaction=False)
        for number in range(start, start + count):
            entry = Entry(f"1-{number}", {b"type": event_type.encode(), b"data": b'{"number": %d}' % number}, 5)
            pipe.xadd("events:dead", dead_letter(stream, "tidings", entry, reason))
        return [made.decode() for made in pipe.execute()]

    return write


async def everything(box, wanted=Wanted(), **options):  # noqa: B008 frozen
    return [letter async for page in box.pages(wanted, **options) for letter in page]


# Reading


async def test_a_letter_says_what_the_worker_wrote(box, add):
    (made,) = add()
    (letter,) = await everything(box)
    assert letter.as_json(whole=True) == {
        "id": made,
        "type": "dead.changed",
        "reason": "the reason",
        "stream": "events",
        "stream_id": "1-0",
        "group": "tidings",
        "deliveries": 5,
        "original": {"type": "dead.changed", "data": '{"number": 0}'},
    }


@pytest.mark.parametrize("fields", HOSTILE, ids=range(len(HOSTILE)))
async def test_what_no_worker_wrote_breaks_nothing(box, add, client, fields):
    hostile = client.xadd("events:dead", fields).decode()
    add()
    letter, ours = await everything(box)
    assert (letter.id, ours.type) == (hostile, "dead.changed")
    assert letter.as_json(whole=True)["deliveries"] is None
    assert cure(letter)
    assert escaped(f"{letter.type}{letter.reason}{letter.stream}").isprintable()


async def test_pages_give_every_letter_once_in_both_directions(box, add):
    ids = add(2 * PAGE + 1)
    assert [letter.id for letter in await everything(box)] == ids
    assert [letter.id for letter in await everything(box, newest_first=True)] == ids[::-1]


async def test_letters_are_chosen_by_type_reason_and_time(box, add):
    first = add(2, event_type="dead.a", reason="ArgumentError: no PLACE")
    second = add(2, event_type="dead.b")

    async def ids(**wanted):
        return [letter.id for letter in await everything(box, Wanted(**wanted))]

    assert await ids(type="dead.b") == second
    assert await ids(reason="place") == first
    assert await ids(type="dead.a", reason="the reason") == []
    assert await ids(first=first[1], last=second[0]) == [first[1], second[0]]


async def test_a_letter_of_others_format_has_the_type_that_its_event_has(box, client):
    event = '{"specversion": "1.0", "id": "7", "source": "/x", "type": "dead.structured", "data": {}}'
    client.xadd("events:dead", {"stream": "events", "stream_id": "1-1", "original:event": event})
    (letter,) = await everything(box, Wanted(type="dead.structured"))
    assert letter.type == "dead.structured"


def test_the_cure_depends_on_why_it_died():
    def of(reason, **original):
        pairs = [(f"original:{name}".encode(), value.encode()) for name, value in original.items()]
        return letter_of(b"5-1", [b"reason", reason.encode(), b"stream", b"events", *sum(pairs, ())])

    assert "nothing to put back" in cure(of("?"))
    assert "correct its publisher" in cure(of("EventError: …", data="x"))
    assert "correct the rule" in cure(of("failed 5 times, at last with ZeroDivisionError()", type="x"))
    assert "ended its workers" in cure(of("delivered 5 times, and nobody who had it said …", type="x"))
    assert "do not fit" in cure(of("ArgumentError: the template …", type="x"))
    assert cure(of("?", type="x")).endswith("tidings dlq replay 5-1")


# Putting back


async def test_an_event_goes_back_byte_for_byte_and_its_letter_is_gone(box, client):
    fields = [b"original:\xff", b"\x00\x1b", b"original:type", b"a", b"original:type", b"b", b"original:", b""]
    client.execute_command("XADD", "events:dead", "*", "stream", "events", "reason", "x", *fields)
    client.xadd("events", {"type": "before"})
    (outcome,) = await box.put_back(await everything(box))
    _, (new_id, flat) = client.execute_command("EVAL", "return redis.call('XRANGE', 'events', '-', '+')", 0)
    assert new_id.decode() == outcome.new_id
    assert flat == [b"\xff", b"\x00\x1b", b"type", b"a", b"type", b"b", b"", b""]
    assert await box.count() == 0


async def test_of_those_who_put_back_the_same_letters_at_once_each_event_comes_once(box, cache, add, client, url):
    add(3 * PAGE)
    letters = await everything(box)
    store = RedisStore.connect(Settings(url=url))
    other = DeadLetters(store, cache.keys, 1)
    try:
        halves = await asyncio.gather(box.put_back(letters), other.put_back(letters), box.put_back(letters[::-1]))
    finally:
        await store.aclose()
    new = [outcome.new_id for half in halves for outcome in half if outcome.new_id]
    assert len(new) == len(set(new)) == len(letters) == client.xlen("events")
    assert sum(outcome.gone for half in halves for outcome in half) == 2 * len(letters)


async def test_a_connection_that_breaks_neither_loses_nor_doubles(box, add, client):
    """Whether it breaks before the server has done a page, after that, or between two pages."""
    add(5 * PAGE)
    working = asyncio.create_task(box.put_back(await everything(box)))
    while not client.exists("events"):
        await asyncio.sleep(0)
    client.client_kill_filter(_type="normal")
    await asyncio.wait({working})
    error = working.exception()
    assert error is None or isinstance(error, UnavailableError)
    while left := await everything(box):
        await box.put_back(left)
    numbers = [json.loads(fields[b"data"])["number"] for _, fields in client.xrange("events")]
    assert sorted(numbers) == list(range(5 * PAGE))


async def test_a_letter_of_any_size_is_listed_cut_and_goes_back_whole(box, client):
    large = b"x" * (3 * CUT)
    client.xadd("events:dead", {"stream": "events", "original:type": "dead.large", "original:data": large})
    (letter,) = await everything(box)
    assert (letter.type, len(dict(letter.original)[b"data"])) == ("dead.large", CUT)
    assert dict((await box.whole(letter.id)).original)[b"data"] == large
    await box.put_back([letter])
    ((_, fields),) = client.xrange("events")
    assert fields == {b"type": b"dead.large", b"data": large}


async def test_what_cannot_go_back_is_named_and_stays_and_the_rest_goes(box, add, client):
    add()
    client.xadd("events:dead", {"reason": "no original", "stream": "events"})
    client.xadd("events:dead", {"original:type": "x"})
    client.xadd("events:dead", {"original:type": "x", "stream": "users"})
    client.xadd("events:dead", {f"original:{number}": "" for number in range(20_000)} | {"stream": "events"})
    add()
    outcomes = await box.put_back(await everything(box))
    errors = [outcome.error for outcome in outcomes if outcome.error]
    for error, text in zip(errors, ["nothing to put back", "which stream", "came from users", "too many"], strict=True):
        assert text in error
    assert client.xlen("events") == 2
    assert not client.exists("users")
    assert await box.count() == 4


async def test_a_stream_that_takes_no_entry_leaves_the_letter(box, add, client):
    client.set("events", "no stream")
    add(2)
    outcomes = await box.put_back(await everything(box))
    assert ["WRONGTYPE" in outcome.error for outcome in outcomes] == [True, True]
    assert await box.count() == 2


async def test_replaying_once_the_rule_is_right_applies_it_and_before_that_it_dies_again(box, cache, new_parts, client):
    wrong = {1, 2}

    def rule(event):
        if event.number in wrong:
            raise ZeroDivisionError
        return Invalidate(tags=[f"dead:{event.number}"])

    rules = Rules()
    rules.on("dead.number")(rule)
    for number in (1, 2):
        client.xadd("events", {"type": "dead.number", "data": f'{{"number": {number}}}'})
    parts = await new_parts(rules, policy=RetryPolicy(max_deliveries=1))
    running = asyncio.create_task(parts.consumer.run(parts.stop, parts.patience()))
    try:
        while await box.count() < 2:
            await asyncio.sleep(0.005)
        wrong.remove(1)
        outcomes = await box.put_back(await everything(box))

        async def wait(_, stream_id, seconds):
            hearing, stream = cache.reader().hearing, cache.keys.stream()
            await hearing.wait(stream, stream_id, seconds, label=stream_id, ask_at_once=True)

        right, still_wrong = [await became(outcome, wait, 10) for outcome in outcomes]
    finally:
        parts.stop.set()
        await running
    assert right.problem is None
    assert client.exists("token:tag:dead:1")
    assert still_wrong.dead_again
    assert "ZeroDivisionError" in still_wrong.problem
    (letter,) = await everything(box)
    assert letter.stream_id == still_wrong.outcome.new_id


async def test_an_event_that_nobody_applies_is_not_applied_in_time(box, cache, add):
    add()
    (outcome,) = await box.put_back(await everything(box))

    async def wait(_, stream_id, seconds):
        await cache.reader().hearing.wait(cache.keys.stream(), stream_id, seconds, label=stream_id, ask_at_once=True)

    found = await became(outcome, wait, 0.01)
    assert found.problem
    assert not found.dead_again


async def test_on_a_cluster_events_go_back_as_well(cluster):
    async with Cache(cluster.url) as cache:
        store, key = store_of(cache), cache.keys.dead
        box = DeadLetters(store, cache.keys, 2)
        assert not box.at_once
        for number in range(4):
            client = await store.client_for(key)
            await client.xadd(key, {"stream": f"events:{number % 2}", "original:type": f"t{number}"})
        letters = await everything(box)
        first, second = [await box.put_back(letters) for _ in range(2)]
        assert [bool(outcome.new_id) for outcome in first] == [True] * 4
        assert [outcome.gone for outcome in second] == [True] * 4
        lengths = {stream: await (await store.client_for(stream)).xlen(stream) for stream in box.streams}
        assert lengths == {"events": 0, "events:0": 2, "events:1": 2}
        assert await box.count() == 0


# Dropping


async def test_dropped_letters_are_gone_and_those_that_are_not_there_count_for_nothing(box, add):
    ids = add(3)
    assert await box.drop([*ids[:2], "5-5"]) == 2
    assert list(await box.find([*ids, "5-5"])) == ids[2:]
