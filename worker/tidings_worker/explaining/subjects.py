"""Which entry is meant: a key, or a cached function with arguments as people type them."""

import inspect
import json
from collections.abc import Sequence
from typing import Any

from tidings.calls import from_json_value
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError
from tidings.keys import Keyspace

from tidings_worker.importing import imported

from .gathering import Subject


def by_key(keys: Keyspace, key: str) -> Subject:
    """Return what an entry's key names, with or without prefix and version. Raises ConfigurationError for no such."""
    start = keys.entry("", "-").removesuffix(":-")  # up to the word and its colon
    for beginning in (start, "cache:"):
        namespace, colon, name = key.removeprefix(beginning).partition(":")
        if key.startswith(beginning) and colon and namespace and name:
            return Subject(namespace, name)
    raise ConfigurationError(f"{key!r} is neither MODULE:FUNCTION nor a key of an entry, {start}NAMESPACE:…")


def function_named(target: str) -> Described[Any, Any]:
    """Import ``module:qualname``. Raises ConfigurationError for what is no cached function there."""
    module_name, colon, qualname = target.partition(":")
    if not colon or not module_name or not qualname:
        raise ConfigurationError(f"{target!r} is neither a key (cache:…) nor MODULE:FUNCTION")
    found: Any = imported(module_name)
    for name in qualname.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(f"{module_name} has no {qualname}")
        found = getattr(found, name)
    if not isinstance(found, Described):
        raise ConfigurationError(f"{target} is a {type(found).__name__}, not a function decorated with @cached")
    return found


def by_call(function: Described[Any, Any], arguments: Sequence[str]) -> tuple[Subject, str]:
    """Return the entry of a call, and the call as people write it. Raises what `bound` raises."""
    args, kwargs = bound(function, arguments)
    try:
        call = function.call_of(*args, **kwargs)
    except (TypeError, ArgumentError) as error:
        raise ConfigurationError(f"{function.identity}: {error}") from None
    values = function.signature.arguments(function.signature.bind(*args, **kwargs))
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return Subject(call.namespace, call.name, call.tags), f"{function.identity}({shown})"


def bound(function: Described[Any, Any], arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call as people type them.

    Each is JSON, or a text as it stands, and becomes what the parameter's annotation says; ``name=value`` is given by
    name. Raises ConfigurationError for one too many, and ArgumentError for one that does not fit.
    """
    names = [name for name, p in inspect.signature(function.uncached).parameters.items() if p.kind not in _GATHERING]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if equals and name in names:
            kwargs[name] = _argument(function, name, value)
        elif len(args) < len(names):
            args.append(_argument(function, names[len(args)], text))
        else:
            raise ConfigurationError(f"{function.identity}: {text!r} is one argument too many")
    return args, kwargs


_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _argument(function: Described[Any, Any], name: str, text: str) -> Any:
    """Return an argument as its parameter has it: what is JSON by its value, unless only the text itself fits."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    try:
        return from_json_value(function, name, value)
    except ArgumentError:
        if value is text:
            raise
        return from_json_value(function, name, text)
