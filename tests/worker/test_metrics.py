"""What a worker counts, as Prometheus reads it."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import REGISTRY
from tidings_worker import metrics as module
from tidings_worker.metrics import TYPES, Look, Metrics, StreamState


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def samples(metrics):
    """Every sample: (name, label values) -> value; one of each."""
    text, _ = metrics.expose()
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            name = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert name not in found
            found[name] = sample.value
    return found


def test_events_are_counted_by_type():
    metrics = Metrics()
    metrics.applied({"a": 3, "b": 1}, {})
    metrics.applied({"a": 2}, {})
    metrics.retried({"a": 4})
    metrics.dead_lettered({"": 1})
    found = samples(metrics)
    assert found["tidings_events_applied_total", "a"] == 5
    assert found["tidings_events_applied_total", "b"] == 1
    assert found["tidings_events_retried_total", "a"] == 4
    assert found["tidings_events_dead_lettered_total", ""] == 1


def test_delays_are_a_histogram_by_type():
    metrics = Metrics()
    metrics.applied({"a": 4}, {"a": [0.0005, 0.001, 0.2, 40.0]})
    metrics.applied({"a": 1}, {"a": [0.2], "b": []})
    found = samples(metrics)
    name = "tidings_invalidation_delay_seconds"
    buckets = {
        bound: found[f"{name}_bucket", bound, "a"] for bound in ("0.001", "0.1", "0.25", "60.0", "3600.0", "+Inf")
    }
    assert buckets == {"0.001": 2, "0.1": 2, "0.25": 4, "60.0": 5, "3600.0": 5, "+Inf": 5}
    assert found[f"{name}_count", "a"] == 5
    assert found[f"{name}_sum", "a"] == pytest.approx(40.4015)
    assert found[f"{name}_count", "b"] == 0


@pytest.mark.parametrize(
    ("delay", "total"), [(-5.0, 0), (-math.inf, 0), (math.nan, 0), (math.inf, 86_400), (1e300, 86_400)], ids=str
)
def test_the_time_of_an_event_made_by_hand_cannot_spoil_the_sum(delay, total):
    metrics = Metrics()
    metrics.applied({"a": 1}, {"a": [delay]})
    found = samples(metrics)
    assert found["tidings_invalidation_delay_seconds_sum", "a"] == total
    assert found["tidings_invalidation_delay_seconds_count", "a"] == 1


def test_a_batch_is_counted():
    metrics = Metrics()
    metrics.batch(500, 0.02, tokens=3)
    metrics.batch(1, 0.001, tokens=0, log_entries=0)
    found = samples(metrics)
    assert found["tidings_batch_events_sum",] == 501
    assert found["tidings_batch_duration_seconds_count",] == 2
    assert found["tidings_tokens_invalidated_total",] == 3
    assert found["tidings_log_entries_total",] == 1


def test_warms_are_counted_by_outcome():
    metrics = Metrics()
    metrics.handed_off(7)
    for outcome in ("warmed", "warmed", "in_vain", "retried", "failed"):
        metrics.warm(outcome, 0.1)
    found = samples(metrics)
    assert found["tidings_warms_handed_off_total",] == 7
    assert found["tidings_warm_tries_total", "warmed"] == 2
    assert found["tidings_warm_tries_total", "failed"] == 1
    assert found["tidings_warm_duration_seconds_count",] == 5


def test_lost_events_and_servers():
    metrics = Metrics()
    metrics.lost("group_gone")
    metrics.redis("events", up=True)
    metrics.redis("jobs", up=True)
    metrics.redis("jobs", up=False)
    found = samples(metrics)
    assert found["tidings_events_lost_total", "group_gone"] == 1
    assert (found["tidings_redis_up", "events"], found["tidings_redis_up", "jobs"]) == (1, 0)


def test_a_look_at_the_server_is_shown_with_its_age():
    clock = Clock()
    metrics = Metrics(clock=clock)
    plain = StreamState(entries=10, lag=4, pending=2, oldest_pending_age=3.5, oldest_unread_age=1.5)
    metrics.observe(Look({"events": plain}, dead_letters=1, warms_queued=5))
    clock.now += 7
    found = samples(metrics)
    assert {name: value for (name, *labels), value in found.items() if labels == ["events"]} == {
        "tidings_stream_entries": 10,
        "tidings_group_lag_entries": 4,
        "tidings_group_pending_entries": 2,
        "tidings_oldest_pending_age_seconds": 3.5,
        "tidings_oldest_unread_age_seconds": 1.5,
    }
    assert found["tidings_dead_letters",] == 1
    assert found["tidings_warms_queued",] == 5
    assert found["tidings_look_age_seconds",] == 7


def test_what_a_look_cannot_tell_is_absent_and_not_the_value_before():
    metrics = Metrics()
    metrics.observe(Look({"events:0": StreamState(1, 1, 1, 1.0, 1.0)}, dead_letters=1, warms_queued=1))
    metrics.observe(Look({"events:1": StreamState(1, None, 1, None, None)}, dead_letters=None, warms_queued=None))
    found = samples(metrics)
    assert [name for name in found if "events:0" in name] == []
    assert sorted(name for name, *labels in found if labels == ["events:1"]) == [
        "tidings_group_pending_entries",
        "tidings_stream_entries",
    ]
    assert ("tidings_dead_letters",) not in found
    assert ("tidings_warms_queued",) not in found


def test_before_the_first_look_nothing_is_said_of_the_server():
    names = {name for name, *_ in samples(Metrics())}
    assert "tidings_look_age_seconds" not in names
    assert "tidings_dead_letters" not in names


def test_the_beat_of_the_event_loop_and_the_build():
    metrics = Metrics(beat_age=lambda: 12.5)
    found = samples(metrics)
    assert found["tidings_loop_beat_age_seconds",] == 12.5
    assert [value for (name, *_), value in found.items() if name == "tidings_build_info"] == [1]
    assert found["process_resident_memory_bytes",] > 0


def test_a_flood_of_types_is_bounded_and_those_with_a_rule_keep_their_names():
    metrics = Metrics([f"ruled.{number}" for number in range(150)])
    metrics.applied({f"hostile.{number}": 1 for number in range(1000)}, {})
    metrics.applied({f"ruled.{number}": 1 for number in range(150)}, {"ruled.149": [0.1]})
    found = samples(metrics)
    counted = {labels[0]: value for (name, *labels), value in found.items() if name == "tidings_events_applied_total"}
    assert len(counted) == 150 + TYPES + 1
    assert counted["other"] == 1000 - TYPES
    assert counted["ruled.149"] == 1
    assert found["tidings_invalidation_delay_seconds_count", "ruled.149"] == 1


def test_long_types_are_cut():
    metrics = Metrics()
    metrics.applied({"x" * 1_000_000: 1, "x" * 999_999: 1}, {})
    assert len(metrics.expose()[0]) < 100_000


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=5))
def test_no_type_whatsoever_spoils_a_scrape(types):
    """Lone surrogates too: JSON can say them."""
    metrics = Metrics()
    metrics.applied(dict.fromkeys(types, 1), {event_type: [0.1] for event_type in types})
    metrics.retried(dict.fromkeys(types, 1))
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        assert b"tidings_build_info" in metrics.expose(accept)[0]


def test_whoever_asks_for_openmetrics_is_given_that():
    metrics = Metrics()
    metrics.applied({"a": 1}, {"a": [0.1]})
    metrics.observe(Look({"events": StreamState(1, 1, 1, 1.0, 1.0)}, dead_letters=1, warms_queued=1))
    text, content_type = metrics.expose("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    assert {family.name for family in parse_openmetrics(text.decode())} >= {
        "tidings_events_applied",
        "tidings_invalidation_delay_seconds",
        "tidings_oldest_unread_age_seconds",
    }
    assert metrics.expose("*/*")[1].startswith("text/plain")


@pytest.mark.parametrize(
    "ending", [";version=:", "; version=9.9.9; escaping=x", ";version=", "\x00", ",,;=", ";" * 999], ids=ascii
)
@pytest.mark.parametrize("accepted", ["text/plain", "application/openmetrics-text"])
def test_no_accept_header_fails(accepted, ending):
    text, content_type = Metrics().expose(accepted + ending)
    assert b"tidings_build_info" in text
    assert content_type.startswith(accepted)


def test_workers_in_one_process_count_for_themselves():
    one, other = Metrics(), Metrics()
    one.handed_off(1)
    assert samples(other)["tidings_warms_handed_off_total",] == 0
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("tidings")]


def test_the_table_of_metrics_is_what_there_is():
    """Their names are an interface, and the table its documentation."""
    metrics = Metrics(beat_age=lambda: 0.0)
    metrics.applied({"a": 1}, {"a": [0.1]})
    metrics.retried({"a": 1})
    metrics.dead_lettered({"a": 1})
    metrics.ignored({"tombstone": 1})
    metrics.lost("x")
    metrics.batch(1, 0.1, tokens=1)
    metrics.warm("warmed", 0.1)
    metrics.audited({"n": {"stale": 1}})
    metrics.redis("events", up=True)
    metrics.observe(Look({"events": StreamState(1, 1, 1, 1.0, 1.0)}, dead_letters=1, warms_queued=1))
    kinds = {}
    labels = {}
    for family in text_string_to_metric_families(metrics.expose()[0].decode()):
        if family.name.startswith("tidings") and not family.name.endswith("_created"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            kinds[name] = family.type
            labels[name] = sorted(set(family.samples[0].labels) - {"le"})
    rows = re.findall(r"^\| ``(\w+)`` \| (\w+)\*? \| (.*?) ?\| ", module.__doc__, re.MULTILINE)
    assert {name: kind for name, kind, _ in rows} == kinds
    assert {name: sorted(re.findall(r"\w+", told)) for name, _, told in rows} == labels
