"""Domain events: the class that services define, the envelope around it, and its fields in the stream.

An event's fields are its data; what CloudEvents calls attributes (id, source, subject, time) travels in the envelope.
In the stream an event is flat UTF-8 fields under CloudEvents 1.0 names, so that any language can write one by hand;
``type`` alone is enough.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from .errors import ConfigurationError, DuplicateEventTypeError, EventError
from .keys import qualified

#: An event says what changed; it does not carry it. A larger stream entry is no event.
MAX_EVENT_BYTES = 1024 * 1024

#: Names that an event's data cannot have as a class's fields: they are the event's own.
_RESERVED = frozenset({"event_type", "envelope", "of", "read"})

_types: dict[str, type["Event"]] = {}
_types_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
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


class Event(BaseModel):
    """Base of domain events: ``class UserUpdated(Event, type="user.updated")``. Instances are frozen.

    Data is checked when an event is made, and again when one is read; a field that a newer publisher has added is
    ignored when reading. Raises DuplicateEventTypeError, at class definition, when another class has the type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_type: ClassVar[str] = ""
    _envelope: Envelope | None = PrivateAttr(default=None)

    def __init_subclass__(cls, *, type: str = "", **kwargs: Any) -> None:  # noqa: A002 the design's keyword
        """Take `type` out of the class keywords; pydantic's own come back to us below, when the class is complete."""
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, type: str = "", **kwargs: Any) -> None:  # noqa: A002
        """Register the class under its type."""
        super().__pydantic_init_subclass__(**kwargs)
        if reserved := sorted(_RESERVED & cls.model_fields.keys()):
            raise ConfigurationError(f"{qualified(cls)}: an event has {reserved} already; name these fields otherwise")
        cls.event_type = type
        if not type:
            return
        with _types_lock:
            other = _types.get(type)
            if other is not None and qualified(other) != qualified(cls):
                raise DuplicateEventTypeError(
                    f"{qualified(cls)}: the event type {type!r} already belongs to {qualified(other)}; "
                    "give one of them another type"
                )
            _types[type] = cls

    def __eq__(self, other: object) -> bool:
        """Events are equal when their data are: the envelope is how one came, not what it says."""
        if not isinstance(other, Event) or type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__ and self.model_extra == other.model_extra

    def __hash__(self) -> int:
        """Raise TypeError, as a tuple does, when the data hold what cannot be hashed."""
        return hash((type(self), *self.__dict__.values()))

    @property
    def envelope(self) -> Envelope | None:
        """The envelope that this event was read from; None for one that was made here."""
        return self._envelope

    @staticmethod
    def of(type: str, data: Mapping[str, Any]) -> "Event":  # noqa: A002 the same word as at class definition
        """Make an event by its type's name: of the class defined for it, else one with the data as attributes.

        Raises EventError, which lists what does not fit the class.
        """
        event_class = class_of(type)
        try:
            event = event_class.model_validate(dict(data))
        except ValidationError as error:
            raise EventError(f"{type}: {_problems(error)}") from None
        if isinstance(event, UntypedEvent):
            event._type = type  # noqa: SLF001 its own
        return event

    @classmethod
    def read(cls, envelope: Envelope) -> Self:
        """Make an instance of the envelope's data, read as JSON. Raises EventError, which lists what does not fit."""
        data = dict(envelope.data)
        while True:
            try:
                event = cls.model_validate_json(json.dumps(data))
            except ValidationError as error:
                unknown = {e["loc"][0] for e in error.errors() if e["type"] == "extra_forbidden" and len(e["loc"]) == 1}
                if not unknown:
                    raise EventError(f"{envelope.type}: {_problems(error)}") from None
                # Fields that a newer publisher has added, and only those of the event itself: what a model inside it
                # allows or forbids is that model's affair.
                data = {name: value for name, value in data.items() if name not in unknown}
            else:
                event._envelope = envelope  # noqa: SLF001 its own
                return event


class UntypedEvent(Event, extra="allow"):
    """An event of a type that has no class here: whatever its data hold, as attributes."""

    _type: str = PrivateAttr(default="")


