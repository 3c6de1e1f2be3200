"""What others write: structured CloudEvents, Debezium's messages in each of its layouts, and entries made by hand."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tidings import Envelope
from tidings.errors import EventError
from tidings.events import IgnoredEventError, from_fields

RECORDED = Path(__file__).parent / "recorded"
LAYOUTS = ("extended", "extended-with-schema", "compact", "compact-with-schema")

SOURCE = {"connector": "postgresql", "name": "shop", "ts_ms": 1763719200000, "db": "app", "schema": "public"}
UPDATED = {"before": None, "after": {"id": 7}, "op": "u", "source": {**SOURCE, "table": "users"}}


def recorded(layout):
    lines = (RECORDED / f"debezium-{layout}.jsonl").read_text().splitlines()
    return {message["what"]: as_bytes(message["fields"]) for message in map(json.loads, lines)}


def as_bytes(fields):
    return {name.encode(): value.encode() for name, value in fields.items()}


def read(fields, **options):
    return from_fields("events", "5-0", as_bytes(fields), **options)


def structured(event, name="event"):
    return read({name: json.dumps(event)})


def message(value, key='{"id":7}', **options):
    """Read a message in both layouts."""
    text = value if isinstance(value, str) else json.dumps(value)
    envelope = read({"key": key, "value": text}, **options)
    assert read({key: text}, **options) == envelope
    return envelope


# Structured CloudEvents


@pytest.mark.parametrize("name", ["event", "data", "value", "", "default!", "\0"])
def test_a_structured_cloudevent_stands_in_one_field_of_any_name(name):
    event = {
        "specversion": "1.0",
        "type": "user.updated",
        "id": "e-1",
        "source": "/crm",
        "subject": "user:7",
        "time": "2026-11-20T10:00:00Z",
        "datacontenttype": "application/json; charset=utf-8",
        "dataschema": "https://example.com/user",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=1",
        "data": {"user_id": 7},
    }
    envelope = structured(event, name)
    assert envelope == Envelope(
        "e-1",
        "user.updated",
        "/crm",
        datetime(2026, 11, 20, 10, tzinfo=UTC),
        {"user_id": 7},
        "user:7",
        "5-0",
        event["traceparent"],
        "vendor=1",
    )
    assert json.loads(envelope.json) == {"user_id": 7}


@pytest.mark.parametrize("name", ["event", "value"])
def test_of_a_cloudevent_too_the_type_alone_is_enough(name):
    envelope = structured({"type": "x", "id": None, "subject": None, "data": None}, name)
    assert envelope == Envelope("5-0", "x", "events", datetime.fromtimestamp(0.005, UTC), {}, None, "5-0")


def test_data_in_base64_are_json_inside():
    encoded = base64.b64encode('{"name": "Žofie"}'.encode()).decode()
    assert structured({"type": "x", "data_base64": encoded}).data == {"name": "Žofie"}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ([{"specversion": "1.0", "type": "x"}], "a JSON array, as of a batch of CloudEvents; write each as an entry"),
        ({"specversion": "1.0"}, r"no 'type' in the CloudEvent, which has \['specversion'\]"),
        ({"specversion": "1.0", "type": ""}, "no 'type' in the CloudEvent"),
        ({"specversion": "0.3", "type": "x"}, "CloudEvents 1.0 can be read, not '0.3'"),
        ({"specversion": 1, "type": "x"}, "'specversion' of the CloudEvent is a JSON int, not a string"),
        ({"type": ["x"]}, "'type' of the CloudEvent is a JSON list, not a string"),
        ({"type": "x", "id": 1}, "'id' of the CloudEvent is a JSON int"),
        ({"type": "x", "time": "yesterday"}, "'time' is not RFC 3339"),
        ({"type": "x", "subject": {}}, "'subject' of the CloudEvent is a JSON dict"),
        ({"type": "x", "datacontenttype": "text/xml", "data": "<a/>"}, "content type is 'text/xml', not JSON"),
        ({"type": "x", "data": "{}"}, "'data' is a JSON str, not an object"),
        ({"type": "x", "data": [1]}, "'data' is a JSON list, not an object"),
        ({"type": "x", "data_base64": "?"}, "'data_base64' is not UTF-8 text in base64"),
        ({"type": "x", "data_base64": "/w=="}, "'data_base64' is not UTF-8 text in base64"),
        ({"type": "x", "data_base64": "Ww=="}, "'data_base64' is not JSON"),
        ({"type": "x", "data_base64": "W10="}, "'data_base64' is a JSON list, not an object"),
        ({"type": "x", "data": {}, "data_base64": "e30="}, "both 'data' and 'data_base64'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_cloudevent_that_cannot_be_read_says_why(event, reason):
    with pytest.raises(EventError, match=reason) as caught:
        structured(event)
    assert not isinstance(caught.value, IgnoredEventError)


# Debezium


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_of_debezium_says_the_same(layout):
    expected, found = recorded("extended"), recorded(layout)
    assert list(found) == list(expected)
    for what, fields in found.items():
        assert outcome(fields) == outcome(expected[what])


def outcome(fields, **options):
    """Return the envelope, the kind of what is ignored, or the reason why it cannot be read; raise anything else."""
    try:
        return from_fields("events", "5-0", fields, **options)
    except IgnoredEventError as ignored:
        return ignored.kind
    except EventError as unreadable:
        return unreadable


def test_a_change_is_an_event_of_its_table_with_both_images_of_the_row():
    envelope = from_fields("events", "5-0", recorded("compact")["updated, moved to another team"])
    row = {"id": 7, "team_id": 1, "name": "Grace", "joined": 20413, "credit": "MDk="}
    assert envelope == Envelope(
        "5-0",
        "public.users.updated",
        "/debezium/shop",
        datetime(2025, 11, 21, 10, 0, 2, tzinfo=UTC),
        {"before": row, "after": row | {"team_id": 2}},
        'public.users:{"id":7}',
        "5-0",
    )
    assert json.loads(envelope.json) == envelope.data


def test_what_is_recorded_becomes_these_types_and_the_rest_is_ignored():
    found = [outcome(fields) for fields in recorded("extended").values()]
    assert [envelope.type for envelope in found if isinstance(envelope, Envelope)] == [
        "public.users.created",
        "public.users.updated",
        "public.users.updated",
        "public.users.deleted",
        "public.sessions.truncated",
        "inventory.products.updated",
    ]
    assert [kind for kind in found if isinstance(kind, str)] == [
        "snapshot_read",
        "heartbeat",
        "transaction",
        "tombstone",
        "message",
        "schema_change",
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_snapshot_reads_are_events_when_asked_for(layout):
    fields = recorded(layout)["a row read for the snapshot"]
    envelope = from_fields("events", "5-0", fields, snapshot_reads=True)
    assert (envelope.type, envelope.data["before"]) == ("public.users.read", None)


def test_changes_as_cloudevents_say_the_same():
    plain = recorded("extended")
    for what, fields in recorded("extended-cloudevents").items():
        assert outcome(fields) == outcome(plain[what])
        assert outcome({fields[b"key"]: fields[b"value"]}) == outcome(plain[what])
        wrapped = json.loads(fields[b"value"])
        wrapped["data"] = {"schema": {}, "payload": wrapped["data"]}
        assert outcome(fields | {b"value": json.dumps(wrapped).encode()}) == outcome(plain[what])


def test_a_null_key_is_written_as_the_word_default():
    assert message(UPDATED, key="default").subject == "public.users"
    for key in ("default", '{"id":7}', '{"schema":null,"payload":{"id":7}}'):
        for value in ("default", "null", "", '{"schema":null,"payload":null}'):
            with pytest.raises(IgnoredEventError, match="tombstone"):
                message(value, key=key)


def test_documents_of_mongodb_are_rows_too():
    source = {"connector": "mongodb", "name": "shop", "ts_ms": 0, "db": "app", "collection": "users"}
    change = {"before": None, "after": '{"_id": {"$oid": "5f"}, "team": 1}', "op": "c", "source": source}
    envelope = message(change | {"ts_ms": 1763719200000})
    assert envelope.type == "app.users.created"
    assert envelope.data == {"before": None, "after": {"_id": {"$oid": "5f"}, "team": 1}}
    assert envelope.time == datetime(2025, 11, 21, 10, tzinfo=UTC)


def test_a_column_that_the_database_did_not_tell_is_left_out():
    envelope = message(UPDATED | {"after": {"id": 7, "bio": "__debezium_unavailable_value"}})
    assert envelope.data["after"] == {"id": 7}


@pytest.mark.parametrize("stamp", [None, "soon", -1, 10**30, 1e400, [1], {}], ids=str)
def test_a_time_that_is_none_is_that_of_the_entry(stamp):
    change = UPDATED | {"source": SOURCE | {"table": "users", "ts_ms": stamp, "name": None}}
    envelope = message(json.dumps(change))
    assert (envelope.time, envelope.source) == (datetime.fromtimestamp(0.005, UTC), "/debezium")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (UPDATED | {"op": "x"}, "'op' is 'x', none of c, u, d, t, r"),
        (UPDATED | {"op": ["u"]}, "'op' is"),
        (UPDATED | {"source": None}, "'source' names no schema"),
        (UPDATED | {"source": SOURCE}, r"names no schema \(or db\) and table \(or collection\): \['connector'"),
        (UPDATED | {"source": {"table": "users"}}, "names no schema"),
        (UPDATED | {"before": 1}, "'before' is a JSON int, not a row"),
        (UPDATED | {"after": "{"}, "'after' is not JSON"),
        (UPDATED | {"after": "[]"}, "'after' is a JSON list, not an object"),
        ({"id": 7, "type": "admin"}, "neither a CloudEvent, .* 'source': it has .*ExtractNewRecordState"),
        ({"ts_ms": 1}, "neither a CloudEvent"),
        ({"status": "BEGIN", "id": "1"}, "neither a CloudEvent"),
        ({"schema": {}, "payload": 3}, "neither a CloudEvent"),
        ([UPDATED], "a JSON array"),
        ("7", "looked into .* for a CloudEvent or a change by Debezium: it is a JSON int, not an object"),
        ("FooBar", "it is not JSON"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "it is nested too deeply"),
        ('{"a": "\\ud800"}', "it is not Unicode text at 'a'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_message_that_cannot_be_read_says_why_and_what_was_looked_for(value, reason):
    """A row without Debezium's envelope may have a column ``type``: it is no CloudEvent for that."""
    with pytest.raises(EventError, match=reason) as caught:
        message(value)
    assert not isinstance(caught.value, IgnoredEventError)
    assert len(str(caught.value)) < 1200


