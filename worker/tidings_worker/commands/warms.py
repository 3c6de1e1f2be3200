"""``tidings warms``, and ``tidings warm``."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text
from tidings import Cache
from tidings.settings import redact

from tidings_worker.escaping import escaped
from tidings_worker.explaining.subjects import bound
from tidings_worker.importing import cached_function_at
from tidings_worker.jobs import jobs_client, jobs_url
from tidings_worker.looking.warms import Failure, Job, Warms, view_warms
from tidings_worker.plans import Warm
from tidings_worker.queueing import WarmQueue
from tidings_worker.telemetry import configure_logging
from tidings_worker.times import age

from .base import AsJson, client_cache, errors, out, print_json, reporting


@reporting
def warms(
    limit: Annotated[int, typer.Option(min=0, help="warms of each kind that are named, at most")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the queue of warms: how long it is, what runs, what is next, and what keeps failing."""
    configure_logging(verbose=False)
    with client_cache() as cache:
        where = redact(jobs_url(cache.settings))
        found = asyncio.run(_look(cache, limit))
    if as_json:
        print_json({"server": where, **found.as_json()})
    else:
        _print(found, where)


@reporting
def warm(
    function: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="a cached function")],
    arguments: Annotated[list[str] | None, typer.Argument(help="its arguments: 42, name=ada; JSON or text")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="load it even if what is cached is still valid")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a worker load an entry ahead of its readers; the worker must have the function's module loaded."""
    configure_logging(verbose=False)
    found = cached_function_at(function)
    args, kwargs = bound(found, arguments or [])
    asked = Warm(found, *args, **kwargs)
    with client_cache(found.cache.settings) as cache:
        where = redact(jobs_url(cache.settings))
        asyncio.run(_hand_off(cache, asked, refresh=refresh))
    if as_json:
        print_json({"server": where, "name": asked.name, "function": asked.function, "refresh": refresh})
    else:
        _line(asked.name)


async def _hand_off(cache: Cache, asked: Warm, *, refresh: bool) -> None:
    async with jobs_client(cache.settings) as pool:
        await WarmQueue(pool, cache.keys.jobs).hand_off([asked], refresh=refresh)


async def _look(cache: Cache, limit: int) -> Warms:
    async with jobs_client(cache.settings) as pool:
        return await view_warms(pool, cache.keys.jobs, cache.keys.failing, limit=limit)


def _print(found: Warms, where: str) -> None:
    more = "" if found.complete else " or more"
    oldest = "" if found.oldest_seconds is None else f", the oldest waits for {age(found.oldest_seconds)}"
    waiting = max(0, found.queued - found.later - found.running_count)
    out.print(where)
    out.print(f"{found.queued} queued: {waiting} waiting{oldest}, {found.later} due later", soft_wrap=True)
    out.print(f"{found.running_count}{more} running")
    _print_jobs(found.running)
    if found.next:
        out.print("next:")
    _print_jobs(found.next)
    out.print(f"{found.failing_count} failing")
    for one in found.failing:
        _line(f"  {one.call} {one.arguments}")
        _line(f"    {_in_words(one)}")
    if found.failing_count > len(found.failing):
        errors.print(f"and {found.failing_count - len(found.failing)} more that fail; --limit shows more")


def _print_jobs(jobs: Sequence[Job]) -> None:
    for job in jobs:
        due = (
            f"due for {age(job.overdue_seconds)}" if job.overdue_seconds >= 0 else f"due in {age(-job.overdue_seconds)}"
        )
        _line(f"  {job.call} {job.arguments}  {due}{'' if job.worker is None else f', by {job.worker}'}")


def _in_words(one: Failure) -> str:
    times = "once" if one.failures == 1 else f"{one.failures} times"
    return (
        f"{one.error}: {one.message} ({times}, for {age(one.first_seconds_ago)}, last {age(one.last_seconds_ago)} ago)"
    )


def _line(text: str) -> None:
    out.print(Text(escaped(text)), soft_wrap=True)
