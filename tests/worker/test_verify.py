"""The auditor: what it finds, what it leaves alone, and what it never calls stale."""

import asyncio
import json
import math
import random
import re
import signal
import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
import redis.asyncio
import structlog
from arq.connections import ArqRedis
from forked_commands import Forks
from pydantic import BaseModel
from redis.exceptions import ResponseError
from tidings import Cache, Event, Settings, cached, publish, set_cache
from tidings.errors import ConfigurationError
from tidings.keys import Keyspace
from tidings.layout import Facts, pack_entry, unique
from tidings.store import RedisStore
from tidings_worker import Invalidate, Rules
from tidings_worker.commands import verify as command
from tidings_worker.jobs import from_json, to_json
from tidings_worker.metrics import Metrics
from tidings_worker.settings import WorkerSettings
from tidings_worker.verifying.audit import Audit
from tidings_worker.verifying.nines import nines, nines_text, percent, stale_at_most
from tidings_worker.verifying.pace import Pace
from tidings_worker.verifying.plan import Plan
from tidings_worker.verifying.reports import Tally
from tidings_worker.verifying.sampling import Reservoir, Walk, shares
from tidings_worker.verifying.scheduled import Auditor, audits
from tidings_worker.verifying.verdicts import MOST_LOADS, Outcome, Value, difference, verdict
from tidings_worker.warming import WarmWorker


