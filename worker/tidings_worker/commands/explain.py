"""``tidings explain``."""

import asyncio
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from tidings import Cache, Settings

from tidings_worker.escaping import escaped
from tidings_worker.explaining.asking import Servers
from tidings_worker.explaining.documents import document
from tidings_worker.explaining.gathering import Answer, answer
from tidings_worker.explaining.subjects import Subject, by_call, by_key
from tidings_worker.explaining.wording import rows
from tidings_worker.importing import cached_function_at
from tidings_worker.jobs import jobs_pool
from tidings_worker.loading import load_rules
from tidings_worker.rules import Rules
from tidings_worker.telemetry import configure_logging

from .base import AsJson, client_cache, out, print_json, reach_server, reporting


@reporting
def explain(
    what: Annotated[str, typer.Argument(metavar="KEY | MODULE:FUNCTION", help="an entry's key, or a cached function")],
    arguments: Annotated[list[str] | None, typer.Argument(help="its arguments: 42, name=ada; JSON or text")] = None,
    rules: Annotated[list[str] | None, typer.Option(help="rules that say which waiting events concern it")] = None,
    as_json: AsJson = False,
) -> None:
    """Say why an entry is served, or is not: which token changed, by which event or call, through which rule.

    A negative number needs `--` before the arguments.
    """
    configure_logging(verbose=False)
    loaded = load_rules(rules) if rules else None
    function = cached_function_at(what) if what.count(":") == 1 else None  # a key has more
    with client_cache(None if function is None else function.cache.settings) as cache:
        reach_server(cache.settings)
        subject, call = (by_key(cache.keys, what), "") if function is None else by_call(function, arguments or [])
        found = asyncio.run(_ask(cache, subject, call, loaded))
    if as_json:
        print_json(document(found))
    else:
        _print(found)


def jobs_are_nowhere(settings: Settings) -> bool:
    """Say whether the events are on a cluster, where no jobs can be, and nobody has said where these are."""
    return settings.jobs_url is None and settings.url is not None and "+cluster://" in settings.url.get_secret_value()


async def _ask(cache: Cache, subject: Subject, call: str, rules: Rules | None) -> Answer:
    jobs = None if jobs_are_nowhere(cache.settings) else jobs_pool(cache.settings)
    try:
        return await answer(Servers(cache, jobs), subject, call, rules)
    finally:
        if jobs is not None:
            await jobs.aclose()
        await cache.aclose()


def _print(found: Answer) -> None:
    table = Table.grid(padding=(0, 2))
    for label, text in rows(found):
        table.add_row(Text(label, style="bold"), Text(escaped(text), overflow="fold"))
    out.print(table)
