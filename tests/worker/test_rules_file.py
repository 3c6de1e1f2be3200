"""Rules as data: the same plans as rules in Python, and every mistake named with its line and what to do about it."""

import json
import re
import sys
import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from tidings import Event, cached
from tidings.errors import ConfigurationError
from tidings_worker import Rules, Warm
from tidings_worker.loading import load_rules
from tidings_worker.toml_rules.lines import positions
from tidings_worker.toml_rules.toml_file import FileError


class Updated(Event, type="file.updated"):
    user_id: int
    plan: Literal["pro", "team", "free"] = "free"
    day: date = date(2026, 11, 20)
    price: Decimal | None = None
    active: bool = True


class Row(BaseModel):
    team: str
    plan: str


class Moved(Event, type="file.moved"):
    before: Row | None
    after: Row | None


@cached(namespace="users", tags=["user:{user_id}"])
async def get_user(user_id: int) -> int:
    return user_id


@cached(namespace="days")
async def get_day(day: date, limit: int = 3) -> str:
    return f"{day} {limit}"


async def not_cached(user_id: int) -> int:
    return user_id


UPDATED = Updated(user_id=7)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Read a file with this text, by a name without folders."""
    monkeypatch.chdir(tmp_path)

    def read(text):
        (tmp_path / "rules.toml").write_bytes(text.encode())
        return load_rules("rules.toml")

    return read


@pytest.fixture
def problems(read):
    """Return what is wrong with a file, line after line."""

    def problems(text):
        with pytest.raises(FileError) as raised:
            read(text)
        return str(raised.value).splitlines()

    return problems


# What a file may say


def test_a_rule_of_a_file_does_what_the_same_mapping_does(read):
    rules = read("""
        [[rule]]
        on = "file.updated"
        namespaces = ["stats"]
        tags = ["user:{user_id}", "month:{day:%Y-%m}"]
        warm = ["test_rules_file:get_user", { hot = "users", top = 5 }]
    """)
    expected = Rules()
    tags = ["user:{user_id}", "month:{day:%Y-%m}"]
    expected.map(Updated, namespaces=["stats"], tags=tags, warm=[get_user, Warm.hot("users", top=5)])
    assert_same_plan(rules.simulate(UPDATED), expected.simulate(UPDATED))


def assert_same_plan(plan, expected):
    assert set(plan.causes) == set(expected.causes)
    assert (plan.warms, plan.hot, plan.ruled) == (expected.warms, expected.hot, expected.ruled)


_texts = st.sampled_from(["stats", "user:{user_id}", "{plan}", "d:{day:%Y}:{user_id:03}", "p:{price}", 'q"\\:{plan}'])
_names = st.sampled_from(["stats", "a.b", "{plan}", "u{user_id}"])
_warms = st.sampled_from([get_user, get_day])
_mappings = st.fixed_dictionaries(
    {"on": st.sampled_from(["file.updated", "file.untyped"])},
    optional={
        "namespaces": st.lists(_names, min_size=1, max_size=3),
        "tags": st.lists(_texts, min_size=1, max_size=3),
        "warm": st.lists(_warms, min_size=1, max_size=2),
    },
).filter(lambda mapping: len(mapping) > 1)
_events = st.builds(Updated, user_id=st.integers(0, 10**6), plan=st.sampled_from(["pro", "free"]), day=st.dates())


def as_toml(mapping):
    lines = [f"on = {json.dumps(mapping['on'])}"]
    for key in mapping.keys() - {"on"}:
        texts = [item if isinstance(item, str) else item.identity for item in mapping[key]]
        lines.append(f"{key} = {json.dumps(texts)}")
    return "\n".join(["[[rule]]", *lines])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mappings=st.lists(_mappings, min_size=1, max_size=4), event=_events)
def test_files_and_python_make_the_same_plans(read, mappings, event):
    from_file, in_python = read("\n\n".join(map(as_toml, mappings))), Rules()
    for mapping in mappings:
        kind = Updated if mapping["on"] == "file.updated" else mapping["on"]
        in_python.map(kind, **{key: value for key, value in mapping.items() if key != "on"})
    untyped = Event.of("file.untyped", json.loads(event.model_dump_json()))
    for same in (event, untyped):
        try:
            expected = in_python.simulate(same)
        except Exception as error:  # noqa: BLE001 whatever it is, both raise it
            with pytest.raises(type(error)):
                from_file.simulate(same)
        else:
            assert_same_plan(from_file.simulate(same), expected)


def test_one_rule_may_be_for_several_types_and_for_everything(read):
    rules = read('[[rule]]\non = ["file.one", "file.two"]\neverything = true')
    assert rules.event_types == {"file.one", "file.two"}
    assert rules.simulate(Event.of("file.two", {})).everything


def test_a_warm_may_name_its_arguments_otherwise_than_the_event_does(read):
    call = '{ call = "test_rules_file:get_day", with = { day = "20{year}-01-01", limit = "{size}" } }'
    rules = read(f'[[rule]]\non = "file.renamed"\nwarm = [{call}]')
    plan = rules.simulate(Event.of("file.renamed", {"year": 26, "size": 5, "limit": 1}))
    assert plan.warms == (Warm(get_day, date(2026, 1, 1), 5),)


def test_a_template_that_is_one_name_gives_the_value_and_not_its_text(read):
    rules = read(
        '[[rule]]\non = "file.updated"\nwarm = [{ call = "test_rules_file:get_day", with = { limit = "{user_id}" } }]'
    )
    assert rules.simulate(UPDATED).warms == (Warm(get_day, date(2026, 11, 20), 7),)


def test_a_cause_leads_to_the_line_of_the_rule(read):
    rules = read('# mine\n\n[[rule]]\non = "file.updated"\ntags = ["a"]\n\n[[rule]]\non="file.updated"\ntags = ["b"]')
    assert {name: cause.rpartition("rule:")[2] for name, cause in rules.simulate(UPDATED).causes.items()} == {
        "tag:a": "rules.toml:3",
        "tag:b": "rules.toml:7",
    }
    assert [registered.place for registered in rules.registered] == [("rules.toml", 3), ("rules.toml", 7)]


def test_what_a_rule_cannot_do_about_an_event_is_a_problem_that_names_its_line(read):
    rules = read('[[rule]]\non = "file.unknown"\ntags = ["user:{user_id}"]\nwarm = ["test_rules_file:get_user"]')
    (problem,) = rules.simulate(Event.of("file.unknown", {})).problems
    assert problem.startswith("ArgumentError: rules.toml:1: the template 'user:{user_id}' needs 'user_id'")


@pytest.mark.parametrize(
    ("when", "data", "expected"),
    [
        ('plan = ["pro", "team"]', {"plan": "team"}, True),
        ('plan = ["pro", "team"]', {"plan": "free"}, False),
        ('plan = "pro"\nwhen.active = true', {"plan": "pro"}, True),
        ('plan = "pro"\nwhen.active = true', {"plan": "pro", "active": False}, False),
        ("user_id = 7", {}, True),
        ("user_id = [1, 2]", {}, False),
        ("day = 2026-11-20", {}, True),
        ('day = "2026-11-21"', {}, False),
    ],
)
@pytest.mark.parametrize("event_type", ["file.updated", "file.like_updated"])
def test_a_condition_is_about_values_of_the_data(read, event_type, when, data, expected):
    rules = read(f'[[rule]]\non = "{event_type}"\ntags = ["a"]\nwhen.{when}')
    event = Updated(**{"user_id": 7, **data})
    if event_type != "file.updated":
        event = Event.of(event_type, json.loads(event.model_dump_json()))
    assert bool(rules.simulate(event).tags) is expected


def test_a_condition_has_the_type_of_the_field(read):
    rules = read('[[rule]]\non = "file.updated"\ntags = ["a"]\nwhen = { price = "1.5" }')
    assert rules.simulate(Updated(user_id=7, price=Decimal("1.50"))).tags


@pytest.mark.parametrize(
    ("data", "expected"), [({}, False), ({"n": True}, False), ({"n": "1"}, False), ({"n": 1}, True)]
)
def test_a_condition_compares_as_json_does_and_what_is_not_there_equals_nothing(read, data, expected):
    rules = read('[[rule]]\non = "file.compared"\ntags = ["a"]\nwhen = { n = 1 }')
    assert bool(rules.simulate(Event.of("file.compared", data)).tags) is expected


def test_a_condition_on_what_cannot_be_compared_is_a_problem_of_the_event(read):
    rules = read('[[rule]]\non = "file.compared"\ntags = ["a"]\nwhen = { n = 1 }')
    (problem,) = rules.simulate(Event.of("file.compared", {"n": [1]})).problems
    assert "list" in problem


@pytest.mark.parametrize(("before", "after"), [("pro", "free"), ("free", "pro")])
def test_either_row_may_fulfil_a_condition_and_both_are_invalidated(read, before, after):
    rules = read('[[rule]]\non = "file.moved"\ntags = ["team:{team}"]\nwhen = { plan = "pro" }')
    moved = Moved(before=Row(team="1", plan=before), after=Row(team="2", plan=after))
    assert rules.simulate(moved).tags == {"team:1", "team:2"}
    assert not rules.simulate(Moved(before=None, after=Row(team="1", plan="free"))).tags


def test_a_table_that_was_truncated_may_have_had_any_row(read):
    rules = read("""
        [[rule]]
        on = ["file.moved", "file.truncated"]
        namespaces = ["teams"]
        when = { plan = "pro" }
        [[rule]]
        on = "file.truncated"
        namespaces = ["others"]
        when = { kind = "x" }
    """)
    assert rules.simulate(Moved(before=None, after=None)).namespaces == {"teams"}
    for data, expected in (({}, {"teams", "others"}), ({"kind": "y"}, {"teams"})):
        truncated = Event.of("file.truncated", {"before": None, "after": None} | data)
        assert rules.simulate(truncated).namespaces == expected


def test_a_tag_that_an_event_cannot_have_takes_nothing_from_the_others(read):
    rules = read("""
        [[rule]]
        on = "file.deleted"
        namespaces = ["team{team}", "stats"]
        tags = ["team:{team}", "row:{id}"]
        warm = ["test_rules_file:get_day"]
    """)
    plan = rules.simulate(Event.of("file.deleted", {"before": {"id": 7}, "after": None}))
    assert set(plan.causes) == {"namespace:stats", "tag:row:7"}
    (problem,) = plan.problems
    assert "team{team}" in problem
    assert "team:{team}" in problem


def test_schedules_are_those_that_python_makes(read):
    rules = read("""
        [[schedule]]
        warm = { call = "test_rules_file:get_day", with = { day = 2026-01-02 } }
        minute = [0, 30]
        [[schedule]]
        warm = { hot = "users" }
        hour = 4
        minute = 0
    """)
    expected = Rules()
    expected.schedule(Warm(get_day, date(2026, 1, 2)), minute={0, 30})
    expected.schedule(Warm.hot("users"), hour=4, minute=0)
    assert [(s.name, s.second) for s in rules.schedules] == [(s.name, s.second) for s in expected.schedules]
    assert [s.place.line for s in rules.schedules] == [2, 5]


def test_modules_and_files_are_one_set_of_rules(read, tmp_path, monkeypatch):
    (tmp_path / "file_rules_module.py").write_text(
        "from tidings import Event\nfrom tidings_worker import Rules\nrules = Rules()\n"
        "class Paid(Event, type='file.paid'):\n    order: int\n"
        "rules.map(Paid, tags=['order:{order}'])\n"
    )
    read('[[rule]]\non = "file.paid"\ntags = ["paid"]')
    monkeypatch.syspath_prepend(tmp_path)
    rules = load_rules(["rules.toml", "file_rules_module:rules"])
    assert rules.simulate(Event.of("file.paid", {"order": 1})).tags == {"order:1", "paid"}
    with pytest.raises(ConfigurationError, match=r"rules\.toml:3:9: file\.paid: .*'oder'; there is: order"):
        read('[[rule]]\non = "file.paid"\ntags = ["{oder}"]')


def test_the_problems_of_all_files_come_together(read, tmp_path):
    (tmp_path / "other.toml").write_text("[[ruel]]")
    with pytest.raises(FileError):
        read("x = 1")
    with pytest.raises(FileError) as raised:
        load_rules(["rules.toml", "other.toml"])
    assert [(problem.file, problem.line) for problem in raised.value.problems] == [("other.toml", 1), ("rules.toml", 1)]


# What is wrong with a file

RULE = '[[rule]]\non = "file.updated"\n'
SCHEDULE = '[[schedule]]\nwarm = "test_rules_file:get_day"\n'
GOOD = RULE + 'tags = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RULE + 'tag = ["a"]', "3:1: unknown key 'tag'; did you mean 'tags'?"),
        (RULE + 'tags = "a"', '3:1: "a" where a list belongs; write tags = ["a"]'),
        (RULE + "tags = { a = 1 }", '3:1: a table where a list belongs; write tags = ["…"]'),
        ("on = 'a'", "1:1: 'on' stands outside of a rule; write [[rule]] or [[schedule]] above it"),
        (RULE + "tags = [\n 'a',\n  5]", "5:3: 5 is not a text; write it in quotes"),
        (RULE + "tags = ['user:{usr}']", "3:9: file.updated: the template 'user:{usr}' names 'usr'; there is: active,"),
        (RULE + "tags = ['a', '']", "3:14: file.updated: an empty template"),
        (RULE + "tags = ['{']", "3:9: file.updated: the template '{' does not parse"),
        (RULE + "tags = ['{{a}}']", "3:9: file.updated: the template '{{a}}' has doubled braces"),
        (RULE + "namespaces = ['a b']", "3:15: the namespace 'a b' must be 1 to 128 letters"),
        (RULE, "1:1: asks for nothing; give namespaces, tags, everything = true or warm"),
        (RULE + "tags = []", "1:1: asks for nothing"),
        (RULE + "everything = 'yes'", '3:1: "yes" is not true or false'),
        ("[[rule]]\ntags = ['a']", "1:1: no event type; give on ="),
        ("[[rule]]\non = []\ntags = ['a']", "2:1: no event type"),
        ("[[rule]]\non = 5\ntags = ['a']", "2:1: 5 is no event type; write on ="),
        ("[[rule]]\non = ['a', '']\ntags = ['a']", '2:12: "" is no event type'),
        ("# a list\n[rule]\non = 'a'", "2:1: 'rule' is a list of tables: write [[rule]] above each of them"),
        (GOOD + "[[rules]]", "4:1: unknown key 'rules'; did you mean 'rule'?"),
        ("", "1:1: nothing in it"),
        ("# nothing but this\n", "1:1: nothing in it"),
        ("rule = []\n", "1:1: nothing in it"),
        (RULE + "when = 5", "3:1: 5 is not a table; write when = {"),
        (GOOD + "when = { plam = 'pro' }", "4:10: file.updated has no 'plam'; did you mean 'plan'?"),
        (
            GOOD + "[rule.when]\nplan = ['pro', 'prp']",
            "5:16: file.updated: plan is never \"prp\": Input should be 'pro'",
        ),
        (GOOD + "when.plan = []", "4:6: an empty list, which nothing is in"),
        ("[[rule]]\non='file.any'\ntags=['a']\nwhen.a = [[1]]", "4:11: a list is no value to compare with"),
        (RULE + "warm = 'test_rules_file:get_user'", '3:1: "test_rules_file:get_user" where a list belongs'),
        (RULE + "warm = ['get_user']", '3:9: "get_user" is no function; write "module:function"'),
        (RULE + "warm = [7]", '3:9: a warm is "module:function"'),
        (RULE + "warm = [{}]", '3:9: a warm is "module:function"'),
        (RULE + "warm = [{ call = 7 }]", '3:11: 7 is no function; write "module:function"'),
        (RULE + "warm = [{ call = 'a:b', hot = 'c' }]", '3:9: a warm is "module:function"'),
        (RULE + "warm = ['no_such_module:get']", "3:9: no_such_module does not import: no module 'no_such_module'"),
        (RULE + "warm = ['test_rules_file:get_usr']", "no 'get_usr' there; did you mean 'get_user'?"),
        (RULE + "warm = ['test_rules_file:x']", "no 'x' there; there is: get_day, get_user"),
        (RULE + "warm = ['test_rules_file:not_cached']", "test_rules_file:not_cached is not a function decorated with"),
        (
            RULE + "warm = [{ call = 'test_rules_file:get_user', with = { usr_id = 1 } }]",
            "3:55: test_rules_file:get_user takes no 'usr_id'; did you mean 'user_id'?",
        ),
        (
            RULE + "warm = [{ call = 'test_rules_file:get_user', with = { user_id = '{id}' } }]",
            "3:55: file.updated: the template '{id}' names 'id'; there is: active,",
        ),
        (
            RULE + "warm = [{ call = 'test_rules_file:get_user', with = { user_id = 'seven' } }]",
            "3:55: \"seven\": test_rules_file:get_user: the argument 'user_id' does not fit: Input should be",
        ),
        (RULE + "warm = [{ call = 'test_rules_file:get_user', with = 1 }]", "3:46: 1 is not a table; write with = {"),
        (RULE + "warm = [{ call = 'test_rules_file:get_user', top = 1 }]", "3:46: top is for { hot ="),
        (RULE + "warm = [{ call = 'test_rules_file:get_user', wth = 1 }]", "unknown key 'wth'; did you mean 'with'?"),
        (RULE + "warm = [{ hot = 'a b' }]", "3:11: the namespace 'a b' must be"),
        (RULE + "warm = [{ hot = 'a', top = 0 }]", "3:22: Warm.hot(top=0) is not a number from 1 to 1000"),
        (RULE + "warm = [{ hot = 'a', with.b = 0 }]", "3:22: with is for a call"),
        (
            "[[rule]]\non = 'file.moved'\nwarm = ['test_rules_file:get_user']",
            "3:9: test_rules_file:get_user needs user_id, which file.moved does not have; give it with = { user_id",
        ),
        (
            SCHEDULE + "minute = 0",
            "2:1: test_rules_file:get_day needs day, and a schedule has no event; give it with = { day = … }",
        ),
        (
            "[[schedule]]\nwarm = { call = 'test_rules_file:get_user', with = { user_id = '{id}' } }",
            "2:54: '{id}' is a template, and a schedule has no event; write a value",
        ),
        ("[[schedule]]\nminute = 0", "1:1: no warm; give warm ="),
        ("[[schedule]]\nwarm.hot = 'a'\nminute = 60", "3:1: minute: 60 is not a number from 0 to 59, or a list"),
        ("[[schedule]]\nwarm.hot = 'a'\nhour = [1,\n 24]", "4:2: hour: 24 is not a number from 0 to 23, or a list"),
        ("[[schedule]]\nwarm.hot = 'a'\nhour = [[1]]", "3:9: hour: a list is not a number from 0 to 23"),
        ("[[schedule]]\nwarm.hot = 'a'\nhour = true", "3:1: hour: true is not a number from 0 to 23"),
        ("[[schedule]]\nwarm.hot = 'a'\nhour = []", "3:1: hour: an empty list; leave it out"),
        ("[[schedule]]\nwarm.hot = 'a'\nmonth = 2\nday = [30, 31]", "4:1: day=30 never comes in month=2"),
        ("[[schedule]]\nwarm.hot = 'a'\nminutes = 3", "3:1: unknown key 'minutes'; did you mean 'minute'?"),
        ("[[rule]]\non = 'a\ntags = ['b']", "2:8: not TOML: "),
        ("[[rule]]\non = 'a'\non = 'b'", "3:9: not TOML: Cannot overwrite a value"),
        ("[[rule]]\non = 'a'\ntags = ['b'", "3:12: not TOML: Unclosed array"),
        ("x = " + "[" * 3000, "1:1: not TOML that can be read: it is nested too deeply"),
        ("x = " + "9" * 5000, "1:1: not TOML that can be read: Exceeds the limit"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_cure(problems, text, expected):
    (problem,) = problems(text)
    assert expected in problem
    assert problem.startswith("rules.toml:")


def test_every_mistake_is_named_at_once_in_the_order_of_the_lines(problems):
    found = problems(
        '[[schedule]]\nminute = 99\n[[rule]]\non = "file.updated"\ntags = ["{x}", "{y}"]\nwhen = { z = 1 }\n'
    )
    assert [problem.split(" ")[0] for problem in found] == [
        "rules.toml:1:1:",
        "rules.toml:2:1:",
        "rules.toml:5:9:",
        "rules.toml:5:16:",
        "rules.toml:6:10:",
    ]


def test_a_module_that_fails_is_imported_once_and_named_wherever_it_is_used(problems, tmp_path):
    (tmp_path / "file_broken.py").write_text("with open('runs', 'a') as runs:\n    runs.write('x')\n1 / 0\n")
    found = problems(f"{RULE}warm = ['file_broken:a']\n{RULE}warm = ['file_broken:a']")
    assert [problem.partition(" ")[0] for problem in found] == ["rules.toml:3:9:", "rules.toml:6:9:"]
    assert all("file_broken.py, line 3: ZeroDivisionError" in problem for problem in found)
    assert (tmp_path / "runs").read_text() == "x"


def test_a_file_that_is_not_there_or_no_text_is_named(read, tmp_path):
    with pytest.raises(FileError):
        read("")
    with pytest.raises(FileError, match=r"gone\.toml:1:1: cannot be read: No such file"):
        load_rules("gone.toml")
    (tmp_path / "latin.toml").write_bytes("# ä\n# ä".encode() + b"\xe4")
    with pytest.raises(FileError, match=r"latin\.toml:2:4: not UTF-8 text"):
        load_rules("latin.toml")


def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(read, problems):
    text = GOOD.replace("\n", "\r\n")
    assert read("\ufeff" + text).simulate(UPDATED).tags == {"a"}
    assert problems(text + "\r\ntag = 1\r\n") == ["rules.toml:5:1: unknown key 'tag'; did you mean 'tags'?"]


# Where things stand

DOCUMENTS = {
    "comments": "# [[rule]]\n[[rule]] # [[rule]]\n  # x = 1\n  a = 1 # b = 2\n",
    "strings of many lines": 'a = """\nx = 1 # "\n[[b]]\\"""" # """\nc = \'\'\'\nd = "\'\'\'\'\nf = 1\n',
    "strings": 'e = "\\" = [" # f\n\'g h\' = \'\\\'\n"i.j" = ""\nk = \'\'\n',
    "dotted": 'a.b.c = 1\na . "b.d" . e = 2\n[f . g]\nh.i = 3\n[f.g.j]\nk = 1\n',
    "arrays": "a = [1, [2,\n 3], # ]\n [ [ ] ],\n {b = [4], c.d = {}}, ]\ne = [\n]\n",
    "inline tables": 'a = { b = 1, "c d" = { e = [ { f = "}" } ] }, g.h = 2.5 }\n',
    "scalars": "a = 1979-05-27 07:32:00.5-07:00\nb = -inf\nc = 1e6\nd = 0xF_F\ne = 07:32:00\nf = true\ng = +1.5\n",
    "tables that take turns": "[[a]]\nb = 1\n[[c]]\nd = 1\n[[a]]\n[a.e]\nf = 1\n[[a.g]]\n[[a.g]]\nh = 1\n[[c]]\n",
    "tables inside later ones": "[i.j]\nk = 1\n[i]\nl = 1\n",
}


