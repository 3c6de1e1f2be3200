"""The demo as a user runs it, and proof that each of its checks can fail.

Always in a process of its own: the demo defines an event type, and sets the default cache.
"""

import json
import os
import re
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from tidings.errors import ConfigurationError
from tidings_worker.demo.catalog import Catalog
from tidings_worker.demo.edits import edit
from tidings_worker.demo.source import Function, Source, find

DEMO = [sys.executable, "-m", "tidings_worker", "demo"]
TIMELINE = ["read", "read", "source changed and ingested again", "read", "event", "applied", "warmed", "read"]


@pytest.fixture
def place(tmp_path):
    """Where a demo runs: a folder, an environment that must not matter, and a folder for what is temporary."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    yield {
        "cwd": tmp_path / "here",
        "env": os.environ
        | {
            "TMPDIR": str(tmp_path / "temporary"),
            "PYTHONPATH": str(tmp_path),
            "TIDINGS_PREFIX": "users-own",
            "REDIS_URL": "redis://127.0.0.1:1/users-own",
        },
    }
    assert list((tmp_path / "here").iterdir()) == [], "nothing is left where the user is"
    assert list((tmp_path / "temporary").iterdir()) == [], "nothing is left in the temporary folder"
    assert processes_in(tmp_path / "temporary") == [], "no process is left"


def processes_in(folder):
    """Ids of the processes that work in a folder, as the demo's server and worker do, where the system can tell."""
    return [process.name for process in Path("/proc").glob("[0-9]*") if str(folder) in working_folder(process)]


def working_folder(process):
    try:
        return str((process / "cwd").readlink())
    except OSError:  # it has ended, or is another user's
        return ""


def demo(place, *options):
    return subprocess.run([*DEMO, *options], **place, capture_output=True, text=True, timeout=60, check=False)


def test_four_rounds_on_three_packages(place):
    ran = demo(place, "--packages", "json,tomllib, html", "--rounds", "4", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["ok"] is True
    assert found["failure"] is None
    assert list(found["packages"]) == ["json", "tomllib", "html"]
    assert [now["package"] for now in found["rounds"]] == ["json", "tomllib", "html", "json"]
    for now in found["rounds"]:
        assert [moment["what"].partition(":")[0] for moment in now["timeline"]] == TIMELINE
        first, *_, applied, warmed, fresh = now["timeline"]
        old, new = first["current"], fresh["current"]
        assert old != new
        assert applied["tidings"] in {None, new}
        assert (warmed["tidings"], fresh["tidings"]) == (new, new)
        assert old == first["tidings"]
        assert fresh["what"] == "read: fresh hit"
        assert 0 < now["applied_ms"] < now["warmed_ms"] < now["fresh_ms"]
    openings = [now["timeline"][0]["what"] for now in found["rounds"]]
    assert openings == ["read: miss, loaded"] * 3 + ["read: hit"]
    assert len({edit for now in found["rounds"] for edit in now["edits"]}) == 12
    totals = found["totals"]
    assert totals["reads"] == sum(now["reads"] for now in found["rounds"])
    assert totals["stale"] == 0
    # The fresh read of every round, all of the last round, and what other readers read of changed packages.
    assert totals["ttl_only_stale"] > 4


def test_its_timeline_fits_80_columns_without_colours(place):
    ran = demo(place, "--packages", "json,tomllib", "--rounds", "2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.isascii()
    assert "\x1b" not in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert "Round 2: tomllib" in ran.stdout
    assert re.search(r"0\.0  event: ingestion\.completed$", ran.stdout, re.MULTILINE)
    assert re.search(r"read: fresh hit +(\w{6}) +(?!\1)\w{6} old$", ran.stdout, re.MULTILINE)
    assert re.search(r"2 rounds, \d+ reads: tidings served 0 stale answers, a TTL-only cache [1-9]", ran.stdout)


RULES = """
from tidings.errors import ArgumentError
from tidings_worker import Invalidate, Rules, Warm
from tidings_worker.demo.service import IngestionCompleted, get_function_tree

rules = Rules()

@rules.on(IngestionCompleted)
def broken(event):
    {body}
"""

WARM = "Warm(get_function_tree, event.package, event.as_of)"
INVALIDATE = "Invalidate(tags=['package:' + event.package])"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        pytest.param(f"yield {WARM}", "stale read: json: revision", id="nothing is invalidated"),
        pytest.param(
            f"yield {INVALIDATE}",
            "missing warm: json: nothing loaded it in 1 s",
            id="nothing is warmed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "raise ArgumentError('refused')",
            "lost event: json, event",
            id="the event is set aside",
            marks=pytest.mark.slow,
        ),
        pytest.param("__import__('os')._exit(1)  # died", "lost event: json, event", id="the worker dies of the event"),
    ],
)
def test_a_broken_promise_ends_it_with_exit_code_1(place, tmp_path, body, complaint):
    (tmp_path / "broken.py").write_text(RULES.format(body=body))
    ran = demo_with_rules(place, "broken:rules")
    assert ran.returncode == 1, ran.stderr
    assert f"the demo failed: {complaint}" in ran.stderr
    found = json.loads(ran.stdout)
    assert found["ok"] is False
    assert complaint.startswith(found["failure"]["check"])
    assert ("the worker ended with exit code 1" in ran.stderr) == ("died" in body)


