"""Spans of a real worker: what an event asks for is in the trace of whoever published it."""

import json

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

RULES = """
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from tidings import cached
from tidings_worker import Invalidate, Rules, Warm

provider = TracerProvider()
out = Path("spans").open("a", buffering=1)
exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + chr(10))
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

rules = Rules()


@cached(tags=["thing:{thing}"])
async def load(thing: int) -> int:
    return thing


@rules.on("trace.changed")
def changed(event):
    yield Invalidate(tags=[f"thing:{event.thing}"])
    yield Warm(load, thing=event.thing)
"""


def test_a_trace_goes_from_the_publisher_through_the_invalidation_to_the_warm(shell, url, client, until):
    shell.write("rules.py", RULES)
    worker = shell.start("worker", "rules:rules", TIDINGS_URL=url)
    worker.event("worker_started")
    fields = {"type": "trace.changed", "data": '{"thing": 7}', "traceparent": f"00-{TRACE}-{PARENT}-01"}
    client.xadd("events", fields)
    worker.event("warmed")

    def spans():
        written = (shell.folder / "spans").read_text().splitlines()
        return {span["name"]: span for span in map(json.loads, written)}

    until(lambda: "tidings.warm rules:load" in spans(), "the span of the warm")
    invalidate, warm = spans()["tidings.invalidate trace.changed"], spans()["tidings.warm rules:load"]
    assert invalidate["context"]["trace_id"] == warm["context"]["trace_id"] == f"0x{TRACE}"
    assert invalidate["parent_id"] == f"0x{PARENT}"
    assert warm["parent_id"] == invalidate["context"]["span_id"]
