"""Rules: event -> plan, and what wrong rules get. Nothing here touches a server."""

import gc
import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from tidings import Envelope, Event, cached
from tidings.errors import ArgumentError, ConfigurationError, EventError, PermanentError, TemplateError
from tidings.events import from_fields, to_fields
from tidings_worker import Invalidate, Plan, Rules, Warm
from tidings_worker.plans import Draft, merge


class Ingested(Event, type="rules.ingested"):
    package: str
    as_of: date


class Renamed(Event, type="rules.renamed"):
    old: str
    new: str


class NoType(Event):
    package: str


class User(BaseModel):
    id: int


@cached(namespace="explorer", tags=["package:{package}"])
async def get_tree(package: str, as_of: date) -> list[str]:
    return [package, as_of.isoformat()]


@cached(namespace="stats")
async def get_popular(limit: int = 10) -> list[str]:
    return ["json"] * limit


@cached(namespace="stats")
async def get_first(package: str, /) -> str:
    return package


@cached(namespace="stats")
async def get_named(package: str, *rest: str, verbose: bool = False, **options: str) -> str:
    return package


async def not_cached(package: str) -> str:
    return package


async def original(package: str) -> str:
    return package


renamed = cached()(original)  # importing its name gives the function that is not cached


class Repository:
    @cached()
    async def find(self, package: str) -> str:
        return package


def local_function():
    @cached()
    async def inner(package: str) -> str:
        return package

    return inner


NOW = datetime(2026, 11, 21, tzinfo=UTC)
INGESTED = Ingested(package="json", as_of=date(2026, 11, 20))


@pytest.fixture
def rules():
    return Rules()


def from_stream(event, **changes):
    """The envelope that a worker reads after `event` was published."""
    fields = to_fields(event, source="/test") | changes
    return from_fields("events", "1-1", {name.encode(): value.encode() for name, value in fields.items()})


def by_hand(event_type, data):
    return from_fields("events", "1-1", {b"type": event_type.encode(), b"data": data.encode()})


# What a rule may give


def test_a_rule_yields_invalidations_and_warms(rules):
    @rules.on(Ingested)
    def changed(event):
        yield Invalidate(namespaces=["stats"], tags=[f"package:{event.package}"])
        yield Warm(get_tree, package=event.package, as_of=event.as_of)

    plan = rules.simulate(INGESTED)
    assert plan.namespaces == {"stats"}
    assert plan.tags == {"package:json"}
    assert plan.warms == (Warm(get_tree, "json", date(2026, 11, 20)),)
    assert plan.ruled
    assert not plan.everything


@pytest.mark.parametrize(
    ("result", "tags", "warms"),
    [
        (None, set(), 0),
        ([], set(), 0),
        (Invalidate(tags=["a", "b"]), {"a", "b"}, 0),
        (Warm(get_popular), set(), 1),
        ([Invalidate(tags=["a"]), Warm(get_popular), Invalidate(tags=["b"])], {"a", "b"}, 1),
        ({Invalidate(tags=("a",))}, {"a"}, 0),
    ],
    ids=["none", "empty", "invalidation", "warm", "list", "set"],
)
def test_a_rule_returns_one_thing_many_or_none(rules, result, tags, warms):
    rules.on(Ingested)(lambda _: result)
    plan = rules.simulate(INGESTED)
    assert (plan.tags, len(plan.warms), plan.ruled) == (tags, warms, True)


def test_a_rule_may_invalidate_everything(rules):
    rules.on("rules.deployed")(lambda _: Invalidate(everything=True))
    assert rules.simulate(Event.of("rules.deployed", {})).everything


def test_all_rules_for_a_type_are_asked_and_no_others(rules):
    rules.on(Ingested)(lambda _: Invalidate(tags=["one"]))
    rules.map(Ingested, tags=["two:{package}"])
    rules.on(Renamed)(lambda _: Invalidate(tags=["never"]))
    assert rules.simulate(INGESTED).tags == {"one", "two:json"}


