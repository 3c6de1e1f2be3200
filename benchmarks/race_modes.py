"""Who races, and in which modes: ours in every one, the peers as their documentation has it.

The readers' processes and the writer's open the same mode; the writer's only invalidates.
"""

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiocache
import peers
from aiocache.serializers import PickleSerializer
from cashews import Cache as Cashews
from fastapi_cache import FastAPICache
from race import Loader, Mode, Subject, Versioned
from tidings import Cache

TTL = 600
#: So short that entries expire while they are raced for.
BRIEF = 0.05
NAMESPACE = "race"
#: The local tier's bound when the tail is lost. While it is alive the lag is what is measured.
LOCAL_BOUND = 1.0

ROW = "row:{number}"


def row(number: int) -> str:
    """Return the tag of a key."""
    return ROW.format(number=number)


@asynccontextmanager
async def ours(
    url: str, loader: Loader, *, by: str = "tag", blocking: bool = False, ttl: float = TTL, **options: Any
) -> AsyncIterator[Subject]:
    """Open ours; `by` is what is invalidated, and the rest are options of `cached`."""
    if by == "tag":
        options["tags"] = [ROW]
    elif by == "result tag":
        options["result_tags"] = lambda result: [row(result.number)]
    elif by == "pattern":
        options["key"] = "row-{number}-"
    async with Cache(url) as cache:
        cached: Any = cache.cached(namespace=NAMESPACE, ttl=ttl, **options)(function_of(loader, blocking=blocking))
        owner: Any = cache.sync if blocking else cache
        yield Subject(awaitable(cached), awaitable(invalidation(owner, cached, by)))


def invalidation(cache: Any, cached: Any, by: str) -> Callable[[int], Any]:
    """Return what invalidates one key of ours."""
    if by == "entry":
        return cached.invalidate  # type: ignore[no-any-return]
    if by == "pattern":
        return lambda number: cache.invalidate_pattern(f"*row-{number}-*", namespace=NAMESPACE)
    return lambda number: cache.invalidate_tags(row(number))


def function_of(loader: Loader, *, blocking: bool = False) -> Callable[..., Any]:
    """Return the load as a function: with a name that is the same in every process."""
    if blocking:

        def load_blocking(number: int) -> Versioned:
            return loader.load_blocking(number)

        return load_blocking

    async def load(number: int) -> Versioned:
        return await loader.load(number)

    return load


def awaitable(function: Callable[[int], Any]) -> Callable[[int], Awaitable[Any]]:
    """Let a function that blocks be awaited, in a thread that has nothing else to do."""

    async def call(number: int) -> Any:
        result = function(number)
        return await result if inspect.isawaitable(result) else result

    return call


@asynccontextmanager
async def cashews(
    url: str, loader: Loader, *, by: str = "tags", decorator: str = "cache", lock: bool = False, **setup: Any
) -> AsyncIterator[Subject]:
    """Open cashews; `setup` goes to `Cache.setup`."""
    cache = Cashews()
    cache.setup(url, **setup)
    options: dict[str, Any] = {"ttl": TTL, "key": "row:{number}", "tags": (ROW,) if by == "tags" else ()}
    if lock:
        options["lock"] = True
    invalidate: dict[str, Callable[[int], Any]] = {
        "tags": lambda number: cache.delete_tags(row(number)),
        "key": lambda number: cache.delete(row(number)),
        "match": lambda number: cache.delete_match(f"*{row(number)}"),
    }
    await cache.init()
    yield Subject(getattr(cache, decorator)(**options)(function_of(loader)), invalidate[by])
    await cache.close()


