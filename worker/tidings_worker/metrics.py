"""What a worker counts, for Prometheus: served under ``/metrics`` (see `health`). Names and labels are an interface.

Counters and histograms are this process's; a sum over all workers is meant. Gauges marked * are what this worker saw of
the server when it last looked; every worker of a group sees the same, so take the maximum.

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
| ``tidings_events_applied_total`` | counter | ``type`` | invalidated, warms handed off, acknowledged |
| ``tidings_events_retried_total`` | counter | ``type`` | left pending to be tried again |
| ``tidings_events_dead_lettered_total`` | counter | ``type`` | set aside in the dead-letter stream |
| ``tidings_events_ignored_total`` | counter | ``kind`` | acknowledged: they say nothing of what changed |
| ``tidings_events_lost_total`` | counter | ``reason`` | times that events were found lost, and all was invalidated |
| ``tidings_rules_rejected_total`` | counter | | times that changed rules files were refused; the old ones stay |
| ``tidings_invalidation_delay_seconds`` | histogram | ``type`` | from the event's own time until it is invalidated |
| ``tidings_batch_events`` | histogram | | events applied together |
| ``tidings_batch_duration_seconds`` | histogram | | from a batch's arrival until its acknowledgement |
| ``tidings_tokens_invalidated_total`` | counter | | tokens that were given new values |
| ``tidings_log_entries_total`` | counter | | entries written to the invalidation log |
| ``tidings_warms_handed_off_total`` | counter | | warms put into the queue, or found there already |
| ``tidings_warm_tries_total`` | counter | ``outcome`` | ``warmed``, ``in_vain``, ``retried`` or ``failed`` |
| ``tidings_warm_duration_seconds`` | histogram | | tries of warms, whatever their outcome |
| ``tidings_verified_total`` | counter | ``namespace``, ``outcome`` | entries sampled by audits, and what came of them |
| ``tidings_audit_age_seconds`` | gauge | | since this worker ended an audit; one of all makes each: take the minimum |
| ``tidings_redis_up`` | gauge | ``server`` | 1: the server (``events``, ``jobs``) answered the last time it was asked |
| ``tidings_stream_entries`` | gauge* | ``stream`` | entries in the stream |
| ``tidings_group_lag_entries`` | gauge* | ``stream`` | entries not read yet; absent while the server cannot tell |
| ``tidings_group_pending_entries`` | gauge* | ``stream`` | entries read and not acknowledged |
| ``tidings_oldest_pending_age_seconds`` | gauge* | ``stream`` | of the oldest entry not acknowledged; 0: none |
| ``tidings_oldest_unread_age_seconds`` | gauge* | ``stream`` | of the oldest entry not read; 0: none |
| ``tidings_dead_letters`` | gauge* | | entries in the dead-letter stream |
| ``tidings_warms_queued`` | gauge* | | jobs in the queue of warms |
| ``tidings_look_age_seconds`` | gauge | | since the worker last looked: how old the gauges marked * are |
| ``tidings_loop_beat_age_seconds`` | gauge | | since the event loop last ran; seconds: it is blocked |
| ``tidings_build_info`` | gauge | ``version``, ``python`` | 1 |

Beside these the process's own: ``process_cpu_seconds_total``, ``process_resident_memory_bytes`` and the like.

An event's ``type`` is what a producer wrote: those with a rule keep their names, of others the first `TYPES` do, and
the rest are ``other``. Delays are between two machines' clocks: below zero they count as zero, above a day as a day.
"""

import math
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .gauges import Look, Looked, StreamState

__all__ = ["TYPES", "Look", "Metrics", "StreamState", "WarmOutcome"]

#: Event types without a rule that are told apart.
TYPES = 100
_OTHER = "other"
_TYPE_LENGTH = 100

_DELAYS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0)
_LONGEST_DELAY = 86_400.0
_OPENMETRICS = "application/openmetrics-text"
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)