def test_an_event_without_a_rule_has_an_empty_plan_that_says_so(rules):
    plan = rules.simulate(INGESTED)
    assert plan == Plan()
    assert not plan.ruled


def test_a_rule_is_given_its_class_or_the_class_of_its_type_or_the_bare_data(rules):
    seen = []

    @rules.on(Ingested)
    @rules.on("rules.ingested")
    @rules.on("rules.unheard_of")
    def remember(event):
        seen.append(event)

    rules.plan(from_stream(INGESTED))
    rules.plan(by_hand("rules.unheard_of", '{"package": "json", "size": 3}'))
    assert seen[:2] == [INGESTED, INGESTED]
    assert (seen[2].package, seen[2].size) == ("json", 3)


def test_a_rule_finds_the_envelope_at_its_event(rules):
    seen = []

    @rules.on(Ingested)
    def remember(event):
        seen.append(event)

    envelope = from_stream(INGESTED, subject="package:json")
    rules.plan(envelope)
    assert seen[0].envelope is envelope
    assert seen[0].envelope.subject == "package:json"


def test_the_plan_of_a_published_event_is_what_simulate_promised(rules):
    rules.map(Ingested, namespaces=["stats"], tags=["package:{package}", "day:{as_of}"], warm=[get_tree, get_popular])
    simulated, planned = rules.simulate(INGESTED), rules.plan(from_stream(INGESTED))
    assert set(simulated.causes) == set(planned.causes)
    assert simulated.warms == planned.warms


def test_a_field_that_a_newer_publisher_has_added_is_ignored(rules):
    rules.map(Ingested, tags=["package:{package}"])
    envelope = by_hand("rules.ingested", '{"package": "json", "as_of": "2026-11-20", "since": "v2"}')
    assert rules.plan(envelope).tags == {"package:json"}


def test_data_that_do_not_fit_the_class_are_an_event_error_that_names_the_field(rules):
    rules.map(Ingested, tags=["package:{package}"])
    (problem,) = rules.plan(by_hand("rules.ingested", '{"package": "json", "as_of": "tomorrow"}')).problems
    assert re.search(r"EventError: .*rules\.ingested: as_of: ", problem)


def test_a_cause_names_event_and_rule(rules):
    rules.map(Ingested, tags=["package:{package}"])

    @rules.on(Ingested)
    def changed(event):
        return Invalidate(namespaces=["stats"])

    causes = rules.plan(from_stream(INGESTED, id="e-17")).causes
    mapped = r"event:e-17 entry:1-1 rule:rules\.map\('rules\.ingested'\) \(test_rules\.py:\d+\)"
    assert re.fullmatch(mapped, causes["tag:package:json"])
    assert causes["namespace:stats"].startswith("event:e-17 entry:1-1 rule:test_rules.")
    assert "test_rules.py:" in causes["namespace:stats"]


@pytest.mark.parametrize("result", ["stats", [b"stats"], [Invalidate(tags=["a"]), get_popular], 7, get_popular])
def test_a_rule_that_gives_anything_else_is_named_with_its_place(rules, result):
    def wrong(event):
        return result

    rules.on(Ingested)(wrong)
    with pytest.raises(ConfigurationError, match=r"wrong \(test_rules\.py:\d+\).*Invalidate and Warm, not \w+"):
        rules.simulate(INGESTED)


def test_what_a_rule_raises_is_not_hidden(rules):
    def broken(event):
        raise ZeroDivisionError

    rules.on(Ingested)(broken)
    with pytest.raises(ZeroDivisionError):
        rules.simulate(INGESTED)


def test_what_several_rules_raise_is_a_group_of_it(rules):
    rules.on(Ingested)(lambda _: 1 / 0)
    rules.on(Ingested)(lambda _: int("x"))
    for ask in (lambda: rules.simulate(INGESTED), lambda: rules.plan(from_stream(INGESTED))):
        with pytest.raises(ExceptionGroup) as raised:
            ask()
        assert list(map(type, raised.value.exceptions)) == [ZeroDivisionError, ValueError]


