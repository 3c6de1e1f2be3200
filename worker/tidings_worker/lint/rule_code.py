"""What rules ask for, as their code says it: tags, namespaces and warms, with the lines on which they stand."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from tidings.described import Described
from tidings.errors import ConfigurationError

from tidings_worker.calls import check_same
from tidings_worker.places import Place
from tidings_worker.plans import Hot, Invalidate, Warm
from tidings_worker.rules import Invalidates, Registered

from .event_fields import unknown_fields
from .scopes import UNKNOWN, Scope
from .shapes import Shape
from .source import AnyFunction, Spot, file_of, head, lines_of, node_of, own_nodes, plain_function
from .texts import Names, Text, texts

_DEPTH = 4


@dataclass(frozen=True, slots=True)
class WarmCall:
    """A ``Warm(function, …)`` in the code of a rule, and why it can never be made, as far as the code shows it."""

    spot: Spot
    function: str
    #: why its arguments cannot be the function's
    problem: str | None = None
    #: why a worker cannot import the function
    unimportable: str | None = None


@dataclass(slots=True)
class Asked:
    """What one rule asks for."""

    tags: Names = field(default_factory=Names)
    namespaces: Names = field(default_factory=Names)
    everything: bool = False
    warms: list[WarmCall] = field(default_factory=list)
    #: whether everything that it gives has been understood; what is in the names is said by them
    complete: bool = True
    #: where it makes an Invalidate or Warm and gives it to nobody
    dropped: list[Spot] = field(default_factory=list)
    #: where it reads what the event's class does not have
    unknown_fields: list[tuple[Spot, str]] = field(default_factory=list)

    @property
    def understood(self) -> bool:
        """Whether nothing that it may invalidate is left open."""
        return self.complete and self.tags.complete and self.namespaces.complete


def spot_of_rule(registered: Registered) -> Spot:
    """Return where a rule stands."""
    function = plain_function(registered.rule)
    node = node_of(function) if function is not None and registered.invalidates is None else None
    if node is not None:
        return Spot(registered.place, (head(node), *_decorated(registered.place, node)))
    return Spot(registered.place, (_statement(registered.place),))


def _decorated(place: Place, node: AnyFunction) -> Iterator[range]:
    """Yield the statement around a rule that is a lambda, as in ``rules.on(…)(lambda event: …)``."""
    if isinstance(node, ast.Lambda):
        yield _statement(place)


def read(registered: Registered) -> Asked:
    """Return what a rule asks for, as far as it can be told without running it."""
    if registered.invalidates is not None:
        return _declared(registered, registered.invalidates)
    function = plain_function(registered.rule)
    node = None if function is None else node_of(function)
    if function is None or node is None:
        return Asked(complete=False)
    asked = Asked()
    _Reader(asked).function(function, node, _DEPTH)
    bound = inspect.ismethod(registered.rule)
    asked.unknown_fields.extend(unknown_fields(registered, node, bound=bound))
    return asked


# Rules that say beforehand what they do


def _declared(registered: Registered, known: Invalidates) -> Asked:
    lines = _statement(registered.place)

    def names(templates: tuple[Any, ...]) -> Names:
        return Names(
            tuple(Text(Shape.of_template(one), _spot_of_text(registered.place, lines, one.text)) for one in templates)
        )

    return Asked(names(known.tags), names(known.namespaces), known.everything)


def _spot_of_text(place: Place, lines: range, wanted: str) -> Spot:
    """Return the first of these lines that has the text."""
    content = file_of(place.file).lines
    found = [number for number in lines if number <= len(content) and wanted in content[number - 1]]
    return Spot(Place(place.file, found[0] if found else place.line), (lines,))


def _statement(place: Place) -> range:
    """Return the lines of the statement, or of the table of a TOML file, that begins on a line."""
    file = file_of(place.file)
    if not file.tree.body:
        following = range(place.line + 1, len(file.lines) + 1)
        ends = (number for number in following if file.lines[number - 1].lstrip().startswith("["))
        return range(place.line, next(ends, len(file.lines) + 1))
    inside = [node for node in ast.walk(file.tree) if isinstance(node, ast.stmt) and place.line in lines_of(node)]
    return min((lines_of(node) for node in inside), key=len, default=range(place.line, place.line + 1))


# Rules that are code


class _Reader:
    """Goes through everything that a function yields or returns, and through the helpers that it calls for it."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._seen: set[FunctionType] = set()

    def function(self, function: FunctionType, node: AnyFunction, depth: int) -> None:
        """Read what a function gives."""
        if function in self._seen:
            return
        self._seen.add(function)
        scope = Scope.of(function, node)
        if isinstance(node, ast.Lambda):
            self._given(node.body, scope, depth)
            return
        for inner in own_nodes(node):
            match inner:
                case ast.Return(value=value) | ast.Yield(value=value) | ast.YieldFrom(value=value) if value is not None:
                    self._given(value, scope, depth)
                case ast.Expr(value=ast.Call(func=called) as call) if _is_one_of(scope.value(called), Invalidate, Warm):
                    self._asked.dropped.append(_spot(call, scope))

    def _given(self, node: ast.expr, scope: Scope, depth: int) -> None:
        match node:
            case ast.Constant(value=None):
                return
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items) | ast.BoolOp(values=items):
                for item in items:
                    self._given(item, scope, depth)
            case ast.Starred(value=item) | ast.ListComp(elt=item) | ast.SetComp(elt=item) | ast.GeneratorExp(elt=item):
                self._given(item, scope, depth)
            case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, op=ast.Add(), right=other):
                self._given(one, scope, depth)
                self._given(other, scope, depth)
            case ast.Name(id=name) if assigned := scope.expressions(name):
                for value in (*assigned, *(value for value, _ in scope.added.get(name, ()))):
                    self._given(value, scope, depth)
            case ast.Call():
                self._called(node, scope, depth)
            case _:
                if not isinstance(node, ast.Compare | ast.UnaryOp | ast.Attribute):  # tests, as in `event.new and …`
                    self._asked.complete = False

    def _called(self, call: ast.Call, scope: Scope, depth: int) -> None:
        called = scope.value(call.func)
        if called is Invalidate:
            self._invalidate(call, scope)
        elif called is Warm:
            self._asked.warms.append(_warm(call, scope))
        elif _is_one_of(called, Warm.hot, Hot):
            return
        elif isinstance(called, FunctionType | MethodType) and depth:
            plain = plain_function(called)
            node = None if plain is None else node_of(plain)
            if plain is None or node is None:
                self._asked.complete = False
            else:
                self.function(plain, node, depth - 1)
        else:
            self._asked.complete = False

    def _invalidate(self, call: ast.Call, scope: Scope) -> None:
        for keyword in call.keywords:
            match keyword.arg:
                case "tags":
                    self._asked.tags |= texts(keyword.value, scope)
                case "namespaces":
                    self._asked.namespaces |= texts(keyword.value, scope)
                case "everything":
                    never = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                    self._asked.everything = self._asked.everything or not never
                case None:
                    self._asked.complete = False


