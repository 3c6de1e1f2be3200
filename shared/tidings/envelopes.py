"""The envelope around an event, and how a stream entry becomes one.

In the stream an event is flat UTF-8 fields under CloudEvents 1.0 names, so that any language can write one by hand;
``type`` alone is enough.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from .errors import EventError
from .tracing import read_traceparent, read_tracestate

#: An event says what changed; it does not carry it. A larger stream entry is no event.
MAX_EVENT_BYTES = 1024 * 1024

#: A reason is read by people: so many characters of it at most.
_REASON_LENGTH = 1000


@dataclass(frozen=True, init=False)
class Envelope:
    """An event as the stream has it: CloudEvents attributes and the data, not yet of any class."""

    id: str
    type: str
    source: str
    time: datetime
    data: Mapping[str, Any]
    subject: str | None = None
    #: the id of the stream entry that it was read from
    stream_id: str | None = None
    #: the W3C trace context that it was published in; None for what is not valid
    traceparent: str | None = None
    tracestate: str | None = None

    def __init__(  # noqa: PLR0917 one for each field
        self,
        id: str,  # noqa: A002 CloudEvents' names
        type: str,  # noqa: A002
        source: str,
        time: datetime,
        data: Mapping[str, Any],
        subject: str | None = None,
        stream_id: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> None:
        # At once: a generated initializer of what is frozen takes a call for each, and every event has one of these.
        self.__dict__.update(
            id=id,
            type=type,
            source=source,
            time=time,
            data=data,
            subject=subject,
            stream_id=stream_id,
            traceparent=traceparent,
            tracestate=tracestate,
        )

    @property
    def json(self) -> str | bytes:
        """The data as JSON: the text that they were parsed from, if they were."""
        text: str | bytes | None = self.__dict__.get(_TEXT)
        return json.dumps(dict(self.data)) if text is None else text


#: Where an envelope keeps the text of its data. It is no field: an envelope made of this one with other data has none.
_TEXT = "_text"


def from_fields(stream: str, stream_id: str, fields: Mapping[bytes, bytes]) -> Envelope:
    """Read a stream entry, native or written by hand. Raises EventError with the reason it cannot be read."""
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
        names = sorted(name.decode() for name in fields)
        raise EventError(shorten(f"no 'type' among the fields {names[:20]}"))
    content = found(b"datacontenttype", _JSON)
    if content != _JSON and not _is_json(content.decode()):
        raise EventError(f"the data's content type is {content.decode()[:64]!r}, not JSON")
    text = found(b"data") or b"{}"
    subject = found(b"subject")
    envelope = Envelope(
        found(b"id", b"").decode() or stream_id,
        event_type,
        found(b"source", b"").decode() or stream,
        _time(found(b"time", b"").decode(), stream_id),
        _data(text),
        None if subject is None else subject.decode(),
        stream_id,
        read_traceparent(found(b"traceparent", b"").decode()),
        read_tracestate(found(b"tracestate", b"").decode()),
    )
    envelope.__dict__[_TEXT] = text
    return envelope


def _undecodable(fields: Mapping[bytes, bytes]) -> str:
    for name, value in fields.items():
        try:
            name.decode()
            value.decode()
        except UnicodeDecodeError as error:
            return f"the field {name[:64]!r} is not UTF-8: {error.reason} at byte {error.start}"
    return "the fields are not UTF-8"


_JSON = b"application/json"


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in {"application/json", "text/json"} or media_type.endswith("+json")


def _data(text: bytes) -> dict[str, Any]:
    """Parse the data now, although an event is read from their text.

    Data that are not JSON are set aside whether or not there is a rule for them, and no error waits for whoever is the
    first to look at them.
    """
    try:
        data = from_json(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise EventError(_unreadable(text.decode()))
    return data


def _unreadable(text: str) -> str:
    """Say why data cannot be read. The standard library's parser says where, and reads what is JSON and yet no text."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            return f"'data' is a JSON {type(data).__name__}, not an object"
        for name, value in data.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # a lone surrogate: no key could be made of it
                return f"'data' is not Unicode text at {name!a:.100}"
    except RecursionError:
        pass
    except ValueError as error:
        return f"'data' is not JSON: {error}"
    return "'data' is nested too deeply"


def _time(text: str, stream_id: str) -> datetime:
    if text:
        try:
            time = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
        except ValueError:
            raise EventError(f"'time' is not RFC 3339: {text[:64]!r}") from None
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    try:
        return datetime.fromtimestamp(int(stream_id.partition("-")[0]) / 1000, UTC)
    except (ValueError, OverflowError, OSError):  # an id made by hand need not be a time
        return datetime.now(UTC)


def shorten(reason: str) -> str:
    """Return a reason at a length that people read and streams hold."""
    return reason if len(reason) <= _REASON_LENGTH else reason[:_REASON_LENGTH] + "…"
