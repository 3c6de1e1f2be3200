"""redis-py's blocking connections for all threads of a process: taken, used by one thread, given back.

redis-py's pool does the same, and its bookkeeping costs as much as the command.
"""

import os
import select
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from redis.connection import Connection, ConnectionPool
from redis.exceptions import ReadOnlyError, RedisError, ResponseError


class _Idle(NamedTuple):
    connection: Connection
    #: says, without waiting, whether something can be read: from an idle connection that is its end, as a rule
    speaks: Callable[[], Any]


class Connections:
    """Exchanges with one server from any thread, on connections made as the pool would make them.

    A connection that failed is closed, since replies that nobody will read may still be on their way to it.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        #: Appended to and popped from, which threads may do at once, and replaced as a whole.
        self._idle: list[_Idle] = []
        self._process = os.getpid()

    def exchange(self, data: bytes, expected: int) -> list[Any]:
        """Send commands and return one reply for each, errors among them. Raises redis-py's errors and OSError."""
        if self._process != os.getpid():
            self._leave_to_parent()
        idle = self._idle
        taken = self._take(idle)
        connection = taken.connection
        replies: list[Any] = []
        keep = True
        try:
            connection.send_packed_command((data,), check_health=False)
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
            idle.append(taken)
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
