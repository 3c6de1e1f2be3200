"""At most so many a second, evenly."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable


class Pace:
    """Gives turns, `per_second` of them; what was not used is not made up for later. Clock and sleep are in seconds."""

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._between = 1 / per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._turns = asyncio.Lock()

    async def turn(self, until: float = math.inf) -> bool:
        """Wait for the next turn; who asked first has it first. False, at once: it would come after `until`."""
        async with self._turns:
            if self._free_at > until:
                return False
            if (wait := self._free_at - self._clock()) > 0:
                await self._sleep(wait)
            self._free_at = max(self._free_at, self._clock()) + self._between
            return True
