"""The blocking side of a cache: publishing and invalidating from threads and scripts."""

from collections.abc import Iterable, Mapping

from .errors import InvalidationError, PublishError, UnavailableError
from .events import Event, to_fields
from .invalidation import direct, invalidation
from .keys import Keyspace
from .operations import Append
from .publisher import SyncReceipt
from .settings import Settings
from .store import SyncRedisStore, SyncStore


class SyncCache:
    """`Cache.sync`. Safe under threads; never to be called on an event loop, which it would block."""

    def __init__(self, store: SyncStore, settings: Settings, keys: Keyspace) -> None:
        self._store = store
        self._settings = settings
        self._keys = keys

    def publish(self, event: Event, *, subject: str | None = None) -> SyncReceipt:
        """See `Cache.publish`."""
        fields = to_fields(event, source=self._settings.source, subject=subject)
        try:
            stream_id = self._store.run(Append(self._keys.events, fields))
        except UnavailableError as error:
            raise PublishError(str(error)) from error
        redis_store = self._store if isinstance(self._store, SyncRedisStore) else None
        return SyncReceipt(stream_id, fields["id"], self._keys, self._settings.group, redis_store)

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

    def _invalidate(self, causes: Mapping[str, str]) -> None:
        if not causes:
            return
        try:
            self._store.run(invalidation(self._keys, self._settings, causes))
        except UnavailableError as error:
            raise InvalidationError(str(error)) from error

    def close(self) -> None:
        """Close the connections of all threads; the next call opens new ones."""
        self._store.close()
