"""`Cache`: the object that owns connections and lifetimes; everything a service does starts here."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from pydantic import SecretStr, ValidationError

from .cached import Decorator, Seconds, Tags, decorate, milliseconds, return_annotation
from .codec import UNTYPED, Codec
from .errors import ConfigurationError, InvalidationError, PublishError, UnavailableError
from .events import Event, to_fields
from .invalidation import direct, invalidation
from .keys import Keyspace, check_namespace
from .memory import Memory, MemoryStore, SyncMemoryStore
from .operations import Append, Ping
from .publisher import Receipt
from .reader import Call, Reader
from .settings import GivenSettings, Settings, describe, redact
from .store import RedisStore, SyncRedisStore
from .sync import SyncCache
from .telemetry import Telemetry

T = TypeVar("T")

_untyped: Codec[Any] = Codec(UNTYPED, "cache.set")


class Cache:
    """A cache on one Redis server, or in this process for ``memory://``.

    Reads fail open: when Redis is away they load, and say so once. Invalidating and publishing raise. May be used from
    several event loops and threads; `aclose` releases what the current event loop holds.

    `url` is redis://, rediss://, unix:// or memory://; `prefix` starts every key; `version` is part of entry keys only;
    `default_ttl` and `token_ttl` are seconds that entries and unused tokens live; `vacancy_ttl` is how many seconds a
    load may take and still be stored; a value of more than `max_value_bytes` is served but not cached; Redis has
    `operation_timeout` seconds for one operation; `group` is the workers' consumer group, and `source` the CloudEvents
    source of what is published here. Raises ConfigurationError, which lists every problem.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        version: str = "",
        default_ttl: float = 3600,
        token_ttl: float = 7 * 86_400,
        vacancy_ttl: float = 600,
        max_value_bytes: int = 4 * 1024 * 1024,
        operation_timeout: float = 2.0,
        group: str = "tidings",
        source: str = "/tidings",
    ) -> None:
        try:
            settings = GivenSettings(
                url=SecretStr(url),
                prefix=prefix,
                version=version,
                default_ttl=default_ttl,
                token_ttl=token_ttl,
                vacancy_ttl=vacancy_ttl,
                max_value_bytes=max_value_bytes,
                operation_timeout=operation_timeout,
                group=group,
                source=source,
            )
        except ValidationError as error:
            raise ConfigurationError(describe(error, "")) from None
        self._set_up(settings)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Make a cache as `Settings` describe it. Without a URL it caches in this process."""
        cache = cls.__new__(cls)
        cache._set_up(settings)  # noqa: SLF001 its own
        return cache

    def _set_up(self, settings: Settings) -> None:
        url = settings.url.get_secret_value() if settings.url is not None else "memory://"
        self.settings = settings
        self.keys = Keyspace(settings.prefix, settings.version)
        self.telemetry = Telemetry(server=redact(url))
        self._memory = Memory() if url.startswith("memory://") else None
        store = SyncRedisStore.connect(settings) if self._memory is None else SyncMemoryStore(self._memory)
        #: The same, blocking, for threads and scripts without an event loop.
        self.sync = SyncCache(store, settings, self.keys)
        self._readers: WeakKeyDictionary[asyncio.AbstractEventLoop, Reader] = WeakKeyDictionary()

    # The read side

    def cached(
        self,
        *,
        namespace: str = "default",
        ttl: Seconds | None = None,
        key: str | None = None,
        tags: Tags = (),
    ) -> Decorator:
        """Keep an ``async def`` function's results in this cache; see `tidings.cached`."""
        return decorate(lambda: self, namespace, ttl, key, tags)

    async def get(self, key: str, *, namespace: str = "default", default: Any = None) -> Any:
        """Return what `set` or `get_or_set` stored under `key`, or `default`. Fails open: Redis away is a miss."""
        return await self.reader().peek(Call(key, namespace, key, (), None), _untyped, default)

    async def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> None:
        """Store JSON types under `key`; a load in flight for the key will not overwrite them.

        Valid until an invalidation of the namespace or of a tag that comes after this call began. Raises EncodeError
        for a value that would not come back as it was, UnavailableError when Redis does not take it.
        """
        await self.reader().put(_call(key, namespace, ttl, tags), value, _untyped)

    async def get_or_set(
        self,
        key: str,
        func: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> T:
        """Return the value under `key`, or await `func()` and keep what it returns, with the promises of `cached`.

        The type is `func`'s return annotation; a function without one must return JSON types.
        """
        return await self.reader().read(_call(key, namespace, ttl, tags), func, _codec_of(func))

    async def delete(self, key: str, *, namespace: str = "default") -> bool:
        """Invalidate the entry under `key`; return whether there was a value. Raises InvalidationError."""
        return bool(await self._invalidate({}, [self.keys.entry(check_namespace(namespace), key)]))

    # Invalidation

    async def invalidate(self, *, namespaces: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
        """Invalidate every entry of these namespaces and tags, at a cost that does not depend on how many there are.

        When it returns, no value loaded before the call is served any more. Raises InvalidationError when Redis does
        not acknowledge it; repeating it is always safe.
        """
        await self.invalidate_tokens(direct("invalidate", namespaces, tags))

    async def invalidate_namespace(self, name: str) -> None:
        """Invalidate every entry of one namespace; see `invalidate`."""
        await self.invalidate_tokens(direct("invalidate_namespace", [name]))

    async def invalidate_tags(self, *tags: str) -> None:
        """Invalidate every entry that has one of these tags; see `invalidate`."""
        await self.invalidate_tokens(direct("invalidate_tags", tags=tags))

    async def invalidate_all(self) -> None:
        """Invalidate every entry of this prefix, and nothing that is not an entry; see `invalidate`."""
        await self.invalidate_tokens(direct("invalidate_all", everything=True))

    async def invalidate_call(self, call: Call) -> None:
        """Invalidate one cached function's entry; a load of it in flight will not be stored."""
        await self._invalidate({}, [self.key_of(call)])

    async def invalidate_tokens(self, causes: Mapping[str, str], *, events: str = "") -> None:
        """Invalidate by token names (`keys.tag_token` and its like), each with its cause, in one operation.

        This is what the worker calls with what a whole batch of events makes wrong; `events` are the ids of their
        stream entries, whose receipts are told in the same operation.
        """
        if causes or events:
            await self._invalidate(causes, [], events)

    async def _invalidate(self, causes: Mapping[str, str], entries: Iterable[str], events: str = "") -> int:
        try:
            return await self.reader().store.run(invalidation(self.keys, self.settings, causes, entries, events))
        except UnavailableError as error:
            raise InvalidationError(str(error)) from error

    # Events

    async def publish(self, event: Event, *, subject: str | None = None) -> Receipt:
        """Add an event to the stream; call it after the commit of what it reports.

        Raises EventError when its data do not fit its class (nothing is written), and PublishError when Redis does not
        acknowledge it: it may or may not be in the stream. Publishing it again is safe, since an event may be applied
        twice.
        """
        fields = to_fields(event, source=self.settings.source, subject=subject)
        store = self.reader().store
        try:
            stream_id = await store.run(Append(self.keys.events, fields))
        except UnavailableError as error:
            raise PublishError(str(error)) from error
        redis_store = store if isinstance(store, RedisStore) else None
        return Receipt(stream_id, fields["id"], self.keys, self.settings.group, redis_store)

    # Lifetime

    async def health(self) -> dict[str, Any]:
        """Say whether the server answers, in how many milliseconds, and why not. Never raises."""
        started = time.perf_counter()
        try:
            await self.reader().store.run(Ping())
        except UnavailableError as error:
            return {"ok": False, "server": self.telemetry.server, "error": str(error)}
        latency_ms = round((time.perf_counter() - started) * 1000, 3)
        return {"ok": True, "server": self.telemetry.server, "latency_ms": latency_ms}

    def stats(self) -> dict[str, dict[str, int]]:
        """Return this process's counters by namespace; see `telemetry.Counts`."""
        return self.telemetry.snapshot()

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        """Wait for the loads in flight on this event loop, then close its connections, and those of `sync`.

        After `drain_timeout` seconds (None: never) the loads that are left are cancelled. Other event loops keep
        theirs, each to be closed there. `sync` is one for all threads: a thread that is in the middle of a command
        loses its connection, so close when they are done; a later command connects anew.
        """
        loop = asyncio.get_running_loop()
        if (reader := self._readers.get(loop)) is not None:
            # Still there for what the loads in flight read: another reader would be one that nobody closes.
            await reader.flights.drain(drain_timeout)
            self._readers.pop(loop, None)
            await reader.store.aclose()
        self.sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def key_of(self, call: Call) -> str:
        """Return the key of a call's entry in Redis."""
        return self.keys.entry(call.namespace, call.name)

    def reader(self) -> Reader:
        """Return what reads and fills on the running event loop; made at its first use."""
        loop = asyncio.get_running_loop()
        reader = self._readers.get(loop)
        if reader is None:
            self._forget_closed_loops()
            store = RedisStore.connect(self.settings) if self._memory is None else MemoryStore(self._memory)
            reader = self._readers[loop] = Reader(store, self.settings, self.keys, self.telemetry)
        return reader

    def _forget_closed_loops(self) -> None:
        """Drop their readers, which refer to them, so that the weak keys alone would keep both for ever."""
        for reference in self._readers.keyrefs():  # a copy: other threads may add theirs meanwhile
            loop = reference()
            if loop is not None and loop.is_closed():
                self._readers.pop(loop, None)


def _codec_of(func: Callable[[], Awaitable[T]]) -> Codec[T]:
    annotation = return_annotation(func)
    try:
        return _codec_for(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return Codec(annotation, "get_or_set")


@lru_cache(maxsize=256)
def _codec_for(annotation: Any) -> Codec[Any]:
    return Codec(annotation, "get_or_set")


def _call(key: str, namespace: str, ttl: Seconds | None, tags: Iterable[str]) -> Call:
    if isinstance(tags, str):
        raise ConfigurationError(f"{key}: tags is the string {tags!r}; write tags=[{tags!r}]")
    return Call(key, namespace, key, tuple(tags), None if ttl is None else milliseconds(ttl, key))
