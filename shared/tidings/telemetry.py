"""Every log event and counter that tidings emits. Names and fields are part of the interface.

| log event | level | fields | meaning |
| --- | --- | --- | --- |
| ``cache_unavailable`` | warning | ``server``, ``error`` | reads load directly from now on |
| ``cache_available`` | info | ``server`` | reads are cached again |
| ``cluster_node_away`` | warning | ``server``, ``node``, ``error`` | what it has is loaded directly from now on |
| ``cluster_node_back`` | info | ``server``, ``node`` | it answers again, or others serve its slots |
| ``cache_refused`` | warning | ``server``, ``error`` | it answers and refuses: out of memory, read only |
| ``cache_accepted`` | info | ``server`` | it takes what is written again |
| ``breaker_probe_failed`` | error | | the probe of an absent Redis raised what it should not |
| ``breaker_listener_failed`` | error | | telling of a change of state failed |
| ``breaker_thread_not_started`` | error | | no thread for the probe: reads keep asking |
| ``background_failed`` | error | ``key`` | a thread of a load in the background failed, or could not start |
| ``cache_in_memory`` | warning | | no URL is configured: this process caches for itself |
| ``value_too_large`` | warning | ``function``, ``bytes``, ``limit`` | served but not cached; said once a function |
| ``load_failed_unheard`` | error | ``ticket`` | a load failed after all its callers had gone |
| ``refresh_failed`` | error | ``function``, ``key`` | a refresh in the background raised; the stale value stays |
| ``warm_failed`` | error | ``function``, ``after`` | a load after a write raised; the write has succeeded |
| ``write_not_invalidated`` | error | ``function``, ``tags``, ``error`` | a cancelled write's invalidation failed |
| ``stale_served_on_error`` | warning | ``function``, ``key`` | the load raised, and `stale_if_error` covered it |
| ``local_tier_lost`` | warning | ``reason`` | the tail of the invalidation log is lost: the local tier is bypassed |
| ``local_tier_alive`` | info | | the tail is back |
| ``after_not_applied`` | warning | ``ref``, ``reason`` | an event was not applied in time: reads `after` it load |
| ``after_applied`` | info | ``ref`` | a later one was |
| ``after_dead_lettered`` | warning | ``ref``, ``reason`` | an event is a dead letter: reads `after` it load |
| ``hot_calls_refused`` | warning | ``error`` | Redis does not take which calls are read most; said once until it does |
| ``counts_refused`` | warning | ``error`` | Redis does not take what `reporting` sends; said once until it does |
| ``hot_call_failed`` | warning | ``function`` | arguments could not be written as text; said once a function |
| ``call_not_kept`` | warning | ``function`` | arguments could not be written as text beside the value; said once |

Counters are kept by namespace, see `Counts`.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import structlog

from .forks import in_child


class _ServiceLogger:
    """Where the service's structlog configuration sends log events; without one, standard error.

    structlog's own default is standard output, which belongs to the service. Looked up at each event, because a service
    may import tidings before it configures its logs.
    """

    def __getattr__(self, name: str) -> Any:
        if structlog.is_configured():
            logger = structlog.get_config()["logger_factory"]("tidings")
        else:
            logger = structlog.PrintLogger(sys.stderr)
        return getattr(logger, name)


log: structlog.stdlib.BoundLogger = structlog.wrap_logger(_ServiceLogger())


class Histogram:
    """How often a quantity had which size, in buckets that double: cheap to add to, right to a factor of two."""

    __slots__ = ("buckets", "total")

    _BUCKETS = 48

    def __init__(self) -> None:
        self.buckets = [0] * self._BUCKETS
        self.total = 0

    def add(self, value: int) -> None:
        """Count a value; what is below zero counts as zero."""
        value = max(0, value)
        self.buckets[min(value.bit_length(), self._BUCKETS - 1)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.buckets)

    def quantile(self, fraction: float) -> int:
        """Return a value that this fraction of the values does not exceed, at most twice too large; 0 for none."""
        wanted, seen = fraction * self.count, 0
        for bits, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                return (1 << bits) - 1
        return 0

    def merge(self, other: "Histogram") -> None:
        """Add the other's values to these."""
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.total += other.total

    def reset(self) -> None:
        """Forget every value."""
        self.buckets = [0] * self._BUCKETS
        self.total = 0