class Source:
    """The database: rows by number. `act` is awaited by each load of an asynchronous function, with its number."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.rows: dict[int, int] = {}
        self.loads: Counter[str] = Counter()
        self.act = None

    def version(self, number: int) -> int:
        return self.rows.get(number, 0)

    async def load(self, function: str, number: int) -> int:
        self.loads[function] += 1
        if self.act is not None:
            await self.act(self.loads[function])
        return self.version(number)


source = Source()


class Card(BaseModel):
    number: int
    version: int
    seen: set[str] = set()


@cached(namespace="titles", tags=["row:{number}"])
async def title(number: int) -> str:
    return f"title {await source.load('title', number)}"


@cached(namespace="prices", key="{number}", tags=["row:{number}"])
def price(number: int) -> float:
    source.loads["price"] += 1
    return source.version(number) + 0.5


@cached(namespace="cards", tags=lambda number: [f"row:{number}"])
async def card(number: int) -> Card:
    return Card(number=number, version=await source.load("card", number), seen={"a", "b", "c"})


@cached(namespace="shelves", result_tags=lambda cards: [f"row:{one.number}" for one in cards])
async def shelf(first: int) -> list[Card]:
    source.loads["shelf"] += 1
    return [Card(number=number, version=source.version(number)) for number in range(first, first + 2)]


@cached(namespace="secrets", tags=["row:{number}"])
async def secret(number: int) -> str:
    return f"secret {await source.load('secret', number)}"


@cached(namespace="bypassed", when=lambda number: source.version(number) == 0)
async def sometimes(number: int) -> int:
    return await source.load("sometimes", number)


@cached(namespace="outer", tags=["row:{number}"])
async def outer(number: int) -> int:
    return await inner(number)


@cached(namespace="inner", local_ttl=60)
async def inner(number: int) -> int:
    return await source.load("inner", number)


@cached(namespace="lenient", tags=["row:{number}"], max_staleness=600, stale_while_revalidate=600)
async def lenient(number: int) -> int:
    return await source.load("lenient", number)


class Shop:
    @cached(namespace="methods", key="{number}")
    async def method(self, number: int) -> int:
        return number


class RowChanged(Event, type="verify.row_changed"):
    number: int


rules = Rules()


@rules.on(RowChanged)
def changed(event):
    yield Invalidate(tags=[f"row:{event.number}"])


@pytest.fixture(autouse=True)
def _fresh(cache):
    source.reset()
    set_cache(cache)
    yield
    set_cache(None)


async def fill(function, *arguments):
    if function is price:
        return await asyncio.to_thread(price, *arguments)
    return await function(*arguments)


def plan_of(**changed) -> Plan:
    return Plan(**{"per_second": 100_000, "grace": 0.05, **changed})


@pytest.fixture
def audit(cache):
    async def run(*, of=None, **changed):
        return await Audit(of or cache, plan_of(**changed)).run()

    return run


def outcomes(report, namespace):
    return report.of(namespace).counts


# What it finds


async def test_a_hundred_planted_stale_entries_of_a_thousand_are_found_each_of_them(audit):
    functions = [title, price, card, shelf]
    everything = [(function, number) for function in functions for number in range(0, 500, 2)]
    await asyncio.gather(*(fill(function, number) for function, number in everything))
    random.seed(7)
    planted = random.sample(range(0, 500, 2), 25)
    for number in planted:
        source.rows[number] = 1  # and no event, and no call, says so
    report = await audit()
    expected = {function.key(number) for function in functions for number in planted}
    assert len(expected) == 100
    assert {finding.key for finding in report.stale} == expected
    assert report.findings == report.stale
    for function in functions:
        assert outcomes(report, function.options.namespace) == {"consistent": 225, "stale": 25}
    assert report.sampled == 1000
    assert report.cost.loads == 1100
    assert report.cost.bytes_read > 100_000


async def test_a_finding_says_what_is_stale_since_when_and_where_it_differs(cache, audit):
    source.rows[7] = 41
    await cache.invalidate_tokens({"tag:row:7": "event:1-1 rule:test"})
    await card(7)
    source.rows[7] = 42
    (found,) = (await audit()).stale
    assert found.call == 'test_verify:card {"number":["any","J7"]}'
    assert (found.place, found.difference) == ("$.version", "int changed")
    assert found.tags == ("row:7",)
    assert [(token.name, token.cause) for token in found.tokens] == [
        ("all", ""),
        ("namespace:cards", ""),
        ("tag:row:7", "event:1-1 rule:test"),
    ]
    assert 0 <= found.age_s < 60
    assert "41" not in json.dumps(found.as_json())


async def test_values_are_told_where_they_are_asked_for(audit):
    source.rows[7] = 41
    await card(7)
    source.rows[7] = 42
    (found,) = (await audit(values=True)).stale
    assert (found.cached, found.loaded) == ("41", "42")


async def test_what_is_stale_can_be_invalidated(audit):
    await title(7)
    await fill(price, 8)
    source.rows = {7: 1, 8: 1}
    report = await audit(repair=True)
    assert report.repaired == len(report.stale) == 2
    assert await title(7) == "title 1"
    assert await fill(price, 8) == 1.5


async def test_what_is_stale_stays_unless_that_is_asked_for(audit):
    await title(7)
    source.rows[7] = 1
    await audit()
    assert await title(7) == "title 0"


async def test_a_load_sees_through_the_caches_of_the_functions_that_it_calls(audit):
    """Else an entry would be held to another that is just as old, or to a local tier."""
    await outer(7)
    source.rows[7] = 1
    report = await audit()
    assert {finding.namespace for finding in report.stale} == {"outer", "inner"}


async def test_only_the_namespaces_asked_for_are_looked_at(audit):
    await title(7)
    await card(7)
    report = await audit(namespaces=("cards",))
    assert list(report.namespaces) == ["cards"]
    assert source.loads == {"title": 1, "card": 2}
    assert set((await audit(namespaces=("cards", "titles"))).namespaces) == {"cards", "titles"}
    assert outcomes(await audit(namespaces=("nobodys",)), "nobodys") == {}


async def test_entries_of_another_prefix_or_version_are_not_looked_at(url, audit):
    await title(7)
    for options in ({"prefix": "p"}, {"version": "v2"}, {"prefix": "p", "version": "v2"}):
        async with Cache(url, **options) as other:
            set_cache(other)
            await asyncio.gather(*map(title, range(3)))
            source.rows[1] = 1
            report = await audit(of=other)
            source.rows[1] = 0
            assert outcomes(report, "titles") == {"consistent": 2, "stale": 1}


async def test_encrypted_entries_are_audited_and_their_arguments_not_told(url):
    keys = {"secrets": ["MDEyMzQ1Njc4OWFiY2RlZg=="]}
    async with Cache(url, encryption_keys=keys) as sealed:
        set_cache(sealed)
        await asyncio.gather(*map(secret, range(10)))
        source.rows[7] = 1
        report = await Audit(sealed, plan_of()).run()
        (found,) = report.stale
        assert found.key == secret.key(7)
        assert found.call == "test_verify:secret"
        (found,) = (await Audit(sealed, plan_of(values=True)).run()).stale
        assert found.call == 'test_verify:secret {"number":["any","J7"]}'
        assert outcomes(report, "secrets") == {"consistent": 9, "stale": 1}


async def test_without_the_keys_encrypted_entries_cannot_be_audited(url, audit):
    async with Cache(url, encryption_keys={"secrets": ["MDEyMzQ1Njc4OWFiY2RlZg=="]}) as sealed:
        set_cache(sealed)
        await secret(7)
    async with Cache(url, encryption_keys={"secrets": ["ZmVkY2JhOTg3NjU0MzIxMA=="]}) as other:
        report = await audit(of=other)
    assert report.of("secrets").reasons_of(Outcome.NOT_AUDITABLE) == {"with a call that cannot be unsealed": 1}


async def test_entries_on_a_cluster_are_audited_wherever_they_are(cluster):
    async with Cache(cluster.url) as spread:
        set_cache(spread)
        await asyncio.gather(*map(title, range(60)), *map(shelf, range(60)))
        source.rows[7] = 1
        report = await Audit(spread, plan_of()).run()
    assert outcomes(report, "titles") == {"consistent": 59, "stale": 1}
    assert outcomes(report, "shelves") == {"consistent": 58, "stale": 2}
    assert report.complete


# What it leaves alone


async def test_an_entry_that_no_reader_is_served_is_not_loaded(cache, audit):
    await title(1)
    await title.invalidate(1)
    await title(2)
    await cache.invalidate_tags("row:2")
    await lenient(3)
    await cache.invalidate_tags("row:3")  # a reader may still be served it, as its policy permits
    source.reset()
    report = await audit()
    assert outcomes(report, "titles") == {"not_served": 2}
    assert outcomes(report, "lenient") == {"not_served": 1}
    assert not source.loads


async def test_a_call_that_when_sends_past_the_cache_is_not_loaded(audit):
    await sometimes(7)
    source.rows[7] = 1
    report = await audit()
    assert outcomes(report, "bypassed") == {"not_served": 1}
    assert source.loads["sometimes"] == 1


async def test_entries_that_name_no_call_are_counted(cache, audit):
    await cache.set("plain", 1)
    await Shop().method(1)
    report = await audit()
    assert report.of("default").reasons_of(Outcome.NOT_AUDITABLE) == {"without a call": 1}
    assert report.of("methods").reasons_of(Outcome.NOT_AUDITABLE) == {"without a call": 1}


def forged(client, key, call):
    """An entry that looks as if it were this call's, and is not."""
    tokens = tuple(client.get(f"token:{name}")[:16] for name in ("all", "namespace:titles"))
    facts = Facts((), "nobody", "read", call)
    client.set(key, pack_entry(unique(), tokens, facts, b'J"no"').assemble([], 1_700_000_000_000_000))


