"""What others write through a worker: to the right tags, of the row before and of the row after."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel
from tidings import Event, cached
from tidings.errors import ArgumentError, ConfigurationError
from tidings.events import from_fields
from tidings_worker import Rules, Warm
from tidings_worker.delivery import RetryPolicy
from tidings_worker.handler import Handler
from tidings_worker.metrics import Metrics

RECORDED = Path(__file__).parent.parent / "recorded"
LAYOUTS = ("extended", "extended-with-schema", "compact", "compact-with-schema")

RULES = Rules()
for verb in ("created", "updated", "deleted", "read"):
    RULES.map(f"public.users.{verb}", tags=["user:{id}", "team:{team_id}"])
RULES.map("public.sessions.truncated", namespaces=["sessions"])
RULES.map("inventory.products.updated", tags=["product:{id}", "category:{category_id}"])
RULES.map("foreign.by_hand", tags=["user:{user_id}"])

#: Of each thing that the messages are about, and of its neighbours, an entry.
TAGS = {
    *(f"user:{number}" for number in (1, 7, 8, 9, 10)),
    *(f"team:{number}" for number in (1, 2, 3, 4, 5)),
    *(f"product:{number}" for number in (5, 6)),
    *(f"category:{number}" for number in (30, 31, 32)),
}


@cached(namespace="foreign", tags=["user:{id}"])
async def get_user(id: int) -> int:  # noqa: A002 named like the column
    return id


@cached(namespace="foreign", tags=["team:{team_id}"])
async def get_team(team_id: int) -> int:
    return team_id


@cached(namespace="foreign")
async def get_limited(limit: int) -> int:
    return limit


@cached(namespace="foreign")
async def get_popular(limit: int = 10) -> int:
    return limit


def messages(layout):
    for line in (RECORDED / f"debezium-{layout}.jsonl").read_text().splitlines():
        message = json.loads(line)
        yield message["what"], message["fields"]


class Watched:
    """The parts of a worker, with what it counts, and entries that say which tags it has invalidated."""

    def __init__(self, cache, client, parts, metrics):
        self.cache, self.client, self.parts, self.metrics = cache, client, parts, metrics

    async def fill(self):
        for tag in TAGS:
            await self.cache.set(tag, "as it was", tags=[tag], ttl=60)
        await self.cache.set("session", "as it was", namespace="sessions", ttl=60)

    async def handle(self, *entries):
        for fields in entries:
            self.client.xadd("events", fields)
        await self.parts.apply(len(entries))
        assert self.client.xpending("events", "tidings")["pending"] == 0

    async def changed(self):
        entries = await self.cache.get_many(sorted(TAGS))
        gone = {tag for tag, value in entries.items() if value is None}
        return gone | ({"sessions"} if await self.cache.get("session", namespace="sessions") is None else set())

    @property
    def counts(self):
        return {name.decode(): int(count) for name, count in self.client.hgetall("events:counts").items()}

    @property
    def reasons(self):
        return [fields[b"reason"].decode() for _, fields in self.client.xrange("events:dead")]


@pytest.fixture
async def watched(cache, client, new_parts):
    async def make(**options):
        parts, metrics = await new_parts(RULES), Metrics(RULES.event_types)
        handler = Handler(cache, RULES, parts.handler._warmer, RetryPolicy(), metrics, **options)
        parts.consumer._handler = handler
        made = Watched(cache, client, parts, metrics)
        await made.fill()
        return made

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_each_message_of_debezium_invalidates_its_row_before_and_after_and_nothing_else(watched, layout):
    expected = {
        "created": {"user:7", "team:1"},
        "updated, moved to another team": {"user:7", "team:1", "team:2"},
        "updated where it stands": {"user:8", "team:4"},
        "deleted": {"user:9", "team:3"},
        "truncated": {"sessions"},
        "MySQL: updated, moved to another category": {"product:5", "category:30", "category:31"},
    }
    worker = await watched()
    for what, fields in messages(layout):
        await worker.handle(fields)
        assert await worker.changed() == expected.pop(what, set()), what
        await worker.fill()
    assert not expected
    assert worker.reasons == []


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_what_says_nothing_of_a_change_is_acknowledged_and_counted(watched, layout):
    worker = await watched()
    await worker.handle(*(fields for _, fields in messages(layout)))
    assert await worker.changed() == {
        *("user:7", "user:8", "user:9", "team:1", "team:2", "team:3", "team:4"),
        *("sessions", "product:5", "category:30", "category:31"),
    }
    counts = worker.counts
    assert (counts["applied"], counts["ignored"], counts["tokens"]) == (6, 6, 11)
    assert not counts.keys() & {"dead", "retried", "unruled"}
    assert worker.reasons == []
    exposed = worker.metrics.expose()[0].decode()
    for kind in ("snapshot_read", "tombstone", "heartbeat", "transaction", "schema_change", "message"):
        assert f'tidings_events_ignored_total{{kind="{kind}"}} 1.0' in exposed
    assert 'tidings_events_applied_total{type="public.users.updated"} 2.0' in exposed


async def test_an_ignored_entry_counts_as_applied_for_whoever_waits_for_the_stream(watched, client):
    """Its id is among those of the receipts: a range that left it out would be two."""
    worker = await watched()
    await worker.handle({"type": "foreign.by_hand", "data": '{"user_id": 7}'}, {"{}": "default"}, {"type": "unknown"})
    ((_, word),) = client.xrange("events:applied")
    assert word[b"ids"].count(b"..") == 1
    assert b" " not in word[b"ids"]


async def test_snapshot_reads_are_for_rules_when_asked_for(watched):
    worker = await watched(snapshot_reads=True)
    await worker.handle(*(fields for _, fields in messages("compact")))
    assert {"user:1", "team:1"} <= await worker.changed()
    assert (worker.counts["applied"], worker.counts["ignored"]) == (7, 5)


async def test_changes_that_debezium_writes_as_cloudevents_do_the_same(watched):
    worker = await watched()
    await worker.handle(*(fields for _, fields in messages("extended-cloudevents")))
    assert {"user:7", "team:1", "team:2", "user:9", "team:3", "category:30"} <= await worker.changed()
    assert (worker.counts["applied"], worker.counts["ignored"]) == (5, 1)


async def test_what_is_written_by_hand_is_applied_or_a_dead_letter_with_its_reason(watched):
    worker = await watched()
    good = [
        {"type": "foreign.by_hand", "data": '{"user_id": 7}'},
        {"event": '{"type": "foreign.by_hand", "data": {"user_id": 8}}'},
        {"type": "public.users.updated", "data": '{"before": {"id": 9, "team_id": 2}, "after": {"id": 9}}'},
    ]
    bad = {
        "no 'type' among the fields; looked into 'user_id'": {"user_id": "7"},
        "no 'type' among the fields ['a', 'b']": {"a": "", "b": ""},
        "'data' is not JSON": {"type": "foreign.by_hand", "data": "user_id: 7"},
        "'data' is a JSON list": {"type": "foreign.by_hand", "data": "[7]"},
        "'user_id'": {"type": "foreign.by_hand", "data": "{}"},
        "a JSON array, as of a batch": {"events": '[{"type": "foreign.by_hand"}]'},
        "not UTF-8": {"type": b"\xff"},
        "nested too deeply": {"event": '{"type": "x", "data":' + "[" * 300 + "]" * 300 + "}"},
        "more than an event's": {"type": "x", "data": "x" * 1_100_000},
    }
    await worker.handle(*good, *bad.values())
    assert await worker.changed() == {"user:7", "user:8", "user:9", "team:2"}
    assert (worker.counts["applied"], worker.counts["dead"]) == (len(good), len(bad))
    for reason, expected in zip(worker.reasons, bad, strict=True):
        assert expected in reason


# Before and after


def plan(rules, event_type, data):
    fields = {b"type": event_type.encode(), b"data": json.dumps(data).encode()}
    return rules.plan(from_fields("events", "5-0", fields))


BEFORE, AFTER = {"id": 7, "team_id": 1}, {"id": 7, "team_id": 2}


@pytest.fixture
def rules():
    return Rules()


@pytest.mark.parametrize(
    ("data", "tags", "namespaces"),
    [
        ({"before": BEFORE, "after": AFTER}, {"user:7", "team:1", "team:2"}, {"team1", "team2"}),
        ({"before": None, "after": AFTER}, {"user:7", "team:2"}, {"team2"}),
        ({"before": BEFORE, "after": None}, {"user:7", "team:1"}, {"team1"}),
        ({"before": {"id": 7}, "after": AFTER}, {"user:7", "team:2"}, {"team2"}),
        ({"before": BEFORE, "after": AFTER, "team_id": 9}, {"user:7", "team:9"}, {"team9"}),
        ({"after": AFTER}, {"user:7", "team:2"}, {"team2"}),
    ],
    ids=["moved", "created", "deleted", "key alone", "among the data", "after alone"],
)
def test_each_row_gives_its_tags_and_namespaces(rules, data, tags, namespaces):
    rules.map("foreign.moved", tags=["user:{id}", "team:{team_id}"], namespaces=["team{team_id}"])
    found = plan(rules, "foreign.moved", data)
    assert (found.tags, found.namespaces, found.problems) == (tags, namespaces, ())


@pytest.mark.parametrize(
    "data",
    [{"before": {"id": 7}, "after": None}, {"before": None, "after": None}, {"before": "1", "after": ["2"]}, {}],
    ids=str,
)
def test_a_name_that_no_row_has_is_a_problem(rules, data):
    rules.map("foreign.lacking", tags=["team:{team_id}"])
    assert "'team:{team_id}' needs 'team_id'" in plan(rules, "foreign.lacking", data).problems[0]


@pytest.mark.parametrize("data", [{"before": {"id": 7}, "after": None}, {"before": {"id": 7, "team_id": []}}], ids=str)
def test_a_name_that_no_row_has_takes_nothing_from_the_other_templates(rules, data):
    """As of a deletion in PostgreSQL where the replica identity is the primary key."""
    rules.map("foreign.partly", tags=["team:{team_id}", "user:{id}"], namespaces=["team{team_id}", "users"])
    found = plan(rules, "foreign.partly", data)
    assert set(found.causes) == {"tag:user:7", "namespace:users"}
    (problem,) = found.problems
    assert "'team{team_id}'" in problem
    assert "'team:{team_id}'" in problem


def test_before_and_after_may_be_names_like_others(rules):
    rules.map("foreign.renamed", tags=["name:{before}", "name:{after}"])
    assert plan(rules, "foreign.renamed", {"before": "a", "after": "b"}).tags == {"name:a", "name:b"}


class Row(BaseModel):
    id: int
    team_id: int = 0


class Changed(Event, type="foreign.changed"):
    before: Row | None
    after: Row | None


class Loose(Event, type="foreign.loose"):
    on: str
    before: dict[str, int] | None = None
    after: dict[str, int] | None = None


def test_rows_of_a_class_are_looked_into_too(rules):
    rules.map(Changed, tags=["user:{id}", "team:{team_id}"], warm=[get_team])
    found = plan(rules, "foreign.changed", {"before": BEFORE, "after": AFTER})
    assert found.tags == {"user:7", "team:1", "team:2"}
    assert set(found.warms) == {Warm(get_team, 2), Warm(get_team, 1)}
    assert rules.simulate(Changed(before=BEFORE, after=AFTER)).tags == found.tags
    seen = []
    rules.on("foreign.changed")(lambda event: seen.append((event.before.team_id, event.after.team_id)))
    plan(rules, "foreign.changed", {"before": BEFORE, "after": AFTER})
    assert seen == [(1, 2)]


def test_a_name_that_no_row_of_the_class_can_have_is_refused_at_once(rules):
    for options in ({"tags": ["team:{temid}"]}, {"namespaces": ["{nope}"]}):
        with pytest.raises(ConfigurationError, match="there is: after, before, id, team_id"):
            rules.map(Changed, **options)
    with pytest.raises(ConfigurationError, match=r"needs \['limit'\], which the event does not have"):
        rules.map(Changed, warm=[get_limited])


def test_rows_of_a_class_that_does_not_say_what_they_have_are_looked_into_when_they_come(rules):
    rules.map(Loose, tags=["{on}:{id}"], warm=[get_user])
    found = plan(rules, "foreign.loose", {"on": "user", "after": {"id": 7}})
    assert (found.tags, found.warms) == ({"user:7"}, (Warm(get_user, 7),))
    assert "needs 'id'" in plan(rules, "foreign.loose", {"on": "user"}).problems[0]


@pytest.mark.parametrize(
    ("data", "warms"),
    [
        ({"before": BEFORE, "after": AFTER}, [Warm(get_user, 7), Warm(get_team, 2), Warm(get_team, 1)]),
        ({"before": AFTER, "after": AFTER}, [Warm(get_user, 7), Warm(get_team, 2)]),
        ({"before": None, "after": AFTER}, [Warm(get_user, 7), Warm(get_team, 2)]),
        ({"before": {"id": 7}, "after": AFTER}, [Warm(get_user, 7), Warm(get_team, 2)]),
        ({"before": BEFORE, "after": None}, []),
        ({"before": BEFORE, "after": None, "team_id": 9}, [Warm(get_team, 9)]),
        ({"before": None, "after": None}, []),
    ],
    ids=["moved", "in place", "created", "key alone", "deleted", "deleted, of the data", "truncated"],
)
def test_the_row_as_it_is_is_warmed_and_as_it_was_unless_it_is_gone(rules, data, warms):
    rules.map("foreign.warmed", warm=[get_user, get_team, Warm.hot("foreign")])
    rules.map("foreign.warmed", warm=[get_popular])
    found = plan(rules, "foreign.warmed", data)
    assert found.warms == (*warms, Warm(get_popular))
    assert len(found.hot) == 1
    assert found.problems == ()


def test_a_warm_that_no_row_has_the_arguments_for_is_a_problem(rules):
    rules.map("foreign.unwarmed", warm=[get_team])
    for data in ({"before": {"id": 1}, "after": {"id": 1}}, {"after": {}}, {}):
        assert "the event has no 'team_id'" in plan(rules, "foreign.unwarmed", data).problems[0]


def test_a_value_that_does_not_fit_a_warm_is_a_problem_whichever_row_has_it(rules):
    rules.map("foreign.unfit", warm=[get_team])
    for data in ({"before": {"team_id": None}, "after": AFTER}, {"before": BEFORE, "after": {"team_id": "x"}}):
        (problem,) = plan(rules, "foreign.unfit", data).problems
        assert problem.startswith(ArgumentError.__name__)
        assert "'team_id' does not fit" in problem


def test_a_worker_is_told_by_its_environment_to_take_snapshot_reads(client, shell, until, url):
    shell.write(
        "rules.py", "from tidings_worker import Rules\nrules = Rules()\nrules.map('public.users.read', tags=['a'])\n"
    )
    worker = shell.start(
        "worker", "rules:rules", TIDINGS_URL=url, TIDINGS_WORKER_SNAPSHOT_READS="true", TIDINGS_WORKER_BLOCK_MS="50"
    )
    worker.event("worker_started")
    client.xadd("events", dict(messages("compact"))["a row read for the snapshot"])
    until(lambda: client.exists("token:tag:a"), "the invalidation")
    until(lambda: client.hget("events:counts", "applied") == b"1", "the count")
    assert not client.hexists("events:counts", "ignored")
