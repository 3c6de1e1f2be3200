"""Entity sugar: what is read and written by an id, with keys and tags that follow from its name.

    user = resource("user", "user_id")

    @user.cache_read(suffix="profile", ttl="long", jitter=0.1)
    async def get_profile(*, user_id: int) -> dict[str, str]:
        return await fetch(user_id)

    @user.cache_write(warm=[get_profile])
    async def update_profile(*, user_id: int, data: dict[str, str]) -> None:
        await save(user_id, data)

A read is `cached` in the namespace ``user``, under the key ``{user_id}:profile`` and the tag ``user:{user_id}``. A
write invalidates that tag after the function has returned and before its caller goes on. So decorate what commits: a
function inside a transaction returns before the commit, and a reader in between loads the old row once more, under the
new tokens, for as long as its ttl.

Warms run before the write returns, one after the other: they are given the write's own arguments (a session, ``self``),
which must be neither used by two at once nor used after their owner has gone. Whoever cannot wait for them publishes an
event and has a rule `Warm` in the worker.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack

from .cached import (
    Decorator,
    ReadOptions,
    Tags,
    check_given_tags,
    check_options,
    check_tags,
    decorate,
    held_tags,
    refuse_cached,
)
from .described import listed_tags
from .errors import ConfigurationError
from .functions import CachedFunction, CachedSyncFunction
from .keys import check_namespace, qualified
from .signature import Signature
from .templates import Template, parse
from .writes import VARIADIC, Write, warmed

if TYPE_CHECKING:
    from .cache import Cache

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, ..., Any] | staticmethod[..., Any]")

#: By which a write is known, also through decorators that wrap it.
_MARK = "__tidings_write__"


class WriteDecorator(Protocol):
    """What `cache_write(…)` returns: takes any function, and gives one of the same type."""

    def __call__(self, function: F, /) -> F:
        """Decorate a function."""


class Resource:
    """A kind of thing that is known by one argument, or by several; see `tidings.resource`."""

    def __init__(self, cache: "Callable[[], Cache]", name: str, *ids: str) -> None:
        self.name = check_namespace(name)
        self.ids = ids
        self._cache = cache
        self._said = f"resource({', '.join(map(repr, (name, *ids)))})"
        if not ids:
            raise ConfigurationError(f"{self._said}: name the argument that holds its id, as in resource('user', 'id')")
        for given in ids:
            if not str(given).isidentifier():
                raise ConfigurationError(f"{self._said}: {given!r} is no argument's name; write it without braces")
        #: the template of the tag that its reads have and its writes invalidate
        self.tag = ":".join((name, *(f"{{{given}}}" for given in ids)))

    def cache_read(
        self, *, suffix: str = "", tags: Tags = (), ignore: Collection[str] = (), **options: Unpack[ReadOptions]
    ) -> Decorator:
        """Keep what a function reads of this resource; `cached` with its namespace, its key and its tag.

        `suffix` ends the key and may be a template, ``"permissions:{role}"``. Every argument has to be in the key,
        because calls that differ in it would share one entry, or in `ignore`, which names those that do not change the
        result, such as a session. `tags` come on top. Raises ConfigurationError at decoration.
        """
        known = ReadOptions.__optional_keys__ | {"suffix", "tags", "ignore"}
        check_options(options, known, f"{self._said}.cache_read()")
        if not isinstance(suffix, str):
            raise ConfigurationError(f"{self._said}.cache_read: suffix must be the end of a key, not {suffix!r}")
        tags = held_tags(tags)

        def decorator(function: Any) -> Any:
            where, signature = self._check(getattr(function, "__func__", function), "cache_read", tags)
            key = ":".join((*(f"{{{given}}}" for given in self.ids), *([suffix] if suffix else [])))
            _check_key(parse(key, signature.names, f"{where}, suffix"), signature, ignore, where)
            return decorate(
                self._cache, namespace=self.name, key=key, tags=self._with_own(tags, signature, where), **options
            )(function)

        return decorator

    def cache_write(
        self, *, tags: Tags = (), warm: Sequence[CachedFunction[..., Any] | CachedSyncFunction[..., Any]] = ()
    ) -> WriteDecorator:
        """Invalidate this resource, and `tags`, whenever the function has written: before its caller goes on.

        A write that raises invalidates nothing. One that is cancelled may have been committed: it invalidates, and ends
        as cancelled then, `operation_timeout` later at most. A call whose tags cannot be rendered raises ArgumentError
        and writes nothing. When Redis does not acknowledge, WriteNotInvalidatedError has what was returned; do not
        retry by it, as the write would be done twice: repeat the invalidation. A plain function blocks its thread.

        Then the cached functions in `warm` are loaded again, unless somebody has done so, with the arguments that they
        have in common with the write by name, and their defaults. A warm that fails is logged and counted; the write
        does not fail. Raises ConfigurationError at decoration, also for a `warm` that needs an argument more.
        """
        tags, warm = held_tags(tags), tuple(warm)

        def decorator(function: Any) -> Any:
            if isinstance(function, classmethod | staticmethod):
                return type(function)(decorator(function.__func__))
            where, signature = self._check(function, "cache_write", tags)
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise ConfigurationError(f"{where}: a generator has not written when it is called; use a function")
            blocking = not inspect.iscoroutinefunction(function)
            warms = tuple(warmed(reader, function, where, blocking=blocking) for reader in warm)
            checked = check_tags(self._with_own(tags, signature, where), signature, where)
            write = Write(where, signature, checked, warms, self._cache)
            made = write.for_threads(function) if blocking else write.for_a_loop(function)
            setattr(made, _MARK, True)
            return made

        return decorator

    def _check(self, function: Any, decorator: str, tags: Tags) -> tuple[str, Signature]:
        """Return the function's name and signature if it can be a read or a write of this resource."""
        if not callable(function) or not hasattr(function, "__qualname__"):
            raise ConfigurationError(f"{self._said}.{decorator} decorates a function, not {function!r}")
        where, layer = qualified(function), function
        while layer is not None:
            if getattr(layer, _MARK, False):
                cure = "put its tags into one, as tags=[…]" if decorator == "cache_write" else "take away one of them"
                raise ConfigurationError(f"{where}: it has a cache_write already; {cure}")
            layer = getattr(layer, "__wrapped__", None)
        refuse_cached(function, where)
        signature = Signature(function)
        for given in self.ids:
            parameter = inspect.signature(function).parameters.get(given)
            if parameter is None or parameter.kind in VARIADIC:
                raise ConfigurationError(
                    f"{where}: it has no argument {given!r}, by which {self._said} goes; add it, or name another there"
                )
        check_given_tags(tags, where)
        if not callable(tags):
            _check_literals(tags, signature, where)
        return where, signature

    def _with_own(self, tags: Tags, signature: Signature, where: str) -> Tags:
        """Return what `cached` takes for the resource's tag and these."""
        if not callable(tags):
            return (self.tag, *tags)
        own, others = parse(self.tag, signature.names, where), tags
        return lambda **arguments: (own.render(arguments.__getitem__), *listed_tags("tags", others(**arguments), where))


