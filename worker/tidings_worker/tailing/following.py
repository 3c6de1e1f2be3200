"""Reads what `tidings tail` shows. `follower` decides, this listens, and asks as `asking` does.

On one server one connection blocks for all streams together; on a cluster, where one command cannot name keys of
several slots, each stream has its own. What is cancelled is a plain XREAD, which takes nothing from anybody.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from math import inf
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError
from tidings import Cache
from tidings.batching import Multiplexer
from tidings.cluster_store import ClusterStore
from tidings.errors import UnavailableError
from tidings.event_ids import as_pair
from tidings.exchanges import paired

from tidings_worker.journal import READ_SECONDS
from tidings_worker.outage import Outage, Patience, pause
from tidings_worker.servers import store_of, timely

from .asking import why_not_yet
from .follower import Awaited, Follower
from .lines import Line, in_order

T = TypeVar("T")

_Entries = list[tuple[str, dict[bytes, bytes]]]

#: Seconds for which one read waits for entries: also, how often events are looked for that nobody has told of.
_BLOCK = 0.25

#: Entries of one stream in one reply.
_PAGE = 500


class Tailing:
    """Follows the streams of one cache. `tell` gets each line; `note` a sentence about the tail itself.

    `stop` ends it. Redis away is ridden out; from then on it goes on where it was.
    """

    def __init__(
        self, cache: Cache, tell: Callable[[Line], None], note: Callable[[str], None], stop: asyncio.Event
    ) -> None:
        self._store = store_of(cache)
        self._keys = keys = cache.keys
        self._group = cache.settings.group
        self._tell = tell
        self._note = note
        self._stop = stop
        self._follower = Follower(self._group)
        streams = keys.streams(cache.settings.partitions)
        events = [stream.events for stream in streams]
        #: the streams of receipts, and whose they are: for what was, as letters tell the same of what happens
        self._receipts = {stream.applied: stream.events for stream in streams}
        #: from where to read on; in this order: what the log says of an event is known before the event is shown
        self._positions = dict.fromkeys([keys.log, keys.dead, *events, *self._receipts, keys.journal], "0-0")
        self._server = cache.telemetry.server
        self._outage = Outage(self._server, lambda _there, _why: None)
        self._ahead = 0.0
        self._refused = False

    def now(self) -> float:
        """Return the server's time in seconds since 1970, about."""
        return time.time() + self._ahead

    async def begin(self, since: Callable[[float], str] | None) -> None:
        """Find out where to begin: at what `since` makes of the server's time, or at the end of each stream.

        Raises UnavailableError and what Redis does.
        """
        client = await self._store.client_for(self._keys.log)
        seconds, microseconds = await self._timely(client.time())
        self._ahead = seconds + microseconds / 1_000_000 - time.time()
        await self._ask_for_journal()
        start = None if since is None else since(self.now())
        for key in self._positions:
            self._positions[key] = await self._end_of(key) if start is None else _before(start)

    async def past(self, *, patient: bool) -> None:
        """Tell what the streams have from where this begins until now, ordered by time.

        Of events that are not applied yet only those that are late, if `patient`: `follow` tells of the others. Raises
        UnavailableError and what Redis does.
        """
        lines: list[Line] = []
        client_for = self._store.client_for
        for _ in range(2):  # once more: between the two, what had not been told of may have been
            for key in self._positions:
                while not self._stop.is_set() and (entries := await self._page(await client_for(key), key)):
                    lines += self._take(key, entries)
            lines += await self._ask(inf, patient=patient)
        lines += self._follower.overdue(inf)
        for line in in_order(lines):
            self._tell(line)
        self._note_untold()

    async def follow(self) -> None:
        """Tell what happens, until the stop. Raises what is no outage."""
        keys = [key for key in self._positions if key not in self._receipts]
        together = [[key] for key in keys] if isinstance(self._store, ClusterStore) else [keys]
        parts = [self._hear(some) for some in together] + [self._look_after(), self._keep_asking()]
        tasks = {asyncio.create_task(part) for part in (*parts, self._stop.wait())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _hear(self, keys: Sequence[str]) -> None:
        """Read these streams, on a connection of their own: whatever else was sent on it would wait as well."""
        patience = self._patience(f"tail of {keys[0]}" if len(keys) == 1 else "tail")
        link: Multiplexer | None = None
        try:
            while not self._stop.is_set():
                try:
                    if link is None:
                        link = await self._store.apart(keys[0], self._store.timeout + _BLOCK)
                    found = await self._read(link, keys)
                except Exception as error:  # noqa: BLE001 `wait` raises what is no outage
                    if link is not None:
                        await link.aclose()
                        link = None
                    await patience.wait(error)
                    continue
                patience.succeeded()
                for key, entries in found.items():
                    self._show(self._take(key, entries))
        finally:
            if link is not None:
                await link.aclose()

    async def _look_after(self) -> None:
        """Ask after the events that nobody tells of."""
        patience = self._patience("tail's questions")

        async def look() -> None:
            self._show(await self._ask(self.now()))

        while not self._stop.is_set():
            if await patience.tried(look()):
                patience.succeeded()
                self._show(self._follower.overdue(self.now()))
                self._note_untold()
                await pause(_BLOCK, self._stop)

    async def _keep_asking(self) -> None:
        """Let workers know that somebody reads the journal, as long as somebody does."""
        patience = self._patience("tail's journal")
        while not self._stop.is_set():
            await pause(READ_SECONDS / 4, self._stop)
            if await patience.tried(self._ask_for_journal()):
                patience.succeeded()

    async def _ask_for_journal(self) -> None:
        """Say that somebody reads the journal. A user who may only read is told so once, and shown the rest."""
        if self._refused:
            return
        key = self._keys.journal_read
        client = await self._store.client_for(key)
        try:
            await self._timely(client.set(key, b"1", ex=READ_SECONDS))
        except NoPermissionError as error:
            self._refused = True
            self._note(f"workers cannot be asked to tell what each event does: {error}")

    async def _ask(self, until: float, *, patient: bool = True) -> list[Line]:
        """Ask after the events that are due until then."""
        lines: list[Line] = []
        by_stream: dict[str, list[Awaited]] = defaultdict(list)
        for awaited in self._follower.due(until):
            by_stream[awaited.key[0]].append(awaited)
        for stream, several in by_stream.items():
            client = await self._store.client_for(stream)
            reasons = await self._timely(why_not_yet(client, stream, self._group, [one.key[1] for one in several]))
            for awaited in several:
                why_not = reasons[awaited.key[1]]
                lines += self._follower.answered(awaited, why_not, self.now(), patient=patient)
        return lines

    def _take(self, key: str, entries: _Entries) -> list[Line]:
        """Give a stream's entries to the follower."""
        self._positions[key] = entries[-1][0]
        follower, keys, now = self._follower, self._keys, self.now()
        lines: list[Line] = []
        for entry_id, fields in entries:
            if key == keys.log:
                lines += follower.logged(entry_id, fields)
            elif key == keys.dead:
                lines += follower.dead_letter(entry_id, fields)
            elif key == keys.journal:
                lines += follower.journal(entry_id, fields, now)
            elif key in self._receipts:
                follower.receipt(self._receipts[key], fields)
            else:
                follower.event(key, entry_id, fields, now)
        return lines

    async def _read(self, link: Multiplexer, keys: Sequence[str]) -> dict[str, _Entries]:
        block_ms, positions = round(_BLOCK * 1000), [self._positions[key] for key in keys]
        (reply,) = await link.exchange([("XREAD", "COUNT", _PAGE, "BLOCK", block_ms, "STREAMS", *keys, *positions)])
        if isinstance(reply, Exception):
            raise reply
        found = reply.items() if isinstance(reply, dict) else reply or ()
        return {
            key.decode(): [(entry_id.decode(), paired(fields)) for entry_id, fields in entries]
            for key, entries in found
        }

    async def _page(self, client: Redis, key: str) -> _Entries:
        page = await self._of_stream(key, client.xrange(key, f"({self._positions[key]}", count=_PAGE))
        return [(entry_id.decode(), fields) for entry_id, fields in page]

    async def _end_of(self, key: str) -> str:
        client = await self._store.client_for(key)
        last = await self._of_stream(key, client.xrevrange(key, count=1))
        return last[0][0].decode() if last else "0-0"

    async def _of_stream(self, key: str, reply: Awaitable[T]) -> T:
        """Return what a stream says; an error names it: of several, one may be another's, or not permitted."""
        try:
            return await self._timely(reply)
        except ResponseError as error:
            raise UnavailableError(f"{key}: {error}") from error

    async def _timely(self, reply: Awaitable[T]) -> T:
        return await timely(self._store, reply, self._server)

    def _show(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._tell(line)

    def _note_untold(self) -> None:
        if self._follower.untold:
            self._note(f"what {self._follower.untold} more events and warms did is not known: there are too many")
            self._follower.untold = 0

    def _patience(self, part: str) -> Patience:
        return Patience(part, self._outage, self._stop)


def _before(start: str) -> str:
    """Return the id before one."""
    milliseconds, sequence = as_pair(start)
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{(1 << 64) - 1}" if milliseconds else "0-0"