@dataclass(slots=True)
class Counts:
    """What happened to one function's (or one `get_or_set` key space's) reads in this process.

    Counters are plain integers, added to without a lock: with the interpreter's own lock, ``counts.hits += 1`` on a
    slot is not interrupted between reading and writing, since threads are switched at calls and jumps only. Hence
    nothing may be called between the two either: in ``counts.bytes += len(data)`` a thread may be switched after the
    call, and what others added meanwhile is lost. A test holds the first to that, and another looks for the second.
    """

    #: served from the in-process tier
    local_hits: int = 0
    #: served from Redis
    hits: int = 0
    #: looked up in vain: absent, expired or vacant
    misses: int = 0
    #: looked up in vain because a token or the entry had been invalidated
    invalidated: int = 0
    #: an expired or invalidated value served, as the function's policy permits
    stale: int = 0
    #: calls that `when` sent past the cache
    bypassed: int = 0
    #: loaded
    loads: int = 0
    #: loads that raised
    load_errors: int = 0
    #: loads in the background: early, or while a stale value is served
    refreshes: int = 0
    #: warms after a write that failed
    warm_errors: int = 0
    #: loaded and stored
    fills: int = 0
    #: loaded but not stored, because the entry was invalidated meanwhile
    refused_fills: int = 0
    #: loaded but not stored, because it is larger than the limit
    too_large: int = 0
    #: bytes found that are not a value of the function's type
    undecodable: int = 0
    #: operations of reads and fills that Redis did not carry out
    errors: int = 0
    #: reads that did without Redis: it did not answer, or had not before
    direct: int = 0
    #: reads inside of `after` that did without the cache: the event was not known to be applied
    unapplied: int = 0
    #: encoded bytes of what was served from Redis, and of what was filled
    bytes_read: int = 0
    bytes_filled: int = 0
    #: No counter: the `local_hits` at which the next read is noted for `hot`, and each other read makes it one less.
    #: That costs a local hit less than a countdown of its own. Below zero: not begun.
    sample_at: int = -1
    #: microseconds of the loads
    load_us: Histogram = field(default_factory=Histogram)
    #: seconds since the fill, of one hit in `AGE_SAMPLE`: by this machine's clock against the server's
    age_s: Histogram = field(default_factory=Histogram)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count what this block does as a load that goes past Redis."""
        self.loads += 1
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            self.load_errors += 1
            raise
        load_us = round((time.perf_counter() - started) * 1e6)
        self.load_us.add(load_us)

    def add(self, other: "Counts") -> None:
        """Add the other's counters to these."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.load_us.merge(other.load_us)
        self.age_s.merge(other.age_s)

    def reset(self) -> None:
        """Start again at zero."""
        for name in COUNTERS:
            setattr(self, name, 0)
        self.sample_at = -1
        self.load_us.reset()
        self.age_s.reset()

    def summary(self) -> dict[str, Any]:
        """Return the counters, and what follows from them."""
        served = self.local_hits + self.hits + self.stale
        reads = self.local_hits + self.hits + self.misses + self.invalidated  # stale are some of the last two
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            "hit_rate": round(served / reads, 4) if reads else None,
            "load_ms": {f"p{p}": self.load_us.quantile(p / 100) / 1000 for p in (50, 99)},
            "age_at_hit_s": {f"p{p}": self.age_s.quantile(p / 100) for p in (50, 99)},
        }


#: The names of the counters, without what is no counter.
COUNTERS = tuple(f.name for f in fields(Counts) if f.type is int and f.name != "sample_at")

#: So many reads that hardly one is noted, and still a number that the interpreter compares fast.
NEVER = 2**29

#: Of how many hits the age is noted, one in this many.
AGE_SAMPLE = 32


@dataclass(slots=True, eq=False, weakref_slot=True)
class Telemetry:
    """Counters by namespace and function, and the one line a change of state is worth. Safe under threads.

    There are as many counters as functions and namespaces in use: what bounds them is the code that names these, as
    long as it makes no namespace of what its users send.
    """

    server: str
    _counts: dict[tuple[str, str], Counts] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    #: whether Redis answered and did not do what it was asked, and has done nothing of the kind since
    refusing: bool = False
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        in_child(self._forked)

    def _forked(self) -> None:
        """In a forked child whoever held the lock is not here; the counters go on."""
        self._lock = threading.Lock()

    def of(self, namespace: str, label: str) -> Counts:
        """Return the counters of a function; `label` names it."""
        found = self._counts.get((namespace, label))
        if found is None:
            with self._lock:
                found = self._counts.setdefault((namespace, label), Counts())
        return found

    def availability(self, away: bool, reason: str) -> None:
        """Say that Redis is away, or that it is back; called once for each change."""
        if away:
            log.warning("cache_unavailable", server=self.server, error=self._without_server(reason))
        else:
            log.info("cache_available", server=self.server)

    def refused(self, reason: str) -> None:
        """Say, once until it is over, that Redis answers and does not do what it is asked."""
        if not self.refusing:
            self.refusing = True
            log.warning("cache_refused", server=self.server, error=self._without_server(reason))

    def accepted(self) -> None:
        """Say that Redis does what it is asked again, if it did not before."""
        if self.refusing:
            self.refusing = False
            log.info("cache_accepted", server=self.server)

    def _without_server(self, reason: str) -> str:
        return reason.removeprefix(f"{self.server}: ")

    def too_large(self, counts: Counts, function: str, size: int, limit: int) -> None:
        """Count a value over the limit; say so once for each function."""
        counts.too_large += 1
        if function not in self._said:
            self._said.add(function)
            log.warning("value_too_large", function=function, bytes=size, limit=limit)

    def call_not_kept(self, function: str, error: Exception) -> None:
        """Say once for each function that arguments raised when they were made into text."""
        if function not in self._said:
            self._said.add(function)
            log.warning("call_not_kept", function=function, exc_info=error)

    def all(self) -> list[tuple[str, Counts]]:
        """Return all counters, each with its namespace; takes no lock, for a child that has just been forked."""
        return [(namespace, counts) for (namespace, _), counts in self._counts.copy().items()]

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Return sums by namespace, and in each under ``functions`` the same for each function."""
        with self._lock:
            items = sorted(self._counts.items())
        found: dict[str, dict[str, Any]] = {}
        for namespace in dict.fromkeys(name for (name, _), _ in items):
            own = {label: counts for (name, label), counts in items if name == namespace}
            total = Counts()
            for counts in own.values():
                total.add(counts)
            functions = {label: counts.summary() for label, counts in own.items()}
            found[namespace] = {**total.summary(), "functions": functions}
        return found

    def reset(self) -> None:
        """Start every counter again at zero."""
        with self._lock:
            for counts in self._counts.values():
                counts.reset()


def process_name() -> str:
    """Return ``host:pid``, by which facts and causes name this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