SEVEN = '{"number":["any","J7"]}'

HOSTILE = {
    "test_verify:card " + SEVEN: "with a call that is not its own",  # of another namespace
    "test_verify:title " + SEVEN: "with a call that is not its own",  # not of this entry
    "test_verify:title {": "with a call that is not its own",
    'test_verify:title {"number":["any","J\\"x"]}': "with a call that is not its own",
    "test_verify:title": "with a call that is not its own",
    "os:system " + SEVEN: "of what is no cached function",
    "antigravity:fly " + SEVEN: "of a function that is not loaded here",
    "test_verify:Shop.method " + SEVEN: "of what is no cached function",
}


@pytest.mark.parametrize("call", HOSTILE)
async def test_an_entry_whose_call_is_not_its_own_is_neither_believed_nor_loaded(call, client, audit):
    await title(8)
    source.reset()
    forged(client, "cache:titles:forged", call)
    report = await audit()
    assert report.of("titles").reasons_of(Outcome.NOT_AUDITABLE) == {HOSTILE[call]: 1}
    assert source.loads == {"title": 1}


@pytest.mark.parametrize("data", [b"", b"foreign", b"\x03e", b"\x03e" + b"x" * 500, b"\x03e" + b"\xff" * 9000])
async def test_foreign_bytes_are_no_entries(data, client, audit):
    client.set(b"cache:titles:\xff", data)
    client.set("cache:titles:1", data)
    client.hset("cache:titles:2", "a", "b")
    report = await audit()
    assert report.of("titles").outcomes.total() == 3
    assert set(report.of("titles").counts) <= {"not_auditable", "not_served"}


async def test_a_hostile_key_does_not_end_the_audit_of_a_cluster(cluster):
    async with Cache(cluster.url) as spread:
        set_cache(spread)
        await title(7)
        for number in range(10):
            key = b"cache:titles:\xff%d" % number
            for node in cluster.nodes:
                with suppress(ResponseError):
                    node.client.set(key, b"x")
        report = await Audit(spread, plan_of()).run()
    assert outcomes(report, "titles") == {"consistent": 1, "not_auditable": 10}


async def test_a_value_that_does_not_decode_is_served_to_nobody(client, audit):
    await title(7)
    key = title.key(7)
    client.append(key, b"}")
    report = await audit()
    assert outcomes(report, "titles") == {"not_served": 1}
    assert client.exists(key)


async def test_a_load_that_raises_has_failed_and_the_others_are_checked(audit):
    async def fail(number):
        if number == 1:
            raise ZeroDivisionError("personal data")

    await asyncio.gather(*map(title, range(5)))
    source.reset()
    source.act = fail
    report = await audit()
    assert outcomes(report, "titles") == {"consistent": 4, "failed": 1}
    assert report.of("titles").reasons_of(Outcome.FAILED) == {"ZeroDivisionError": 1}
    assert "personal" not in json.dumps(report.as_json())


