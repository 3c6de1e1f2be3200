"""The default cache, the only global. Whichever is current when a function is *called* counts, not at decoration."""

import threading
from collections.abc import Iterable
from typing import Unpack

from .cache import Cache
from .cached import CachedOptions, Decorator, decorator_of
from .events import Event
from .publisher import Receipt
from .resource import Resource
from .settings import CacheOptions, Settings
from .telemetry import log

_lock = threading.Lock()
_current: Cache | None = None


def configure(url: str, **options: Unpack[CacheOptions]) -> Cache:
    """Make a cache and make it the default; the options are those of `Cache`.

    The default before it stays open: closing it is up to whoever still uses it.
    """
    cache = Cache(url, **options)
    set_cache(cache)
    return cache


def set_cache(cache: Cache | None) -> Cache | None:
    """Make a cache the default, and return the one before; None: the next use reads the environment again."""
    global _current  # the one global that the design allows
    with _lock:
        before, _current = _current, cache
        return before


def get_cache() -> Cache:
    """Return the default cache, made from the environment at first use. Raises ConfigurationError."""
    global _current  # noqa: PLW0603
    if (cache := _current) is not None:
        return cache
    with _lock:
        if _current is None:
            settings = Settings.load()
            if settings.url is None:
                log.warning("cache_in_memory", cure="set TIDINGS_URL, or call tidings.configure(url)")
            _current = Cache.from_settings(settings)
        return _current


def cached(_bare: None = None, /, **options: Unpack[CachedOptions]) -> Decorator:
    """Keep the results of an ``async def`` or plain function until they expire or are invalidated.

    `namespace` is the group that `invalidate_namespace` names. `ttl` is seconds or a timedelta, or "short", "default",
    "long" from the settings; None: the namespace's or the cache's default. `key` is a template over the arguments,
    ``"{user_id}:profile"``; without one, a hash of all bound arguments, so that positional, keyword and defaulted calls
    are one key; ``self`` and ``cls`` count only when the template names them. `tags` are templates over the arguments,
    or a callable that is given every argument by name and returns tags; `result_tags` is a callable of the result. What
    the other options mean is in `CachedOptions`.

    The return annotation says how results are kept: pydantic models, dataclasses, containers and scalars come back as
    what they were. A result is served until an invalidation of its namespace or of one of its tags is acknowledged,
    never after, unless `max_staleness` or `stale_if_error` permit it. One load runs per key, in this process and
    across processes; cancelling a caller cancels no load. The decorated function has `.key`, `.refresh`, `.invalidate`
    and `.uncached`.

    Raises ConfigurationError, at decoration, for a generator, a function that is cached already, a template that names
    no argument, an annotation that cannot be kept, or an option that is not what it should be.
    """
    return decorator_of(get_cache, _bare, options)


def resource(name: str, *ids: str) -> Resource:
    """Return what decorates the functions that read and write a kind of thing, known by the arguments `ids`.

    ``resource("user", "user_id")`` has `cache_read(suffix=, ttl=, …)` and `cache_write(warm=[…])`; see `Resource`.
    Several ids are one: ``resource("member", "team_id", "user_id")`` has the tag ``member:{team_id}:{user_id}``.
    Raises ConfigurationError for a name or id that cannot be one.
    """
    return Resource(get_cache, name, *ids)


async def publish(event: Event, *, subject: str | None = None, replicas: int = 0) -> Receipt:
    """Publish through the default cache; see `Cache.publish`."""
    return await get_cache().publish(event, subject=subject, replicas=replicas)


async def invalidate(*, namespaces: Iterable[str] = (), tags: Iterable[str] = ()) -> None:
    """Invalidate in the default cache; see `Cache.invalidate`."""
    await get_cache().invalidate(namespaces=namespaces, tags=tags)


async def invalidate_namespace(name: str) -> None:
    """Invalidate in the default cache; see `Cache.invalidate_namespace`."""
    await get_cache().invalidate_namespace(name)


async def invalidate_tags(*tags: str) -> None:
    """Invalidate in the default cache; see `Cache.invalidate_tags`."""
    await get_cache().invalidate_tags(*tags)


async def invalidate_all() -> None:
    """Invalidate in the default cache; see `Cache.invalidate_all`."""
    await get_cache().invalidate_all()


async def invalidate_pattern(glob: str, *, namespace: str | None = "default") -> None:
    """Invalidate in the default cache; see `Cache.invalidate_pattern`."""
    await get_cache().invalidate_pattern(glob, namespace=namespace)
