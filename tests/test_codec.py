"""The codec: what comes back is what went in, or an error says what would not."""

import json
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, field_serializer, field_validator
from tidings.codec import TAGGED, UNTYPED, Codec, first_change
from tidings.errors import ConfigurationError, DecodeError, EncodeError


class Node(BaseModel):
    name: str
    made: datetime
    price: Decimal | None = None
    children: list["Node"] = []


@dataclass
class Row:
    id: UUID
    tags: frozenset[str]
    raw: bytes


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")


class Level(StrEnum):
    HIGH = "high"


class Pair(NamedTuple):
    left: int
    right: str


NODE = Node(name="a", made=datetime(2026, 1, 1, tzinfo=UTC), children=[Node(name="b", made=datetime(2026, 1, 2))])

ROUND_TRIPS = [
    (Node, NODE),
    (tuple[list[Node], str | None], ([NODE], None)),
    (Row, Row(UUID(int=3), frozenset({"x", "y"}), b"\xff\x00")),
    (list[Row], [Row(UUID(int=3), frozenset(), b"plain")]),
    (Cat | Dog, Dog(lives=1)),
    (dict[str, Cat | Dog], {"a": Cat(lives=9), "b": Dog(lives=1)}),
    (Aliased, Aliased(userId=5)),
    (Optional[int], None),  # noqa: UP045 the old spelling is what many services have
    (int | str, "5"),
    (int | str, 5),
    (date | str, "2026-01-01"),
    (date | str, date(2026, 1, 1)),
    (UUID | str, str(UUID(int=3))),
    (bytes, b"\xff\xfe"),
    (bytes | str, b"abc"),
    (bytes | str, "abc"),
    (Decimal, Decimal("1.10")),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (datetime, datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    (tuple[int, ...], (1, 2)),
    (set[date], {date(2026, 1, 1)}),
    (dict[date, int], {date(2026, 1, 1): 1}),
    (dict[tuple[int, int], str], {(1, 2): "x"}),
    (Level, Level.HIGH),
    (Pair, Pair(1, "x")),
    (float, float("inf")),
    (float, float("nan")),
    (list[float], [1.0, float("nan")]),
    (dict[str, Any], {"at": datetime(2026, 1, 1), "of": (1, b"\x00"), "!": {"!": 1}}),
    (Annotated[int, Field(ge=0)], 3),
    (Sequence[int], (1, 2)),
    (object, [1, (2,)]),
    (None, None),
    (bool, True),
]


@pytest.mark.parametrize(("annotation", "value"), ROUND_TRIPS, ids=lambda v: str(v)[:40])
def test_a_typed_value_comes_back_as_it_was(annotation, value):
    codec = Codec(annotation, "f")
    assert first_change(value, codec.decode(codec.encode(value)), "$") is None


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "x", [], {}, {"a": [1, {"b": None}]}])
def test_json_types_need_no_annotation(value):
    codec = Codec(UNTYPED, "f")
    assert first_change(value, codec.decode(codec.encode(value)), "$") is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"rows": [{"at": datetime(2026, 1, 1)}]}, r"datetime at \$\['rows'\]\[0\]\['at'\] came back as str"),
        ((1, 2), r"tuple at \$ came back as list"),
        ({"x": {1, 2}}, r"set at \$\['x'\] came back as list"),
        ({1: "a"}, r"the keys of the dict at \$ changed"),
        ([float("nan")], r"float at \$\[0\] came back as NoneType"),
        (NODE, r"Node at \$ came back as dict"),
        (Decimal(1), r"Decimal at \$ came back as str"),
        (b"x", r"bytes at \$ came back as str"),
        (object(), r"Unable to serialize unknown type: <class 'object'>"),
    ],
)
def test_without_an_annotation_anything_else_is_refused_with_type_and_place(value, says):
    with pytest.raises(EncodeError, match=says) as caught:
        Codec(UNTYPED, "shop:load").encode(value)
    assert "shop:load" in str(caught.value)
    assert "annotate the return type" in str(caught.value)


class Secretive(BaseModel):
    shown: int
    hidden: int = Field(default=0, exclude=True)


class Lossy(BaseModel):
    price: float

    @field_serializer("price")
    def rounded(self, price: float) -> float:
        return round(price)


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Remembering(BaseModel):
    a: int = 0
    _note: str = PrivateAttr(default="")


def remembering():
    made = Remembering()
    made._note = "abc"
    return made


class Special(Cat):
    extra: int = 0


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (int, "5", r"str at \$ came back as int"),
        (int, True, r"bool at \$ came back as int"),
        (str, Level.HIGH, r"Level at \$ came back as str"),
        (Cat, Special(lives=1, extra=2), r"Special at \$ came back as Cat"),
        (Secretive, Secretive(shown=1, hidden=2), r"int at \$\.hidden came back changed"),
        (Lossy, Lossy(price=1.4), r"float at \$\.price came back changed"),
        (dict[str, Any], {"x": NODE}, r"Node at \$\['x'\] came back as dict"),
        (list[int], [1, "x"], r"valid integer"),
        (Remembering, remembering(), r"str at \$\._note came back changed"),
        (SecretStr, SecretStr("s3cret"), r"came back changed"),
        (deque[int], deque([1], maxlen=2), r"deque at \$ changed"),
        (datetime, datetime(2026, 10, 25, 2, 30, fold=1), r"datetime at \$ changed"),
        (set[tuple[int]], {(True,)}, r"bool at \$\{\(True,\)\}\[0\] came back as int"),
    ],
)
def test_a_value_that_its_annotation_would_change_is_refused_not_changed(annotation, value, says):
    with pytest.raises(EncodeError, match=says):
        Codec(annotation, "f").encode(value)


