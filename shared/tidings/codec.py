"""A typed value to bytes and back. What would not come back as it was is refused; foreign bytes are a DecodeError.

The first byte names the form: ``J`` is plain JSON through the annotation's own serializer, the fastest there is for
typed values; ``T`` is tagged JSON (see `tagged`), for what JSON alone cannot tell apart, such as bytes that are not
UTF-8 or a ``date | str``. Which form a value needs is not guessed from its type but tried: after encoding, the value is
decoded again and compared, part by part. That happens once a fill, so never on a hit, and it is why a value is never
silently changed: a NaN that JSON turned to null, a field that a model excludes, a subclass cut down to its base.
"""

import inspect
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from itertools import count
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from .errors import ConfigurationError, DecodeError, EncodeError
from .tagged import from_tagged, to_tagged

T = TypeVar("T")

JSON = b"J"
TAGGED = b"T"
_JSON_BYTE, _TAGGED_BYTE = JSON[0], TAGGED[0]

#: The annotation of a function that has none: JSON types, nothing else.
UNTYPED = object()

#: Of two objects of one of these types, equal ones are the same value.
_ATOMS = frozenset((str, int, bool, float, type(None), bytes, date, timedelta, UUID))

#: What changed, where below the value that was compared, and how: ("int", ".user['id']", "came back as str").
_Change = tuple[str, str, str]


class Codec(Generic[T]):
    """Encodes values of one type. `where` names the function in errors.

    Raises ConfigurationError for an annotation that pydantic has no schema for.
    """

    def __init__(self, annotation: Any, where: str) -> None:
        self._typed = annotation is not UNTYPED
        self._where = where
        try:
            self._adapter: TypeAdapter[T] = TypeAdapter(annotation if self._typed else Any)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(
                f"{where}: cannot cache a {annotation!r}: {reason} Return a pydantic model, a dataclass, "
                "a container or a scalar instead"
            ) from None
        # Past the adapter's own method, which costs a quarter of a small hit. An adapter that waits for a class to be
        # defined has no validator yet, and makes one when its method is called.
        ready = self._adapter.pydantic_complete
        self._from_json: Callable[..., T] = (
            self._adapter.validator.validate_json if ready else self._adapter.validate_json
        )

    def naming(self, where: str) -> "Codec[T]":
        """Return the same, with another `where`."""
        made = copy(self)
        made._where = where  # noqa: SLF001 its own
        return made

    def encode(self, value: T) -> bytes:
        """Return bytes that `decode` turns into an equal value of equal types.

        Three liberties: an int where a float is promised comes back a float, a datetime keeps its instant and offset
        but not the name of its zone, and a model forgets which of its fields were set by default. Raises EncodeError
        naming type and place.
        """
        try:
            return self._encoded(value)
        except RecursionError:
            raise EncodeError(f"{self._where}: the value is nested too deep, or contains itself") from None

    def _encoded(self, value: T) -> bytes:
        plain, change = self._try_json(value)
        if plain is not None and change is None:
            return JSON + plain
        if self._typed:
            tagged, tagged_change = self._try_tagged(value)
            if tagged is not None and tagged_change is None:
                return TAGGED + tagged
            change = change or tagged_change
        if inspect.iscoroutine(value):
            value.close()  # nobody will await it, which Python would say as well
            raise EncodeError(f"{self._where}: a coroutine cannot be kept; make the function async def and await it")
        cure = "" if self._typed else "; annotate the return type, or return JSON types"
        raise EncodeError(f"{self._where}: the value would not come back as it was: {change}{cure}")

    def decode(self, data: bytes, start: int = 0) -> T:
        """Return the value whose bytes begin at `start`, which spares a caller that holds a larger whole one copy.

        Raises DecodeError, and nothing else, for bytes that are not a value of the type.
        """
        try:
            form = data[start]
            if form == _JSON_BYTE:
                return self._from_json(data[start + 1 :], by_alias=False, by_name=True)
            if form == _TAGGED_BYTE:
                value = from_tagged(from_json(data[start + 1 :]))
                return self._adapter.validate_python(value, by_alias=False, by_name=True)
        except Exception as error:  # a model's own validators run here, on bytes that anybody may have written
            raise DecodeError(f"{self._where}: not a cached value: {type(error).__name__}") from error
        raise DecodeError(f"{self._where}: unknown form {data[start : start + 1]!r}")

    def _try_json(self, value: T) -> tuple[bytes | None, str | None]:
        try:
            body = self._adapter.dump_json(value, round_trip=True, by_alias=False, warnings=False)
        except (PydanticSerializationError, ValueError, TypeError) as error:
            return None, _said(error)
        return body, self._change(value, JSON + body)

    def _try_tagged(self, value: T) -> tuple[bytes | None, str | None]:
        try:
            plain = self._adapter.dump_python(value, round_trip=True, by_alias=False, warnings=False)
            body = json.dumps(to_tagged(plain, _refuse), separators=(",", ":")).encode()
        except (PydanticSerializationError, EncodeError, ValueError, TypeError) as error:
            return None, _said(error)
        return body, self._change(value, TAGGED + body)

    def _change(self, value: T, data: bytes) -> str | None:
        try:
            return first_change(value, self.decode(data), "$")
        except DecodeError as error:
            return _said(error.__cause__ or error)


