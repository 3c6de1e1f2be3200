"""Key and tag templates: parsed once, checked against the names that exist, rendered from values. Pure.

``"user:{user_id}"`` names an argument (or a field of an event), ``"{user.id}"`` an attribute of it, and a format after
a colon is Python's own: ``"{day:%Y-%m}"``. Whatever is wrong with a template is found when it is parsed, because a tag
that is a literal by mistake is a cache that never hears of a change.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from string import Formatter
from typing import Any
from uuid import UUID

from .errors import ArgumentError, TemplateError


@dataclass(frozen=True, slots=True)
class Field:
    """One ``{name.attribute:format}`` of a template."""

    name: str
    attributes: tuple[str, ...]
    format_spec: str


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `parts` alternate freely between literal text and fields."""

    text: str
    parts: tuple[str | Field, ...]

    @property
    def names(self) -> frozenset[str]:
        """The argument names that the template needs."""
        return frozenset(part.name for part in self.parts if isinstance(part, Field))

    def render(self, value_of: Callable[[str], Any]) -> str:
        """Fill the template; `value_of` returns the value of a name or raises KeyError.

        Raises ArgumentError when a value is missing or has no stable text.
        """
        return "".join([part if isinstance(part, str) else self._text(part, value_of)[1] for part in self.parts])

    def texts(self, value_of: Callable[[str], Any]) -> list[tuple[str, str]]:
        """Return each field's type and text, of which the rendered template no longer tells where one ends."""
        return [self._text(part, value_of) for part in self.parts if isinstance(part, Field)]

    def _text(self, field: Field, value_of: Callable[[str], Any]) -> tuple[str, str]:
        try:
            value = value_of(field.name)
            for attribute in field.attributes:
                value = getattr(value, attribute)
        except (KeyError, AttributeError) as error:
            raise ArgumentError(f"the template {self.text!r} needs {field.name!r}: {error}") from error
        if not field.format_spec:
            return type(value).__name__, text_of(value, self.text)
        try:
            return type(value).__name__, format(value, field.format_spec)
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"the template {self.text!r} cannot format {field.name!r}: {error}") from None


#: Tuples, because a union would be made anew for every value.
_PLAIN = (str, int, float, Decimal, UUID)
_TIMES = (datetime, date, time)
#: Of which exactly nearly every value is.
_USUAL = frozenset({str, int})


def text_of(value: Any, where: str) -> str:
    """Return the text that a value has in a key or tag, the same for an argument and for an event's JSON.

    Raises ArgumentError for a type whose text is not stable or says nothing, like an object's address.
    """
    if type(value) in _USUAL:
        return str(value)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, _PLAIN):
        return str(value)
    if isinstance(value, _TIMES):
        return value.isoformat().replace("+00:00", "Z")  # as pydantic writes it into an event's data
    raise ArgumentError(
        f"the template {where!r} cannot use a {type(value).__name__}; name an attribute of it, as in {{user.id}}"
    )


def parse(text: str, names: Collection[str] | None, where: str) -> Template:
    """Parse a template whose fields must be among `names` (None: unknown yet); `where` says in errors whose it is.

    Raises TemplateError for unbalanced or empty braces, an unknown name, or a literal with braces in it.
    """
    try:
        pieces = list(Formatter().parse(text))
    except ValueError as error:
        raise TemplateError(f"{where}: the template {text!r} does not parse: {error}") from None
    parts: list[str | Field] = []
    for literal, field_name, format_spec, conversion in pieces:
        if "{" in literal or "}" in literal:
            raise TemplateError(f"{where}: the template {text!r} has doubled braces, so it names no argument there")
        if literal:
            parts.append(literal)
        if field_name is None:
            continue
        root, *attributes = field_name.split(".")
        attributes_are_names = all(attribute.isidentifier() for attribute in attributes)
        if not root.isidentifier() or conversion or not attributes_are_names or "{" in (format_spec or ""):
            raise TemplateError(f"{where}: the template {text!r} has {{{field_name}}}, which is no argument's name")
        if names is not None and root not in names:
            known = ", ".join(sorted(names)) or "none"
            raise TemplateError(f"{where}: the template {text!r} names {root!r}; there is: {known}")
        parts.append(Field(root, tuple(attributes), format_spec or ""))
    if not parts:
        raise TemplateError(f"{where}: an empty template")
    return Template(text, tuple(parts))
