"""Source files, parsed once: where a function stands, and which findings a comment there silences."""

import ast
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

from tidings_worker.places import Place

#: ``# tidings: ignore`` and ``# tidings: ignore[unread-tag, unruled-event]``
_IGNORE = re.compile(r"#\s*tidings:\s*ignore(?:\[([^\]]*)\])?(?!\[)")

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, slots=True)
class Spot:
    """A line, and the lines around it where a comment about it may stand."""

    place: Place
    lines: tuple[range, ...] = ()

    def with_lines(self, *more: range) -> "Spot":
        """Return the same, where a comment may also stand on these lines."""
        return Spot(self.place, (*self.lines, *more))


@dataclass(frozen=True, slots=True)
class File:
    """A parsed file; one that cannot be read has no lines."""

    lines: tuple[str, ...]
    tree: ast.Module

    def silenced(self, spot: Spot, code: str) -> bool:
        """Return whether a comment on one of the spot's lines silences findings of this code."""
        numbers = {spot.place.line, *(number for lines in spot.lines for number in lines)}
        return any(code in codes or "*" in codes for codes in map(self._ignored, numbers))

    def _ignored(self, number: int) -> set[str]:
        if not 1 <= number <= len(self.lines) or "tidings:" not in self.lines[number - 1]:
            return set()
        found = _IGNORE.search(self.lines[number - 1])
        if found is None:
            return set()
        return {"*"} if found[1] is None else {word.strip() for word in found[1].split(",")}


@cache
def file_of(name: str) -> File:
    """Return a file by its name: of one that is no Python, its lines without a tree."""
    try:
        with tokenize.open(name) as text:
            content = text.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return File((), ast.Module([], []))
    try:
        tree = ast.parse(content if name.endswith(".py") else "")
    except (SyntaxError, ValueError):
        tree = ast.Module([], [])
    return File(tuple(content.split("\n")), tree)


def plain_function(rule: Callable[..., Any]) -> FunctionType | None:
    """Return the function that a call of this runs, past nothing but a method's binding; None: it is no function."""
    found = getattr(rule, "__func__", rule)
    return found if isinstance(found, FunctionType) and not hasattr(found, "__wrapped__") else None


def node_of(function: FunctionType) -> AnyFunction | None:
    """Return where a function's own source says what it does; None where that cannot be told for certain."""
    code = function.__code__
    found = [node for node in _functions(code.co_filename) if _is_of(node, function)]
    if len(found) > 1:  # lambdas on one line: their bodies stand in different columns
        spans = {(line, column) for line, _, column, _ in code.co_positions()}
        found = [node for node in found if isinstance(node, ast.Lambda) and _start(node.body) in spans]
    return found[0] if len(found) == 1 else None


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


@cache
def _functions(name: str) -> tuple[AnyFunction, ...]:
    return tuple(node for node in ast.walk(file_of(name).tree) if isinstance(node, AnyFunction))


def _is_of(node: AnyFunction, function: FunctionType) -> bool:
    name = "<lambda>" if isinstance(node, ast.Lambda) else node.name
    return name == function.__code__.co_name and first_line(node) == function.__code__.co_firstlineno


def first_line(node: AnyFunction | ast.ClassDef) -> int:
    """Return the line of a definition's first decorator, else its own, as code objects count."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def head(node: AnyFunction | ast.ClassDef) -> range:
    """Return the lines of a definition's decorators and its ``def``, down to where its body begins."""
    if isinstance(node, ast.Lambda):
        return range(node.lineno, node.body.lineno + 1)
    first = node.body[0]
    return range(first_line(node), max(first.lineno, node.lineno + 1))


def spot_of(function: FunctionType) -> Spot:
    """Return where a function is defined."""
    place = Place(function.__code__.co_filename, function.__code__.co_firstlineno)
    node = node_of(function)
    return Spot(place) if node is None else Spot(place, (head(node),))


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a function's body has, but not what functions and classes inside it have."""
    inside = [node.body] if isinstance(node, ast.Lambda) else getattr(node, "body", [])
    to_see: list[ast.AST] = inside[::-1]
    while to_see:
        found = to_see.pop()
        yield found
        if not isinstance(found, AnyFunction | ast.ClassDef):
            to_see.extend([*ast.iter_child_nodes(found)][::-1])


def lines_of(node: ast.stmt | ast.expr) -> range:
    """Return the lines of a piece of source."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def spot_of_class(kind: type) -> Spot:
    """Return where a class is defined; its module's first line where that cannot be told."""
    file = str(getattr(sys.modules.get(kind.__module__), "__file__", "?"))
    node = _classes(file).get(kind.__name__)
    return Spot(Place(file, 1)) if node is None else Spot(Place(file, node.lineno), (head(node),))


@cache
def _classes(name: str) -> dict[str, ast.ClassDef]:
    """Return the classes of a file by their names: of those that share one, the first."""
    found = [node for node in ast.walk(file_of(name).tree) if isinstance(node, ast.ClassDef)]
    return {node.name: node for node in reversed(found)}