def test_a_worker_that_does_not_start_ends_it_with_exit_code_1(place):
    ran = demo_with_rules(place, "not_there:rules")
    assert ran.returncode == 1
    assert "the demo failed: worker: it ended with exit code 2 before it was ready" in ran.stderr
    assert "not_there does not import" in ran.stderr, "the worker's own words are shown"


def demo_with_rules(place, rules):
    script = (
        "import sys; from tidings_worker.demo.show import run; "
        f"sys.exit(run(['json'], 1, as_json=True, rules={rules!r}, patience=1))"
    )
    command = [sys.executable, "-c", script]
    return subprocess.run(command, **place, capture_output=True, text=True, timeout=60, check=False)


READER = """
import asyncio, os
from datetime import date
from tidings import Cache, set_cache
from tidings_worker.demo.audience import Audience
from tidings_worker.demo.result import CheckFailed, Round
from tidings_worker.demo.service import catalog, read_tree
from tidings_worker.demo.source import Function

async def main(day=date(2026, 11, 20)):
    catalog().create()
    async with Cache("memory://") as cache:
        set_cache(cache)
        audience, now = Audience(cache, day), Round(1, "shop")
        for name in ("one", "two"):
            catalog().ingest("shop", day, [Function("shop", name, 1)])
            audience.committed("shop", read_tree("shop", day))
            await audience.read(now, "shop")  # before the event, old is right too
        audience.applied("shop")  # but nothing was invalidated
        try:
            await audience.keep_reading(now, ["shop"], asyncio.Event())
        except CheckFailed as failure:
            print(failure.check, now.reads, now.ttl_only_stale)

asyncio.run(main())
"""


