"""The blocking side of a cache, for threads and scripts: the methods of `Cache`, with the same promises."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from .after import After, events_of, sync_after
from .cached import CachedOptions, Decorator
from .events import Event
from .invalidation import direct
from .keys import EventStream
from .memory import SyncMemoryStore
from .policy import Seconds, TtlWord
from .publisher import SyncReceipt
from .resource import Resource
from .shared import Shared
from .sync_reader import SyncReader
from .targets import Call

if TYPE_CHECKING:
    from .cache import Cache

T = TypeVar("T")


class SyncCache:
    """`Cache.sync`. Safe under threads; never to be called on an event loop, which it would block."""

    def __init__(self, shared: Shared, cache: "Cache") -> None:
        self._shared = shared
        self._cache = cache
        outage = None if shared.outage is None else SyncReader(SyncMemoryStore(shared.outage), shared, main=False)
        #: what reads and fills for all threads
        self.reader = SyncReader(shared.sync_store(), shared, outage=outage)
        self._commands = self.reader.commands

    # The read side

    def cached(self, _bare: None = None, /, **options: Unpack[CachedOptions]) -> Decorator:
        """See `Cache.cached`: whether the function is plain decides how it is called, not where it is decorated."""
        return self._cache.cached(_bare, **options)

    def resource(self, name: str, *ids: str) -> Resource:
        """See `Cache.resource`."""
        return self._cache.resource(name, *ids)

    def get(self, key: str, *, namespace: str = "default", default: Any = None) -> Any:
        """See `Cache.get`."""
        return self.reader.peek(self._commands.named(key, namespace), default)

    def set(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> None:
        """See `Cache.set`."""
        self.reader.drive(self._commands.set_many({key: value}, namespace, ttl, tags))

    def get_or_set(
        self,
        key: str,
        func: Callable[[], T],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> T:
        """See `Cache.get_or_set`; `func` is called, not awaited."""
        value: T = self.reader.read(self._commands.named(key, namespace, func, ttl, tags))
        return value

    def delete(self, key: str, *, namespace: str = "default") -> bool:
        """See `Cache.delete`."""
        return self.reader.drive(self._commands.delete(key, namespace))

    def get_many(self, keys: Iterable[str], *, namespace: str = "default", default: Any = None) -> dict[str, Any]:
        """See `Cache.get_many`."""
        return self.reader.drive(self._commands.get_many(keys, namespace, default))

    def set_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> None:
        """See `Cache.set_many`."""
        self.reader.drive(self._commands.set_many(values, namespace, ttl, tags))

    def get_or_set_many(
        self,
        keys: Iterable[str],
        func: Callable[[list[str]], Mapping[str, T]],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] | Callable[[str], Iterable[str]] = (),
        namespace: str = "default",
    ) -> dict[str, T]:
        """See `Cache.get_or_set_many`; `func` is called, not awaited."""
        steps = self._commands.get_or_set_many(keys, func, namespace=namespace, ttl=ttl, tags=tags)
        return self.reader.drive(steps)

    # Invalidation

    def invalidate(self, *, namespaces: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
        """See `Cache.invalidate`."""
        self.reader.drive(self._commands.invalidate(direct("invalidate", namespaces, tags)))

    def invalidate_namespace(self, name: str) -> None:
        """See `Cache.invalidate_namespace`."""
        self.reader.drive(self._commands.invalidate(direct("invalidate_namespace", [name])))

    def invalidate_tags(self, *tags: str) -> None:
        """See `Cache.invalidate_tags`."""
        self.reader.drive(self._commands.invalidate(direct("invalidate_tags", tags=tags)))

    def invalidate_all(self) -> None:
        """See `Cache.invalidate_all`."""
        self.reader.drive(self._commands.invalidate(direct("invalidate_all", everything=True)))

    def invalidate_pattern(self, glob: str, *, namespace: str | None = "default") -> None:
        """See `Cache.invalidate_pattern`."""
        self.reader.drive(self._commands.invalidate_pattern(glob, namespace))

    def invalidate_call(self, call: Call) -> None:
        """See `Cache.invalidate_call`."""
        self.reader.drive(self._commands.invalidate_call(call))

    def invalidate_tokens(
        self, causes: Mapping[str, str], *, events: str = "", stream: EventStream | None = None
    ) -> None:
        """See `Cache.invalidate_tokens`."""
        self.reader.drive(self._commands.invalidate(causes, events=events, stream=stream))

    # Events

    def publish(self, event: Event, *, subject: str | None = None, replicas: int = 0) -> SyncReceipt:
        """See `Cache.publish`."""
        stream, stream_id, event_id = self.reader.drive(self._commands.publish(event, subject, replicas))
        return SyncReceipt(stream_id, event_id, stream, self._shared.keys, self.reader.hearing)

    def after(self, *events: After, timeout: float = 1.0) -> AbstractContextManager[None]:
        """Return a block, ``with cache.sync.after(receipt):``; see `Cache.after`.

        While Redis hangs, entering may take `operation_timeout` longer than `timeout`, once.
        """
        found = events_of(events, self._shared.keys, self._shared.settings)
        return sync_after(self.reader, self._shared.scopes, found, timeout)

    # Lifetime

    def health(self) -> dict[str, Any]:
        """See `Cache.health`."""
        return self.reader.drive(self._commands.health())

    def stats(self) -> dict[str, dict[str, Any]]:
        """See `Cache.stats`."""
        return self._shared.telemetry.snapshot()

    def reset_stats(self) -> None:
        """See `Cache.reset_stats`."""
        self._shared.reporter.reset()

    def close(self, *, drain_timeout: float | None = None) -> None:
        """Wait for what runs in the background, then close all connections; the next call opens new ones."""
        self.reader.close(drain_timeout)
        self._shared.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
