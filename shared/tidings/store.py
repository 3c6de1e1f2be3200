"""Carries out every operation of the cache on Redis, from a coroutine or from a thread.

Only what follows a stream goes past it, on a connection of its own that blocks there: `tail`, `wakes`, `publisher`.

async or threads: an asynchronous client for each event loop, since its connections belong to that loop; connections for
all threads, each used by one thread at a time. Neither ever calls the other.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Protocol, Self, TypeVar, cast

import redis
import redis.asyncio
from redis.exceptions import RedisError

from .batching import Multiplexer, Values
from .connections import Connections
from .durable import append, is_durable
from .exchanges import exchange_of, in_transaction, replies_of, unavailable
from .link import pack
from .loop_end import LoopEnd
from .operations import Command, Operation
from .servers import LONGEST_BLOCK, async_servers, sync_servers
from .settings import Settings

__all__ = [
    "LONGEST_BLOCK",
    "AsyncStore",
    "RedisStore",
    "SyncRedisStore",
    "SyncStore",
    "Values",
]

T = TypeVar("T")

_FAILURES = (TimeoutError, RedisError, OSError)


class AsyncStore(Protocol):
    """Carries out operations for one event loop. Raises UnavailableError when the server does not do its part."""

    async def run(self, operation: Operation[T], *, bulk: bool = False) -> T:
        """Carry out one operation. Cancelling it leaves open whether it happened."""
        ...

    def read(self, keys: tuple[str, ...], *, bulk: bool = False) -> Awaitable[Values]:
        """Read strings, together: one value for each key, None for what is not there or no string."""
        ...

    async def aclose(self) -> None:
        """Release what is held."""
        ...


class SyncStore(Protocol):
    """The same for threads."""

    def run(self, operation: Operation[T]) -> T:
        """Carry out one operation, blocking."""
        ...

    def read(self, keys: tuple[str, ...]) -> Values:
        """Read strings, blocking."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class RedisStore:
    """Operations for one event loop, multiplexed on one connection of redis-py's, and on a second for big values.

    What is sent with `bulk` goes over the second, made when it is first used, so that small reads do not wait for big
    replies to arrive. Commands reach the server in the order in which they were sent only within one of the two: a
    value is to be read the way it was filled.

    `client` is for everything that is not an operation, `blocking` for reads that block, `where` names the server in
    errors, and each exchange has `timeout` seconds. These deadlines are ours and not redis-py's `socket_timeout`, which
    goes through `asyncio.wait_for`: before Python 3.12 that swallows a cancellation that comes as a command ends, and a
    service's own timeout around a read would be lost. `others` are closed with the store.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        blocking: redis.asyncio.Redis,
        where: str,
        timeout: float = 2.0,
        *,
        others: Iterable[redis.asyncio.Redis] = (),
    ) -> None:
        self.client = client
        self.blocking = blocking
        self._where = where
        self._others = tuple(others)
        #: seconds that one exchange has
        self.timeout = timeout
        self._known_scripts: set[str] = set()
        self._small = self._multiplexer()
        self._bulk: Multiplexer | None = None
        self._loop_end = LoopEnd()

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Make a store that connects at its first operation; see `servers` for the URLs.

        Raises ConfigurationError for a URL that is none.
        """
        servers = async_servers(settings)
        timeout = settings.operation_timeout
        return cls(servers.client, servers.blocking, servers.where, timeout, others=servers.sentinels)

    def read(self, keys: tuple[str, ...], *, bulk: bool = False) -> "asyncio.Future[Values]":
        """See AsyncStore. Reads of one event-loop tick are one MGET or two; cancelling one caller leaves the others."""
        return (self._for_bulk() if bulk else self._small).read(keys)

    async def run(self, operation: Operation[T], *, bulk: bool = False) -> T:
        """See AsyncStore."""
        if is_durable(operation):
            return cast("T", await append(self, operation))
        multiplexer = self._for_bulk() if bulk else self._small
        try:
            exchange = exchange_of(operation.commands, self._known_scripts)
            batch = next(exchange)
            while True:
                replies = await multiplexer.exchange(batch)
                try:
                    batch = exchange.send(replies)
                except StopIteration as done:
                    return operation.parse(done.value)
        except _FAILURES as error:
            raise unavailable(self._where, error) from error

    async def transact(self, key: str, commands: Sequence[Command], *, bulk: bool = False) -> list[Any]:  # noqa: ARG002
        """Carry out commands as one transaction on the server that has this key; return their replies.

        On a cluster all their keys must be in its slot. Raises UnavailableError, for the first error reply as well:
        then the others may have been carried out.
        """
        multiplexer = self._for_bulk() if bulk else self._small
        return replies_of(await multiplexer.exchange(in_transaction(commands)), self._where)

    def _for_bulk(self) -> Multiplexer:
        if self._bulk is None:
            self._bulk = self._multiplexer()
        return self._bulk

    def _multiplexer(self, timeout: float | None = None) -> Multiplexer:
        pool, where = self.client.connection_pool, self._where
        return Multiplexer(
            # Not the pool's make_connection: some versions count what it makes against max_connections for ever.
            lambda: pool.connection_class(**pool.connection_kwargs),
            timeout or self.timeout,
            lambda failure: unavailable(where, failure),
        )

    async def client_for(self, key: str) -> redis.asyncio.Redis:  # noqa: ARG002 one server has every key
        """Return a client of the server that has this key, for commands that are no operations; closed with the store.

        Ask anew for each use, and after an error: a key may move to another server. Raises UnavailableError.
        """
        return self.client

    async def apart(self, key: str, timeout: float) -> Multiplexer:  # noqa: ARG002, ASYNC109 of each answer
        """Return a connection of the caller's own to the server that has this key, for the caller to close.

        For what would keep others waiting. Each answer has `timeout` seconds. Raises UnavailableError.
        """
        return self._multiplexer(timeout)

    async def primaries(self) -> list[redis.asyncio.Redis]:
        """Return a client of each server that takes writes."""
        return [self.client]

    async def blocking_for(self, key: str) -> redis.asyncio.Redis:  # noqa: ARG002
        """Return the client for reads that block up to LONGEST_BLOCK; see `client_for`."""
        return self.blocking

    async def aclose(self) -> None:
        """Close the connections; every operation fails afterwards."""
        for multiplexer in (self._small, self._for_bulk()):  # this too, so that nobody makes it later
            await multiplexer.aclose()
        await self._loop_end.come()
        await self._close_clients()

    def close_with_loop(self) -> None:
        """From now on close the clients when the event loop ends; for whoever uses them."""
        self._loop_end.watch(self._close_clients)

    async def _close_clients(self) -> None:
        for client in (self.client, self.blocking, *self._others):
            await client.aclose()


