"""A call of a cached function as text, and back: how a call gets from who reads it to who warms it. Pure.

Arguments are kept exactly, types and all, because a warm must make the very key that readers make. What JSON with type
words cannot say (a model, a dataclass) is written and read by the parameter's annotation.
"""

import inspect
import json
from functools import lru_cache
from types import GenericAlias, SimpleNamespace
from typing import Any, get_type_hints

from pydantic import ValidationError

from .codec import JSON, Codec
from .described import Described
from .errors import ArgumentError, ConfigurationError, DecodeError, EncodeError, TidingsError

#: Characters of a call's text: a longer one is neither kept with its result nor noted as read.
LONGEST_CALL = 1000


def why_not_importable(function: Described[Any, Any]) -> str | None:
    """Return why no other process can import this function by its name; None: it can."""
    if function.signature.is_method:
        return "a method's instance cannot travel; warm a function that makes it"
    if "<locals>" in function.identity or "<lambda>" in function.identity:
        return "defined inside a function, so no worker can import it; move it out"
    return None


def encode_call(function: Described[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the bound arguments as JSON text. Raises ArgumentError when they do not bind or cannot travel."""
    try:
        arguments = function.signature.arguments(function.signature.bind(*args, **kwargs))
    except TypeError as error:
        raise ArgumentError(f"Warm({function.identity}): {error}") from None
    text = {}
    for name, value in arguments.items():
        try:
            text[name] = _encode(function, name, value)
        except (EncodeError, ArgumentError, ConfigurationError) as error:
            raise ArgumentError(f"Warm({function.identity}): the argument {name!r} cannot travel: {error}") from None
    return json.dumps(text, separators=(",", ":"), sort_keys=True)


def call_text(function: Described[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return a call as one line, which `split_call` takes apart; None for one that cannot travel, or is too long.

    Raises what classes of the arguments' own raise when they are made into text.
    """
    if why_not_importable(function) is not None or any(map(_is_too_long, (*args, *kwargs.values()))):
        return None
    try:
        text = f"{function.identity} {encode_call(function, args, kwargs)}"
    except TidingsError:
        return None
    return text if len(text) <= LONGEST_CALL else None


def _is_too_long(argument: Any) -> bool:
    """Say whether an argument need not be made into text to see that its call's is too long: that can take long."""
    return isinstance(argument, str | bytes | list | tuple | dict | set | frozenset) and len(argument) > LONGEST_CALL


def split_call(text: str) -> tuple[str, str]:
    """Return the function's identity and the arguments' text. Raises DecodeError for what is no call's."""
    identity, space, arguments = text.partition(" ")
    if not space:
        raise DecodeError("a call is a function's name and its arguments")
    return identity, arguments


def decode_call(function: Described[Any, Any], text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` as they were encoded. Raises DecodeError for anything else."""
    try:
        arguments = {name: _decode(function, name, value) for name, value in json.loads(text).items()}
        return function.signature.spread(arguments)
    except (ValueError, KeyError, AttributeError, TypeError, DecodeError) as error:
        raise DecodeError(f"{function.identity}: not arguments of this function: {error!r}") from error


_ANY = Codec[Any](Any, "an argument")


def _encode(function: Described[Any, Any], name: str, value: Any) -> list[str]:
    try:
        return ["any", _ANY.encode(value).decode()]
    except EncodeError:
        return ["annotated", _codec(function, name).encode(value).decode()]


def _decode(function: Described[Any, Any], name: str, value: list[str]) -> Any:
    how, text = value
    return (_ANY if how == "any" else _codec(function, name)).decode(text.encode())


def from_json_value(function: Described[Any, Any], name: str, value: Any) -> Any:
    """Return a JSON value as the function's parameter has it: a date where the annotation says date.

    Raises ArgumentError when it does not fit.
    """
    try:
        return _codec(function, name).decode(JSON + json.dumps(value).encode())
    except DecodeError as error:
        raise ArgumentError(f"{function.identity}: the argument {name!r} does not fit: {_problem(error)}") from None


def _problem(error: DecodeError) -> str:
    """Say what does not fit, without the value: arguments can be personal."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(cause)
    found = cause.errors(include_input=False, include_context=False, include_url=False)
    return "; ".join(str(problem["msg"]) for problem in found)


@lru_cache(maxsize=1024)
def _codec(function: Described[Any, Any], name: str) -> Codec[Any]:
    annotation = _annotation(function, name)
    kind = inspect.signature(function.uncached).parameters[name].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
        annotation = GenericAlias(tuple, (annotation, ...))
    elif kind is inspect.Parameter.VAR_KEYWORD:
        annotation = GenericAlias(dict, (str, annotation))
    return Codec(annotation, f"{function.identity}({name})")


def _annotation(function: Described[Any, Any], name: str) -> Any:
    """Return one parameter's annotation; the others may name what exists for the type checker alone."""
    plain = inspect.unwrap(function.uncached)
    annotation = getattr(plain, "__annotations__", {}).get(name, Any)
    stub = SimpleNamespace(__annotations__={name: annotation})
    try:
        return get_type_hints(stub, getattr(plain, "__globals__", {}), include_extras=True)[name]
    except NameError as error:
        raise ArgumentError(
            f"{function.identity}: the annotation of {name!r}: {error}; import it, and not under TYPE_CHECKING alone"
        ) from None
