"""What was delivered and not finished: retries that are due, and what dead workers have left. And the housekeeping.

Nothing here is in the way of new events: it runs beside the consumer, with batches of its own.

**Poison that kills.** An event that ends its worker (a crash in C code, memory, `os._exit`) is failed by nobody; it
comes back with all that was in its batch, and would end the next worker:

    1. worker A   is delivered 500 events, one of which kills it
    2. worker B   claims the 500, handles them as one batch, and dies as well
    3. worker C   claims them, and sees that each has been delivered twice

From the second delivery on entries are therefore handled one by one, least delivered first, and each is claimed, which
counts, just before it is handled. The innocent are applied; only the guilty one's count goes on growing, up to the last
delivery, after which it is set aside unseen.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .consumer import Consumer
from .continuity import Loss
from .delivery import Entry, RetryPolicy
from .groups import Group
from .handler import Handler
from .outage import Patience, is_group_gone, is_outage, pause
from .telemetry import log
from .watch import Watch

#: Entries that one claim takes at most.
_CLAIMED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How a stream is kept; seconds."""

    #: an entry that nobody has touched for so long is claimed; who works on it says so three times in that time
    claim_idle: float = 5.0
    #: a consumer with nothing pending that was not heard of for so long is removed
    consumer_idle: float = 600.0
    #: acknowledged entries that are kept
    keep_events: int = 10_000
    interval: float = 0.5
    trim_interval: float = 1.0


class Reclaimer:
    """Delivers again what was not finished in one stream, and keeps the stream short. `clock` gives seconds."""

    def __init__(
        self,
        consumer: Consumer,
        handler: Handler,
        watch: Watch,
        policy: RetryPolicy,
        upkeep: Upkeep,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group: Group = consumer.group
        self._consumer = consumer
        self._handler = handler
        self._watch = watch
        self._policy = policy
        self._upkeep = upkeep
        self._clock = clock
        self._cursor = "0-0"
        self._in_hand: list[str] = []
        self._kept = clock()

    async def run(self, stop: asyncio.Event, patience: Patience) -> None:
        """Work until the stop. Raises what is no outage."""
        while not stop.is_set():
            try:
                more = await self._turn(stop, patience)
            except Exception as error:  # noqa: BLE001 what is no outage is raised again
                await self._consumer.recover(error, stop, patience)
            else:
                patience.succeeded()
                if not more:
                    await pause(self._upkeep.interval, stop)

    async def renew(self, stop: asyncio.Event) -> None:
        """Keep others from claiming what is in hand or waits for its retry here, until the stop.

        Beside `run`, whose batches may be what takes long. A renewal that fails costs a repetition at most.
        """
        every = self._upkeep.claim_idle / 3
        while not stop.is_set():
            await pause(every, stop)
            slow = self._consumer.in_hand if self._clock() - self._consumer.in_hand_since >= every else []
            if ids := [*slow, *self._in_hand, *self._consumer.retries.ids]:
                try:
                    await self._group.renew(ids)
                except Exception as error:
                    if not (is_outage(error) or is_group_gone(error)):  # else the loops beside it see to it
                        raise

    async def _turn(self, stop: asyncio.Event, patience: Patience) -> bool:
        """Do what is due once; say whether there is more of it."""
        due = self._consumer.retries.take(self._clock(), _CLAIMED_AT_ONCE)
        full = len(due) == _CLAIMED_AT_ONCE
        try:
            if due and not stop.is_set():
                await self._deliver(list(due), stop, patience)
                due = {}
        finally:
            for stream_id, deliveries in due.items():  # an outage: they are still due
                self._consumer.retries.add(stream_id, deliveries, self._clock())
        more = await self._claim_from_the_dead(stop, patience)
        if self._clock() - self._kept >= self._upkeep.trim_interval:
            await self._keep_short()
            self._kept = self._clock()
        return more or full

    async def _claim_from_the_dead(self, stop: asyncio.Event, patience: Patience) -> bool:
        claimed = await self._group.claim_idle(round(self._upkeep.claim_idle * 1000), self._cursor, _CLAIMED_AT_ONCE)
        if claimed.deleted:
            await self._watch.make_up_for(self._group.stream.events, [_removed(claimed.deleted)])
        self._cursor = claimed.cursor
        busy = {*self._consumer.in_hand, *self._consumer.retries.ids}
        counts = await self._group.deliveries([i for i in claimed.ids if i not in busy]) if claimed.ids else {}
        if counts:
            log.warning("events_claimed", stream=self._group.stream.events, events=len(counts))
        self._in_hand = list(counts)
        try:
            # From the second delivery on alone, and in any case at the last: it must not be one with its killer.
            alone = min(2, self._policy.max_deliveries - 1)
            innocent = [stream_id for stream_id, count in counts.items() if count < alone]
            if innocent:
                await self._deliver(innocent, stop, patience)
            for stream_id, count in sorted(counts.items(), key=lambda item: item[1]):
                if count >= alone and not stop.is_set():
                    if count >= self._policy.max_deliveries:
                        await self._set_aside(stream_id, count)
                    else:
                        await self._deliver([stream_id], stop, patience)
        finally:
            self._in_hand = []
        return self._cursor != "0-0"

    async def _deliver(self, ids: Sequence[str], stop: asyncio.Event, patience: Patience) -> None:
        """Claim and handle entries."""
        self._in_hand = list(dict.fromkeys([*self._in_hand, *ids]))
        try:
            if entries := await self._claim(ids):
                await self._consumer.deliver(entries, stop, patience, contiguous=False)
        finally:
            self._in_hand = [stream_id for stream_id in self._in_hand if stream_id not in ids]

    async def _set_aside(self, stream_id: str, deliveries: int) -> None:
        """Make an entry a dead letter unseen."""
        reason = f"delivered {deliveries} times, and nobody who had it said what became of it"
        if entries := await self._claim([stream_id], deliveries):
            await self._handler.set_aside(self._group, entries, reason)

    async def _claim(self, ids: Sequence[str], deliveries: int | None = None) -> list[Entry]:
        """Take entries over; those that we do not get are done by another worker, unless their data are gone."""
        taken = await self._group.claim(ids, deliveries)
        if taken.removed:
            await self._watch.make_up_for(self._group.stream.events, [_removed(taken.removed)])
        return taken.entries

    async def _keep_short(self) -> None:
        upto = self._watch.looked_at(self._group.stream.events)  # and no further: see `continuity`
        while await self._group.trim(self._upkeep.keep_events, upto):
            pass  # a part at a time: the server does nothing else meanwhile
        for name in await self._group.remove_idle(round(self._upkeep.consumer_idle * 1000)):
            log.info("consumer_removed", consumer=name)


def _removed(ids: Sequence[str]) -> Loss:
    return Loss("pending", f"{len(ids)} events were removed from the stream before they were applied")
