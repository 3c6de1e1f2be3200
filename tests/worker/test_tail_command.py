"""`tidings tail`: what it puts together, what it shows, and how it ends."""

import asyncio
import io
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError
from rich.console import Console
from tidings import Cache, Event
from tidings.errors import UnavailableError
from tidings_worker import Invalidate, Rules
from tidings_worker.commands import tail as tail_command
from tidings_worker.commands.tail_views import print_line
from tidings_worker.delivery import Entry, RetryPolicy
from tidings_worker.groups import Group
from tidings_worker.handler import Handler
from tidings_worker.journal import Journal
from tidings_worker.journal_records import EventRecord, WarmRecord
from tidings_worker.tailing.filtering import Wanted
from tidings_worker.tailing.follower import LATE, Follower
from tidings_worker.tailing.following import Tailing
from tidings_worker.tailing.lines import Line, Outcome

#: When the ids of these tests were made, in seconds and as the first half of an id.
T = 1_700_000_000.0
MS = "1700000000000"


CAUSE = f"event:e1 entry:{MS}-1 rule:r"


def event_fields(event_type="tail.changed", event_id="e1", **more):
    at = datetime.fromtimestamp(T, UTC).isoformat()
    return {
        name.encode(): value.encode()
        for name, value in {"type": event_type, "id": event_id, "time": at, **more}.items()
    }


def logged(**tokens):
    return {b"what": json.dumps({"tokens": tokens, "entries": []}).encode()}


def record(**told):
    base = {"worker": "me", "group": "tidings", "stream": "events", "stream_id": f"{MS}-1", "outcome": "applied"}
    return {
        b"what": EventRecord(**{**base, "type": "tail.changed", "event_id": "e1", **told}).model_dump_json().encode()
    }


def warm_record(**told):
    base = {"worker": "me", "name": "n:f:1", "function": "m:f", "outcome": "warmed", "took_ms": 2.0, "why": "event"}
    return {b"what": WarmRecord(**{**base, **told}).model_dump_json().encode()}


@pytest.fixture
def follower():
    return Follower("tidings")


def come(follower, now=T, stream_id=f"{MS}-1", **fields):
    follower.event("events", stream_id, event_fields(**fields), now)


# What is put together


def test_an_event_is_shown_once_with_what_the_journal_says(follower):
    come(follower, subject="user:1")
    (line,) = follower.journal(f"{MS}-9", record(tokens=("tag:a", "namespace:n"), subject="user:1", age_ms=4), T)
    assert (line.outcome, line.tags, line.namespaces, line.age_ms) == ("applied", ["a"], ["n"], 4)
    assert line.complete
    come(follower)  # on a cluster the event may come behind what is told of it
    assert follower.due(T + 100) == []


def test_an_event_that_nobody_applies_is_asked_after_and_shown_once_and_again_when_it_is(follower):
    come(follower)
    assert follower.due(T + LATE - 0.1) == []
    (awaited,) = follower.due(T + LATE)
    (line,) = follower.answered(awaited, "no worker has read it yet", T + LATE)
    assert (line.outcome, line.reason, line.age_ms) == ("waiting", "no worker has read it yet", LATE * 1000)
    (awaited,) = follower.due(T + 3 * LATE)
    assert list(follower.answered(awaited, "no worker has read it yet", T + 3 * LATE)) == []
    (line,) = follower.journal(f"{MS}-9", record(), T + 4 * LATE)
    assert line.outcome == "applied"
    assert follower.due(T + 100) == []


def test_what_was_applied_without_a_word_in_the_journal_has_the_tokens_of_the_log(follower):
    list(follower.logged("1700000000250-0", logged(**{"tag:a": CAUSE, "tag:b": "event:other entry:1-1 rule:r"})))
    come(follower)
    (awaited,) = follower.due(T + LATE)
    assert list(follower.answered(awaited, "", T + LATE)) == []
    assert list(follower.overdue(T + LATE)) == []  # the journal's word may be under way
    (line,) = follower.overdue(T + LATE + 1)
    assert (line.outcome, line.tags, line.rules, line.age_ms, line.complete) == ("applied", ["a"], ("r",), 250, False)


