"""Which entry is meant: a key, or a cached function with arguments as people type them."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from tidings.calls import from_json_value
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError
from tidings.keys import Keyspace
from tidings.policy import Policy


@dataclass(frozen=True, slots=True)
class Subject:
    """The entry that is asked about, and what is known without it: that of a key is nothing, that of a call much."""

    namespace: str
    name: str
    tags: tuple[str, ...] = ()
    policy: Policy | None = None
    function: Described[Any, Any] | None = None
    #: whether the function's `when` says that this call is not cached
    bypassed: bool = False

    def retagged(self, tags: tuple[str, ...]) -> bool:
        """Say whether readers of the function look for other tags than these, which an entry was loaded under."""
        if self.function is None:
            return False
        own = tuple(dict.fromkeys(self.tags))
        results = tags[len(own) :]
        return tags[: len(own)] != own or (bool(results) and self.function.options.result_tags is None)


def by_key(keys: Keyspace, key: str) -> Subject:
    """Return what an entry's key names, with or without prefix and version. Raises ConfigurationError for no such."""
    for beginning in (keys.entries, "cache:"):
        namespace, colon, name = key.removeprefix(beginning).partition(":")
        if key.startswith(beginning) and colon and namespace and name:
            return Subject(namespace, name)
    raise ConfigurationError(f"{key!r} is neither MODULE:FUNCTION nor a key of an entry, {keys.entries}NAMESPACE:…")


def by_call(function: Described[Any, Any], arguments: Sequence[str]) -> tuple[Subject, str]:
    """Return the entry of a call, and the call as people write it. Raises what `bound` raises.

    A method is asked about without its instance, which is no part of most keys.
    """
    args, kwargs = bound(function, arguments)
    if function.signature.is_method:
        args.insert(0, None)
    try:
        call = function.call_of(*args, **kwargs)
        values = function.signature.arguments(function.signature.bind(*args, **kwargs))
        bypassed = not function.applies(tuple(args), kwargs)
    except Exception as error:
        cure = "; of a method whose key or tags are made of its instance, ask by KEY" if args[:1] == [None] else ""
        problem = str(error) if isinstance(error, TypeError | ArgumentError) else repr(error)
        raise ConfigurationError(f"{function.identity}: {problem}{cure}") from error
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    subject = Subject(call.namespace, call.name, call.tags, call.policy, function, bypassed)
    return subject, f"{function.identity}({shown})"


def bound(function: Described[Any, Any], arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call as people type them, without a method's ``self``.

    Each is JSON, or a text as it stands, and becomes what the parameter's annotation says; ``name=value`` is given by
    name. Raises ConfigurationError for one too many, and ArgumentError for one that does not fit.
    """
    parameters = list(inspect.signature(function.uncached).parameters.values())[function.signature.is_method :]
    kinds = {parameter.name: parameter.kind for parameter in parameters}
    positional = [name for name, kind in kinds.items() if kind in _POSITIONAL]
    gathering = next((name for name, kind in kinds.items() if kind is Parameter.VAR_POSITIONAL), None)
    naming = next((name for name, kind in kinds.items() if kind is Parameter.VAR_KEYWORD), None)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if equals and kinds.get(name) in _NAMED:
            kwargs[name] = _argument(function, name, value)
        elif equals and naming is not None and name.isidentifier() and name not in kinds:
            kwargs |= _argument(function, naming, value, name)
        elif len(args) < len(positional):
            args.append(_argument(function, positional[len(args)], text))
        elif gathering is not None:
            args += _argument(function, gathering, text, 0)
        else:
            raise ConfigurationError(f"{function.identity}: {text!r} is one argument too many")
    return args, kwargs


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def _argument(function: Described[Any, Any], name: str, text: str, place: str | int | None = None) -> Any:
    """Return an argument as its parameter has it: what is JSON by its value, unless only the text itself fits.

    With a `place`, it is one of many that the parameter gathers: they come as it has them, with this one alone.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    try:
        return from_json_value(function, name, _at(place, value))
    except ArgumentError:
        if value is text:
            raise
        return from_json_value(function, name, _at(place, text))


def _at(place: str | int | None, value: Any) -> Any:
    return value if place is None else [value] if isinstance(place, int) else {place: value}
