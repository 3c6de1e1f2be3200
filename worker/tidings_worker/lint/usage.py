"""What the project's own code does with events, tags and namespaces, as its source says it literally."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from tidings import Event
from tidings.described import Described
from tidings.errors import TemplateError
from tidings.templates import parse

from tidings_worker.places import Place
from tidings_worker.plans import Warm

from .scopes import Scope
from .shapes import Shape
from .source import AnyFunction, Spot, file_of, lines_of
from .texts import Names, Text, text, texts, texts_of_function

#: Decorators that may stand where no function has been made of them yet.
_DECORATORS = frozenset({"cached", "cache_read"})

#: These, and methods of a cache that keep entries which callers name themselves.
_READS = _DECORATORS | {"get_or_set", "get_or_set_many", "set", "set_many"}


@dataclass(slots=True)
class Usage:
    """What was found, with the places of what findings may be about."""

    #: event types that are named where an event is made
    published: dict[str, Spot] = field(default_factory=dict)
    read_tags: Names = field(default_factory=Names)
    read_namespaces: Names = field(default_factory=Names)
    invalidated_tags: Names = field(default_factory=Names)
    invalidated_namespaces: Names = field(default_factory=Names)
    everything: bool = False
    #: identities of cached functions of which single entries are invalidated
    invalidated_functions: set[str] = field(default_factory=set)
    #: namespaces of which the most read is warmed
    hot: Names = field(default_factory=Names)


def usage_of(modules: Iterable[ModuleType]) -> Usage:
    """Return what the source of these modules says."""
    usage = Usage()
    for module in modules:
        visitor = _Visitor(usage, vars(module), module.__file__ or "?")
        visitor.visit(file_of(module.__file__ or "?").tree)
    return usage


class _Visitor(ast.NodeVisitor):
    """Looks at every call, in the scope of the function around it."""

    def __init__(self, usage: Usage, outside: dict[str, Any], file: str) -> None:
        self._usage = usage
        self._outside = outside
        self._file = file
        self._scope = Scope(outside, None, file)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._visit_inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        self._visit_inside(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_inside(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
        if name in _READS:
            self._read(name, keywords)
        elif name.startswith("invalidate"):
            self._invalidated(name, node, keywords)
        elif name in {"of", "xadd"}:
            self._published(name, node, keywords)
        elif name == "hot" and self._scope.value(node.func) is Warm.hot:
            self._usage.hot |= Names.all(text(given, self._scope) for given in _first(node, keywords.get("namespace")))
        elif name == "resource":
            self._resource(node)
        self.generic_visit(node)

    def _visit_inside(self, node: AnyFunction) -> None:
        outer, self._scope = self._scope, Scope(self._outside, node, self._file)
        for inner in [node.body] if isinstance(node, ast.Lambda) else node.body:
            self.visit(inner)
        self._scope = outer

    def _published(self, name: str, node: ast.Call, keywords: dict[str, ast.expr]) -> None:
        given = _first(node, keywords.get("type"))
        if name == "xadd":  # an event written by hand: the fields are a dict
            pairs = [
                pair
                for found in node.args
                if isinstance(found, ast.Dict)
                for pair in zip(found.keys, found.values, strict=True)
            ]
            given = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "type"]
        elif not self._is_event(node.func):
            return
        for found in Names.all(text(one, self._scope) for one in given).found:
            if found.shape.is_text:
                self._usage.published.setdefault(str(found.shape), Spot(found.spot.place, (lines_of(node),)))

    def _is_event(self, function: ast.expr) -> bool:
        if not isinstance(function, ast.Attribute):
            return False
        owner = self._scope.value(function.value)
        imported_inside = isinstance(function.value, ast.Name) and function.value.id == "Event"
        return imported_inside or (isinstance(owner, type) and issubclass(owner, Event))

    def _read(self, name: str, keywords: dict[str, ast.expr]) -> None:
        tags, namespace = keywords.get("tags"), keywords.get("namespace")
        if name == "set" and tags is None and namespace is None:
            return  # anything may have a method of that name
        self._usage.read_tags |= self._templates(tags, decorator=name in _DECORATORS)
        if namespace is None:
            default = Text(Shape(("default",)), Spot(Place(self._file, 0)))
            self._usage.read_namespaces |= Names() if name == "cache_read" else Names((default,))
        else:
            self._usage.read_namespaces |= text(namespace, self._scope)

    def _templates(self, tags: ast.expr | None, *, decorator: bool) -> Names:
        """Return tags, of which those that are templates have holes where they name arguments.

        What a decorator has made of them is known otherwise, so that they need not be complete.
        """
        if tags is None:
            return Names()
        if isinstance(tags, ast.Lambda):
            found = texts(tags.body, Scope(self._outside, tags, self._file))
        elif isinstance(given := self._scope.value(tags), FunctionType):
            found = texts_of_function(given)
        else:
            found = texts(tags, self._scope)
        shapes = tuple(Text(_as_template(one.shape), one.spot) for one in found.found)
        return Names(shapes, complete=decorator or found.complete)

    def _resource(self, node: ast.Call) -> None:
        words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if words and len(words) == len(node.args) and all(isinstance(word, str) for word in words):
            name, *ids = map(str, words)
            spot = Spot(Place(self._file, node.lineno))
            shape = Shape.of([name, *(part for _ in ids for part in (":", None))])
            self._usage.read_tags |= Names((Text(shape, spot),))
            self._usage.read_namespaces |= Names((Text(Shape((name,)), spot),))

    def _invalidated(self, name: str, node: ast.Call, keywords: dict[str, ast.expr]) -> None:
        usage, scope = self._usage, self._scope
        owner = scope.value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        match name:
            case "invalidate" if isinstance(owner, Described):
                usage.invalidated_functions.add(owner.identity)
            case "invalidate":
                for word, known in (("tags", "invalidated_tags"), ("namespaces", "invalidated_namespaces")):
                    found = texts(keywords[word], scope) if word in keywords else Names()
                    setattr(usage, known, getattr(usage, known) | found)
            case "invalidate_tags":
                usage.invalidated_tags |= Names.all(_item(argument, scope) for argument in node.args)
            case "invalidate_namespace":
                usage.invalidated_namespaces |= Names.all(
                    text(one, scope) for one in _first(node, keywords.get("name"))
                )
            case "invalidate_pattern" if "namespace" in keywords:
                usage.invalidated_namespaces |= text(keywords["namespace"], scope)
            case "invalidate_all":
                usage.everything = True


def _first(node: ast.Call, named: ast.expr | None) -> list[ast.expr]:
    """Return the first argument, or the one that is named instead."""
    return [*node.args[:1]] or ([] if named is None else [named])


def _item(argument: ast.expr, scope: Scope) -> Names:
    return texts(argument.value, scope) if isinstance(argument, ast.Starred) else text(argument, scope)


def _as_template(shape: Shape) -> Shape:
    """Return a literal such as ``user:{user_id}`` with a hole for what it names."""
    if not shape.is_text or "{" not in str(shape):
        return shape
    try:
        return Shape.of_template(parse(str(shape), None, ""))
    except TemplateError:
        return shape
