"""``tidings dlq list|show|replay|drop``: the events that were set aside, and what becomes of them."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import typer
from tidings import Cache
from tidings.errors import ConfigurationError, UnavailableError

from tidings_worker.dead_letters.box import PAGE, Applied, DeadLetters, Outcome, became
from tidings_worker.dead_letters.letters import Letter, Wanted
from tidings_worker.servers import store_of
from tidings_worker.telemetry import configure_logging
from tidings_worker.times import parse_since

from . import dlq_views as views
from .base import EXIT_FOUND, AsJson, client_cache, errors, out, print_json, reach_server, reporting
from .progress import progress

T = TypeVar("T")

dlq = typer.Typer(
    no_args_is_help=True, help="The dead letters: events that could not be applied, each with its reason."
)

_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID…", help="letters by their ids, as `list` shows them")]
All = Annotated[bool, typer.Option("--all", help="every letter, or of those that --type, --reason and --since leave")]
Type = Annotated[str | None, typer.Option("--type", help="only events of this type")]
Reason = Annotated[str | None, typer.Option(help="only letters with this text in their reason")]
Since = Annotated[str | None, typer.Option(help="only letters from then on: 10m, 2026-11-21T10:00Z, or an id")]


@reporting
def list_letters(
    event_type: Type = None,
    reason: Reason = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="so many at most")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the dead letters, the newest first."""

    async def read(cache: Cache, box: DeadLetters) -> views.Listing:
        wanted = await _wanted(box, event_type, reason, since)
        total, now = await box.count(), (await box.now()).timestamp()
        shown: list[Letter] = []
        matching = 0
        with progress("reading dead letters", total) as advance:
            async for page in box.pages(wanted, newest_first=True):
                matching += len(page)
                shown += page[: limit - len(shown)]
                if wanted == Wanted() and len(shown) == limit:
                    matching = total
                    break
                advance(PAGE)
        return views.Listing(cache.telemetry.server, shown, max(matching, len(shown)), total, now)

    listing = _run(read)
    if as_json:
        print_json(listing.as_json())
    else:
        views.print_listing(listing)


@reporting
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="the letter's id, as `list` shows it")],
    as_json: AsJson = False,
) -> None:
    """Show everything about one dead letter: why, where from, the event as it was, and what may be done about it."""
    _check([letter_id])

    async def read(_: Cache, box: DeadLetters) -> tuple[Letter | None, float]:
        return await box.whole(letter_id), (await box.now()).timestamp()

    letter, now = _run(read)
    if letter is None:
        errors.print(f"no dead letter {letter_id}", style="red")
        raise typer.Exit(EXIT_FOUND)
    if as_json:
        print_json(views.letter_as_json(letter, now))
    else:
        views.print_letter(letter, now)