def test_a_rule_that_raises_takes_nothing_from_what_it_and_the_others_have_asked_for(rules):
    @rules.on(Ingested)
    def half_way(event):
        yield Invalidate(tags=["before"])
        raise ZeroDivisionError

    @rules.on(Ingested)
    def never(event):
        raise EventError("not to be had")

    rules.map(Ingested, tags=["package:{package}"], warm=[get_popular])
    draft = Draft()
    problems, error = rules.plan_into(draft, from_stream(INGESTED))
    assert isinstance(error, ZeroDivisionError)
    assert "not to be had" in "".join(problems)
    assert draft.plan().tags == {"before", "package:json"}
    assert draft.plan().warms == (Warm(get_popular),)


def test_a_draft_of_many_events_has_the_first_cause_of_each_token_and_the_last_to_ask_for_each_warm(rules):
    rules.map(Ingested, namespaces=["stats"], tags=["package:{package}"], warm=[get_popular])
    draft = Draft()
    for number in (1, 2, 3):
        fields = {name.encode(): value.encode() for name, value in to_fields(INGESTED, source="/test").items()}
        rules.plan_into(draft, from_fields("events", f"{number}-0", fields | {b"id": b"e-%d" % number}))
    causes = draft.plan().causes
    assert set(causes) == {"namespace:stats", "tag:package:json"}
    assert all(cause.startswith("event:e-1 entry:1-0 rule:rules.map('rules.ingested') (") for cause in causes.values())
    assert draft.askers == {Warm(get_popular).name: "3-0"}


# One-liners


def test_a_map_fills_templates_from_the_event(rules):
    rules.map(Ingested, namespaces=["{package}", "stats"], tags=["package:{package}", "month:{as_of:%Y-%m}"])
    plan = rules.simulate(INGESTED)
    assert plan.namespaces == {"json", "stats"}
    assert plan.tags == {"package:json", "month:2026-11"}


def test_a_map_reads_a_field_that_only_the_class_knows_and_one_that_only_the_data_have(rules):
    rules.map(Ingested, tags=["package:{package}"])
    rules.map("rules.half_known", tags=["{known}:{unknown}"])
    assert rules.simulate(INGESTED).tags == {"package:json"}
    assert rules.plan(by_hand("rules.half_known", '{"known": 1, "unknown": true}')).tags == {"1:true"}


def test_each_rule_is_given_an_event_of_its_own(rules):
    """What one rule does to a list in the event's data is not what the next one decides from."""
    rules.on("rules.listed")(lambda event: Invalidate(tags=[event.names.pop()]))
    rules.on("rules.listed")(lambda event: Invalidate(tags=[f"last:{event.names[-1]}"]))
    assert rules.plan(by_hand("rules.listed", '{"names": ["a", "b"]}')).tags == {"b", "last:b"}


class Anything(Event, type="rules.anything"):
    what: Any


class Level(IntEnum):
    LOW = 1


