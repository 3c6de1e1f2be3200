"""``tidings tail``."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from tidings import Cache
from tidings.errors import ConfigurationError

from tidings_worker.tailing.filtering import Wanted
from tidings_worker.tailing.following import Tailing
from tidings_worker.tailing.lines import Line, Outcome
from tidings_worker.telemetry import configure_logging
from tidings_worker.times import parse_since

from .base import AsJson, client_cache, errors, out, print_json, reach_server, reporting
from .tail_views import print_line

Globs = list[str] | None

_OUTCOMES = f"only what came out so: {', '.join(Outcome)}"


@reporting
def tail(  # noqa: PLR0917 the options' order is theirs in the help
    event_type: Annotated[Globs, typer.Option("--type", metavar="GLOB", help="only events of such a type")] = None,
    tag: Annotated[Globs, typer.Option(metavar="GLOB", help="only what invalidates such a tag")] = None,
    namespace: Annotated[
        Globs,
        typer.Option(metavar="GLOB", help="only what invalidates such a namespace, or entries there, or warms them"),
    ] = None,
    subject: Annotated[Globs, typer.Option(metavar="GLOB", help="only events with such a subject")] = None,
    outcome: Annotated[list[Outcome] | None, typer.Option(metavar="OUTCOME", help=_OUTCOMES)] = None,
    since: Annotated[str | None, typer.Option(help="begin there: 10m, 2026-11-21T10:00Z, or an id")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="end after so many")] = None,
    follow: Annotated[bool, typer.Option(help="go on with what happens; else end with what --since has")] = True,
    as_json: AsJson = False,
) -> None:
    """Show events as they are applied and what each one did, and invalidations by services. Ctrl-C ends it.

    An option given twice shows what matches either. Workers tell what events
    do while somebody looks on; before that, the streams show most of it.
    """
    configure_logging(verbose=False)
    if not follow and since is None:
        raise ConfigurationError("--no-follow shows what was: say with --since from when on")
    if since is not None:
        parse_since(since, datetime.now(UTC))  # before anything is asked
    wanted = Wanted(
        types=event_type or (),
        subjects=subject or (),
        tags=tag or (),
        namespaces=namespace or (),
        outcomes=outcome or (),
    )
    with client_cache() as cache:
        reach_server(cache.settings)
        try:
            asyncio.run(_tail(cache, since, _Screen(wanted.wants, count, as_json=as_json), follow=follow))
        except BrokenPipeError:  # whoever reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Screen:
    """Shows lines, until there were so many."""

    def __init__(self, wants: Callable[[Line], bool], count: int | None, *, as_json: bool) -> None:
        self._wants = wants
        self._left = count
        self._as_json = as_json
        self.full = asyncio.Event()

    def tell(self, line: Line) -> None:
        """Show a line if it is wanted."""
        if self.full.is_set() or not self._wants(line):
            return
        if self._as_json:
            print_json(_as_json(line))
        else:
            with out.capture() as captured:  # rich would end the process where nobody reads any more
                print_line(out, line)
            sys.stdout.write(captured.get())
            sys.stdout.flush()
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self.full.set()


def _note(text: str) -> None:
    errors.print(f"tidings: {text}", style="dim", soft_wrap=True)


async def _tail(cache: Cache, since: str | None, screen: _Screen, *, follow: bool) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not by cancelling, as asyncio does it: redis-py takes that for a timeout of its own when it comes between two
        # of its commands, and goes on.
        asyncio.get_running_loop().add_signal_handler(number, screen.full.set)
    tailing = Tailing(cache, screen.tell, _note, screen.full)
    begin = None if since is None else lambda now: parse_since(since, datetime.fromtimestamp(now, UTC))
    try:
        await tailing.begin(begin)
        if follow:
            _note(f"following {cache.telemetry.server}; Ctrl-C ends it")
        if since is not None:
            await tailing.past(patient=follow)
        if follow and not screen.full.is_set():
            await tailing.follow()
    finally:
        await cache.aclose()


def _as_json(line: Line) -> dict[str, Any]:
    """Return plain JSON types; tokens by what they are of."""
    document = {field.name: getattr(line, field.name) for field in fields(line)}
    del document["tokens"]
    return {
        **document,
        "at": line.at.isoformat(timespec="milliseconds"),
        "tags": line.tags,
        "namespaces": line.namespaces,
        "everything": line.everything,
    }
