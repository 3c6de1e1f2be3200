"""``tidings keys``."""

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from tidings.errors import ConfigurationError

from tidings_worker.importing import imported
from tidings_worker.project import with_submodules
from tidings_worker.registry import Collision, Registration, cached_functions, collisions, registration_of, shown_path
from tidings_worker.telemetry import configure_logging

from .base import EXIT_FOUND, AsJson, errors, out, print_json, reporting


class Format(StrEnum):
    """How the registry is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"


@reporting
def keys(
    modules: Annotated[list[str], typer.Argument(metavar="MODULE", help="modules, or packages with all in them")],
    form: Annotated[Format | None, typer.Option("--format", help="how to print it", show_default="table")] = None,
    as_json: AsJson = False,
) -> None:
    """Print every cached function that these modules define: namespace, key, tags, ttl and options.

    It imports them and asks no server. Keys have the prefix and version of the settings before them. Exits 1 when two
    functions could share an entry. Not seen: entries of get_or_set, which their callers name, and functions that are
    made only when something else is called.
    """
    configure_logging(verbose=False)
    if as_json and form not in {None, Format.JSON}:
        raise ConfigurationError(f"--json and --format {form} are two forms; give one of them")
    as_json = as_json or form is Format.JSON
    names = [module.__name__ for name in modules for module in with_submodules(imported(name))]
    functions = cached_functions(names)
    found = sorted(map(registration_of, functions), key=lambda one: (one.namespace, one.function, one.place))
    shared = collisions(functions)
    if as_json:
        print_json({"functions": list(map(_row, found)), "collisions": list(map(_collision, shared))})
    elif form is Format.MARKDOWN:
        _print_markdown(found)
    else:
        _print_tables(found)
    if not found and not as_json:
        errors.print(f"no cached function is defined in {', '.join(modules)}", markup=False, soft_wrap=True)
    for one in shared:
        places = " and ".join(map(_where, one.functions))
        errors.print(
            f"tidings: {places}: functions named {one.functions[0].function} would share the entries {one.key}; "
            "give each another name, namespace or key",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    raise typer.Exit(EXIT_FOUND if shared else 0)


_HEAD = ("function", "key", "tags", "ttl and options")


def _cells(one: Registration) -> tuple[list[str], ...]:
    """Return what is in one row, in the order of the head: for each cell its lines."""
    kind = "async def" if one.is_async else "def"
    return (
        [f"{kind} {one.function.partition(':')[2]}", _where(one)],
        [one.key.removeprefix(f"cache:{one.namespace}:")],
        list(one.tags),
        [f"ttl={_number(one.ttl)}", *(f"{name}={_number(value)}" for name, value in one.options.items())],
    )


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)  # noqa: PLR2004 then %g has an exponent


def _where(one: Registration) -> str:
    return f"{shown_path(one.place.file)}:{one.place.line}"


def _by_namespace(found: Sequence[Registration]) -> list[tuple[str, list[Registration]]]:
    return [(name, list(several)) for name, several in groupby(found, key=lambda one: one.namespace)]


def _print_tables(found: Sequence[Registration]) -> None:
    for number, (namespace, several) in enumerate(_by_namespace(found)):
        if number:
            out.print()
        out.print(Text(f"cache:{namespace}:", style="bold"))
        table = Table(box=None, pad_edge=False)
        for name in _HEAD:
            table.add_column(name, overflow="fold", no_wrap=name == _HEAD[-1])
        for one in several:
            table.add_row(*(Text("\n".join(lines)) for lines in _cells(one)))
        out.print(table)


def _print_markdown(found: Sequence[Registration]) -> None:
    for number, (namespace, several) in enumerate(_by_namespace(found)):
        lines = [f"## {namespace}", "", f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
        for one in several:
            cells = (", ".join(map(_coded, cell)) for cell in _cells(one))
            lines.append(f"| {' | '.join(cells)} |")
        typer.echo("\n".join(([""] if number else []) + lines))


def _coded(text: str) -> str:
    bars_escaped = text.replace("|", "\\|")
    return f"`{bars_escaped}`"


def _row(one: Registration) -> dict[str, Any]:
    row = asdict(one)
    del row["place"]
    row["async"] = row.pop("is_async")
    return {**row, "file": shown_path(one.place.file), "line": one.place.line}


def _collision(one: Collision) -> dict[str, Any]:
    return {"key": one.key, "functions": list(map(_row, one.functions))}
