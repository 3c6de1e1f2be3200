"""What becomes of a delivery that failed: tried again, later each time, or set aside. Pure.

    permanent error           dead letter at once: no repetition can help
    any other error of a rule again after 1, 2, 4 ... seconds; at the last delivery a dead letter
    Redis away or refusing    neither: that says nothing about the event, and the whole batch stays in hand (`outage`)

The server counts deliveries, so the count survives whoever had the event. An event that kills its worker is not failed
by anybody, only delivered again and again: its count is what gives it away (`reclaimer`).
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Entry(NamedTuple):
    """One delivery of a stream entry."""

    stream_id: str
    fields: Mapping[bytes, bytes]
    #: which delivery this is, as the server counts them
    deliveries: int = 1


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed event is tried again; seconds."""

    max_deliveries: int = 5
    first_delay: float = 1.0
    longest_delay: float = 60.0

    def is_last(self, deliveries: int) -> bool:
        """Say whether an event that fails at this delivery is set aside."""
        return deliveries >= self.max_deliveries

    def delay(self, deliveries: int) -> float:
        """Return the seconds between this delivery, which failed, and the next."""
        return min(self.longest_delay, self.first_delay * 2.0 ** min(deliveries - 1, 60))


class Retries:
    """Events that wait for their next delivery. Bounded: what finds no room is claimed again when it has idled."""

    def __init__(self, limit: int = 1000) -> None:
        self._limit = limit
        self._due: list[tuple[float, str, int]] = []
        self._waiting: set[str] = set()

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ids(self) -> list[str]:
        """The stream ids of those who wait."""
        return list(self._waiting)

    def add(self, stream_id: str, deliveries: int, due: float) -> None:
        """Let one wait until `due`; it has been delivered this often."""
        if stream_id not in self._waiting and len(self._waiting) < self._limit:
            self._waiting.add(stream_id)
            heapq.heappush(self._due, (due, stream_id, deliveries))

    def take(self, now: float, limit: int) -> dict[str, int]:
        """Remove and return those whose time has come, with how often they have been delivered."""
        taken: dict[str, int] = {}
        while self._due and self._due[0][0] <= now and len(taken) < limit:
            _, stream_id, deliveries = heapq.heappop(self._due)
            self._waiting.discard(stream_id)
            taken[stream_id] = deliveries
        return taken


def ranges(delivered: Iterable[str], but: Iterable[str] = (), *, contiguous: bool = True) -> str:
    """Return the delivered ids but some, as receipts read them: ``"5-0..5-9 7-1"``.

    What one read was given is contiguous in the stream, so a run of it covers nothing that another worker has; what was
    claimed is not, and its ids stand alone.
    """
    left_out = set(but)
    runs: list[list[str]] = [[]]
    for stream_id in delivered:
        if stream_id in left_out:
            runs.append([])
        elif contiguous:
            runs[-1].append(stream_id)
        else:
            runs.append([stream_id])
    return " ".join(run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if run)
