"""What `rules.map` makes of an event: its values for templates, and the calls to warm. Pure.

**Before and after.** An event may carry a row as it was and as it is, ``before`` and ``after`` among its data, as every
change that Debezium writes does. A name that is no field of the data is looked up in both, and each row gives tags,
namespaces and warms of its own: a user who moved from team 1 to team 2 makes both teams wrong. A row that is not there
(one that is new has none before), or whose image lacks the name, gives none, unless no row has it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from tidings import Event
from tidings.described import Described
from tidings.errors import ArgumentError, ConfigurationError
from tidings.signature import memorable
from tidings.templates import Template

from .calls import check_importable, from_json_value
from .plans import Hot, Invalidate, Warm

#: Invalidations that one rule remembers.
_REMEMBERED = 10_000


#: What an event calls a row as it was, and as it is.
_BEFORE, _AFTER = "before", "after"


def value_of(event: Event, row: Any = None) -> Callable[[str], Any]:
    """Return what looks a name up in the event's data and nowhere else: its attributes have names of their own.

    With a `row` of the event's, a name that is no field of the data is looked up there.
    """
    data, image = _held(event), _held(row)

    def found(name: str) -> Any:
        if name in data:
            return data[name]
        if name in image:
            return image[name]
        raise KeyError(f"the event has no {name!r}")

    return found


def _held(holder: Any) -> Mapping[str, Any]:
    """Return what an event or a row holds by name; nothing for what is neither."""
    if isinstance(holder, BaseModel):
        extra = holder.__pydantic_extra__
        return holder.__dict__ | extra if extra else holder.__dict__
    return holder if isinstance(holder, dict) else {}


def names_of(event_class: type[Event] | None) -> set[str] | None:
    """Return the names that an event of the class has, those of its rows among them; None: only an event will say."""
    if event_class is None:
        return None
    names = set(event_class.model_fields)
    for image in {_BEFORE, _AFTER} & names:
        annotation = event_class.model_fields[image].annotation
        for kind in get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,):
            row = get_origin(kind) or kind
            if row is Any or (isinstance(row, type) and issubclass(row, Mapping)):
                return None
            if isinstance(row, type) and issubclass(row, BaseModel):
                names |= set(row.model_fields)
    return names


def _row(data: Mapping[str, Any], name: str) -> Any:
    """Return a row among an event's data, or None."""
    value = data.get(name)
    return value if value is not None and isinstance(value, (dict, BaseModel)) else None


def invalidation_of(
    namespaces: Sequence[Template], tags: Sequence[Template]
) -> Callable[[Event], Iterable[Invalidate]]:
    """Return what makes an event's invalidations of templates, once for the values that they name.

    Events come again and again about the same things, and to find an invalidation takes a tenth of making one.
    Going through them raises ArgumentError for a template that cannot be rendered, after those that can.
    """
    names = sorted(frozenset().union(*(template.names for template in (*namespaces, *tags))))
    known: dict[tuple[Any, ...], tuple[Invalidate]] = {}

    def invalidations(event: Event) -> Iterable[Invalidate]:
        identity: tuple[Any, ...] | None = None
        data = event.__dict__ if not event.__pydantic_extra__ else event.__dict__ | event.__pydantic_extra__
        try:
            values = [data[name] for name in names]
            identity = (*values, *map(type, values))
            found = known.get(identity)
        except (KeyError, TypeError):  # a name that is missing, a value without a hash
            found = None
        if found is None:
            try:
                found = (_invalidation(event, data, namespaces, tags),)
            except ArgumentError:
                return _one_by_one(event, data, namespaces, tags)
            if identity is not None and memorable(identity):
                if len(known) >= _REMEMBERED:
                    known.clear()
                known[identity] = found
        return found

    return invalidations


def _one_by_one(
    event: Event, data: Mapping[str, Any], namespaces: Sequence[Template], tags: Sequence[Template]
) -> Iterator[Invalidate]:
    """Invalidate what each template says; raise for those that say nothing when all others have had their turn.

    A deleted row of which only the key is known has a tag of its own still, and not that of the list it stood in.
    """
    problems = []
    for alone in [*(((one,), ()) for one in namespaces), *(((), (one,)) for one in tags)]:
        try:
            found = _invalidation(event, data, *alone)
        except ArgumentError as error:
            problems.append(str(error))
        else:
            yield found
    raise ArgumentError("; ".join(problems))


def _invalidation(
    event: Event, data: Mapping[str, Any], namespaces: Sequence[Template], tags: Sequence[Template]
) -> Invalidate:
    value = value_of(event)
    rows = [value_of(event, row) for row in (_row(data, _BEFORE), _row(data, _AFTER)) if row is not None]
    return Invalidate(
        namespaces=[text for template in namespaces for text in _texts(template, value, rows)],
        tags=[text for template in tags for text in _texts(template, value, rows)],
    )


def _texts(template: Template, value: Callable[[str], Any], rows: Sequence[Callable[[str], Any]]) -> Iterable[str]:
    """Render a template over each row that has its names, else over the data alone; no text comes twice."""
    fitting = [row for row in rows if _has(row, template.names)]
    return dict.fromkeys([template.render(row) for row in fitting]) if fitting else (template.render(value),)


def _has(value: Callable[[str], Any], names: Iterable[str]) -> bool:
    try:
        for name in names:
            value(name)
    except KeyError:
        return False
    return True


def warms_of(event: Event, calls: Iterable[Callable[[Callable[[str], Any]], Warm | Hot]]) -> Iterator[Warm | Hot]:
    """Make what `warm_of` returned into the warms for an event: of its row as it is, and as it was if that differs.

    A row that is gone is not loaded again: of a deletion there are only warms that need no name of the row.
    """
    data = _held(event)
    before, after = _row(data, _BEFORE), _row(data, _AFTER)
    deleted = after is None and {_BEFORE, _AFTER} <= data.keys()
    rows = [None] if after is None else [row for row in (after, before) if row is not None]
    for call in calls:
        made: dict[Warm | Hot, None] = {}
        lacking: ArgumentError | None = None
        for row in rows:
            try:
                made[call(value_of(event, row))] = None
            except ArgumentError as error:
                if not isinstance(error.__context__, KeyError):  # it is not that a name was missing
                    raise
                lacking = error
        if lacking is not None and not made and not deleted:
            raise lacking
        yield from made


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
            # Without a class they are plain JSON, and the key is made of what the function is really given.
            arguments[name] = value if known is not None else from_json_value(item, name, to_jsonable_python(value))
        args, kwargs = item.signature.spread(arguments)
        return Warm(item, *args, **kwargs)

    return bound
