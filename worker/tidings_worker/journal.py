"""What each event did, told while somebody reads it: the worker's side of `tidings tail`.

A merged batch's tokens name only the first event that asked for each, so what one event did is nowhere. It is told in a
stream, the journal, by planning the event once more, for itself. That costs, so it is done only while somebody reads:

    1. reader     sets a key that lives for some seconds, and renews it
    2. worker     looks for the key once a second, beside its batches
    3. handler    while it is there, leaves each batch here when it has been acknowledged: one boolean, else nothing
    4. worker     plans the events of these batches again, and writes what comes of them

Nothing waits for it and nothing fails with it: what cannot be written is dropped. It is bounded in every direction: the
events of a second, the length of a text, the stream, its life. It has types, subjects, tags and entries' names, which
keys have as well, and never an event's data. Not in it are dead letters, which have a stream that says more, and events
that are ignored, as whoever reads them can tell.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal, Protocol

from tidings.keys import Keyspace
from tidings.operations import Command, Operation

from .journal_records import TEXT_LENGTH, Handled, MoreRecord, Record, WarmRecord, records_of
from .metrics import WarmOutcome
from .outage import Patience, is_outage, pause
from .telemetry import log

#: Seconds between two looks for a reader, and for which the reader's key lives, at least three looks.
LOOK_SECONDS = 1.0
READ_SECONDS = 10

#: Events and warms that one worker tells of between two looks at most; how many more there were is told too.
ROOM = 500

#: Entries that the journal keeps, about, and seconds after which it goes when nothing is written any more.
LENGTH = 10_000
_LIVES_SECONDS = 60

#: While somebody reads, what there is to tell is gathered for so many seconds.
_GATHER_SECONDS = 0.05

#: Events that are planned again before the event loop may turn to something else.
_AT_A_TIME = 50


class Store(Protocol):
    """What the journal needs of `RedisStore` or `ClusterStore`."""

    async def run(self, operation: Operation[Any]) -> Any:
        """Carry out one operation."""
        ...

    async def transact(self, key: str, commands: Sequence[Command], *, bulk: bool = False) -> list[Any]:
        """Carry out commands as one transaction on the server of a key."""
        ...


class Journal:
    """Tells what events and warms did, while somebody reads it. `clock` gives seconds."""

    def __init__(
        self, store: Store, keys: Keyspace, worker: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._keys = keys
        self._worker = worker[:TEXT_LENGTH]
        self._clock = clock
        #: whether somebody reads: what is left here is dropped otherwise
        self.wanted = False
        self._look_at = clock()
        self._room = 0
        self._untold = 0
        self._handled: list[tuple[Handled, int]] = []
        self._warms: list[WarmRecord] = []
        self._failing = False

    def took(self, handled: Handled) -> None:
        """Take a batch, to be told of soon. Costs next to nothing, and raises nothing."""
        events = len(handled.batch.applied) + len(handled.batch.failed)
        if self.wanted and (room := self._take_room(events)):
            self._handled.append((handled, room))

    def warmed(
        self, name: str, function: str, outcome: WarmOutcome, *, took_s: float, why: Literal["event", "schedule"]
    ) -> None:
        """Take the end of a warm; see `WarmRecord`."""
        if self.wanted and self._take_room(1):
            took_ms = round(took_s * 1000, 2)
            record = WarmRecord(
                worker=self._worker,
                name=name[:TEXT_LENGTH],
                function=function[:TEXT_LENGTH],
                outcome=outcome,
                took_ms=took_ms,
                why=why,
            )
            self._warms.append(record)

    async def run(self, stop: asyncio.Event, patience: Patience) -> None:
        """Look for readers, and write, until the stop. Raises nothing for Redis's sake, nor for a rule's."""
        while not stop.is_set():
            if await patience.tried(self.turn()):
                patience.succeeded()
                await pause(_GATHER_SECONDS if self.wanted else LOOK_SECONDS, stop)
        self._forget()

    async def turn(self) -> None:
        """Look for a reader if it is time to, and write what there is. Raises what is an outage; else it is told once.

        The journal is for whoever looks on: a key of another type there, or a permission that lacks, must not end a
        worker.
        """
        try:
            if self._clock() >= self._look_at:
                await self._look()
            if self._handled or self._warms:
                await self._write()
                self._failing = False
        except Exception as error:
            self._forget()
            if is_outage(error):
                raise
            if not self._failing:
                log.warning("journal_failed", error=f"{type(error).__name__}: {error}")
            self._failing = True

    def _take_room(self, wanted: int) -> int:
        taken = min(self._room, wanted)
        self._room -= taken
        self._untold += wanted - taken
        return taken

    def _forget(self) -> None:
        self.wanted = False
        self._handled, self._warms, self._untold = [], [], 0
        self._look_at = self._clock() + LOOK_SECONDS

    async def _look(self) -> None:
        self.wanted = await self._store.run(_Exists(self._keys.journal_read))
        self._look_at = self._clock() + LOOK_SECONDS
        untold, self._untold, self._room = self._untold, 0, ROOM
        if untold and self.wanted:
            await self._add([MoreRecord(worker=self._worker, untold=untold)])

    async def _write(self) -> None:
        handled, self._handled = self._handled, []
        warms, self._warms = self._warms, []
        records: list[Record] = []
        for one, room in handled:
            ago_ms = round((datetime.now(UTC) - one.at).total_seconds() * 1000, 2)
            for record in islice(records_of(one, ago_ms), room):
                records.append(record)
                if len(records) % _AT_A_TIME == 0:
                    await asyncio.sleep(0)
        await self._add([*records, *warms])

    async def _add(self, records: Sequence[Record]) -> None:
        key = self._keys.journal
        adding = ("XADD", key, "MAXLEN", "~", LENGTH, "*", "what")
        commands: list[Command] = [(*adding, record.model_dump_json()) for record in records]
        # The second connection: invalidations must not wait behind it.
        await self._store.transact(key, [*commands, ("EXPIRE", key, _LIVES_SECONDS)], bulk=True)


class _Exists:
    """Say whether a key is there, whatever its type."""

    def __init__(self, key: str) -> None:
        self.commands: list[Command] = [("EXISTS", key)]

    def parse(self, replies: Sequence[Any]) -> bool:
        return bool(replies[0])
