"""`tracing` in a process that uses OpenTelemetry: imported there, and only there."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    get_tracer,
    get_tracer_provider,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .keys import qualified
from .tracing import LINKED, Applied, Carrier, Traceable, Tracing, read_traceparent, read_tracestate

#: CloudEvents fixes this format, whatever the process uses elsewhere.
_FORMAT = TraceContextTextMapPropagator()
#: Types and ids are whatever a producer wrote; this much still tells which.
_TEXT_LENGTH = 100

Attributes = dict[str, str | int]


class Spans(Tracing):
    """Makes spans with whichever tracer provider is set by then."""

    def current(self) -> dict[str, str]:  # noqa: D102 see the base, here and below
        return _carrier(None)

    @contextmanager
    def publishing(self, event_type: str, event_id: str, stream: str) -> Iterator[Carrier]:  # noqa: D102
        if not _records():
            yield {}  # the current context is in the event already
            return
        span = _tracer().start_span(
            f"publish {_text(event_type)}",
            kind=SpanKind.PRODUCER,
            attributes=_messaging("publish", "send", stream) | _event(event_type, event_id),
        )
        with _ending(lambda: [span]):
            yield _carrier(set_span_in_context(span))

    @contextmanager
    def applying(  # noqa: D102
        self, stream: str, group: str, events: Iterable[Traceable], *, started_ns: int | None = None
    ) -> Iterator[Applied]:
        batch = list(events)
        traced = [event for event in batch if event.traceparent]
        if not _records():
            yield _PassingOn(traced, {})
            return
        attributes = _messaging("apply", "process", stream) | {"messaging.consumer.group.name": group}
        span = _tracer().start_span(
            "tidings.apply",
            kind=SpanKind.CONSUMER,
            context=Context(),
            start_time=started_ns,
            links=[Link(context) for event in traced[:LINKED] if (context := _span_context(_carried(event)))],
            attributes=attributes | {"messaging.batch.message_count": len(batch)},
        )
        applied = _Invalidating(span, traced, attributes, started_ns)
        with _ending(lambda: [*applied.open, span]), _current(span):
            yield applied

    @contextmanager
    def warming(self, function: str, queue: str, carrier: Mapping[str, Any]) -> Iterator[None]:  # noqa: D102
        span = _tracer().start_span(
            f"tidings.warm {function}",
            kind=SpanKind.CONSUMER,
            context=_context(carrier),
            attributes=_messaging("warm", "process", queue) | {"code.function.name": function},
        )
        with _ending(lambda: [span]), _current(span):
            yield


TRACING = Spans()


class _PassingOn(Applied):
    """Makes no spans: warms carry what the events did, or else a context of the batch's."""

    def __init__(self, traced: Sequence[Traceable], otherwise: dict[str, str]) -> None:
        self._carriers = {event.stream_id: _carried(event) for event in traced}
        self._otherwise = otherwise

    def carrier(self, stream_id: str | None) -> dict[str, str]:
        return self._carriers.get(stream_id, self._otherwise)


class _Invalidating(_PassingOn):
    """A span in the trace of each sampled event, so that a trace shows what came of what it published.

    What is not sampled stays so: its warms carry what it did.
    """

    def __init__(
        self, batch: Span, traced: Sequence[Traceable], attributes: Attributes, started_ns: int | None
    ) -> None:
        super().__init__(traced, _carrier(set_span_in_context(batch, Context())))
        link = [Link(batch.get_span_context())]
        self._spans = {
            event.stream_id: _tracer().start_span(
                f"tidings.invalidate {_text(event.type)}",
                kind=SpanKind.CONSUMER,
                context=_context(_carried(event)),
                start_time=started_ns,
                links=link,
                attributes=attributes | _event(event.type, event.id),
            )
            for event in [event for event in traced if _is_sampled(event)][:LINKED]
        }
        #: those that have not ended
        self.open: tuple[Span, ...] = tuple(self._spans.values())

    def invalidated(self) -> None:
        for span in self.open:
            span.end()
        self.open = ()

    def carrier(self, stream_id: str | None) -> dict[str, str]:
        span = self._spans.get(stream_id)
        return super().carrier(stream_id) if span is None else _carrier(set_span_in_context(span, Context()))


@contextmanager
def _ending(spans: Callable[[], Iterable[Span]]) -> Iterator[None]:
    """End the spans; of what the block raises they have the type, since what it says can be of an event's data."""
    try:
        yield
    except BaseException as error:
        name = qualified(type(error))
        for span in spans():
            span.set_attribute("error.type", name)
            span.set_status(Status(StatusCode.ERROR, name))
        raise
    finally:
        for span in spans():
            span.end()


def _current(span: Span) -> AbstractContextManager[Span]:
    """Make it the parent of what the block's clients and loaders make."""
    return use_span(span, record_exception=False, set_status_on_exception=False)


def _records() -> bool:
    """Say whether a tracer provider is set by now."""
    return not isinstance(get_tracer_provider(), ProxyTracerProvider | NoOpTracerProvider)


def _tracer() -> Tracer:
    """Return the tracer of now: the provider may be set after the first event."""
    return get_tracer("tidings")


def _carried(event: Traceable) -> dict[str, str]:
    given = {"traceparent": event.traceparent, "tracestate": event.tracestate}
    return {name: value for name, value in given.items() if value}


def _is_sampled(event: Traceable) -> bool:
    return event.traceparent is not None and int(event.traceparent[-2:], 16) & 1 == 1


def _context(carrier: Mapping[str, Any]) -> Context:
    """Read a carrier, and nothing of the context that this code runs in."""
    found = _span_context(carrier)
    return Context() if found is None else set_span_in_context(NonRecordingSpan(found), Context())


def _span_context(carrier: Mapping[str, Any]) -> SpanContext | None:
    """Read a carrier; None for one that is empty or nonsense. The library's own takes several times as long."""
    text = {name: value for name in ("traceparent", "tracestate") if isinstance(value := carrier.get(name), str)}
    parent, state = read_traceparent(text.get("traceparent")), read_tracestate(text.get("tracestate"))
    if parent is None:
        return None
    _, trace_id, span_id, flags = parent.split("-")
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([state]) if state else None,
    )


def _carrier(context: Context | None) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _FORMAT.inject(carrier, context)
    return carrier


def _messaging(name: str, kind: str, destination: str) -> Attributes:
    return {
        "messaging.system": "redis",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
    }


def _event(event_type: str, event_id: str) -> Attributes:
    name = _text(event_id)
    return {"cloudevents.event_type": _text(event_type), "cloudevents.event_id": name, "messaging.message.id": name}


def _text(given: str) -> str:
    """Return text that every exporter can encode: one lone surrogate would cost all the spans it is sent with."""
    return given[:_TEXT_LENGTH].encode(errors="replace").decode()
