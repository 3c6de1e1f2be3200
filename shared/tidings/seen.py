"""One look at an entry, judged: its value is fresh, or stale and permitted by the policy, or neither. Pure."""

from dataclasses import dataclass
from typing import Any

from .entries import Looked
from .fence import Sighting, Verdict
from .policy import Policy, expired_may_be_served, invalidated_may_be_served, may_cover_error, stale_age_ms

#: Where a value could be, and None is one.
NOTHING: Any = object()


class AwayError(Exception):
    """Redis did not answer a read, so it has to do without. Never leaves the library."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value to serve, and the codec's bytes of it, for those who share the read."""

    value: Any
    payload: bytes
    #: as what it was counted, see `counting.Counts`
    counted: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One look, judged. `value` is NOTHING where there is none, or none that decodes; `payload` is the codec's."""

    sighting: Sighting
    looked: Looked
    noted: int | None
    value: Any
    payload: bytes
    #: when it was looked at, in seconds of this process's clock
    at: float

    @property
    def fresh(self) -> bool:
        """Whether the value is to be served without further thought."""
        return self.sighting.verdict is Verdict.FRESH and self.value is not NOTHING

    @property
    def _over_ms(self) -> int:
        """For how long it has been expired; below zero: not yet."""
        born, left_ms = self.sighting.born, self.looked.left_ms
        return 0 if born is None or left_ms is None else born.grace_ms - left_ms

    @property
    def _age_ms(self) -> int:
        """For how long it has been wrong, whichever way it ended; of both, the longer."""
        ended_ms = max(0, self._over_ms)
        if self.sighting.verdict is not Verdict.INVALIDATED or self.sighting.born is None:
            return ended_ms
        seen_us = self.sighting.born.seen_us or None
        return max(ended_ms, stale_age_ms(self.looked.now_us, seen_us, self.sighting.superseded_us))

    def permitted(self, policy: Policy) -> bool:
        """Whether the value may be served although it is stale, while one refresh runs."""
        born = self.sighting.born
        if self.value is NOTHING or born is None or (born.grace_ms and self.looked.left_ms is None):
            return False
        if born.grace_ms and self._over_ms >= 0 and not expired_may_be_served(policy, self._over_ms):
            return False
        if self.sighting.verdict is Verdict.INVALIDATED:
            return invalidated_may_be_served(policy, self._age_ms)
        return self.sighting.verdict is Verdict.EXPIRED

    def covers(self, policy: Policy, since_ms: float) -> bool:
        """Whether the value, seen so long ago, may be served in place of a load that fails or is late."""
        known = self.value is not NOTHING and self.looked.left_ms is not None
        return known and may_cover_error(policy, self._age_ms + round(since_ms))