def test_a_word_of_the_journal_that_is_under_way_is_waited_for(follower):
    come(follower)
    (awaited,) = follower.due(T + LATE)
    list(follower.answered(awaited, "", T + LATE))
    (line,) = follower.journal(f"{MS}-9", record(tokens=("tag:a",)), T + LATE)
    assert line.complete
    assert list(follower.overdue(T + 100)) == []


def test_a_dead_letter_is_shown_with_its_reason_and_what_its_event_did_before(follower):
    come(follower, subject="user:1")
    list(follower.logged(f"{MS}-2", logged(**{"tag:a": CAUSE})))
    letter = {b"stream": b"events", b"stream_id": f"{MS}-1".encode(), b"group": b"tidings", b"reason": b"broken"}
    (line,) = follower.dead_letter("1700000001000-0", letter)
    assert (line.outcome, line.type, line.subject, line.reason) == ("dead", "tail.changed", "user:1", "broken")
    assert line.tags == ["a"]
    assert follower.due(T + 100) == []


def test_a_dead_letter_whose_event_was_not_seen_says_what_the_letter_has(follower):
    letter = {b"stream": b"events", b"stream_id": b"1-1", b"reason": b"no type", b"original:subject": b"s"}
    (line,) = follower.dead_letter("1700000001000-0", letter)
    assert (line.outcome, line.type, line.subject, line.stream_id) == ("dead", None, "s", "1-1")


def test_an_event_that_failed_is_shown_and_not_called_late_before_it_is_due_again(follower):
    come(follower)
    (line,) = follower.journal(f"{MS}-9", record(outcome="again", reason="KeyError()", again_in_s=8), T)
    assert (line.outcome, line.again_in_s, line.reason) == ("again", 8, "KeyError()")
    assert follower.due(T + 8) == []
    assert len(follower.due(T + 8 + LATE)) == 1


def test_what_workers_ignore_is_shown_as_that_when_it_was_acknowledged(follower):
    follower.event("events", f"{MS}-1", {b"key": b'{"id": 1}', b"value": b"default"}, T)
    (awaited,) = follower.due(T + LATE)
    list(follower.answered(awaited, "", T + LATE))
    (line,) = follower.overdue(T + LATE + 1)
    assert (line.outcome, line.reason) == ("ignored", "tombstone")


def test_a_direct_invalidation_is_shown_with_who_did_it(follower):
    tokens = {"tag:a": "call:invalidate_tags host:1", "namespace:n": "call:invalidate_tags host:1"}
    (line,) = follower.logged("1700000000500-0", logged(**tokens))
    assert (line.outcome, line.reason) == ("direct", "call:invalidate_tags host:1")
    assert (line.tags, line.namespaces) == (["a"], ["n"])
    assert line.at == datetime.fromtimestamp(T + 0.5, UTC)


def test_a_loss_and_entries_and_patterns_are_shown(follower):
    (lost,) = follower.logged("1-1", logged(all="lost:trimmed events"))
    assert (lost.outcome, lost.everything) == ("lost", True)
    what = {"tokens": {}, "entries": ["cache:n:f:1"], "patterns": ["cache:n:*"]}
    (direct,) = follower.logged("1-2", {b"what": json.dumps(what).encode()})
    assert (direct.outcome, direct.entries, direct.patterns) == ("direct", ("cache:n:f:1",), ("cache:n:*",))


