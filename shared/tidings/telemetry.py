"""Every log event and counter that tidings emits. Names and fields are part of the interface.

| log event | level | fields | meaning |
| --- | --- | --- | --- |
| ``cache_unavailable`` | warning | ``server``, ``error`` | reads load directly from now on |
| ``cache_available`` | info | ``server`` | reads are cached again |
| ``cache_in_memory`` | warning | | no URL is configured: this process caches for itself |
| ``value_too_large`` | warning | ``function``, ``bytes``, ``limit`` | served but not cached; said once a function |
| ``load_failed_unheard`` | error | ``ticket`` | a load failed after all its callers had gone |

Counters are kept by namespace, see `Counts`.
"""

import os
import socket
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog


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


@dataclass(slots=True)
class Counts:
    """What happened in one namespace of this process since it started."""

    #: served from the cache
    hits: int = 0
    #: looked up in vain: absent, expired or vacant
    misses: int = 0
    #: looked up in vain because a token or the entry had been invalidated
    invalidated: int = 0
    #: loaded and stored
    fills: int = 0
    #: loaded but not stored, because the entry was invalidated meanwhile
    refused_fills: int = 0
    #: loaded but not stored, because it is larger than the limit
    too_large: int = 0
    #: bytes found that are not a value of the function's type
    undecodable: int = 0
    #: reads and fills that Redis did not answer; each read loaded directly
    errors: int = 0


@dataclass(slots=True)
class Telemetry:
    """Counters by namespace, and the one line a change of state is worth. Safe under threads."""

    server: str
    _counts: dict[str, Counts] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _available: bool = True
    _said: set[str] = field(default_factory=set)

    def count(self, namespace: str, name: str) -> None:
        """Add one to a counter of `Counts`."""
        with self._lock:
            counts = self._counts.get(namespace)
            if counts is None:
                counts = self._counts[namespace] = Counts()
            setattr(counts, name, getattr(counts, name) + 1)

    def unavailable(self, namespace: str, error: Exception) -> None:
        """Count a failed operation; say so when it is the first."""
        self.count(namespace, "errors")
        if self._available:
            self._available = False
            log.warning("cache_unavailable", server=self.server, error=str(error))

    def available(self) -> None:
        """Note that Redis answered; say so when it had not before."""
        if not self._available:
            self._available = True
            log.info("cache_available", server=self.server)

    def too_large(self, namespace: str, function: str, size: int, limit: int) -> None:
        """Count a value over the limit; say so once for each function."""
        self.count(namespace, "too_large")
        if function not in self._said:
            self._said.add(function)
            log.warning("value_too_large", function=function, bytes=size, limit=limit)

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return the counters by namespace."""
        with self._lock:
            return {namespace: asdict(counts) for namespace, counts in sorted(self._counts.items())}


def process_name() -> str:
    """Return ``host:pid``, by which facts and causes name this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
