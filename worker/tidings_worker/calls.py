"""A call of a cached function as text, and back: how warms travel in jobs. Pure but for the import.

Arguments are kept exactly, types and all, because the job must make the very key that readers make. What JSON with type
words cannot say (a model, a dataclass) is written and read by the parameter's annotation.
"""

import importlib
import inspect
import json
from functools import lru_cache
from types import GenericAlias
from typing import Any, get_type_hints

from tidings import CachedFunction
from tidings.codec import Codec
from tidings.errors import ArgumentError, ConfigurationError, DecodeError, EncodeError


def check_importable(function: Any) -> None:
    """Raise ConfigurationError unless a worker can import this very function by its name."""
    if not isinstance(function, CachedFunction):
        raise ConfigurationError(f"Warm({function!r}): only a function decorated with @cached can be warmed")
    identity = function.identity
    if function.signature.is_method:
        raise ConfigurationError(f"Warm({identity}): a method's instance cannot travel; warm a function that makes it")
    if "<locals>" in identity or "<lambda>" in identity:
        raise ConfigurationError(
            f"Warm({identity}): defined inside a function, so no worker can import it; move it out"
        )


@lru_cache(maxsize=1024)
def resolve(identity: str) -> CachedFunction[Any, Any]:
    """Import ``module:qualname``. Raises ConfigurationError when it is not there or not cached."""
    module_name, _, qualname = identity.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in qualname.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{identity} cannot be imported here: {error}; the worker must run where the service's modules are"
        ) from error
    check_importable(found)
    function: CachedFunction[Any, Any] = found
    return function


def encode_call(function: CachedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the bound arguments as JSON text. Raises ArgumentError when they do not bind or cannot travel."""
    try:
        arguments = function.signature.arguments(function.signature.bind(*args, **kwargs))
    except TypeError as error:
        raise ArgumentError(f"Warm({function.identity}): {error}") from None
    text = {}
    for name, value in arguments.items():
        try:
            text[name] = _encode(function, name, value)
        except (EncodeError, ConfigurationError) as error:
            raise ArgumentError(f"Warm({function.identity}): the argument {name!r} cannot travel: {error}") from None
    return json.dumps(text, separators=(",", ":"), sort_keys=True)


def decode_call(function: CachedFunction[Any, Any], text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` as they were encoded. Raises DecodeError for anything else."""
    try:
        arguments = {name: _decode(function, name, value) for name, value in json.loads(text).items()}
        return function.signature.spread(arguments)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DecodeError(f"{function.identity}: not arguments of this function: {error!r}") from error


_ANY = Codec[Any](Any, "an argument")


def _encode(function: CachedFunction[Any, Any], name: str, value: Any) -> list[str]:
    try:
        return ["any", _ANY.encode(value).decode()]
    except EncodeError:
        return ["annotated", _codec(function, name).encode(value).decode()]


def _decode(function: CachedFunction[Any, Any], name: str, value: list[str]) -> Any:
    how, text = value
    return (_ANY if how == "any" else _codec(function, name)).decode(text.encode())


@lru_cache(maxsize=1024)
def _codec(function: CachedFunction[Any, Any], name: str) -> Codec[Any]:
    annotation: Any = get_type_hints(function.uncached, include_extras=True).get(name, Any)
    kind = inspect.signature(function.uncached).parameters[name].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
        annotation = GenericAlias(tuple, (annotation, ...))
    elif kind is inspect.Parameter.VAR_KEYWORD:
        annotation = GenericAlias(dict, (str, annotation))
    return Codec(annotation, f"{function.identity}({name})")
