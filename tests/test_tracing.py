"""Spans: one trace from publish through invalidation to warm, and none of it where nobody traces."""

import sys
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from tidings import Cache, Event
from tidings.errors import PublishError
from tidings.events import Envelope, from_fields, to_fields
from tidings.tracing import LINKED, Tracing, read_traceparent, read_tracestate, tracing


class TracedThing(Event, type="test.traced.thing"):
    number: int
    note: str = ""


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"

IMPORTED = """
import sys
import tidings
from tidings.tracing import Tracing, tracing

cache = tidings.Cache("memory://")

class Thing(tidings.Event, type="test.traced.elsewhere"):
    number: int

cache.sync.publish(Thing(number=1))
assert type(tracing()) is Tracing
loaded = [name for name in sys.modules if name.startswith("opentelemetry")]
assert not loaded, loaded
"""


@pytest.fixture
def set_provider(monkeypatch):
    """Set a tracer provider for one test: OpenTelemetry takes only the first of a process."""

    def set_one(**options):
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False, **options)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        return exporter

    return set_one


@pytest.fixture
def exporter(set_provider):
    return set_provider()


def spans_by_name(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


def id_of(span):
    return span.context.span_id


def read(client, stream="events"):
    return [from_fields(stream, stream_id.decode(), fields) for stream_id, fields in client.xrange(stream)]


def envelope(number, traceparent=None, event_type="test.traced.thing"):
    fields = {b"type": event_type.encode()} | ({b"traceparent": traceparent.encode()} if traceparent else {})
    return from_fields("events", f"{number}-0", fields)


async def test_one_trace_shows_publish_invalidation_and_warm(cache, client, exporter):
    with trace.get_tracer("service").start_as_current_span("PUT /thing"):
        await cache.publish(TracedThing(number=7))
    batch = read(client)
    with tracing().applying("events", "tidings", batch) as applied:
        await cache.invalidate_tags("thing:7")
        applied.invalidated()
        carrier = applied.carrier(batch[0].stream_id)
    with tracing().warming("service:get_thing", "warms", carrier):
        pass
    spans = spans_by_name(exporter)
    chain = ["PUT /thing", "publish test.traced.thing", "tidings.invalidate test.traced.thing"]
    chain.append("tidings.warm service:get_thing")
    for parent, child in pairwise(chain):
        assert spans[child].parent.span_id == id_of(spans[parent])
        assert spans[child].context.trace_id == spans[parent].context.trace_id


async def test_a_batch_is_a_trace_of_its_own_with_links_to_the_events(cache, client, exporter):
    await cache.publish(TracedThing(number=7))
    with tracing().applying("events", "tidings", read(client)):
        pass
    spans = spans_by_name(exporter)
    published, applied, invalidated = (
        spans[name] for name in ("publish test.traced.thing", "tidings.apply", "tidings.invalidate test.traced.thing")
    )
    assert applied.parent is None
    assert [link.context.span_id for link in applied.links] == [id_of(published)]
    assert [link.context.span_id for link in invalidated.links] == [id_of(applied)]


def test_publishing_from_a_thread_carries_the_trace_too(cache, client, exporter):
    cache.sync.publish(TracedThing(number=7))
    (found,) = read(client)
    (span,) = exporter.get_finished_spans()
    assert found.traceparent.startswith(f"00-{span.context.trace_id:032x}-{id_of(span):016x}-")


async def test_spans_say_where_and_what_and_nothing_of_the_data(cache, client, exporter):
    await cache.publish(TracedThing(number=7, note="s3cret"), subject="somebody@example.org")
    batch = read(client)
    with tracing().applying("events", "tidings", batch):
        pass
    with tracing().warming("service:get_thing", "warms", {}):
        pass
    spans = spans_by_name(exporter)
    kinds = {name: span.kind for name, span in spans.items()}
    assert kinds == {
        "publish test.traced.thing": SpanKind.PRODUCER,
        "tidings.apply": SpanKind.CONSUMER,
        "tidings.invalidate test.traced.thing": SpanKind.CONSUMER,
        "tidings.warm service:get_thing": SpanKind.CONSUMER,
    }
    assert dict(spans["tidings.invalidate test.traced.thing"].attributes) == {
        "messaging.system": "redis",
        "messaging.operation.name": "apply",
        "messaging.operation.type": "process",
        "messaging.destination.name": "events",
        "messaging.consumer.group.name": "tidings",
        "messaging.message.id": batch[0].id,
        "cloudevents.event_id": batch[0].id,
        "cloudevents.event_type": "test.traced.thing",
    }
    for span in spans.values():
        assert "s3cret" not in span.to_json()
        assert "somebody" not in span.to_json()


async def test_a_publish_that_fails_has_the_type_of_the_error(exporter):
    async with Cache("redis://127.0.0.1:1", operation_timeout=0.2) as away:
        with pytest.raises(PublishError):
            await away.publish(TracedThing(number=7))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "tidings.errors:UnavailableError"


def test_a_batch_that_fails_before_it_is_invalidated_is_an_error_in_every_trace(exporter):
    def fail():
        with tracing().applying("events", "tidings", [envelope(1, SAMPLED)]):
            raise ValueError("what a rule says of s3cret")

    with pytest.raises(ValueError, match="s3cret"):
        fail()
    for span in exporter.get_finished_spans():
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "builtins:ValueError"
        assert "s3cret" not in span.to_json()
    assert len(exporter.get_finished_spans()) == 2


def test_what_fails_after_the_invalidation_is_no_error_of_the_invalidation(exporter):
    def fail():
        with tracing().applying("events", "tidings", [envelope(1, SAMPLED)]) as applied:
            applied.invalidated()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 the one above
        fail()
    spans = spans_by_name(exporter)
    assert spans["tidings.apply"].status.status_code is StatusCode.ERROR
    assert spans["tidings.invalidate test.traced.thing"].status.status_code is StatusCode.UNSET


def test_the_invalidation_begins_with_its_batch(exporter):
    with tracing().applying("events", "tidings", [envelope(1, SAMPLED)], started_ns=1_700_000_000_000_000_000):
        pass
    assert {span.start_time for span in exporter.get_finished_spans()} == {1_700_000_000_000_000_000}


def test_what_instruments_the_clients_of_a_batch_finds_the_span_of_the_batch(exporter):
    with tracing().applying("events", "tidings", []):
        inner = trace.get_current_span()
    assert spans_by_name(exporter)["tidings.apply"].context == inner.get_span_context()


def test_a_flood_of_traced_events_makes_a_bounded_number_of_spans_and_links(exporter):
    batch = [envelope(number, SAMPLED) for number in range(1, 501)]
    with tracing().applying("events", "tidings", batch) as applied:
        assert all(applied.carrier(event.stream_id) for event in batch)
    spans = exporter.get_finished_spans()
    assert len(spans) == LINKED + 1
    assert [len(span.links) for span in spans if span.name == "tidings.apply"] == [LINKED]


def test_what_is_not_sampled_stays_so_through_the_warm(set_provider):
    exporter = set_provider(sampler=ParentBased(ALWAYS_OFF))
    with tracing().applying("events", "tidings", [envelope(1, UNSAMPLED)]) as applied:
        carrier = applied.carrier("1-0")
    with tracing().warming("f", "warms", carrier):
        pass
    assert carrier["traceparent"] == UNSAMPLED
    assert exporter.get_finished_spans() == ()


def test_a_warm_for_an_event_without_a_trace_is_in_its_batch_s(exporter):
    with tracing().applying("events", "tidings", [envelope(1)]) as applied:
        carrier = applied.carrier("1-0")
    with tracing().warming("f", "warms", carrier):
        pass
    spans = spans_by_name(exporter)
    assert spans["tidings.warm f"].parent.span_id == id_of(spans["tidings.apply"])


def test_what_a_producer_writes_cannot_spoil_the_export(exporter):
    hostile = Envelope(
        "\ud800" * 1000, "\udfff" * 1000, "/", datetime.now(UTC), {}, stream_id="1-0", traceparent=SAMPLED
    )
    with tracing().applying("events", "tidings", [hostile]):
        pass
    for span in exporter.get_finished_spans():
        assert len(span.to_json().encode()) < 5000


@pytest.mark.parametrize(
    "carrier", [{}, {"traceparent": 7}, {"traceparent": "x" * 10_000}, {"traceparent": None, "tracestate": []}], ids=str
)
def test_a_job_with_a_hostile_carrier_has_a_trace_of_its_own(exporter, carrier):
    with tracing().warming("f", "warms", carrier):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_the_vendor_s_state_is_carried_on(cache, client, exporter):
    fields = {b"type": b"x", b"traceparent": SAMPLED.encode(), b"tracestate": b"vendor=opaque"}
    with tracing().applying("events", "tidings", [from_fields("events", "1-0", fields)]) as applied:
        assert applied.carrier("1-0")["tracestate"] == "vendor=opaque"


def test_without_a_provider_the_publisher_s_context_is_passed_on(monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    with tracing().applying("events", "tidings", [envelope(1, SAMPLED)]) as applied:
        assert applied.carrier("1-0") == {"traceparent": SAMPLED}
    assert "traceparent" not in to_fields(TracedThing(number=1), source="/")


def test_an_event_written_without_publish_carries_the_current_span(exporter):
    with trace.get_tracer("service").start_as_current_span("outbox") as span:
        fields = to_fields(TracedThing(number=1), source="/")
    assert f"{span.get_span_context().span_id:016x}" in fields["traceparent"]


async def test_a_process_that_does_not_trace_makes_nothing(monkeypatch, cache, client):
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert type(tracing()) is Tracing
    await cache.publish(TracedThing(number=7))
    assert read(client)[0].traceparent is None
    with tracing().applying("events", "tidings", read(client)) as applied:
        applied.invalidated()
        assert applied.carrier("1-0") == {}


def test_importing_and_publishing_do_not_import_opentelemetry(shell):
    process = shell.start_program(sys.executable, "-c", IMPORTED)
    assert process.wait() == 0, process.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-ab-cd-01",
        SAMPLED.upper(),
        SAMPLED + "\n",
        SAMPLED + "-more",
        "ff" + SAMPLED[2:],
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        "é" * 55,
    ],
    ids=ascii,
)
def test_what_is_no_traceparent_is_ignored(text):
    assert from_fields("events", "1-0", {b"type": b"x", b"traceparent": text.encode()}).traceparent is None


@given(st.text() | st.none(), st.text() | st.none())
def test_no_text_whatsoever_raises(parent, state):
    assert read_traceparent(parent) in (parent, None)
    assert read_tracestate(state) in (state, None)


def test_a_traceparent_is_read_as_it_was_written():
    fields = {b"type": b"x", b"traceparent": SAMPLED.encode(), b"tracestate": b"a=1,b=2"}
    found = from_fields("events", "1-0", fields)
    assert isinstance(found, Envelope)
    assert (found.traceparent, found.tracestate) == (SAMPLED, "a=1,b=2")
