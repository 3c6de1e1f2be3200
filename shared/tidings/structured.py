"""A structured CloudEvent: all of an event as one JSON object, in the JSON format of CloudEvents 1.0.

As of events written by hand, only ``type`` is needed. An attribute that is null is one that is not there.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from .envelopes import TEXT, Envelope, check_json_type, object_of, shorten, time_of
from .errors import EventError
from .tracing import read_traceparent, read_tracestate


def read(event: Mapping[str, Any], stream: str, stream_id: str) -> Envelope:
    """Return the envelope of a CloudEvent. Raises EventError with the reason it cannot be read."""
    version = _text(event, "specversion") or "1.0"
    if not version.startswith("1."):
        raise EventError(f"CloudEvents 1.0 can be read, not {version[:64]!r}")
    event_type = _text(event, "type")
    if not event_type:
        raise EventError(shorten(f"no 'type' in the CloudEvent, which has {sorted(event)[:20]}"))
    data = _data(event)
    envelope = Envelope(
        _text(event, "id") or stream_id,
        event_type,
        _text(event, "source") or stream,
        time_of(_text(event, "time"), stream_id),
        data,
        None if event.get("subject") is None else _text(event, "subject"),
        stream_id,
        read_traceparent(_text(event, "traceparent")),
        read_tracestate(_text(event, "tracestate")),
    )
    envelope.__dict__[TEXT] = to_json(data)
    return envelope


def _text(event: Mapping[str, Any], name: str) -> str:
    value = event.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise EventError(f"{name!r} of the CloudEvent is a JSON {type(value).__name__}, not a string")
    return value


def _data(event: Mapping[str, Any]) -> dict[str, Any]:
    if content_type := _text(event, "datacontenttype"):
        check_json_type(content_type)
    data, encoded = event.get("data"), _text(event, "data_base64")
    if encoded:
        if data is not None:
            raise EventError("the CloudEvent has both 'data' and 'data_base64'")
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise EventError(f"'data_base64' is not UTF-8 text in base64: {error}") from None
        return object_of(text.encode(), "'data_base64'")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise EventError(f"'data' is a JSON {type(data).__name__}, not an object")
    return data
