"""What is wrong, given what rules ask for and readers depend on: decisions, each with its line and its cure. Pure."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from difflib import get_close_matches

from tidings_worker.places import Place
from tidings_worker.rules import Registered

from .examples import TEXTS
from .readers import Reader
from .rule_code import Asked
from .shapes import HOLE, Shape, meet
from .source import Spot
from .texts import Names, Text
from .trial import Trial
from .usage import Usage

#: Every code, and what it stands for.
CODES = {
    "unruled-event": "an event that is published, and no rule is for it",
    "unpublished-type": "a rule for a type that nobody publishes",
    "unread-tag": "a tag that no reader has",
    "unread-namespace": "a namespace that no reader is in",
    "no-readers": "no reader was seen, so that nothing can be said of tags and namespaces",
    "uninvalidated-reader": "a reader that nothing invalidates",
    "unbound-warm": "a warm whose arguments cannot be those of its function",
    "unimportable-warm": "a warm of a function that no worker can import",
    "unknown-field": "a rule reads what its event's class does not have",
    "not-yielded": "an Invalidate or Warm that is made and given to nobody",
    "repeated-tag": "the same tag twice",
    "failing-rule": "a rule that cannot do what it asks for, for an event that its class allows",
}

#: What could not be found out; never fails a run.
CANNOT_TELL = "cannot-tell"

#: The types that changes of tables have, see `tidings.debezium`: no class of ours publishes them.
_TABLE = re.compile(r"[^.]+\.[^.]+\.(created|updated|deleted)\Z")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, where, and what to do about it."""

    code: str
    spot: Spot
    message: str


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """One rule: what its code says, and what it did when it was tried."""

    registered: Registered
    spot: Spot
    asked: Asked
    trial: Trial

    @property
    def understood(self) -> bool:
        """Whether it is known what it may invalidate: its code says it, or it did so when it was tried."""
        return self.asked.understood or (self.trial.ran > 0 and not self.trial.errors and not self.trial.failures)

    @property
    def tags(self) -> list[Text]:
        """The tags that it is known to invalidate; what code does not say is known from trials."""
        return [*self.asked.tags.found, *self._tried(self.trial.tags, self.asked.tags.found)]

    @property
    def namespaces(self) -> list[Text]:
        """The namespaces that it is known to invalidate."""
        return [*self.asked.namespaces.found, *self._tried(self.trial.namespaces, self.asked.namespaces.found)]

    def _tried(self, names: Iterable[str], said: Iterable[Text]) -> list[Text]:
        if self.asked.understood:
            return []
        shapes = list(dict.fromkeys(map(_tried_shape, sorted(names))))
        return [Text(shape, self.spot) for shape in shapes if not any(meet(shape, one.shape) for one in said)]


def _tried_shape(name: str) -> Shape:
    """Return the shape of what a rule asked for when it was tried: what an example's value stands in is a hole."""
    parts = [HOLE if part in TEXTS else part for part in name.split(":")]
    return Shape.of([piece for part in parts for piece in (":", part)][1:])


