"""When warms may start: at most so many a second, and none while events wait. Pure: the clock is given."""

import time
from collections.abc import Callable


class Bucket:
    """Tokens that come at a rate and are kept for a second: what was not used then is not made up for later.

    `per_second` 0: as many as are asked for. `clock` gives seconds that only grow.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._clock = clock
        self._tokens = self._most
        self._at = clock()

    def available(self, wanted: int) -> int:
        """Return how many of the tokens wanted are there."""
        if not self._per_second:
            return wanted
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return min(wanted, int(self._tokens))

    def take(self, number: int) -> None:
        """Take tokens that were available."""
        self._tokens -= number


class Budget:
    """How many warms a worker may start now.

    Warming loads the very database that readers wait for, and is never as urgent as an invalidation: while there are
    events to apply (`idle` says no), nothing is started. What runs goes on.
    """

    def __init__(
        self, per_second: float, idle: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bucket = Bucket(per_second, clock)
        self._idle = idle

    def available(self, wanted: int) -> int:
        """Return how many of those wanted may start."""
        return self._bucket.available(wanted) if wanted > 0 and self._idle() else 0

    def take(self, number: int) -> None:
        """Note how many were started."""
        self._bucket.take(number)
