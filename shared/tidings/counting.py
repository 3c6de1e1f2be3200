"""What is counted of reads: counters and histograms that cost a hit next to nothing. In process, without Redis."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any


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
