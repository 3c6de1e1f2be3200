"""``tidings stats``."""

import asyncio

from rich.table import Table
from tidings import Cache

from tidings_worker.inspection import Stats, look
from tidings_worker.jobs import jobs_pool
from tidings_worker.servers import store_of
from tidings_worker.telemetry import configure_logging

from .base import AsJson, client_cache, out, print_json, reach_server, reporting


@reporting
def stats(as_json: AsJson = False) -> None:
    """Show the event stream, how far its groups are, what the workers have done, and the entries by namespace."""
    configure_logging(verbose=False)
    with client_cache() as cache:
        reach_server(cache.settings)  # says within the operation timeout that it is away or frozen
        found = asyncio.run(_look(cache))
        if as_json:
            print_json({"server": cache.telemetry.server, **found.as_json()})
        else:
            _print_stats(cache.telemetry.server, found)


async def _look(cache: Cache) -> Stats:
    jobs = jobs_pool(cache.settings)
    try:
        return await look(store_of(cache), jobs, cache.keys, cache.settings.partitions)
    finally:
        await jobs.aclose()
        await cache.aclose()


def _print_stats(server: str, stats: Stats) -> None:
    table = Table("what", "count", title=server, title_justify="left", box=None, pad_edge=False)
    table.add_row("events in the stream", str(stats.events))
    for group in stats.groups:
        lag = "?" if group.lag is None else str(group.lag)
        table.add_row(
            f"  group {group.name} of {group.stream}",
            f"{lag} to read, {group.pending} pending, {group.consumers} consumers",
        )
    table.add_row("dead letters", str(stats.dead_letters))
    table.add_row("invalidations in the log", str(stats.invalidations_logged))
    table.add_row("warms queued", str(stats.warms_queued))
    for name, count in stats.worker.items():
        table.add_row(f"worker: {name}", str(count))
    more = "" if stats.entries_complete else " or more"
    for namespace, count in stats.entries.items():
        table.add_row(f"entries in {namespace}", f"{count}{more}")
    out.print(table)
