"""What it means that a cached value and loads of the same call agree, or do not. Pure."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

#: Loads of an entry that differs: one, and a second that agrees with it; or a third, that has to agree with the second.
MOST_LOADS = 3

#: Relative: the sum of the same floats in another order differs by less, the next version of a value hardly ever.
_ROUNDING = 1e-12

#: A longer text is no name of a field: it may be anybody's.
_LONGEST_NAME = 40


class Outcome(StrEnum):
    """What came of one sampled entry."""

    #: it is what a load gives
    CONSISTENT = "consistent"
    #: it differed, and was invalidated by one of its tokens before it could be called stale, as it should be
    MOVED = "moved"
    #: it differed, and had expired, been filled anew or been deleted by then: nobody knows what it would have come to
    REPLACED = "replaced"
    #: it differs from two loads that agree, and nothing that was published before has invalidated it
    STALE = "stale"
    #: it differs, and so do the loads from each other
    UNSTABLE = "unstable"
    #: it differs, and events from before are not applied; or the audit was stopped before it could look again
    UNSETTLED = "unsettled"
    #: the load raised, or took too long
    FAILED = "failed"
    #: nobody can say which call it is the result of, or make that call here
    NOT_AUDITABLE = "not_auditable"
    #: no reader would be served it: vacant, expired, invalidated, or `when` sends its call past the cache
    NOT_SERVED = "not_served"


#: What is known of an entry's value with these: only they count for consistency.
KNOWN = (Outcome.CONSISTENT, Outcome.MOVED, Outcome.STALE)


@dataclass(frozen=True, slots=True)
class Value:
    """A value as readers get it, and the codec's bytes of it."""

    payload: bytes
    value: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two values first differ, and how, without saying what they are; `pair` is what they are there."""

    place: str
    how: str
    pair: tuple[Any, Any]


def verdict(cached: Value, loads: Sequence[Value]) -> Outcome | None:
    """Judge an entry by the loads so far; None: look again, and load again if it is still there.

    That it was looked at again, and was the same, before each load but the first is the caller's to know.
    """
    *earlier, last = loads
    if differs(cached, last) is None:
        # The source went there and back with no invalidation in between, or it depends on who asks.
        return Outcome.UNSTABLE if earlier else Outcome.CONSISTENT
    if not earlier:
        return None
    if differs(earlier[-1], last) is None:
        return Outcome.STALE
    return Outcome.UNSTABLE if len(loads) >= MOST_LOADS else None


def differs(before: Value, after: Value) -> Difference | None:
    """Return where two values of one call differ; None: they are the same.

    Equal bytes are the same value. So are others that decode to equal ones: sets have no order, nor have a mapping's
    keys, and floats that differ by rounding are taken for equal. The order of a list counts.
    """
    return None if before.payload == after.payload else difference(before.value, after.value)


def difference(before: Any, after: Any, place: str = "$") -> Difference | None:
    """Return the first difference in value or type. Places read ``$.user[0].name``; of keys, only names are shown."""
    if type(before) is not type(after):
        return Difference(place, f"{_kind(before)} became {_kind(after)}", (before, after))
    parts = _parts(before, after)
    if isinstance(parts, str):
        return Difference(place, parts, (before, after))
    for step, a, b in parts:
        if (found := difference(a, b, place + step)) is not None:
            return found
    return None


def _parts(before: Any, after: Any) -> str | Iterable[tuple[str, Any, Any]]:  # noqa: PLR0911 one for each kind
    """Return how two values of one type differ as a whole, or else their parts, to be compared one by one."""
    name = _kind(before)
    if isinstance(before, Mapping):
        if before.keys() != after.keys():
            return f"{name} with other keys: {len(after.keys() - before.keys())} more, {_gone(before, after)} gone"
        return [(_key(key), value, after[key]) for key, value in before.items()]
    if isinstance(before, list | tuple | deque):
        if len(before) != len(after):
            return f"{name} of {len(before)} became one of {len(after)}"
        return [(f"[{index}]", a, b) for index, (a, b) in enumerate(zip(before, after, strict=True))]
    if isinstance(before, BaseModel):
        names = [*type(before).model_fields, *(before.model_extra or {}), *(before.__pydantic_private__ or {})]
        return [(f".{field}", getattr(before, field), getattr(after, field, None)) for field in names]
    if is_dataclass(before):
        names = [field.name for field in fields(before)]
        return [(f".{field}", getattr(before, field), getattr(after, field)) for field in names]
    return [] if _is_same(before, after) else f"{name} changed"


def _is_same(before: Any, after: Any) -> bool:
    if isinstance(before, float) and math.isclose(before, after, rel_tol=_ROUNDING):
        return True
    if isinstance(before, datetime) and before.utcoffset() != after.utcoffset():
        return False
    # Two NaNs are unequal, and the same value.
    return bool(before == after) or repr(before) == repr(after)


def _gone(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> int:
    return len(before.keys() - after.keys())


def _key(key: Any) -> str:
    """Return a key as it may be shown: a mapping may be keyed by people's addresses."""
    shown = isinstance(key, int) or (isinstance(key, str) and key.isidentifier() and len(key) <= _LONGEST_NAME)
    return f"[{key!r}]" if shown else "[…]"


def _kind(value: Any) -> str:
    return type(value).__qualname__