def _check_literals(tags: Iterable[str], signature: Signature, where: str) -> None:
    """Raise ConfigurationError for a tag such as ``role:role``, in which an argument's name has lost its braces."""
    for tag in tags:
        first, *rest = tag.split(":")
        if any(word in signature.names for word in rest):
            meant = ":".join([first, *(f"{{{word}}}" if word in signature.names else word for word in rest)])
            raise ConfigurationError(f"{where}: the tag {tag!r} is the same for all calls; write {meant!r}")


def _check_key(key: Template, signature: Signature, ignore: Collection[str], where: str) -> None:
    """Raise ConfigurationError unless each argument is in the key or ignored, for calls that differ in it would mix."""
    if isinstance(ignore, str):
        raise ConfigurationError(f"{where}: ignore is the string {ignore!r}; write ignore=[{ignore!r}]")
    for name in ignore:
        if name not in signature.in_key or name in key.names:
            raise ConfigurationError(f"{where}: ignore={name!r} is no argument that the key leaves out")
    for name in signature.in_key:
        if name not in key.names and name not in ignore:
            raise ConfigurationError(
                f"{where}: calls that differ in {name!r} would share one entry; put it into the key, as in "
                f"suffix='…:{{{name}}}', or write ignore=[{name!r}] if it does not change the result"
            )
