"""What services use in their own tests: a cache in memory that records, assertions over the records, a frozen clock.

Where pytest runs, the fixtures `tidings_cache` and `tidings_clock` (see `testing_plugin`) need no import at all:

    async def test_a_new_name_is_published(tidings_cache):
        await rename(7, "Ada")
        assert_published(UserUpdated, user_id=7)

Elsewhere `recording` does the same for a ``with`` block. Nothing here imports pytest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, Unpack, cast, overload

from .cache import Cache
from .default import get_cache, set_cache
from .durable import is_durable
from .errors import ConfigurationError
from .events import Envelope, Event, UntypedEvent, class_of, from_fields, type_of
from .invalidation import direct
from .local import clock as real_clock
from .memory import Memory
from .operations import Append, Invalidate, Operation
from .policy import Seconds
from .settings import CacheOptions, GivenSettings
from .shared import Shared

T = TypeVar("T")
E = TypeVar("E", bound=Event)

#: How long the end of `recording` waits for refreshes in threads; one that hangs must not hang the test as well.
_DRAIN_SECONDS = 5.0


class FrozenClock:
    """A clock that stands still until it is told to go on; for `RecordingCache` and `recording`.

    It is the time by which values expire and are stale, in the local tier too, and by which loads are long. Waiting
    (`timeout`) takes real time.
    """

    def __init__(self) -> None:
        self._now_us = 0

    def __call__(self) -> float:
        """Return the time in seconds since the clock was made."""
        return self._now_us / 1_000_000

    def advance(self, seconds: Seconds) -> None:
        """Let so much time pass at once, in seconds or as a timedelta. Raises ValueError for less than none."""
        passed = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        if passed < 0:
            raise ValueError(f"time does not go back: {seconds!r}")
        self._now_us += round(passed * 1_000_000)


@dataclass(frozen=True, slots=True)
class Invalidated:
    """One invalidation that was asked for, by whatever way."""

    #: what it named and why: ``tag:user:7``, ``namespace:stats``, ``all``
    causes: Mapping[str, str]
    #: keys of single entries, and globs over keys
    keys: tuple[str, ...]
    patterns: tuple[str, ...]


class RecordingCache(Cache):
    """A ``memory://`` cache that remembers what was published and invalidated through it.

    `clock` gives seconds, a `FrozenClock` for example; the options are those of `Cache`. As of any ``memory://``, its
    memory is of this cache: a second one knows nothing of the first.
    """

    def __init__(self, *, clock: Callable[[], float] = real_clock, **options: Unpack[CacheOptions]) -> None:
        self._memory = _RecordingMemory(clock)
        self._set_up(Shared(GivenSettings.of("memory://", options), self._memory))

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that was given."""
        return self._memory.clock

    @property
    def published(self) -> list[Event]:
        """The events published so far, in their order, each with its envelope.

        They are of their own classes; of a type without one, an event has the data as attributes.
        """
        return [class_of(envelope.type).read(envelope) for envelope in list(self._memory.appended)]

    @property
    def invalidated(self) -> list[Invalidated]:
        """The invalidations so far, in their order."""
        return list(self._memory.invalidated)

    def forget_records(self) -> None:
        """Begin with empty records: what was arranged is not what is tested. The cache keeps its values."""
        self._memory.appended.clear()
        self._memory.invalidated.clear()


