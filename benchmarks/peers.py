"""The caches that are compared, each through its documented interface and in the configuration that serves it best.

Every one is a context manager that gives a decorator for functions of (number, tenant). `space` keeps the keys of two
variants apart. Tried: cashews with 10 (its default), 50 and 200 connections, of which 200 is the fastest at 50 tasks,
and within the noise elsewhere; fastapi-cache2, which is handed a client, with redis-py's default pool and a blocking
one of 50, which costs twice as much in turn and the same at 50 and 200 tasks.
"""

import logging
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiocache
import cachebox
from aiocache.serializers import PickleSerializer
from async_lru import alru_cache
from cashews import Cache as Cashews
from dogpile.cache import make_region
from payloads import TAGS
from redis.asyncio import Redis
from tidings import Cache

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is written for an older pydantic, and says so at length
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.inmemory import InMemoryBackend
    from fastapi_cache.backends.redis import RedisBackend
    from fastapi_cache.coder import PickleCoder
    from fastapi_cache.decorator import cache as fastapi_cache

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

TTL = 3600
POOL = 200
#: In process: room for every number.
SIZE = 10_000

for _name in ("aiocache", "cashews", "fastapi_cache"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # an outage would log a traceback for each call


@asynccontextmanager
async def tidings(
    url: str, space: str = "ours", *, tags: Sequence[str] = TAGS, deadline: float = 2.0, **options: Any
) -> AsyncIterator[Decorator]:
    """Ours; `options` are those of `cached`, `deadline` is how many seconds Redis has for an operation."""
    async with Cache(url, operation_timeout=deadline) as cache:
        yield cache.cached(namespace=space, ttl=TTL, tags=list(tags), **options)


@asynccontextmanager
async def cashews(
    url: str, space: str = "cashews", *, tags: Sequence[str] = (), lock: bool = False, **setup: Any
) -> AsyncIterator[Decorator]:
    """By key template; `setup` goes to `Cache.setup`."""
    cache = Cashews()
    if url.startswith("redis"):
        setup.setdefault("max_connections", POOL)
    cache.setup(url, **setup)
    try:
        yield cache(ttl=TTL, key=space + ":{tenant}:{number}", tags=tuple(f"{space}:{tag}" for tag in tags), lock=lock)
    finally:
        await cache.close()


@asynccontextmanager
async def aiocache_redis(
    url: str, space: str = "aiocache", *, stampede: bool = False, **options: Any
) -> AsyncIterator[Decorator]:
    """With pickle: of its serializers the only one that gives models back."""
    address = urlsplit(url)
    made: list[Any] = []

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        decorate = aiocache.cached_stampede if stampede else aiocache.cached
        made.append(
            decorate(
                ttl=TTL,
                cache=aiocache.RedisCache,
                endpoint=address.hostname,
                port=address.port,
                namespace=space,
                serializer=PickleSerializer(),
                **options,
            )(function)
        )
        return made[-1]  # type: ignore[no-any-return]

    try:
        yield decorator
    finally:
        for function in made:
            await function.cache.close()


@asynccontextmanager
async def aiocache_memory() -> AsyncIterator[Decorator]:
    """Its in-process cache."""
    yield aiocache.cached(ttl=TTL)


@asynccontextmanager
async def fastapi_cache2(url: str, space: str = "fastapi", **client_options: Any) -> AsyncIterator[Decorator]:
    """With pickle: its JSON coder gives dicts back outside of a request."""
    async with Redis.from_url(url, **client_options) as client:
        FastAPICache.reset()
        FastAPICache.init(RedisBackend(client), prefix="fastapi")
        yield fastapi_cache(expire=TTL, coder=PickleCoder, namespace=space)


@asynccontextmanager
async def fastapi_cache2_memory() -> AsyncIterator[Decorator]:
    """Its in-process cache, which keeps bytes."""
    FastAPICache.reset()
    FastAPICache.init(InMemoryBackend(), prefix="fastapi")
    yield fastapi_cache(expire=TTL, coder=PickleCoder, namespace="memory")
    await FastAPICache.clear(namespace="memory")  # all its in-process caches are one


@contextmanager
def dogpile(url: str, space: str = "dogpile", **arguments: Any) -> Iterator[Decorator]:
    """For plain functions; `arguments` go to its Redis backend."""
    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=TTL,
        arguments={"url": url, "redis_expiration_time": 2 * TTL, **arguments},
    )
    yield region.cache_on_arguments(namespace=space)
    region.backend.reader_client.close()


@asynccontextmanager
async def async_lru() -> AsyncIterator[Decorator]:
    """In process, by LRU order alone: nothing expires and nothing can tell it that it is wrong."""
    yield alru_cache(maxsize=SIZE)


@asynccontextmanager
async def cachebox_ttl() -> AsyncIterator[Decorator]:
    """In process, with a ttl."""
    yield cachebox.cached(cachebox.TTLCache(SIZE, TTL))
