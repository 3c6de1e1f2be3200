"""``tidings replay``: a stretch of the event streams once more, dry or real."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from tidings import Cache, get_cache
from tidings.errors import ConfigurationError
from tidings.event_ids import as_pair

from tidings_worker.clock import server_now
from tidings_worker.escaping import escaped
from tidings_worker.jobs import jobs_client
from tidings_worker.loading import load_rules
from tidings_worker.queueing import WarmQueue
from tidings_worker.replaying import Effect, Meant, Replay, Summary, Tally
from tidings_worker.rules import Rules
from tidings_worker.servers import store_of
from tidings_worker.settings import WorkerSettings
from tidings_worker.stretches import Stretch, stretch_of
from tidings_worker.telemetry import configure_logging
from tidings_worker.times import parse_since, parse_until

from .base import EXIT_FOUND, AsJson, errors, out, print_json, reach_server, reporting
from .progress import progress

#: Rows of a table, and problems, that are printed; JSON has more.
_ROWS = 20


@reporting
def replay(  # noqa: PLR0917 typer calls it by name
    targets: Annotated[
        list[str], typer.Argument(metavar="TARGET...", help="rules to run: MODULE:RULES, or FILE.toml, as the worker's")
    ],
    since: Annotated[str, typer.Option(help="from when on: 10m, 2026-11-21T10:00Z, or a stream id")],
    until: Annotated[str | None, typer.Option(help="up to when, as --since; else to the end that there is now")] = None,
    event_type: Annotated[list[str] | None, typer.Option("--type", help="only this type; may be repeated")] = None,
    subject: Annotated[str | None, typer.Option(help="only events about this")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what each event would do, and do nothing")] = False,
    no_warm: Annotated[bool, typer.Option("--no-warm", help="invalidate only")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a stretch of the event streams again: invalidate what its events make wrong under these rules, and warm.

    Workers are not disturbed: nothing is published, acknowledged or taken from
    them. With --dry-run --json every event is a line of JSON, and the last line
    is the summary.

    Exit code 1: an event cannot be read, a rule fails, or some of the stretch
    may have been removed from the stream.
    """
    configure_logging(verbose=False)
    settings = WorkerSettings.load()
    rules = load_rules(targets)
    cache = get_cache()  # as the worker: the rules' modules may have configured it
    reach_server(cache.settings)
    told = _told(as_json=as_json) if dry_run else _nothing
    meant = Meant(frozenset(event_type or ()), subject)

    async def run() -> tuple[Summary, list[Stretch]]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(cache.aclose)
            store = store_of(cache)
            now = await server_now(store, cache.keys.events)
            first, last = parse_since(since, now), None if until is None else parse_until(until, now)
            if last is not None and as_pair(last) < as_pair(first):
                raise ConfigurationError(f"--until {until} is before --since {since}")
            streams = [stream.events for stream in cache.keys.streams(cache.settings.partitions)]
            stretches = [await stretch_of(store, stream, first, last) for stream in streams]
            warmer = None if dry_run or no_warm else await _warmer(cache, stack)
            replaying = Replay(
                cache,
                store,
                rules,
                warmer,
                dry=dry_run,
                batch=settings.batch,
                snapshot_reads=settings.snapshot_reads,
                seen=told,
            )
            with progress("events") as advance:
                for stretch in stretches:
                    async for amount in replaying.run(stretch, meant):
                        advance(amount)
            return replaying.summary, stretches

    summary, stretches = asyncio.run(run())
    if as_json:
        print_json({"server": cache.telemetry.server, "dry_run": dry_run, **_as_json(summary, stretches)})
    else:
        _print(summary, stretches, rules, dry=dry_run)
    if summary.problems or any(stretch.missing for stretch in stretches):
        raise typer.Exit(EXIT_FOUND)


async def _warmer(cache: Cache, stack: AsyncExitStack) -> WarmQueue:
    pool = await stack.enter_async_context(jobs_client(cache.settings))
    await pool.ping()  # before anything is invalidated that could then not be warmed
    return WarmQueue(pool, cache.keys.jobs)


