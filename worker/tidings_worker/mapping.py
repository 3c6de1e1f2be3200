"""What `rules.map` makes of an event: its values for templates, and the calls to warm. Pure."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tidings import Event
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError
from tidings.signature import memorable
from tidings.templates import Template

from .calls import check_importable, from_json_value
from .plans import Hot, Invalidate, Warm

#: Invalidations that one rule remembers.
_REMEMBERED = 10_000


def value_of(event: Event) -> Callable[[str], Any]:
    """Return what looks a name up in the event's data and nowhere else: its attributes have names of their own."""
    fields, extra = type(event).model_fields, event.model_extra or {}

    def found(name: str) -> Any:
        if name in extra:
            return extra[name]
        if name in fields:
            return getattr(event, name)
        raise KeyError(f"the event has no {name!r}")

    return found


def invalidation_of(namespaces: Sequence[Template], tags: Sequence[Template]) -> Callable[[Event], Invalidate]:
    """Return what makes an event's invalidation of templates, once for the values that they name.

    Events come again and again about the same things, and to find an invalidation takes a tenth of making one.
    """
    names = sorted(frozenset().union(*(template.names for template in (*namespaces, *tags))))
    known: dict[tuple[Any, ...], Invalidate] = {}

    def invalidation(event: Event) -> Invalidate:
        identity: tuple[Any, ...] | None = None
        data = event.__dict__ if not event.__pydantic_extra__ else event.__dict__ | event.__pydantic_extra__
        try:
            values = [data[name] for name in names]
            identity = (*values, *map(type, values))
            found = known.get(identity)
        except (KeyError, TypeError):  # a name that is missing, a value without a hash
            found = None
        if found is None:
            value = value_of(event)
            found = Invalidate(
                namespaces=[template.render(value) for template in namespaces],
                tags=[template.render(value) for template in tags],
            )
            if identity is not None and memorable(identity):
                if len(known) >= _REMEMBERED:
                    known.clear()
                known[identity] = found
        return found

    return invalidation


def warm_of(
    item: "Described[Any, Any] | Warm | Hot", known: set[str] | None, where: str
) -> Callable[[Callable[[str], Any]], Warm | Hot]:
    """Return what makes a warm of an event's values; `known`: the names they have, None when only an event will say.

    Raises ConfigurationError for what cannot be warmed, or needs an argument that the event's class does not have.
    """
    if isinstance(item, Warm | Hot):
        return lambda _: item
    if not isinstance(item, Described):
        raise ConfigurationError(f"{where}: warm={item!r} is not a cached function")
    check_importable(item)
    parameters = {p.name: p for p in inspect.signature(item.uncached).parameters.values()}
    empty: dict[Any, Any] = {inspect.Parameter.VAR_POSITIONAL: (), inspect.Parameter.VAR_KEYWORD: {}}
    required = {n for n, p in parameters.items() if p.default is p.empty and p.kind not in empty}
    if known is not None and (lacking := required - known):
        raise ConfigurationError(f"{where}: {item.identity} needs {sorted(lacking)}, which the event does not have")

    def bound(value_of: Callable[[str], Any]) -> Warm:
        arguments = {name: empty.get(p.kind, p.default) for name, p in parameters.items()}
        for name, parameter in parameters.items():
            if parameter.kind in empty:
                continue
            try:
                value = value_of(name)
            except KeyError as error:
                if name in required:
                    raise ArgumentError(f"{where}: {item.identity}: {error}") from None
                continue
            # Without a class the data are plain JSON, and the key is made of what the function is really given.
            arguments[name] = value if known is not None else from_json_value(item, name, value)
        args, kwargs = item.signature.spread(arguments)
        return Warm(item, *args, **kwargs)

    return bound
