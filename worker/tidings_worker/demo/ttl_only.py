"""The cache that tidings is shown beside: a dict with a TTL. It works as many do, and hears nothing."""

import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TtlOnly(Generic[K, V]):
    """Keeps what was loaded for `ttl` seconds, whatever happens meanwhile."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._entries: dict[K, tuple[float, V]] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Return the value under `key` until it expires; then, and the first time, load it."""
        expires, value = self._entries.get(key, (0.0, None))
        if value is None or time.monotonic() >= expires:
            value = await load()
            self._entries[key] = (time.monotonic() + self._ttl, value)
        return value
