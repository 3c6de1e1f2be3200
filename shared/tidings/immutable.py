"""Which values callers may share. Pure."""

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import BaseModel
from pydantic_core import TzInfo

#: How deep a value is searched for something that can be changed.
_DEPTH = 32

_ATOMS = frozenset(
    (str, int, float, bool, type(None), bytes, complex, date, timedelta, Decimal, UUID, timezone, ZoneInfo, TzInfo)
)


def immutable(value: object) -> bool:
    """Say whether an object can be handed to many callers without one of them changing it for another.

    Yes for plain atoms, Enum members, and tuples, frozensets, frozen dataclasses and frozen pydantic models of such.
    No for everything else: also for subclasses of atoms, which can have attributes, for classes with a cached_property,
    and for what is nested too deep to tell.
    """
    return _immutable(value, _DEPTH)


def _immutable(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in _ATOMS or isinstance(value, Enum):
        return True
    if depth == 0:
        return False
    if kind is datetime or kind is time_of_day:
        return _immutable(value.tzinfo, depth - 1)
    if kind is frozenset or (isinstance(value, tuple) and not kind.__dictoffset__):
        return all(_immutable(part, depth - 1) for part in value)
    names = _frozen_fields(cast("Hashable", kind))
    if names is None or getattr(value, "__pydantic_private__", None):
        return False
    parts = chain(getattr(value, "__dict__", {}).values(), (getattr(value, "__pydantic_extra__", None) or {}).values())
    return all(_immutable(part, depth - 1) for part in chain(parts, (getattr(value, name) for name in names)))


@lru_cache(maxsize=256)
def _frozen_fields(kind: type) -> tuple[str, ...] | None:
    """Return the fields that a frozen class keeps outside of the instance's dict; None for a class that is not frozen.

    A plain subclass of a frozen dataclass is not frozen itself.
    """
    if any(isinstance(member, cached_property) for base in kind.__mro__ for member in vars(base).values()):
        return None
    if issubclass(kind, BaseModel):
        return () if kind.model_config.get("frozen") else None
    if not is_dataclass(kind) or not vars(kind).get("__dataclass_params__", None):
        return None
    if not vars(kind)["__dataclass_params__"].frozen:
        return None
    return tuple(field.name for field in fields(kind))