def type_of(event: Event) -> str:
    """Return an instance's event type, or raise EventError when its class has none."""
    found = event._type if isinstance(event, UntypedEvent) else type(event).event_type  # noqa: SLF001
    if not found and event.envelope is not None:
        found = event.envelope.type
    if not found:
        kind = type(event)
        raise EventError(
            f'{kind.__module__}.{kind.__qualname__} has no type: class {kind.__qualname__}(Event, type="…")'
        )
    return found


def class_of(event_type: str) -> type[Event]:
    """Return the class defined for a type, else UntypedEvent."""
    return _types.get(event_type, UntypedEvent)


def to_fields(event: Event, *, source: str, subject: str | None = None) -> dict[str, str]:
    """Return the stream fields of a new event, with a fresh id and the time now.

    Raises EventError when the data would not be read back as an event of this class, or are too large.
    """
    event_type = type_of(event)
    try:
        data = event.model_dump_json(by_alias=True, round_trip=True, warnings=False)
        type(event).model_validate_json(data)
    except (ValidationError, ValueError) as error:
        problem = _problems(error) if isinstance(error, ValidationError) else str(error)
        raise EventError(f"{event_type}: {problem}") from None
    if len(data.encode()) > MAX_EVENT_BYTES // 2:
        raise EventError(f"{event_type}: more than {MAX_EVENT_BYTES // 2} bytes: say what changed, do not carry it")
    fields = {
        "specversion": "1.0",
        "id": uuid4().hex,
        "source": source,
        "type": event_type,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    if subject is not None:
        fields["subject"] = subject
    return fields


def from_fields(stream: str, stream_id: str, fields: Mapping[bytes, bytes]) -> Envelope:
    """Read a stream entry, native or written by hand. Raises EventError with the reason it cannot be read."""
    size = sum(len(name) + len(value) for name, value in fields.items())
    if size > MAX_EVENT_BYTES:
        raise EventError(f"{size} bytes are more than an event's {MAX_EVENT_BYTES}")
    text: dict[str, str] = {}
    for name, value in fields.items():
        try:
            text[name.decode()] = value.decode()
        except UnicodeDecodeError as error:
            raise EventError(f"the field {name[:64]!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not text.get("type"):
        raise EventError(shorten(f"no 'type' among the fields {sorted(text)[:20]}"))
    content = text.get("datacontenttype", "application/json")
    media_type = content.partition(";")[0].strip().lower()
    if media_type not in {"application/json", "text/json"} and not media_type.endswith("+json"):
        raise EventError(f"the data's content type is {content[:64]!r}, not JSON")
    return Envelope(
        id=text.get("id") or stream_id,
        type=text["type"],
        source=text.get("source") or stream,
        time=_time(text.get("time"), stream_id),
        data=_data(text.get("data")),
        subject=text.get("subject"),
        stream_id=stream_id,
    )


def _data(text: str | None) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise EventError(f"'data' is not JSON: {error}") from None
    except RecursionError:
        raise EventError("'data' is nested too deeply") from None
    if not isinstance(data, dict):
        raise EventError(f"'data' is a JSON {type(data).__name__}, not an object")
    if "\\ud" in text.lower():  # JSON can say a lone surrogate, which is no text: no key could be made of it
        for name, value in data.items():
            try:
                json.dumps({name: value}, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise EventError(f"'data' is not Unicode text at {name!a:.100}") from None
    return data


def _time(text: str | None, stream_id: str) -> datetime:
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


#: A reason is read by people: so many problems, of so many characters.
_PROBLEMS_LISTED, _REASON_LENGTH = 10, 1000


def _problems(error: ValidationError) -> str:
    """Say what does not fit, by field, without the values: an event's data can be personal."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    listed = [f"{'.'.join(map(str, e['loc'])) or 'data'}: {e['msg']}" for e in found[:_PROBLEMS_LISTED]]
    more = [f"and {len(found) - len(listed)} more"] if len(found) > len(listed) else []
    return shorten("; ".join(listed + more))


def shorten(reason: str) -> str:
    """Return a reason at a length that people read and streams hold."""
    return reason if len(reason) <= _REASON_LENGTH else reason[:_REASON_LENGTH] + "…"
