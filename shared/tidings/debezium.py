"""What Debezium Server writes with its Redis sink: a change of a row as ``<schema>.<table>.<created|updated|deleted>``.

A message is a key and a value, both JSON, each with or without its schema around it. The event's data are the two
images of the row, ``{"before": {...} | null, "after": {...} | null}``, as Debezium has them and nothing else, so that
no column is hidden by a name of ours. The key is in the subject.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from .envelopes import TEXT, Envelope, object_of, shorten, time_of_entry
from .errors import EventError, IgnoredEventError

#: What the sink writes for a key that is null (a table without one), unless it is told otherwise.
_NO_KEY = b"default"

#: What it writes for a value that is null, and what else means just that.
NO_VALUE = frozenset({b"default", b"null", b""})

_VERBS = {"c": "created", "u": "updated", "d": "deleted", "t": "truncated", "r": "read"}

#: Stands for a large value that the database has not told because it did not change: the column is not known.
_UNAVAILABLE = "__debezium_unavailable_value"

#: What the attributes of a change begin with where Debezium writes CloudEvents.
_ATTRIBUTE = "iodebezium"


def is_key(name: bytes) -> bool:
    """Say whether a field's name is a message's key, as in the compact layout."""
    return name == _NO_KEY or _json(name) is not None


def change_in(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the change that a CloudEvent of Debezium's carries, as Debezium writes it otherwise; None for others."""
    op = event.get(_ATTRIBUTE + "op")
    if op is None:
        return None
    images = _payload(event.get("data"))
    source = {name: event.get(_ATTRIBUTE + name) for name in ("name", "db", "schema", "table", "collection")}
    source["ts_ms"] = event.get(_ATTRIBUTE + "tsms")
    return {**(images if isinstance(images, dict) else {}), "op": op, "source": source}


def read(key: bytes, value: dict[str, Any] | None, stream_id: str, *, snapshot_reads: bool) -> Envelope:
    """Return the envelope of a change.

    Raises EventError with the reason it cannot be read, and IgnoredEventError for what is none: a tombstone, a
    heartbeat, the beginning or end of a transaction, a change of the schema, a message of the application's, and a row
    that was read for a snapshot unless `snapshot_reads`.
    """
    change = _payload(value)
    if change is None:
        raise IgnoredEventError("tombstone")
    identity = _payload(_json(key))
    if not isinstance(change, dict) or not {"op", "source"} <= change.keys():
        raise _no_change(identity, change)
    op, source = change["op"], change["source"]
    if op == "m":
        raise IgnoredEventError("message")
    if op == "r" and not snapshot_reads:
        raise IgnoredEventError("snapshot_read")
    if not isinstance(op, str) or op not in _VERBS:
        raise EventError(f"Debezium's 'op' is {op!r:.64}, none of {', '.join(_VERBS)}")
    table = _table(source)
    data = {"before": _image(change, "before"), "after": _image(change, "after")}
    envelope = Envelope(
        stream_id,
        f"{table}.{_VERBS[op]}",
        f"/debezium/{source['name']}" if isinstance(source.get("name"), str) else "/debezium",
        _time(source.get("ts_ms")) or _time(change.get("ts_ms")) or time_of_entry(stream_id),
        data,
        table if identity is None else f"{table}:{to_json(identity).decode()}",
        stream_id,
    )
    envelope.__dict__[TEXT] = to_json(data)
    return envelope


def _no_change(identity: Any, value: Any) -> EventError:
    """Return what to raise for a message that is no change: only what is certain is ignored."""
    names: set[str] = set(value) if isinstance(value, dict) else set()
    if isinstance(identity, dict) and identity.keys() == {"serverName"} and names and names <= _CLOCKS:
        return IgnoredEventError("heartbeat")
    if names >= {"status", "id", "event_count", "data_collections"} and value["status"] in ("BEGIN", "END"):
        return IgnoredEventError("transaction")
    if names >= {"source", "databaseName", "ddl", "tableChanges"}:
        return IgnoredEventError("schema_change")
    return EventError(
        shorten(
            "neither a CloudEvent, with 'type' (and 'specversion' where Debezium's key is), nor a change by Debezium,"
            f" with 'op' and 'source': it has {sorted(names)[:20]}"
            " (a row without Debezium's envelope, as ExtractNewRecordState leaves it, does not say what it was before)"
        )
    )


_CLOCKS = frozenset({"ts_ms", "ts_us", "ts_ns"})


def _json(text: bytes) -> Any:
    """Return what a key says, or None for what is no JSON."""
    try:
        return from_json(text)
    except ValueError:
        return None


def _payload(value: Any) -> Any:
    """Take off the schema, if there is one around it."""
    return value["payload"] if isinstance(value, dict) and value.keys() == {"schema", "payload"} else value


def _table(source: Any) -> str:
    found = source if isinstance(source, dict) else {}
    schema = found.get("schema") or found.get("db")  # MySQL and MongoDB have no schemas
    table = found.get("table") or found.get("collection")
    if not (isinstance(schema, str) and isinstance(table, str)):
        names = sorted(found)[:20]
        raise EventError(shorten(f"Debezium's 'source' names no schema (or db) and table (or collection): {names}"))
    return f"{schema}.{table}"


def _image(change: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    image = change.get(name)
    if image is None:
        return None
    if isinstance(image, str):  # a document of MongoDB
        image = object_of(image.encode(), f"{name!r}")
    if not isinstance(image, dict):
        raise EventError(f"{name!r} is a JSON {type(image).__name__}, not a row")
    return {column: value for column, value in image.items() if value != _UNAVAILABLE}


def _time(milliseconds: Any) -> datetime | None:
    try:
        stamp = int(milliseconds) / 1000  # in a CloudEvent it is text
        return datetime.fromtimestamp(stamp, UTC) if stamp > 0 else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None
