"""What rules ask for: invalidations and warms, and the plan that they come to. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidings import Envelope
from tidings.causes import by_event, by_rule
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError
from tidings.hot import CALLS_KEPT
from tidings.keys import ALL, check_namespace, namespace_token, tag_token

from .calls import check_importable, encode_call


@dataclass(frozen=True, init=False)
class Invalidate:
    """Everything in these namespaces and under these tags is wrong now; `everything`: all of it.

    Raises ConfigurationError for one string where a list belongs (the rule is wrong), and ArgumentError for names that
    cannot be: they are made of an event's data.
    """

    namespaces: tuple[str, ...]
    tags: tuple[str, ...]
    everything: bool

    def __init__(self, *, namespaces: Iterable[str] = (), tags: Iterable[str] = (), everything: bool = False) -> None:
        for word, given in (("namespaces", namespaces), ("tags", tags)):
            if isinstance(given, str):
                raise ConfigurationError(f"Invalidate({word}={given!r}): write {word}=[{given!r}]")
        namespaces, tags = tuple(namespaces), tuple(tags)  # a generator gives its names once
        try:
            names = [*map(namespace_token, namespaces), *map(tag_token, tags)]
        except ConfigurationError as error:
            raise ArgumentError(str(error)) from None
        if everything:
            names.insert(0, ALL)
        # At once: a generated initializer takes a call for each, and every event makes one of these or more.
        self.__dict__.update(namespaces=namespaces, tags=tags, everything=everything, _names=names)

    def token_names(self) -> Sequence[str]:
        """Return the names of the tokens that this changes."""
        names: list[str] = self.__dict__["_names"]
        return names


@dataclass(frozen=True, slots=True)
class Hot:
    """Load the `top` calls of a namespace that were read most lately; made by `Warm.hot`."""

    namespace: str
    top: int

    def __post_init__(self) -> None:
        """Refuse a number out of range (ConfigurationError) and names that cannot be, made of an event's data."""
        if type(self.top) is not int or not 1 <= self.top <= CALLS_KEPT:
            raise ConfigurationError(f"Warm.hot(top={self.top!r}) is not a number from 1 to {CALLS_KEPT}")
        try:
            check_namespace(self.namespace)
        except ConfigurationError as error:
            raise ArgumentError(str(error)) from None

    @property
    def name(self) -> str:
        """What makes two of them the same; no namespace has a "!", so that it is no entry's name."""
        return f"!hot:{self.namespace}:{self.top}"

    def __repr__(self) -> str:
        return f"Warm.hot({self.namespace!r}, top={self.top})"


class Warm:
    """Load this call of a cached function ahead of the next read.

    Raises ConfigurationError when the function is not one that a worker can import by name, and ArgumentError when the
    arguments do not bind to it or cannot travel in a job.
    """

    def __init__(self, function: Described[Any, Any], /, *args: Any, **kwargs: Any) -> None:
        check_importable(function)
        self.cached_function = function
        self.function = function.identity
        #: the arguments as JSON text, see `calls`
        self.arguments = encode_call(function, args, kwargs)
        #: the entry's key in Redis after the prefix and version: what makes two warms the same
        call = function.call_of(*args, **kwargs)
        self.name = f"{call.namespace}:{call.name}"

    @staticmethod
    def hot(namespace: str, top: int = 100) -> Hot:
        """Load the `top` calls of a namespace that were read most in the last minutes, in every process, by samples.

        Which they are is found out when the warm runs. Not among them are calls of methods, and those with arguments
        that cannot travel in a job. Raises ConfigurationError for a `top` that is not from 1 to 1000, and ArgumentError
        for what cannot be a namespace.
        """
        return Hot(namespace, top)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Warm) and (self.name, self.arguments) == (other.name, other.arguments)

    def __hash__(self) -> int:
        return hash((self.name, self.arguments))

    def __repr__(self) -> str:
        return f"Warm({self.function}, {self.arguments})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one event or many: token names with their causes, and calls to load ahead.

    `hot` are the namespaces whose most read calls are to be loaded, each once.
    """

    causes: Mapping[str, str] = field(default_factory=dict)
    warms: tuple[Warm, ...] = ()
    #: whether any rule was for the event's type
    ruled: bool = False
    #: why rules could not do all that they were asked, with nothing of what they did lost
    problems: tuple[str, ...] = ()
    hot: tuple[Hot, ...] = ()

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


class Draft:
    """A plan in the making, of one event or of many. The first event to ask for a token is its cause."""

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}
        self._warms: list[Warm] = []
        self._hot: list[Hot] = []
        #: by the name of a warm, the stream entry that was the last to ask for it
        self.askers: dict[str, str | None] = {}

    def take(self, given: Any, envelope: Envelope, rule: str) -> None:
        """Add what a rule gave because of an event: one thing, many or none.

        Raises ConfigurationError for anything that a rule cannot ask for, with what came before it added, and whatever
        a generator raises.
        """
        if given is None:
            return
        if isinstance(given, (Invalidate, Warm, Hot)):  # a union would be made anew for every event
            given = (given,)
        try:
            items: Iterator[Any] = iter(given)
        except TypeError:
            raise _unasked(given, rule) from None
        for item in items:
            if isinstance(item, Invalidate):
                for name in item.token_names():
                    if name not in self._causes:  # as most of a batch are, and no text need be made for those
                        self._causes[name] = by_rule(by_event(envelope.id, envelope.stream_id), rule)
            elif isinstance(item, Warm):
                self._warms.append(item)
                self.askers[item.name] = envelope.stream_id
            elif isinstance(item, Hot):
                self._hot.append(item)
            else:
                raise _unasked(item, rule)

    def plan(self, *, ruled: bool = False, problems: Iterable[str] = ()) -> Plan:
        """Return what has been asked for so far, warms as often as that was."""
        return Plan(dict(self._causes), tuple(self._warms), ruled, tuple(problems), tuple(self._hot))


def _unasked(item: Any, rule: str) -> ConfigurationError:
    return ConfigurationError(f"{rule}: a rule yields Invalidate and Warm, not {type(item).__name__}")


def merge(plans: Iterable[Plan]) -> Plan:
    """Return one plan that does what all of them ask for: 500 events may need three tokens and one warm.

    The first event to ask for a token is its cause; of two warms of one entry the last counts, and of two for what is
    read most in a namespace the one that wants more.
    """
    causes: dict[str, str] = {}
    warms: dict[str, Warm] = {}
    hot: dict[str, Hot] = {}
    problems: list[str] = []
    ruled = False
    for plan in plans:
        for name, cause in plan.causes.items():
            causes.setdefault(name, cause)
        warms.update((warm.name, warm) for warm in plan.warms)
        for one in plan.hot:
            if one.namespace not in hot or one.top > hot[one.namespace].top:
                hot[one.namespace] = one
        problems.extend(plan.problems)
        ruled = ruled or plan.ruled
    return Plan(causes, tuple(warms.values()), ruled, tuple(problems), tuple(hot.values()))
