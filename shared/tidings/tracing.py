"""Spans from publish through invalidation to warm, for processes that use OpenTelemetry (`tidings[otel]`).

tidings never imports OpenTelemetry by itself: where the process has not imported ``opentelemetry.trace``, everything
here does nothing, and where no tracer provider is set, nothing is recorded. A service or a worker sets one as it does
for its other spans: in code (a worker's rules are code), or with ``opentelemetry-instrument``.

| span | kind | parent | lasts |
| --- | --- | --- | --- |
| ``publish {type}`` | producer | the publisher's current span | the XADD |
| ``tidings.apply`` | consumer | none; links to the events' | until the batch is acknowledged |
| ``tidings.invalidate {type}`` | consumer | the event's ``publish`` | until the batch is invalidated |
| ``tidings.warm {function}`` | consumer | ``tidings.invalidate`` of the event, else ``tidings.apply`` | one try |

Events carry the W3C trace context in CloudEvents' extension attributes ``traceparent`` and ``tracestate``. Whoever can
write events can write these too: at most `LINKED` of a batch are linked to, and as many sampled ones have a span of
their own. Attributes are those of OpenTelemetry's conventions for messaging and CloudEvents; an event's data, subject
and source are not among them, nor is what an exception says.
"""

# ruff: noqa: ARG002 what does nothing takes the arguments of what does

import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Protocol, cast

#: Events of one batch that its span is linked to, and sampled ones that have a span each, at most.
LINKED = 128

#: A trace context as text: ``traceparent``, and perhaps ``tracestate``. Empty: none.
Carrier = Mapping[str, str]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LONGEST_TRACESTATE = 512


class Traceable(Protocol):
    """An event as it was read; `events.Envelope` is one."""

    @property
    def id(self) -> str:
        """The event's id."""
        ...

    @property
    def type(self) -> str:
        """The event's type."""
        ...

    @property
    def stream_id(self) -> str | None:
        """The id of its entry in the stream."""
        ...

    @property
    def traceparent(self) -> str | None:
        """The span that it was published in."""
        ...

    @property
    def tracestate(self) -> str | None:
        """What vendors add to that."""
        ...


class Applied:
    """The spans of a batch; this one is of a process that does not trace."""

    def invalidated(self) -> None:
        """Note that what the batch makes wrong is invalidated now."""

    def carrier(self, stream_id: str | None) -> dict[str, str]:
        """Return the context for a warm that the event of this stream entry asked for; empty: none."""
        return {}


class Tracing:
    """What the process makes spans with; this one is of a process that makes none."""

    def current(self) -> dict[str, str]:
        """Return the context that the caller's code runs in, for an event that is written now; empty: none."""
        return {}

    def publishing(self, event_type: str, event_id: str, stream: str) -> AbstractContextManager[Carrier]:
        """Return the span around the writing of an event; gives the context that the event is to carry.

        It is not made the current one: the event is written by whoever drives the commands.
        """
        return nullcontext({})

    def applying(
        self, stream: str, group: str, events: Iterable[Traceable], *, started_ns: int | None = None
    ) -> AbstractContextManager[Applied]:
        """Return the spans around the applying of a batch, from `started_ns` of the Unix epoch on (None: now).

        `invalidated` is to be called on what it gives, as soon as that is so. Whatever the block raises goes on, and
        the spans have its type.
        """
        return nullcontext(_UNTRACED)

    def warming(self, function: str, queue: str, carrier: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Return the span around one try of a warm; `carrier` is what `Applied.carrier` gave, or anything at all."""
        return nullcontext()


_UNTRACED = Applied()
_NO_TRACING = Tracing()


def tracing() -> Tracing:
    """Return what makes spans, if the process uses OpenTelemetry by now; else what does nothing."""
    if "opentelemetry.trace" not in sys.modules:
        return _NO_TRACING
    return cast("Tracing", import_module(f"{__package__}.spans").TRACING)


def read_traceparent(text: str | None) -> str | None:
    """Return a W3C traceparent; None for what is none, whatever it is."""
    return text if text and _TRACEPARENT.fullmatch(text) else None


def read_tracestate(text: str | None) -> str | None:
    """Return a tracestate of a length that is worth carrying on; None for what is none."""
    return text if text and len(text) <= _LONGEST_TRACESTATE and text.isascii() and text.isprintable() else None