# By hand, and by whom it may be


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "user.updated", "data": '{"user_id": 7}'}, {"user_id": 7}),
        ({"type": "user.updated", "data": ""}, {}),
        ({"type": "user.updated"}, {}),
        ({"type": "user.updated", "key": "a", "value": "b"}, {}),
        ({"data": '{"type": "user.updated", "data": {"user_id": 7}}'}, {"user_id": 7}),
        ({"type": ' {"type": "other"}'}, {}),
    ],
    ids=["data", "empty", "type", "among others", "structured", "a type like no other"],
)
def test_what_is_written_by_hand_is_read(fields, expected):
    assert read(fields).data == expected


HOSTILE = [b"", b"\0", b"{", b"[]", b"7", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 500, b"x" * 1_100_000]
SHAPES = {
    "native": lambda value: {b"type": b"x", b"data": value},
    "structured": lambda value: {b"event": value},
    "structured data": lambda value: {b"event": b'{"type": "x", "data": ' + value + b"}"},
    "extended": lambda value: {b"key": b'{"id": 7}', b"value": value},
    "extended, the key": lambda value: {b"key": value, b"value": json.dumps(UPDATED).encode()},
    "compact": lambda value: {b'{"id": 7}': value},
    "compact, the key": lambda value: {value: json.dumps(UPDATED).encode()},
    "an image": lambda value: {
        b"default": b'{"source": {"db": "a", "table": "b"}, "op": "u", "after": ' + value + b"}"
    },
    "no layout": lambda value: {b"a": value, b"b": value},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: str(value)[:12])
