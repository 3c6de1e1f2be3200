"""One connection that many share: what was sent waits in line, and each reply goes to the first in it.

redis-py makes the connection, with its TLS, authentication, protocol and database. Then a protocol of ours takes the
transport over and feeds hiredis: redis-py's own way to read is a stream, which costs two task switches a reply. Where
hiredis is missing, or anything in the connection looks other than expected, redis-py goes on reading.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError, ResponseError

try:
    import hiredis as _hiredis
except ImportError:  # optional, as it is for redis-py
    hiredis: Any = None
else:
    hiredis = _hiredis

_PUSH = getattr(hiredis, "PushNotification", None)
_NOTHING = object()

#: Seconds by which a timer may be late before that says something about this process and not about the server.
_HELD_UP = 0.1


def _pack(command: Sequence[str | bytes | int]) -> bytes:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


#: Makes the bytes of one command.
pack: Callable[[Any], bytes] = _pack if hiredis is None else hiredis.pack_command


class ClosedError(RedisConnectionError):
    """The connection was closed from here: that says nothing of the server."""

    def __init__(self) -> None:
        super().__init__("the connection was closed")


class Waiter(Protocol):
    """Who waits for one reply or several: stands in line once for each."""

    #: loop time after which no answer is expected any more; the link sets it
    overdue_at: float

    def take(self, reply: Any) -> None:
        """Take the next reply; an error reply is a reply."""
        ...

    def fail(self, failure: Exception) -> None:
        """Learn that no reply comes any more."""
        ...


class Link(asyncio.Protocol):
    """One connection's life: connecting, open, lost. Never used again once lost.

    `on_writable` is called when it opens, and when it takes data again after it could not; `on_lost` once, with what
    ended it and whether another connection may do better: not when none could be made, when the server does not answer,
    or when this one was closed from here. Connecting has `timeout` seconds, and then each answer has.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        timeout: float,
        on_writable: Callable[[], None],
        on_lost: Callable[[Exception, bool], None],
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._on_writable = on_writable
        self._on_lost = on_lost
        self.loop = asyncio.get_running_loop()
        self._write: Callable[[bytes], None] | None = None
        self._parser: Any = None
        self._watch: asyncio.TimerHandle | None = None
        #: those who wait, in the order in which they will be answered
        self.waiting: deque[Waiter] = deque()
        self.writable = False
        self.lost = False
        #: loop time of the last write
        self.used_at = 0.0
        self.task = asyncio.create_task(self._serve())

    def send(self, data: bytes, waiters: Sequence[Waiter]) -> None:
        """Write commands, and put into the line who waits for their replies. Only while `writable`."""
        assert self._write is not None  # noqa: S101 that is what writable means
        self.used_at = now = self.loop.time()
        overdue_at = now + self._timeout
        for waiter in waiters:
            waiter.overdue_at = overdue_at
        self.waiting.extend(waiters)
        if self._watch is None:
            self._watch = self.loop.call_at(overdue_at, self._check_overdue)
        self._write(data)

    async def _serve(self) -> None:
        """Connect and stay until the connection ends or this is cancelled: a loop that ends closes it that way.

        It reads when nothing is awaited too, so a connection that the server closes is noticed before it is used.
        """
        failure: Exception = ClosedError()
        cancelled, gone = True, False
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._connection.connect()
            except TimeoutError:
                raise TimeoutError(f"no connection in {self._timeout:g} s") from None
            taken_over = self._take_over()
            self.writable = True
            self._on_writable()
            if taken_over:
                await self.loop.create_future()  # data_received does the rest
            while True:
                try:
                    reply = await self._connection.read_response()
                except ResponseError as error:
                    reply = error
                self._receive(reply)
        except (RedisError, OSError, EOFError) as error:
            failure, cancelled = error, False
        except GeneratorExit:  # the loop was closed before: nobody on it waits, and nothing can be awaited
            gone = self.lost = True
            raise
        finally:
            if not gone:
                self._lose(failure, again=self._write is not None and not cancelled)
                await self._connection.disconnect(nowait=True)

    def _take_over(self) -> bool:
        """Make this the protocol of redis-py's transport; False when that has to go on reading itself.

        Nothing may be unread, or it would be lost: neither bytes in the stream, nor half a reply in redis-py's parser.
        Between the look and the change the event loop does not run, so nothing can arrive.
        """
        writer, stream = self._connection._writer, self._connection._reader  # noqa: SLF001 no public way in
        parser = self._connection._parser  # noqa: SLF001
        transport = getattr(writer, "transport", None)
        if hiredis is None or transport is None or not isinstance(stream, asyncio.StreamReader):
            self._write = lambda data: writer.writelines((data,))  # type: ignore[union-attr]
            return False
        self._write = transport.write
        theirs, unread = getattr(parser, "_reader", None), getattr(stream, "_buffer", None)
        if not isinstance(theirs, hiredis.Reader) or theirs.has_data() or unread != b"" or stream.at_eof():
            return False
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse, replyError=parser.parse_error, notEnoughData=_NOTHING
        )
        transport.set_protocol(self)
        return True

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Give each reply that is complete to whoever is first in line."""
        if self.lost:
            return
        parser = self._parser
        parser.feed(data)
        try:
            while (reply := parser.gets()) is not _NOTHING:
                self._receive(reply)
        except (RedisError, ValueError) as error:
            self._end(error)

    def pause_writing(self) -> None:
        """Let the next ticks' commands wait, and their reads become fewer, while the server takes nothing."""
        self.writable = False

    def resume_writing(self) -> None:
        """Send what has waited."""
        if not self.lost:
            self.writable = True
            self._on_writable()

    def eof_received(self) -> None:
        """Note at once that the server has closed the connection, before anybody else uses it."""
        self._end(RedisConnectionError("the server closed the connection"))

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the connection is gone."""
        self._end(error or RedisConnectionError("the connection was lost"))

    def _receive(self, reply: Any) -> None:
        if type(reply) is _PUSH:
            return
        if not self.waiting:
            raise RedisConnectionError("a reply that nobody asked for")
        self.waiting[0].take(reply)
        self.waiting.popleft()
        if isinstance(reply, ReadOnlyError):
            # Those in line behind it fail with an answer, too: nothing says that the server is away.
            raise ReadOnlyError("the server is no primary any more")

    def _check_overdue(self) -> None:
        now = self.loop.time()
        if not self.waiting:
            self._watch = None
        elif self._watch is not None and now - self._watch.when() > _HELD_UP:
            # The event loop was held up, or the process suspended: the answer may be here, and not looked at yet.
            self._watch = self.loop.call_at(now, self._check_overdue)
        elif self.waiting[0].overdue_at <= now:
            self._end(TimeoutError(f"no answer in {self._timeout:g} s"), again=False)
        else:
            self._watch = self.loop.call_at(self.waiting[0].overdue_at, self._check_overdue)

    def _end(self, failure: Exception, *, again: bool = True) -> None:
        if not self.lost:
            self._lose(failure, again=again)
            self.task.cancel()

    def _lose(self, failure: Exception, *, again: bool) -> None:
        if self.lost:
            return
        self.lost = True
        self.writable = False
        if self._watch is not None:
            self._watch.cancel()
        while self.waiting:
            self.waiting.popleft().fail(failure)
        self._on_lost(failure, again)
