"""Rules: event -> Plan. Pure: what an event makes wrong is decided here, and done elsewhere."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tidings import CachedFunction, Envelope, Event
from tidings.errors import ArgumentError, ConfigurationError
from tidings.events import class_of, type_of
from tidings.keys import ALL, namespace_token, tag_token
from tidings.templates import Template, parse

from .calls import check_importable, encode_call

RuleResult = "Invalidate | Warm | Iterable[Invalidate | Warm] | None"
Rule = Callable[..., Any]
F = TypeVar("F", bound=Rule)

#: arq's cron fields: a number, or a set of numbers; None: every one.
CronField = int | set[int] | None


@dataclass(frozen=True, kw_only=True)
class Invalidate:
    """Everything in these namespaces and under these tags is wrong now; `everything`: all of it."""

    namespaces: Sequence[str] = ()
    tags: Sequence[str] = ()
    everything: bool = False

    def __post_init__(self) -> None:
        """Refuse one string where a list belongs, and names that cannot be."""
        for word, given in (("namespaces", self.namespaces), ("tags", self.tags)):
            if isinstance(given, str):
                raise ConfigurationError(f"Invalidate({word}={given!r}): write {word}=[{given!r}]")
        self.token_names()

    def token_names(self) -> list[str]:
        """Return the names of the tokens that this changes."""
        everything = [ALL] if self.everything else []
        return [*everything, *map(namespace_token, self.namespaces), *map(tag_token, self.tags)]


class Warm:
    """Load this call of a cached function ahead of the next read.

    Raises ConfigurationError when the function is not one that a worker can import by name, and ArgumentError when the
    arguments do not bind to it or cannot travel in a job.
    """

    def __init__(self, function: CachedFunction[Any, Any], /, *args: Any, **kwargs: Any) -> None:
        check_importable(function)
        self.function = function.identity
        #: the arguments as JSON text, see `calls`
        self.arguments = encode_call(function, args, kwargs)
        #: the entry's key in Redis after the prefix and version: what makes two warms the same
        call = function.call_of(*args, **kwargs)
        self.name = f"{call.namespace}:{call.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Warm) and (self.name, self.arguments) == (other.name, other.arguments)

    def __hash__(self) -> int:
        return hash((self.name, self.arguments))

    def __repr__(self) -> str:
        return f"Warm({self.function}, {self.arguments})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one event or many: token names with their causes, and calls to load ahead."""

    causes: Mapping[str, str] = field(default_factory=dict)
    warms: tuple[Warm, ...] = ()
    #: whether any rule was for the event's type
    ruled: bool = False

    @property
    def namespaces(self) -> frozenset[str]:
        """The namespaces to invalidate."""
        return self._named("namespace:")

    @property
    def tags(self) -> frozenset[str]:
        """The tags to invalidate."""
        return self._named("tag:")

    @property
    def everything(self) -> bool:
        """Whether to invalidate everything."""
        return ALL in self.causes

    def _named(self, kind: str) -> frozenset[str]:
        return frozenset(name.removeprefix(kind) for name in self.causes if name.startswith(kind))


