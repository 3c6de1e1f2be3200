"""The decorator: a function whose results are kept until they expire or are invalidated."""

import inspect
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypedDict, TypeVar, overload

from .described import Described, Options
from .errors import ConfigurationError
from .functions import (
    BoundCachedFunction,
    BoundCachedSyncFunction,
    CachedFunction,
    CachedSyncFunction,
)
from .keys import check_namespace, qualified
from .layout import MAX_TAGS
from .policy import Seconds, TtlWord, policy
from .signature import Signature
from .templates import Template, parse

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

if TYPE_CHECKING:
    from .cache import Cache

    class _CachedOfClass(CachedFunction[Concatenate[type[S], Q], R], Generic[S, Q, R]):
        """A `CachedFunction` whose first parameter is a class: inside a class, type checkers see classmethods so."""

        def __get__(self, instance: S | None, owner: type[S]) -> BoundCachedFunction[Q, R]: ...  # type: ignore[override]

    class _CachedSyncOfClass(CachedSyncFunction[Concatenate[type[S], Q], R], Generic[S, Q, R]):
        """The same for a plain function."""

        def __get__(self, instance: S | None, owner: type[S]) -> BoundCachedSyncFunction[Q, R]: ...  # type: ignore[override]


#: Templates over the arguments, or a callable that is given every argument by name.
Tags = Sequence[str] | Callable[..., Iterable[str]]


class Decorator(Protocol):
    """What `cached(…)` returns: takes an ``async def`` or a plain function, or a classmethod of one.

    A first parameter that is a class is a classmethod's, as type checkers see it inside the class.
    """

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits: a coroutine function is also a function
        self, function: Callable[Concatenate[type[S], Q], Coroutine[Any, Any, R]], /
    ) -> "_CachedOfClass[S, Q, R]": ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CachedFunction[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: "classmethod[Any, P, Coroutine[Any, Any, R]]", /
    ) -> BoundCachedFunction[P, R]: ...
    @overload
    def __call__(self, function: "classmethod[Any, P, R]", /) -> BoundCachedSyncFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[type[S], Q], R], /) -> "_CachedSyncOfClass[S, Q, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> CachedSyncFunction[P, R]: ...


class ReadOptions(TypedDict, total=False):
    """How long a value lives and when a stale one is served; seconds are numbers or timedelta."""

    #: seconds, or "short", "default", "long" from the settings; None: the namespace's in the settings, or the default
    ttl: Seconds | TtlWord | None
    #: callable of the result: tags that are known only after the load
    result_tags: Callable[[Any], Iterable[str]] | None
    #: fraction: the ttl becomes ttl ± jitter
    jitter: float
    #: how eagerly a value is loaded again before it expires (XFetch's beta; 1 is a good one), in the background; 0: off
    early: float
    #: seconds an expired value may be served while one refresh runs
    stale_while_revalidate: Seconds
    #: seconds an expired or invalidated value may be served when the load raises
    stale_if_error: Seconds
    #: seconds an invalidated value may be served while one refresh runs; 0: never
    max_staleness: Seconds
    #: seconds a None is kept; None: as long as any other value
    negative_ttl: Seconds | None
    #: seconds a value is kept in this process, coherent by the invalidation log; 0: not at all
    local_ttl: Seconds
    #: hand the same object to every caller of this process, even one that could be changed; for those who do not
    local_shared: bool
    #: seconds to wait for the load before a permitted stale value is served; the load goes on; None: no limit
    timeout: Seconds | None
    #: callable that is given every argument by name: false bypasses the cache
    when: Callable[..., object] | None


class CachedOptions(ReadOptions, total=False):
    """What `cached` takes."""

    #: the group that `invalidate_namespace` names; "default"
    namespace: str
    #: template over the arguments, ``"{user_id}:profile"``; None: a hash of all bound arguments
    key: str | None
    #: templates over the arguments, or a callable that is given every argument by name and returns tags
    tags: Tags


def decorator_of(cache: "Callable[[], Cache]", bare: object, options: CachedOptions) -> Decorator:
    """Return what `cached(…)` returns. Raises ConfigurationError for an option unknown and for a forgotten ``()``."""
    if bare is not None:
        function = getattr(bare, "__func__", bare)
        if not hasattr(function, "__qualname__"):
            raise ConfigurationError(f"cached() takes options by name, as in namespace='…', not {bare!r:.100}")
        raise ConfigurationError(f"{qualified(function)}: write @cached() with parentheses; options go into them")
    check_options(options, CachedOptions.__optional_keys__, "cached()")
    return decorate(cache, **options)


def check_options(given: Mapping[str, object], known: Collection[str], what: str) -> None:
    """Raise ConfigurationError for an option that is none."""
    for option in given:
        if option not in known:
            there_is = ", ".join(sorted(known))
            raise ConfigurationError(f"{what} got an unexpected option {option!r}; there is: {there_is}")