def test_whatever_is_in_a_field_is_an_event_or_ignored_or_has_a_reason(shape, value):
    found = outcome(SHAPES[shape](value))
    if isinstance(found, Envelope):
        assert found.type in {"x", "public.users.updated", "a.b.updated"}
    else:
        assert 0 < len(str(found)) < 1200


def names():
    words = ["type", "specversion", "data", "data_base64", "op", "source", "before", "after", "schema", "payload"]
    return st.sampled_from([*words, "table", "db", "ts_ms", "iodebeziumop", "iodebeziumtsms", "id", "ddl"]) | st.text()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["u", "1.0", "x"]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names(), inner, max_size=6),
    max_leaves=12,
)
TEXTS = st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode())


@given(st.dictionaries(st.sampled_from([b"key", b"value", b"type", b"data"]) | TEXTS, TEXTS, max_size=4), st.booleans())
@example({b"{}": json.dumps(UPDATED | {"after": {"n": 10**4000}}).encode()}, False)
@example({b"{}": b'{"op": "c", "source": {"db": "a", "table": "b"}, "after": {"n": NaN}}'}, False)
@example({b"1": b'{"specversion": "1.1", "iodebeziumop": "d", "iodebeziumtsms": "\xc2\xb2"}'}, False)
def test_any_entry_is_an_event_or_ignored_or_has_a_reason(fields, snapshot_reads):
    found = outcome(fields, snapshot_reads=snapshot_reads)
    if isinstance(found, Envelope):
        assert isinstance(found.type, str)
        assert isinstance(found.data, dict)
        assert found.time.tzinfo
        assert found.json
    else:
        assert str(found)
