"""Warms as a rules file writes them: a cached function, and what to call it with. Pure.

``{ call = "myapp.users:get_user", with = { user_id = "{id}" } }``: texts with braces are templates over the event's
data, everything else is meant as it stands. ``"{id}"`` alone is the value itself, not its text.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from tidings.described import Described
from tidings.errors import ArgumentError
from tidings.templates import Field, Template, text_of

from tidings_worker.calls import from_json_value
from tidings_worker.mapping import warm_of
from tidings_worker.plans import Hot, Warm

#: Looks a name up in an event's data; raises KeyError.
ValueOf = Callable[[str], Any]
#: What a parameter is given: a template, or a value that fits the parameter already.
Argument = Template | Any

_VARIABLE = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def parameters_of(function: Described[Any, Any]) -> dict[str, bool]:
    """Return the parameters that can be named, and of each whether it has to be given."""
    parameters = inspect.signature(function.uncached).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind not in _VARIABLE}


def literal_of(function: Described[Any, Any], name: str, value: Any) -> Any:
    """Return a TOML value as the parameter has it. Raises ArgumentError when it does not fit."""
    return from_json_value(function, name, json.loads(json.dumps(value, default=lambda time: text_of(time, name))))


def call_of(
    function: Described[Any, Any], given: Mapping[str, Argument], *, typed: bool, where: str
) -> Callable[[ValueOf], Warm | Hot]:
    """Return what makes a warm of an event's values; parameters that are not `given` get fields of the same name.

    `typed`: the event's class has made what is looked up, so that it is as the function's annotations say. Otherwise it
    is plain JSON. What is made raises ArgumentError for values that are missing or do not fit.
    """
    # Every parameter is "known", so that values are taken as they are looked up: they are converted here.
    bound = warm_of(function, set(parameters_of(function)), where)

    def made(value_of: ValueOf) -> Warm | Hot:
        def argument(name: str) -> Any:
            if name not in given:
                value = value_of(name)
                return value if typed else from_json_value(function, name, value)
            value = given[name]
            if not isinstance(value, Template):
                return value
            field = _only_field(value)
            if field is None:
                return from_json_value(function, name, value.render(value_of))
            found = _found(field, value_of, value.text)
            return found if typed else from_json_value(function, name, found)

        return bound(argument)

    return made


def _only_field(template: Template) -> Field | None:
    """Return the field that a template is nothing more than."""
    match template.parts:
        case (Field(format_spec="") as field,):
            return field
    return None


def _found(field: Field, value_of: ValueOf, text: str) -> Any:
    try:
        value = value_of(field.name)
        for attribute in field.attributes:
            value = getattr(value, attribute)
    except (KeyError, AttributeError) as error:
        raise ArgumentError(f"the template {text!r} needs {field.name!r}: {error}") from error
    return value