async def test_a_load_that_hangs_has_failed(audit):
    await title(7)

    async def hang(_):
        await asyncio.Event().wait()

    source.act = hang
    report = await audit(load_timeout=0.05)
    assert report.of("titles").reasons_of(Outcome.FAILED) == {"TimeoutError": 1}


# What it never calls stale


@pytest.fixture
async def working(new_parts):
    """Start a worker of `rules`, as far as events are concerned; end it before the cache is closed."""
    running = []

    async def start():
        parts = await new_parts(rules)
        running.append((parts, asyncio.create_task(parts.consumer.run(parts.stop, parts.patience()))))

    yield start
    for parts, task in running:
        parts.stop.set()
        await task


async def test_a_writer_between_its_commit_and_its_event_is_waited_for(working, audit):
    """The race of the module's docstring, step by step."""
    await working()
    await title(7)
    loaded = asyncio.Event()

    async def note(number):
        if number == 2:
            loaded.set()

    async def write():
        await loaded.wait()
        await asyncio.sleep(0.1)  # well within the grace
        await publish(RowChanged(number=7))

    source.rows[7] = 1
    source.act = note
    writing = asyncio.create_task(write())
    report = await audit(grace=0.5)
    await writing
    assert outcomes(report, "titles") == {"moved": 1}


async def test_an_event_that_no_worker_has_applied_makes_it_unsettled(new_parts, audit):
    parts = await new_parts(rules)
    await title(7)
    source.rows[7] = 1
    await publish(RowChanged(number=7))
    report = await audit(settle=0.1)
    assert outcomes(report, "titles") == {"unsettled": 1}
    await parts.group.read(10, 20)
    report = await audit(settle=0.1)
    assert outcomes(report, "titles") == {"unsettled": 1}, "a worker has it, and has not acknowledged it"


async def test_an_event_that_no_group_has_ever_read_makes_it_unsettled(audit):
    await title(7)
    source.rows[7] = 1
    await publish(RowChanged(number=7))
    assert outcomes(await audit(settle=0.1), "titles") == {"unsettled": 1}


async def test_an_event_of_any_partition_is_waited_for(url, audit):
    async with Cache(url, partitions=3) as spread:
        set_cache(spread)
        await title(7)
        source.rows[7] = 1
        await publish(RowChanged(number=7), subject="row:7")
        assert outcomes(await audit(of=spread, settle=0.1), "titles") == {"unsettled": 1}


async def test_a_direct_invalidation_meanwhile_is_seen(cache, audit):
    await title(7)

    async def invalidate(number):
        if number == 2:
            asyncio.get_running_loop().call_later(0.05, lambda: tasks.append(asyncio.ensure_future(told())))

    async def told():
        await cache.invalidate_tags("row:7")

    tasks = []
    source.rows[7] = 1
    source.act = invalidate
    report = await audit(grace=0.3)
    await asyncio.gather(*tasks)
    assert outcomes(report, "titles") == {"moved": 1}


async def test_an_entry_that_was_filled_anew_meanwhile_is_another(audit):
    await title(7)

    async def refresh(number):
        if number == 2:
            tasks.append(asyncio.create_task(title.refresh(7)))

    tasks = []
    source.rows[7] = 1
    source.act = refresh
    report = await audit()
    await asyncio.gather(*tasks)
    assert outcomes(report, "titles") == {"replaced": 1}
    assert report.of("titles").checked == 0, "it may have been wrong, with nobody told"


async def test_an_entry_that_expires_meanwhile_is_not_counted_as_consistent(client, audit):
    await title(7)
    source.rows[7] = 1
    client.pexpire(title.key(7), 150)
    report = await audit(grace=0.2)
    assert outcomes(report, "titles") == {"replaced": 1}
    assert report.of("titles").checked == 0


async def test_a_stream_that_is_deleted_makes_it_unsettled(client, audit):
    await title(7)
    source.rows[7] = 1
    await publish(RowChanged(number=7))

    async def forget(number):
        if number == 2:
            asyncio.get_running_loop().call_later(0.15, client.delete, "events")

    source.act = forget
    assert outcomes(await audit(settle=0.3), "titles") == {"unsettled": 1}


async def test_a_function_that_gives_something_else_each_time_is_unstable(audit):
    await title(7)

    async def tick(_):
        source.rows[7] = source.version(7) + 1

    source.act = tick
    report = await audit()
    assert outcomes(report, "titles") == {"unstable": 1}
    assert [finding.outcome for finding in report.findings] == [Outcome.UNSTABLE]
    assert not report.stale


async def test_a_source_that_went_there_and_back_is_unstable(audit):
    await title(7)

    async def flip(number):
        source.rows[7] = 1 if number == 2 else 0

    source.act = flip
    assert outcomes(await audit(), "titles") == {"unstable": 1}


