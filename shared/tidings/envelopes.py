"""The envelope around an event, and what all that make one have in common: JSON, times, reasons. See `decoding`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from .errors import EventError

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
        text: str | bytes | None = self.__dict__.get(TEXT)
        return json.dumps(dict(self.data)) if text is None else text


#: Where an envelope keeps the text of its data. It is no field: an envelope made of this one with other data has none.
TEXT = "_text"


JSON_TYPE = b"application/json"


def check_json_type(content_type: str) -> None:
    """Raise EventError unless data of this content type are JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    if not (media_type in {"application/json", "text/json"} or media_type.endswith("+json")):
        raise EventError(f"the data's content type is {content_type[:64]!r}, not JSON")


def object_of(text: bytes, what: str = "'data'") -> dict[str, Any]:
    """Parse UTF-8 text that is a JSON object, or raise EventError, in which `what` names it.

    Data are parsed when an entry is read, although an event is read from their text: those that are not JSON are set
    aside whether or not there is a rule for them, and no error waits for whoever is the first to look at them.
    """
    try:
        data = from_json(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise EventError(unreadable(text.decode(), what))
    return data


def unreadable(text: str, what: str) -> str:
    """Say why text is no JSON object. The standard library's parser says where, and reads what is JSON and no text."""
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            return f"{what} is a JSON {type(data).__name__}, not an object"
        for name, value in data.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # a lone surrogate: no key could be made of it
                return f"{what} is not Unicode text at {name!a:.100}"
    except RecursionError:
        pass
    except ValueError as error:
        return f"{what} is not JSON: {error}"
    return f"{what} is nested too deeply"


def time_of(text: str, stream_id: str) -> datetime:
    """Return the time that a producer wrote, else that of the stream entry. Raises EventError for what is no time."""
    if text:
        try:
            time = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
        except ValueError:
            raise EventError(f"'time' is not RFC 3339: {text[:64]!r}") from None
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return time_of_entry(stream_id)


def time_of_entry(stream_id: str) -> datetime:
    """Return the time that is part of a stream entry's id."""
    try:
        return datetime.fromtimestamp(int(stream_id.partition("-")[0]) / 1000, UTC)
    except (ValueError, OverflowError, OSError):  # an id made by hand need not be a time
        return datetime.now(UTC)


def shorten(reason: str) -> str:
    """Return a reason at a length that people read and streams hold."""
    return reason if len(reason) <= _REASON_LENGTH else reason[:_REASON_LENGTH] + "…"
