"""Which function a text names: only one of a module that the worker has loaded with its rules.

A job imports nothing: whoever can write to Redis must not be able to run a module's code here. How a call's arguments
become text and come back is `tidings.calls`.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any

from tidings.calls import decode_call, encode_call, from_json_value, why_not_importable
from tidings.described import Described
from tidings.errors import ConfigurationError
from tidings.functions import CachedSyncFunction

__all__ = [
    "NotLoadedError",
    "check_importable",
    "check_same",
    "decode_call",
    "encode_call",
    "from_json_value",
    "load_of",
    "resolve",
]


def check_importable(function: Any) -> None:
    """Raise ConfigurationError unless a worker can import this very function by its name."""
    if not isinstance(function, Described):
        raise ConfigurationError(f"Warm({function!r}): only a function decorated with @cached can be warmed")
    if (reason := why_not_importable(function)) is not None:
        raise ConfigurationError(f"Warm({function.identity}): {reason}")


class NotLoadedError(ConfigurationError):
    """A job names a function that this worker has not loaded; one of another version may have it."""


@lru_cache(maxsize=1024)
def resolve(identity: str) -> Described[Any, Any]:
    """Return the function ``module:qualname`` of a loaded module.

    Raises NotLoadedError when it is not there, and ConfigurationError when it is and cannot be warmed.
    """
    module_name, _, qualname = identity.partition(":")
    found: Any = sys.modules.get(module_name)
    if found is None:
        raise NotLoadedError(f"{identity!r}: this worker has not loaded its module; import it in the rules module")
    try:
        for name in qualname.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise NotLoadedError(f"{identity!r}: {error}; this worker must run the version that has it") from error
    if not isinstance(found, Described):
        raise ConfigurationError(f"{identity}: a {type(found).__name__} there, not a function decorated with @cached")
    check_importable(found)
    return found


def load_of(
    function: Described[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Awaitable[Any]]:
    """Return what makes a call past the cache on an event loop: a plain function runs in a thread."""
    load = partial(function.uncached, *args, **kwargs)
    return partial(asyncio.to_thread, load) if isinstance(function, CachedSyncFunction) else load


def check_same(function: Any) -> None:
    """Raise ConfigurationError unless a job that names this function gets this very function."""
    check_importable(function)
    if resolve(function.identity) is not function:
        raise ConfigurationError(
            f"Warm({function.identity}): another function has that name; give each cached function its own"
        )
