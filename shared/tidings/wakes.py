"""Waiting for another process's load: one blocking read of the stream that tells of leases' ends, for all who wait.

A lease's end is written to a stream, and read from the position that came with the refusal of the lease, in the same
script: so it cannot fall between asking and waiting. Nobody polls, and whoever waits in vain looks again when the lease
has run out. The stream is short: an end that has been trimmed is waited for in vain as well.
"""

import asyncio
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

from .steps import Wait

_BLOCK_MS = 500
_COUNT = 1000
_REMEMBERED = 1000


class Wakes:
    """The waits of one event loop. `client` is for blocking reads: one of them while somebody waits."""

    def __init__(self, client: redis.asyncio.Redis, timeout: float) -> None:
        self._client = client
        self._patience = timeout + _BLOCK_MS / 1000
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._ended: dict[str, tuple[int, int]] = {}
        self._begun = (0, 0)
        self._task: asyncio.Task[None] | None = None

    async def wait(self, step: Wait) -> None:
        """Return when the lease has ended, at the latest when its time is over; never raises for Redis's sake."""
        position = _position(step.position)
        listening = self._task is not None and not self._task.done()
        if listening and (position < self._begun or self._ended.get(step.entry, position) > position):
            return  # it has ended, or may have before this began to listen
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(step.entry, set()).add(future)
        if not listening:
            self._begun, self._ended = position, {}
            self._task = asyncio.create_task(self._listen(step.wakes, step.position))
        try:
            await asyncio.wait({future}, timeout=step.left_ms / 1000)
        finally:
            self._leave(step.entry, future)

    async def aclose(self) -> None:
        """Stop listening; who waits looks again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._wake_all()

    async def _listen(self, wakes: str, position: str) -> None:
        try:
            while self._waiting:
                async with asyncio.timeout(self._patience):
                    reply = await self._client.xread({wakes: position}, count=_COUNT, block=_BLOCK_MS)
                for identifier, entry in _ends(reply):
                    position = identifier
                    self._wake(entry, _position(position))
        except (RedisError, OSError, TimeoutError):
            pass  # who waits looks again, and finds out what is wrong
        finally:
            self._wake_all()

    def _wake(self, entry: str, position: tuple[int, int]) -> None:
        self._ended.pop(entry, None)
        self._ended[entry] = position
        if len(self._ended) > _REMEMBERED:
            self._begun = max(self._begun, self._ended.pop(next(iter(self._ended))))
        for future in self._waiting.get(entry, ()):
            if not future.done():
                future.set_result(None)

    def _wake_all(self) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_result(None)

    def _leave(self, entry: str, future: "asyncio.Future[None]") -> None:
        futures = self._waiting.get(entry, set())
        futures.discard(future)
        if not futures:
            self._waiting.pop(entry, None)


def wait_in_thread(client: redis.Redis, step: Wait, clock: Any) -> None:
    """Do the same on the calling thread, with a connection of its own for as long as it waits."""
    deadline, position = clock() + step.left_ms / 1000, step.position
    try:
        while (left := deadline - clock()) > 0:
            block = max(1, min(_BLOCK_MS, round(left * 1000)))
            for identifier, entry in _ends(client.xread({step.wakes: position}, count=_COUNT, block=block)):
                position = identifier
                if entry == step.entry:
                    return
    except (RedisError, OSError):
        pass  # who waits looks again, and finds out what is wrong


def _ends(reply: Any) -> list[tuple[str, str]]:
    """Return (id, entry key) of what was read; RESP3 gives a mapping where RESP2 gives pairs."""
    streams = list(reply.values()) if isinstance(reply, dict) else [entries for _, entries in reply or ()]
    found = streams[0] if streams else []
    if found and isinstance(found[0], list) and found[0] and isinstance(found[0][0], list | tuple):
        found = found[0]  # one level more: redis-py's RESP3
    return [(identifier.decode(), fields.get(b"key", b"").decode("utf-8", "replace")) for identifier, fields in found]


def _position(identifier: str) -> tuple[int, int]:
    milliseconds, _, sequence = identifier.partition("-")
    return int(milliseconds), int(sequence or 0)