WarmOutcome = Literal["warmed", "in_vain", "retried", "failed"]


class Metrics:
    """One worker's counters. Methods are for its event loop, `expose` for any thread.

    `types` are the event types with a rule; `beat_age` says how long ago the event loop last ran.
    """

    def __init__(
        self,
        types: Iterable[str] = (),
        *,
        beat_age: Callable[[], float] = lambda: math.nan,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._types = _Types(types)
        self._applied, self._retried, self._dead = (
            Counter(f"tidings_events_{what}", f"Events {said}", ["type"], registry=registry)
            for what, said in (
                ("applied", "applied"),
                ("retried", "left pending to be tried again"),
                ("dead_lettered", "set aside in the dead-letter stream"),
            )
        )
        self._lost = Counter("tidings_events_lost", "Times that events were found lost", ["reason"], registry=registry)
        self._ignored = Counter(
            "tidings_events_ignored", "Entries that say nothing of what changed", ["kind"], registry=registry
        )
        self._rejected = Counter("tidings_rules_rejected", "Reloads of the rules that were refused", registry=registry)
        self._delays = _Delays()
        self._looked = Looked(clock)
        registry.register(self._delays)
        registry.register(self._looked)
        self._batch_events = Histogram(
            "tidings_batch_events", "Events applied together", buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "tidings_batch_duration_seconds",
            "From a batch's arrival until its acknowledgement",
            buckets=_DELAYS,
            registry=registry,
        )
        self._tokens = Counter("tidings_tokens_invalidated", "Tokens given new values", registry=registry)
        self._log_entries = Counter("tidings_log_entries", "Entries of the invalidation log", registry=registry)
        self._handed_off = Counter("tidings_warms_handed_off", "Warms put into the queue", registry=registry)
        self._tries = Counter("tidings_warm_tries", "Tries of warms", ["outcome"], registry=registry)
        self._warm_seconds = Histogram(
            "tidings_warm_duration_seconds", "Tries of warms", buckets=_DELAYS, registry=registry
        )
        self._namespaces = _Types(())
        self._verified = Counter(
            "tidings_verified", "Entries sampled by audits", ["namespace", "outcome"], registry=registry
        )
        self._clock = clock
        self._audited_at = math.nan
        Gauge("tidings_audit_age_seconds", "Since an audit ended", registry=registry).set_function(
            lambda: clock() - self._audited_at
        )
        self._up = Gauge(
            "tidings_redis_up", "Whether the server answered when last asked", ["server"], registry=registry
        )
        Gauge("tidings_loop_beat_age_seconds", "Since the event loop last ran", registry=registry).set_function(
            beat_age
        )
        build = Gauge("tidings_build_info", "What runs", ["version", "python"], registry=registry)
        build.labels(version("tidings-worker"), platform.python_version()).set(1)
        ProcessCollector(registry=registry)

    def applied(self, counts: Mapping[str, int], ages: Mapping[str, Sequence[float]]) -> None:
        """Count events by type that are applied, and the seconds from the time that each has to its invalidation."""
        self._count(self._applied, counts)
        for event_type, seconds in ages.items():
            self._delays.add(self._types.label(event_type), seconds)

    def rules_changed(self, types: Iterable[str]) -> None:
        """Note the event types that have a rule now; those that had one keep their names."""
        self._types.know(types)

    def rules_rejected(self) -> None:
        """Count a reload of the rules that was refused."""
        self._rejected.inc()

    def batch(self, events: int, seconds: float, *, tokens: int, log_entries: int = 1) -> None:
        """Count a batch that is acknowledged, `seconds` after it was read."""
        self._batch_events.observe(events)
        self._batch_seconds.observe(seconds)
        self._tokens.inc(tokens)
        self._log_entries.inc(log_entries)

    def retried(self, counts: Mapping[str, int]) -> None:
        """Count events by type that are left pending, to be tried again."""
        self._count(self._retried, counts)

    def dead_lettered(self, counts: Mapping[str, int]) -> None:
        """Count events by type that are set aside; of what has no type that can be read, the type is empty."""
        self._count(self._dead, counts)

    def ignored(self, counts: Mapping[str, int]) -> None:
        """Count entries by kind that say nothing of what changed; kinds are few, and no text that others wrote."""
        for kind, count in counts.items():
            self._ignored.labels(kind).inc(count)

    def lost(self, reason: str) -> None:
        """Count one finding of lost events; `reason` is one of few, and no text that others wrote."""
        self._lost.labels(reason).inc()

    def handed_off(self, warms: int) -> None:
        """Count warms that are in the queue now."""
        self._handed_off.inc(warms)

    def warm(self, outcome: WarmOutcome, seconds: float) -> None:
        """Count one try of a warm."""
        self._tries.labels(outcome).inc()
        self._warm_seconds.observe(seconds)

    def audited(self, outcomes: Mapping[str, Mapping[str, int]]) -> None:
        """Count the entries of an audit that has ended just now, by namespace and outcome."""
        for namespace, counts in outcomes.items():
            for outcome, count in counts.items():
                self._verified.labels(self._namespaces.label(namespace), outcome).inc(count)
        self._audited_at = self._clock()

    def redis(self, server: Literal["events", "jobs"], *, up: bool) -> None:
        """Note whether the server answered just now."""
        self._up.labels(server).set(up)

    def observe(self, look: Look) -> None:
        """Take a look at the servers in place of the one before."""
        self._looked.observe(look)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return all of it and its content type: OpenMetrics where the ``Accept`` header asks for that, else text."""
        # The library raises for versions that are none, and our names need no negotiation of escapes.
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
        return encode(self.registry), content_type

    def _count(self, counter: Counter, counts: Mapping[str, int]) -> None:
        for event_type, count in counts.items():
            counter.labels(self._types.label(event_type)).inc(count)


class _Types:
    """The labels of event types: bounded in number and length, and text that can be encoded."""

    def __init__(self, known: Iterable[str]) -> None:
        self._labels = {event_type: event_type for event_type in known}
        self._most = len(self._labels) + TYPES

    def know(self, types: Iterable[str]) -> None:
        for event_type in types:
            if event_type not in self._labels:
                self._labels[event_type] = event_type
                self._most += 1

    def label(self, event_type: str) -> str:
        found = self._labels.get(event_type)
        if found is None:
            if len(self._labels) >= self._most:
                return _OTHER
            # A lone surrogate, which JSON can say, would fail every scrape from now on.
            found = event_type[:_TYPE_LENGTH].encode(errors="replace").decode()
            self._labels[event_type] = found
        return found


class _Delays(Collector):
    """Delays by type. A histogram of the library takes one value at a time, at several times the cost."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, label: str, seconds: Sequence[float]) -> None:
        counts = self._counts.get(label)
        if counts is None:
            self._sums[label] = 0.0
            counts = self._counts[label] = [0] * (len(_DELAYS) + 1)
        clamped = [delay if 0.0 <= delay <= _LONGEST_DELAY else _clamp(delay) for delay in seconds]
        for delay in clamped:
            counts[bisect_left(_DELAYS, delay)] += 1
        self._sums[label] += sum(clamped)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "tidings_invalidation_delay_seconds", "From an event's own time until it is invalidated", labels=["type"]
        )
        bounds = [*map(str, _DELAYS), "+Inf"]
        # Copies, each made at once: the event loop goes on counting.
        for label, counts in list(self._counts.items()):
            buckets = list(zip(bounds, accumulate(list(counts)), strict=True))
            family.add_metric([label], buckets, self._sums[label])
        yield family


def _clamp(delay: float) -> float:
    """Return a delay that is no number as zero, too."""
    return _LONGEST_DELAY if delay > 0 else 0.0
