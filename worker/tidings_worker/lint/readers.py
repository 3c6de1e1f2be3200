"""What cached functions depend on, and what the writes of a `resource` invalidate."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from tidings.described import Described
from tidings.templates import Template
from tidings.writes import Write

from tidings_worker.places import Place
from tidings_worker.registry import alive, cached_functions, place_of

from .shapes import Shape
from .source import Spot, head, node_of
from .texts import Names, Text, texts_of_function

#: A write's tags are never what a finding is about.
_NOWHERE = Spot(Place("?", 0))


@dataclass(frozen=True, slots=True)
class Reader:
    """A cached function, with the tags and the namespace by which it can be invalidated."""

    function: str
    namespace: str
    tags: Names
    spot: Spot
    #: its tags as they are written, without those of callables
    templates: tuple[str, ...] = ()


def readers_of(modules: Iterable[str]) -> list[Reader]:
    """Return the cached functions that these modules define."""
    return [_reader(function) for function in cached_functions(modules)]


def written() -> Names:
    """Return the tags that functions decorated with `cache_write` invalidate."""
    return Names.all(_tags(write.tags, _NOWHERE) for write in alive(Write))


def _reader(function: Described[Any, Any]) -> Reader:
    place = place_of(function)
    plain = inspect.unwrap(function.uncached)
    node = node_of(plain) if isinstance(plain, FunctionType) else None
    spot = Spot(place) if node is None else Spot(place, (head(node),))
    options = function.options
    tags = _tags(options.tags, spot)
    if options.result_tags is not None:
        tags |= texts_of_function(options.result_tags)
    templates = () if callable(options.tags) else tuple(template.text for template in options.tags)
    return Reader(function.identity, options.namespace, tags, spot, templates)


def _tags(tags: tuple[Template, ...] | Callable[..., Iterable[str]], spot: Spot) -> Names:
    if not callable(tags):
        return Names(tuple(Text(Shape.of_template(template), spot) for template in tags))
    if getattr(tags, "__module__", "") == "tidings.resource":  # the resource's own tag, and what a callable adds
        inner = inspect.getclosurevars(tags).nonlocals
        own, others = inner.get("own"), inner.get("others")
        if isinstance(own, Template) and others is not None:
            return _tags((own,), spot) | texts_of_function(others)
    return texts_of_function(tags)