ALIKE = [
    *(1, True, 1.0, Decimal(1), Decimal("1.0"), Decimal("1.00"), "1", Level.LOW, 0, False, 0.0, -0.0, None, "null", ""),
    *("true", "True", 10**50, float(10**50), date(2026, 1, 1), datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
    *(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "2026-01-01", UUID(int=1), str(UUID(int=1))),
    *(time(1), time(1, fold=1), User(id=1), [1], {"id": 1}),
]


@pytest.mark.parametrize("template", ["it:{what}", "it:{what:>5}", "it:{what.real}"])
def test_what_a_map_remembers_is_of_that_very_value_and_not_of_one_that_equals_it(template):
    """1, True and 1.0 are equal, and have tags of their own."""

    def asked(rules, value):
        draft = Draft()
        problems, _ = rules.plan_into(draft, Envelope("1", "rules.anything", "/", NOW, {}), Anything(what=value))
        return draft.plan().tags, problems

    def mapped():
        rules = Rules()
        rules.map(Anything, tags=[template])
        return rules

    used = mapped()
    for value in ALIKE + ALIKE[::-1]:
        assert asked(used, value) == asked(mapped(), value), repr(value)


def remembered(of):
    """The invalidations that are alive and have a tag which begins like this."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Invalidate and one.tags and one.tags[0].startswith(of)]


def test_a_map_remembers_no_long_texts(rules):
    """A hostile producer must not fill the worker's memory."""
    rules.map("rules.long", tags=["long:{text}"], namespaces=["n{text:.1}"])
    for number in range(50):
        rules.simulate(Event.of("rules.long", {"text": f"{number}" + "x" * 1000}))
    assert remembered("long:") == []
    assert rules.simulate(Event.of("rules.long", {"text": "short"})).tags == {"long:short"}
    assert len(remembered("long:")) == 1


def test_a_map_remembers_so_many_and_then_starts_anew(rules, monkeypatch):
    monkeypatch.setattr("tidings_worker.mapping._REMEMBERED", 10)
    rules.map("rules.many", tags=["many:{number}"])
    for number in [*range(95), *range(95)]:
        assert rules.simulate(Event.of("rules.many", {"number": number})).tags == {f"many:{number}"}
    assert 0 < len(remembered("many:")) <= 10


def test_a_map_warms_functions_with_the_fields_their_parameters_name(rules):
    rules.map(Ingested, warm=[get_tree, get_popular, get_named, Warm(get_popular, limit=3)])
    assert rules.simulate(INGESTED).warms == (
        Warm(get_tree, "json", date(2026, 11, 20)),
        Warm(get_popular),
        Warm(get_named, "json"),
        Warm(get_popular, 3),
    )


def test_a_map_gives_a_field_to_a_parameter_that_has_a_default(rules):
    rules.map("rules.limited", warm=[get_popular])
    assert rules.simulate(Event.of("rules.limited", {"limit": 5})).warms == (Warm(get_popular, 5),)
    assert rules.simulate(Event.of("rules.limited", {})).warms == (Warm(get_popular),)


def test_a_map_warms_a_function_of_positional_parameters(rules):
    rules.map(Ingested, tags=["package:{package}"], warm=[get_first])
    assert rules.simulate(INGESTED).warms == (Warm(get_first, "json"),)


@pytest.mark.parametrize("name", ["schema", "event_type", "envelope", "copy", "json", "read", "model_fields"])
def test_a_map_reads_the_data_whatever_its_fields_are_called(rules, name):
    """A tag made of anything but the data would invalidate something else, and leave what changed as it was."""
    rules.map("rules.named", tags=[f"it:{{{name}}}"])
    assert rules.plan(by_hand("rules.named", f'{{"{name}": "public"}}')).tags == {"it:public"}


# What cannot be done about one event: a permanent error, so that the event is set aside and the others go on


@pytest.mark.parametrize(
    ("templates", "data"),
    [
        ({"tags": ["user:{user_id}"]}, "{}"),
        ({"tags": ["user:{user_id}"]}, '{"user_id": {"nested": 1}}'),
        ({"tags": ["{user_id}"]}, '{"user_id": ""}'),
        ({"tags": ["user:{user.id}"]}, '{"user": 7}'),
        ({"tags": ["month:{day:%Y-%m}"]}, '{"day": "2026-11-20"}'),
        ({"tags": ["user:{user_id:d}"]}, '{"user_id": "seven"}'),
        ({"tags": ["user:{user_id:d}"]}, '{"user_id": null}'),
        ({"tags": ["user:{user_id}"]}, '{"user_id": "\\ud800"}'),
        ({"namespaces": ["{space}"]}, '{"space": "not a namespace"}'),
        ({"namespaces": ["{space}"]}, '{"space": ""}'),
        ({"namespaces": ["stats"], "warm": [get_tree]}, '{"package": "json"}'),
        ({"namespaces": ["stats"], "warm": [get_popular]}, '{"limit": "\\ud800"}'),
    ],
    ids=[
        "field missing",
        "field is an object",
        "tag is empty",
        "field has no such attribute",
        "format does not fit a string",
        "format does not fit a word",
        "format does not fit null",
        "tag is no Unicode",
        "namespace is not possible",
        "namespace is empty",
        "warm lacks an argument",
        "warm is no Unicode",
    ],
)
def test_data_that_a_map_cannot_use_are_a_permanent_error_of_that_event(rules, templates, data):
    rules.map("rules.by_hand", **templates)
    try:
        problems = rules.plan(by_hand("rules.by_hand", data)).problems
    except PermanentError as error:  # found before any rule saw it
        problems = (str(error),)
    assert len(problems) == 1


# Many plans are one


def test_merging_keeps_every_token_once_with_its_first_cause():
    merged = merge([Plan({"tag:a": "first", "tag:b": "first"}), Plan({"tag:a": "second", "tag:c": "second"})])
    assert dict(merged.causes) == {"tag:a": "first", "tag:b": "first", "tag:c": "second"}


def test_merging_keeps_one_warm_for_each_entry():
    plans = [Plan(warms=(Warm(get_popular), Warm(get_popular, 3))), Plan(warms=(Warm(get_popular, limit=10),))]
    assert {warm.name for warm in merge(plans).warms} == {Warm(get_popular).name, Warm(get_popular, 3).name}
    assert len(merge(plans).warms) == 2


def test_merging_knows_whether_any_rule_was_asked():
    assert merge([Plan(), Plan(ruled=True), Plan()]).ruled
    assert not merge([Plan(), Plan()]).ruled


def test_merging_nothing_is_a_plan_to_do_nothing():
    assert merge([]) == Plan()


def test_five_hundred_events_of_three_packages_need_three_tokens_and_three_warms(rules):
    rules.map(Ingested, tags=["package:{package}"], warm=[get_tree])
    events = [Ingested(package=f"p{number % 3}", as_of=date(2026, 11, 20)) for number in range(500)]
    merged = merge(map(rules.simulate, events))
    assert merged.tags == {"package:p0", "package:p1", "package:p2"}
    assert len(merged.warms) == 3


# Wrong at definition: the message names the place and the cure


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (lambda rules: rules.map(Ingested, tags=["user:{user_id}"]), r"tags.*'user_id'.*as_of, package"),
        (lambda rules: rules.map(Ingested, namespaces=["{space}"]), r"namespaces.*'space'.*as_of, package"),
        (lambda rules: rules.map(Ingested, tags=["user:{{package}}"]), r"doubled braces"),
        (lambda rules: rules.map("rules.any", tags=["user:{"]), r"does not parse"),
        (lambda rules: rules.map("rules.any", tags=["user:{}"]), r"no argument's name"),
        (lambda rules: rules.map("rules.any", tags=[""]), r"empty"),
    ],
    ids=["unknown tag field", "unknown namespace field", "doubled braces", "unbalanced", "no name", "empty"],
)
def test_a_template_that_cannot_be_filled_is_an_error_at_definition(rules, definition, message):
    with pytest.raises(TemplateError, match=message) as raised:
        definition(rules)
    assert "rules.map('rules." in str(raised.value)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (lambda rules: rules.map(Ingested), r"maps to nothing"),
        (lambda rules: rules.map(Ingested, tags="package:{package}"), r"one string where a list"),
        (lambda rules: rules.map(Ingested, namespaces="stats"), r"one string where a list"),
        (lambda rules: rules.map(Ingested, namespaces=["not a namespace"]), r"'not a namespace'.*letters"),
        (lambda rules: rules.map(Ingested, warm=get_tree), r"warm=\["),
        (lambda rules: rules.map(Ingested, warm=[not_cached]), r"not a cached function"),
        (lambda rules: rules.map(Renamed, warm=[get_tree]), r"test_rules:get_tree needs \['as_of', 'package'\]"),
        (lambda rules: rules.map(Ingested, warm=[local_function()]), r"local_function.*move it out"),
        (lambda rules: rules.map(Ingested, warm=[Repository.find]), r"Repository\.find.*method"),
        (lambda rules: rules.map(NoType, tags=["a"]), r'class NoType\(Event, type="…"\)'),
        (lambda rules: rules.map("", tags=["a"]), r"empty event type"),
        (lambda rules: rules.map(User, tags=["user:{id}"]), r"User.*Event"),
        (lambda rules: rules.on(NoType), r'class NoType\(Event, type="…"\)'),
        (lambda rules: rules.on(""), r"empty event type"),
        (lambda rules: rules.on(User), r"User.*Event"),
        (lambda rules: rules.on(lambda _: None), r"rules\.on\("),
    ],
    ids=[
        "map to nothing",
        "map tags string",
        "map namespaces string",
        "map impossible namespace",
        "map warm not in a list",
        "map warm not cached",
        "map warm lacks fields",
        "map warm local",
        "map warm method",
        "map class without type",
        "map empty type",
        "map no event class",
        "on class without type",
        "on empty type",
        "on no event class",
        "on without parentheses",
    ],
)
def test_a_rule_that_cannot_work_is_an_error_at_definition(rules, definition, message):
    with pytest.raises(ConfigurationError, match=message):
        definition(rules)
    assert not rules.event_types