class SyncRedisStore:
    """Operations on redis-py's blocking connections; safe to share between threads, and after a fork.

    `client`, `blocking` and `others` are as with `RedisStore`.
    """

    def __init__(
        self, client: redis.Redis, blocking: redis.Redis, where: str, *, others: Iterable[redis.Redis] = ()
    ) -> None:
        self.client = client
        self.blocking = blocking
        self._where = where
        self._others = tuple(others)
        self._known_scripts: set[str] = set()
        self._connections = Connections(client.connection_pool)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """See `RedisStore.connect`."""
        servers = sync_servers(settings)
        return cls(servers.client, servers.blocking, servers.where, others=servers.sentinels)

    def read(self, keys: tuple[str, ...]) -> Values:
        """See SyncStore."""
        try:
            reply = self._connections.exchange(pack(("MGET", *keys)), 1)[0]
            if isinstance(reply, Exception):
                raise reply
        except _FAILURES as error:
            raise unavailable(self._where, error) from error
        values: Values = reply
        return values

    def run(self, operation: Operation[T]) -> T:
        """See SyncStore."""
        try:
            exchange = exchange_of(operation.commands, self._known_scripts)
            batch = next(exchange)
            while True:
                replies = self._connections.exchange(b"".join(map(pack, batch)), len(batch))
                try:
                    batch = exchange.send(replies)
                except StopIteration as done:
                    return operation.parse(done.value)
        except _FAILURES as error:
            raise unavailable(self._where, error) from error

    def client_for(self, key: str) -> redis.Redis:  # noqa: ARG002 one server has every key
        """See `RedisStore.client_for`."""
        return self.client

    def blocking_for(self, key: str) -> redis.Redis:  # noqa: ARG002
        """See `RedisStore.blocking_for`."""
        return self.blocking

    def close(self) -> None:
        """Close the connections; a later command connects anew."""
        self._connections.close()
        for client in (self.client, self.blocking, *self._others):
            client.close()
