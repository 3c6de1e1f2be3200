"""What rules read of their events, and whether the events' classes have it."""

import ast
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from tidings.events import class_of

from tidings_worker.places import Place
from tidings_worker.rules import Registered

from .source import AnyFunction, Spot, head, lines_of, own_nodes


def unknown_fields(registered: Registered, node: AnyFunction, *, bound: bool) -> Iterator[tuple[Spot, str]]:
    """Yield reads of the event that its class does not allow, each with what was read and what there is instead."""
    parameters = [*node.args.posonlyargs, *node.args.args][int(bound) :]
    if not parameters:
        return
    event_class = registered.event_class or class_of(registered.event_type)
    name = parameters[0].arg
    nodes = list(own_nodes(node))
    if any(_makes_it_another(n, name) for n in nodes):
        return
    asked_for = {n.args[1].value for n in nodes if _is_hasattr(n)}  # type: ignore[attr-defined]
    for inner in nodes:
        match _path(inner):
            case [root, *attributes] if root == name and attributes:
                found = _missing(event_class, attributes)
                if found is not None and found[0] not in asked_for:
                    attribute, owner = found
                    assert isinstance(inner, ast.Attribute)  # noqa: S101 for the type checker
                    spot = Spot(Place(registered.place.file, inner.lineno), (lines_of(inner), head(node)))
                    read = ".".join((name, *attributes))
                    yield spot, f"{read}: {owner.__name__} has no {attribute!r}; {_has(owner)}"


def _makes_it_another(node: ast.AST, name: str) -> bool:
    """Return whether from here on the name may stand for something else, or for an event known to be of one class."""
    match node:
        case ast.Name(id=found, ctx=ast.Store()):
            return found == name
        case ast.Call(func=ast.Name(id="isinstance" | "type"), args=[ast.Name(id=found), *_]):
            return found == name
        case ast.Match(subject=ast.Name(id=found)):
            return found == name
    return False


def _is_hasattr(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[_, ast.Constant(value=str()), *_]):
            return True
    return False


def _path(node: ast.AST) -> list[str]:
    match node:
        case ast.Attribute(value=ast.Name(id=root), attr=attribute, ctx=ast.Load()):
            return [root, attribute]
        case ast.Attribute(value=ast.Attribute() as owner, attr=attribute, ctx=ast.Load()):
            before = _path(owner)
            return [*before, attribute] if before else []
    return []


def _missing(owner: Any, attributes: list[str]) -> tuple[str, type[BaseModel]] | None:
    """Return the last of these attributes if it is what is missing, and from which model."""
    for position, attribute in enumerate(attributes):
        if not (isinstance(owner, type) and issubclass(owner, BaseModel)) or owner.model_config.get("extra") == "allow":
            return None
        if attribute not in owner.model_fields:
            last = position == len(attributes) - 1
            absent = not attribute.startswith("_") and not hasattr(owner, attribute)
            return (attribute, owner) if last and absent else None
        owner = _model(owner.model_fields[attribute].annotation)
    return None


def _model(annotation: Any) -> Any:
    """Return the class of a field, also of one that may be None."""
    if get_origin(annotation) in {Union, UnionType}:
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else None
    return annotation


def _has(owner: type[BaseModel]) -> str:
    return f"it has {', '.join(owner.model_fields)}" if owner.model_fields else "it has no fields"