def _nothing(_: Effect) -> None:
    pass


def _told(*, as_json: bool) -> Callable[[Effect], None]:
    """Return what prints each event and what it would do."""

    def line(effect: Effect) -> None:
        if as_json:
            print_json(_effect_as_json(effect))
        else:
            out.print(Text(escaped(_in_words(effect))), soft_wrap=True)

    return line


def _in_words(effect: Effect) -> str:
    what = [*effect.tokens, *effect.warms]
    if effect.ignored is not None:
        what.append(f"ignored: {effect.ignored}")
    elif effect.problem is not None:
        what.append(f"FAILS: {effect.problem}")
    elif not effect.ruled:
        what.append("no rule")
    elif not what:
        what.append("nothing")
    subject = f" {effect.subject}" if effect.subject else ""
    return f"{effect.stream_id} {effect.type or '?'}{subject} -> {', '.join(what)}"


def _effect_as_json(effect: Effect) -> dict[str, Any]:
    return {
        "stream": effect.stream,
        "stream_id": effect.stream_id,
        "type": effect.type,
        "subject": effect.subject,
        "tokens": effect.tokens,
        "warms": effect.warms,
        "ruled": effect.ruled,
        "ignored": effect.ignored,
        "problem": effect.problem,
    }


def _as_json(summary: Summary, stretches: list[Stretch]) -> dict[str, Any]:
    return {
        "stretches": [
            {
                "stream": one.stream,
                "exists": one.exists,
                "first": one.first,
                "last": one.last,
                "missing": one.missing,
            }
            for one in stretches
        ],
        "read": summary.read,
        "applied": summary.applied,
        "types": dict(summary.types),
        "unruled": dict(summary.unruled),
        "ignored": dict(summary.ignored),
        "tokens": dict(summary.tokens),
        "tokens_beyond": summary.tokens.others,
        "warms": dict(summary.warms),
        "problems": summary.problems,
        "failed": [
            {"stream": s, "stream_id": stream_id, "problem": problem} for s, stream_id, problem in summary.failed
        ],
    }


def _print(summary: Summary, stretches: list[Stretch], rules: Rules, *, dry: bool) -> None:
    table = Table("what", "events", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    words = "would invalidate" if dry else "invalidated"
    rows = (
        ("", summary.types),
        (f"{words} ", summary.tokens),
        ("would warm " if dry else "warms handed off: ", summary.warms),
        ("no rule for ", summary.unruled),
        ("ignored: ", summary.ignored),
    )
    for what, tally in rows:
        _add(table, what, tally)
    if table.row_count:
        out.print(table)
    read = f"{summary.read} events read, {summary.applied} {'would be run' if dry else 'run'} again"
    ignored = sum(summary.ignored.values()) + summary.ignored.others
    out.print(f"{read}, {ignored} ignored, {summary.problems} failed")
    if not any(one.exists for one in stretches):
        errors.print(f"there is no stream {stretches[0].stream} yet", style="yellow")
    if not rules.event_types:
        errors.print("these rules are for no event at all", style="yellow")
    for stream, stream_id, problem in summary.failed[:_ROWS]:
        errors.print(escaped(f"{stream} {stream_id}: {problem}"), style="red", soft_wrap=True)
    if summary.problems > _ROWS:
        errors.print(f"and {summary.problems - _ROWS} more", style="red")
    for one in stretches:
        if one.missing:
            errors.print(one.missing, style="red", soft_wrap=True)


def _add(table: Table, what: str, tally: Tally) -> None:
    for name, amount in tally.most_common(_ROWS):
        table.add_row(Text(f"{what}{escaped(name)}"), str(amount))
    more = len(tally) - _ROWS
    if more > 0:
        also = f", and others in {tally.others} events" if tally.others else ""
        table.add_row(f"{what}{more} more{also}", "")
