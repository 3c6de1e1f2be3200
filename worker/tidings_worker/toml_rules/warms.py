"""The warms of a rules file: which function, importable and cached, and whether it can be called.

In a rule parameters get the event's fields of the same name, unless ``with`` gives them; a schedule has ``with`` alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tidings import Event
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError, PermanentError, TemplateError
from tidings.templates import parse

from tidings_worker.calls import check_same
from tidings_worker.importing import cached_function_at, nearest
from tidings_worker.mapping import names_of
from tidings_worker.plans import Hot, Warm

from .calls import Argument, ValueOf, call_of, literal_of, parameters_of
from .lines import Path
from .toml_file import TomlFile, written

_WARM_KEYS = ("call", "with", "hot", "top")


class FileCall(NamedTuple):
    """A warm as it stands in the file, before it is known for which event."""

    path: Path
    function: Described[Any, Any]
    given: Mapping[str, Any]


class EventType(NamedTuple):
    """One type of event that a rule is for."""

    name: str
    event_class: type[Event] | None

    @property
    def fields(self) -> set[str] | None:
        """The names that its data have; None: only an event will say."""
        return names_of(self.event_class)


class WarmReader:
    """Makes the warms of one file, noting in it what is wrong with them."""

    def __init__(self, file: TomlFile) -> None:
        self._file = file
        self._functions: dict[str, Described[Any, Any] | ConfigurationError] = {}

    def listed(self, path: Path, table: dict[str, Any]) -> list[FileCall | Hot]:
        """Return the warms of a rule's list."""
        given = self._file.elements((*path, "warm"), table.get("warm", []))
        return [warm for place, value in given if (warm := self._warm(place, value)) is not None]

    def _warm(self, path: Path, value: Any) -> FileCall | Hot | None:
        file = self._file
        table = {"call": value} if isinstance(value, str) else value
        if not isinstance(table, dict) or ("call" in table) == ("hot" in table):
            file.problem(path, 'a warm is "module:function", { call = "module:function" } or { hot = "namespace" }')
            return None
        file.keys(path, table, _WARM_KEYS)
        if "hot" in table:
            return self._hot(path, table)
        if "top" in table:
            file.problem((*path, "top"), 'top is for { hot = "namespace" }')
        given = table.get("with", {})
        if not isinstance(given, dict):
            file.problem((*path, "with"), f'{written(given)} is not a table; write with = {{ user_id = "{{id}}" }}')
            given = {}
        function = self._function(path if isinstance(value, str) else (*path, "call"), table["call"])
        if function is None:
            return None
        parameters = parameters_of(function)
        for name in given.keys() - parameters:
            file.problem((*path, "with", name), f"{function.identity} takes no {name!r}; {nearest(name, parameters)}")
        return FileCall(path, function, {name: value for name, value in given.items() if name in parameters})

    def _hot(self, path: Path, table: dict[str, Any]) -> Hot | None:
        if "with" in table:
            self._file.problem((*path, "with"), "with is for a call; what is read most has its arguments")
        try:
            return Warm.hot(table["hot"], table.get("top", 100))
        except ArgumentError as error:
            self._file.problem((*path, "hot"), str(error))
        except ConfigurationError as error:
            self._file.problem((*path, "top"), str(error))
        return None

    def _function(self, path: Path, text: Any) -> Described[Any, Any] | None:
        """Import a cached function, or note why that cannot be."""
        if not isinstance(text, str):
            self._file.problem(path, f'{written(text)} is no function; write "module:function"')
            return None
        if text not in self._functions:  # once: importing again what fails runs it again
            try:
                self._functions[text] = cached_function(text)
            except ConfigurationError as error:
                self._functions[text] = error
        found = self._functions[text]
        if isinstance(found, ConfigurationError):
            self._file.problem(path, str(found))
            return None
        return found

    def for_event(self, warm: FileCall | Hot, event: EventType) -> Callable[[ValueOf], Warm | Hot] | None:
        """Return what makes a warm of the data of events of one type."""
        if isinstance(warm, Hot):
            return lambda _: warm
        given = self._arguments(warm, event)
        if event.fields is not None:
            self._lacking(warm, event.fields | given.keys(), f"which {event.name} does not have")
        return call_of(warm.function, given, typed=event.fields is not None, where=event.name)

    def _arguments(self, warm: FileCall, event: EventType | None) -> dict[str, Argument]:
        """Return what `with` gives; without an event there is nothing that a template could name."""
        arguments: dict[str, Argument] = {}
        for name, value in warm.given.items():
            try:
                if not isinstance(value, str) or not {"{", "}"} & set(value):
                    arguments[name] = literal_of(warm.function, name, value)
                elif event is None:
                    raise TemplateError(f"{value!r} is a template, and a schedule has no event; write a value")  # noqa: TRY301
                else:
                    arguments[name] = parse(value, event.fields, event.name)
            except ArgumentError as error:
                said = f"{written(value)}: {error}"
                self._file.problem((*warm.path, "with", name), said)
                arguments[name] = None
            except TemplateError as error:
                self._file.problem((*warm.path, "with", name), str(error))
                arguments[name] = None
        return arguments

    def _lacking(self, warm: FileCall, known: set[str], why: str) -> bool:
        lacking = [name for name, required in parameters_of(warm.function).items() if required and name not in known]
        if lacking:
            cure = ", ".join(f"{name} = …" for name in lacking)
            needs = f"{warm.function.identity} needs {', '.join(lacking)}"
            self._file.problem(warm.path, f"{needs}, {why}; give it with = {{ {cure} }}")
        return bool(lacking)

    def for_schedule(self, path: Path, value: Any) -> Warm | Hot | None:
        """Return the warm of a schedule; None: there is something wrong with it."""
        warm = self._warm(path, value)
        if not isinstance(warm, FileCall):
            return warm
        before = self._file.problems
        given = self._arguments(warm, None)
        if self._file.problems > before or self._lacking(warm, set(given), "and a schedule has no event"):
            return None
        try:
            return call_of(warm.function, given, typed=True, where="")(_nothing)
        except PermanentError as error:
            self._file.problem(path, str(error))
            return None


def cached_function(text: str) -> Described[Any, Any]:
    """Import a cached function by ``module:function``. Raises ConfigurationError unless jobs can name it, too."""
    found = cached_function_at(text)
    check_same(found)
    return found


def _nothing(name: str) -> Any:
    raise KeyError(name)
