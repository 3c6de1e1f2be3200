"""The XREADGROUP loop: reads batches of new events and gives them to the handler, one at a time.

Delivery is at least once. While Redis is away the batch in hand is kept and handled again when it is back; the entries
are still pending, so that whoever claims them meanwhile does the same work, which is idempotent.
"""

import asyncio
import time
from collections.abc import Callable

from .delivery import Entry, Retries, RetryPolicy
from .groups import Group, Reading
from .handler import Handler, Outcome
from .outage import Patience, is_group_gone, is_outage
from .telemetry import log
from .watch import Watch


class Consumer:
    """Reads one stream for one group. `retries` are the events that failed; the reclaimer delivers them again.

    `clock` gives seconds.
    """

    def __init__(
        self,
        group: Group,
        handler: Handler,
        watch: Watch,
        retries: Retries,
        policy: RetryPolicy,
        *,
        batch: int,
        block_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.group = group
        self.retries = retries
        self._handler = handler
        self._watch = watch
        self._policy = policy
        self._batch = batch
        self._block_ms = block_ms
        self._clock = clock
        #: the batch that is being handled, and since when
        self.in_hand: list[str] = []
        self.in_hand_since = 0.0
        #: whether the last read was full: there is more to do
        self.is_behind = False

    async def run(self, stop: asyncio.Event, patience: Patience) -> None:
        """Read and handle until `stop` is set; then finish the batch in hand and return.

        A blocked read is never cancelled: what the server delivers to a read that nobody awaits any more stays pending
        until it is claimed. It returns by itself, within the block time. Raises what is no outage.
        """
        while self.group.is_reading or not stop.is_set():
            try:
                entries = await self.group.read(self._batch, self._block_ms)
            except Exception as error:  # noqa: BLE001 what is no outage is raised again
                await self.recover(error, stop, patience)
                continue
            patience.succeeded()
            self.is_behind = len(entries) == self._batch
            if entries:
                await self.apply(entries, stop, patience)

    async def apply(self, entries: list[Entry], stop: asyncio.Event, patience: Patience) -> None:
        """Handle a batch that one read gave, which is in hand meanwhile; see `deliver`."""
        self.in_hand, self.in_hand_since = [entry.stream_id for entry in entries], self._clock()
        try:
            await self.deliver(entries, stop, patience)
        finally:
            self.in_hand = []

    async def deliver(
        self, entries: list[Entry], stop: asyncio.Event, patience: Patience, *, contiguous: bool = True
    ) -> None:
        """Handle entries, again after an outage; what is left over a stop stays pending for the next worker.

        They are kept rather than claimed again: that would count as a delivery, and an outage says nothing about them.
        Where they came from one read, contiguous, the next read begins with their acknowledgement, until the stop.
        """

        def ahead() -> Reading | None:
            return Reading(self._batch, self._block_ms) if contiguous and not stop.is_set() else None

        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = await self._handler.handle(self.group, entries, contiguous=contiguous, ahead=ahead)
            except Exception as error:  # noqa: BLE001 as above
                if stop.is_set() and is_outage(error):
                    log.warning("events_left_pending", stream=self.group.stream.events, events=len(entries))
                    return
                await self.recover(error, stop, patience)
        patience.succeeded()
        now = self._clock()
        for entry, _ in outcome.failed:
            self.retries.add(entry.stream_id, entry.deliveries, now + self._policy.delay(entry.deliveries))
        if outcome.incomplete:  # claimed by others meanwhile, or the group was lost and nothing said so
            await patience.tried(self._watch.check())

    async def recover(self, error: Exception, stop: asyncio.Event, patience: Patience) -> None:
        """Wait until it is known what was lost: another server may answer now, and whoever asks first may be us.

        Raises what is no outage.
        """
        if not is_group_gone(error):
            await patience.wait(error)
        while not await patience.tried(self._watch.check()):
            if stop.is_set():
                return
