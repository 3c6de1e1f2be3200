"""Example events of a class: what a rule whose code cannot be read is run with, to see what it asks for."""

import types
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ValidationError
from tidings import Event

#: Examples of one class, and of one field, at most.
_EVENTS = 60
_VALUES = 12
_DEPTH = 4

_PLAIN: dict[Any, tuple[Any, ...]] = {
    str: ("x", "1", "a@example.org"),
    int: (1, 1000),
    float: (1.5,),
    bool: (True, False),
    bytes: (b"x",),
    date: (date(2026, 1, 2),),
    datetime: (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2026, 1, 2, 3, 4, 5)),  # noqa: DTZ001 either may be wanted
    time: (time(3, 4, 5),),
    timedelta: (timedelta(hours=1),),
    Decimal: (Decimal("1.5"), Decimal(1)),
    UUID: (UUID(int=1),),
    type(None): (None,),
    Any: ("x", 1, None),
    object: ("x",),
}


#: How the values of plain types are written in names.
TEXTS = frozenset(str(value) for values in _PLAIN.values() for value in values)


def examples(event_class: type[Event]) -> list[Event]:
    """Return events of a class that differ in one field at a time; none if no value of some field can be thought of."""
    return list(islice(_models(event_class, _DEPTH), _EVENTS))


def _models(kind: type[BaseModel], depth: int) -> Iterator[Any]:
    names = {name: field.validation_alias or field.alias or name for name, field in kind.model_fields.items()}
    values = {
        str(names[name]): list(islice(_values(field.annotation, depth), _VALUES))
        for name, field in kind.model_fields.items()
    }
    first = next((made for pick in range(_VALUES) if (made := _made(kind, _picked(values, pick))) is not None), None)
    if first is None:
        return
    yield first
    given = _given(kind, values)
    for name, several in values.items():
        for value in several:
            if value != given.get(name) and (made := _made(kind, {**given, name: value})) is not None:
                yield made
    required = {str(names[name]) for name, field in kind.model_fields.items() if field.is_required()}
    if required != given.keys() and (made := _made(kind, {name: given[name] for name in required})) is not None:
        yield made


def _picked(values: dict[str, list[Any]], pick: int) -> dict[str, Any]:
    return {name: several[min(pick, len(several) - 1)] for name, several in values.items() if several}


def _given(kind: type[BaseModel], values: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the first choice of values that the class takes."""
    picks = (_picked(values, pick) for pick in range(_VALUES))
    return next(pick for pick in picks if _made(kind, pick) is not None)


def _made(kind: type[BaseModel], values: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError:
        return None


def _values(annotation: Any, depth: int) -> Iterator[Any]:
    """Yield values that an annotation takes, as far as it says so."""
    if annotation in _PLAIN:
        yield from _PLAIN[annotation]
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _values(arguments[0], depth)
    elif origin is Literal:
        yield from arguments
    elif origin in {Union, types.UnionType}:
        for argument in arguments:
            yield from islice(_values(argument, depth), _VALUES // 2)
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from annotation
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and depth:
        yield from _models(annotation, depth - 1)
    else:
        yield from _containers(origin or annotation, arguments, depth)


def _containers(kind: Any, arguments: tuple[Any, ...], depth: int) -> Iterator[Any]:
    if not isinstance(kind, type) or not depth:
        return
    if issubclass(kind, tuple) and arguments and arguments[-1] is not ...:
        firsts = [next(_values(argument, depth - 1), None) for argument in arguments]
        yield tuple(firsts)
        return
    inner = [list(islice(_values(argument, depth - 1), 2)) for argument in arguments if argument is not ...]
    if issubclass(kind, dict) or kind.__name__ in {"Mapping", "MutableMapping"}:
        yield {inner[0][0]: inner[1][0]} if len(inner) == 2 and all(inner) else {"x": 1}  # noqa: PLR2004 keys and values
        yield {}
    elif issubclass(kind, list | tuple | set | frozenset) or kind.__name__ in {
        "Sequence",
        "Iterable",
        "Collection",
        "Set",
    }:
        yield list(inner[0]) if inner else ["x"]
        yield []
