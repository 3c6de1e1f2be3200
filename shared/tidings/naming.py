"""Entries that callers name themselves, for `Cache.get`, `set` and `get_or_set`: keys, tags and types. Pure."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar, get_args

from .cached import check_callable, held_tags
from .codec import UNTYPED, Codec
from .described import return_annotation
from .errors import ArgumentError, ConfigurationError, EncodeError
from .keys import check_namespace
from .policy import Seconds, TtlWord, policy
from .seen import NOTHING
from .targets import Call, Request, Target

T = TypeVar("T")

untyped: Codec[Any] = Codec(UNTYPED, "cache.set")


def named(key: str, namespace: str, ttl: Seconds | TtlWord | None = None, tags: Iterable[str] = ()) -> Call:
    """Return the call of an entry that its caller names. Raises ConfigurationError for a bad ttl or tags."""
    if isinstance(tags, str):
        raise ConfigurationError(f"{key}: tags is the string {tags!r}; write tags=[{tags!r}]")
    if not isinstance(tags, Iterable):
        raise ConfigurationError(f"{key}: tags must be a list of strings, not {tags!r:.100}")
    listed = tuple(tags)
    for tag in listed:
        if not isinstance(tag, str):
            raise ArgumentError(f"{key}: a tag is a string, not {tag!r:.100}")
    return Call("get_or_set", check_namespace(namespace), key, listed, policy(where=key, ttl=ttl))


def codec_of(func: Callable[..., Any], where: str) -> Codec[Any]:
    """Return how a function's results are kept, by its return annotation; without one, JSON types."""
    return _codec_for(return_annotation(func), where)


def _codec_for(annotation: Any, where: str) -> Codec[Any]:
    try:
        return _codec_made(annotation).naming(where)
    except TypeError:  # an annotation that cannot be hashed
        return Codec(annotation, where)


@lru_cache(maxsize=256)
def _codec_made(annotation: Any) -> Codec[Any]:
    return Codec(annotation, "get_or_set")


def name_of(func: Callable[..., Any]) -> str:
    """Return what errors call a function that somebody gave."""
    while isinstance(func, partial):
        func = func.func
    return str(getattr(func, "__qualname__", type(func).__qualname__))


def codec_of_values(func: Callable[..., Any]) -> Codec[Any]:
    """Return how the values of a function that returns a mapping are kept: ``-> dict[str, User]`` are Users."""
    arguments = get_args(return_annotation(func))
    annotation = arguments[1] if len(arguments) == 2 else UNTYPED  # noqa: PLR2004 keys and values
    return _codec_for(annotation, f"get_or_set_many({name_of(func)})")


@dataclass(frozen=True, slots=True)
class Many:
    """Distinct keys, in the order in which they were named; loads and steps know them by their index."""

    keys: list[str]

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Many":
        """Take keys. Raises ConfigurationError for one string: it would be taken letter by letter."""
        if isinstance(keys, str):
            raise ConfigurationError(f"keys is the string {keys!r}; write [{keys!r}]")
        return cls(list(dict.fromkeys(keys)))

    def requests(
        self,
        target: Callable[[Call], Target],
        func: Callable[..., Any],
        *,
        namespace: str,
        ttl: Seconds | TtlWord | None,
        tags: Iterable[str] | Callable[[str], Iterable[str]],
    ) -> list[Request]:
        """Return the request of each key; what is missing is loaded together, so none has a load of its own."""
        codec = codec_of_values(func)
        if callable(tags):
            check_callable(tags, "tags", f"get_or_set_many({name_of(func)})")
        given = held_tags(tags)
        calls = [named(key, namespace, ttl, given(key) if callable(given) else given) for key in self.keys]
        return [Request(target(call), None, codec) for call in calls]

    def indexed(self, loaded: Any, indices: Sequence[int], func: Callable[..., Any]) -> dict[int, Any]:
        """Return what the loader `func` gave for these indices; what it gave besides is not asked for.

        Raises EncodeError for what is no mapping of strings: ids that are numbers would be found under no key.
        """
        where = f"get_or_set_many({name_of(func)})"
        if not isinstance(loaded, Mapping):
            if inspect.iscoroutine(loaded):
                loaded.close()  # nobody will await it, which Python would say as well
            kind = type(loaded).__qualname__
            raise EncodeError(f"{where}: the loader returned a {kind}, not a mapping of keys to values")
        for key in loaded:
            if not isinstance(key, str):
                kind = type(key).__qualname__
                raise EncodeError(f"{where}: the loader returned a mapping with a key of type {kind}; keys are strings")
        return {index: loaded[self.keys[index]] for index in indices if self.keys[index] in loaded}

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return values by key, without those that are NOTHING."""
        return {key: value for key, value in zip(self.keys, values, strict=True) if value is not NOTHING}
