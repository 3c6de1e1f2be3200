"""Which values may be handed to many callers."""

from collections import namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr, RootModel, TypeAdapter
from tidings.immutable import immutable


class Colour(Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Permission(Flag):
    READ = 1


class Point(NamedTuple):
    x: object
    y: int


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 one without a class body, as services have them


@dataclass(frozen=True)
class Frozen:
    part: Any = None


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    part: Any = None


@dataclass(frozen=True)
class Child(Frozen):
    other: Any = None


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")
    part: Any = None


class FrozenRoot(RootModel[tuple[int, ...]]):
    model_config = ConfigDict(frozen=True)


ZONED = TypeAdapter(datetime).validate_json('"2026-11-20T10:00:00+02:00"')


@pytest.mark.parametrize(
    "value",
    [
        *("", "a", 0, 1.5, True, None, b"", 1j, Decimal(1), UUID(int=1)),
        *(date(2026, 1, 1), datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), ZONED, time(1), timedelta(1)),
        *(datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), timezone(timedelta(hours=1))),
        *(Colour.RED, Number.ONE, Permission.READ),
        *((), (1, ("a", None)), frozenset({("a",)}), Point(1, 2), Pair(1, "b")),
        *(Frozen(1), Frozen(Frozen((1,))), FrozenSlots("a"), Child(1, 2)),
        *(FrozenModel(part=(1, "a")), FrozenModel(part=Frozen(1), more=1), FrozenRoot((1, 2))),
    ],
    ids=repr,
)
def test_what_cannot_be_changed_is_shared(value):
    assert immutable(value)


class Text(str):
    __slots__ = ("note",)


class Whole(int):
    pass


class Row(tuple):  # noqa: SLOT001 what this lacks is the point
    pass


class Zone(tzinfo):
    pass


@dataclass
class Open:
    part: int = 0


class NotADataclass(Frozen):
    """Has a frozen base, and takes new attributes."""


@dataclass(frozen=True)
class Lazy:
    part: int = 0

    @cached_property
    def parts(self):
        return [self.part]


@dataclass(frozen=True)
class Hidden:
    part: int = 0

    def __post_init__(self):
        object.__setattr__(self, "seen", [])


@dataclass(frozen=True)
class Listed:
    parts: list = field(default_factory=list)


class Model(BaseModel):
    part: int = 0


class Private(BaseModel):
    model_config = ConfigDict(frozen=True)
    _seen: list = PrivateAttr(default_factory=list)


def nested(depth):
    value = ()
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize(
    "value",
    [
        *([], {}, set(), bytearray(), object(), lambda: None, Frozen),
        *((1, []), frozenset({Open}), Point([], 1), Row((1,))),
        *(Text("a"), Whole(1), datetime(2026, 1, 1, tzinfo=Zone()), time(1, tzinfo=Zone())),
        *(Open(), NotADataclass(1), Lazy(), Hidden(), Listed(), Frozen([]), FrozenSlots([]), Child(1, [])),
        *(Model(), Private(), FrozenModel(part=[]), FrozenModel(more=[])),
        nested(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_be_changed_is_not_shared(value):
    assert not immutable(value)
