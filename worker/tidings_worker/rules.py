"""Rules: event -> Plan. Pure: what an event makes wrong is decided here, and done elsewhere."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from tidings import Envelope, Event
from tidings.described import Described
from tidings.errors import ConfigurationError, PermanentError
from tidings.events import class_of, shorten, type_of
from tidings.keys import check_namespace
from tidings.templates import Template, parse

from .calls import check_same
from .mapping import invalidation_of, names_of, warm_of, warms_of
from .places import Place, name_and_place, place_of_caller
from .plans import Draft, Hot, Invalidate, Plan, Warm
from .schedules import CronField, Schedule, never_comes, problem_of

__all__ = ["Invalidates", "Registered", "Rule", "Rules", "Schedule", "Unmet"]

Rule = Callable[..., Any]
F = TypeVar("F", bound=Rule)


class Invalidates(NamedTuple):
    """What a rule invalidates, as far as it says so before an event comes."""

    namespaces: tuple[Template, ...] = ()
    tags: tuple[Template, ...] = ()
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Registered:
    """One rule for one type of event, and what is known of it before it runs."""

    #: what it is called in causes and messages, with its place
    name: str
    event_type: str
    event_class: type[Event] | None
    rule: Rule
    place: Place
    #: cached functions that it warms
    warms: tuple[Described[Any, Any], ...] = ()
    #: None: only running it will tell
    invalidates: Invalidates | None = None


class Unmet(NamedTuple):
    """What rules could not do about an event; of what they did nothing is lost."""

    #: why, where no repetition can help
    problems: list[str]
    #: what else a rule raised; several of them are an ExceptionGroup
    error: Exception | None


class Rules:
    """What to invalidate and warm for which events. Fill it at import; the worker reads it."""

    def __init__(self) -> None:
        self._by_type: dict[str, list[Registered]] = {}
        self.schedules: list[Schedule] = []

    def on(self, event: type[Event] | str) -> Callable[[F], F]:
        """Decorate a function of one event that yields or returns `Invalidate`s and `Warm`s, or None.

        It may run more than once for an event and must decide from the event alone. A string names a type without a
        class; the function then gets whatever class is defined for the type, else an event with the data as attributes.
        """
        event_type, event_class = _type_and_class(event)

        def register(rule: F) -> F:
            name, place = name_and_place(rule)
            where = f"{name} ({place})"
            if inspect.iscoroutinefunction(rule) or inspect.isasyncgenfunction(rule):
                raise ConfigurationError(f"{where}: a rule decides without waiting: write def, not async def")
            self.add(Registered(where, event_type, event_class, rule, place))
            return rule

        return register

    def map(
        self,
        event: type[Event] | str,
        *,
        namespaces: Sequence[str] = (),
        tags: Sequence[str] = (),
        warm: Sequence["Described[Any, Any] | Warm | Hot"] = (),
    ) -> None:
        """Invalidate templates over the event's data, and warm functions whose parameters are named like its fields.

        Raises ConfigurationError for a template or a function that names what the event's class does not have; for a
        type without a class that is only known when an event comes, which then goes to the dead letters.
        """
        event_type, event_class = _type_and_class(event)
        known = names_of(event_class)
        place = place_of_caller()
        where = f"rules.map({event_type!r}) ({place})"
        for given in (namespaces, tags):
            if isinstance(given, str):
                raise ConfigurationError(f"{where}: {given!r} is one string where a list of them belongs")
        namespace_templates = [parse(text, known, f"{where}, namespaces") for text in namespaces]
        tag_templates = [parse(text, known, f"{where}, tags") for text in tags]
        if not isinstance(warm, Sequence):
            raise ConfigurationError(f"{where}: warm={warm!r}: write warm=[…]")
        calls = [warm_of(item, known, where) for item in warm]
        for template in namespace_templates:
            if not template.names:
                check_namespace(template.text)
        if not (namespace_templates or tag_templates or calls):
            raise ConfigurationError(f"{where}: maps to nothing; give namespaces=, tags= or warm=")

        invalidations = invalidation_of(namespace_templates, tag_templates)

        def warming(event: Event) -> Iterable[Invalidate | Warm | Hot]:
            yield from invalidations(event)
            yield from warms_of(event, calls)

        named = (item.cached_function if isinstance(item, Warm) else item for item in warm if not isinstance(item, Hot))
        rule: Rule = warming if calls else invalidations
        known_before = Invalidates(tuple(namespace_templates), tuple(tag_templates))
        self.add(Registered(where, event_type, event_class, rule, place, tuple(named), known_before))

    def schedule(
        self,
        warm: Warm | Hot,
        *,
        month: CronField = None,
        day: CronField = None,
        weekday: CronField = None,
        hour: CronField = None,
        minute: CronField = None,
        second: CronField = 0,
    ) -> None:
        """Refresh a call, or what is read most, when the cron fields say, in the worker's time zone, once for all.

        Raises ConfigurationError for a field out of its range, which would never come.
        """
        if not isinstance(warm, Warm | Hot):
            raise ConfigurationError(f"rules.schedule({warm!r}): a schedule is for a Warm(…)")
        fields = {"month": month, "day": day, "weekday": weekday, "hour": hour, "minute": minute, "second": second}
        problems = [problem for name, given in fields.items() if (problem := problem_of(name, given)) is not None]
        if problem := "; ".join(problems) or never_comes(fields):
            raise ConfigurationError(f"rules.schedule({warm!r}): {problem}")
        self.schedules.append(Schedule(warm, month, day, weekday, hour, minute, second, place_of_caller()))

    def add(self, registered: Registered) -> None:
        """Add a rule that was made otherwise than by `on` and `map`."""
        self._by_type.setdefault(registered.event_type, []).append(registered)

    def include(self, other: "Rules") -> None:
        """Add the rules and schedules that another `Rules` has now, after those that are here."""
        for registered in other.registered:
            self.add(registered)
        self.schedules.extend(other.schedules)

    def simulate(self, event: Event) -> Plan:
        """Return what these rules would do about an event, without doing it. Raises what they raise."""
        simulated = Envelope("simulated", type_of(event), "", datetime.fromtimestamp(0, UTC), {})
        return self._plan(simulated, event)

    def plan(self, envelope: Envelope) -> Plan:
        """Return what to do about an event as the stream has it.

        What one rule cannot do about it (data that do not fit the class, that a template or a warm cannot use) is among
        the plan's problems, and takes nothing from what it and the others do. Raises whatever else a rule raises; when
        several do, an ExceptionGroup.
        """
        return self._plan(envelope)

    def plan_into(self, draft: Draft, envelope: Envelope, event: Event | None = None) -> Unmet:
        """Add to a draft what to do about an event; return what rules could not do.

        What a rule raises, whatever it is, takes nothing from what it asked for before and from what the others ask
        for. The event is read from the envelope, for each rule anew and in the rule's class, unless it is given.
        """
        problems: list[str] = []
        errors: list[Exception] = []
        for entry in self._by_type.get(envelope.type, ()):
            try:
                own = (entry.event_class or class_of(envelope.type)).read(envelope) if event is None else event
                draft.take(entry.rule(own), envelope, entry.name)
            except PermanentError as error:
                problems.append(shorten(f"{type(error).__name__}: {entry.name}: {error}"))
            except Exception as error:  # noqa: BLE001 a rule is the service's code, and may raise anything
                errors.append(error)
        if len(errors) > 1:
            errors = [ExceptionGroup(f"{len(errors)} rules failed", errors)]
        return Unmet(problems, errors[0] if errors else None)

    def check(self) -> None:
        """Raise ConfigurationError for a cached function that a rule names and a worker cannot import."""
        for registered in self.registered:
            for function in (*registered.warms, *_cached_functions(registered.rule)):
                check_same(function)
        for warm in (schedule.warm for schedule in self.schedules if isinstance(schedule.warm, Warm)):
            check_same(warm.cached_function)

    @property
    def event_types(self) -> frozenset[str]:
        """The types that some rule is for."""
        return frozenset(self._by_type)

    @property
    def registered(self) -> tuple[Registered, ...]:
        """Every rule, those for one type in the order in which they run."""
        return tuple(registered for rules in self._by_type.values() for registered in rules)

    def _plan(self, envelope: Envelope, event: Event | None = None) -> Plan:
        draft = Draft()
        problems, error = self.plan_into(draft, envelope, event)
        if error is not None:
            raise error
        return draft.plan(ruled=envelope.type in self._by_type, problems=problems)


def _cached_functions(rule: Rule) -> list[Described[Any, Any]]:
    """Return the cached functions that a rule's code names."""
    if not inspect.isfunction(inspect.unwrap(rule)):
        return []  # a partial or a callable object: what it names is seen when it runs
    variables = inspect.getclosurevars(inspect.unwrap(rule))
    named = (*variables.globals.values(), *variables.nonlocals.values())
    return [value for value in named if isinstance(value, Described)]


def _type_and_class(event: Any) -> tuple[str, type[Event] | None]:
    if isinstance(event, str):
        if not event:
            raise ConfigurationError("a rule for the empty event type")
        return event, None
    if not isinstance(event, type) or not issubclass(event, Event):
        raise ConfigurationError(f"rules.on({event!r}): neither an Event class with a type nor a type's name")
    if not event.event_type:
        raise ConfigurationError(f'{event!r} has no type: class {event.__name__}(Event, type="…")')
    return event.event_type, event
