"""``tidings lint``."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tidings import get_cache

from tidings_worker.importing import imported
from tidings_worker.loading import load_rules
from tidings_worker.project import modules_of, with_submodules
from tidings_worker.registry import shown_path
from tidings_worker.telemetry import configure_logging

from .base import EXIT_FOUND, AsJson, errors, out, print_json, reach_server, reporting, several

if TYPE_CHECKING:
    from tidings_worker.lint.findings import Finding, Served
    from tidings_worker.lint.linting import Report


@reporting
def lint(  # noqa: PLR0917 typer calls it by name
    targets: Annotated[list[str], typer.Argument(metavar="TARGET", help="rules: MODULE:RULES or a file.toml")],
    module: Annotated[
        list[str] | None,
        typer.Option(help="a module or package with cached functions or events that rules do not import"),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="a code to leave out; may be repeated")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="ask the server of TIDINGS_URL which events there are, too")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="also say what cannot be told")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what does not fit together: events without a rule, tags without a reader, warms that cannot bind.

    One line for each, FILE:LINE: CODE what and what to do. A comment on that line, or on the lines of the def or
    call around it, silences it: # tidings: ignore[CODE]. Exits 0 if nothing is found, 1 if something is, 2 if the rules
    cannot be loaded.
    """
    from tidings_worker.lint import linting  # noqa: PLC0415 no other command has to wait for it

    configure_logging(verbose=False)
    rules = load_rules(targets)
    roots = [target.partition(":")[0] for target in targets if not target.endswith(".toml")]
    for name in module or ():
        roots.extend(found.__name__ for found in with_submodules(imported(name)))
    report = linting.lint(
        rules,
        modules_of(roots),
        target=_file_of(targets[0]),
        served=asyncio.run(_served()) if server else None,
        ignored=ignore or (),
    )
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report, verbose=verbose)
    raise typer.Exit(EXIT_FOUND if report.found else 0)


async def _served() -> "Served":
    from tidings_worker.lint.served import served  # noqa: PLC0415

    cache = get_cache()  # as the worker: the rules' modules may have configured it
    reach_server(cache.settings)
    try:
        return await served(cache)
    finally:
        await cache.aclose()


def _file_of(target: str) -> str:
    """Return the file that stands for rules as a whole."""
    if target.endswith(".toml"):
        return target
    return sys.modules[target.partition(":")[0]].__file__ or target


def _print(report: "Report", *, verbose: bool) -> None:
    for finding in [*report.found, *(report.notes if verbose else ())]:
        out.print(f"{_place(finding)} {finding.code} {finding.message}", markup=False, soft_wrap=True)
    looked = f"{several(report.rules, 'rule')}, {several(report.readers, 'cached function')}"
    more = "" if verbose or not report.notes else f"; {len(report.notes)} cannot be told, see --verbose"
    said = f"{several(len(report.found), 'finding')} in {looked}{more}"
    errors.print(said, markup=False, soft_wrap=True)


def _place(finding: "Finding") -> str:
    place = finding.spot.place
    return f"{shown_path(place.file)}:{place.line}:"


def _as_json(report: "Report") -> dict[str, Any]:
    return {
        "findings": [_row(finding) for finding in report.found],
        "notes": [_row(finding) for finding in report.notes],
        "rules": report.rules,
        "functions": report.readers,
    }


def _row(finding: "Finding") -> dict[str, Any]:
    place = finding.spot.place
    return {"file": shown_path(place.file), "line": place.line, "code": finding.code, "message": finding.message}
