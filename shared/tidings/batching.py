"""What one event-loop tick sends to Redis, in one write on one connection, or in two.

A pool gives each command a connection of its own for as long as it is under way, and most of what a cached read costs
is that: at 200 tasks 50 us of 53. One connection can carry all of them: commands are answered in the order in which
they were sent, so that the next reply belongs to the one who has waited longest (`link`).

What a tick sends is the commands of its exchanges, and behind them one MGET of all the keys that somebody reads:

- An MGET that has not been sent yet may be shared. Whatever was acknowledged before a reader asked, the server had done
  before the command was sent, so every value in the reply is from after the question of everybody who shares it.
- One that is under way is never joined. The server may have answered it before an invalidation that has been
  acknowledged since, and the one who joins would be handed a value from before it.
- It goes last, so that whoever reads after a fill was sent finds it, in the same tick too.

When many read in one tick and the server has nothing to do, the first of them go out at once, as an MGET of their own:
the server works on it while the others still ask. From then on there are two under way in turn, and neither side waits
for the other, which is a fifth of the time of a read.

Deadlines are one timer for the connection, not one for each call, which would cost 2 to 4 us: replies come in order, so
when the oldest is overdue, those behind it wait in vain as well.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from redis.asyncio.connection import AbstractConnection

from .link import ClosedError, Link, Waiter, pack

Values = list[bytes | None]
_Read = tuple[tuple[str, ...], "asyncio.Future[Values]"]

#: Seconds without a command after which the server may have closed the connection: see `Multiplexer._soon`.
_IDLE = 1.0

#: Reads of one tick that are worth a write of their own while the server has nothing to do.
_MANY = 32


class _Exchange:
    """Commands that went out together, and their replies so far. An error reply is a reply."""

    __slots__ = ("_expected", "_explain", "_replies", "future", "overdue_at")

    def __init__(
        self, expected: int, future: "asyncio.Future[list[Any]]", explain: Callable[[Exception], Exception]
    ) -> None:
        self.future = future
        self.overdue_at = 0.0
        self._expected = expected
        self._explain = explain
        self._replies: list[Any] = []

    def take(self, reply: Any) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._expected and not self.future.done():  # its caller may have gone
            self.future.set_result(self._replies)

    def fail(self, failure: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(self._explain(failure))


class _Reads:
    """One MGET, and everybody whose keys are in it."""

    __slots__ = ("_explain", "keys", "overdue_at", "reads")

    def __init__(
        self,
        reads: list[_Read],
        explain: Callable[[Exception], Exception],
    ) -> None:
        self.reads = reads
        self.overdue_at = 0.0
        self._explain = explain
        #: Without duplicates, unless there is but one who asks, and gets the reply as it is.
        self.keys: Iterable[str] = (
            reads[0][0] if len(reads) == 1 else dict.fromkeys(chain.from_iterable([keys for keys, _ in reads]))
        )

    def take(self, reply: Any) -> None:
        if not isinstance(reply, list):
            self.fail(reply)
        elif len(self.reads) == 1:
            future = self.reads[0][1]
            if not future.done():
                future.set_result(reply)
        else:
            value = dict(zip(self.keys, reply, strict=True)).__getitem__
            for keys, future in self.reads:
                if not future.done():
                    future.set_result(list(map(value, keys)))

    def fail(self, failure: Exception) -> None:
        for _, future in self.reads:
            if not future.done():
                future.set_exception(self._explain(failure))

    def commands(self) -> tuple[bytes, int]:
        """Return what to send, and how many replies come."""
        return pack(("MGET", *self.keys)), 1


class _ReadsApart(_Reads):
    """The same with a command for each key, which a cluster wants where slots differ. An error stands for its value."""

    __slots__ = ("_expected", "_replies")

    def take(self, reply: Any) -> None:
        self._replies.append(reply[0] if isinstance(reply, list) else reply)
        if len(self._replies) == self._expected:
            super().take(self._replies)

    def commands(self) -> tuple[bytes, int]:
        packed = [pack(("MGET", key)) for key in self.keys]
        self._expected = len(packed)
        self._replies: Values = []
        return b"".join(packed), len(packed)


def _packable(reads: list[_Read]) -> list[_Read]:
    """Fail those whose keys cannot be sent, and return the others, who must not fail with them."""
    fit: list[_Read] = []
    for keys, future in reads:
        try:
            pack(keys)
        except ValueError as error:
            if not future.done():
                future.set_exception(error)
        else:
            fit.append((keys, future))
    return fit


def _has_paused(link: Link) -> bool:
    return not link.waiting and link.loop.time() - link.used_at > _IDLE


def _as_it_is(failure: Exception) -> Exception:
    return failure


class Multiplexer:
    """Exchanges and reads with one server, from one event loop, over one link that is made at first use and when lost.

    A lost connection, or one on which an answer takes longer than `timeout` seconds, fails what is under way with what
    `explain` makes of redis-py's error or the TimeoutError, and nothing else: what has not been sent goes out on the
    next connection. Cancelling a caller leaves the connection and the others alone. With `apart` each key is read by a
    command of its own.
    """

    def __init__(
        self,
        connection: Callable[[], AbstractConnection],
        timeout: float,
        explain: Callable[[Exception], Exception] = _as_it_is,
        *,
        apart: bool = False,
    ) -> None:
        self._reading = _ReadsApart if apart else _Reads
        self._connection = connection
        self._timeout = timeout
        self._explain = explain
        self._link: Link | None = None
        self._commands: list[bytes] = []
        self._exchanges: list[Waiter] = []
        self._reads: list[_Read] = []
        self._closed = False
        #: there is something to send, and a flush will come: at the end of the tick, or when the link is writable
        self._due = False

    def exchange(self, commands: Sequence[Sequence[Any]]) -> "asyncio.Future[list[Any]]":
        """Send commands with whatever else this tick sends; the future gets one reply for each, errors among them.

        Raises what packing raises, and then nothing is sent and nothing waits: an exchange that waited for a reply to
        what was never sent would take the next one's, and everybody behind it somebody else's.
        """
        packed = [pack(command) for command in commands]
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        if not packed:
            future.set_result([])
            return future
        self._commands += packed
        self._exchanges += [_Exchange(len(packed), future, self._explain)] * len(packed)
        if not self._due:
            self._soon()
        return future

    def read(self, keys: tuple[str, ...]) -> "asyncio.Future[Values]":
        """Read strings in this tick's MGET; the future gets one value for each key, None for what is not there."""
        future: asyncio.Future[Values] = asyncio.Future()
        self._reads.append((keys, future))
        if not self._due:
            self._soon()
        elif len(self._reads) == _MANY:
            self._start_early()
        return future

    def _soon(self) -> None:
        """Flush when this tick is over, or when the link is open.

        That a server has closed an idle connection shows when the event loop looks at its sockets, and a loop that was
        held up, or a process that was suspended, has not looked yet: after a pause it looks once before it sends.
        """
        self._due = True
        link = self._link
        if link is None or link.lost:
            self._connect()
        elif link.writable:
            call_soon = link.loop.call_soon
            if _has_paused(link):
                call_soon(call_soon, self._flush)
            else:
                call_soon(self._flush)

    def _start_early(self) -> None:
        """Send what there is before the tick is over, if the server has nothing to do."""
        link = self._link
        if link is not None and link.writable and not link.waiting and not _has_paused(link):
            self._flush()

    def _connect(self) -> None:
        """Make a link, which flushes when it opens."""
        if self._closed:
            # Not at once: who reads without pause would never let the loop go on to the end of the closing.
            asyncio.get_running_loop().call_soon(self._give_up, ClosedError())
        else:
            self._link = Link(self._connection(), self._timeout, self._flush, self._lost)

    def _flush(self) -> None:
        """Send all there is: exchanges in the order in which they were asked for, then the reads."""
        link = self._link
        if link is None or link.lost:
            if self._due:
                self._connect()
            return
        if not link.writable:
            return
        self._due = False
        waiters, commands, reads = self._exchanges, self._commands, self._reads
        if reads:
            self._reads = []
            batch = self._reading(reads, self._explain)
            try:
                command, replies = batch.commands()
            except ValueError:  # a lone surrogate in somebody's key
                batch = self._reading(_packable(reads), self._explain)
                command, replies = batch.commands() if batch.reads else (b"", 0)
            if command:
                waiters += [batch] * replies
                commands.append(command)
        if waiters:
            self._exchanges, self._commands = [], []
            link.send(b"".join(commands), waiters)

    def _lost(self, failure: Exception, again: bool) -> None:
        """Send on another link what the lost one has not had, if that may do better; see `Link`."""
        if not again:
            self._give_up(failure)
        elif self._due:
            asyncio.get_running_loop().call_soon(self._flush)

    def _give_up(self, failure: Exception) -> None:
        waiters, reads = self._exchanges, self._reads
        self._exchanges, self._commands, self._reads, self._due = [], [], [], False
        for waiter in waiters:
            waiter.fail(failure)
        if reads:
            _Reads(reads, self._explain).fail(failure)

    async def aclose(self) -> None:
        """Close the connection for ever; what is under way fails, and what comes later, with ClosedError."""
        self._closed = True
        if self._link is not None:
            link, self._link = self._link, None
            link.task.cancel()
            await asyncio.wait({link.task})
            self._give_up(ClosedError())
