"""The blocking side of a cache, for threads and scripts: the methods of `Cache`, with the same promises."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .bulk import LeftOutError, peek_many, read_many
from .errors import InvalidationError, PublishError, UnavailableError
from .events import Event, to_fields
from .invalidation import by_pattern, direct, invalidation
from .keys import check_namespace
from .memory import SyncMemoryStore
from .naming import Many, codec_of, named, untyped
from .operations import Append, Ping
from .policy import Seconds, TtlWord
from .publisher import SyncReceipt
from .seen import NOTHING, AwayError
from .shared import Shared
from .store import SyncRedisStore, SyncStore
from .sync_reader import SyncReader
from .targets import Call, Request

T = TypeVar("T")


class SyncCache:
    """`Cache.sync`. Safe under threads; never to be called on an event loop, which it would block."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        memory, settings = shared.memory, shared.settings
        store: SyncStore = SyncRedisStore.connect(settings) if memory is None else SyncMemoryStore(memory)
        outage = None if shared.outage is None else SyncReader(SyncMemoryStore(shared.outage), shared, main=False)
        #: what reads and fills for all threads
        self.reader = SyncReader(store, shared, outage=outage)

    # The read side

    def get(self, key: str, *, namespace: str = "default", default: Any = None) -> Any:
        """See `Cache.get`."""
        return self.reader.peek(self._named(key, namespace), default)

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
        self.reader.put([self._named(key, namespace, ttl, tags)], [value])

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
        wanted = self._shared.target(named(key, namespace, ttl, tags))
        value: T = self.reader.read(Request(wanted, func, codec_of(func)))
        return value

    def delete(self, key: str, *, namespace: str = "default") -> bool:
        """See `Cache.delete`."""
        return bool(self._invalidate({}, [self._shared.keys.entry(check_namespace(namespace), key)]))

    def get_many(self, keys: Iterable[str], *, namespace: str = "default", default: Any = None) -> dict[str, Any]:
        """See `Cache.get_many`."""
        many = Many.of(keys)
        requests = [self._named(key, namespace) for key in many.keys]
        if requests and self.reader.breaker.closed:
            try:
                return many.named(self.reader.drive(peek_many(self.reader.reading, requests, default)))
            except AwayError:
                pass
        return dict.fromkeys(many.keys, default)

    def set_many(
        self,
        values: Mapping[str, Any],
        *,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
        namespace: str = "default",
    ) -> None:
        """See `Cache.set_many`."""
        requests = [self._named(key, namespace, ttl, tags) for key in values]
        if requests:
            self.reader.put(requests, list(values.values()))

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
        many, reader = Many.of(keys), self.reader

        def load(indices: Sequence[int]) -> dict[int, T]:
            return many.indexed(func([many.keys[index] for index in indices]), indices)

        def load_one(index: int) -> T:
            loaded = load([index])
            if index not in loaded:
                raise LeftOutError
            return loaded[index]

        requests = many.requests(self._shared.target, load_one, func, namespace=namespace, ttl=ttl, tags=tags)
        if requests and reader.breaker.closed:
            try:
                return many.named(reader.drive(read_many(reader.reading, requests, load)))
            except AwayError:
                pass
        loaded = load(range(len(requests))) if requests else {}
        return many.named([loaded.get(index, NOTHING) for index in range(len(requests))])

    # Invalidation

    def invalidate(self, *, namespaces: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
        """See `Cache.invalidate`."""
        self._invalidate(direct("invalidate", namespaces, tags))

    def invalidate_namespace(self, name: str) -> None:
        """See `Cache.invalidate_namespace`."""
        self._invalidate(direct("invalidate_namespace", [name]))

    def invalidate_tags(self, *tags: str) -> None:
        """See `Cache.invalidate_tags`."""
        self._invalidate(direct("invalidate_tags", tags=tags))

    def invalidate_all(self) -> None:
        """See `Cache.invalidate_all`."""
        self._invalidate(direct("invalidate_all", everything=True))

    def invalidate_pattern(self, glob: str, *, namespace: str | None = "default") -> None:
        """See `Cache.invalidate_pattern`."""
        shared = self._shared
        try:
            told = self.reader.drive(by_pattern(shared.keys, shared.settings, glob, namespace))
        except UnavailableError as error:
            raise InvalidationError(str(error)) from error
        shared.invalidated(told)

    def invalidate_call(self, call: Call) -> None:
        """See `Cache.invalidate_call`."""
        self._invalidate({}, [self._shared.keys.entry(call.namespace, call.name)])

    def _invalidate(self, causes: Mapping[str, str], entries: Iterable[str] = ()) -> int:
        operation = invalidation(self._shared.keys, self._shared.settings, causes, entries)
        if not operation.what:
            return 0
        try:
            return self.reader.ask(operation)
        except UnavailableError as error:
            raise InvalidationError(str(error)) from error
        finally:
            self._shared.invalidated(operation)

    # Events

    def publish(self, event: Event, *, subject: str | None = None) -> SyncReceipt:
        """See `Cache.publish`."""
        shared, store = self._shared, self.reader.store
        fields = to_fields(event, source=shared.settings.source, subject=subject)
        try:
            stream_id = self.reader.ask(Append(shared.keys.events, fields))
        except UnavailableError as error:
            raise PublishError(str(error)) from error
        redis_store = store if isinstance(store, SyncRedisStore) else None
        return SyncReceipt(stream_id, fields["id"], shared.keys, shared.settings.group, redis_store)

    # Lifetime

    def health(self) -> dict[str, Any]:
        """See `Cache.health`."""
        started = time.perf_counter()
        found: dict[str, Any] = {"ok": True, **self._shared.health()}
        try:
            self.reader.ask(Ping())
        except UnavailableError as error:
            return {**found, "ok": False, "error": str(error)}
        return {**found, "latency_ms": round((time.perf_counter() - started) * 1000, 3)}

    def stats(self) -> dict[str, dict[str, Any]]:
        """See `Cache.stats`."""
        return self._shared.telemetry.snapshot()

    def reset_stats(self) -> None:
        """See `Cache.reset_stats`."""
        self._shared.telemetry.reset()

    def close(self, *, drain_timeout: float | None = None) -> None:
        """Wait for what runs in the background, then close all connections; the next call opens new ones."""
        self.reader.close(drain_timeout)
        self._shared.stop()

    def _named(
        self, key: str, namespace: str, ttl: Seconds | TtlWord | None = None, tags: Iterable[str] = ()
    ) -> Request:
        return Request(self._shared.target(named(key, namespace, ttl, tags)), None, untyped)