@reporting
def replay(  # noqa: PLR0917 typer calls it by name
    ids: Ids = None,
    everything: All = False,
    event_type: Type = None,
    reason: Reason = None,
    since: Since = None,
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait until all are applied; 0: do not wait")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be put back, and do nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Put events back into the streams that they came from, each as a new entry, and remove their letters.

    On one server this is one step: nothing is lost or doubled, whatever dies
    meanwhile. On a cluster an event may come twice.

    Exit code 1: a letter could not be put back, or with --wait an event was not
    applied.
    """
    chosen = _Chosen(ids or [], everything, event_type, reason, since)

    async def work(cache: Cache, box: DeadLetters) -> views.Replayed:
        result = views.Replayed(dry=dry_run, doubled=not box.at_once)
        with progress("replaying", await chosen.count(box)) as advance:
            async for page in chosen.pages(box):
                result.outcomes += (
                    [_foreseen(one, box) for one in page] if dry_run else await _put_back(box, page, result)
                )
                advance(len(page))
        result.missing = chosen.missing
        if wait and not dry_run:
            result.applied = await _applied(cache, result.put_back, wait)
        return result

    result = _run(work)
    if as_json:
        print_json(result.as_json())
    else:
        views.print_replayed(result)
    if result.failed:
        raise typer.Exit(EXIT_FOUND)


@reporting
def drop(  # noqa: PLR0917 as above
    ids: Ids = None,
    everything: All = False,
    event_type: Type = None,
    reason: Reason = None,
    since: Since = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove letters for good: their events are never applied. Asks first."""
    chosen = _Chosen(ids or [], everything, event_type, reason, since)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError("nobody is there to be asked: give --yes to drop letters for good")
        amount = _run(lambda _, box: chosen.exact_count(box))
        if not amount or not typer.confirm(f"Drop {views.letters(amount)} for good?", err=True):
            errors.print("nothing dropped")
            raise typer.Exit(EXIT_FOUND)

    async def work(_: Cache, box: DeadLetters) -> int:
        dropped = 0
        with progress("dropping", await chosen.count(box)) as advance:
            async for page in chosen.pages(box):
                if page:
                    dropped += await box.drop([letter.id for letter in page])
                advance(len(page))
        return dropped

    dropped = _run(work)
    if as_json:
        print_json({"dropped": dropped, "missing": chosen.missing})
    else:
        out.print(f"dropped {views.letters(dropped)}")
        views.print_missing(chosen.missing)
    if chosen.missing:
        raise typer.Exit(EXIT_FOUND)


dlq.command("list")(list_letters)
dlq.command()(show)
dlq.command()(replay)
dlq.command()(drop)


@dataclass
class _Chosen:
    """The letters that a command is about. Raises ConfigurationError when none are named, or in two ways."""

    ids: Sequence[str]
    everything: bool
    type: str | None
    reason: str | None
    since: str | None
    #: ids for which there is no letter
    missing: list[str] = field(default_factory=list)
    _wanted: Wanted | None = None

    def __post_init__(self) -> None:
        filtered = any(one is not None for one in (self.type, self.reason, self.since))
        if self.ids and (self.everything or filtered):
            raise ConfigurationError("give ids, or --all with what narrows it down; not both")
        if filtered and not self.everything:
            raise ConfigurationError("--type, --reason and --since narrow down --all: give that as well")
        if not (self.ids or self.everything):
            raise ConfigurationError("which letters? Give their ids, or --all")
        _check(self.ids)

    async def count(self, box: DeadLetters) -> int:
        """Return how many there are at most."""
        return len(self.ids) or await box.count()

    async def exact_count(self, box: DeadLetters) -> int:
        """Return how many there are."""
        return sum([len(page) async for page in self.pages(box)])

    async def pages(self, box: DeadLetters) -> AsyncIterator[list[Letter]]:
        """Give them, page by page; those that come meanwhile are none of them, however often this is asked."""
        if self.everything:
            if self._wanted is None:
                wanted = await _wanted(box, self.type, self.reason, self.since)
                self._wanted = replace(wanted, last=await box.last_id() or "0-0")
            async for page in box.pages(self._wanted):
                yield page
            return
        self.missing = []
        ids = list(dict.fromkeys(self.ids))
        for start in range(0, len(ids), PAGE):
            some = ids[start : start + PAGE]
            found = await box.find(some)
            self.missing += [one for one in some if one not in found]
            yield list(found.values())


def _check(ids: Sequence[str]) -> None:
    for one in ids:
        if not _ID.fullmatch(one):
            raise ConfigurationError(f"{one!r:.60} is no id of a dead letter; `tidings dlq list` shows them")


async def _wanted(box: DeadLetters, event_type: str | None, reason: str | None, since: str | None) -> Wanted:
    return Wanted(event_type, reason, "-" if since is None else parse_since(since, await box.now()))


async def _put_back(box: DeadLetters, page: Sequence[Letter], result: views.Replayed) -> list[Outcome]:
    try:
        return await box.put_back(page)
    except UnavailableError as error:
        done = len(result.put_back)
        raise UnavailableError(f"{views.letters(done)} put back, perhaps more; then: {error}") from error


def _foreseen(letter: Letter, box: DeadLetters) -> Outcome:
    return Outcome.of(letter, error=letter.obstacle(box.streams))


async def _applied(cache: Cache, put_back: Sequence[Outcome], seconds: float) -> list[Applied]:
    hearing = cache.reader().hearing
    assert hearing is not None  # noqa: S101 for the type checker; only a cache in memory has none
    streams = {stream.events: stream for stream in cache.keys.streams(cache.settings.partitions)}

    async def wait(stream: str, stream_id: str, timeout: float) -> None:  # noqa: ASYNC109 as that which it calls
        await hearing.wait(streams[stream], stream_id, timeout, label=stream_id, ask_at_once=True)

    with progress("waiting until they are applied", len(put_back)) as advance:

        async def one(outcome: Outcome) -> Applied:
            found = await became(outcome, wait, seconds)
            advance(1)
            return found

        return await asyncio.gather(*map(one, put_back))


def _run(work: Callable[[Cache, DeadLetters], Awaitable[T]]) -> T:
    """Do something with the dead letters of the prefix that the environment configures."""
    configure_logging(verbose=False)

    async def run(cache: Cache) -> T:
        try:
            return await work(cache, DeadLetters(store_of(cache), cache.keys, cache.settings.partitions))
        finally:
            await cache.aclose()

    with client_cache() as cache:
        reach_server(cache.settings)  # says within the operation timeout that it is away or frozen
        return asyncio.run(run(cache))
