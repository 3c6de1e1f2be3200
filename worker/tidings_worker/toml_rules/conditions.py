"""Which events a rule of a file is for: ``when = { plan = ["pro", "team"] }``. Pure.

Of an event that carries a row as it was and as it is, either of them will do: a user who leaves the plan "pro" is to be
invalidated as one who has it. One whose rows are both null, as of a table that was truncated, may have been about any.
"""

from collections.abc import Collection, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic import BaseModel
from tidings import Event
from tidings.templates import text_of

from tidings_worker.mapping import value_of

from .calls import ValueOf

#: What a condition compares as it is; other values (a date, a UUID) by their text in an event's JSON.
_PLAIN = (str, int, float, Decimal)


def holds(conditions: Mapping[str, Collection[Any]], event: Event) -> bool:
    """Say whether the event's data, or one of its rows, have for each name one of the values that `comparable` made.

    What the data do not have equals nothing. Raises ArgumentError for values that have no text, such as lists.
    """
    if not conditions:
        return True
    images = [_found(value_of(event), name) for name in ("before", "after")]
    rows = [row for row in images if isinstance(row, Mapping | BaseModel)]
    any_row = images == [None, None]
    return any(_all_hold(conditions, value_of(event, row), any_row=any_row) for row in rows or [event])


def _found(values: ValueOf, name: str) -> Any:
    try:
        return values(name)
    except KeyError:
        return _MISSING


_MISSING = object()


def _all_hold(conditions: Mapping[str, Collection[Any]], values: ValueOf, *, any_row: bool) -> bool:
    for name, accepted in conditions.items():
        try:
            value = values(name)
        except KeyError:
            if any_row:
                continue
            return False
        if comparable(value, name) not in accepted:
            return False
    return True


def comparable(value: Any, name: str) -> tuple[bool, Any]:
    """Return what equals that of another value when they are the same in JSON: true is not 1. Raises ArgumentError."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, _PLAIN):
        return isinstance(value, bool), value
    return False, text_of(value, f"{{{name}}}")
