"""A function's parameters: how a call is bound, and what its entry is called. Pure."""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any
from uuid import UUID

from .errors import ArgumentError
from .keys import canonical_json, digest, qualified
from .templates import Template

#: Characters or bytes of one argument that a memo keeps: it holds thousands of calls.
_LONGEST_REMEMBERED = 256

_EXACT = frozenset((str, int, bool, bytes, date, UUID, type(None)))


class Signature:
    """A function's parameters, compiled to bind any call to one tuple of values in declaration order.

    Positional, keyword and defaulted calls give the same tuple. A first parameter named ``self`` or ``cls`` is bound
    but left out of the key. Compiling a function of the same signature makes binding 25 times faster than
    `inspect.Signature.bind`, and a wrong call raises the TypeError that the function itself would raise.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        self.names = tuple(p.name for p in parameters)
        self.is_method = bool(parameters) and parameters[0].name in {"self", "cls"}
        self.bind = _compile_binder(function.__name__, parameters, self.names)
        #: Like `bind`, but gives what a memo can go by, without ``self``: the values, and then their classes, because
        #: 1, 1.0 and True are equal. None where arguments are gathered: what is inside would not be told apart.
        self.identify: Callable[..., tuple[Any, ...]] | None = None
        gathering = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        if not any(parameter.kind in gathering for parameter in parameters):
            own = self.names[1:] if self.is_method else self.names
            wanted = (*own, *(f"{name}.__class__" for name in own))
            self.identify = _compile_binder(function.__name__, parameters, wanted)
        self.in_key = self.names[1:] if self.is_method else self.names
        self._parameters = parameters
        self.identity = qualified(function)
        local_free = re.sub(r".*<locals>\.", "", function.__qualname__)
        self.function_word = re.sub(r"[^A-Za-z0-9_.]", "_", local_free)

    def arguments(self, bound: tuple[Any, ...]) -> dict[str, Any]:
        """Return the bound values by name, without ``self``; ``**kwargs`` stay one mapping under their name."""
        return {name: value for name, value in zip(self.names, bound, strict=True) if name in self.in_key}

    def entry_name(self, bound: tuple[Any, ...]) -> str:
        """Return ``{function}:{16 hex of sha256 over module, qualname and canonical arguments}``.

        Raises ArgumentError for an argument without a canonical form.
        """
        values = bound[1:] if self.is_method else bound
        try:
            canonical = canonical_json(values)
        except ArgumentError as error:
            raise ArgumentError(f"{self.identity}: {self._blame(values)}: {error}") from None
        return f"{self.function_word}:{digest(self.identity, canonical)}"

    def named_entry(self, template: Template, bound: tuple[Any, ...]) -> str:
        """Return ``{function}:{rendered}:{16 hex}``: readable, and still a key that no other call has.

        The text alone would not do: two functions of one name, or ``{a}:{b}`` of other a and b, would share an entry.
        Raises ArgumentError for a value without a stable text.
        """
        value_of = dict(zip(self.names, bound, strict=True)).__getitem__
        texts = template.texts(value_of)
        canonical = json.dumps([template.text, *texts], separators=(",", ":"))
        return f"{self.function_word}:{template.render(value_of)}:{digest(self.identity, canonical)}"

    def spread(self, arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return ``(args, kwargs)`` that call the function with these arguments: the inverse of `arguments`."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self._parameters[1 if self.is_method else 0 :]:
            value = arguments[parameter.name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(value)
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def _blame(self, values: tuple[Any, ...]) -> str:
        for name, value in zip(self.in_key, values, strict=True):
            try:
                canonical_json((value,))
            except ArgumentError:
                return f"the argument {name!r}"
        return "an argument"


def memorable(identity: tuple[Any, ...]) -> bool:
    """Say whether equal identities (see `Signature.identify`) are equal arguments to every digit, and small.

    Not so for floats (0.0 and -0.0), for times (two moments of an autumn night), nor for containers, models and
    anything with an equality of its own; nor for long texts, which a memo would keep by the thousand.
    """
    half = len(identity) // 2
    return all(kind in _EXACT for kind in identity[half:]) and not any(
        isinstance(value, str | bytes) and len(value) > _LONGEST_REMEMBERED for value in identity[:half]
    )


def _compile_binder(
    name: str, parameters: list[inspect.Parameter], wanted: tuple[str, ...]
) -> Callable[..., tuple[Any, ...]]:
    """Return a function of the same signature that returns a tuple of these expressions over its parameters."""
    scope: dict[str, Any] = {}
    pieces: list[str] = []
    for position, parameter in enumerate(parameters):
        before = parameters[position - 1] if position else None
        if before and before.kind is parameter.POSITIONAL_ONLY and parameter.kind is not parameter.POSITIONAL_ONLY:
            pieces.append("/")
        starts_keywords = before is None or before.kind not in {
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        }
        if parameter.kind is parameter.KEYWORD_ONLY and starts_keywords:
            pieces.append("*")
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
        default = ""
        if parameter.default is not parameter.empty:
            scope[f"_default_{position}"] = parameter.default
            default = f"=_default_{position}"
        pieces.append(f"{stars}{parameter.name}{default}")
    if parameters and parameters[-1].kind is inspect.Parameter.POSITIONAL_ONLY:
        pieces.append("/")
    result = "".join(f"{expression}, " for expression in wanted)
    word = name if name.isidentifier() else "function"
    # The source is made of the function's own parameter names, which Python has already accepted as identifiers.
    exec(f"def {word}({', '.join(pieces)}): return ({result})", scope)  # noqa: S102
    binder: Callable[..., tuple[Any, ...]] = scope[word]
    return binder
