"""`tidings dlq`, `replay`, `tail`, `groups` and `warms` as operators type them: exit codes, what is printed and left.

Nearly all the time that a command takes is imports, so all of them run in one process, which this module starts once.
"""

import json
import sys
from dataclasses import dataclass

import pytest

RULES = """
from tidings import cached
from tidings_worker import Rules

@cached(namespace="places")
async def place(number: int) -> int:
    return number

rules = Rules()
rules.map("typed.moved", tags=["place:{number}"], warm=[place])
"""

#: Runs each line as a command, with a default cache of its own.
RUNNER = """
import json
import os
import sys

from tidings.default import set_cache
from tidings_worker.cli import app
from typer.testing import CliRunner

for line in sys.stdin:
    arguments, given, variables = json.loads(line)
    os.environ.update(variables)
    sys.argv = ["tidings", *arguments]
    result = CliRunner().invoke(app, arguments, input=given)
    set_cache(None)
    done = {"code": result.exit_code, "out": result.stdout, "err": result.stderr, "raised": repr(result.exception)}
    print(json.dumps(done), flush=True)
"""


@dataclass
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str
    raised: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="module")
def runner(shell_of_module):
    shell_of_module.write("typed_rules.py", RULES)
    shell_of_module.write("failing_rules.py", RULES + 'rules.on("typed.moved")(lambda event: 1 / 0)\n')
    return shell_of_module.start_program(sys.executable, "-c", RUNNER, COLUMNS="80")


@pytest.fixture
def run(runner, url):
    def command(*arguments, given="", **variables):
        environment = {"TIDINGS_URL": url, "TIDINGS_PARTITIONS": "1", **variables}
        return Done(**json.loads(runner.ask(json.dumps([arguments, given, environment]))))

    return command


@pytest.fixture
def add(client):
    def letters(count=1, **fields):
        fields = {"reason": "failed 5 times", "stream": "events", "original:type": "typed.moved"} | fields
        return [client.xadd("events:dead", fields).decode() for _ in range(count)]

    return letters


def test_the_dead_letters_are_listed_the_newest_first_on_one_line_each(run, add):
    ids = add(3, reason="a very long reason " * 20 + "\x1b[31m[red]")
    done = run("dlq", "list", "--limit", "2")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ids[:0:-1]
    assert lines[3] == "3 letters, of which these are the newest 2"
    assert max(map(len, lines)) <= 80
    found = run("dlq", "list", "--type", "typed.moved", "--since", ids[1], "--json").json
    assert (found["total"], found["matching"], [one["id"] for one in found["letters"]]) == (3, 2, ids[:0:-1])


def test_a_letter_is_shown_with_nothing_that_a_terminal_would_obey(run, add):
    (one,) = add(**{"original:data": '{"a": [1]}', "original:x": b"\xff\x1b[2J", "reason": "failed \x1b[31m [bold]"})
    done = run("dlq", "show", one)
    assert "\x1b" not in done.out
    for text in ("failed \\x1b[31m [bold]", '"a": [', "\\xff\\x1b[2J", f"tidings dlq drop {one}"):
        assert text in done.out
    assert run("dlq", "show", one, "--json").json["original"]["x"] == "\\xff\x1b[2J"


def test_chosen_letters_go_back_and_those_that_cannot_are_named(run, add, client):
    first, second = add(2)
    (foreign,) = add(stream="users")
    done = run("dlq", "replay", first, foreign, "5-5")
    assert done.code == 1
    assert "1 letter put back: 1 typed.moved" in done.out
    assert "came from users" in done.err
    assert "no dead letter 5-5" in done.err
    assert client.xlen("events") == 1
    done = run("dlq", "replay", "--all", "--json")
    assert (done.code, [one["id"] for one in done.json["replayed"]]) == (1, [second])
    assert [one["id"] for one in done.json["refused"]] == [foreign]


def test_names_are_shown_as_they_are(run, add, client):
    """What looks like markup or like a picture's name is neither."""
    name = "a:key:[red]b"
    add(reason=name, **{"original:type": name})
    client.xadd("events", {"type": name, "subject": name})
    assert run("dlq", "list").out.count(name) == 2
    assert run("dlq", "replay", "--all", "--dry-run").out.count(name) == 2
    assert run("replay", "typed_rules:rules", "--since", "0", "--dry-run").out.count(name) == 4


def test_a_dry_replay_leaves_everything_as_it_is(run, add, client):
    add(2)
    done = run("dlq", "replay", "--all", "--dry-run")
    assert (done.code, done.out.splitlines()[-1]) == (0, "2 letters would be put back: 2 typed.moved")
    assert (client.xlen("events"), client.xlen("events:dead")) == (0, 2)


def test_whoever_waits_hears_that_nobody_applies_it(run, add):
    add()
    done = run("dlq", "replay", "--all", "--wait", "0.01")
    assert (done.code, done.out.splitlines()[-1]) == (1, "0 of 1 applied")


