"""The default cache, the only global. Whichever is current when a function is *called* counts, not at decoration."""

import threading
from collections.abc import Iterable

from .cache import Cache
from .cached import Decorator, Seconds, Tags, decorate
from .events import Event
from .publisher import Receipt
from .settings import Settings
from .telemetry import log

_lock = threading.Lock()
_current: Cache | None = None


def configure(
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
) -> Cache:
    """Make a cache and make it the default; the options are those of `Cache`.

    The default before it stays open: closing it is up to whoever still uses it.
    """
    cache = Cache(
        url,
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
    set_cache(cache)
    return cache


def set_cache(cache: Cache | None) -> None:
    """Make a cache the default; None: the next use reads the environment again."""
    global _current  # noqa: PLW0603 the one global that the design allows
    with _lock:
        _current = cache


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


def cached(
    *, namespace: str = "default", ttl: Seconds | None = None, key: str | None = None, tags: Tags = ()
) -> Decorator:
    """Keep an ``async def`` function's results until they expire or are invalidated.

    `namespace` is the group that `invalidate_namespace` names. `ttl` is seconds or a timedelta; None: the cache's
    default. `key` is a template over the arguments, ``"{user_id}:profile"``; without one, a hash of all bound
    arguments, so that positional, keyword and defaulted calls are one key; ``self`` and ``cls`` count only when the
    template names them. `tags` are templates over the arguments, or a callable that is given every argument by name and
    returns tags.

    The return annotation says how results are kept: pydantic models, dataclasses, containers and scalars come back as
    what they were. A result is served until an invalidation of its namespace or of one of its tags is acknowledged,
    never after. One load runs per key in a process; cancelling a caller cancels no load. The decorated function has
    `.key`, `.refresh`, `.invalidate` and `.uncached`.

    Raises ConfigurationError, at decoration, for a generator, a plain ``def``, a template that names no argument, or an
    annotation that cannot be kept.
    """
    return decorate(get_cache, namespace, ttl, key, tags)


async def publish(event: Event, *, subject: str | None = None) -> Receipt:
    """Publish through the default cache; see `Cache.publish`."""
    return await get_cache().publish(event, subject=subject)


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
