"""What `cached` makes of a function: something that is called like it, and knows its keys.

A call binds its arguments, finds out where its entry is (remembered for arguments that a memo can tell apart), and
leaves the rest to the reader. A hit in the local tier is served right here: each further call would cost as much as the
hit itself.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from .described import Described, Options
from .entries import Looked
from .errors import UnavailableError
from .signature import Signature

if TYPE_CHECKING:
    from .cache import Cache

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


class CachedFunction(Described[P, R]):
    """A cached ``async def`` function; called like the function, with the same signature.

    Awaiting it raises whatever the function raises, ArgumentError for an argument that cannot be part of a key, and
    EncodeError for a result that would not come back as it was. Redis being down raises nothing: the function is
    called. The result is the caller's own: no two callers are handed the same object, unless it cannot be changed.
    """

    def __init__(
        self,
        function: Callable[P, Awaitable[R]],
        options: Options,
        signature: Signature,
        cache: "Callable[[], Cache]",
    ) -> None:
        super().__init__(function, options, signature, cache)
        self.uncached: Callable[P, Awaitable[R]] = function
        _mark_as_coroutine_function(self)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the cached result, or call the function and keep its result."""
        cache = self._cache()
        if self._when is not None and not self.applies(args, kwargs):
            cache.telemetry.of(self.options.namespace, self.identity).bypassed += 1
            return await self.uncached(*args, **kwargs)
        if cache.scopes.open and cache.scopes.rule() is not None:
            request = self._request(
                self.target(cache, args, kwargs), partial(self.uncached, *args, **kwargs), args, kwargs
            )
            return await cache.reader().read(request)  # type: ignore[no-any-return]
        known_of, known = self._known
        try:
            wanted = known[self._identify(*args, **kwargs)] if known_of is cache else None  # type: ignore[misc]
        except (KeyError, TypeError):
            wanted = None
        if wanted is None:
            wanted = self.target(cache, args, kwargs)
        if (slot := wanted.slot) is not None:
            value: R = slot.value  # before it is asked whether the slot stands: see `local`
            payload, tier = slot.payload, cache.tier
            if (now := tier.clock()) < slot.expires and now < tier.alive_until:
                slot.visited = True
                counts = wanted.counts
                counts.local_hits = hits = counts.local_hits + 1
                if hits >= counts.sample_at and cache.hot.note(self, wanted, args, kwargs):
                    cache.reader().tell_hot()
                return value if slot.shared else self.codec.decode(payload)
        reader, looked = cache.reader(), None
        counts = wanted.counts
        counts.sample_at -= 1
        if counts.local_hits >= counts.sample_at and cache.hot.note(self, wanted, args, kwargs):
            reader.tell_hot()
        if wanted.plain and self.options.result_tags is None and reader.breaker.closed:
            try:
                values = await reader.store.read(wanted.keys, bulk=wanted.bulk)
            except UnavailableError as error:
                reader.missed(wanted, error)
                request = self._request(wanted, partial(self.uncached, *args, **kwargs), args, kwargs)
                return await reader.read_without(request)  # type: ignore[no-any-return]
            found: Any = reader.reading.hit(wanted, self._codec or self.codec, values)
            if type(found) is not Looked:
                return found  # type: ignore[no-any-return]
            looked = found
        request = self._request(wanted, partial(self.uncached, *args, **kwargs), args, kwargs)
        return await reader.read(request, looked)  # type: ignore[no-any-return]

    async def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now and keep its result, whatever is cached. Cancelling this does not cancel the load."""
        request = replace(self.request(partial(self.uncached, *args, **kwargs), *args, **kwargs), how="refresh")
        return cast("R", await self._cache().reader().refresh(request))

    async def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Invalidate the entry for these arguments; raises InvalidationError when that is not acknowledged."""
        await self._cache().invalidate_call(self.call_of(*args, **kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> "CachedFunction[P, R]": ...
    @overload
    def __get__(
        self: "CachedFunction[Concatenate[S, Q], R]", instance: S, owner: type | None = None
    ) -> "BoundCachedFunction[Q, R]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance, or to the class, as a method does."""
        if self.options.of_class:
            return BoundCachedFunction(self, type(instance) if owner is None else owner)
        return self if instance is None else BoundCachedFunction(self, instance)


class CachedSyncFunction(Described[P, R]):
    """A cached plain ``def`` function, for threads and scripts; it promises what `CachedFunction` does.

    On an event loop it would block the loop, as the function itself does.
    """

    def __init__(
        self, function: Callable[P, R], options: Options, signature: Signature, cache: "Callable[[], Cache]"
    ) -> None:
        super().__init__(function, options, signature, cache)
        self.uncached: Callable[P, R] = function

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the cached result, or call the function and keep its result."""
        cache = self._cache()
        if self._when is not None and not self.applies(args, kwargs):
            cache.telemetry.of(self.options.namespace, self.identity).bypassed += 1
            return self.uncached(*args, **kwargs)
        if cache.scopes.open and cache.scopes.rule() is not None:
            request = self._request(
                self.target(cache, args, kwargs), partial(self.uncached, *args, **kwargs), args, kwargs
            )
            return cache.sync.reader.read(request)  # type: ignore[no-any-return]
        known_of, known = self._known
        try:
            wanted = known[self._identify(*args, **kwargs)] if known_of is cache else None  # type: ignore[misc]
        except (KeyError, TypeError):
            wanted = None
        if wanted is None:
            wanted = self.target(cache, args, kwargs)
        if (slot := wanted.slot) is not None:
            value: R = slot.value  # before it is asked whether the slot stands: see `local`
            payload, tier = slot.payload, cache.tier
            if (now := tier.clock()) < slot.expires and now < tier.alive_until:
                slot.visited = True
                counts = wanted.counts
                counts.local_hits = hits = counts.local_hits + 1
                if hits >= counts.sample_at and cache.hot.note(self, wanted, args, kwargs):
                    cache.sync.reader.tell_hot()
                return value if slot.shared else self.codec.decode(payload)
        reader, looked = cache.sync.reader, None
        counts = wanted.counts
        counts.sample_at -= 1
        if counts.local_hits >= counts.sample_at and cache.hot.note(self, wanted, args, kwargs):
            reader.tell_hot()
        if wanted.plain and self.options.result_tags is None and reader.breaker.closed:
            try:
                values = reader.store.read(wanted.keys)
            except UnavailableError as error:
                reader.missed(wanted, error)
                request = self._request(wanted, partial(self.uncached, *args, **kwargs), args, kwargs)
                return reader.read_without(request)  # type: ignore[no-any-return]
            found: Any = reader.reading.hit(wanted, self._codec or self.codec, values)
            if type(found) is not Looked:
                return found  # type: ignore[no-any-return]
            looked = found
        request = self._request(wanted, partial(self.uncached, *args, **kwargs), args, kwargs)
        return reader.read(request, looked)  # type: ignore[no-any-return]

    def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `CachedFunction.refresh`."""
        request = replace(self.request(partial(self.uncached, *args, **kwargs), *args, **kwargs), how="refresh")
        return cast("R", self._cache().sync.reader.refresh(request))

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """See `CachedFunction.invalidate`."""
        self._cache().sync.invalidate_call(self.call_of(*args, **kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> "CachedSyncFunction[P, R]": ...
    @overload
    def __get__(
        self: "CachedSyncFunction[Concatenate[S, Q], R]", instance: S, owner: type | None = None
    ) -> "BoundCachedSyncFunction[Q, R]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance, or to the class, as a method does."""
        if self.options.of_class:
            return BoundCachedSyncFunction(self, type(instance) if owner is None else owner)
        return self if instance is None else BoundCachedSyncFunction(self, instance)


class BoundCachedFunction(Generic[Q, R]):
    """A cached method of one instance, or of a class."""

    def __init__(self, function: CachedFunction[Any, R], instance: Any) -> None:
        update_wrapper(self, function)
        self._function = function
        self._instance = instance
        _mark_as_coroutine_function(self)
        self.uncached: Callable[Q, Awaitable[R]] = partial(function.uncached, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as methods do, by the instance and the name."""
        return getattr, (self._instance, self._function.__name__)  # type: ignore[attr-defined]

    async def __call__(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R:
        """Return the cached result, or call the method and keep its result."""
        return await self._function(self._instance, *args, **kwargs)

    def key(self, /, *args: Q.args, **kwargs: Q.kwargs) -> str:
        """See `Described.key`."""
        return self._function.key(self._instance, *args, **kwargs)

    async def refresh(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R:
        """See `CachedFunction.refresh`."""
        return await self._function.refresh(self._instance, *args, **kwargs)

    async def invalidate(self, /, *args: Q.args, **kwargs: Q.kwargs) -> None:
        """See `CachedFunction.invalidate`."""
        await self._function.invalidate(self._instance, *args, **kwargs)


class BoundCachedSyncFunction(Generic[Q, R]):
    """A cached plain method of one instance, or of a class."""

    def __init__(self, function: CachedSyncFunction[Any, R], instance: Any) -> None:
        update_wrapper(self, function)
        self._function = function
        self._instance = instance
        self.uncached: Callable[Q, R] = partial(function.uncached, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        """See `BoundCachedFunction.__reduce__`."""
        return getattr, (self._instance, self._function.__name__)  # type: ignore[attr-defined]

    def __call__(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R:
        """Return the cached result, or call the method and keep its result."""
        return self._function(self._instance, *args, **kwargs)

    def key(self, /, *args: Q.args, **kwargs: Q.kwargs) -> str:
        """See `Described.key`."""
        return self._function.key(self._instance, *args, **kwargs)

    def refresh(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R:
        """See `CachedFunction.refresh`."""
        return self._function.refresh(self._instance, *args, **kwargs)

    def invalidate(self, /, *args: Q.args, **kwargs: Q.kwargs) -> None:
        """See `CachedFunction.invalidate`."""
        self._function.invalidate(self._instance, *args, **kwargs)


def _mark_as_coroutine_function(thing: Any) -> None:
    """Set what asyncio, inspect and web frameworks look at to see that calling this gives a coroutine."""
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(thing)
    else:
        thing._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
