"""`Cache`: the object that owns connections and lifetimes; everything a service does starts here."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Self, TypeVar, Unpack
from weakref import WeakKeyDictionary, finalize

from .after import After, after, events_of
from .cached import CachedOptions, Decorator, decorator_of
from .events import Event
from .invalidation import direct
from .keys import EventStream
from .memory import MemoryStore
from .policy import Seconds, TtlWord
from .publisher import Receipt
from .reader import Reader
from .resource import Resource
from .settings import CacheOptions, GivenSettings, Settings
from .shared import Shared
from .sync import SyncCache
from .targets import Call, Target

T = TypeVar("T")


class Cache:
    """A cache on one Redis server, or in this process for ``memory://``.

    Reads fail open: when Redis is away they load, and say so once. Invalidating and publishing raise. May be used from
    several event loops and threads, and after a fork; `aclose` releases what the current event loop holds.

    `url` is redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or memory://; the options are those of
    `CacheOptions`, each explained in `Settings`. Raises ConfigurationError, which lists every problem.
    """

    def __init__(self, url: str, **options: Unpack[CacheOptions]) -> None:
        self._set_up(Shared(GivenSettings.of(url, options)))

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Make a cache as `Settings` describe it. Without a URL it caches in this process."""
        cache = cls.__new__(cls)
        cache._set_up(Shared(settings))  # noqa: SLF001 its own
        return cache

    def _set_up(self, shared: Shared) -> None:
        self.settings = shared.settings
        self._shared = shared
        self.keys = shared.keys
        self.telemetry = shared.telemetry
        self.tier = shared.tier
        self.hot = shared.hot
        self.scopes = shared.scopes
        #: The same, blocking, for threads and scripts without an event loop.
        self.sync = SyncCache(shared, self)
        self._readers: WeakKeyDictionary[asyncio.AbstractEventLoop, Reader] = WeakKeyDictionary()
        self._last: tuple[asyncio.AbstractEventLoop, Reader] | None = None
        if shared.tail is not None:  # the threads would keep it alive, and themselves, when this is dropped unclosed
            finalize(self, shared.leave).atexit = False

    # The read side

    def cached(self, _bare: None = None, /, **options: Unpack[CachedOptions]) -> Decorator:
        """Keep a function's results in this cache; see `tidings.cached`."""
        return decorator_of(lambda: self, _bare, options)

    def resource(self, name: str, *ids: str) -> Resource:
        """Return what decorates the reads and writes of a kind of thing; see `tidings.resource`."""
        return Resource(lambda: self, name, *ids)

    async def get(self, key: str, *, namespace: str = "default", default: Any = None) -> Any:
        """Return what `set` or `get_or_set` stored under `key`, or `default`. Fails open: Redis away is a miss."""
        reader = self.reader()
        return await reader.peek(reader.commands.named(key, namespace), default)

    async def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> None:
        """Store JSON types under `key`; a load in flight for the key will not overwrite them.

        Valid until the next invalidation of the namespace or of a tag; one that overlaps this call may count as before
        it or after it. Raises EncodeError for a value that would not come back as it was, UnavailableError when Redis
        does not take it, and at once while it is known to be away.
        """
        reader = self.reader()
        await reader.drive(reader.commands.set_many({key: value}, namespace, ttl, tags))

    async def get_or_set(
        self,
        key: str,
        func: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> T:
        """Return the value under `key`, or await `func()` and keep what it returns, with the promises of `cached`.

        The type is `func`'s return annotation; a function without one must return JSON types.
        """
        reader = self.reader()
        value: T = await reader.read(reader.commands.named(key, namespace, func, ttl, tags))
        return value

    async def delete(self, key: str, *, namespace: str = "default") -> bool:
        """Invalidate the entry under `key`; return whether there was a value. Raises InvalidationError."""
        reader = self.reader()
        return await reader.drive(reader.commands.delete(key, namespace))

    # Many at once

    async def get_many(self, keys: Iterable[str], *, namespace: str = "default", default: Any = None) -> dict[str, Any]:
        """Return the value of every key, `default` for those that are not there; see `get`. One exchange, or two."""
        reader = self.reader()
        return await reader.drive(reader.commands.get_many(keys, namespace, default))

    async def set_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> None:
        """Store every value under its key; see `set`. Not all or nothing: what raises may have stored some."""
        reader = self.reader()
        await reader.drive(reader.commands.set_many(values, namespace, ttl, tags))

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        func: Callable[[list[str]], Awaitable[Mapping[str, T]]],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] | Callable[[str], Iterable[str]] = (),
        namespace: str = "default",
    ) -> dict[str, T]:
        """Return the values under the keys; what is missing is loaded by one `await func(missing)` and kept.

        `func` returns a mapping of keys to values; its annotation, ``-> dict[str, User]``, says what the values are. A
        key that it leaves out is left out of the result, and not kept. `tags` are the same for all, or a callable of
        the key. The promises are those of `cached`; a key that another process is loading is waited for, not loaded.
        """
        reader = self.reader()
        return await reader.drive(reader.commands.get_or_set_many(keys, func, namespace=namespace, ttl=ttl, tags=tags))

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

    async def invalidate_pattern(self, glob: str, *, namespace: str | None = "default") -> None:
        """Invalidate the entries of a namespace (None: of each) whose rest of the key matches, as Redis's SCAN does.

        That is the key of `set` and `get_or_set`, and ``{function}:…`` of cached functions. It walks through all keys
        of the server, in steps; prefer tags. The promise is that of `invalidate`.
        """
        reader = self.reader()
        await reader.drive(reader.commands.invalidate_pattern(glob, namespace))

    async def invalidate_call(self, call: Call) -> None:
        """Invalidate one cached function's entry; a load of it in flight will not be stored."""
        reader = self.reader()
        await reader.drive(reader.commands.invalidate_call(call))

    async def invalidate_tokens(
        self, causes: Mapping[str, str], *, events: str = "", stream: EventStream | None = None
    ) -> None:
        """Invalidate by token names (`keys.tag_token` and its like), each with its cause, in one operation.

        This is what the worker calls with what a whole batch of events makes wrong; `events` are the ids of their
        entries in `stream` (None: the plain one), whose receipts are told in the same operation.
        """
        reader = self.reader()
        await reader.drive(reader.commands.invalidate(causes, events=events, stream=stream))

    # Events

    async def publish(self, event: Event, *, subject: str | None = None, replicas: int = 0) -> Receipt:
        """Add an event to the stream; call it after the commit of what it reports.

        Raises EventError when its data do not fit its class (nothing is written), and PublishError when Redis does not
        acknowledge it: it may or may not be in the stream. Publishing it again is safe, since an event may be applied
        twice.

        An event that the primary alone has is lost with it. With `replicas` it counts as published when so many of them
        have it too, which takes a round trip to them; PublishError after half the `operation_timeout` says that fewer
        have: then it is in the stream, and may be lost in a failover. Raises ConfigurationError for replicas of memory.
        """
        reader = self.reader()
        stream, stream_id, event_id = await reader.drive(reader.commands.publish(event, subject, replicas))
        return Receipt(stream_id, event_id, stream, self.keys, reader.hearing)

    def after(self, *events: After, timeout: float = 1.0) -> AbstractAsyncContextManager[None]:
        """Return a block, ``async with cache.after(receipt):``, inside of which no read is from before these events.

        An event is named by its receipt, or by the text of `Receipt.reference` that came with a request; None is no
        event. Entering waits until all are applied, `timeout` seconds at most. If they are not by then, or Redis does
        not answer, or an event is a dead letter, reads inside load directly and keep nothing; `stats` counts them as
        `unapplied`. For Redis's sake nothing is raised. Raises ArgumentError for a text that is no reference.

        Reads inside do without the local tier and without stale values, whatever their policies permit. Tasks that are
        started inside read in the same way until the block ends.
        """
        found = events_of(events, self.keys, self.settings)
        return after(self.reader, self.scopes, found, timeout)

    # Lifetime

    async def health(self) -> dict[str, Any]:
        """Say whether the server answers, in how many milliseconds, and why not; and how the local tier is.

        Never raises for the server's sake.
        """
        reader = self.reader()
        return await reader.drive(reader.commands.health())

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return this process's counters by namespace, and in each by function; see `counting.Counts`."""
        return self.telemetry.snapshot()

    def reset_stats(self) -> None:
        """Start this process's counters again at zero."""
        self._shared.reporter.reset()

    async def aclose(self, *, drain_timeout: float | None = None) -> None:
        """Wait for the loads in flight on this event loop, then close its connections, and those of `sync`.

        After `drain_timeout` seconds (None: never) the loads that are left are cancelled. Other event loops keep
        theirs, each to be closed there. `sync` is one for all threads: a thread that is in the middle of a command
        loses its connection, so close when they are done; a later command connects anew.
        """
        loop = asyncio.get_running_loop()
        if (reader := self._readers.get(loop)) is not None:
            # Still there for what the loads in flight read: another reader would be one that nobody closes.
            await reader.aclose(drain_timeout)
            if self._readers.get(loop) is reader:  # or another call has closed it, and there is a new one
                self._readers.pop(loop, None)
                self._last = None
        await asyncio.to_thread(self.sync.close, drain_timeout=drain_timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def key_of(self, call: Call) -> str:
        """Return the key of a call's entry in Redis."""
        return self.keys.entry(call.namespace, call.name)

    def target(self, call: Call) -> Target:
        """Return where everything of a call is."""
        return self._shared.target(call)

    def reader(self) -> Reader:
        """Return what reads and fills on the running event loop; made at its first use."""
        loop = asyncio.get_running_loop()
        last = self._last
        if last is not None and last[0] is loop:
            return last[1]
        reader = self._readers.get(loop)
        if reader is None:
            self._forget_closed_loops()
            shared = self._shared
            outage = None if shared.outage is None else Reader(MemoryStore(shared.outage), shared, main=False)
            reader = self._readers[loop] = Reader(shared.store(), shared, outage=outage)
        self._last = (loop, reader)
        return reader

    def _forget_closed_loops(self) -> None:
        """Drop their readers, which refer to them, so that the weak keys alone would keep both for ever."""
        for reference in self._readers.keyrefs():  # a copy: other threads may add theirs meanwhile
            loop = reference()
            if loop is not None and loop.is_closed():
                self._readers.pop(loop, None)