def merge(plans: Iterable[Plan]) -> Plan:
    """Return one plan that does what all of them ask for: 500 events may need three tokens and one warm.

    The first event to ask for a token is its cause; of two warms of one entry the last counts.
    """
    causes: dict[str, str] = {}
    warms: dict[str, Warm] = {}
    ruled = False
    for plan in plans:
        causes = {**plan.causes, **causes}
        warms.update((warm.name, warm) for warm in plan.warms)
        ruled = ruled or plan.ruled
    return Plan(causes, tuple(warms.values()), ruled)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A warm at the times that the cron fields name."""

    warm: Warm
    month: CronField
    day: CronField
    weekday: CronField
    hour: CronField
    minute: CronField
    second: CronField


@dataclass(frozen=True, slots=True)
class _Registered:
    name: str
    event_class: type[Event] | None
    rule: Rule


class Rules:
    """What to invalidate and warm for which events. Fill it at import; the worker reads it."""

    def __init__(self) -> None:
        self._by_type: dict[str, list[_Registered]] = {}
        self.schedules: list[Schedule] = []

    def on(self, event: type[Event] | str) -> Callable[[F], F]:
        """Decorate a function of one event that yields or returns `Invalidate`s and `Warm`s, or None.

        It may run more than once for an event and must decide from the event alone. A string names a type without a
        class; the function then gets whatever class is defined for the type, else an event with the data as attributes.
        """
        event_type, event_class = _type_and_class(event)

        def register(rule: F) -> F:
            if inspect.iscoroutinefunction(rule) or inspect.isasyncgenfunction(rule):
                raise ConfigurationError(f"{_place(rule)}: a rule decides without waiting: write def, not async def")
            self._add(event_type, _Registered(_place(rule), event_class, rule))
            return rule

        return register

    def map(
        self,
        event: type[Event] | str,
        *,
        namespaces: Sequence[str] = (),
        tags: Sequence[str] = (),
        warm: Sequence["CachedFunction[Any, Any] | Warm"] = (),
    ) -> None:
        """Invalidate templates over the event's data, and warm functions whose parameters are named like its fields.

        Raises ConfigurationError for a template or a function that names what the event's class does not have; for a
        type without a class that is only known when an event comes, which then goes to the dead letters.
        """
        event_type, event_class = _type_and_class(event)
        known = None if event_class is None else set(event_class.model_fields)
        where = f"rules.map({event_type!r})"
        for given in (namespaces, tags):
            if isinstance(given, str):
                raise ConfigurationError(f"{where}: {given!r} is one string where a list of them belongs")
        namespace_templates = [parse(text, known, f"{where}, namespaces") for text in namespaces]
        tag_templates = [parse(text, known, f"{where}, tags") for text in tags]
        calls = [_warm_of(item, known, where) for item in warm]
        if not (namespace_templates or tag_templates or calls):
            raise ConfigurationError(f"{where}: maps to nothing; give namespaces=, tags= or warm=")

        def mapped(event: Event) -> Iterable[Invalidate | Warm]:
            value_of = _value_of(event)
            yield Invalidate(
                namespaces=_rendered(namespace_templates, value_of), tags=_rendered(tag_templates, value_of)
            )
            for call in calls:
                yield call(value_of)

        self._add(event_type, _Registered(where, event_class, mapped))

    def schedule(
        self,
        warm: Warm,
        *,
        month: CronField = None,
        day: CronField = None,
        weekday: CronField = None,
        hour: CronField = None,
        minute: CronField = None,
        second: CronField = 0,
    ) -> None:
        """Refresh a call at the times the cron fields name, in the worker's time zone, once for all workers."""
        self.schedules.append(Schedule(warm, month, day, weekday, hour, minute, second))

    def simulate(self, event: Event) -> Plan:
        """Return what these rules would do about an event, without doing it. Raises what they raise."""
        return self._plan(type_of(event), "simulated", lambda _: event)

    def plan(self, envelope: Envelope) -> Plan:
        """Return what to do about an event as the stream has it.

        Raises EventError for data that do not fit the class, ArgumentError for data that a template or warm cannot use,
        and whatever a rule raises.
        """
        return self._plan(envelope.type, envelope.id, lambda cls: (cls or class_of(envelope.type)).read(envelope))

    def check(self) -> None:
        """Raise ConfigurationError for a rule that refers to a cached function that cannot be imported by name."""
        for registered in (r for rules in self._by_type.values() for r in rules):
            variables = inspect.getclosurevars(registered.rule)
            for value in (*variables.globals.values(), *variables.nonlocals.values()):
                if isinstance(value, CachedFunction):
                    check_importable(value)

    @property
    def event_types(self) -> frozenset[str]:
        """The types that some rule is for."""
        return frozenset(self._by_type)

    def _plan(self, event_type: str, event_id: str, event_as: Callable[[type[Event] | None], Event]) -> Plan:
        registered = self._by_type.get(event_type, ())
        causes: dict[str, str] = {}
        warms: list[Warm] = []
        for entry in registered:
            for item in _items(entry, entry.rule(event_as(entry.event_class))):
                if isinstance(item, Warm):
                    warms.append(item)
                    continue
                for name in item.token_names():
                    causes.setdefault(name, f"event:{event_id} rule:{entry.name}")
        return Plan(causes, tuple(warms), bool(registered))

    def _add(self, event_type: str, registered: _Registered) -> None:
        self._by_type.setdefault(event_type, []).append(registered)


def _items(entry: _Registered, result: Any) -> Iterable["Invalidate | Warm"]:
    items = [result] if isinstance(result, Invalidate | Warm) else [] if result is None else result
    if not isinstance(items, Iterable):
        raise ConfigurationError(f"{entry.name}: a rule yields Invalidate and Warm, not {type(result).__name__}")
    for item in items:
        if not isinstance(item, Invalidate | Warm):
            raise ConfigurationError(f"{entry.name}: a rule yields Invalidate and Warm, not {type(item).__name__}")
        yield item


def _type_and_class(event: type[Event] | str) -> tuple[str, type[Event] | None]:
    if isinstance(event, str):
        if not event:
            raise ConfigurationError("a rule for the empty event type")
        return event, None
    if not event.event_type:
        raise ConfigurationError(f'{event!r} has no type: class {event.__name__}(Event, type="…")')
    return event.event_type, event


def _place(rule: Rule) -> str:
    code = inspect.unwrap(rule).__code__
    return f"{rule.__module__}.{rule.__qualname__} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _value_of(event: Event) -> Callable[[str], Any]:
    def value_of(name: str) -> Any:
        if name in type(event).model_fields or name in (event.model_extra or {}):
            return getattr(event, name)
        raise KeyError(f"the event has no {name!r}")

    return value_of


def _rendered(templates: list[Template], value_of: Callable[[str], Any]) -> list[str]:
    return [template.render(value_of) for template in templates]


def _warm_of(
    item: "CachedFunction[Any, Any] | Warm", known: set[str] | None, where: str
) -> Callable[[Callable[[str], Any]], Warm]:
    if isinstance(item, Warm):
        return lambda _: item
    if not isinstance(item, CachedFunction):
        raise ConfigurationError(f"{where}: warm={item!r} is not a cached function")
    check_importable(item)
    parameters = inspect.signature(item.uncached).parameters.values()
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}}
    named = {p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    if known is not None and (lacking := required - known):
        raise ConfigurationError(f"{where}: {item.identity} needs {sorted(lacking)}, which the event does not have")

    def bound(value_of: Callable[[str], Any]) -> Warm:
        arguments = {}
        for name in sorted(named):
            try:
                arguments[name] = value_of(name)
            except KeyError as error:
                if name in required:
                    raise ArgumentError(f"{where}: {item.identity}: {error}") from None
        return Warm(item, **arguments)

    return bound
