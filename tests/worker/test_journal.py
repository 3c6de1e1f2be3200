"""The journal: what each event did, told while somebody reads, and never in the way of a batch. On a real server."""

import asyncio
import itertools
import json

import pytest
import redis
import redis.asyncio
from structlog.testing import capture_logs
from tidings import Cache, Event, cached
from tidings_worker import Invalidate, Rules, Warm
from tidings_worker.delivery import Entry, RetryPolicy
from tidings_worker.groups import Group
from tidings_worker.handler import Handler
from tidings_worker.journal import LOOK_SECONDS, ROOM, Journal
from tidings_worker.outage import Outage, Patience


class Moved(Event, type="journal.moved"):
    user_id: int
    team: int
    email: str = ""


@cached(namespace="journal", tags=["user:{user_id}"])
async def get_member(user_id: int) -> int:
    return user_id


class Service:
    """Rules that count how often they ran."""

    def __init__(self):
        self.runs = 0
        self.rules = Rules()
        self.rules.on(Moved)(self._moved)
        self.rules.on("journal.broken")(self._broken)
        self.rules.on("journal.wide")(self._wide)

    def _moved(self, event):
        self.runs += 1
        yield Invalidate(namespaces=["teams"], tags=[f"user:{event.user_id}", f"team:{event.team}"])
        yield Warm(get_member, event.user_id)

    def _broken(self, event):
        self.runs += 1
        raise ZeroDivisionError("a bug in a rule")

    def _wide(self, event):
        return Invalidate(tags=[f"wide:{number}" for number in range(60)])


class Warmer:
    async def hand_off(self, _warms, _hot, *, carriers):
        pass


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class Worker:
    """The part of a worker that applies events, and its journal; each does something when the test says so."""

    def __init__(self, cache, client, service):
        store = cache.reader().store
        self.service = service
        self.clock = Clock()
        self.client = client
        self.group = Group(store, cache.keys.stream(), "tidings", "me")
        self.journal = Journal(store, cache.keys, "me", clock=self.clock)
        self._handler = Handler(cache, service.rules, Warmer(), RetryPolicy(), journal=self.journal)

    async def read_by_somebody(self):
        self.client.set("events:journal:read", "1")
        await self.look()

    async def look(self):
        self.clock.seconds += LOOK_SECONDS
        await self.journal.turn()

    async def apply(self):
        """Apply what is in the stream, and tell of it."""
        reply = self.client.xreadgroup("tidings", "me", {"events": ">"})
        entries = [Entry(stream_id.decode(), fields) for _, page in reply for stream_id, fields in page]
        await self._handler.handle(self.group, entries)
        await self.journal.turn()

    @property
    def told(self):
        return [json.loads(fields[b"what"]) for _, fields in self.client.xrange("events:journal")]


@pytest.fixture
async def worker(cache, client):
    client.xgroup_create("events", "tidings", id="0", mkstream=True)
    return Worker(cache, client, Service())


async def test_nothing_is_written_while_nobody_reads(cache, client, worker):
    await worker.look()
    await cache.publish(Moved(user_id=1, team=1))
    await worker.apply()
    assert not client.exists("events:journal")
    assert worker.service.runs == 1


async def test_two_events_of_a_batch_that_share_a_tag_each_show_it(cache, worker):
    await worker.read_by_somebody()
    await cache.publish(Moved(user_id=1, team=7), subject="user:1")
    await cache.publish(Moved(user_id=2, team=7), subject="user:2")
    await worker.apply()

    first, second = worker.told
    assert first["tokens"] == ["namespace:teams", "tag:user:1", "tag:team:7"]
    assert second["tokens"] == ["namespace:teams", "tag:user:2", "tag:team:7"]
    assert (first["subject"], second["subject"]) == ("user:1", "user:2")
    assert [record["batch"] for record in (first, second)] == [2, 2]


async def test_a_record_says_what_came_of_an_event(cache, worker):
    await worker.read_by_somebody()
    receipt = await cache.publish(Moved(user_id=1, team=7))
    await worker.apply()

    (record,) = worker.told
    assert record["outcome"] == "applied"
    assert (record["type"], record["event_id"], record["stream_id"]) == ("journal.moved", receipt.event_id, receipt.id)
    assert record["warms"] == [Warm(get_member, 1).name]
    assert "_moved" in record["rules"][0]
    assert 0 <= record["age_ms"] < 10_000
    assert record["took_ms"] > 0


async def test_an_events_data_are_not_in_the_journal(cache, client, worker):
    await worker.read_by_somebody()
    await cache.publish(Moved(user_id=1, team=7, email="ada@example.org"))
    await worker.apply()
    assert worker.told
    assert b"ada@" not in client.xrange("events:journal")[0][1][b"what"]


async def test_a_lone_event_is_not_planned_twice(cache, worker):
    await worker.read_by_somebody()
    await cache.publish(Moved(user_id=1, team=7))
    await worker.apply()
    assert worker.told
    assert worker.service.runs == 1