class _RecordingMemory(Memory):
    """Memory that keeps what passes through it, however many coroutines and threads it comes from."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.appended: list[Envelope] = []
        self.invalidated: list[Invalidated] = []

    def run(self, operation: Operation[T]) -> T:
        if is_durable(operation):  # as a server whose replicas are well
            added = self.run(Append(operation.stream, operation.fields))
            return cast("T", (added, operation.replicas))
        result = super().run(operation)
        self._record(operation, result)
        return result

    def _record(self, operation: Any, result: Any) -> None:
        match operation:
            case Append(stream, fields):
                wire = {name.encode(): value.encode() for name, value in fields.items()}
                self.appended.append(from_fields(stream, result, wire))
            case Invalidate() if operation.what:
                told = Invalidated(dict(operation.causes), tuple(operation.entries), operation.patterns)
                self.invalidated.append(told)


@contextmanager
def recording(*, clock: Callable[[], float] = real_clock, **options: Unpack[CacheOptions]) -> Iterator[RecordingCache]:
    """Make a fresh `RecordingCache` the default cache for a ``with`` block; afterwards the one before is it again.

    At the end it waits up to five seconds for refreshes in threads; what still runs on an event loop ends with the
    loop, or with ``await cache.aclose()``.
    """
    cache = RecordingCache(clock=clock, **options)
    before = set_cache(cache)
    try:
        yield cache
    finally:
        set_cache(before)
        cache.sync.close(drain_timeout=_DRAIN_SECONDS)


@overload
def assert_published(kind: type[E], /, **fields: Any) -> E: ...
@overload
def assert_published(kind: str, /, **fields: Any) -> Event: ...
def assert_published(kind: type[Event] | str, /, **fields: Any) -> Event:
    """Assert that an event of this class or type, with these fields among others, was published; return the first one.

    Like the other assertions it looks at the default cache, which has to be a `RecordingCache`, and says what there was
    instead. Raises TypeError for a field that the class does not have.
    """
    __tracebackhide__ = True
    published = _recorder().published
    if matching := _matching(published, kind, fields):
        return matching[0]
    raise AssertionError(f"not published: {_wanted(kind, fields)}\n{_listed('published', map(_described, published))}")


def assert_not_published(kind: type[Event] | str, /, **fields: Any) -> None:
    """Assert that no event of this class or type, with these fields among others, was published."""
    __tracebackhide__ = True
    published = _recorder().published
    if matching := _matching(published, kind, fields):
        found = _listed("published", map(_described, matching))
        raise AssertionError(f"published all the same: {_wanted(kind, fields)}\n{found}")


def assert_invalidated(
    *, tags: Iterable[str] = (), namespaces: Iterable[str] = (), keys: Iterable[str] = (), everything: bool = False
) -> None:
    """Assert that each of these tags, namespaces and keys of single entries was invalidated, by one call or by several.

    They must have been named: `everything` (by `invalidate_all`) is not every tag. With nothing given: that anything
    was invalidated at all.
    """
    __tracebackhide__ = True
    recorded = _recorder().invalidated
    wanted = _names("assert_invalidated", tags, namespaces, keys, everything=everything)
    if missing := [name for name in wanted if not any(map(_naming(name), recorded))]:
        raise AssertionError(f"not invalidated: {', '.join(missing)}\n{_listed('invalidated', map(_told, recorded))}")
    if not wanted and not recorded:
        raise AssertionError("nothing was invalidated")


def assert_not_invalidated(
    *, tags: Iterable[str] = (), namespaces: Iterable[str] = (), keys: Iterable[str] = (), everything: bool = False
) -> None:
    """Assert that none of these was invalidated by name. With nothing given: that nothing was invalidated at all."""
    __tracebackhide__ = True
    recorded = _recorder().invalidated
    wanted = _names("assert_not_invalidated", tags, namespaces, keys, everything=everything)
    if found := [name for name in wanted if any(map(_naming(name), recorded))]:
        lines = _listed("invalidated", map(_told, recorded))
        raise AssertionError(f"invalidated all the same: {', '.join(found)}\n{lines}")
    if not wanted and recorded:
        raise AssertionError(_listed("invalidated", map(_told, recorded)))


def _recorder() -> RecordingCache:
    cache = get_cache()
    if not isinstance(cache, RecordingCache):
        raise ConfigurationError(
            "the default cache does not record: use the fixture tidings_cache, or `with tidings.testing.recording():`"
        )
    return cache


# Events


def _matching(published: list[Event], kind: type[Event] | str, fields: Mapping[str, Any]) -> list[Event]:
    if not isinstance(kind, str | type):
        raise TypeError(f"an event class or the type's name is asked for, not {kind!r}")
    known = class_of(kind) if isinstance(kind, str) else kind
    unknown = fields.keys() - known.model_fields.keys()
    if unknown and known.model_config.get("extra") != "allow":
        raise TypeError(f"{known.__name__} has no field {', '.join(sorted(unknown))}: that could never be published")
    same_kind = [e for e in published if (type_of(e) == kind if isinstance(kind, str) else isinstance(e, kind))]
    missing = object()
    return [e for e in same_kind if all(getattr(e, name, missing) == value for name, value in fields.items())]


def _wanted(kind: type[Event] | str, fields: Mapping[str, Any]) -> str:
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{name}({', '.join(f'{field}={value!r}' for field, value in fields.items())})"


def _described(event: Event) -> str:
    name = type_of(event) if isinstance(event, UntypedEvent) else type(event).__name__
    return _wanted(name, dict(event))


# Invalidations


def _names(
    method: str, tags: Iterable[str], namespaces: Iterable[str], keys: Iterable[str], *, everything: bool
) -> list[str]:
    """Return what is asked after, by the names that `_naming` understands."""
    if isinstance(keys, str):
        raise ConfigurationError(f"{method}: {keys!r} is one string where a list of them belongs")
    return [*direct(method, namespaces, tags, everything=everything), *(f"key:{key}" for key in keys)]


def _naming(name: str) -> Callable[[Invalidated], bool]:
    return lambda recorded: name in recorded.causes or name in (f"key:{key}" for key in recorded.keys)


def _told(recorded: Invalidated) -> str:
    named = [*recorded.causes, *(f"key:{key}" for key in recorded.keys), *(f"pattern:{p}" for p in recorded.patterns)]
    causes = ", ".join(dict.fromkeys(recorded.causes.values()))
    return f"{', '.join(named)}{f'  ({causes})' if causes else ''}"


def _listed(what: str, lines: Iterable[str]) -> str:
    text = "".join(f"\n  {line}" for line in lines)
    return f"{what}:{text}" if text else f"nothing was {what}"