def test_a_warm_is_shown_with_the_event_that_asked_for_it(follower):
    list(follower.journal(f"{MS}-8", record(warms=("n:f:1",), subject="user:1"), T))
    (line,) = follower.journal(f"{MS}-9", warm_record(), T)
    assert (line.outcome, line.type, line.subject, line.took_ms) == ("warmed", "tail.changed", "user:1", 2)
    (line,) = follower.journal(f"{MS}-9", warm_record(why="schedule", outcome="failed"), T)
    assert (line.outcome, line.type) == ("warm_failed", None)
    (line,) = follower.journal(f"{MS}-9", warm_record(), T)  # somebody else asked for it again, like a replay
    assert (line.outcome, line.type) == ("warmed", None)


def test_another_groups_events_are_not_this_ones(follower):
    assert list(follower.journal(f"{MS}-9", record(group="other"), T)) == []
    assert list(follower.dead_letter(f"{MS}-9", {b"group": b"other", b"stream": b"events"})) == []


@pytest.mark.parametrize(
    "what",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"of": "event"}',
        b'{"of": "more", "worker": "w", "untold": "many"}',
        record(outcome="applied")[b"what"].replace(b'"again_in_s":0.0', b'"again_in_s":NaN'),
        record()[b"what"].replace(b'"applied"', b'"\\u001b[31m"'),
    ],
    ids=["empty", "no-utf8", "list", "object", "half", "no-number", "nan", "unknown-outcome"],
)
def test_what_nobody_of_ours_wrote_is_left_out(follower, what):
    assert list(follower.journal(f"{MS}-9", {b"what": what}, T)) == []
    assert list(follower.logged(f"{MS}-9", {b"what": what})) == []


@pytest.mark.parametrize("stream_id", ["0-1", "253402300799999-0", "18446744073709551615-1"])
def test_ids_that_are_no_times_are_shown_too(follower, stream_id):
    follower.event("events", stream_id, {b"type": b"tail.odd"}, T)
    (awaited,) = follower.due(T + LATE)
    (line,) = follower.answered(awaited, "why", T + LATE)
    assert "tail.odd" in shown(line)
    (line,) = follower.dead_letter(stream_id, {b"stream": b"events", b"stream_id": stream_id.encode()})
    assert "tail.odd" in shown(line)


def test_more_events_than_are_remembered_are_asked_after_at_once(follower):
    for number in range(10_003):
        come(follower, stream_id=f"{MS}-{number}")
    assert [awaited.key[1] for awaited in follower.due(T)] == [f"{MS}-{number}" for number in range(3)]


# What is wanted


def line_of(**told):
    return Line(at=datetime.fromtimestamp(T, UTC), **{"outcome": Outcome.APPLIED, **told})


EVENT = line_of(type="user.updated", subject="user:7", tokens=("tag:user:7", "namespace:stats"))


@pytest.mark.parametrize(
    ("wanted", "wants"),
    [
        ({}, True),
        ({"types": ["user.*"]}, True),
        ({"types": ["order.*"]}, False),
        ({"types": ["order.*", "user.updated"]}, True),
        ({"tags": ["user:[0-9]"]}, True),
        ({"tags": ["user:"]}, False),
        ({"namespaces": ["stats"]}, True),
        ({"namespaces": ["user"]}, False),
        ({"subjects": ["user:7"], "types": ["x"]}, False),
        ({"outcomes": [Outcome.DEAD, Outcome.APPLIED]}, True),
        ({"outcomes": [Outcome.DEAD]}, False),
    ],
    ids=str,
)
def test_filters(wanted, wants):
    assert Wanted(**wanted).wants(EVENT) is wants


def test_what_invalidates_everything_invalidates_every_tag_and_namespace():
    everything = line_of(tokens=("all",))
    assert Wanted(tags=["a"], namespaces=["b"]).wants(everything)
    assert not Wanted(types=["a"]).wants(everything)


def test_a_namespace_is_that_of_entries_and_warms_too():
    assert Wanted(namespaces=["n"]).wants(line_of(warms=("n:f:1",)))
    assert Wanted(namespaces=["n"]).wants(line_of(entries=("prefix:v1:cache:n:f:1",)))
    assert not Wanted(namespaces=["f"]).wants(line_of(warms=("n:f:1",)))


