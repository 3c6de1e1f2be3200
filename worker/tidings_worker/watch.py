"""Watches for lost events, and when there may be some makes up for it: everything is invalidated, once, and loudly.

What was lost is unknown, so what it made wrong is unknown too. Dropping the cache costs loads; keeping it would cost
the truth.

Each look is compared with the one before it (`continuity`). The last is also kept in Redis, so that what happens while
no worker runs is seen by the next one, and so that of several workers that see the same loss one acts, or few.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf

from tidings import Cache
from tidings.causes import by_loss
from tidings.keys import ALL

from .continuity import Histories, Loss, Position, carried_on, losses
from .groups import Group
from .ledger import Ledger
from .outage import Patience, pause
from .telemetry import log

#: Gives the names of the histories of the servers that answer, and whether all of them did.
SeeHistories = Callable[[], Awaitable[tuple[frozenset[str], bool]]]


class Watch:
    """Looks at every group of this worker and at the servers, once a second and whenever something looks wrong."""

    def __init__(
        self,
        cache: Cache,
        groups: Sequence[Group],
        ledger: Ledger,
        see_histories: SeeHistories,
        on_loss: Callable[[Loss], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._groups = groups
        self._ledger = ledger
        self._see_histories = see_histories
        self._on_loss = on_loss
        self._positions: dict[str, Position] = {}
        self._histories: Histories | None = None
        self._clock = clock
        self._histories_seen_at = -inf
        self._owed: list[tuple[str, Sequence[Loss]]] = []
        self._lock = asyncio.Lock()

    async def run(self, stop: asyncio.Event, patience: Patience, interval: float) -> None:
        """Look until the stop."""
        while not stop.is_set():
            if await patience.tried(self.check()):
                patience.succeeded()
                await pause(interval, stop)

    async def check(self) -> None:
        """Look once, make groups that are not there, and make up for what may be lost. Raises what Redis does."""
        async with self._lock:
            await self._pay()
            await self._check_histories()
            for group in self._groups:
                await self._check_group(group)

    async def _check_group(self, group: Group) -> None:
        stream = group.stream.events
        before = self._positions.get(stream)
        now = await group.position()
        if before is None or losses(before, now):
            # Another worker may have dealt with it. What it keeps is read first: it must not be younger than our look.
            kept = await self._ledger.position(stream)
            now = await group.position()
            first_ever = before is None and kept is None and not now.mark and now.delivered == "0-0"
            found = [] if first_ever else losses(kept, now) if kept is not None else losses(before, now)
            if found:
                await self._make_up(stream, found)
            before = kept if before is None else before
        if not now.mark:
            await group.create()
            now = await group.position()
        now = carried_on(before if before is not None and before.mark == now.mark else None, now)
        if now != self._positions.get(stream):
            await self._ledger.keep(stream, now)
        self._positions[stream] = now

    async def _check_histories(self) -> None:
        """Look whether a server has another history.

        That another worker has made up for it is enough only where it did so after our last look: until then we have
        worked with the old server, which may go on for seconds while sentinels relieve it.

            1. worker A   is led to the new primary, and invalidates everything there
            2. worker B   is connected to the old one, and applies an event there
            3. sentinels  end the old one; worker B is led to the new primary, where nobody has heard of 2
        """
        seen, complete = await self._see_histories()
        looked_at = self._clock()
        if self._histories is None:
            self._histories = Histories(await self._ledger.histories())
        before = self._histories
        if found := before.losses(seen):
            kept = Histories(await self._ledger.histories())
            since = looked_at - self._histories_seen_at
            if not kept.known or kept.losses(seen) or await self._ledger.made_up_ago() >= since:
                await self._make_up("", found)
                await self._ledger.note_made_up()
        now = before.carried_on(seen, complete=complete)
        if now != before or not before.known:
            await self._ledger.keep_histories(now.known)
        self._histories, self._histories_seen_at = now, looked_at

    def looked_at(self, stream: str) -> str:
        """Return the id up to which the group had read at the last look, which other workers can see as well."""
        found = self._positions.get(stream)
        return "0-0" if found is None else found.delivered

    async def make_up_for(self, stream: str, found: Sequence[Loss]) -> None:
        """Make up for what no later look would find: now, or with the first look that reaches Redis."""
        self._owed.append((stream, found))
        async with self._lock:
            await self._pay()

    async def _pay(self) -> None:
        while self._owed:
            await self._make_up(*self._owed[0])
            del self._owed[0]

    async def _make_up(self, stream: str, found: Sequence[Loss]) -> None:
        """Invalidate everything, and say why."""
        reasons = "; ".join(loss.text for loss in found)
        await self._cache.invalidate_tokens({ALL: by_loss([loss.code for loss in found], stream)})
        log.error("events_lost", stream=stream or "every stream", reason=reasons, done="everything is invalidated")
        for loss in found:
            self._on_loss(loss)
