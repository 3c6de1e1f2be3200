"""The decorator: a function whose results are kept until they expire or are invalidated."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, update_wrapper
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_type_hints, overload

from .codec import UNTYPED, Codec
from .errors import ArgumentError, ConfigurationError
from .fence import MAX_TAGS
from .keys import Signature, check_namespace, qualified
from .reader import Call
from .templates import Template, parse

if TYPE_CHECKING:
    from .cache import Cache

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

Seconds = float | timedelta
#: Templates over the arguments, or a callable that is given every argument by name.
Tags = Sequence[str] | Callable[..., Iterable[str]]


@dataclass(frozen=True, slots=True)
class Options:
    """What `cached` was given, checked."""

    namespace: str
    ttl_ms: int | None
    key: Template | None
    tags: tuple[Template, ...] | Callable[..., Iterable[str]]


class CachedFunction(Generic[P, R]):
    """A cached ``async def`` function; called like the function, with the same signature.

    Awaiting it raises whatever the function raises, ArgumentError for an argument that cannot be part of a key, and
    EncodeError for a result that would not come back as it was. Redis being down raises nothing: the function is
    called. The result is the caller's own: no two callers are handed the same object.
    """

    def __init__(
        self,
        function: Callable[P, Awaitable[R]],
        options: Options,
        signature: Signature,
        cache: "Callable[[], Cache]",
    ) -> None:
        update_wrapper(self, function)
        #: The function itself, for a caller that must not be served from the cache.
        self.uncached = function
        self.options = options
        self.signature = signature
        self.identity = qualified(function)
        self._cache = cache
        #: whether it is a classmethod, and so bound to a class and not to an instance
        self.of_class = False
        self._codec: Codec[R] | None = None
        self._codec_lock = threading.Lock()
        _mark_as_coroutine_function(self)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the cached result, or call the function and keep its result."""
        call = self.call_of(*args, **kwargs)
        return await self._cache().reader().read(call, partial(self._load, *args, **kwargs), self.codec)

    @overload
    def __get__(self, instance: None, owner: type) -> "CachedFunction[P, R]": ...
    @overload
    def __get__(
        self: "CachedFunction[Concatenate[S, Q], R]", instance: S, owner: type | None = None
    ) -> "BoundCachedFunction[Q, R]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance, or to the class, as a method does."""
        if self.of_class:
            return BoundCachedFunction(self, type(instance) if owner is None else owner)
        return self if instance is None else BoundCachedFunction(self, instance)

    def key(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the entry's key in Redis for these arguments."""
        return self._cache().key_of(self.call_of(*args, **kwargs))

    async def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now and keep its result, whatever is cached. Joins no load in flight."""
        call = self.call_of(*args, **kwargs)
        return await self._cache().reader().refresh(call, partial(self._load, *args, **kwargs), self.codec)

    async def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Invalidate the entry for these arguments; raises InvalidationError when that is not acknowledged."""
        await self._cache().invalidate_call(self.call_of(*args, **kwargs))

    def call_of(self, /, *args: Any, **kwargs: Any) -> Call:
        """Bind arguments and name the entry. Raises TypeError as the function would, ArgumentError for a bad one."""
        bound = self.signature.bind(*args, **kwargs)
        value_of = dict(zip(self.signature.names, bound, strict=True)).__getitem__
        options = self.options
        if options.key is None:
            name = self.signature.entry_name(bound)
        else:
            name = self.signature.named_entry(options.key, bound)
        if callable(options.tags):
            tags = self._computed_tags(options.tags, bound)
        else:
            tags = tuple(template.render(value_of) for template in options.tags)
        return Call(self.identity, options.namespace, name, tags, options.ttl_ms)

    def _computed_tags(self, tags: Callable[..., Iterable[str]], bound: tuple[Any, ...]) -> tuple[str, ...]:
        found = tags(**self.signature.arguments(bound))
        if isinstance(found, str):
            raise ArgumentError(f"{self.identity}: tags returned the string {found!r} where a list of tags belongs")
        return tuple(found)

    @property
    def cache(self) -> "Cache":
        """The cache that a call made now would use."""
        return self._cache()

    @property
    def codec(self) -> Codec[R]:
        """How results become bytes. Made at decoration, or at the first call when a name was not defined before.

        Raises NameError for an annotation whose names are not there, ConfigurationError for one that cannot be kept.
        """
        if self._codec is None:
            with self._codec_lock:
                if self._codec is None:
                    self._codec = Codec(return_annotation(self.uncached), self.identity)
        return self._codec

    async def _load(self, /, *args: Any, **kwargs: Any) -> R:
        return await self.uncached(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<cached {self.identity}>"


class BoundCachedFunction(Generic[Q, R]):
    """A cached method of one instance, or of a class."""

    def __init__(self, function: CachedFunction[Any, R], instance: Any) -> None:
        update_wrapper(self, function)
        self._function = function
        self._instance = instance
        _mark_as_coroutine_function(self)
        self.uncached: Callable[Q, Awaitable[R]] = partial(function.uncached, instance)

    async def __call__(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R:
        """Return the cached result, or call the method and keep its result."""
        return await self._function(self._instance, *args, **kwargs)

    def key(self, /, *args: Q.args, **kwargs: Q.kwargs) -> str:
        """See `CachedFunction.key`."""
        return self._function.key(self._instance, *args, **kwargs)

    async def refresh(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R:
        """See `CachedFunction.refresh`."""
        return await self._function.refresh(self._instance, *args, **kwargs)

    async def invalidate(self, /, *args: Q.args, **kwargs: Q.kwargs) -> None:
        """See `CachedFunction.invalidate`."""
        await self._function.invalidate(self._instance, *args, **kwargs)


class Decorator(Protocol):
    """What `cached(…)` returns: takes an ``async def`` function, or a classmethod of one."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> CachedFunction[P, R]: ...
    @overload
    def __call__(self, function: "classmethod[Any, P, Coroutine[Any, Any, R]]", /) -> BoundCachedFunction[P, R]: ...


def decorate(
    cache: "Callable[[], Cache]", namespace: str, ttl: Seconds | None, key: str | None, tags: Tags
) -> Decorator:
    """Return the decorator; `cache` is asked for the cache at each call, so a later `configure` counts."""

    def decorator(function: Any) -> Any:
        of_class = isinstance(function, classmethod)
        if isinstance(function, classmethod):
            function = function.__func__
        where = _check_function(function)
        signature = Signature(function)
        if signature.names[:1] == ("cls",) and not of_class:
            raise ConfigurationError(f"{where}: put @cached above @classmethod, not below it")
        key_template = None if key is None else parse(key, signature.names, f"{where}, key")
        if key_template is not None and not key_template.names and signature.in_key:
            raise ConfigurationError(f"{where}: key={key!r} names no argument, so all calls would share one entry")
        options = Options(
            check_namespace(namespace),
            None if ttl is None else milliseconds(ttl, where),
            key_template,
            _check_tags(tags, signature, where),
        )
        cached_function: CachedFunction[Any, Any] = CachedFunction(function, options, signature, cache)
        cached_function.of_class = of_class
        # A bad annotation is best found now; one that names what is defined further down is found at the first call.
        with suppress(NameError):
            cached_function.codec  # noqa: B018
        return cached_function

    return decorator


def milliseconds(seconds: Seconds, where: str) -> int:
    """Return a positive duration in whole milliseconds; raises ConfigurationError for any other."""
    value = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if not 0 < value < 10**10:
        raise ConfigurationError(f"{where}: ttl must be a positive number of seconds, not {seconds!r}")
    return max(1, round(value * 1000))


def _check_function(function: Callable[..., Any]) -> str:
    if isinstance(function, staticmethod):
        raise ConfigurationError(f"{qualified(function.__func__)}: put @staticmethod above @cached, not below it")
    where = qualified(function)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{where}: a generator's values cannot be cached; return a list")
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{where}: @cached takes async def functions; this one is a plain def")
    return where


def _check_tags(tags: Tags, signature: Signature, where: str) -> tuple[Template, ...] | Callable[..., Iterable[str]]:
    if callable(tags):
        return tags
    if isinstance(tags, str):
        raise ConfigurationError(f"{where}: tags is the string {tags!r}; write tags=[{tags!r}]")
    if len(tags) > MAX_TAGS:
        raise ConfigurationError(f"{where}: {len(tags)} tags; at most {MAX_TAGS} are possible")
    return tuple(parse(tag, signature.names, f"{where}, tags") for tag in tags)


def return_annotation(function: Callable[..., Any]) -> Any:
    """Return what a function promises to return, or UNTYPED. Raises NameError for a name that is not defined (yet).

    Only that: the other annotations may name what exists for the type checker alone.
    """
    annotation = getattr(function, "__annotations__", {}).get("return", UNTYPED)
    if annotation is UNTYPED:
        return UNTYPED
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    stub = SimpleNamespace(__annotations__={"return": annotation})
    return get_type_hints(stub, namespace, include_extras=True)["return"]


def _mark_as_coroutine_function(thing: Any) -> None:
    """Set what asyncio, inspect and web frameworks look at to see that calling this gives a coroutine."""
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(thing)
    else:
        thing._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
