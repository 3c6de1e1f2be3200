"""Shapes of names: what a tag looks like before it is known what it is about. Pure.

``user:{user_id}`` of a reader, ``f"user:{event.id}"`` of a rule and ``user:42`` of an example's plan are compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from tidings.templates import Template

#: A part that may be any text.
HOLE = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Literal texts and holes, as they follow one another."""

    parts: tuple[str | None, ...]

    @staticmethod
    def of(parts: Iterable[str | None]) -> "Shape":
        """Make a shape of parts, of which neighbours that are both literal are joined."""
        joined: list[str | None] = []
        for part in parts:
            if part is not HOLE and joined and joined[-1] is not HOLE:
                joined[-1] += part
            elif part != "":
                joined.append(part)
        return Shape(tuple(joined))

    @staticmethod
    def of_template(template: Template) -> "Shape":
        """Make the shape of a tag's or namespace's template."""
        return Shape.of(part if isinstance(part, str) else HOLE for part in template.parts)

    def __str__(self) -> str:
        return "".join("{}" if part is HOLE else part for part in self.parts)

    @property
    def is_text(self) -> bool:
        """Whether it has no holes."""
        return HOLE not in self.parts

    @property
    def ends(self) -> tuple[str, str]:
        """The texts with which it begins and ends: empty where a hole stands."""
        return (self.parts[0] or "", self.parts[-1] or "") if self.parts else ("", "")

    @property
    def says_nothing(self) -> bool:
        """Whether it has nothing else: any name at all."""
        return all(part is HOLE for part in self.parts)


def meet(one: Shape, other: Shape) -> bool:
    """Return whether some name has both shapes.

    What stands in a hole is taken to have no colon where the shape has colons of its own: ``user:{}`` and
    ``user:{}:profile`` are two things. A text without holes is the name itself, and may have whatever it has in them.
    """
    first, last = one.ends
    other_first, other_last = other.ends
    if not (first.startswith(other_first) or other_first.startswith(first)):
        return False
    if not (last.endswith(other_last) or other_last.endswith(last)):
        return False
    plain = one.is_text or other.is_text
    return _meet(_tokens(one), _tokens(other), anything=plain)


_Token = tuple[str, bool]  # a character; or a hole, "", and whether it may hold a colon


@cache
def _tokens(shape: Shape) -> tuple[_Token, ...]:
    colons = any(part is not HOLE and ":" in part for part in shape.parts)
    tokens: list[_Token] = []
    for part in shape.parts:
        tokens.extend([("", not colons)] if part is HOLE else [(character, False) for character in part])
    return tuple(tokens)


def _meet(one: tuple[_Token, ...], other: tuple[_Token, ...], *, anything: bool) -> bool:
    @cache
    def from_here(i: int, j: int) -> bool:
        a, b = one[i] if i < len(one) else None, other[j] if j < len(other) else None
        if a is None and b is None:
            return True
        if a is not None and a[0] == "":
            return from_here(i + 1, j) or (b is not None and _holds(a, b) and from_here(i, j + 1))
        if b is not None and b[0] == "":
            return from_here(i, j + 1) or (a is not None and _holds(b, a) and from_here(i + 1, j))
        return a == b and from_here(i + 1, j + 1)

    def _holds(hole: _Token, token: _Token) -> bool:
        return anything or hole[1] or token[0] != ":"

    return from_here(0, 0)