def test_a_rule_that_waits_is_an_error_at_definition(rules):
    async def waits(event):
        return None

    async def waits_and_yields(event):
        yield None

    for rule in (waits, waits_and_yields):
        with pytest.raises(ConfigurationError, match=r"waits.*\(test_rules\.py:\d+\): .*write def, not async def"):
            rules.on(Ingested)(rule)


class CallableRule:
    def __call__(self, _):
        return Invalidate(tags=["called"])


@pytest.mark.parametrize("rule", [partial(lambda tag, _: Invalidate(tags=[tag]), "called"), CallableRule()])
def test_any_callable_can_be_a_rule(rules, rule):
    rules.on(Ingested)(rule)
    rules.check()
    assert rules.simulate(INGESTED).tags == {"called"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warm(not_cached, "json"), r"not_cached.*@cached"),
        (lambda: Warm(local_function(), "json"), r"test_rules:local_function.*move it out"),
        (lambda: Warm(Repository.find, "json"), r"test_rules:Repository\.find.*method"),
        (lambda: Warm("test_rules:get_tree", "json"), r"@cached"),
    ],
    ids=["not cached", "local", "method", "string"],
)
def test_a_warm_of_what_cannot_be_imported_is_an_error_where_it_is_made(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warm(get_tree, "json"), r"test_rules:get_tree.*as_of"),
        (lambda: Warm(get_tree, "json", date(2026, 1, 1), 3), r"test_rules:get_tree.*takes"),
        (lambda: Warm(get_tree, package="json", day=date(2026, 1, 1)), r"test_rules:get_tree.*'day'"),
        (lambda: Warm(get_popular, limit=object()), r"test_rules:get_popular.*'limit'.*travel"),
    ],
    ids=["too few", "too many", "unknown", "cannot travel"],
)
def test_a_warm_whose_arguments_do_not_bind_is_an_error_where_it_is_made(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_warms_of_one_entry_are_equal_however_their_arguments_are_given():
    by_position, by_name = (
        Warm(get_tree, "json", date(2026, 1, 1)),
        Warm(get_tree, as_of=date(2026, 1, 1), package="json"),
    )
    assert by_position == by_name
    assert len({by_position, by_name, Warm(get_tree, "json", date(2026, 1, 2))}) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Invalidate(tags="user:7"), r"write tags=\['user:7'\]"),
        (lambda: Invalidate(namespaces="stats"), r"write namespaces=\['stats'\]"),
        (lambda: Invalidate(namespaces=["a b"]), r"'a b'.*letters"),
    ],
    ids=["tags string", "namespaces string", "impossible namespace"],
)
def test_an_invalidation_of_what_cannot_be_is_an_error_where_it_is_made(make, message):
    with pytest.raises((ConfigurationError, ArgumentError), match=message):
        make()