async def race(url, audit, working, *, entries, seconds, hot, grace):
    """Write all the time while audits run: commit, wait in the window, publish; every read fills what is missing."""
    functions = [title, price, card, shelf]
    await working()
    numbers = range(entries // len(functions))
    await asyncio.gather(*(fill(function, number) for function in functions for number in numbers))
    over = asyncio.Event()
    written = 0

    async def write(which):
        nonlocal written
        while not over.is_set():
            number = random.choice(which)
            source.rows[number] = source.version(number) + 1
            await asyncio.sleep(random.uniform(0, grace / 4))
            await publish(RowChanged(number=number))
            written += 1

    async def read():
        while not over.is_set():
            await fill(random.choice(functions), random.choice(hot_rows if random.random() < 0.5 else numbers))
            await asyncio.sleep(0)

    hot_rows = numbers[:hot]
    tasks = [asyncio.create_task(write([row])) for row in hot_rows]
    tasks += [asyncio.create_task(write(numbers)) for _ in range(5)]
    tasks += [asyncio.create_task(read()) for _ in range(5)]
    found = Counter()
    checked = 0
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        while asyncio.get_running_loop().time() < deadline or checked < entries:
            report = await audit(sample=entries, grace=grace, settle=30)
            assert [finding.as_json() for finding in report.findings] == []
            found.update({outcome: report.count(outcome) for outcome in Outcome})
            checked += sum(tally.checked for tally in report.namespaces.values())
    finally:
        over.set()
        await asyncio.gather(*tasks)
    assert written > 0
    assert set(found.keys() & +found) <= {Outcome.CONSISTENT, Outcome.MOVED, Outcome.NOT_SERVED}
    assert found[Outcome.MOVED] > 0, "else nothing was raced"
    return found


async def test_good_entries_raise_no_alarm_while_others_write(url, audit, working):
    await race(url, audit, working, entries=200, seconds=0.3, hot=10, grace=0.2)


@pytest.mark.slow
async def test_ten_thousand_good_entries_raise_no_alarm_while_others_write(url, audit, working):
    found = await race(url, audit, working, entries=10_000, seconds=20, hot=50, grace=0.5)
    assert found[Outcome.CONSISTENT] + found[Outcome.MOVED] >= 10_000


# A budget


async def test_no_entry_is_begun_when_the_time_is_over(audit):
    await asyncio.gather(*map(title, range(20)))
    source.reset()
    report = await audit(longest=0.2, per_second=20)
    assert report.ended == "time"
    assert 1 <= report.cost.loads == sum(source.loads.values()) < 20


async def test_a_turn_that_would_come_too_late_is_not_waited_for(audit):
    await asyncio.gather(*map(title, range(3)))
    source.reset()
    report = await audit(longest=0.1, per_second=1 / 3600)
    assert (report.ended, report.cost.loads) == ("time", 1)


async def test_loads_that_hang_do_not_let_more_begin_when_the_time_is_over(audit):
    await asyncio.gather(*map(title, range(40)))

    async def hang(_):
        await asyncio.Event().wait()

    source.act = hang
    report = await audit(longest=0.1, load_timeout=0.2)
    assert (report.ended, report.cost.loads, outcomes(report, "titles")) == ("time", 10, {"failed": 10})


async def test_what_differs_is_not_waited_for_without_end(audit):
    await title(7)
    source.rows[7] = 1
    plan = {"longest": 0.1, "grace": 0.01, "settle": 0.01, "load_timeout": 0.02}
    assert plan_of(**plan).at_most == pytest.approx(0.2)
    report = await audit(**plan, per_second=1)  # the second load's turn comes after a second
    assert (report.ended, outcomes(report, "titles")) == ("time", {"unsettled": 1})


async def test_a_stop_ends_it_with_what_was_found_by_then(cache):
    await asyncio.gather(*map(title, range(20)))
    source.rows[7] = 1
    stop = asyncio.Event()

    async def act(number):
        if number == 40:
            asyncio.get_running_loop().call_later(0.05, stop.set)

    source.act = act
    report = await Audit(cache, plan_of(grace=60)).run(stop)
    assert report.ended == "stopped"
    assert outcomes(report, "titles") == {"consistent": 19, "unsettled": 1}, "of which nobody knows yet, and no alarm"


async def test_nothing_is_begun_while_there_is_something_better_to_do(cache):
    await title(7)
    source.reset()
    asked = []

    def idle():
        asked.append(dict(source.loads))
        return len(asked) == 3

    report = await Audit(cache, plan_of(), idle=idle).run()
    assert asked == [{}, {}, {}]
    assert outcomes(report, "titles") == {"consistent": 1}


async def test_turns_come_evenly_and_are_not_made_up_for_later():
    now, slept = [100.0], []

    async def sleep(seconds):
        slept.append(round(seconds, 6))
        now[0] += seconds

    pace = Pace(10, lambda: now[0], sleep)
    for _ in range(3):
        await pace.turn()
    assert slept == [0.1, 0.1]
    now[0] += 60
    await pace.turn()
    await pace.turn()
    assert slept == [0.1, 0.1, 0.1]


def test_a_small_namespace_is_not_hidden_behind_a_big_one():
    assert shares({"big": 10_000, "small": 3, "middle": 400}, 1000) == {"small": 3, "middle": 400, "big": 597}
    assert shares({"a": 9, "b": 9}, 7) == {"a": 3, "b": 4}
    assert shares({"a": 1}, 7) == {"a": 1}
    assert shares({}, 7) == {}


def test_every_key_has_the_same_chance():
    chosen = Counter()
    for salt in range(2000):
        reservoir = Reservoir(3, salt.to_bytes(16, "big"))
        for key in [*range(10), *range(10)]:  # SCAN may return a key twice
            reservoir.offer(b"%d" % key)
        assert len(reservoir.keys) == len(set(reservoir.keys)) == 3
        chosen.update(reservoir.keys)
    assert set(chosen) == {b"%d" % key for key in range(10)}
    assert all(abs(count - 600) < 100 for count in chosen.values())


async def test_a_walk_that_is_cut_short_says_so(url, client):
    client.mset({f"cache:ns{number % 3}:{number}": "x" for number in range(5000)})
    store = RedisStore.connect(Settings(url=url))
    try:
        whole = await Walk(Keyspace(), 30).over(await store.primaries())
        part = await Walk(Keyspace(), 30).over(await store.primaries(), scan_at_most=1000)
    finally:
        await store.aclose()
    assert (whole.complete, part.complete) == (True, False)
    assert [name for name, _ in whole.keys] == ["ns0", "ns1", "ns2"] * 10, "in turn"
    assert sum(whole.found.values()) == 5000


# What it means


@pytest.mark.parametrize(
    ("stale", "checked", "bound"),
    [(0, 1, 0.95), (0, 10, 0.2589), (0, 10_000, 2.9953e-4), (1, 10_000, 4.7430e-4), (3, 50, 0.1478), (10, 10, 1.0)],
)
def test_the_bound_is_that_of_clopper_and_pearson(stale, checked, bound):
    assert stale_at_most(stale, checked) == pytest.approx(bound, rel=1e-3)


def test_nothing_checked_is_nothing_known():
    assert stale_at_most(0, 0) == 1


def test_the_bound_of_many_is_found_in_no_time():
    assert stale_at_most(500_000, 1_000_000) == pytest.approx(0.500823, rel=1e-4)


def test_where_all_are_stale_there_are_no_nines_rather_than_less():
    tally = Tally()
    tally.add(Outcome.STALE)
    assert json.dumps(tally.as_json()["nines_at_least"]) == "0.0"


def test_nines_are_rounded_down():
    assert nines(0.001) == pytest.approx(3)
    assert math.isinf(nines(0))
    assert [nines_text(rate) for rate in (0.001, 0.00011, 0.95, 1.0)] == ["3.0", "3.9", "0.0", "0.0"]
    assert percent(stale_at_most(0, 10_000)) == "99.97 %"
    assert percent(0.001) == "99.90 %"
    assert percent(0.0000026) == "99.9997 %"
    assert percent(0.25) == "75.00 %"
    assert percent(1.0) == "0.00 %"


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

SAME = [
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1, 2, 3}, {3, 2, 1}),
    (0.1 + 0.2, 0.3),
    (math.nan, math.nan),
    (math.inf, math.inf),
    (Decimal("1.0"), Decimal("1.00")),
    (Decimal("NaN"), Decimal("NaN")),
    (Card(number=1, version=1, seen={"a", "b"}), Card(number=1, version=1, seen={"b", "a"})),
    (None, None),
]

