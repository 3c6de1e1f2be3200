"""Entries that callers name themselves, for `Cache.get`, `set` and `get_or_set`: keys, tags and types. Pure."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args

from .codec import UNTYPED, Codec
from .described import return_annotation
from .errors import ConfigurationError, EncodeError
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
    return Call("get_or_set", check_namespace(namespace), key, tuple(tags), policy(where=key, ttl=ttl))


def codec_of(func: Callable[..., Any]) -> Codec[Any]:
    """Return how a function's results are kept, by its return annotation; without one, JSON types."""
    annotation = return_annotation(func)
    try:
        return _codec_for(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return Codec(annotation, "get_or_set")


@lru_cache(maxsize=256)
def _codec_for(annotation: Any) -> Codec[Any]:
    return Codec(annotation, "get_or_set")


def codec_of_values(func: Callable[..., Any]) -> Codec[Any]:
    """Return how the values of a function that returns a mapping are kept: ``-> dict[str, User]`` are Users."""
    arguments = get_args(return_annotation(func))
    annotation = arguments[1] if len(arguments) == 2 else UNTYPED  # noqa: PLR2004 keys and values
    try:
        return _codec_for(annotation)
    except TypeError:
        return Codec(annotation, "get_or_set_many")


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
        given = tags if callable(tags) or isinstance(tags, str) else tuple(tags)
        calls = [named(key, namespace, ttl, given(key) if callable(given) else given) for key in self.keys]
        return [Request(target(call), None, codec) for call in calls]

    def indexed(self, loaded: Any, indices: Sequence[int]) -> dict[int, Any]:
        """Return what a loader gave for these indices; what it gave besides is not asked for.

        Raises EncodeError for what is no mapping.
        """
        if not isinstance(loaded, Mapping):
            if inspect.iscoroutine(loaded):
                loaded.close()  # nobody will await it, which Python would say as well
            kind = type(loaded).__qualname__
            raise EncodeError(f"get_or_set_many: the loader returned a {kind}, not a mapping of keys to values")
        return {index: loaded[self.keys[index]] for index in indices if self.keys[index] in loaded}

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return values by key, without those that are NOTHING."""
        return {key: value for key, value in zip(self.keys, values, strict=True) if value is not NOTHING}
