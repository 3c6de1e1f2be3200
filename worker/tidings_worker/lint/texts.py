"""Names that code makes, read from its source: literals, f-strings, lists and comprehensions of them."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from string import Formatter
from types import FunctionType, MethodType
from typing import Any

from tidings_worker.places import Place

from .scopes import Scope
from .shapes import HOLE, Shape
from .source import Spot, lines_of, node_of, own_nodes, plain_function

#: How far helper functions and local names are followed.
_DEPTH = 6

#: Functions that give the items of their one argument.
_ITEMS = (list, tuple, set, frozenset, sorted)


@dataclass(frozen=True, slots=True)
class Text:
    """One name that some code may make, and where it stands."""

    shape: Shape
    spot: Spot


@dataclass(frozen=True, slots=True)
class Names:
    """Names that some code may make; `complete`: it makes no others."""

    found: tuple[Text, ...] = ()
    complete: bool = True

    def __or__(self, other: "Names") -> "Names":
        return Names((*self.found, *other.found), self.complete and other.complete)

    @staticmethod
    def all(several: Iterable["Names"]) -> "Names":
        """Return what all of them may make."""
        return reduce(Names.__or__, several, Names())


#: Nothing can be told: what is asked for may be any name.
UNREAD = Names(complete=False)


def texts(  # noqa: PLR0911 one arm for each kind of expression
    node: ast.expr | None, scope: Scope, depth: int = _DEPTH
) -> Names:
    """Return the names in an expression that gives several of them."""
    if node is None or depth == 0:
        return UNREAD
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return Names.all(_item(item, scope, depth) for item in items)
        case ast.ListComp(elt=item) | ast.SetComp(elt=item) | ast.GeneratorExp(elt=item):
            return _item(item, scope, depth)
        case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, op=ast.Add() | ast.BitOr(), right=other):
            return texts(one, scope, depth) | texts(other, scope, depth)
        case ast.BoolOp(values=parts):
            return Names.all(texts(part, scope, depth) for part in parts)
        case ast.Name(id=name) if scope.is_local(name):
            return _local(name, scope, depth)
        case ast.Call(func=function, args=arguments):
            return _called(scope.value(function), arguments, scope, depth)
    given = scope.value(node)
    if isinstance(given, list | tuple | set | frozenset) and all(isinstance(item, str) for item in given):
        return Names(tuple(Text(Shape.of([item]), _spot(node, scope)) for item in sorted(given)))
    return UNREAD


def text(node: ast.expr, scope: Scope, depth: int = _DEPTH) -> Names:
    """Return the names that an expression of one name may give."""
    shapes = _shapes(node, scope, depth)
    said = [shape for shape in shapes if not shape.says_nothing]
    return Names(tuple(Text(shape, _spot(node, scope)) for shape in said), len(said) == len(shapes))


def texts_of_function(function: Any, depth: int = _DEPTH) -> Names:
    """Return the names in what a function returns or yields."""
    plain = plain_function(function)
    node = None if plain is None else node_of(plain)
    if plain is None or node is None or depth == 0:
        return UNREAD
    scope = Scope.of(plain, node)
    if isinstance(node, ast.Lambda):
        return texts(node.body, scope, depth)
    found: list[Names] = []
    for inner in own_nodes(node):
        match inner:
            case ast.Return(value=value) | ast.YieldFrom(value=value) if value is not None:
                found.append(texts(value, scope, depth))
            case ast.Yield(value=value) if value is not None:
                found.append(text(value, scope, depth))
    return Names.all(found)


def _item(item: ast.expr, scope: Scope, depth: int) -> Names:
    return texts(item.value, scope, depth) if isinstance(item, ast.Starred) else text(item, scope, depth)


def _local(name: str, scope: Scope, depth: int) -> Names:
    assigned = scope.expressions(name)
    if not assigned:
        return UNREAD
    given = [texts(value, scope, depth - 1) for value in assigned if not _is_empty(value)]
    given += [(texts if several else text)(value, scope, depth - 1) for value, several in scope.added.get(name, ())]
    return Names.all(given)


def _is_empty(node: ast.expr) -> bool:
    match node:
        case ast.List(elts=[]) | ast.Call(func=ast.Name(id="set" | "list"), args=[]):
            return True
    return False


def _called(function: Any, arguments: list[ast.expr], scope: Scope, depth: int) -> Names:
    if len(arguments) == 1 and any(function is item for item in _ITEMS):
        return texts(arguments[0], scope, depth)
    return texts_of_function(function, depth - 1) if isinstance(function, FunctionType | MethodType) else UNREAD


# One name


_ANYTHING = Shape((HOLE,))


def _shapes(  # noqa: PLR0911 one arm for each kind of expression
    node: ast.expr, scope: Scope, depth: int
) -> list[Shape]:
    """Return the shapes that one name may have; a hole for what cannot be told."""
    if depth == 0:
        return [_ANYTHING]
    match node:
        case ast.Constant(value=str(given)):
            return [Shape.of([given])]
        case ast.JoinedStr(values=parts):
            return _joined([_part(part, scope, depth) for part in parts])
        case ast.BinOp(left=one, op=ast.Add(), right=other):
            return _joined([_shapes(one, scope, depth), _shapes(other, scope, depth)])
        case ast.BinOp(left=ast.Constant(value=str(pattern)), op=ast.Mod()):
            return [_of_percent(pattern)]
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(pattern)), attr="format")):
            return [_of_format(pattern)]
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(between)), attr="join"),
            args=[ast.Tuple(elts=items) | ast.List(elts=items)],
        ):
            pieces = [_shapes(item, scope, depth) for item in items]
            return _joined([piece for one in pieces for piece in ([Shape.of([between])], one)][1:])
        case ast.IfExp(body=one, orelse=other):
            return [*_shapes(one, scope, depth), *_shapes(other, scope, depth)]
        case ast.Name(id=name) if scope.is_local(name):
            assigned = scope.expressions(name)
            if not assigned or name in scope.added:
                return [_ANYTHING]
            return [shape for value in assigned for shape in _shapes(value, scope, depth - 1)]
        case ast.Call(func=function):
            return _of_helper(scope.value(function), depth)
    given = scope.value(node)
    return [Shape.of([given])] if isinstance(given, str) and type(given) is str else [_ANYTHING]


def _part(part: ast.expr, scope: Scope, depth: int) -> list[Shape]:
    if isinstance(part, ast.FormattedValue):
        return [_ANYTHING] if part.format_spec or part.conversion == ord("r") else _shapes(part.value, scope, depth)
    return _shapes(part, scope, depth)


#: Names that one expression is followed into, at most: beyond it a part is a hole.
_ALTERNATIVES = 32


def _joined(parts: list[list[Shape]]) -> list[Shape]:
    found: list[tuple[str | None, ...]] = [()]
    for alternatives in parts:
        if len(found) * len(alternatives) > _ALTERNATIVES:
            alternatives = [_ANYTHING]  # noqa: PLW2901
        found = [(*before, *one.parts) for before in found for one in alternatives]
    return [Shape.of(parts) for parts in found]


def _of_percent(pattern: str) -> Shape:
    pieces = pattern.replace("%%", "%").split("%s")
    return (
        Shape.of([piece for text in pieces for piece in (HOLE, text)][1:]) if "%" not in "".join(pieces) else _ANYTHING
    )


def _of_format(pattern: str) -> Shape:
    try:
        pieces = list(Formatter().parse(pattern))
    except ValueError:
        return _ANYTHING
    return Shape.of(
        part for literal, field, *_ in pieces for part in ((literal,) if field is None else (literal, HOLE))
    )


def _of_helper(function: Any, depth: int) -> list[Shape]:
    """Return what a helper such as ``def user_tag(user_id): return f"user:{user_id}"`` gives."""
    plain = plain_function(function) if isinstance(function, FunctionType | MethodType) else None
    node = None if plain is None else node_of(plain)
    if plain is None or node is None:
        return [_ANYTHING]
    scope = Scope.of(plain, node)
    returned = (
        [node.body]
        if isinstance(node, ast.Lambda)
        else [inner.value for inner in own_nodes(node) if isinstance(inner, ast.Return) and inner.value is not None]
    )
    return [shape for value in returned for shape in _shapes(value, scope, depth - 1)] or [_ANYTHING]


def _spot(node: ast.expr, scope: Scope) -> Spot:
    return Spot(Place(scope.file, node.lineno), (lines_of(node),))
