"""redis-py's blocking connections for all threads of a process: taken, used by one thread, given back.

redis-py's pool does the same, and its bookkeeping costs as much as the command.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.connection import Connection, ConnectionPool
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

#: Seconds after which a connection that nobody has needed is closed, when another is given back: one at a time, so that
#: what a burst of threads has opened goes again.
IDLE_SECONDS = 60.0


@dataclass(slots=True)
class _Idle:
    connection: Connection
    #: says, without waiting, whether something can be read: from an idle connection that is its end, as a rule
    speaks: Callable[[], Any]
    #: when it was given back
    since: float = 0.0


#: A connection on which replies are awaited, and the list of idle ones that it was taken from.
Sent = tuple[_Idle, list[_Idle]]


class Connections:
    """Exchanges with one server from any thread, on connections made as the pool would make them.

    A connection that failed is closed, since replies that nobody will read may still be on their way to it.
    """

    def __init__(self, pool: ConnectionPool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        #: Appended to and popped from, which threads may do at once, and replaced as a whole.
        self._idle: list[_Idle] = []
        self._process = os.getpid()

    def exchange(self, data: bytes, expected: int) -> list[Any]:
        """Send commands and return one reply for each, errors among them. Raises redis-py's errors and OSError."""
        return self.receive(self.send(data), expected)

    def send(self, data: bytes) -> Sent:
        """Send commands, whose replies are to be taken by `receive`: what is sent to several servers goes together."""
        if self._process != os.getpid():
            self._leave_to_parent()
        idle = self._idle
        taken = self._take(idle)
        try:
            taken.connection.send_packed_command((data,), check_health=False)
        except BaseException:
            taken.connection.disconnect()
            raise
        return taken, idle

    def receive(self, sent: Sent, expected: int) -> list[Any]:
        """Return a reply for each command that was sent; see `exchange`."""
        taken, idle = sent
        connection = taken.connection
        replies: list[Any] = []
        keep = True
        try:
            for _ in range(expected):
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    keep = keep and not isinstance(error, ReadOnlyError)
                    replies.append(error)
        except BaseException:
            connection.disconnect()
            raise
        if keep and idle is self._idle:
            self._give_back(taken, idle)
        else:  # the server is no primary any more, and whoever connects next asks who is; or this was closed meanwhile
            connection.disconnect()
        return replies

    def _take(self, idle: list[_Idle]) -> _Idle:
        """Return an idle connection, or a new one.

        One that the server has closed is noticed here, before anything is sent on it. The other way would be to send,
        fail, and send again on a new one; but a command that was never carried out looks the same as one whose reply
        was lost, and an XADD that is sent twice adds two events.
        """
        while idle:
            try:
                taken = idle.pop()
            except IndexError:  # another thread was faster
                break
            try:
                if not taken.speaks():
                    return taken
            except (RedisError, OSError):
                pass  # its end, too
            taken.connection.disconnect()
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()
        return _Idle(connection, _listener(connection))

    def _give_back(self, taken: _Idle, idle: list[_Idle]) -> None:
        taken.since = now = self._clock()
        idle.append(taken)
        try:  # They are taken from the end, so the first is the one that was not needed for longest.
            if now - idle[0].since > IDLE_SECONDS:
                idle.pop(0).connection.disconnect()
        except IndexError:  # other threads have taken them
            pass

    def _leave_to_parent(self) -> None:
        """After a fork, use none of the parent's connections: replies to one process would reach the other.

        Nor shut them down: redis-py only closes this process's handle of what another process connected.
        """
        self._idle = []
        self._process = os.getpid()

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not; a later exchange connects anew."""
        idle, self._idle = self._idle, []
        for taken in idle:
            taken.connection.disconnect()


def _listener(connection: Connection) -> Callable[[], Any]:
    """Return what `_Idle.speaks` is: asking the operating system costs a fifth of redis-py's `can_read`."""
    connected = getattr(connection, "_sock", None)
    if not isinstance(connected, socket.socket) or not hasattr(select, "poll"):
        return connection.can_read
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return partial(poll.poll, 0)