def test_extra_fields_of_an_open_model_survive():
    codec = Codec(Loose, "f")
    assert codec.decode(codec.encode(Loose(a=1, b="x"))) == Loose(a=1, b="x")


def test_an_int_where_a_float_is_promised_is_accepted():
    codec = Codec(float, "f")
    assert codec.decode(codec.encode(3)) == 3.0


@pytest.mark.parametrize("annotation", [type("Connection", (), {}), int | type("Socket", (), {})])
def test_an_annotation_that_cannot_be_kept_is_an_error_at_definition(annotation):
    with pytest.raises(ConfigurationError, match="shop:load: cannot cache a"):
        Codec(annotation, "shop:load")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"J",
        b"T",
        b"Z{}",
        b"\x80\x04\x95",
        b"J{",
        b"Jnull",
        b'J{"name": 1}',
        b"J" + b"[" * 100_000,
        b"T" + b"[" * 100_000,
        b'T{"!":["date","no"]}',
        b'T{"!":["exec","import os"]}',
        b'T{"!":["decimal","x"]}',
        b'T{"!":1}',
        b'T{"!":["timedelta",[1e308,1e308,1e308]]}',
        b"J\xff\xfe",
    ],
    ids=lambda data: data[:20].decode("latin-1"),
)
def test_bytes_that_are_no_value_of_the_type_are_a_decode_error_and_nothing_else(data):
    with pytest.raises(DecodeError):
        Codec(Node, "f").decode(data)


@given(st.binary(max_size=200))
def test_no_bytes_whatsoever_raise_anything_but_a_decode_error(data):
    for annotation in (Node, dict[str, Any], UNTYPED):
        codec = Codec(annotation, "f")
        for form in (b"", b"J", b"T"):
            try:
                codec.decode(form + data)
            except DecodeError:
                continue


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.datetimes()
    | st.uuids() | st.decimals(allow_nan=False) | st.timedeltas() | st.times(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)  # fmt: skip


@given(anything)
def test_whatever_is_encoded_comes_back_as_it_was(value):
    codec = Codec(Any, "f")
    try:
        data = codec.encode(value)
    except EncodeError:
        return
    assert first_change(value, codec.decode(data), "$") is None


def test_the_tagged_form_is_json_and_runs_nothing():
    data = Codec(bytes, "f").encode(b"\xff")
    assert data[:1] == TAGGED
    assert json.loads(data[1:]) == {"!": ["bytes", "/w=="]}


class Colour(Enum):
    RED = 1


def test_an_enum_in_a_tagged_value_comes_back_as_itself():
    codec = Codec(tuple[Colour, bytes], "f")
    assert codec.decode(codec.encode((Colour.RED, b"\xff"))) == (Colour.RED, b"\xff")


class Trimmed(BaseModel):
    name: str

    @field_validator("name", mode="before")
    @classmethod
    def trim(cls, name: str) -> str:
        return name.strip()


@pytest.mark.parametrize("data", [b'J{"name": 5}', b'T{"!":["uuid",5]}', b'T{"name":{"!":["uuid",5]}}'])
def test_whatever_a_models_own_validators_raise_on_old_bytes_is_a_decode_error(data):
    with pytest.raises(DecodeError):
        Codec(Trimmed, "f").decode(data)


def test_an_encode_error_shows_no_value():
    class Card(BaseModel):
        number: int

    wrong = Card.model_construct(number="4111-1111")
    with pytest.raises(EncodeError) as caught:
        Codec(Card, "f").encode(wrong)
    assert "4111" not in str(caught.value)


def test_a_signalling_nan_is_a_value_like_others():
    codec = Codec(Decimal, "f")
    with suppress(EncodeError):  # refused is right too; raising anything else is not
        assert str(codec.decode(codec.encode(Decimal("NaN")))) == "NaN"
    with pytest.raises(EncodeError):
        Codec(UNTYPED, "f").encode(Decimal("sNaN"))


@pytest.mark.parametrize(("annotation", "value"), [(Node, NODE), (bytes, b"\xff"), (UNTYPED, [1])])
def test_a_value_is_decoded_from_where_it_starts_in_a_larger_whole(annotation, value):
    codec = Codec(annotation, "f")
    data = codec.encode(value)
    for header in (b"J", b"T{}", b"\x00" * 100):
        assert codec.decode(header + data, len(header)) == value
        with pytest.raises(DecodeError):
            codec.decode(header + data, len(header + data))


class Parent(BaseModel):
    child: "Child"


LATE = Codec(Parent, "late")


class Child(BaseModel):
    age: int


class Deferred(BaseModel):
    model_config = ConfigDict(defer_build=True)
    age: int


def test_a_class_that_is_complete_only_later_is_found_at_the_first_call():
    parent = Parent(child=Child(age=5))
    assert LATE.decode(LATE.encode(parent)) == parent
    codec = Codec(Deferred, "f")
    assert codec.decode(codec.encode(Deferred(age=5))) == Deferred(age=5)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({"a": [Cat(lives=1)]}, {"a": [Cat(lives=2)]}, "int at $['a'][0].lives came back changed"),
        ({"a": [Cat(lives=1)]}, {"a": [Cat(lives=True)]}, None),
        ([1, {"x": (1, 2)}], [1, {"x": (1, "2")}], "int at $[1]['x'][1] came back as str"),
        ([1.0, float("nan")], [1.0, None], "float at $[1] came back as NoneType"),
        ({"{}": "{"}, {"{}": "}"}, "str at $['{}'] came back changed"),
        ({(1, "a")}, {(True, "a")}, "int at ${(1, 'a')}[0] came back as bool"),
        ([1], [1, 2], "the length of the list at $ changed"),
    ],
)
def test_what_changed_is_told_with_its_place(before, after, says):
    assert first_change(before, after, "$") == says