def test_readers_in_the_background_notice_a_stale_read(tmp_path):
    env = os.environ | {"TIDINGS_DEMO_DATABASE": str(tmp_path / "catalog.sqlite")}
    ran = subprocess.run([sys.executable, "-c", READER], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == "stale read 3 1\n"


@pytest.mark.parametrize(
    ("packages", "complaint"),
    [
        ("nosuch", "'nosuch' is not in Python's standard library"),
        ("json,math", "math has no Python source here, it is compiled"),
        ("pydoc_data", "pydoc_data has no functions to index"),
        ("../json", "'../json' is not in Python's standard library"),
        (" , ", "--packages names none"),
    ],
)
def test_packages_it_cannot_use_are_refused_with_the_cure(place, packages, complaint):
    ran = demo(place, "--packages", packages)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert complaint in ran.stderr
    assert "as in --packages json,email" in ran.stderr


def test_no_rounds_are_refused(place):
    ran = demo(place, "--rounds", "0")
    assert ran.returncode == 2
    assert "--rounds" in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing_behind(place, number):
    command = [*DEMO, "--packages", "json,tomllib", "--rounds", "10000"]
    with subprocess.Popen(command, **place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("Round 3") for line in process.stdout)
        if Path("/proc").exists():
            assert len(processes_in(place["env"]["TMPDIR"])) == 2, "the server and the worker run in its folder"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "tidings: the demo was stopped\n"


def test_a_closed_pipe_leaves_nothing_behind(place):
    command = [*DEMO, "--packages", "json,tomllib", "--rounds", "10000"]
    with subprocess.Popen(command, **place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("Round 1") for line in process.stdout)
        process.stdout.close()
        process.wait(timeout=30)
    assert process.returncode != 0


def test_the_command_line_does_not_define_the_demos_event():
    """A user's own rules may define ingestion.completed, and run in the same program."""
    script = "import sys, tidings_worker.cli; print([m for m in sys.modules if m.startswith('tidings_worker.demo.')])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_package_is_found_in_the_library_and_not_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("def impostor(): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tmp_path not in find("json").root.parents


def test_functions_and_methods_are_found_by_name_and_line(tmp_path):
    package = tmp_path / "shop"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("import sys\nif sys.argv:\n    def one(): ...\n")
    (package / "parts" / "bolt.py").write_text(
        "class Bolt:\n    @property\n    def size(self):\n        def in_it(): ...\n"
    )
    assert Source("shop", package).functions() == [
        Function("shop", "one", 3),
        Function("shop.parts.bolt", "Bolt.size", 3),
    ]


def test_a_file_that_does_not_parse_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("def (")
    with pytest.raises(ConfigurationError, match=r"bad\.py does not parse"):
        Source("bad", tmp_path / "bad.py").functions()


@pytest.mark.parametrize("package", ["json", "email", "asyncio", "argparse"])
def test_edits_are_real_and_different_each_round(package, tmp_path):
    source, seen = find(package), []
    for number in range(1, 6):
        before = source.functions()
        source = source.copy_to(tmp_path / str(number))
        changes = edit(source, number)
        assert [change[0] for change in changes] == ["+", "~", "-"]
        after = source.functions()
        assert {*after} != {*before}
        assert len(after) == len(before)
        seen += changes
    assert len(set(seen)) == len(seen)


def test_edits_of_a_package_with_one_function_and_a_form_feed(tmp_path):
    file = tmp_path / "lone.py"
    file.write_text("# coding: latin-1\n\x0c\nclass Lone:\n    def __init__(self): pass  # \xe9\n", encoding="latin-1")
    source = Source("lone", file)
    assert edit(source, 1) == ["+ lone.added_in_round_1", "~ lone.Lone.__init__ -> __init___1"]
    assert [f.name for f in source.functions()] == ["Lone.__init___1", "added_in_round_1"]
    edit(source, 2)
    edit(source, 3)
    assert "added_in_round_3" in [f.name for f in source.functions()]


def test_a_day_without_an_ingestion_shows_the_last_one_before(tmp_path):
    catalog = Catalog(tmp_path / "catalog.sqlite")
    catalog.create()
    one, two = Function("shop", "one", 1), Function("shop", "two", 1)
    first = catalog.ingest("shop", date(2026, 11, 20), [one])
    assert catalog.functions("shop", date(2026, 11, 19)) == ([], None)
    assert catalog.functions("shop", date(2026, 11, 21)) == ([one], first)
    second = catalog.ingest("shop", date(2026, 11, 20), [two])
    assert second != first
    assert catalog.functions("shop", date(2026, 11, 20)) == ([two], second)
    assert catalog.functions("other", date(2026, 11, 20)) == ([], None)
