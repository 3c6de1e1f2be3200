"""Warms are handed off when their server is there; while it is away they are kept here, and invalidations do not wait.

Jobs may live on a server of their own, and a warm is never worth an event: were the batch held until its warms are
queued, one server's outage would be the other's. What is kept is lost with the process, and when there is too much of
it: those entries are cold, and their next readers load.
"""

import asyncio
from collections.abc import Mapping, Sequence

from tidings.tracing import Carrier

from .outage import Patience, is_outage
from .plans import Hot, Warm
from .queueing import WarmQueue
from .telemetry import log

#: Warms that are kept at most; beyond it the oldest go.
MOST_KEPT = 10_000


class WarmKeeper:
    """Hands warms off, or keeps them until that can be done."""

    def __init__(self, queue: WarmQueue, most: int = MOST_KEPT) -> None:
        self._queue = queue
        self._most = most
        self._kept: dict[str, tuple[Warm | Hot, Carrier]] = {}
        self._any = asyncio.Event()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def hand_off(self, warms: Sequence[Warm], hot: Sequence[Hot], *, carriers: Mapping[str, Carrier]) -> None:
        """Queue the warms, or keep them if their server is away. Raises what else Redis raises."""
        if not self._kept:  # else it was away a moment ago, and what came first goes first
            try:
                await self._queue.hand_off(warms, hot, carriers=carriers)
            except Exception as error:
                if not is_outage(error):
                    raise
            else:
                return
        wanted: list[Warm | Hot] = [*warms, *hot]
        for one in wanted:
            self._kept.pop(one.name, None)
            self._kept[one.name] = (one, carriers.get(one.name, {}))
        while len(self._kept) > self._most:
            self._dropped += 1
            del self._kept[next(iter(self._kept))]
        if self._kept:
            self._any.set()

    async def run(self, stop: asyncio.Event, patience: Patience) -> None:
        """Hand off what is kept as soon as that can be done; at the stop once more. Raises what is no outage."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                waiting = asyncio.create_task(self._any.wait())
                await asyncio.wait({stopping, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                await self._hand_off_kept(stop, patience)
        finally:
            stopping.cancel()
        if self._kept or self._dropped:
            log.warning("warms_lost", warms=len(self._kept) + self._dropped)

    async def _hand_off_kept(self, stop: asyncio.Event, patience: Patience) -> None:
        while self._kept:
            taken = dict(self._kept)
            warms = [one for one, _ in taken.values() if isinstance(one, Warm)]
            hot = [one for one, _ in taken.values() if isinstance(one, Hot)]
            carriers = {name: carrier for name, (_, carrier) in taken.items()}
            if await patience.tried(self._queue.hand_off(warms, hot, carriers=carriers)):
                patience.succeeded()
                for name, what in taken.items():
                    if self._kept.get(name) is what:
                        del self._kept[name]
            elif stop.is_set():
                return
        self._any.clear()
        if self._dropped:
            log.warning("warms_lost", warms=self._dropped)
            self._dropped = 0