# What is shown


def shown(line, width=80, *, terminal=False):
    written = io.StringIO()
    print_line(Console(file=written, width=width, force_terminal=terminal, highlight=False), line)
    return written.getvalue()


def test_a_line_is_one_where_there_is_room_and_folded_beside_its_time_at_80_columns():
    line = line_of(
        stream_id="1-1",
        type="user.updated",
        subject="user:7",
        tokens=tuple(f"tag:user:{number}" for number in range(40)),
        age_ms=3,
    )
    assert shown(line, 1000).count("\n") == 1
    rows = shown(line).splitlines()
    assert len(rows) > 1
    assert max(map(len, rows)) <= 80
    indent = len(rows[0]) - len(rows[0].partition("user.updated")[1] + rows[0].partition("user.updated")[2])
    assert all(row.startswith(" " * indent) and not row.endswith(" ") for row in rows[1:])
    assert "and 28 more" in shown(line, 1000)
    assert "applied after 3.0 ms" in rows[0]


def test_colour_is_for_terminals():
    assert "\x1b[" not in shown(EVENT)
    assert "\x1b[" in shown(EVENT, terminal=True)


HOSTILE = "\x1b[31m\x07[bold red]\u202e\r\n\x9b"


def test_hostile_text_does_nothing_to_the_terminal():
    names = (f"tag:{HOSTILE}",)
    everywhere = {
        "subject": HOSTILE,
        "reason": HOSTILE,
        "tokens": names,
        "warms": names,
        "entries": names,
        "patterns": names,
    }
    for outcome in Outcome:
        text = shown(line_of(**{**everywhere, "outcome": outcome, "type": HOSTILE, "stream_id": "1-1"}), 1000)
        assert not set(text) & set("\x1b\x07\u202e\r\x9b")
        assert text.count("\n") == 1
        assert "[bold red]" in text


# On a server


class Tailed(Event, type="tail.command"):
    number: int


RULES = Rules()


@RULES.on(Tailed)
def tailed(event):
    return Invalidate(tags=[f"number:{event.number}", "all-of-them"])


class NoWarmer:
    async def hand_off(self, _warms, _hot, *, carriers):
        pass


@pytest.fixture
async def handle(cache, client):
    """Apply what is in the stream, as a worker does, and tell of it in the journal."""
    client.xgroup_create("events", "tidings", id="0", mkstream=True)
    store = cache.reader().store
    journal = Journal(store, cache.keys, "me")
    handler = Handler(cache, RULES, NoWarmer(), RetryPolicy(), journal=journal)
    group = Group(store, cache.keys.stream(), "tidings", "me")

    async def apply():
        await journal.turn()
        reply = client.xreadgroup("tidings", "me", {"events": ">"})
        await handler.handle(group, [Entry(one.decode(), fields) for _, page in reply for one, fields in page])
        await journal.turn()

    return apply


@pytest.fixture
async def follow(cache):
    """Follow the streams; give the lines so far."""
    stop, running = asyncio.Event(), []

    async def start(since=None):
        lines = []
        tailing = Tailing(cache, lines.append, lambda _: None, stop)
        await tailing.begin(None if since is None else lambda _now: since)
        if since is not None:
            await tailing.past(patient=True)
        running.append(asyncio.create_task(tailing.follow()))
        return lines

    yield start
    stop.set()
    await asyncio.gather(*running)


async def test_two_events_of_one_batch_each_show_the_tag_that_they_share(cache, follow, handle, eventually):
    lines = await follow()
    await cache.publish(Tailed(number=1))
    await cache.publish(Tailed(number=2))
    await handle()
    await eventually(lambda: len(lines) == 2, "two lines")
    assert [line.tags for line in lines] == [["number:1", "all-of-them"], ["number:2", "all-of-them"]]
    assert [line.batch for line in lines] == [2, 2]


