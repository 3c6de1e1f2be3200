"""The only module that sends cache commands: `operations` to Redis, from a coroutine or from a thread.

async or threads: an asynchronous client for each event loop, since its connections belong to that loop; one blocking
client for all threads, since its pool hands each thread a connection of its own. Neither ever calls the other.
"""

from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from .batching import Multiplexer
from .errors import ConfigurationError, UnavailableError
from .operations import Command, Operation, Script
from .settings import Settings, redact

T = TypeVar("T")
_Client = TypeVar("_Client", redis.Redis, redis.asyncio.Redis)

#: Seconds that a blocking read may ask the server to wait.
LONGEST_BLOCK = 1.0

_ESCAPES = "special characters in user and password are written as / %2F, ? %3F, # %23, @ %40"

#: What redis-py would take from the URL, against what is built on it here.
_REFUSED_OPTIONS = {
    "decode_responses": "tidings reads bytes; leave it out",
    "socket_timeout": "set operation_timeout (TIDINGS_OPERATION_TIMEOUT) in its place",
}

_Batch = list[Sequence[Any]]
_Replies = list[Any]


class AsyncStore(Protocol):
    """Carries out operations for one event loop. Raises UnavailableError when the server does not do its part."""

    async def run(self, operation: Operation[T]) -> T:
        """Carry out one operation. Cancelling it leaves open whether it happened."""
        ...

    async def aclose(self) -> None:
        """Release what is held."""
        ...


class SyncStore(Protocol):
    """The same for threads."""

    def run(self, operation: Operation[T]) -> T:
        """Carry out one operation, blocking."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class RedisStore:
    """Operations for one event loop, multiplexed on one connection of redis-py's.

    `client` is for everything that is not an operation, `blocking` for reads that block, `where` names the server in
    errors, and each exchange has `timeout` seconds. These deadlines are ours and not redis-py's `socket_timeout`, which
    goes through `asyncio.wait_for`: before Python 3.12 that swallows a cancellation that comes as a command ends, and a
    service's own timeout around a read would be lost.
    """

    def __init__(
        self, client: redis.asyncio.Redis, blocking: redis.asyncio.Redis, where: str, timeout: float = 2.0
    ) -> None:
        self.client = client
        self.blocking = blocking
        self._where = where
        #: seconds that one exchange has
        self.timeout = timeout
        self._known_scripts: set[str] = set()
        self._multiplexer = Multiplexer(client.connection_pool.make_connection, timeout)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Make a store that connects at its first operation. Raises ConfigurationError for a URL that is none."""
        where, client, blocking = _clients(settings, redis.asyncio.Redis.from_url, socket_timeout=None)
        return cls(client, blocking, where, settings.operation_timeout)

    async def run(self, operation: Operation[T]) -> T:
        """See AsyncStore."""
        with _translated(self._where):
            exchange = _exchange(operation.commands, self._known_scripts)
            batch = next(exchange)
            while True:
                replies = await self._multiplexer.exchange(batch)
                try:
                    batch = exchange.send(replies)
                except StopIteration as done:
                    return operation.parse(done.value)

    async def aclose(self) -> None:
        """Close the connections; not to be used afterwards."""
        await self._multiplexer.aclose()
        await self.client.aclose()
        await self.blocking.aclose()


class SyncRedisStore:
    """Operations over redis-py's blocking client; safe to share between threads."""

    def __init__(self, client: redis.Redis, blocking: redis.Redis, where: str) -> None:
        self.client = client
        self.blocking = blocking
        self._where = where
        self._known_scripts: set[str] = set()

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """See `RedisStore.connect`."""
        where, client, blocking = _clients(settings, redis.Redis.from_url, socket_timeout=settings.operation_timeout)
        return cls(client, blocking, where)

    def run(self, operation: Operation[T]) -> T:
        """See SyncStore."""
        with _translated(self._where):
            exchange = _exchange(operation.commands, self._known_scripts)
            batch = next(exchange)
            while True:
                try:
                    batch = exchange.send(self._send(batch))
                except StopIteration as done:
                    return operation.parse(done.value)

    def _send(self, batch: _Batch) -> _Replies:
        if len(batch) == 1:
            try:
                return [self.client.execute_command(*batch[0])]
            except NoScriptError as error:
                return [error]
        pipe = self.client.pipeline(transaction=False)
        for command in batch:
            pipe.execute_command(*command)
        return list(pipe.execute(raise_on_error=False))

    def close(self) -> None:
        """Close the connections; not to be used afterwards."""
        self.client.close()
        self.blocking.close()


def _clients(
    settings: Settings, from_url: Callable[..., _Client], *, socket_timeout: float | None
) -> tuple[str, _Client, _Client]:
    """Return how errors name the server, a client, and a client for reads that block up to `LONGEST_BLOCK`.

    A client for blocking reads needs a socket timeout above BLOCK: one below it would raise while all is well.

    Raises ConfigurationError for a URL that cannot be meant.
    """
    url = settings.url.get_secret_value() if settings.url is not None else ""
    _check(url)
    timeout = settings.operation_timeout
    patient = None if socket_timeout is None else socket_timeout + LONGEST_BLOCK
    try:
        client = from_url(url, socket_timeout=socket_timeout, socket_connect_timeout=timeout)
        blocking = from_url(url, socket_timeout=patient, socket_connect_timeout=timeout)
        # Not connected, only made: otherwise the first command would find out about options that redis-py lacks.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (TypeError, ValueError, RedisError):
        raise ConfigurationError(
            f"the URL {redact(url)} is not valid: redis-py does not take one of the options behind its '?'"
        ) from None
    return redact(url), client, blocking


def _check(url: str) -> None:
    """Raise ConfigurationError for a URL that cannot be meant, without repeating what may be a password."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigurationError("the URL does not start with redis://, rediss://, unix:// or memory://")
    try:
        parts = urlsplit(url)
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ConfigurationError(f"the URL has no valid host and port; {_ESCAPES}") from None
    if "@" in parts.path + parts.query + parts.fragment:
        raise ConfigurationError(f"the URL has an @ behind its host; {_ESCAPES}")
    for option in parse_qs(parts.query).keys() & _REFUSED_OPTIONS.keys():
        raise ConfigurationError(f"the URL {redact(url)} has the option {option}: {_REFUSED_OPTIONS[option]}")


def _exchange(commands: Sequence[Command], known: set[str]) -> Generator[_Batch, _Replies, _Replies]:
    """Yield what to send, take the replies, return one reply for each command or raise the first error among them.

    `known` are the digests of scripts that the server has had from this store: the others go in full, so that what is
    sent next never overtakes them. A server that has been restarted says that it knows nothing, and gets them again.
    """
    replies = yield [_wire(command, known) for command in commands]
    unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        again = yield [_wire(commands[index], ()) for index in unknown]
        for index, reply in zip(unknown, again, strict=True):
            replies[index] = reply
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    known.update(head.digest for head, *_ in commands if isinstance(head, Script))
    return replies


def _wire(command: Command, known: Container[str]) -> Sequence[Any]:
    head, *rest = command
    if not isinstance(head, Script):
        return command
    return ("EVALSHA", head.digest, *rest) if head.digest in known else ("EVAL", head.text, *rest)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, RedisError, OSError) as error:
        raise UnavailableError(f"{where}: {type(error).__name__}: {error}") from error
