"""What `rules.map` makes of an event: its values for templates, and the calls to warm. Pure."""

import inspect
from collections.abc import Callable
from typing import Any

from tidings import Event
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError

from .calls import check_importable, from_json_value
from .plans import Hot, Warm


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
