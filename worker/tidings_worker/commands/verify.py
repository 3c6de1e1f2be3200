"""``tidings verify``."""

import asyncio
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from tidings import Cache, get_cache
from tidings.errors import ConfigurationError
from tidings.keys import check_namespace

from tidings_worker.importing import imported
from tidings_worker.loading import load_rules
from tidings_worker.project import with_submodules
from tidings_worker.telemetry import configure_logging
from tidings_worker.threads import DaemonThreads
from tidings_worker.verifying.audit import Audit
from tidings_worker.verifying.plan import Plan
from tidings_worker.verifying.reports import Report

from . import verify_views as views
from .base import EXIT_FOUND, AsJson, print_json, reach_server, reporting
from .progress import progress

_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


@reporting
def verify(  # noqa: PLR0917 typer calls it by name
    targets: Annotated[
        list[str],
        typer.Argument(metavar="TARGET…", help="modules or packages with cached functions, or rules, to import"),
    ],
    namespace: Annotated[list[str] | None, typer.Option(help="only this namespace; may be repeated")] = None,
    sample: Annotated[int, typer.Option(min=1, max=1_000_000, help="entries to check, of all namespaces")] = 1000,
    rate: Annotated[str, typer.Option(help="loads at most: 50/s, 100/m")] = "50/s",
    longest: Annotated[str, typer.Option("--for", help="begin no entry after so long: 60s, 5m")] = "60s",
    grace: Annotated[str, typer.Option(help="what a writer has from its commit to its event: 2s, 500ms")] = "2s",
    repair: Annotated[bool, typer.Option("--repair", help="invalidate the entries that are stale")] = False,
    values: Annotated[bool, typer.Option("--values", help="show what differs, whoever's data it is")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a sample of the cached entries again, compare, and say how many are not what their functions return.

    What differs is looked at again once every event from before is applied. Exits 1 when an entry is stale.
    """
    configure_logging(verbose=False)
    plan = Plan(
        sample,
        per_second(rate),
        seconds("--for", longest),
        seconds("--grace", grace),
        namespaces=tuple(map(check_namespace, namespace or ())),
        repair=repair,
        values=values,
    )
    _import(targets)
    cache = get_cache()  # of which the functions are, and after their modules, which may configure it
    reach_server(cache.settings)
    with progress("verifying", sample) as shown:
        report = asyncio.run(_audit(cache, plan, shown))
    if as_json:
        print_json(report.as_json())
    else:
        views.show(report)
    if report.stale:
        raise typer.Exit(EXIT_FOUND)


async def _audit(cache: Cache, plan: Plan, shown: Callable[[int], None]) -> Report:
    """Audit until it is done, or until Ctrl-C; a second one ends the process."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads())  # a load that hangs in a thread must not hold up the end
    stop = asyncio.Event()

    def ask() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    try:
        return await Audit(cache, plan, progress=shown).run(stop)
    finally:
        loop.set_default_executor(DaemonThreads())  # closing needs a thread, and loads may hang in all of the others
        await cache.aclose(drain_timeout=0)


def _import(targets: Sequence[str]) -> None:
    """Import modules, and what rules need. Raises ConfigurationError."""
    rules = [target for target in targets if ":" in target or target.endswith(".toml")]
    for target in targets:
        if target not in rules:
            deque(with_submodules(imported(target)), 0)
    if rules:
        load_rules(rules)


def seconds(option: str, text: str) -> float:
    """Return how long a text says, in seconds. Raises ConfigurationError."""
    found = _SECONDS.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{option} {text!r:.60} is no time: write 500ms, 60s, 5m or 1h")
    return float(found[1]) * _UNITS[found[2] or "s"]


def per_second(text: str) -> float:
    """Return how many a second a text says. Raises ConfigurationError."""
    found = _RATE.fullmatch(text.strip())
    rate = 0.0 if found is None else float(found[1]) / _UNITS[found[2] or "s"]
    if not rate:
        raise ConfigurationError(f"--rate {text!r:.60} is no rate: write 50/s or 100/m")
    return rate
