"""How far the tail of the invalidation log is behind: figures, kept while it runs."""

import threading
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lag:
    """Seconds from the server's stamp of a log entry to its application here.

    The stamp is the id's, cut to milliseconds, so that a figure is up to 1 ms too high, and wrong by up to half a round
    trip besides. Entries that were applied after an outage count with all of it, although nothing was served meanwhile.
    `entries` and `max` are since the start, the percentiles of the last 1 000 entries.
    """

    entries: int
    last: float
    p50: float
    p99: float
    max: float


class Lags:
    """The figures of `Lag`. Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=1000)
        self._count = 0
        self._max = 0.0

    def add(self, seconds: float) -> None:
        """Take one; a server whose clock was set back stamps with its latest id, which is ahead of its time."""
        seconds = max(0.0, seconds)
        with self._lock:
            self._recent.append(seconds)
            self._count += 1
            self._max = max(self._max, seconds)

    def summary(self) -> Lag | None:
        """Return the figures; None: nothing was taken."""
        with self._lock:
            recent, count, most = list(self._recent), self._count, self._max
        if not recent:
            return None
        ordered = sorted(recent)
        return Lag(count, recent[-1], ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], most)
