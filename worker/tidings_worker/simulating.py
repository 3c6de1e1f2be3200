"""What one event would do, rule by rule, without doing it. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from tidings.calls import decode_call
from tidings.errors import PermanentError
from tidings.events import Envelope, class_of, shorten
from tidings.keys import Keyspace

from .lint.readers import Reader
from .lint.shapes import Shape, meet
from .lint.trial import LONGEST
from .places import Place
from .plans import Draft, Hot, Warm
from .rules import Registered, Rules
from .timelimit import EndlessError, within


@dataclass(frozen=True, slots=True)
class Planned:
    """A call that would be loaded ahead: as it would be written, and the key of its entry."""

    call: str
    key: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What one rule would do."""

    rule: str
    place: Place
    namespaces: tuple[str, ...]
    tags: tuple[str, ...]
    everything: bool
    warms: tuple[Planned, ...]
    #: of which namespaces what is read most would be loaded, and how many calls at most
    hot: tuple[Hot, ...]
    #: why it cannot do all that it was asked; what it does is done all the same
    problem: str | None
    #: whether the event would be tried again, because something other than its data may be wrong; None: never, since
    #: the worker would wait for the rule
    again: bool | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A cached function of which entries would be wrong, and by which names."""

    function: str
    place: Place
    by: tuple[str, ...]


def effects(rules: Rules, envelope: Envelope, keys: Keyspace) -> list[Effect]:
    """Return what each rule for an event's type would do about it, in the order in which they run."""
    return [_effect(one, envelope, keys) for one in rules.registered if one.event_type == envelope.type]


def _effect(registered: Registered, envelope: Envelope, keys: Keyspace) -> Effect:
    draft, problem = Draft(), None
    again: bool | None = False
    try:
        event = (registered.event_class or class_of(envelope.type)).read(envelope)
        with within(LONGEST):
            draft.take(registered.rule(event), envelope, registered.name)
    except EndlessError as error:
        problem, again = str(error), None
    except Exception as error:  # noqa: BLE001 a rule is the service's code
        problem = shorten(f"{type(error).__name__}: {error}")
        again = not isinstance(error, PermanentError)
    plan = draft.plan()
    return Effect(
        rule=registered.name,
        place=registered.place,
        namespaces=tuple(sorted(plan.namespaces)),
        tags=tuple(sorted(plan.tags)),
        everything=plan.everything,
        warms=tuple(Planned(_call(warm), keys.entry(*warm.name.split(":", 1))) for warm in plan.warms),
        hot=plan.hot,
        problem=problem,
        again=again,
    )


def _call(warm: Warm) -> str:
    args, kwargs = decode_call(warm.cached_function, warm.arguments)
    given = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{warm.function}({', '.join(given)})"


def hits(found: Iterable[Effect], readers: Iterable[Reader]) -> list[Hit]:
    """Return which cached functions have entries that these effects make wrong.

    Whether there are such entries is not known here. A function whose tags are made when it is called may be missing.
    """
    found = list(found)
    everything = any(effect.everything for effect in found)
    namespaces = sorted({name for effect in found for name in effect.namespaces})
    tags = sorted({tag for effect in found for tag in effect.tags})
    listed = []
    for reader in readers:
        by = ["everything"] if everything else []
        by += [f"namespace {name}" for name in namespaces if name == reader.namespace]
        by += [f"tag {tag}" for tag in tags if any(meet(Shape((tag,)), one.shape) for one in reader.tags.found)]
        if by:
            listed.append(Hit(reader.function, reader.spot.place, tuple(by)))
    return listed
