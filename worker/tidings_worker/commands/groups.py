"""``tidings groups``."""

import asyncio
from typing import Annotated

import typer
from tidings import Cache

from tidings_worker.escaping import escaped
from tidings_worker.looking.groups import Groups, GroupView, StreamView, view_groups
from tidings_worker.servers import store_of
from tidings_worker.telemetry import configure_logging
from tidings_worker.times import age

from .base import EXIT_FOUND, AsJson, client_cache, errors, out, print_json, reach_server, reporting

#: Consumers of a group that are printed; JSON has all.
_CONSUMERS = 20


@reporting
def groups(
    max_lag: Annotated[int | None, typer.Option(min=0, help="exit 1 if the workers have more events to read")] = None,
    max_age: Annotated[float | None, typer.Option(min=0, help="exit 1 if an event waits for more seconds")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far the workers are in each event stream, who they are, and what waits since when.

    With --max-lag or --max-age this is a check: exit code 1 where the workers'
    own group is further behind. An event waits from when it was published until
    it is acknowledged.
    """
    configure_logging(verbose=False)
    with client_cache() as cache:
        reach_server(cache.settings)
        found = asyncio.run(_look(cache))
    late = found.late(max_lag, max_age)
    if as_json:
        print_json({"server": cache.telemetry.server, **found.as_json(), "late": late})
    else:
        _print(found)
    for one in late:
        errors.print(one, style="red", soft_wrap=True)
    if late:
        raise typer.Exit(EXIT_FOUND)


async def _look(cache: Cache) -> Groups:
    try:
        return await view_groups(store_of(cache), cache.keys, cache.settings.partitions, cache.settings.group)
    finally:
        await cache.aclose()


def _print(found: Groups) -> None:
    for stream in found.streams:
        _print_stream(stream, found.group)
    for name in found.beyond:
        cure = "give TIDINGS_PARTITIONS of publishers and workers the same number, the greatest there is"
        errors.print(f"{name}: a partition with events that nobody reads; {cure}", style="red", soft_wrap=True)


def _print_stream(stream: StreamView, ours: str) -> None:
    if not stream.exists:
        out.print(f"{stream.name}: no such stream; it is made by the first event or worker")
        return
    out.print(f"{stream.name}: {stream.events} events")
    if not any(group.ours for group in stream.groups):
        out.print(f"  no group {ours}: no worker has read it yet")
    for group in stream.groups:
        _print_group(group)


def _print_group(group: GroupView) -> None:
    unread = f", the oldest for {age(group.oldest_unread_seconds)}" if group.oldest_unread_seconds else ""
    pending = f", the oldest for {age(group.oldest_pending_seconds)}" if group.oldest_pending_seconds else ""
    name = f"{escaped(group.name)}{'' if group.ours else ' (not of these workers)'}"
    lines = [
        f"  group {name}, at {group.last_delivered}",
        f"    {'?' if group.lag is None else group.lag} to read{unread}",
        f"    {group.pending} pending{pending}",
        *(
            f"    {escaped(one.name)}: {one.pending} pending, heard of {age(one.idle_seconds)} ago"
            for one in group.consumers[:_CONSUMERS]
        ),
    ]
    if not group.consumers:
        lines.append("    no consumers")
    if len(group.consumers) > _CONSUMERS:
        lines.append(f"    and {len(group.consumers) - _CONSUMERS} more consumers")
    for line in lines:
        out.print(line, soft_wrap=True)