@dataclass(frozen=True, slots=True)
class Served:
    """What a server has seen."""

    #: types of the events in its streams
    types: AbstractSet[str] = frozenset()
    #: types that workers have counted as having no rule
    unruled: AbstractSet[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is decided from."""

    rules: list[RuleFacts]
    #: warms of what is hot at times: the namespaces, and where
    scheduled: list[Text]
    readers: list[Reader]
    written: Names
    usage: Usage
    #: the types of the project's event classes, and where they stand
    classes: Mapping[str, Spot]
    #: types that some loaded class has
    known_types: AbstractSet[str]
    #: where something is said that has no place in the code
    target: Spot = field(default_factory=lambda: Spot(Place("?", 1)))
    served: Served = field(default_factory=Served)


def findings(facts: Facts) -> Iterator[Finding]:
    """Yield everything that is wrong, and what cannot be told, in no order."""
    yield from _unruled(facts)
    yield from _unpublished(facts)
    if facts.readers or facts.usage.read_tags.found or facts.usage.read_namespaces.found:
        yield from _unread_tags(facts)
        yield from _unread_namespaces(facts)
    elif any(rule.tags or rule.namespaces for rule in facts.rules):
        yield Finding("no-readers", facts.target, "no cached function was seen; name their modules with --module")
    yield from _uninvalidated(facts)
    yield from _not_understood(facts)
    for rule in facts.rules:
        yield from _in_rule(rule)
        yield from _unknown_fields(rule, facts.rules)
    for reader in facts.readers:
        yield from _repeated(reader.templates, reader.spot)


# Events and rules


def _unruled(facts: Facts) -> Iterator[Finding]:
    ruled = {rule.registered.event_type for rule in facts.rules}
    places = {**dict.fromkeys(facts.served.unruled, facts.target), **facts.usage.published, **facts.classes}
    for event_type, spot in places.items():
        if event_type in ruled:
            continue
        seen = ", as workers have counted" if event_type in facts.served.unruled else ""
        near = _near(event_type, ruled)
        yield Finding(
            "unruled-event",
            spot,
            f"no rule is for the event {event_type!r}{seen}, so it invalidates nothing; {near}write one, "
            "or one that returns None if nothing becomes wrong by it",
        )


def _unpublished(facts: Facts) -> Iterator[Finding]:
    known = {*facts.known_types, *facts.usage.published, *facts.served.types}
    for rule in facts.rules:
        event_type = rule.registered.event_type
        if event_type in known:
            continue
        change = _TABLE.fullmatch(event_type)
        near = _near(event_type, known if change is None else (one for one in known if one.endswith(f".{change[1]}")))
        if near or change is None:
            message = f"no code that was seen publishes {event_type!r}: no class has that type, and nothing names it"
            cure = "correct it, name the publisher's module with --module, or silence this if it comes from elsewhere"
            yield Finding("unpublished-type", rule.spot, f"{message}; {near}{cure}")
        else:
            message = f"{event_type!r} may be the change of a table, which no code here publishes"
            yield Finding(CANNOT_TELL, rule.spot, message)


def _near(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, sorted(known), 1, 0.85)
    return f"is {found[0]!r} meant? " if found else ""


# Tags, namespaces and readers


def _unread_tags(facts: Facts) -> Iterator[Finding]:
    read = {text.shape for reader in facts.readers for text in reader.tags.found}
    read |= {text.shape for text in facts.usage.read_tags.found}
    opaque = [reader.function for reader in facts.readers if not reader.tags.complete]
    if not facts.usage.read_tags.complete:
        opaque.append("a call that names its own entries")
    for rule in facts.rules:
        unread = [text for text in rule.tags if not any(meet(text.shape, shape) for shape in read)]
        for text in {text.spot.place if text.spot is rule.spot else text: text for text in unread}.values():
            spot = text.spot.with_lines(*rule.spot.lines)
            message = f"no reader has the tag {_quoted(text.shape)}"
            if opaque:
                yield Finding(CANNOT_TELL, spot, f"{message}, unless the tags of {opaque[0]} come to it")
            else:
                near = _near(str(text.shape), map(str, read))
                yield Finding("unread-tag", spot, f"{message}; {near}give it to the readers that it makes wrong")


def _not_understood(facts: Facts) -> Iterator[Finding]:
    for rule in facts.rules:
        if not rule.understood:
            why = f": {min(rule.trial.errors)}, for an example" if rule.trial.errors else ""
            message = f"what {rule.registered.name} invalidates is only known when it runs{why}"
            yield Finding(CANNOT_TELL, rule.spot, message)


def _unread_namespaces(facts: Facts) -> Iterator[Finding]:
    read = {Shape((reader.namespace,)) for reader in facts.readers}
    read |= {text.shape for text in facts.usage.read_namespaces.found}
    wanted = [
        Text(text.shape, text.spot.with_lines(*rule.spot.lines)) for rule in facts.rules for text in rule.namespaces
    ]
    hot = [*facts.usage.hot.found, *facts.scheduled]
    said = {str(text.shape) for text in hot}
    hot += [Text(Shape((name,)), rule.spot) for rule in facts.rules for name in sorted(rule.trial.hot - said)]
    distinct = {(text.shape, text.spot.place): text for text in (*wanted, *hot)}
    for text in distinct.values():
        if any(meet(text.shape, shape) for shape in read):
            continue
        message = f"no reader is in the namespace {_quoted(text.shape)}"
        if facts.usage.read_namespaces.complete:
            near = _near(str(text.shape), map(str, read))
            yield Finding("unread-namespace", text.spot, f"{message}; {near}name one that cached functions have")
        else:
            yield Finding(CANNOT_TELL, text.spot, f"{message}, unless a call that names its own entries is")


def _uninvalidated(facts: Facts) -> Iterator[Finding]:
    usage, rules = facts.usage, facts.rules
    if usage.everything or any(rule.asked.everything or rule.trial.everything for rule in rules):
        return
    tags = {text.shape for rule in rules for text in rule.tags}
    tags |= {text.shape for text in (*facts.written.found, *usage.invalidated_tags.found)}
    namespaces = {text.shape for rule in rules for text in rule.namespaces}
    namespaces |= {text.shape for text in usage.invalidated_namespaces.found}
    opaque = [rule.registered.name for rule in rules if not rule.understood]
    if not facts.written.complete:
        opaque.append("a cache_write")
    for reader in facts.readers:
        by_tag = any(meet(text.shape, shape) for text in reader.tags.found for shape in tags)
        by_namespace = any(meet(Shape((reader.namespace,)), shape) for shape in namespaces)
        if by_tag or by_namespace or reader.function in usage.invalidated_functions:
            continue
        message = f"nothing invalidates {reader.function}"
        has = f"its namespace {reader.namespace!r}"
        has = (
            f"{has} or its tags {', '.join(_quoted(t.shape) for t in reader.tags.found)}" if reader.tags.found else has
        )
        if not reader.tags.complete:
            yield Finding(CANNOT_TELL, reader.spot, f"{message}, unless its tags, which are made when it is called, do")
        elif opaque:
            yield Finding(CANNOT_TELL, reader.spot, f"{message}, unless {opaque[0]} does")
        else:
            cure = f"give a rule {has}" if reader.tags.found else f"give it tags, or a rule {has}"
            yield Finding("uninvalidated-reader", reader.spot, f"{message}, so it is old until its ttl ends; {cure}")


def _quoted(shape: Shape) -> str:
    return repr(str(shape))


# One rule by itself


def _in_rule(rule: RuleFacts) -> Iterator[Finding]:
    asked, lines = rule.asked, rule.spot.lines
    wrong: set[int] = set()
    for warm in asked.warms:
        spot = warm.spot.with_lines(*lines)
        if warm.problem is not None:
            wrong |= {warm.spot.place.line}
            yield Finding("unbound-warm", spot, f"Warm({warm.function}): {warm.problem}; give it what a call is given")
        elif warm.unimportable is not None:
            wrong |= {warm.spot.place.line}
            yield Finding("unimportable-warm", spot, warm.unimportable)
    for spot in asked.dropped:
        yield Finding("not-yielded", spot.with_lines(*lines), "made, and given to nobody; write yield before it")
    for place, problem in rule.trial.failures.items():
        if place.line not in wrong:
            yield Finding("failing-rule", Spot(place, lines), problem)
    if rule.registered.invalidates is not None:
        yield from _repeated([template.text for template in rule.registered.invalidates.tags], rule.spot)


def _unknown_fields(rule: RuleFacts, rules: Iterable[RuleFacts]) -> Iterator[Finding]:
    """Yield reads of what no class has for which the function is a rule: it may know which event it was given."""
    same = [other.asked for other in rules if other.registered.rule == rule.registered.rule]
    everywhere = [{spot.place for spot, _ in asked.unknown_fields} for asked in same]
    for spot, problem in rule.asked.unknown_fields:
        if all(spot.place in places for places in everywhere):
            yield Finding("unknown-field", spot.with_lines(*rule.spot.lines), problem)


def _repeated(templates: Iterable[str], spot: Spot) -> Iterator[Finding]:
    for template, amount in Counter(templates).items():
        if amount > 1:
            yield Finding("repeated-tag", spot, f"the tag {template!r} is there {amount} times; take one away")