async def test_what_services_invalidate_and_what_is_set_aside_is_shown(cache, client, follow, handle, eventually):
    lines = await follow()
    client.xadd("events", {"type": "tail.command", "data": '{"number": "none"}'})
    await handle()
    await cache.invalidate_tags("direct:1")
    await eventually(lambda: len(lines) == 2, "two lines")
    dead, direct = lines
    assert (dead.outcome, dead.type) == ("dead", "tail.command")
    assert (direct.outcome, direct.tags) == ("direct", ["direct:1"])
    assert direct.reason.startswith("call:invalidate_tags ")


async def test_an_event_from_before_is_shown_as_far_as_the_streams_tell(cache, follow, handle):
    """Nobody read the journal then: the log has the tokens that it was the first to ask for."""
    await cache.publish(Tailed(number=1))
    await cache.publish(Tailed(number=2))
    await handle()
    lines = await follow(since="0-0")
    assert [line.tags for line in lines] == [["number:1", "all-of-them"], ["number:2"]]
    assert not any(line.complete for line in lines)


async def test_an_event_whose_letter_was_put_back_or_dropped_is_not_called_applied(cache, client, follow, handle):
    client.xadd("events", {"type": "tail.command", "data": '{"number": "none"}'})
    client.xadd("events", {"no": "type"})
    await handle()
    client.delete("events:dead")
    lines = await follow(since="0-0")
    assert [(line.outcome.value, line.type) for line in lines] == [("dead", "tail.command"), ("dead", None)]
    assert all("letter is gone" in line.reason for line in lines)


async def test_an_event_that_a_worker_has_in_hand_is_not_called_applied(cache, client, follow):
    client.xgroup_create("events", "tidings", id="0", mkstream=True)
    for number in range(3):
        client.xadd("events", {"type": "tail.command", "data": f'{{"number": {number}}}'}, id=f"{number + 1}-1")
    client.xreadgroup("tidings", "somebody", {"events": ">"}, count=2)
    client.xack("events", "tidings", "1-1")
    lines = await follow(since="0-0")
    found = {line.stream_id: (line.outcome.value, line.reason) for line in lines}
    assert found == {
        "1-1": ("applied", ""),
        "2-1": ("waiting", "a worker has it and has not acknowledged it"),
        "3-1": ("waiting", "no worker has read it yet"),
    }


async def test_on_a_cluster_each_stream_is_followed_where_it_is(cluster, eventually):
    async with Cache(cluster.url, partitions=2) as cache:
        lines, stop = [], asyncio.Event()
        tailing = Tailing(cache, lines.append, lambda _: None, stop)
        await tailing.begin(None)
        following = asyncio.create_task(tailing.follow())
        await cache.invalidate_tags("direct:1")
        await eventually(lambda: lines, "a line")
        stop.set()
        await following
    assert [line.tags for line in lines] == [["direct:1"]]


async def test_who_may_only_read_is_told_once_and_shown_the_rest(url, cache, client, eventually):
    client.acl_setuser("looker", enabled=True, nopass=True, keys=["%R~*"], commands=["+@all"])
    lines, notes, stop = [], [], asyncio.Event()
    try:
        async with Cache(url.replace("redis://", "redis://looker:x@")) as looking:
            tailing = Tailing(looking, lines.append, notes.append, stop)
            await tailing.begin(None)
            following = asyncio.create_task(tailing.follow())
            await cache.invalidate_tags("direct:1")
            await eventually(lambda: lines, "a line")
            stop.set()
            await following
    finally:
        client.acl_deluser("looker")
    assert [line.tags for line in lines] == [["direct:1"]]
    assert len(notes) == 1


