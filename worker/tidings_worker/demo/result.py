"""What a run of the demo found: plain data, filled by `play`, printed by `show`."""

import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


class CheckFailed(Exception):  # noqa: N818 a finding, not a broken program
    """A promise was broken. `check` is one of ``stale read``, ``missing warm``, ``lost event``, ``worker``."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of a round's timeline. Revisions; None: that cache was not asked, or had nothing to serve."""

    #: seconds on the clock of `time.perf_counter`
    at: float
    what: str
    #: what the database holds
    current: str | None
    tidings: str | None = None
    ttl_only: str | None = None


@dataclass(slots=True)
class Round:
    """One package ingested again, and what readers saw of it."""

    number: int
    package: str
    edits: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    reads: int = 0
    #: reads that a TTL-only cache answered with what an applied event had made wrong
    ttl_only_stale: int = 0
    #: on the same clock as the moments: when publishing began, and when its consequences had come
    published_at: float = 0.0
    applied_at: float = 0.0
    warmed_at: float = 0.0
    fresh_at: float = 0.0

    def ms(self, at: float) -> float:
        """Return milliseconds after the event; before it, they are negative."""
        return round((at - self.published_at) * 1000, 2)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types; times in milliseconds from the event."""
        return {
            "round": self.number,
            "package": self.package,
            "edits": self.edits,
            "timeline": [
                {
                    "ms": self.ms(m.at),
                    "what": m.what,
                    "current": m.current,
                    "tidings": m.tidings,
                    "ttl_only": m.ttl_only,
                }
                for m in self.moments
            ],
            "reads": self.reads,
            "ttl_only_stale": self.ttl_only_stale,
            "applied_ms": self.ms(self.applied_at) if self.applied_at else None,
            "warmed_ms": self.ms(self.warmed_at) if self.warmed_at else None,
            "fresh_ms": self.ms(self.fresh_at) if self.fresh_at else None,
        }


@dataclass(slots=True)
class Result:
    """A whole run; `failure` is the check that ended it."""

    #: functions of each package when the run began
    packages: Mapping[str, int]
    rounds: list[Round] = field(default_factory=list)
    failure: CheckFailed | None = None
    #: the worker's last log lines
    worker_log: Collection[str] = ()
    took_seconds: float = 0.0

    def p50_ms(self, moment: Callable[[Round], float]) -> float | None:
        """Return the median over finished rounds of milliseconds from the event to a moment of each."""
        times = [r.ms(moment(r)) for r in self.rounds if r.fresh_at]
        return round(statistics.median(times), 2) if times else None

    @property
    def reads(self) -> int:
        """Reads of the cached function, each asked of both caches."""
        return sum(r.reads for r in self.rounds)

    @property
    def ttl_only_stale(self) -> int:
        """How many of the reads a TTL-only cache answered wrong."""
        return sum(r.ttl_only_stale for r in self.rounds)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        failure = self.failure and {"check": self.failure.check, "message": str(self.failure)}
        return {
            "ok": self.failure is None,
            "failure": failure,
            "packages": dict(self.packages),
            "rounds": [r.as_json() for r in self.rounds],
            "totals": {
                "reads": self.reads,
                "stale": int(self.failure is not None and self.failure.check == "stale read"),
                "ttl_only_stale": self.ttl_only_stale,
                "applied_p50_ms": self.p50_ms(lambda r: r.applied_at),
                "warmed_p50_ms": self.p50_ms(lambda r: r.warmed_at),
                "fresh_p50_ms": self.p50_ms(lambda r: r.fresh_at),
                "took_s": round(self.took_seconds, 2),
            },
        }
