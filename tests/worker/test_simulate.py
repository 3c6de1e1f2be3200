"""`tidings simulate`: what an event would do, and nothing done."""

import json
from pathlib import Path

import pytest
from forked_commands import Forks
from tidings.events import IgnoredEventError, from_fields
from tidings.keys import Keyspace
from tidings_worker import Invalidate, Rules
from tidings_worker.simulating import effects

RECORDED = Path(__file__).parent.parent / "recorded"

RULES = """
from datetime import date

import tidings
from tidings import Event, cached
from tidings_worker import Invalidate, Rules, Warm

class Moved(Event, type="simulate.moved"):
    user_id: int
    day: date

@cached(namespace="users", tags=["user:{user_id}"])
async def get_user(user_id: int, day: date) -> str: ...

@cached(namespace="teams")
def get_team(team: int) -> str: ...

rules = Rules()

@rules.on(Moved)
def moved(event):
    yield Invalidate(tags=[f"user:{event.user_id}"])
    yield Warm(get_user, event.user_id, event.day)
    yield Warm.hot("users", top=5)

rules.map(Moved, namespaces=["teams"])

@rules.on("simulate.fails")
def fails(event):
    yield Invalidate(tags=["before"])
    raise RuntimeError("a bug")

@rules.on("simulate.nothing")
def nothing(event):
    return None

@rules.on("simulate.all")
def everything(event):
    return Invalidate(everything=True)

rules.map("public.users.updated", tags=["user:{id}"])
"""

TOML = '[[rule]]\non = "simulate.moved"\ntags = ["day:{day}"]\n'

DATA = '{"user_id": 7, "day": "2026-11-20"}'


@pytest.fixture(scope="module")
def forks(shell_of_module):
    return Forks(shell_of_module)


@pytest.fixture(scope="module")
def folder(forks):
    return forks.new_folder({"rules.py": RULES, "more.toml": TOML, "data.json": DATA})


@pytest.fixture
def simulate(forks, folder):
    """Run ``tidings simulate`` with these rules."""

    def run(*arguments, targets=("rules:rules",), **how):
        return forks.run("simulate", *targets, *arguments, folder=folder, **how)

    return run


def test_rule_by_rule_what_an_event_would_do(simulate):
    ran = simulate("simulate.moved", "--data", DATA, "--json", targets=("rules:rules", "more.toml"), TIDINGS_PREFIX="p")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert (told["type"], told["data"], told["ruled"]) == ("simulate.moved", json.loads(DATA), True)
    moved, mapped, toml = told["rules"]
    assert (moved["file"], moved["line"], moved["tags"], moved["problem"]) == ("rules.py", 20, ["user:7"], None)
    (warm,) = moved["warms"]
    assert warm["call"] == "rules:get_user(7, datetime.date(2026, 11, 20))"
    assert warm["key"].startswith("p:cache:users:get_user:")
    assert moved["hot"] == [{"namespace": "users", "top": 5}]
    assert (mapped["line"], mapped["namespaces"]) == (26, ["teams"])
    assert (toml["file"], toml["line"], toml["tags"]) == ("more.toml", 1, ["day:2026-11-20"])
    assert {row["function"]: row["by"] for row in told["functions"]} == {
        "rules:get_user": ["tag user:7"],
        "rules:get_team": ["namespace teams"],
    }


def test_it_reads_well_in_a_terminal(simulate):
    ran = simulate("simulate.moved", "--data", "@data.json")
    lines = ran.out.splitlines()
    assert lines[0] == 'simulate.moved {"user_id": 7, "day": "2026-11-20"}'
    assert lines[2] == "rules.py:20 rules.moved"
    assert lines[3] == "  invalidates  tag user:7"
    assert lines[-2:] == ["  rules:get_user  by tag user:7", "  rules:get_team  by namespace teams"]


def test_a_rule_that_fails_is_told_with_what_it_asked_for_before(simulate):
    ran = simulate("simulate.fails", "--json")
    assert ran.code == 1
    (rule,) = json.loads(ran.out)["rules"]
    assert (rule["problem"], rule["again"], rule["tags"]) == ("RuntimeError: a bug", True, ["before"])


def test_no_rule_for_an_event_is_said(simulate):
    ran = simulate("simulate.unknown")
    assert ran.code == 1
    assert "no rule is for it" in ran.out


def test_a_rule_may_ask_for_nothing(simulate):
    ran = simulate("simulate.nothing")
    assert ran.code == 0
    assert "asks for nothing" in ran.out


def test_everything_makes_all_functions_wrong(simulate):
    ran = simulate("simulate.all", "--json")
    assert {row["function"]: row["by"] for row in json.loads(ran.out)["functions"]} == {
        "rules:get_user": ["everything"],
        "rules:get_team": ["everything"],
    }