OTHER = [
    (1, 2, "$", "int changed"),
    (1, 1.0, "$", "int became float"),
    (True, 1, "$", "bool became int"),
    (None, "x", "$", "NoneType became str"),
    ([1, 2], [2, 1], "$[0]", "int changed"),
    ([1], [1, 2], "$", "list of 1 became one of 2"),
    ({"a": 1}, {"b": 1}, "$", "dict with other keys: 1 more, 1 gone"),
    ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "$['a'][0]['b']", "int changed"),
    ({"ada@example.org": 1}, {"ada@example.org": 2}, "$[…]", "int changed"),
    ({1}, {2}, "$", "set changed"),
    (Card(number=1, version=1), Card(number=1, version=2), "$.version", "int changed"),
    (NOON, NOON.astimezone(timezone(timedelta(hours=1))), "$", "datetime changed"),
    (1.0, 1.000001, "$", "float changed"),
    (math.nan, 1.0, "$", "float changed"),
]


@pytest.mark.parametrize("pair", SAME, ids=range(len(SAME)))
def test_equal_values_are_consistent_whatever_their_bytes(pair):
    assert difference(*pair) is None
    assert verdict(Value(b"1", pair[0]), [Value(b"2", pair[1])]) is Outcome.CONSISTENT


@pytest.mark.parametrize(("before", "after", "place", "how"), OTHER, ids=range(len(OTHER)))
def test_a_difference_has_a_place_and_no_value(before, after, place, how):
    found = difference(before, after)
    assert (found.place, found.how, found.pair != (None, None)) == (place, how, True)


