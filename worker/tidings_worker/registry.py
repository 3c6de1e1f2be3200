"""Cached functions that a process has: which there are, how their keys look, and which of them could share an entry.

A function is seen by being alive, wherever it is kept: in a module, in a class, in the closure of a factory. One that a
later definition of the same name has replaced is gone, and can do no harm. What is made only when something is called
(a factory that nobody has called at import) does not exist yet, and entries that callers name themselves, for
`get_or_set`, belong to no function.
"""

import gc
import inspect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

from tidings.described import Described
from tidings.functions import CachedFunction
from tidings.policy import Policy

from .places import Place

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Registration:
    """What there is to know of one cached function without calling it."""

    namespace: str
    function: str
    #: of its key, after the prefix and version: ``cache:users:get_user:{user_id}:profile:{16 hex}``
    key: str
    #: templates; a callable is written as ``callable tags_of``
    tags: tuple[str, ...]
    #: seconds; a word of the settings, or "default"
    ttl: float | str
    #: those that are not what they are by default, in the words and units of `cached`
    options: dict[str, Any]
    is_async: bool
    place: Place


@dataclass(frozen=True, slots=True)
class Collision:
    """Functions whose calls with equal arguments would share one entry."""

    key: str
    functions: tuple[Registration, ...]


def alive(kind: type[T]) -> list[T]:
    """Return every object of a class and its subclasses that this process still uses, in no order."""
    gc.collect()  # what only a cycle keeps is used by nobody
    return [found for found in gc.get_objects() if issubclass(type(found), kind)]


def cached_functions(modules: Iterable[str]) -> list[Described[Any, Any]]:
    """Return the cached functions that these modules define, by file and line."""
    wanted = frozenset(modules)
    functions = [function for function in alive(Described) if _module(function) in wanted]
    return sorted(functions, key=lambda function: (place_of(function), function.identity))


def place_of(function: Described[Any, Any]) -> Place:
    """Return where a cached function is defined: the line of its first decorator."""
    plain = inspect.unwrap(function.uncached)
    code = plain.__code__ if isinstance(plain, FunctionType) else None
    return Place("?", 0) if code is None else Place(code.co_filename, code.co_firstlineno)


def registration_of(function: Described[Any, Any]) -> Registration:
    """Describe one cached function."""
    options, policy = function.options, function.options.policy
    middle = "" if options.key is None else f"{options.key.text}:"
    tags = (f"callable {_name(options.tags)}",) if callable(options.tags) else tuple(t.text for t in options.tags)
    return Registration(
        namespace=options.namespace,
        function=function.identity,
        key=f"cache:{options.namespace}:{function.signature.function_word}:{middle}{{16 hex}}",
        tags=tags,
        ttl=policy.ttl_word or "default" if policy.ttl_ms is None else policy.ttl_ms / 1000,
        options=_options(policy) | _callables(function),
        is_async=isinstance(function, CachedFunction),
        place=place_of(function),
    )


def collisions(functions: Iterable[Described[Any, Any]]) -> list[Collision]:
    """Return which functions could meet in one entry.

    An entry's name is hashed from the function's module and qualified name, its key's template if it has one, and the
    arguments; so two of them meet when namespace, names and template are the same: two closures of one factory, or a
    function that was decorated twice.
    """
    same: defaultdict[tuple[str, str, str | None], list[Described[Any, Any]]] = defaultdict(list)
    for function in functions:
        options = function.options
        template = None if options.key is None else options.key.text
        same[options.namespace, function.signature.identity, template].append(function)
    several = (tuple(map(registration_of, group)) for group in same.values() if len(group) > 1)
    return [Collision(group[0].key, group) for group in several]


def shown_path(name: str) -> str:
    """Return a file's name as it is from the current folder, if it is below it."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else name


_MILLISECONDS = {
    "swr_ms": "stale_while_revalidate",
    "stale_if_error_ms": "stale_if_error",
    "max_staleness_ms": "max_staleness",
    "negative_ttl_ms": "negative_ttl",
    "local_ttl_ms": "local_ttl",
}
_AS_THEY_ARE = ("jitter", "early", "local_shared", "timeout")


def _options(policy: Policy) -> dict[str, Any]:
    """Return the options that say something, seconds as seconds."""
    default = Policy()
    plain = {name: getattr(policy, name) for name in _AS_THEY_ARE if getattr(policy, name) != getattr(default, name)}
    seconds = {
        word: getattr(policy, name) / 1000
        for name, word in _MILLISECONDS.items()
        if getattr(policy, name) != getattr(default, name)
    }
    return plain | seconds


def _callables(function: Described[Any, Any]) -> dict[str, str]:
    given = {"result_tags": function.options.result_tags, "when": function.options.when}
    return {name: _name(value) for name, value in given.items() if value is not None}


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _module(function: Described[Any, Any]) -> str:
    return str(getattr(function, "__module__", ""))