def test_letters_are_dropped_only_when_it_is_certain_that_they_are_meant(run, add, client):
    add(2)
    add(reason="another")
    assert run("dlq", "drop", "--all").code == 2
    assert client.xlen("events:dead") == 3
    done = run("dlq", "drop", "--all", "--reason", "ANOTHER", "--yes")
    assert (done.code, done.out) == (0, "dropped 1 letter\n")
    assert run("dlq", "drop", "--all", "--yes", "--json").json == {"dropped": 2, "missing": []}
    assert run("dlq", "drop", "5-5", "--yes").code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dlq", "replay"), "which letters"),
        (("dlq", "drop", "--yes"), "which letters"),
        (("dlq", "replay", "--type", "x"), "narrow down --all"),
        (("dlq", "replay", "5-5", "--all"), "not both"),
        (("dlq", "show", "newest"), "no id of a dead letter"),
        (("dlq", "replay", "5"), "no id of a dead letter"),
        (("dlq", "list", "--since", "yesterday"), "is no time"),
        (("tail", "--since", "yesterday"), "is no time"),
        (("tail", "--no-follow"), "--since"),
        (("replay", "typed_rules:rules", "--since", "600"), "is no time"),
        (("replay", "typed_rules:rules", "--since", "1h", "--until", "2h"), "is before --since 1h"),
        (("replay", "not_there:rules", "--since", "10m"), "no module"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_cure(run, arguments, message):
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("command", [("dlq", "list"), ("groups",), ("warms",), ("stats",), ("tail",)])
def test_a_server_that_is_not_there_or_is_no_server_is_said(run, url, command):
    assert run(*command, TIDINGS_URL="redis://127.0.0.1:1").code == 3
    assert run(*command, TIDINGS_URL="memory://").code == 2
    refused = run(*command, TIDINGS_URL=url.replace("//", "//somebody:s3cret@"))
    assert (refused.code, url in refused.err, "s3cret" in refused.err) == (3, True, False)


def test_a_stretch_is_run_again_in_every_partition(run, client):
    for number, stream in enumerate(("events", "events:0", "events:1")):
        client.xadd(stream, {"type": "typed.moved", "data": f'{{"number": {number}}}'})
    arguments = ("replay", "typed_rules:rules", "--since", "1h")
    done = run(*arguments, "--dry-run", TIDINGS_PARTITIONS="2")
    assert (done.code, done.out.count("-> tag:place:")) == (0, 3)
    assert not client.keys("token:*")
    done = run(*arguments, "--json", TIDINGS_PARTITIONS="2")
    assert done.json["tokens"] == {"tag:place:0": 1, "tag:place:1": 1, "tag:place:2": 1}
    assert len(client.keys("token:tag:place:*")) == client.zcard("warms") == 3


def test_a_replay_without_warms_queues_none_and_one_that_fails_says_so(run, client):
    client.xadd("events", {"type": "typed.moved", "data": '{"number": 7}'})
    done = run("replay", "failing_rules:rules", "--since", "0", "--no-warm")
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert client.exists("token:tag:place:7")
    assert not client.exists("warms")


def test_a_tail_ends_after_so_many_and_without_following(run, client):
    for number in range(5):
        client.xadd("events", {"type": "tail.script", "subject": f"s:{number}"})
    client.xgroup_create("events", "tidings", id="$")
    counted = run("tail", "--since", "0", "--count", "2")
    assert (counted.code, counted.out.count("\n")) == (0, 2)
    past = run("tail", "--since", "0", "--no-follow", "--json")
    assert past.code == 0
    assert [json.loads(line)["subject"] for line in past.out.splitlines()] == [f"s:{number}" for number in range(5)]


def test_groups_are_a_check_when_a_bound_is_given(run, client):
    client.xgroup_create("events", "tidings", "0", mkstream=True)
    assert run("groups", "--max-lag", "0", "--max-age", "5").code == 0
    client.xadd("events", {"type": "typed.moved"}, id="1000-0")
    done = run("groups", "--max-lag", "0", "--max-age", "5")
    assert (done.code, "1 to read" in done.out) == (1, True)
    assert "1 events to read, more than 0" in done.err
    assert run("groups").code == 0
    assert len(run("groups", "--max-age", "5", "--json").json["late"]) == 1


def test_warms_are_shown(run, client):
    assert run("warms").out.splitlines()[1] == "0 queued: 0 waiting, 0 due later"
    client.zadd("warms", {"warms:gone": 1})
    assert run("warms", "--json").json["queued"] == 1


def test_a_warm_can_be_asked_for(run, client):
    done = run("warm", "typed_rules:place", "7", "--json")
    assert (done.code, done.json["function"]) == (0, "typed_rules:place")
    assert client.zcard("warms") == 1
    assert run("warm", "typed_rules:place", "7").out.strip() == done.json["name"]
    assert client.zcard("warms") == 1
