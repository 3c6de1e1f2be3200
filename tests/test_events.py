"""Events: their classes, their fields in the stream, and what is understood of what others write."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictInt, ValidationError
from tidings import Envelope, Event
from tidings.errors import ConfigurationError, DuplicateEventTypeError, EventError
from tidings.events import UntypedEvent, class_of, from_fields, to_fields, type_of


class OrderPlaced(Event, type="test.order.placed"):
    order_id: int
    placed: date
    note: str | None = None


class Renamed(Event, type="test.renamed"):
    user_id: int = Field(alias="userId")


class Base(Event):
    shared: int


PLACED = OrderPlaced(order_id=7, placed=date(2026, 11, 20))


def fields_as_bytes(fields):
    return {name.encode(): value.encode() for name, value in fields.items()}


def test_an_event_travels_as_flat_cloudevents_fields():
    fields = to_fields(PLACED, source="/shop", subject="order:7")
    assert {name: fields[name] for name in fields if name not in {"id", "time"}} == {
        "specversion": "1.0",
        "source": "/shop",
        "type": "test.order.placed",
        "subject": "order:7",
        "datacontenttype": "application/json",
        "data": '{"order_id":7,"placed":"2026-11-20","note":null}',
    }
    assert fields["time"].endswith("Z")
    assert datetime.fromisoformat(fields["time"]).tzinfo is not None


def test_every_event_has_an_id_of_its_own():
    assert len({to_fields(PLACED, source="/")["id"] for _ in range(100)}) == 100


def test_what_was_written_is_read_back_with_its_envelope():
    envelope = from_fields("events", "5-0", fields_as_bytes(to_fields(PLACED, source="/shop", subject="order:7")))
    event = class_of(envelope.type).read(envelope)
    assert event == PLACED
    assert event.envelope == envelope
    assert (envelope.source, envelope.subject, envelope.stream_id) == ("/shop", "order:7", "5-0")


def test_the_type_alone_is_an_event():
    envelope = from_fields("events", "1700000000000-3", {b"type": b"anything"})
    assert envelope == Envelope(
        id="1700000000000-3",
        type="anything",
        source="events",
        time=datetime.fromtimestamp(1700000000, UTC),
        data={},
        stream_id="1700000000000-3",
    )


def test_fields_of_extensions_are_let_through():
    assert from_fields("events", "5-0", {b"type": b"x", b"traceparent": b"00-ab-cd-01"}).type == "x"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "no 'type'"),
        ({b"type": b""}, "no 'type'"),
        ({b"data": b"{}"}, "neither a CloudEvent, with 'type'"),
        ({b"type": b"\xff"}, "the field b'type' is not UTF-8"),
        ({b"type": b"x", b"\xff": b""}, r"the field b'\\xff' is not UTF-8"),
        ({b"type": b"x", b"data": b"{"}, "'data' is not JSON"),
        ({b"type": b"x", b"data": b"[1]"}, "'data' is a JSON list, not an object"),
        ({b"type": b"x", b"data": b"null"}, "'data' is a JSON NoneType, not an object"),
        ({b"type": b"x", b"data": b"[" * 100_000}, "'data' is"),
        ({b"type": b"x", b"data": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"}, "'data' is nested too deeply"),
        ({b"type": b"x", b"data": b'{"a": "\\ud800"}'}, "'data' is not Unicode text at 'a'"),
        ({b"type": b"x", b"data": b'{"\\ud800": 1}'}, r"'data' is not Unicode text at '\\ud800'"),
        ({b"type": b"x", b"data": b'{"a": [{"b": "\\ud800"}]}'}, "'data' is not Unicode text at 'a'"),
        ({b"type": b"x", b"data": b"\xef\xbb\xbf{}"}, "'data' is not JSON"),
        ({b"type": b"x", b"data": '{"a": 1}'.encode("utf-16-le")}, "'data' is not JSON"),
        ({b"type": b"x", b"data": b'{"a": ' + b"9" * 5000 + b"}"}, "'data' is not JSON"),
        ({b"type": b"x", b"data": b'{"a": "\xed\xa0\x80"}'}, "the field b'data' is not UTF-8"),
        ({b"type": b"x", b"data": b"x" * 2_000_000}, "2000009 bytes are more than an event's 1048576"),
        ({b"type": b"x", b"time": b"yesterday"}, "'time' is not RFC 3339"),
        ({b"type": b"x", b"datacontenttype": b"application/avro"}, "content type is 'application/avro'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_says_why(fields, reason):
    with pytest.raises(EventError, match=reason):
        from_fields("events", "5-0", fields)


def test_fields_with_nuls_and_any_unicode_are_read_as_they_are():
    fields = {b"type": "\0t\u00fd\U0001f600".encode(), b"x\0": b"\0", b"subject": b"", b"id": b"\0"}
    envelope = from_fields("events", "5-0", fields)
    assert (envelope.type, envelope.subject, envelope.id) == ("\0t\u00fd\U0001f600", "", "\0")


def test_two_fields_that_only_together_are_utf_8_are_refused():
    with pytest.raises(EventError, match="the field b'type' is not UTF-8"):
        from_fields("events", "5-0", {b"type": b"x\xc3", b"source": b"\xa9"})


def test_an_event_may_have_so_many_bytes_and_no_more():
    fields = {b"type": b"x", b"data": b"{}", b"x": b""}
    room = 1024 * 1024 - sum(len(name) + len(value) for name, value in fields.items())
    assert from_fields("events", "5-0", fields | {b"x": b"x" * room}).type == "x"
    with pytest.raises(EventError, match="1048577 bytes are more than an event's 1048576"):
        from_fields("events", "5-0", fields | {b"x": b"x" * (room + 1)})


def test_an_envelope_cannot_be_changed_and_equals_one_of_the_same_attributes():
    envelope, same = by_hand(b'{"a": 1}'), by_hand(b'{"a":  1}')
    assert envelope == same
    assert envelope != replace(envelope, data={"a": 2})
    with pytest.raises(FrozenInstanceError):
        envelope.id = "another"


def test_an_envelope_gives_its_data_as_the_text_that_came_unless_it_has_others():
    envelope = by_hand(b'{"a":  1}')
    assert envelope.json == copy.copy(envelope).json == b'{"a":  1}'
    assert json.loads(replace(envelope, data={"a": 2}).json) == {"a": 2}


@given(st.dictionaries(st.sampled_from([b"type", b"data", b"time", b"id", b"x"]) | st.binary(max_size=8), st.binary()))
def test_no_fields_whatsoever_raise_anything_but_an_event_error(fields):
    try:
        from_fields("events", "5-0", fields)
    except EventError:
        return


def envelope_of(data):
    return Envelope("1", "test.order.placed", "/", datetime.now(UTC), data)


def test_a_field_that_a_newer_publisher_added_is_ignored():
    data = {"order_id": 7, "placed": "2026-11-20", "newer": True}
    assert OrderPlaced.read(envelope_of(data)) == PLACED


def test_a_field_that_a_newer_publisher_added_is_ignored_in_an_event_from_the_stream():
    envelope = by_hand(b'{"order_id": 7, "placed": "2026-11-20", "newer": {"deep": ["true"]}}')
    assert OrderPlaced.read(envelope) == PLACED
    assert envelope.data["newer"] == {"deep": ["true"]}


def by_hand(data, event_type=b"test.order.placed"):
    return from_fields("events", "5-0", {b"type": event_type, b"data": data})


class Exact(Event, type="test.exact"):
    flag: bool
    ratio: float
    count: StrictInt


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b'{"flag": true, "ratio": 1, "count": 2}', None),
        (b'{"flag": true, "ratio": 1, "count": 2.0}', "count"),
        (b'{"flag": 2, "ratio": 1.5, "count": 2}', "flag"),
        (b'{"flag": true, "ratio": true, "count": true}', "count"),
        (b'{"flag": true, "ratio": 1.5, "count": "2"}', "count"),
    ],
    ids=["fits", "float for int", "number for bool", "bool for int", "string for int"],
)
def test_data_from_the_stream_and_from_a_dict_are_read_alike(data, wrong):
    """An event is read from the text that came, one of an envelope made by hand from its data: both are JSON."""
    came = by_hand(data, b"test.exact")
    made = Envelope("1", "test.exact", "/", came.time, json.loads(data))
    for envelope in (came, made):
        if wrong is None:
            assert Exact.read(envelope).ratio == 1.0
        else:
            with pytest.raises(EventError, match=wrong):
                Exact.read(envelope)


def test_of_two_values_of_one_field_the_last_counts_for_the_event_and_for_the_data():
    """What is said about the envelope and what a rule is given must be the same."""
    envelope = by_hand(b'{"order_id": 1, "order_id": 7, "placed": "2026-11-20"}')
    assert envelope.data["order_id"] == OrderPlaced.read(envelope).order_id == 7


def test_an_envelope_with_other_data_is_read_as_those():
    envelope = replace(
        by_hand(b'{"order_id": 1, "placed": "2026-11-20"}'), data={"order_id": 7, "placed": "2026-11-20"}
    )
    assert OrderPlaced.read(envelope) == PLACED


def _unpickled(event):
    return pickle.loads(pickle.dumps(event))  # noqa: S301 our own


def test_an_event_is_found_with_its_envelope_in_copies_and_pickles():
    envelope = by_hand(b'{"order_id": 7, "placed": "2026-11-20"}')
    event = OrderPlaced.read(envelope)
    copies = (event.model_copy(), copy.copy(event), copy.deepcopy(event), _unpickled(event))
    assert [one.envelope for one in copies] == [envelope] * 4
    assert list(copies) == [event] * 4
    assert PLACED.envelope is None


class Noted(Event, type="test.noted"):
    user_id: int
    _seen: int = PrivateAttr(default=3)


def test_an_event_class_may_have_private_attributes_of_its_own():
    envelope = by_hand(b'{"user_id": 1}', b"test.noted")
    event = Noted.read(envelope)
    assert (event._seen, event.envelope) == (3, envelope)
    assert Noted(user_id=1).envelope is None


def test_data_that_do_not_fit_are_listed_without_their_values():
    with pytest.raises(EventError, match=r"order_id: .*valid integer.*; placed: Field required") as caught:
        OrderPlaced.read(envelope_of({"order_id": "s3cret"}))
    assert "s3cret" not in str(caught.value)


def test_a_mistyped_field_is_refused_when_an_event_is_made():
    with pytest.raises(ValidationError):
        OrderPlaced(order_id=7, placed=date(2026, 1, 1), nte="x")


def test_an_event_that_would_not_be_read_back_is_refused_when_published():
    broken = OrderPlaced.model_construct(order_id="seven", placed=date(2026, 1, 1))
    with pytest.raises(EventError, match="order_id"):
        to_fields(broken, source="/")


def test_an_event_too_large_to_be_read_is_refused_when_published():
    with pytest.raises(EventError, match="say what changed"):
        to_fields(OrderPlaced(order_id=7, placed=date(2026, 1, 1), note="x" * 600_000), source="/")


def test_an_event_with_aliases_is_read_back():
    event = Renamed(userId=3)
    envelope = from_fields("events", "5-0", fields_as_bytes(to_fields(event, source="/")))
    assert Renamed.read(envelope) == event


def test_two_classes_with_one_type_are_refused_by_name():
    with pytest.raises(DuplicateEventTypeError, match=r"test_events:\S*Other: .* already belongs to \S*OrderPlaced"):

        class Other(Event, type="test.order.placed"): ...


def test_a_module_that_is_imported_again_may_define_its_event_again():
    def define():
        class Again(Event, type="test.again"): ...

        return Again

    define()
    assert class_of("test.again") is define() or class_of("test.again").__qualname__.endswith("Again")


def test_a_class_without_a_type_is_a_base_and_cannot_be_published():
    class Derived(Base, type="test.derived"): ...

    assert type_of(Derived(shared=1)) == "test.derived"
    with pytest.raises(EventError, match=r'has no type: class Base\(Event, type="…"\)'):
        to_fields(Base(shared=1), source="/")


def test_an_event_by_its_types_name_is_of_its_class_or_untyped():
    assert Event.of("test.order.placed", {"order_id": 7, "placed": "2026-11-20"}) == PLACED
    with pytest.raises(EventError, match="placed"):
        Event.of("test.order.placed", {"order_id": 7})
    untyped = Event.of("test.nobody.knows", {"user_id": 4, "tags": ["a"]})
    assert isinstance(untyped, UntypedEvent)
    assert (untyped.user_id, type_of(untyped)) == (4, "test.nobody.knows")
    assert json.loads(to_fields(untyped, source="/")["data"]) == {"user_id": 4, "tags": ["a"]}


def test_events_are_frozen():
    with pytest.raises(ValidationError):
        PLACED.order_id = 8


class Inner(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Strict(Event, type="test.strict"):
    model_config = ConfigDict(strict=True)
    day: date
    inner: Inner


def test_a_strict_event_is_read_as_the_json_that_it_is():
    event = Strict(day=date(2026, 1, 1), inner=Inner(a=1, b=2))
    envelope = from_fields("events", "5-0", fields_as_bytes(to_fields(event, source="/")))
    assert Strict.read(envelope) == event


@pytest.mark.filterwarnings("ignore:Field name")  # pydantic warns of it too, before we refuse it
@pytest.mark.parametrize("name", ["event_type", "envelope", "of", "read"])
def test_a_field_named_like_what_every_event_has_is_refused_at_definition(name):
    with pytest.raises(ConfigurationError, match=name):
        type("Clash", (Event,), {"__annotations__": {name: str}, "__module__": __name__}, type=f"test.clash.{name}")


def test_an_id_that_is_no_time_is_an_event_of_now():
    assert from_fields("events", "18446744073709551615-1", {b"type": b"x"}).time <= datetime.now(UTC)


def test_rfc_3339_times_and_json_content_types_are_understood_in_all_their_spellings():
    fields = {b"type": b"x", b"time": b"2026-01-01t00:00:00z", b"datacontenttype": b"application/vnd.shop+json"}
    assert from_fields("events", "5-0", fields).time == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_reason_stays_readable_however_much_is_wrong():
    class Many(Event, type="test.many"):
        rows: list[int]

    with pytest.raises(EventError, match="and 99990 more") as caught:
        Many.read(Envelope("1", "test.many", "/", datetime.now(UTC), {"rows": ["x"] * 100_000}))
    assert len(str(caught.value)) < 1200
    with pytest.raises(EventError) as caught:
        from_fields("events", "5-0", {b"x" * 500_000: b""})
    assert len(str(caught.value)) < 1200
