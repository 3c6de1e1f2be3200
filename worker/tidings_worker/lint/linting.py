"""From rules and modules to a report: gathers what `findings` decides from, and leaves out what is silenced."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tidings import Event
from tidings.errors import ConfigurationError

from tidings_worker.places import Place
from tidings_worker.plans import Hot
from tidings_worker.registry import shown_path
from tidings_worker.rules import Rules

from .findings import CANNOT_TELL, CODES, Facts, Finding, RuleFacts, Served, findings
from .readers import readers_of, written
from .rule_code import read, spot_of_rule
from .shapes import Shape
from .source import Spot, file_of, spot_of_class
from .texts import Text
from .trial import try_out
from .usage import usage_of


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, by file and line; `notes` are what cannot be told, and fail nothing."""

    found: list[Finding]
    notes: list[Finding]
    rules: int
    readers: int


def lint(
    rules: Rules,
    modules: Iterable[ModuleType],
    *,
    target: str = "",
    served: Served | None = None,
    ignored: Collection[str] = (),
) -> Report:
    """Compare rules with the readers and events of these modules, and return what does not fit together.

    `target` is the file that stands for what has no place in the code; codes in `ignored` are left out. Raises
    ConfigurationError for a code that there is not.
    """
    if unknown := sorted(set(ignored) - CODES.keys()):
        raise ConfigurationError(f"no finding has the code {unknown[0]!r}; there is: {', '.join(CODES)}")
    modules = list(modules)
    names = [module.__name__ for module in modules]
    classes = event_classes(names)
    facts = Facts(
        rules=[RuleFacts(one, spot_of_rule(one), read(one), try_out(one)) for one in rules.registered],
        scheduled=_scheduled(rules),
        readers=readers_of(names),
        written=written(),
        usage=usage_of(modules),
        classes={event_class.event_type: spot_of_class(event_class) for event_class in classes},
        known_types={event_class.event_type for event_class in event_classes(None)},
        target=Spot(Place(target or "?", 1)),
        served=served or Served(),
    )
    said = [one for one in dict.fromkeys(findings(facts)) if one.code not in ignored and not _is_silenced(one)]
    said.sort(key=lambda one: (shown_path(one.spot.place.file), one.spot.place.line, one.code, one.message))
    return Report(
        [one for one in said if one.code != CANNOT_TELL],
        [one for one in said if one.code == CANNOT_TELL],
        len(facts.rules),
        len(facts.readers),
    )


def event_classes(modules: Sequence[str] | None) -> list[type[Event]]:
    """Return the event classes with a type that these modules define; None: all that are loaded."""
    found: list[type[Event]] = []
    to_see: list[Any] = [Event]
    while to_see:
        below = to_see.pop().__subclasses__()
        to_see.extend(below)
        found.extend(below)
    typed = {one for one in found if one.event_type and (modules is None or one.__module__ in modules)}
    return sorted(typed, key=lambda one: one.event_type)


def _scheduled(rules: Rules) -> list[Text]:
    hot = [one for one in rules.schedules if isinstance(one.warm, Hot) and one.place is not None]
    return [Text(Shape((one.warm.namespace,)), Spot(one.place)) for one in hot]  # type: ignore[union-attr, arg-type]


def _is_silenced(finding: Finding) -> bool:
    return file_of(finding.spot.place.file).silenced(finding.spot, finding.code)
