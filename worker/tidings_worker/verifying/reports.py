"""What an audit has found: counts by namespace, what is stale, and what it cost. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .nines import CONFIDENCE, nines, stale_at_most
from .verdicts import KNOWN, Outcome


@dataclass(frozen=True, slots=True)
class TokenSeen:
    """A token of a stale entry: why it has the value under which the entry was loaded, and for how many seconds."""

    name: str
    #: empty: it has never been invalidated, as far as anybody knows
    cause: str
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry that is stale, or one whose loads differ from each other: `outcome`."""

    outcome: Outcome
    key: str
    namespace: str
    #: the call; of an encrypted namespace the function alone, unless values are asked for
    call: str
    #: seconds since it was filled, by the server's clock; by which process, and why
    age_s: float
    by: str
    how: str
    tags: tuple[str, ...]
    #: where the cached value and the last load first differ, and how
    place: str
    difference: str
    tokens: tuple[TokenSeen, ...]
    #: what they are there, as far as that was asked for
    cached: str | None = None
    loaded: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types; values only where they were asked for."""
        found = asdict(self)
        if self.cached is None:
            del found["cached"], found["loaded"]
        return found


@dataclass(slots=True)
class Tally:
    """What came of the sampled entries of one namespace, and of the others there."""

    #: entries under the namespace, about; vacant and invalidated ones too
    entries: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    #: why entries are not auditable, or failed
    reasons: Counter[tuple[Outcome, str]] = field(default_factory=Counter)

    def add(self, outcome: Outcome, reason: str = "") -> None:
        """Count an entry."""
        self.outcomes[outcome] += 1
        if reason:
            self.reasons[outcome, reason] += 1

    def reasons_of(self, outcome: Outcome) -> Counter[str]:
        """Return why entries came to this, where there is a reason."""
        return Counter({reason: count for (of, reason), count in self.reasons.items() if of is outcome})

    @property
    def counts(self) -> dict[str, int]:
        """The outcomes that there were, by name."""
        return {outcome.value: count for outcome, count in self.outcomes.items()}

    @property
    def checked(self) -> int:
        """Entries of which it is known whether they are stale."""
        return sum(self.outcomes[outcome] for outcome in KNOWN)

    @property
    def stale(self) -> int:
        """Entries that are."""
        return self.outcomes[Outcome.STALE]

    @property
    def stale_at_most(self) -> float:
        """The bound of the rate of stale entries, see `nines`."""
        return stale_at_most(self.stale, self.checked)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        known = self.checked > 0
        return {
            "entries": self.entries,
            "checked": self.checked,
            **{outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "reasons": {reason: count for (_, reason), count in self.reasons.items()},
            "consistency": 1 - self.stale / self.checked if known else None,
            "at_least": 1 - self.stale_at_most if known else None,
            "nines_at_least": round(nines(self.stale_at_most), 2) if known else None,
            "confidence": CONFIDENCE,
        }


@dataclass(slots=True)
class Cost:
    """What an audit has taken. Bytes are those of keys, entries and tokens that were read."""

    loads: int = 0
    load_seconds: float = 0.0
    commands: int = 0
    bytes_read: int = 0
    elapsed_seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        found = asdict(self)
        found["load_seconds"] = round(self.load_seconds, 3)
        found["elapsed_seconds"] = round(self.elapsed_seconds, 3)
        return found


@dataclass(slots=True)
class Report:
    """All of it. `ended` is ``done``, ``time`` (it was over) or ``stopped``; `sampled` of the entries were chosen."""

    namespaces: dict[str, Tally] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    sampled: int = 0
    #: whether all keys of the server were walked over
    complete: bool = True
    ended: str = "done"
    #: stale entries that were invalidated
    repaired: int = 0

    def of(self, namespace: str) -> Tally:
        """Return the counts of a namespace."""
        return self.namespaces.setdefault(namespace, Tally())

    def count(self, outcome: Outcome) -> int:
        """Return how many entries of all namespaces came to this."""
        return sum(tally.outcomes[outcome] for tally in self.namespaces.values())

    @property
    def looked_at(self) -> int:
        """Entries of which something is known, if only that they cannot be audited."""
        return sum(tally.outcomes.total() for tally in self.namespaces.values())

    @property
    def stale(self) -> list[Finding]:
        """The stale entries."""
        return [finding for finding in self.findings if finding.outcome is Outcome.STALE]

    def as_json(self) -> Mapping[str, Any]:
        """Return plain JSON types."""
        return {
            "ended": self.ended,
            "sampled": self.sampled,
            "complete": self.complete,
            "repaired": self.repaired,
            "namespaces": {name: tally.as_json() for name, tally in sorted(self.namespaces.items())},
            "findings": [finding.as_json() for finding in self.findings],
            "cost": self.cost.as_json(),
        }