async def test_who_may_not_ask_how_far_the_group_is_is_told_nothing_wrong(url, client):
    client.xadd("events", {"type": "tail.command"})
    client.acl_setuser("looker", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-xinfo"])
    try:
        async with Cache(url.replace("redis://", "redis://looker:x@")) as looking:
            tailing = Tailing(looking, print, print, asyncio.Event())
            await tailing.begin(lambda _now: "0-0")
            with pytest.raises(NoPermissionError):
                await tailing.past(patient=False)
    finally:
        client.acl_deluser("looker")


@pytest.mark.parametrize("since", [None, lambda _now: "0-0"], ids=["new", "past"])
async def test_a_key_of_another_type_is_named(cache, client, since):
    client.set("events:journal", "somebody else's")
    tailing = Tailing(cache, print, print, asyncio.Event())
    with pytest.raises(UnavailableError, match="events:journal: WRONGTYPE"):  # noqa: PT012 either may find it
        await tailing.begin(since)
        await tailing.past(patient=False)


# The command

WORKER_RULES = """
from tidings import cached
from tidings_worker import Invalidate, Rules, Warm

rules = Rules()


@cached(namespace="tailed", tags=["number:{number}"])
async def load(number: int) -> int:
    return number


@rules.on("tail.changed")
def changed(event):
    yield Invalidate(tags=[f"number:{event.number}"])
    yield Warm(load, event.number)
"""


def test_a_worker_tells_while_somebody_looks_on_and_ctrl_c_ends_it(shell, url, client, until):
    shell.write("tail_rules.py", WORKER_RULES)
    worker = shell.start("worker", "tail_rules:rules", TIDINGS_URL=url)
    tail = shell.start("tail", "--json", "--type", "tail.changed", TIDINGS_URL=url)
    worker.event("worker_started")
    until(lambda: "following" in tail.err, "the tail")
    until(lambda: client.xadd("events", {"type": "tail.probe"}) and client.exists("events:journal"), "the journal")
    client.xadd("events", {"type": "tail.changed", "data": '{"number": 7}', "subject": "n:7"})
    until(lambda: tail.out.count("\n") == 2, "two lines")
    event, warm = map(json.loads, tail.out.splitlines())
    assert (event["outcome"], event["tags"], event["subject"]) == ("applied", ["number:7"], "n:7")
    assert (warm["outcome"], warm["warms"], warm["event_id"]) == ("warmed", event["warms"], event["event_id"])
    tail.send(signal.SIGINT)
    assert tail.wait() == 0
    assert "Traceback" not in tail.err


def test_ctrl_c_between_two_commands_ends_it(url, monkeypatch):
    def since(_text, _now):
        signal.raise_signal(signal.SIGINT)
        return "0-0"

    monkeypatch.setattr(tail_command, "parse_since", since)
    screen, late = tail_command._Screen(lambda _: True, None, as_json=False), []

    async def run():
        asyncio.get_running_loop().call_later(5, lambda: late.append(screen.full.set()))
        await tail_command._tail(Cache(url), "0", screen, follow=True)

    asyncio.run(run())
    assert not late


def test_a_reader_that_has_seen_enough_ends_it_without_a_traceback(shell, url, client):
    for _ in range(3000):
        client.xadd("events", {"type": "tail.piped"})
    command = f"{Path(sys.executable).with_name('tidings')} tail --since 0 --no-follow"
    environment = {**shell.environment, "TIDINGS_URL": url}
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo code=${{PIPESTATUS[0]}}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "code=0"
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_an_outage_is_said_and_what_comes_after_it_is_shown(shell, new_server, until):
    server = new_server()
    url = f"redis://127.0.0.1:{server.port}"
    tail = shell.start("tail", "--json", TIDINGS_URL=url)
    until(lambda: "following" in tail.err, "the tail")
    server.stop()
    until(lambda: tail.events("redis_away"), "the outage")
    server.start()
    until(lambda: tail.events("redis_back"), "its end")
    with redis.Redis.from_url(url) as client:
        client.xadd("invalidations", {"what": '{"tokens": {"tag:a": "call:x"}, "entries": []}'})
    until(lambda: tail.out, "a line")
    assert json.loads(tail.out)["tags"] == ["a"]