LOADS = {
    "A": Outcome.CONSISTENT,
    "B": None,
    "BB": Outcome.STALE,
    "BA": Outcome.UNSTABLE,
    "BC": None,
    "BCC": Outcome.STALE,
    "BCA": Outcome.UNSTABLE,
    "BCB": Outcome.UNSTABLE,
    "BCD": Outcome.UNSTABLE,
}


@pytest.mark.parametrize("loads", LOADS)
def test_two_loads_in_a_row_have_to_agree_before_an_entry_is_stale(loads):
    assert len(loads) <= MOST_LOADS
    values = [Value(letter.encode(), letter) for letter in loads]
    assert verdict(Value(b"A", "A"), values) is LOADS[loads]


# The command


SHOP = """
import json
import sys
from pathlib import Path
from threading import Event

from tidings import cached, get_cache
from tidings_worker import Rules

rules = Rules()


def price_of(number):
    return json.loads(Path("prices.json").read_text()).get(str(number), 0)


@cached(namespace="shop", key="{number}", tags=["item:{number}"])
def price(number: int) -> int:
    return price_of(number)


@cached(namespace="hanging")
def hanging(number: int) -> int:
    if Path("hang").exists():
        Path("hangs").touch()
        Event().wait()
    return number


if __name__ == "__main__":
    for number in range(20):
        price(number)
    hanging(1)
    get_cache().sync.set("plain", 1)
    get_cache().sync.close()
"""


@pytest.fixture(scope="module")
def forks(shell_of_module):
    return Forks(shell_of_module)


@pytest.fixture
def shop(shell, url):
    """A shop in a folder, its cache filled."""
    shell.environment["TIDINGS_URL"] = url
    shell.write("shop.py", SHOP)
    shell.write("prices.json", "{}")
    assert shell.start_program(sys.executable, "shop.py").wait() == 0
    return shell


def test_the_command_says_what_is_stale_and_what_it_cost_and_repairs(shop, forks, url):
    def verify(*arguments):
        return forks.run("verify", *arguments, folder=shop.folder, TIDINGS_URL=url)

    ran = shop.run("verify", "shop", "--rate", "1000/s", COLUMNS="80")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^shop +20 +20 +0 +86.08 % +0.8$", ran.out, re.MULTILINE)
    assert "default: 1 not auditable (1 without a call)" in ran.out
    cost = r"^21 loads, [\d.]+ s of loading; \d+ commands and [\d.]+ MB from Redis; [\d.]+ s\.$"
    assert re.search(cost, ran.out, re.MULTILINE)
    assert max(map(len, ran.out.splitlines())) <= 80

    shop.write("prices.json", '{"7": 4711}')
    quickly = ("--rate", "1000/s", "--grace", "50ms")
    ran = verify("shop:rules", *quickly)
    assert ran.code == 1
    assert "stale" in ran.out
    assert "cache:shop:price:7:" in ran.out
    assert "shop:price(number=7)" in ran.out
    assert "4711" not in ran.out

    ran = verify("shop", *quickly, "--namespace", "shop", "--json", "--repair", "--values")
    told = json.loads(ran.out)
    assert (ran.code, told["repaired"], told["namespaces"]["shop"]["stale"]) == (1, 1, 1)
    (found,) = told["findings"]
    assert (found["cached"], found["loaded"]) == ("0", "4711")
    assert told["cost"]["loads"] == 21


def test_ctrl_c_prints_what_was_found_so_far_whatever_hangs(shop, until):
    (shop.folder / "hang").touch()
    running = shop.start("verify", "shop", "--rate", "1000/s")
    until((shop.folder / "hangs").exists, "a load that hangs")
    running.send(signal.SIGINT)
    assert running.wait() == 0
    assert re.search(r"^Stopped after \d+ of 22 entries.$", running.out, re.MULTILINE)