@asynccontextmanager
async def aiocache_redis(
    url: str, loader: Loader, *, by: str = "key", stampede: bool = False
) -> AsyncIterator[Subject]:
    """Open aiocache."""
    decorate = aiocache.cached_stampede if stampede else aiocache.cached
    host, _, port = url.removeprefix("redis://").partition(":")
    cached = decorate(
        ttl=TTL,
        cache=aiocache.RedisCache,
        endpoint=host,
        port=int(port),
        namespace=NAMESPACE,
        serializer=PickleSerializer(),
        key_builder=lambda _, number: row(number),
    )(function_of(loader))
    cache = cached.cache
    invalidate: dict[str, Callable[[int], Any]] = {
        "key": lambda number: cache.delete(row(number)),
        "namespace": lambda _: cache.clear(namespace=NAMESPACE),
    }
    yield Subject(cached, invalidate[by])
    await cache.close()


@asynccontextmanager
async def fastapi_cache2(url: str, loader: Loader) -> AsyncIterator[Subject]:
    """Open fastapi-cache2, whose keys are hashes: it can only be told to forget a namespace."""
    async with peers.fastapi_cache2(url, NAMESPACE) as decorate:
        yield Subject(decorate(function_of(loader)), lambda _: FastAPICache.clear(namespace=NAMESPACE))


@asynccontextmanager
async def dogpile(url: str, loader: Loader, **arguments: Any) -> AsyncIterator[Subject]:
    """Open dogpile.cache."""
    with peers.dogpile(url, NAMESPACE, **arguments) as decorate:
        cached: Any = decorate(function_of(loader, blocking=True))
        yield Subject(awaitable(cached), awaitable(cached.invalidate))


def _ours(name: str, **options: Any) -> Mode:
    own = {option: options.pop(option) for option in ("threads", "processes", "bound", "watch") if option in options}
    return Mode(f"tidings: {name}", functools.partial(ours, **options), ours=True, **own)


def _peer(name: str, opening: Any, *, threads: bool = False, **options: Any) -> Mode:
    return Mode(name, functools.partial(opening, **options), threads=threads)


MODES = (
    _ours("tag"),
    _ours("tag, sync in threads", blocking=True, threads=True),
    _ours("tag, leases of two processes", processes=2),
    _ours("tag, local tier", local_ttl=TTL, bound=LOCAL_BOUND),
    _ours("tag, local tier, sync", local_ttl=TTL, blocking=True, threads=True, bound=LOCAL_BOUND),
    _ours("lag of the local tier", local_ttl=TTL, bound=LOCAL_BOUND, watch=True),
    _ours("lag of the local tier, sync", local_ttl=TTL, blocking=True, threads=True, bound=LOCAL_BOUND, watch=True),
    _ours("tag, short ttl, swr=0", ttl=BRIEF, stale_while_revalidate=0),
    _ours("tag, short ttl, swr=60", ttl=BRIEF, stale_while_revalidate=60),
    _ours("tag, short ttl, early=1", ttl=BRIEF, early=1.0),
    _ours("result tag", by="result tag"),
    _ours("pattern", by="pattern"),
    _ours("entry", by="entry"),
    _peer("cashews: delete_tags", cashews),
    _peer("cashews: delete", cashews, by="key"),
    _peer("cashews: delete_match", cashews, by="match"),
    _peer("cashews, lock: delete_tags", cashews, lock=True),
    _peer("cashews, early: delete_tags", cashews, decorator="early"),
    _peer("cashews, soft: delete_tags", cashews, decorator="soft"),
    _peer("cashews, client_side: delete_tags", cashews, client_side=True),
    _peer("aiocache: delete", aiocache_redis),
    _peer("aiocache: clear namespace", aiocache_redis, by="namespace"),
    _peer("aiocache, stampede: delete", aiocache_redis, stampede=True),
    _peer("fastapi-cache2: clear namespace", fastapi_cache2),
    _peer("dogpile.cache: invalidate", dogpile, threads=True),
    _peer(
        "dogpile.cache, distributed lock: invalidate",
        dogpile,
        threads=True,
        distributed_lock=True,
        thread_local_lock=False,
        lock_timeout=10,
        lock_sleep=0.005,
    ),
)