def paths_of(value, path=()):
    """Every path of a document, with those of its tables and elements."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths_of(child, (*path, key))


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_everything_in_a_document_has_its_position(text):
    document, found = tomllib.loads(text), positions(text)
    assert set(paths_of(document)) == set(found)
    lines = text.split("\n")
    for path, (line, column) in found.items():
        there = lines[line - 1][column - 1 :]
        if isinstance(path[-1], str) and not there.startswith("["):
            assert there.lstrip("\"'").startswith(path[-1]), (path, there)


def test_positions_are_those_of_keys_elements_and_headers():
    found = positions("[[a]]\nb = [1,\n  2]\n[[a]]\nb.c = { d = 3 }\n")
    assert found == {
        ("a",): (1, 1),
        ("a", 0): (1, 1),
        ("a", 0, "b"): (2, 1),
        ("a", 0, "b", 0): (2, 6),
        ("a", 0, "b", 1): (3, 3),
        ("a", 1): (4, 1),
        ("a", 1, "b"): (5, 1),
        ("a", 1, "b", "c"): (5, 3),
        ("a", 1, "b", "c", "d"): (5, 9),
    }


# The page of the documentation


@pytest.fixture(scope="module")
def page():
    """The blocks of docs/rules.md, each with what its fence says."""
    text = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    assert len(text.splitlines()) < 150
    return re.findall(r"^```(.+?)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def load_page(shell, page):
    """Load a file beside the page's module, in a process of its own; give what it prints."""
    (module,) = (text for kind, text in page if kind == "python")
    (shell.folder / "myapp").mkdir()
    shell.write("myapp/users.py", module)

    def load(text):
        shell.write("rules.toml", text)
        program = """
from tidings.errors import TidingsError
from tidings_worker.loading import load_rules
try:
    rules = load_rules(["myapp.users:rules", "rules.toml"])
    print(len(rules.registered), len(rules.schedules), *sorted(rules.event_types))
except TidingsError as error:
    print(error)
"""
        process = shell.start_program(sys.executable, "-W", "error", "-c", program)
        assert process.wait() == 0, process.err
        return process.out

    return load


def test_the_file_that_the_documentation_shows_is_valid(page, load_page):
    (shown,) = (text for kind, text in page if kind == "toml")
    assert load_page(shown) == "6 2 schema.changed user.imported user.updated\n"


def test_the_mistakes_that_the_documentation_shows_get_the_messages_that_it_shows(page, load_page):
    (wrong,) = (text for kind, text in page if kind == "toml wrong")
    (messages,) = (text for kind, text in page if kind == "text")
    assert load_page(wrong) == messages