def test_a_server_that_is_away_is_one_line(forks):
    folder = forks.new_folder({"shop.py": SHOP})
    ran = forks.run("verify", "shop", folder=folder, TIDINGS_URL="redis://127.0.0.1:1")
    assert (ran.code, ran.out) == (3, "")
    assert "127.0.0.1:1" in ran.err
    assert "Traceback" not in ran.err


def test_times_and_rates_are_read_with_their_units():
    times = {"500ms": 0.5, "60s": 60, "5m": 300, "1h": 3600, "2": 2, "1.5 s": 1.5}
    assert {text: command.seconds("--for", text) for text in times} == times
    rates = {"50/s": 50, "50": 50, "120/m": 2, "0.5/s": 0.5}
    assert {text: command.per_second(text) for text in rates} == rates


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1d", "1e3", "s", "٣s", "inf"])
def test_what_is_no_time_or_rate_is_said(text):
    with pytest.raises(ConfigurationError, match=r"--for .* is no time"):
        command.seconds("--for", text)
    with pytest.raises(ConfigurationError, match="is no rate"):
        command.per_second(text)
    with pytest.raises(ConfigurationError, match="is no rate"):
        command.per_second("0/s")


# The job


def settings_of(**changed):
    return WorkerSettings(**{"verify_per_second": 100_000, "verify_grace": 0.05, **changed})


async def test_the_job_tells_log_and_metrics(cache):
    await asyncio.gather(*map(title, range(10)))
    source.rows[7] = 1
    metrics = Metrics(clock=lambda: 100.0)
    with structlog.testing.capture_logs() as logs:
        await Auditor(lambda: cache, settings_of(), metrics, lambda: True).audit({})
    stale, ended = logs
    assert (stale["event"], stale["log_level"], stale["key"]) == ("stale_entry_found", "error", title.key(7))
    assert (ended["event"], ended["stale"], ended["consistent"], ended["loads"]) == ("audited", 1, 9, 11)
    exposed = metrics.expose()[0].decode()
    assert 'tidings_verified_total{namespace="titles",outcome="stale"} 1.0' in exposed
    assert 'tidings_verified_total{namespace="titles",outcome="consistent"} 9.0' in exposed
    assert "tidings_audit_age_seconds 0.0" in exposed
    assert await title(7) == "title 0", "an audit changes nothing"


async def test_the_job_repairs_where_that_is_set(cache):
    await title(7)
    source.rows[7] = 1
    await Auditor(lambda: cache, settings_of(verify_repair=True), Metrics(), lambda: True).audit({})
    assert await title(7) == "title 1"


async def test_an_outage_ends_the_audit_until_the_next(new_server):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}") as own:
        set_cache(own)
        await title(7)
        server.terminate()
        with structlog.testing.capture_logs() as logs:
            await Auditor(lambda: own, settings_of(), Metrics(), lambda: True).audit({})
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"][-1] == "audit_ended"


def test_audits_are_off_unless_they_are_asked_for(cache):
    auditor = Auditor(lambda: cache, settings_of(), Metrics(), lambda: True)
    assert audits("warms", auditor, settings_of()) == []


def test_all_workers_audit_at_the_same_times_under_one_name(cache):
    settings = settings_of(verify_every=90)
    auditor = Auditor(lambda: cache, settings, Metrics(), lambda: True)
    (job,) = audits("a:warms", auditor, settings)
    assert job.name == job.job_id == "a:warms:audit"
    assert job.timeout_s == auditor.timeout
    job.calculate_next(datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC))
    assert job.next_run == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)
    job.calculate_next(job.next_run)
    assert job.next_run == datetime(2026, 1, 1, 0, 3, tzinfo=UTC)


async def test_a_worker_audits_when_it_is_time_and_no_events_wait(url, cache, client, eventually):
    await title(7)
    source.rows[7] = 1
    pools = [redis.asyncio.ConnectionPool.from_url(url) for _ in range(2)]
    idle, stop, metrics = [False], asyncio.Event(), Metrics()
    settings = settings_of(verify_every=0.5, poll=0.01, drain_timeout=5)
    tasks = []
    for pool in pools:
        arq = ArqRedis(pool, job_serializer=to_json, job_deserializer=from_json, default_queue_name="warms")
        worker = WarmWorker(arq, "warms", [], settings, idle=lambda: idle[0], cache=lambda: cache, metrics=metrics)
        tasks.append(asyncio.create_task(worker.run(stop)))

    def found():
        return metrics.registry.get_sample_value("tidings_verified_total", {"namespace": "titles", "outcome": "stale"})

    try:
        await eventually(lambda: client.zcard("warms") == 1, "the job")
        assert found() is None
        idle[0] = True
        await eventually(found, "an audit")
    finally:
        stop.set()
        await asyncio.gather(*tasks)
        for pool in pools:
            await pool.disconnect()
