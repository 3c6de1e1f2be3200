"""How a stream entry becomes an event's envelope, whoever wrote it.

    a field ``type``                      native, or written by hand: flat UTF-8 fields under CloudEvents names
    one field, a CloudEvent as JSON       `structured`
    ``key`` and ``value``                 Debezium Server's Redis sink, ``extended`` (`debezium`)
    one field, its name a key as JSON     the same, ``compact``

Looked for in this order. ``type`` alone is enough, so that any language can write an event by hand.
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from . import debezium, structured
from .envelopes import (
    JSON_TYPE,
    MAX_EVENT_BYTES,
    TEXT,
    Envelope,
    check_json_type,
    object_of,
    shorten,
    time_of,
    unreadable,
)
from .errors import EventError
from .tracing import read_traceparent, read_tracestate


def from_fields(
    stream: str, stream_id: str, fields: Mapping[bytes, bytes], *, snapshot_reads: bool = False
) -> Envelope:
    """Read a stream entry. Raises EventError with the reason it cannot be read.

    Its subclass IgnoredEventError is raised for what Debezium writes beside changes; rows that it has only read for a
    snapshot are among that unless `snapshot_reads`.
    """
    # In one piece, NULs between, across which nothing becomes UTF-8 that is not: half the time of one after another.
    whole = b"\0".join([*fields, *fields.values()])
    size = len(whole) - 2 * len(fields) + 1
    if size > MAX_EVENT_BYTES:
        raise EventError(f"{size} bytes are more than an event's {MAX_EVENT_BYTES}")
    try:
        whole.decode()
    except UnicodeDecodeError:
        raise EventError(_undecodable(fields)) from None
    found = fields.get
    event_type = found(b"type", b"").decode()
    if not event_type:
        return _from_others(stream, stream_id, fields, snapshot_reads=snapshot_reads)
    content = found(b"datacontenttype", JSON_TYPE)
    if content != JSON_TYPE:
        check_json_type(content.decode())
    text = found(b"data") or b"{}"
    subject = found(b"subject")
    envelope = Envelope(
        found(b"id", b"").decode() or stream_id,
        event_type,
        found(b"source", b"").decode() or stream,
        time_of(found(b"time", b"").decode(), stream_id),
        object_of(text),
        None if subject is None else subject.decode(),
        stream_id,
        read_traceparent(found(b"traceparent", b"").decode()),
        read_tracestate(found(b"tracestate", b"").decode()),
    )
    envelope.__dict__[TEXT] = text
    return envelope


def _undecodable(fields: Mapping[bytes, bytes]) -> str:
    for name, value in fields.items():
        try:
            name.decode()
            value.decode()
        except UnicodeDecodeError as error:
            return f"the field {name[:64]!r} is not UTF-8: {error.reason} at byte {error.start}"
    return "the fields are not UTF-8"


def _from_others(stream: str, stream_id: str, fields: Mapping[bytes, bytes], *, snapshot_reads: bool) -> Envelope:
    """Read an entry without a type. A CloudEvent may stand wherever Debezium has a value."""
    if len(fields) == 1:
        ((key, text),) = fields.items()
        where, by_debezium = key.decode()[:64], debezium.is_key(key)
    elif b"key" in fields and b"value" in fields:
        key, text, where, by_debezium = fields[b"key"], fields[b"value"], "value", True
    else:
        names = sorted(name.decode() for name in fields)
        raise EventError(
            shorten(f"no 'type' among the fields {names[:20]}, nor 'key' and 'value' of Debezium, nor one field alone")
        )
    if by_debezium and text in debezium.NO_VALUE:
        return debezium.read(key, None, stream_id, snapshot_reads=snapshot_reads)
    content = _content(text, where)
    # A row without Debezium's envelope may have a column "type": there it takes more than that to be a CloudEvent.
    if "specversion" in content or ("type" in content and not by_debezium):
        change = debezium.change_in(content)
        if change is None:
            return structured.read(content, stream, stream_id)
        content = change
    return debezium.read(key, content, stream_id, snapshot_reads=snapshot_reads)


def _content(text: bytes, where: str) -> dict[str, Any]:
    sought = f"no 'type' among the fields; looked into {where!r} for a CloudEvent or a change by Debezium"
    try:
        content = from_json(text)
    except ValueError:
        content = None
    if isinstance(content, list):
        raise EventError(f"{sought}: a JSON array, as of a batch of CloudEvents; write each as an entry of its own")
    if not isinstance(content, dict):
        raise EventError(shorten(f"{sought}: {unreadable(text.decode(), 'it')}"))
    return content
