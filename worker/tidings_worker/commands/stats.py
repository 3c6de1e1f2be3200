"""``tidings stats``."""

import asyncio
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from tidings import Cache

from tidings_worker.escaping import escaped
from tidings_worker.jobs import jobs_client
from tidings_worker.looking.reads import Reads, Reported
from tidings_worker.looking.server import Stats, look
from tidings_worker.servers import store_of
from tidings_worker.telemetry import configure_logging
from tidings_worker.times import age

from .base import AsJson, client_cache, out, print_json, reach_server, reporting

#: Namespaces that are shown without ``--all``.
_SHOWN = 20
#: Counts up to this are written in full.
_EXACT = 9999

_COLUMNS = ("entries", "reads", "hit", "local", "missed", "inval", "loads", "ms", "age", "failed")


class Window(StrEnum):
    """How far back reads are shown; the names are those of `reads.SPANS`."""

    MINUTES = "5m"
    HOUR = "1h"


Within = Annotated[Window, typer.Option("--window", help="how far back reads are shown")]
Namespaces = Annotated[list[str] | None, typer.Option("--namespace", "-n", help="show these namespaces only")]
All = Annotated[bool, typer.Option("--all", help=f"show every namespace, not only the {_SHOWN} that are read most")]


@reporting
def stats(
    window: Within = Window.MINUTES,
    namespace: Namespaces = None,
    every: All = False,
    as_json: AsJson = False,
) -> None:
    """Show events, groups and what the workers have done; and by namespace entries, reads and hit rates.

    Of the reads: the part that was a hit, and that was one in a process's own memory; how many found nothing, or what
    had been invalidated; loads and their mean milliseconds; the mean age of what Redis served; and what failed, in
    Redis, in loads, in decoding. They are what processes report every TIDINGS_REPORT_INTERVAL seconds.
    """
    configure_logging(verbose=False)
    with client_cache() as cache:
        reach_server(cache.settings)  # says within the operation timeout that it is away or frozen
        found = asyncio.run(_look(cache))
        if namespace:
            found = found.only(namespace)
        if as_json:
            print_json({"server": cache.telemetry.server, **found.as_json()})
        else:
            _print_stats(cache.telemetry.server, found)
            out.print()
            _print_reads(found, window, None if every else _SHOWN)


async def _look(cache: Cache) -> Stats:
    try:
        async with jobs_client(cache.settings) as jobs:
            warms_queued = await jobs.zcard(cache.keys.jobs)
        return await look(store_of(cache), cache.keys, cache.settings.partitions, warms_queued)
    finally:
        await cache.aclose()


def _print_stats(server: str, stats: Stats) -> None:
    out.print(server, soft_wrap=True)
    table = Table("what", "count", box=None, pad_edge=False)
    table.add_row("events in the stream", str(stats.events))
    for group in stats.groups:
        lag = "?" if group.lag is None else str(group.lag)
        table.add_row(
            Text(f"  group {escaped(group.name)} of {group.stream}"),
            f"{lag} to read, {group.pending} pending, {group.consumers} consumers",
        )
    table.add_row("dead letters", str(stats.dead_letters))
    table.add_row("invalidations in the log", str(stats.invalidations_logged))
    table.add_row("warms queued", str(stats.warms_queued))
    for name, count in stats.worker.items():
        table.add_row(Text(f"worker: {escaped(name)}"), str(count))
    out.print(table)


def _print_reads(stats: Stats, window: Window, most: int | None) -> None:
    """Print the namespaces, those that are read most first; the entries of those that nobody reads are shown, too."""
    reported = stats.reads[window]
    reads = {**dict.fromkeys(stats.entries, Reads()), **reported.namespaces}
    names = sorted(reads, key=lambda name: (-reads[name].reads, -stats.entries.get(name, 0), name))
    out.print(_headline(reported))
    if not names:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("namespace", overflow="fold")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    if len(names) > 1:
        table.add_row("(all)", *_cells(sum(stats.entries.values()), reported.total))
    for name in names[:most]:
        table.add_row(Text(escaped(name)), *_cells(stats.entries.get(name, 0), reads[name]))
    out.print(table)
    if not stats.entries_complete:
        out.print("There are more entries than were counted.")
    if most is not None and len(names) > most:
        out.print(f"{len(names) - most} more namespaces: --all")


def _headline(reported: Reported) -> str:
    within = f"the last {age(reported.seconds)}"
    if not reported.processes:
        return f"Nothing was reported of reads in {within}: nobody read, or TIDINGS_REPORT_INTERVAL is 0 there."
    processes = "1 process" if reported.processes == 1 else f"{reported.processes} processes"
    more = "" if reported.invalidations_complete else " or more"
    each = reported.loads_per_invalidation
    loads = "" if each is None else f", {each} loads each"
    return f"Reads of {within}, as {processes} reported them; {reported.invalidations}{more} invalidations{loads}."


def _cells(entries: int, reads: Reads) -> list[str]:
    counters = reads.counters
    return [
        _short(entries),
        _short(reads.reads),
        _percent(reads.hit_rate),
        _percent(reads.local_rate),
        _short(counters["misses"]),
        _short(counters["invalidated"]),
        _short(counters["loads"]),
        _ms(reads.load_ms),
        _age(reads.age_at_hit_s),
        _short(reads.failures),
    ]


def _short(count: int) -> str:
    """Write a count in at most six characters, up to a million millions; rounded down."""
    if count <= _EXACT:
        return str(count)
    thousands = min(4, (len(str(count)) - 1) // 3)
    return f"{count // 10 ** (3 * thousands - 1) / 10}{'kMGT'[thousands - 1]}"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}%"


def _ms(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.1f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
