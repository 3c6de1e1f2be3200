"""JSON that keeps what JSON forgets: a date stays a date, a tuple a tuple, 1 is not True and not "1".

Plain JSON values stand for themselves. Anything else is an object with the single key ``!``, holding its type's word
and its text: ``{"!": ["date", "2026-11-20"]}``. Cached values fall back to this when plain JSON cannot bring them back,
and the canonical form of arguments, which keys are hashed from, is always this.
"""

import base64
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

type_words: dict[type, tuple[str, Callable[[Any], Any]]] = {
    date: ("date", date.isoformat),
    datetime: ("datetime", datetime.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("timedelta", lambda v: [v.days, v.seconds, v.microseconds]),
    Decimal: ("decimal", str),
    UUID: ("uuid", lambda v: v.hex),
    bytes: ("bytes", lambda v: base64.b64encode(v).decode("ascii")),
    complex: ("complex", lambda v: [v.real, v.imag]),
}

_readers: dict[str, Callable[[Any], Any]] = {
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda v: timedelta(*v),
    "decimal": Decimal,
    "uuid": UUID,
    "bytes": lambda v: base64.b64decode(v, validate=True),
    "complex": lambda v: complex(*v),
    "tuple": lambda v: tuple(map(from_tagged, v)),
    "set": lambda v: set(map(from_tagged, v)),
    "frozenset": lambda v: frozenset(map(from_tagged, v)),
    "dict": lambda v: {from_tagged(k): from_tagged(x) for k, x in v},
}

_ATOMS = frozenset((str, int, bool, float, type(None)))


def to_tagged(  # noqa: PLR0911 one arm for each kind
    value: Any, default: Callable[[Any], Any], *, canonical: bool = False
) -> Any:
    """Return `value` as JSON types. `default` gives the tagged form of an unknown type, or raises.

    Equal dicts with keys other than strings read the same only when `canonical`; otherwise they keep their order.
    """

    def inner(item: Any) -> Any:
        return to_tagged(item, default, canonical=canonical)

    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is list:
        return [inner(item) for item in value]
    if kind is tuple:
        return {"!": ["tuple", [inner(item) for item in value]]}
    if kind is dict:
        if all(type(key) is str for key in value) and "!" not in value:
            return {key: inner(item) for key, item in value.items()}
        pairs = [[inner(key), inner(item)] for key, item in value.items()]
        return {"!": ["dict", sorted(pairs, key=repr) if canonical else pairs]}
    if kind is set or kind is frozenset:
        # Sets have no order and hashes differ between processes: sorted, so that equal sets read the same.
        return {"!": [kind.__name__, sorted((inner(item) for item in value), key=repr)]}
    if kind in type_words:
        word, text = type_words[kind]
        return {"!": [word, text(value)]}
    return default(value)


def from_tagged(value: Any) -> Any:
    """Undo `to_tagged`. Raises ValueError, TypeError, KeyError or ArithmeticError for what it never wrote."""
    if type(value) is list:
        return [from_tagged(item) for item in value]
    if type(value) is dict:
        if "!" in value:
            word, text = value["!"]
            return _readers[word](text)
        return {key: from_tagged(item) for key, item in value.items()}
    return value
