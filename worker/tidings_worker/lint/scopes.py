"""What the names in a function's source stand for, as far as that can be told without running it."""

import ast
import builtins
from collections.abc import Mapping
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

from .source import AnyFunction, own_nodes

#: What a name stands for that only running the code would tell.
UNKNOWN = object()

#: Methods that put one more into a list or set, and those that put several.
_ONE_MORE = frozenset({"append", "add"})
_SEVERAL_MORE = frozenset({"extend", "update"})


class Scope:
    """The names in one function: `outside` is what those stand for that it does not bind itself.

    A local name stands for every expression that is assigned to it; one that is bound otherwise (a parameter, a loop
    over what is no literal, a part of a tuple) stands for anything.
    """

    def __init__(self, outside: Mapping[str, Any], node: AnyFunction | None = None, file: str = "") -> None:
        self.outside = outside
        self.node = node
        self.file = file
        self._bound: dict[str, list[ast.expr] | None] = {}
        #: what is added to a local list or set: one by one, and several at once
        self.added: dict[str, list[tuple[ast.expr, bool]]] = {}
        if node is not None:
            for parameter in ast.walk(node.args):
                if isinstance(parameter, ast.arg):
                    self._bound[parameter.arg] = None
            for inner in own_nodes(node):
                self._see(inner)

    @staticmethod
    def of(function: FunctionType, node: AnyFunction) -> "Scope":
        """Return the names of a function, those of its closure among the outer ones."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        closed = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
        return Scope({**function.__globals__, **closed}, node, function.__code__.co_filename)

    def expressions(self, name: str) -> list[ast.expr] | None:
        """Return what is assigned to a local name; None: it is no local name, or may stand for anything."""
        return self._bound.get(name)

    def is_local(self, name: str) -> bool:
        """Return whether the function binds the name itself."""
        return name in self._bound

    def value(self, node: ast.expr) -> Any:
        """Return the object that a dotted name stands for outside of the function, else UNKNOWN.

        Nor what only stands in for something: looking at it may run anybody's code, and fail outside of a request.
        """
        found: Any = UNKNOWN
        try:
            match node:
                case ast.Name(id=name) if not self.is_local(name):
                    found = self.outside.get(name, vars(builtins).get(name, UNKNOWN))
                case ast.Attribute(value=owner, attr=name):
                    of = self.value(owner)
                    if issubclass(type(of), ModuleType | type | Enum):
                        found = getattr(of, name, UNKNOWN)
            return found if found.__class__ is type(found) else UNKNOWN
        except Exception:  # noqa: BLE001 whatever attributes raise
            return UNKNOWN

    def _see(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._bind(target, value)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self._bind(target, value)
            case ast.NamedExpr(target=target, value=value):
                self._bind(target, value)
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Add() | ast.BitOr(), value=value):
                self._bound.setdefault(name, [])
                self.added.setdefault(name, []).append((value, True))
            case ast.For(target=target, iter=values) | ast.comprehension(target=target, iter=values):
                self._bind(target, *(values.elts if isinstance(values, ast.Tuple | ast.List | ast.Set) else [None]))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr), args=[argument]):
                if attr in _ONE_MORE | _SEVERAL_MORE:
                    self.added.setdefault(name, []).append((argument, attr in _SEVERAL_MORE))
            case ast.Name(id=name, ctx=ast.Store()) | ast.alias(name=name):
                self._bound.setdefault(name, [])  # if nothing else is known of it, it stands for no expression
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                self._bound[name] = None

    def _bind(self, target: ast.expr, *values: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            known = self._bound.setdefault(target.id, [])
            if known is None or any(value is None for value in values):
                self._bound[target.id] = None
            else:
                known.extend(value for value in values if value is not None)
            return
        for inner in ast.walk(target):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self._bound[inner.id] = None


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 raises when it is empty
    except ValueError:
        return False
    return True