def test_an_entry_as_another_system_writes_it(simulate):
    row = {"before": {"id": 1}, "after": {"id": 2}, "op": "u", "source": {"schema": "public", "table": "users"}}
    fields = {"key": {"id": 2}, "value": row}
    ran = simulate("--fields", "-", "--json", stdin=json.dumps(fields).encode())
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["type"] == "public.users.updated"
    assert "user:2" in told["rules"][0]["tags"]


def test_an_entry_that_the_worker_ignores_is_said(simulate):
    ran = simulate("--fields", '{"key": {"id": 2}, "value": "default"}', "--json")
    assert ran.code == 1
    assert "tombstone" in json.loads(ran.out)["ignored"]
    assert ran.err.startswith("tidings: the worker ignores it: ")


def test_a_rule_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr("tidings_worker.simulating.LONGEST", 0.05)
    rules = Rules()

    @rules.on("simulate.endless")
    def endless(event):
        while True:
            yield Invalidate(tags=["endless"])

    envelope = from_fields("events", "1-1", {b"type": b"simulate.endless"})
    (effect,) = effects(rules, envelope, Keyspace())
    assert (effect.tags, effect.again) == (("endless",), None)
    assert "does not end" in effect.problem


CHANGES = Rules()
for verb in ("created", "updated", "deleted"):
    CHANGES.map(f"public.users.{verb}", tags=["user:{id}", "team:{team_id}"])
CHANGES.map("public.sessions.truncated", namespaces=["sessions"])


@pytest.mark.parametrize("layout", ["extended", "extended-with-schema", "compact", "compact-with-schema"])
async def test_it_says_of_each_change_of_a_table_what_a_worker_does(layout, new_parts, cache, client):
    parts = await new_parts(CHANGES)
    said, done = set(), set()
    for line in (RECORDED / f"debezium-{layout}.jsonl").read_text().splitlines():
        fields = json.loads(line)["fields"]
        client.xadd("events", fields)
        await parts.apply(1)
        if tokens := client.keys("token:*"):
            done |= {(line, name.decode().partition(":")[2]) for name in tokens}
            client.delete(*tokens)
        try:
            envelope = from_fields("events", "1-1", {key.encode(): value.encode() for key, value in fields.items()})
        except IgnoredEventError:
            continue
        for effect in effects(CHANGES, envelope, cache.keys):
            said |= {(line, f"tag:{tag}") for tag in effect.tags}
            said |= {(line, f"namespace:{name}") for name in effect.namespaces}
    assert said == done
    assert len(said) > 5


def test_an_entry_of_the_stream_is_looked_at_and_nothing_is_touched(simulate, url, client):
    stream_id = client.xadd("events", {"type": "simulate.moved", "data": DATA}).decode()
    ran = simulate("--entry", stream_id, "--json", TIDINGS_URL=url)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["rules"][0]["tags"] == ["user:7"]
    assert client.keys() == [b"events"]
    assert client.xlen("events") == 1
    assert client.xinfo_groups("events") == []


def test_an_entry_whose_data_do_not_fit_fails_in_each_rule(simulate, url, client):
    stream_id = client.xadd("events", {"type": "simulate.moved", "data": '{"user_id": "x"}'}).decode()
    ran = simulate("--entry", stream_id, "--json", TIDINGS_URL=url)
    assert ran.code == 1
    problems = [rule["problem"] for rule in json.loads(ran.out)["rules"]]
    assert all("user_id" in problem for problem in problems)


MISTAKES = {
    "a field too few": (["simulate.moved", "--data", '{"user_id": 7}'], "day"),
    "a list": (["simulate.moved", "--data", "[7]"], "--data"),
    "half JSON": (["simulate.moved", "--data", "{"], "--data"),
    "no file": (["simulate.moved", "--data", "@nowhere.json"], "nowhere.json"),
    "fields in a list": (["--fields", "[]"], "--fields"),
    "no fields": (["--fields", "{}"], "type"),
    "no Unicode": (["--fields", '{"type": "\\ud800"}'], "--fields"),
    "two events": (["--fields", "{}", "--entry", "1-1"], "--entry"),
    "data beside fields": (["--fields", "{}", "--data", "{}"], "--data"),
    "a subject beside an entry": (["--entry", "1-1", "--subject", "user:7"], "--subject"),
    "no stream id": (["--entry", "one"], "'one'"),
    "no server": (["--entry", "1-1"], "TIDINGS_URL"),
    "no type": ([], "type"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_event_is_one_message(simulate, mistake):
    arguments, word = MISTAKES[mistake]
    ran = simulate(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert word in ran.err
    assert ran.err.count("tidings: ") == 1
    assert "Traceback" not in ran.err


def test_an_entry_that_is_not_there_is_one_message(simulate, url):
    ran = simulate("--entry", "1-1", TIDINGS_URL=url)
    assert (ran.code, ran.out) == (2, "")
    assert "1-1" in ran.err
