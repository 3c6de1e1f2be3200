"""Waiting on an event loop until events are applied: `applied` decides, this listens and asks.

It is one connection that blocks for each stream of events, and a number of commands that does not depend on how many
wait. Nobody listens when nobody waits.

async or threads: a task listens for all who wait on its event loop, and a timer starts the question for those who are
due. `thread_hearing` does the same for threads.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any, Protocol, runtime_checkable

import redis.asyncio
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .applied import FIRST_ASK, Batch, Board, Waiter
from .batching import Multiplexer
from .errors import UnavailableError
from .exchanges import entries_in
from .keys import EventStream, Keyspace
from .servers import LONGEST_BLOCK

OnFailure = Callable[[UnavailableError], None]


@runtime_checkable
class Clients(Protocol):
    """What an event loop's store has beside its operations; see `RedisStore`."""

    #: seconds that one exchange has
    timeout: float

    async def client_for(self, key: str) -> redis.asyncio.Redis:
        """Return a client of the server that has this key."""
        ...

    async def apart(self, key: str, timeout: float) -> Multiplexer:  # noqa: ASYNC109 of each answer
        """Return a connection of one's own to the server of a key."""
        ...

    def close_with_loop(self) -> None:
        """Close the clients when the event loop ends."""
        ...


class Hearing:
    """The waits of one event loop. `failed` hears that the server did not answer."""

    def __init__(self, store: Clients, keys: Keyspace, group: str, failed: OnFailure) -> None:
        self._store = store
        self._keys = keys
        self._group = group
        self._failed = failed
        self._desks: dict[EventStream, _Desk] = {}

    async def wait(
        self,
        stream: EventStream,
        stream_id: str,
        timeout: float,  # noqa: ASYNC109 the question at the end of it still has to be answered
        *,
        label: str,
        ask_at_once: bool = False,
    ) -> None:
        """Return when the event is applied; `ask_at_once`: it may have been for long.

        Raises NotAppliedError after `timeout` seconds, DeadLetteredError, and UnavailableError.
        """
        self._store.close_with_loop()
        desk = self._desks.get(stream)
        if desk is None:
            board = Board(stream, self._keys, self._group)
            desk = self._desks[stream] = _Desk(board, self._store, self._failed)
        await desk.wait(stream_id, timeout, label=label, ask_at_once=ask_at_once)

    async def aclose(self) -> None:
        """End everything that is under way; who waits gets an UnavailableError."""
        for desk in self._desks.values():
            await desk.aclose()


class _Desk:
    """Those who wait on one event loop for events of one stream."""

    def __init__(self, board: Board, store: Clients, failed: OnFailure) -> None:
        self._board = board
        self._store = store
        self._failed = failed
        self._clock = asyncio.get_running_loop().time
        self._listener: asyncio.Task[None] | None = None
        self._asker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._link: Multiplexer | None = None

    async def wait(self, stream_id: str, timeout: float, *, label: str, ask_at_once: bool) -> None:  # noqa: ASYNC109
        event, now = asyncio.Event(), self._clock()
        due = now if ask_at_once else now + FIRST_ASK
        waiter = Waiter(stream_id, label, timeout, now + timeout, event.set, due)
        listening = self._listener is not None and not self._listener.done()
        self._board.add(waiter, listening=listening)
        try:
            if not waiter.over:
                if not listening and timeout > 0:
                    self._listener = asyncio.create_task(self._listen())
                self._ask_at(self._board.ask_at(waiter))
                await event.wait()
        finally:
            self._board.remove(waiter)
        waiter.result()

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = {task for task in (self._listener, self._asker) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._hang_up()
        self._board.fail(UnavailableError("the cache was closed while an event was waited for"))

    async def _listen(self) -> None:
        try:
            while self._board:
                if self._board.take([await self._hear()]):
                    self._ask_at(self._board.ask_at())
        except Exception as error:  # noqa: BLE001 all who wait raise it
            await self._hang_up()
            self._fail(error)

    async def _hear(self) -> Any:
        """Wait for words, on a connection of its own: redis-py's clients would take longer than the server."""
        applied, longest = self._board.stream.applied, LONGEST_BLOCK
        if self._link is None:
            self._link = await self._store.apart(applied, self._store.timeout + longest)
        block_ms = round(longest * 1000)
        (reply,) = await self._link.exchange(
            [("XREAD", "COUNT", 100, "BLOCK", block_ms, "STREAMS", applied, self._board.position)]
        )
        return reply if isinstance(reply, Exception) else [(applied, entries_in(reply))]

    async def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    def _ask_at(self, when: float) -> None:
        """See to it that it is asked at that time at the latest."""
        if self._asker is not None or when == inf:
            return  # who asks sees to the next time
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        when = self._board.ask_at()
        if when <= self._clock():
            self._asker = asyncio.create_task(self._ask())
        else:
            self._ask_at(when)

    async def _ask(self) -> None:
        try:
            asking = self._board.asking(self._clock())
            batch = next(asking, None)
            while batch is not None:
                replies = await self._exchange(batch)
                try:
                    batch = asking.send(replies)
                except StopIteration:
                    break
        except Exception as error:  # noqa: BLE001 all who wait raise it
            self._fail(error)
        finally:
            self._asker = None
        self._ask_at(self._board.ask_at())

    async def _exchange(self, batch: Batch) -> list[Any]:
        async with asyncio.timeout(self._store.timeout):
            client = await self._store.client_for(batch.key)
            if len(batch.questions) == 1:  # a pipeline would cost a lone waiter a tenth of its time
                return await _alone(batch.questions[0](client))
            pipe = client.pipeline(transaction=False)
            for question in batch.questions:
                question(pipe)
            return list(await pipe.execute(raise_on_error=False))

    def _fail(self, error: Exception) -> None:
        report(error, self._failed)
        self._board.fail(error)


async def _alone(reply: Any) -> list[Any]:
    try:
        return [await reply]
    except ResponseError as error:
        return [error]


def report(error: Exception, failed: OnFailure) -> None:
    """Tell of a server that does not answer: what comes next need not wait for it."""
    if isinstance(error.__cause__ if isinstance(error, UnavailableError) else error, TimeoutError | RedisTimeoutError):
        unavailable = UnavailableError("no answer while waiting for an event")
        unavailable.__cause__ = error
        failed(unavailable)
