"""Waiting for another process's load: one blocking read of the stream that tells of leases' ends, for all who wait.

A lease's end is written to a stream, and read from the position that came with the refusal of the lease, in the same
script: so it cannot fall between asking and waiting. Nobody polls, and whoever waits in vain looks again when the lease
has run out. The stream is short: an end that has been trimmed is waited for in vain as well.

async or threads: a task listens for all who wait on its event loop; of threads, one of those who wait listens for the
others. Either way it is one connection, whatever the number of keys, and nobody listens when nobody waits.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .errors import UnavailableError
from .forks import in_child
from .steps import Wait

_BLOCK_MS = 500
_COUNT = 1000
_REMEMBERED = 1000

_Position = tuple[int, int]


@dataclass(eq=False, slots=True)
class _Waiter:
    """One who waits for an end behind a position; `wake` makes it look whether `over` is true."""

    entry: str
    position: _Position
    wake: Callable[[], object]
    over: bool = False

    def end(self) -> None:
        self.over = True
        self.wake()


class _Board:
    """Who waits, and which ends have been read, from which position on. Pure; not safe under threads."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[_Waiter]] = {}
        self._ended: dict[str, _Position] = {}
        self._begun: _Position = (0, 0)
        #: from where to read on
        self.position = "0-0"

    def __iter__(self) -> Iterator[_Waiter]:
        for waiters in list(self._waiting.values()):
            yield from list(waiters)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def begin(self, position: str) -> None:
        """Begin to read at a position, knowing nothing of what was before."""
        self.position, self._begun, self._ended = position, _position(position), {}

    def add(self, waiter: _Waiter) -> bool:
        """Add one; False: what it would wait for has happened, or may have before the reading began."""
        if waiter.position < self._begun or self._ended.get(waiter.entry, waiter.position) > waiter.position:
            return False
        self._waiting.setdefault(waiter.entry, set()).add(waiter)
        return True

    def remove(self, waiter: _Waiter) -> None:
        """Remove one."""
        waiters = self._waiting.get(waiter.entry, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiting.pop(waiter.entry, None)

    def take(self, reply: Any) -> None:
        """Take what was read, and wake whom it concerns: who began to wait after an end waits for the next."""
        for identifier, entry in _ends(reply):
            self.position, position = identifier, _position(identifier)
            self._ended.pop(entry, None)
            self._ended[entry] = position
            if len(self._ended) > _REMEMBERED:
                self._begun = max(self._begun, self._ended.pop(next(iter(self._ended))))
            for waiter in self._waiting.get(entry, ()):
                if waiter.position < position:
                    waiter.end()

    def wake_all(self) -> None:
        """Let everybody look again: nothing is heard any more."""
        for waiter in self:
            waiter.end()


class Wakes:
    """The waits of one event loop.

    `blocking_for` gives a client for blocking reads of a key, which have `timeout` seconds more than they block;
    `failed` hears that the server did not answer.
    """

    def __init__(
        self,
        blocking_for: Callable[[str], Awaitable[redis.asyncio.Redis]],
        timeout: float,
        failed: Callable[[UnavailableError], None],
    ) -> None:
        self._blocking_for = blocking_for
        self._timeout = timeout
        self._failed = failed
        self._board = _Board()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, step: Wait) -> bool:
        """Return when the lease has ended, at the latest when its time is over; False: this has been closed.

        Never raises for Redis's sake.
        """
        if self._closed:
            return False
        event = asyncio.Event()
        waiter = _Waiter(step.entry, _position(step.position), event.set)
        listening = self._task is not None and not self._task.done()
        if not listening:
            self._board.begin(step.position)
        if self._board.add(waiter):
            if not listening:
                self._task = asyncio.create_task(self._listen(step.wakes))
            try:
                async with asyncio.timeout(step.left_ms / 1000):
                    await event.wait()
            except TimeoutError:
                pass  # the lease has run out
            finally:
                self._board.remove(waiter)
        return not self._closed

    async def aclose(self) -> None:
        """Stop listening, and let nobody wait any more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._board.wake_all()

    async def _listen(self, wakes: str) -> None:
        board = self._board
        try:
            while board:
                client = await self._blocking_for(wakes)
                async with asyncio.timeout(self._timeout + _BLOCK_MS / 1000):
                    board.take(await client.xread({wakes: board.position}, count=_COUNT, block=_BLOCK_MS))
        except (RedisError, OSError, UnavailableError) as error:
            _report(error, self._failed)
        finally:
            board.wake_all()


class ThreadWakes:
    """The waits of all threads of a process; all is as with `Wakes`, but the timeout, which is the client's."""

    def __init__(self, blocking_for: Callable[[str], redis.Redis], failed: Callable[[UnavailableError], None]) -> None:
        self._blocking_for = blocking_for
        self._failed = failed
        self._begin()
        in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._board = _Board()
        self._listener: _Waiter | None = None

    def wait(self, step: Wait) -> bool:
        """Block until the lease has ended, at the latest when its time is over. Never raises for Redis's sake."""
        deadline, event = time.monotonic() + step.left_ms / 1000, threading.Event()
        waiter = _Waiter(step.entry, _position(step.position), event.set)
        with self._lock:
            if not self._board:
                self._board.begin(step.position)
            if not self._board.add(waiter):
                return True
            if self._listener is None:
                self._listener = waiter
        try:
            while not waiter.over and (left := deadline - time.monotonic()) > 0:
                if self._listener is waiter:
                    self._listen(step.wakes, max(1, min(_BLOCK_MS, round(left * 1000))))
                else:
                    event.wait(left)
        finally:
            self._leave(waiter)
        return True

    def _leave(self, waiter: _Waiter) -> None:
        """Go, and leave the listening to somebody who stays."""
        with self._lock:
            self._board.remove(waiter)
            if self._listener is waiter:
                self._listener = next((other for other in self._board if not other.over), None)
                if self._listener is not None:
                    self._listener.wake()

    def _listen(self, wakes: str, block_ms: int) -> None:
        try:
            client = self._blocking_for(wakes)
            reply = client.xread({wakes: self._board.position}, count=_COUNT, block=block_ms)
        except (RedisError, OSError, UnavailableError) as error:
            _report(error, self._failed)
            with self._lock:
                self._board.wake_all()
        else:
            with self._lock:
                self._board.take(reply)


def _report(error: Exception, failed: Callable[[UnavailableError], None]) -> None:
    """Tell of a server that does not answer. Of anything else, who waits finds out by looking again."""
    if isinstance(error, UnavailableError):
        failed(error)
    elif isinstance(error, TimeoutError | RedisTimeoutError):
        unavailable = UnavailableError("no answer while waiting for another process's load")
        unavailable.__cause__ = error
        failed(unavailable)


def _ends(reply: Any) -> list[tuple[str, str]]:
    """Return (id, entry key) of what was read; RESP3 gives a mapping where RESP2 gives pairs."""
    streams = list(reply.values()) if isinstance(reply, dict) else [entries for _, entries in reply or ()]
    found = streams[0] if streams else []
    if found and isinstance(found[0], list) and found[0] and isinstance(found[0][0], list | tuple):
        found = found[0]  # one level more: redis-py's RESP3
    return [(identifier.decode(), fields.get(b"key", b"").decode("utf-8", "replace")) for identifier, fields in found]


def _position(identifier: str) -> _Position:
    milliseconds, _, sequence = identifier.partition("-")
    return int(milliseconds), int(sequence or 0)