def test_an_invalidation_takes_any_iterable(rules):
    """A generator that is used up while it is checked would leave everything as it was, silently."""
    rules.on(Ingested)(lambda _: Invalidate(tags=(f"user:{number}" for number in range(2))))
    assert rules.simulate(INGESTED).tags == {"user:0", "user:1"}


# Wrong at start: what only the complete module shows


def test_a_rule_that_uses_a_local_cached_function_is_found_at_start(rules):
    inner = local_function()

    @rules.on(Ingested)
    def changed(event):
        return Warm(inner, event.package)

    with pytest.raises(ConfigurationError, match=r"local_function.*move it out"):
        rules.check()


@pytest.mark.parametrize(
    "define",
    [
        lambda rules: rules.on(Ingested)(lambda event: Warm(renamed, event.package)),
        lambda rules: rules.map(Ingested, warm=[renamed]),
        lambda rules: rules.schedule(Warm(renamed, "json"), minute=0),
    ],
    ids=["on", "map", "schedule"],
)
def test_a_function_whose_name_gives_another_when_imported_is_found_at_start(rules, define):
    def define_and_start():
        define(rules)
        rules.check()

    with pytest.raises(ConfigurationError, match="test_rules:original"):
        define_and_start()


# Where rules stand, and several of them together


def test_a_rule_says_where_it_stands_and_what_it_does(rules):
    @rules.on("rules.placed")
    def placed(event):
        return None

    rules.map(Ingested, tags=["package:{package}"], warm=[get_tree])
    first, second = rules.registered
    assert (first.event_type, first.event_class, first.invalidates) == ("rules.placed", None, None)
    assert (second.event_type, second.event_class, second.warms) == ("rules.ingested", Ingested, (get_tree,))
    assert [template.text for template in second.invalidates.tags] == ["package:{package}"]
    for registered in (first, second):
        assert registered.place.file == __file__
        assert registered.name.endswith(f"(test_rules.py:{registered.place.line})")
    assert "rules.map(Ingested" in Path(__file__).read_text().splitlines()[second.place.line - 1]