def _said(error: BaseException) -> str:
    """Return an error's message without the value, which may be personal."""
    if isinstance(error, ValidationError):
        places = (".".join(map(str, e["loc"])) or "the value" for e in error.errors(include_input=False))
        messages = (e["msg"] for e in error.errors(include_input=False))
        return "; ".join(f"{place}: {message}" for place, message in zip(places, messages, strict=True))
    return str(error).replace("\n", " ")


def _refuse(value: Any) -> Any:
    if isinstance(value, Enum):
        return to_tagged(value.value, _refuse)
    raise EncodeError(f"a {type(value).__module__}.{type(value).__qualname__} has no JSON form")


def first_change(before: Any, after: Any, place: str) -> str | None:
    """Say where `after` first differs from `before` in value or type, or return None. Places read ``$.user['id']``."""
    change = _first_change(before, after)
    return None if change is None else f"{change[0]} at {place}{change[1]} {change[2]}"


def _first_change(before: Any, after: Any) -> _Change | None:  # noqa: PLR0911, PLR0912 one arm for each kind
    """Compare two values, then their parts. The place is put together on the way back, if there is one to tell."""
    kind = type(before)
    name = kind.__qualname__
    form = "[{!r}]"
    parts: Iterable[tuple[Any, Any, Any]]
    if kind is not type(after):
        if kind is int and type(after) is float and before == after:
            return None  # PEP 484: an int is accepted where a float is promised
        return name, "", f"came back as {type(after).__qualname__}"
    if isinstance(before, datetime):
        same = before == after and before.utcoffset() == after.utcoffset() and before.fold == after.fold
        return None if same else (name, "", "changed")
    if isinstance(before, Decimal):
        # By text: a signalling NaN raises when it is compared, and 1.0 is 1.00 and another value.
        return None if str(before) == str(after) else (name, "", "changed")
    if isinstance(before, Mapping):
        if list(before) != list(after) or list(map(type, before)) != list(map(type, after)):
            return f"the keys of the {name}", "", "changed"
        parts = ((before[key], after[key], key) for key in before)
    elif isinstance(before, list | tuple | deque):
        if len(before) != len(after) or (isinstance(before, deque) and before.maxlen != after.maxlen):
            return f"the length of the {name}", "", "changed"
        parts = zip(before, after, count())
    elif isinstance(before, BaseModel):
        form = ".{}"
        names = [*kind.model_fields, *(before.model_extra or {}), *(before.__pydantic_private__ or {})]
        parts = ((getattr(before, n), getattr(after, n, None), n) for n in names)
    elif is_dataclass(before):
        form = ".{}"
        parts = ((getattr(before, f.name), getattr(after, f.name, None), f.name) for f in fields(before))
    elif isinstance(before, set | frozenset):
        if before != after:
            return f"the {name}", "", "changed"
        found = {item: item for item in after}
        form, parts = "{{{!r}}}", ((item, found[item], item) for item in before)
    else:
        # Two NaNs are unequal and the same value: an object that differs from itself is compared by its text.
        same = before == after if before == before else repr(before) == repr(after)  # noqa: PLR0124
        return None if same else (name, "", "came back changed")
    for a, b, step in parts:
        if type(a) is type(b) and type(a) in _ATOMS and a == b:
            continue
        if (change := _first_change(a, b)) is not None:
            return change[0], form.format(step) + change[1], change[2]
    return None
