"""How the reads of all processes went, by namespace, from what the processes have reported. Behind `tidings stats`.

Beside it how much was invalidated meanwhile. That is one number for all namespaces: a tag belongs to none.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tidings.cluster_store import ClusterStore
from tidings.counting import COUNTERS
from tidings.keys import Keyspace
from tidings.reporting import PROCESS_MARK, WINDOW_SECONDS, window_at
from tidings.store import RedisStore

#: Entries of the invalidation log that are looked at; beyond it the count is of a part, and says so.
LOG_AT_MOST = 20_000

#: Digits of the greatest number in an id; counts have fewer.
_DIGITS = 20

#: Full windows behind the one under way, by what users call it.
SPANS = {"5m": 2, "1h": 24}


@dataclass(frozen=True, slots=True)
class Reads:
    """What was counted of one namespace, or of all."""

    counters: Counter[str] = field(default_factory=Counter)

    @property
    def reads(self) -> int:
        """Reads that were looked up."""
        return self._sum("local_hits", "hits", "misses", "invalidated")

    @property
    def hit_rate(self) -> float | None:
        """The part of the reads that was served from a cache, as `Cache.stats` has it; None without reads."""
        return _ratio(self._sum("local_hits", "hits", "stale"), self.reads)

    @property
    def local_rate(self) -> float | None:
        """The part of the reads that was served from the memory of a process."""
        return _ratio(self.counters["local_hits"], self.reads)

    @property
    def load_ms(self) -> float | None:
        """The mean time of a load."""
        return _ratio(self.counters["load_us"], 1000 * self.counters["load_us:count"], digits=3)

    @property
    def age_at_hit_s(self) -> float | None:
        """The mean age of what was served from Redis, by samples."""
        return _ratio(self.counters["age_s"], self.counters["age_s:count"], digits=1)

    @property
    def failures(self) -> int:
        """What went wrong: in Redis, in loads, in decoding."""
        return self._sum("errors", "load_errors", "undecodable")

    def as_json(self) -> dict[str, Any]:
        """Return every counter, and what follows from them."""
        return {
            "reads": self.reads,
            **{name: self.counters[name] for name in COUNTERS},
            "hit_rate": self.hit_rate,
            "local_rate": self.local_rate,
            "load_ms": self.load_ms,
            "age_at_hit_s": self.age_at_hit_s,
        }

    def _sum(self, *names: str) -> int:
        return sum(self.counters[name] for name in names)


@dataclass(frozen=True, slots=True)
class Reported:
    """What all processes have reported of a stretch of time."""

    #: how far back it reaches: some full windows, and what there is of the one under way
    seconds: float
    #: how many processes reported
    processes: int
    namespaces: Mapping[str, Reads]
    #: tokens, entries and patterns that were invalidated
    invalidations: int = 0
    #: whether the log reaches back that far
    invalidations_complete: bool = True

    @property
    def total(self) -> Reads:
        """All namespaces together."""
        return Reads(sum((reads.counters for reads in self.namespaces.values()), Counter()))

    @property
    def loads_per_invalidation(self) -> float | None:
        """Loads for each of the invalidations, those of misses among them; None without invalidations."""
        return _ratio(self.total.counters["loads"], self.invalidations, digits=1)

    def only(self, names: Iterable[str]) -> "Reported":
        """Return the same of these namespaces alone."""
        kept = {name: self.namespaces[name] for name in names if name in self.namespaces}
        return replace(self, namespaces=kept)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "seconds": round(self.seconds, 1),
            "processes": self.processes,
            "invalidations": self.invalidations,
            "invalidations_complete": self.invalidations_complete,
            "loads_per_invalidation": self.loads_per_invalidation,
            "namespaces": {name: reads.as_json() for name, reads in sorted(self.namespaces.items())},
        }


async def read(store: RedisStore | ClusterStore, keys: Keyspace) -> dict[str, Reported]:
    """Return what was reported for each of `SPANS`, by the server's clock. Raises Redis's exceptions."""
    client = await store.client_for(keys.log)
    whole, micros = await client.time()
    now = whole + micros / 1_000_000
    window, over = window_at(now)
    spans = {name: over + windows * WINDOW_SECONDS for name, windows in SPANS.items()}
    hashes = []
    for number in range(window, window - max(SPANS.values()) - 1, -1):
        key = keys.stats(number)
        hashes.append(await (await store.client_for(key)).hgetall(key))  # type: ignore[misc]
    since_ms = max(0, round(1000 * (now - max(spans.values()))))
    entries = await client.xrevrange(keys.log, min=str(since_ms), count=LOG_AT_MOST)
    found = {}
    for name, seconds in spans.items():
        count, complete = invalidations(entries, round(1000 * (now - seconds)))
        counted = reported(hashes[: SPANS[name] + 1], seconds)
        found[name] = replace(counted, invalidations=count, invalidations_complete=complete)
    return found


def reported(hashes: Iterable[Mapping[bytes, bytes]], seconds: float) -> Reported:
    """Add up the hashes of some windows; what is in them and no report is left out."""
    processes: set[str] = set()
    namespaces: dict[str, Reads] = {}
    for one in hashes:
        for name, value in one.items():
            text = name.decode(errors="replace")
            namespace, _, counter = text.partition(":")
            if text.startswith(PROCESS_MARK):
                processes.add(text)
            elif counter and (count := count_in(value)) is not None:
                namespaces.setdefault(namespace, Reads()).counters[counter] += count
    return Reported(seconds, len(processes), namespaces)


def invalidations(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]], since_ms: int) -> tuple[int, bool]:
    """Return how much the log's entries since then invalidate, newest first, and whether there were no more of them."""
    count, before = 0, b"0-0"
    for identifier, fields in entries:
        if _ms(identifier) < since_ms:
            return count, True
        before = fields.get(b"prev", b"0-0")
        try:
            what = json.loads(fields.get(b"what", b"{}"))
            count += sum(len(what.get(part, ())) for part in ("tokens", "entries", "patterns"))
        except (ValueError, AttributeError, TypeError, RecursionError):
            count += 1  # nobody understands it, so it invalidates what each process holds
    return count, _ms(before) < since_ms


def count_in(value: bytes) -> int | None:
    """Return a count as Redis keeps it; None for what is none, since anybody may have written it."""
    return int(value) if value.isdigit() and len(value) <= _DIGITS else None


def _ms(identifier: bytes) -> int:
    return count_in(identifier.partition(b"-")[0]) or 0


def _ratio(part: float, whole: float, *, digits: int = 4) -> float | None:
    return round(part / whole, digits) if whole else None