async def test_a_rule_that_failed_is_told_of_and_not_run_again_for_that(client, worker):
    await worker.read_by_somebody()
    client.xadd("events", {"type": "journal.broken"})
    client.xadd("events", {"type": "journal.nobody_cares"})
    await worker.apply()

    ruleless, failed = worker.told
    assert (failed["outcome"], failed["again_in_s"]) == ("again", 1)
    assert failed["reason"] == "ZeroDivisionError('a bug in a rule')"
    assert worker.service.runs == 1
    assert ruleless["outcome"] == "unruled"


async def test_dead_letters_have_their_own_stream(client, worker):
    await worker.read_by_somebody()
    client.xadd("events", {"type": "journal.moved", "data": '{"user_id": "none"}'})
    client.xadd("events", {"no": "type"})
    await worker.apply()
    assert worker.told == []
    assert client.xlen("events:dead") == 2


async def test_so_many_are_told_of_between_two_looks_and_then_how_many_more_there_were(client, worker):
    await worker.read_by_somebody()
    for _ in range(ROOM + 20):
        client.xadd("events", {"type": "journal.nobody_cares"})
    await worker.apply()
    assert len(worker.told) == ROOM

    await worker.look()
    assert worker.told[ROOM:] == [{"of": "more", "worker": "me", "untold": 20}]
    client.xadd("events", {"type": "journal.nobody_cares"})
    await worker.apply()
    assert len(worker.told) == ROOM + 2


async def test_an_events_tokens_and_texts_are_bounded(client, worker):
    await worker.read_by_somebody()
    client.xadd("events", {"type": "journal.wide", "subject": "s" * 100_000, "id": "i" * 100_000})
    await worker.apply()
    (record,) = worker.told
    assert (len(record["tokens"]), record["tokens_more"]) == (50, 10)
    assert len(record["subject"]) == len(record["event_id"]) == 200


async def test_the_journal_expires(client, worker):
    await worker.read_by_somebody()
    client.xadd("events", {"type": "journal.wide"})
    await worker.apply()
    assert 0 < client.ttl("events:journal") <= 60


async def test_nothing_is_written_any_more_when_the_last_reader_has_gone(client, worker):
    await worker.read_by_somebody()
    client.delete("events:journal:read")
    await worker.look()
    client.xadd("events", {"type": "journal.wide"})
    await worker.apply()
    assert not client.exists("events:journal")


async def test_a_key_of_another_type_in_its_place_does_not_disturb_the_worker(client, worker):
    """Events are applied all the same; it is logged once, until it is possible to write again."""
    client.set("events:journal", "somebody else's")
    await worker.read_by_somebody()
    with capture_logs() as logs:
        for _ in range(3):
            client.xadd("events", {"type": "journal.wide"})
            await worker.apply()
            await worker.look()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["journal_failed"]
    assert client.xpending("events", "tidings")["pending"] == 0

    client.delete("events:journal")
    client.xadd("events", {"type": "journal.wide"})
    await worker.apply()
    assert len(worker.told) == 1


async def test_a_worker_that_may_not_look_goes_on(url, client):
    client.acl_setuser("blind", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-exists"])
    try:
        async with Cache(url.replace("redis://", "redis://blind:x@")) as cache:
            journal = Journal(cache.reader().store, cache.keys, "me", clock=itertools.count(step=LOOK_SECONDS).__next__)
            with capture_logs() as logs:
                await journal.turn()
                await journal.turn()
    finally:
        client.acl_deluser("blind")
    assert [entry["event"] for entry in logs] == ["journal_failed"]
    assert not journal.wanted


async def test_an_outage_is_ridden_out_and_what_there_was_to_tell_is_dropped(new_server, eventually):
    server = new_server()
    url = f"redis://127.0.0.1:{server.port}"
    async with Cache(url) as cache:
        await reading(url)
        journal = Journal(cache.reader().store, cache.keys, "me", clock=itertools.count(step=LOOK_SECONDS).__next__)
        await journal.turn()
        journal.warmed("journal:x", "m:f", "warmed", took_s=0.1, why="event")
        server.stop()
        stop, states = asyncio.Event(), []
        outage = Outage("the test's", lambda there, _why: states.append(there))
        running = asyncio.create_task(journal.run(stop, Patience("journal", outage, stop)))
        await eventually(lambda: states == [False], "the outage")
        assert not journal.wanted

        server.start()
        await reading(url)
        await eventually(lambda: states == [False, True] and journal.wanted, "its end")
        stop.set()
        await running
    with redis.Redis.from_url(url) as client:
        assert not client.exists("events:journal")


async def reading(url):
    """Be somebody who reads the journal."""
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.set("events:journal:read", "1")


async def test_warms_are_told_of_behind_the_events_that_asked_for_them(client, worker):
    await worker.read_by_somebody()
    worker.journal.warmed("journal:x", "m:f", "in_vain", took_s=0.1, why="schedule")
    client.xadd("events", {"type": "journal.wide"})
    await worker.apply()
    event, warm = worker.told
    assert event["of"] == "event"
    assert (warm["of"], warm["outcome"], warm["took_ms"], warm["why"]) == ("warm", "in_vain", 100, "schedule")
