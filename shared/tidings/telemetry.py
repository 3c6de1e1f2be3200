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

Counters are kept by namespace and function, see `counting`.
"""

import os
import socket
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import structlog

from .counting import Counts
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
