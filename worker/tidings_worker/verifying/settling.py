"""Waiting until whatever was published before is applied."""

import asyncio
from collections.abc import Sequence
from itertools import chain, repeat

from redis.exceptions import ResponseError
from tidings.event_ids import as_pair

from tidings_worker.exchange import Store

#: Seconds between two questions: soon at first, then less often.
_PAUSES = (0.01, 0.02, 0.05, 0.1)
_PAUSE = 0.2


class Settling:
    """Knows when the events of some streams are applied by a group; `grace` and `timeout` are seconds.

    All who wait at the same time share one look at the streams, which is never one that began before they asked.
    """

    def __init__(self, store: Store, streams: Sequence[str], group: str, *, grace: float, timeout: float) -> None:
        self._store = store
        self._streams = streams
        self._group = group.encode()
        self._grace = grace
        self._timeout = timeout
        self._running: asyncio.Task[bool] | None = None
        self._next: asyncio.Task[bool] | None = None
        #: questions asked so far
        self.questions = 0

    async def settled(self) -> bool:
        """Wait for `grace`, then until every event that is published by then is applied; False: it takes too long.

        In this order: a writer that has committed before the call has `grace` seconds to publish. Raises what Redis
        does.
        """
        await asyncio.sleep(self._grace)
        if self._next is None:
            self._next = asyncio.create_task(self._look(self._running))
        return await asyncio.shield(self._next)

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, before: "asyncio.Task[bool] | None") -> bool:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None  # from here on who asks needs a look of his own
        try:
            async with asyncio.timeout(self._timeout):
                last = [(stream, await self._last(stream)) for stream in self._streams]
                for stream, stream_id in last:
                    await self._until_applied(stream, stream_id)
        except TimeoutError:
            return False
        return True

    async def _last(self, stream: str) -> str | None:
        """Return the id of a stream's last event; None: it has none."""
        client = await self._store.client_for(stream)
        self.questions += 1
        found = await client.xrevrange(stream, count=1)
        return found[0][0].decode("ascii") if found else None

    async def _until_applied(self, stream: str, stream_id: str | None) -> None:
        if stream_id is None:
            return
        for pause in chain(_PAUSES, repeat(_PAUSE)):
            if await self._is_applied(stream, stream_id):
                return
            await asyncio.sleep(pause)

    async def _is_applied(self, stream: str, stream_id: str) -> bool:
        """Say whether the group has been handed all up to an id, and after that none of it is pending.

        In that order, because an event is pending from the moment it is handed out: then it was acknowledged, and an
        ack comes after the invalidation.
        """
        pipe = (await self._store.client_for(stream)).pipeline(transaction=True)
        pipe.xinfo_groups(stream)
        pipe.xpending_range(stream, self._group, "-", stream_id, 1)
        self.questions += 2
        groups, pending = await pipe.execute(raise_on_error=False)
        if isinstance(groups, ResponseError) and str(groups).startswith("no such key"):
            return False  # the stream is gone: nobody knows what was in it
        if isinstance(groups, Exception):
            raise groups
        mine = next((group for group in groups if group["name"] == self._group), None)
        if mine is None:
            return False  # no worker has ever read it
        if isinstance(pending, Exception):
            raise pending
        return not pending and as_pair(mine["last-delivered-id"].decode("ascii")) >= as_pair(stream_id)