def _is_one_of(found: Any, *wanted: Any) -> bool:
    return any(found is one for one in wanted)


def _warm(call: ast.Call, scope: Scope) -> WarmCall:
    spot = _spot(call, scope)
    if not call.args or isinstance(call.args[0], ast.Starred):
        return WarmCall(spot, "?")
    name = ast.unparse(call.args[0])
    function = scope.value(call.args[0])
    if function is UNKNOWN:
        return WarmCall(spot, name)
    if not isinstance(function, Described):
        return WarmCall(spot, name, "it is not decorated with @cached")
    return WarmCall(spot, name, _why_not_bound(function, call), _why_not_imported(function))


def _why_not_imported(function: Described[Any, Any]) -> str | None:
    try:
        check_same(function)
    except ConfigurationError as error:
        return str(error)
    return None


def _why_not_bound(function: Described[Any, Any], call: ast.Call) -> str | None:
    """Return why the arguments of ``Warm(function, …)`` cannot be those of the function; None: they may be."""
    given = call.args[1:]
    starred = any(isinstance(argument, ast.Starred) for argument in given)
    gathered = any(keyword.arg is None for keyword in call.keywords)
    named = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    positional = [None for argument in given if not isinstance(argument, ast.Starred)]
    signature = inspect.signature(function.uncached)
    try:
        (signature.bind_partial if starred or gathered else signature.bind)(*positional, **named)
    except TypeError as error:
        return str(error)
    return None


def _spot(node: ast.expr, scope: Scope) -> Spot:
    return Spot(Place(scope.file, node.lineno), (lines_of(node),))
