"""Domain events: the class that services define, and how one is written to the stream and read from an envelope.

An event's fields are its data; what CloudEvents calls attributes (id, source, subject, time) travels in the envelope.
"""

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from .decoding import from_fields
from .envelopes import MAX_EVENT_BYTES, Envelope, shorten
from .errors import ConfigurationError, DuplicateEventTypeError, EventError, IgnoredEventError
from .keys import qualified
from .tracing import tracing

__all__ = [
    "MAX_EVENT_BYTES",
    "Envelope",
    "Event",
    "IgnoredEventError",
    "UntypedEvent",
    "class_of",
    "from_fields",
    "shorten",
    "to_fields",
    "type_of",
]

#: Names that an event's data cannot have as a class's fields: they are the event's own.
_RESERVED = frozenset({"event_type", "envelope", "of", "read"})

_ENVELOPE = "_envelope"

_types: dict[str, type["Event"]] = {}
_types_lock = threading.Lock()


class Event(BaseModel):
    """Base of domain events: ``class UserUpdated(Event, type="user.updated")``. Instances are frozen.

    Data is checked when an event is made, and again when one is read; a field that a newer publisher has added is
    ignored when reading. Raises DuplicateEventTypeError, at class definition, when another class has the type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_type: ClassVar[str] = ""

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
        return (self.__pydantic_private__ or {}).get(_ENVELOPE)

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
        text = envelope.json
        while True:
            try:
                # `model_validate_json`, which only passes on what it is given, takes half as long again.
                event: Self = cls.__pydantic_validator__.validate_json(text)
            except ValidationError as error:
                unknown = _unknown(error)
                if not unknown:
                    raise EventError(f"{envelope.type}: {_problems(error)}") from None
                # Fields that a newer publisher has added, and only those of the event itself: what a model inside it
                # allows or forbids is that model's affair.
                text = json.dumps({name: value for name, value in envelope.data.items() if name not in unknown})
            else:
                # Among the private attributes, so that copies and pickles have it, but not declared as one: pydantic
                # would take as long to give each event its default as to check the data.
                if (private := event.__pydantic_private__) is None:
                    object.__setattr__(event, "__pydantic_private__", {_ENVELOPE: envelope})
                else:
                    private[_ENVELOPE] = envelope
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
    return fields | tracing().current()


#: A reason is read by people: so many problems at most.
_PROBLEMS_LISTED = 10


def _problems(error: ValidationError) -> str:
    """Say what does not fit, by field, without the values: an event's data can be personal."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    listed = [f"{'.'.join(map(str, e['loc'])) or 'data'}: {e['msg']}" for e in found[:_PROBLEMS_LISTED]]
    more = [f"and {len(found) - len(listed)} more"] if len(found) > len(listed) else []
    return shorten("; ".join(listed + more))


def _unknown(error: ValidationError) -> set[Any]:
    """Return the names of the event's own fields that its class does not have."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    return {e["loc"][0] for e in found if e["type"] == "extra_forbidden" and len(e["loc"]) == 1}