def test_rules_that_include_others_do_what_all_of_them_do(rules):
    rules.map("rules.ingested", tags=["mine"])
    other = Rules()
    other.map(Ingested, tags=["package:{package}"])
    other.schedule(Warm(get_popular), minute=0)
    rules.include(other)
    other.map(Ingested, tags=["after"])
    assert rules.simulate(INGESTED).tags == {"mine", "package:json"}
    assert rules.schedules == other.schedules


# Schedules


def test_a_schedule_is_kept_for_the_worker(rules):
    rules.schedule(Warm(get_popular), minute={0, 30})
    (schedule,) = rules.schedules
    assert schedule.warm == Warm(get_popular)
    assert (schedule.minute, schedule.second, schedule.hour) == ({0, 30}, 0, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"minute": 60},
        {"second": {0, 61}},
        {"hour": 24},
        {"day": 0},
        {"month": 13},
        {"weekday": 7},
        {"minute": "*/5"},
        {"minute": set()},
        {"day": 30, "month": 2},
        {"day": {31}, "month": {4, 6, 9, 11}},
    ],
    ids=str,
)
def test_a_time_that_never_comes_is_an_error_at_definition(rules, fields):
    """The worker would look for it for ever."""
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        rules.schedule(Warm(get_popular), **fields)


def test_a_schedule_of_what_is_no_warm_is_an_error_at_definition(rules):
    with pytest.raises(ConfigurationError, match=r"Warm\("):
        rules.schedule(get_popular, minute=0)
