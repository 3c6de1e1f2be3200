"""Rules as data: a `rules.toml` becomes the `Rules` that the same mappings in Python would be; see docs/rules.md.

Everything that can be wrong is found when the file is read, all of it at once, each with its line. What a table says
becomes closures like those of `Rules.map`, so that whoever has the `Rules` cannot tell where they came from.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tidings import Event
from tidings.errors import ArgumentError, ConfigurationError
from tidings.events import UntypedEvent, class_of
from tidings.keys import check_namespace
from tidings.templates import Template, parse

from tidings_worker.importing import nearest
from tidings_worker.mapping import invalidation_of, warms_of
from tidings_worker.plans import Hot, Invalidate, Warm
from tidings_worker.rules import Invalidates, Registered, Rule, Rules
from tidings_worker.schedules import CRON_RANGES, CronField, Schedule, never_comes

from .calls import ValueOf
from .conditions import comparable, holds
from .lines import Path
from .toml_file import TomlFile, written
from .warms import EventType, FileCall, WarmReader

_RULE_KEYS = ("on", "namespaces", "tags", "everything", "warm", "when")
_SCHEDULE_KEYS = ("warm", *CRON_RANGES)


def read_rules(name: str) -> Rules:
    """Read a rules file. Raises FileError with every problem in it.

    The modules of the functions that it names are imported first: event classes that they define are known then.
    """
    return _Reader(TomlFile(name)).rules()


class _Reader:
    """Makes the rules of one file, noting what is wrong in it."""

    def __init__(self, file: TomlFile) -> None:
        self._file = file
        self._rules = Rules()
        self._warms = WarmReader(file)

    def rules(self) -> Rules:
        file = self._file
        inside = {*_RULE_KEYS, *_SCHEDULE_KEYS}
        for key in inside & file.document.keys():
            file.problem((key,), f"{key!r} stands outside of a rule; write [[rule]] or [[schedule]] above it")
        file.keys((), dict.fromkeys(file.document.keys() - inside), ("rule", "schedule"))
        tables = [(path, table, self._warms.listed(path, table)) for path, table in file.tables("rule")]
        for path, table in file.tables("schedule"):
            self._schedule(path, table)
        for path, table, warms in tables:  # now that every module which the file names is imported
            self._rule(path, table, warms)
        if not (file.problems or self._rules.registered or self._rules.schedules):
            file.problem((), "nothing in it; write a [[rule]], or leave the file out")  # perhaps it is half-written
        file.check()
        return self._rules

    def _rule(self, path: Path, table: dict[str, Any], warms: list[FileCall | Hot]) -> None:
        file, before = self._file, self._file.problems
        file.keys(path, table, _RULE_KEYS)
        everything = table.get("everything", False)
        if not isinstance(everything, bool):
            file.problem((*path, "everything"), f"{written(everything)} is not true or false")
        for event in self._types(path, table):
            invalidates = Invalidates(
                tuple(self._templates((*path, "namespaces"), table, event)),
                tuple(self._templates((*path, "tags"), table, event)),
                everything is True,
            )
            calls = [call for warm in warms if (call := self._warms.for_event(warm, event)) is not None]
            conditions = self._conditions((*path, "when"), table.get("when", {}), event)
            place = file.place(path)
            rule = _rule_of(invalidates, calls, conditions)
            functions = tuple(warm.function for warm in warms if isinstance(warm, FileCall))
            self._rules.add(Registered(str(place), *event, rule, place, functions, invalidates))
        asks = any(table.get(key) for key in ("namespaces", "tags", "everything", "warm"))
        if not asks and file.problems == before:
            file.problem(path, "asks for nothing; give namespaces, tags, everything = true or warm")

    def _types(self, path: Path, table: dict[str, Any]) -> list[EventType]:
        file, on = self._file, (*path, "on")
        if "on" not in table:
            file.problem(path, 'no event type; give on = "user.updated", or a list of types')
            return []
        given = table["on"]
        types = file.texts(on, given) if isinstance(given, list) else [(on, given)]
        if not types:
            file.problem(on, "no event type; a rule without one would never run")
        found = []
        for place, name in types:
            if not isinstance(name, str) or not name:
                file.problem(place, f'{written(name)} is no event type; write on = "user.updated", or a list of types')
                continue
            event_class = class_of(name)
            found.append(EventType(name, None if event_class is UntypedEvent else event_class))
        return found

    def _templates(self, path: Path, table: dict[str, Any], event: EventType) -> Iterator[Template]:
        key = str(path[-1])
        for place, text in self._file.texts(path, table.get(key, [])):
            try:
                template = parse(text, event.fields, event.name)
                if key == "namespaces" and not template.names:
                    check_namespace(template.text)
            except ConfigurationError as error:
                self._file.problem(place, str(error))
            else:
                yield template

    def _conditions(self, path: Path, given: Any, event: EventType) -> dict[str, frozenset[Any]]:
        if not isinstance(given, dict):
            self._file.problem(path, f'{written(given)} is not a table; write when = {{ plan = ["pro", "team"] }}')
            return {}
        found = {}
        for name, value in given.items():
            place = (*path, name)
            if event.fields is not None and name not in event.fields:
                self._file.problem(place, f"{event.name} has no {name!r}; {nearest(name, event.fields)}")
                continue
            values = self._file.elements(place, value) if isinstance(value, list) else [(place, value)]
            if not values:
                self._file.problem(place, "an empty list, which nothing is in; give the values that the rule is for")
            found[name] = frozenset(self._accepted(one, event, name, accepted) for one, accepted in values)
        return found

    def _accepted(self, path: Path, event: EventType, name: str, value: Any) -> Any:
        try:
            if event.event_class is not None and name in event.event_class.model_fields:
                value = _field_value(event.event_class, name, value)
            return comparable(value, name)
        except ArgumentError:
            self._file.problem(path, f"{written(value)} is no value to compare with; give a text, a number or a date")
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"]
            self._file.problem(path, f"{event.name}: {name} is never {written(value)}: {said}")
        return None

    def _schedule(self, path: Path, table: dict[str, Any]) -> None:
        file, before = self._file, self._file.problems
        file.keys(path, table, _SCHEDULE_KEYS)
        fields = {
            name: self._cron_field((*path, name), table.get(name, 0 if name == "second" else None))
            for name in CRON_RANGES
        }
        if "warm" not in table:
            file.problem(path, 'no warm; give warm = "module:function", or { hot = "namespace" }')
            return
        warm = self._warms.for_schedule((*path, "warm"), table["warm"])
        if file.problems == before and (problem := never_comes(fields)) is not None:
            file.problem((*path, "day"), problem)
        if warm is not None:
            self._rules.schedules.append(Schedule(warm, **fields, place=file.place(path)))

    def _cron_field(self, path: Path, given: Any) -> CronField:
        before = self._file.problems
        low, high = CRON_RANGES[str(path[-1])]
        for place, number in self._file.elements(path, given) if isinstance(given, list) else [(path, given)]:
            if number is not None and (type(number) is not int or not low <= number <= high):
                self._file.problem(
                    place, f"{path[-1]}: {written(number)} is not a number from {low} to {high}, or a list of them"
                )
        if given == []:
            self._file.problem(path, f"{path[-1]}: an empty list; leave it out for every one")
        if self._file.problems > before:
            return None
        return set(given) if isinstance(given, list) else given


def _field_value(event_class: type[Event], name: str, value: Any) -> Any:
    field = event_class.model_fields[name]
    return TypeAdapter[Any](field.rebuild_annotation()).validate_python(value)


def _rule_of(
    invalidates: Invalidates, calls: list[Callable[[ValueOf], Warm | Hot]], conditions: Mapping[str, frozenset[Any]]
) -> Rule:
    invalidations = invalidation_of(invalidates.namespaces, invalidates.tags)
    if not (calls or conditions or invalidates.everything):
        return invalidations

    def rule(event: Event) -> Iterator[Invalidate | Warm | Hot]:
        if not holds(conditions, event):
            return
        if invalidates.everything:
            yield Invalidate(everything=True)
        yield from invalidations(event)
        yield from warms_of(event, calls)

    return rule