def decorate(
    cache: "Callable[[], Cache]",
    *,
    namespace: str = "default",
    ttl: Seconds | TtlWord | None = None,
    key: str | None = None,
    tags: Tags = (),
    result_tags: Callable[[Any], Iterable[str]] | None = None,
    jitter: float = 0.0,
    early: float = 0.0,
    stale_while_revalidate: Seconds = 0,
    stale_if_error: Seconds = 0,
    max_staleness: Seconds = 0,
    negative_ttl: Seconds | None = None,
    local_ttl: Seconds = 0,
    local_shared: bool = False,
    timeout: Seconds | None = None,
    when: Callable[..., object] | None = None,
) -> Decorator:
    """Return the decorator; see `CachedOptions`.

    `cache` is asked for the cache at each call, so a later `configure` counts.
    """
    tags = held_tags(tags)

    def decorator(function: Any) -> Any:
        of_class = isinstance(function, classmethod)
        if isinstance(function, classmethod):
            function = function.__func__
        where = _check_function(function)
        signature = Signature(function)
        if signature.names[:1] == ("cls",) and not of_class:
            raise ConfigurationError(f"{where}: put @cached above @classmethod, not below it")
        if key is not None and not isinstance(key, str):
            raise ConfigurationError(f"{where}: key must be a template over the arguments, not {key!r}")
        key_template = None if key is None else parse(key, signature.names, f"{where}, key")
        if key_template is not None and not key_template.names and signature.in_key:
            raise ConfigurationError(f"{where}: key={key!r} names no argument, so all calls would share one entry")
        for option, given in (("result_tags", result_tags), ("when", when)):
            if given is not None:
                check_callable(given, option, where)
        try:
            check_namespace(namespace)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None
        checked = check_tags(tags, signature, where)
        made_policy = policy(
            where=where,
            ttl=ttl,
            jitter=jitter,
            early=early,
            stale_while_revalidate=stale_while_revalidate,
            stale_if_error=stale_if_error,
            max_staleness=max_staleness,
            negative_ttl=negative_ttl,
            local_ttl=local_ttl,
            local_shared=local_shared,
            timeout=timeout,
        )
        options = Options(namespace, key_template, checked, made_policy, result_tags, when)
        kind = CachedFunction if inspect.iscoroutinefunction(function) else CachedSyncFunction
        made: Any = kind(function, replace(options, of_class=of_class), signature, cache)
        try:
            made.codec  # noqa: B018  a bad annotation is best found now
        except ConfigurationError as error:
            if not isinstance(error.__cause__, NameError):  # a name that is defined further down: at the first call
                raise
        return made

    return decorator


def _check_function(function: Callable[..., Any]) -> str:
    if isinstance(function, staticmethod):
        raise ConfigurationError(f"{qualified(function.__func__)}: put @staticmethod above @cached, not below it")
    refuse_cached(function, getattr(function, "__qualname__", "cached()"))
    if not (inspect.isroutine(function) and hasattr(function, "__qualname__")):
        raise ConfigurationError(f"a {type(function).__qualname__} cannot be cached; wrap it in a def or async def")
    where = qualified(function)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"{where}: a generator's values cannot be cached; return a list")
    return where


def refuse_cached(function: Any, where: str) -> None:
    """Raise ConfigurationError for a function that is cached, also below other decorators."""
    layer = function
    while layer is not None:
        if isinstance(layer, Described | BoundCachedFunction | BoundCachedSyncFunction):
            raise ConfigurationError(f"{where}: it is cached already, and a hit calls nothing; take away one of them")
        layer = getattr(layer, "__wrapped__", None)


def check_callable(given: Any, option: str, where: str) -> None:
    """Raise ConfigurationError for what cannot be called, or would have to be awaited.

    A coroutine is always true, and has no tags.
    """
    if not callable(given):
        raise ConfigurationError(f"{where}: {option} must be callable, not {given!r}")
    ways = (given, type(given).__call__)
    if any(inspect.iscoroutinefunction(way) or inspect.isasyncgenfunction(way) for way in ways):
        raise ConfigurationError(f"{where}: {option} is an async function, and nobody awaits it; make it a plain def")


def held_tags(tags: T) -> T:
    """Return tags that can be gone through more than once: a generator would give them to the first function alone."""
    held: Any = tuple(tags) if isinstance(tags, Iterable) and not isinstance(tags, str) and not callable(tags) else tags
    return held  # type: ignore[no-any-return]


def check_given_tags(tags: Tags, where: str) -> None:
    """Raise ConfigurationError for tags that are neither a list of strings nor a callable."""
    if callable(tags):
        check_callable(tags, "tags", where)
        return
    if isinstance(tags, str):
        raise ConfigurationError(f"{where}: tags is the string {tags!r}; write tags=[{tags!r}]")
    if not isinstance(tags, Iterable):
        raise ConfigurationError(f"{where}: tags must be a list of templates or a callable, not {tags!r}")
    for tag in tags:
        if not isinstance(tag, str):
            raise ConfigurationError(f"{where}: a tag is a template over the arguments, not {tag!r}")


def check_tags(tags: Tags, signature: Signature, where: str) -> tuple[Template, ...] | Callable[..., Iterable[str]]:
    """Return tags as templates, or the callable that finds them; `where` names the function in errors."""
    check_given_tags(tags, where)
    if callable(tags):
        return tags
    if len(tags) > MAX_TAGS:
        raise ConfigurationError(f"{where}: {len(tags)} tags; at most {MAX_TAGS} are possible")
    return tuple(parse(tag, signature.names, f"{where}, tags") for tag in tags)
