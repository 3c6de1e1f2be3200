"""The demo as people see it: a timeline a round, a summary, or all of it as JSON."""

import asyncio
import json
import platform
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.text import Text
from tidings.errors import ConfigurationError

from . import PACKAGES
from .play import PATIENCE, RULES, play
from .result import CheckFailed, Moment, Result, Round
from .source import Source, find

EXIT_CHECK_FAILED = 1
EXIT_STOPPED = 130

#: Columns of the page, and of a timeline: with two answers, the last of 10, it fits.
_WIDTH = 80
_MS, _WHAT, _ANSWER = 8, 46, 12


def run(
    packages: Sequence[str], rounds: int, *, as_json: bool = False, rules: str = RULES, patience: float = PATIENCE
) -> int:
    """Play the demo and return its exit code: 0 when every check held.

    `rules` is the ``MODULE:RULES`` that the worker applies, `patience` the seconds that an event and a warm may take;
    both are for finding out whether the checks can fail. Raises ConfigurationError for packages it cannot use.
    """
    sources = {package: find(package) for package in _names(packages)}
    out, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    heard: Callable[[Result], None] = _unheard if as_json else lambda result: _show_news(out, result)
    try:
        result = asyncio.run(_until_stopped(sources, rounds, heard, rules, patience))
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("tidings: the demo was stopped", style="red")
        return EXIT_STOPPED
    if as_json:
        sys.stdout.write(json.dumps({"python": platform.python_version(), **result.as_json()}, indent=2) + "\n")
    elif result.failure is None:
        _show_summary(out, result)
    if result.failure is not None:
        _show_failure(errors, result.failure, result.worker_log)
    return EXIT_CHECK_FAILED if result.failure else 0


async def _until_stopped(
    sources: Mapping[str, Source], rounds: int, heard: Callable[[Result], None], rules: str, patience: float
) -> Result:
    """Play; SIGTERM and a closed terminal stop it as Ctrl-C does: in order, leaving no process behind."""
    playing = asyncio.create_task(play(sources, rounds, heard=heard, rules=rules, patience=patience))
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup's choice stands
            asyncio.get_running_loop().add_signal_handler(number, playing.cancel)
    return await playing


def _names(packages: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in packages if name.strip()))
    if not names:
        raise ConfigurationError(f"--packages names none; give some, as in --packages {','.join(PACKAGES)}")
    return names


def _unheard(_: Result) -> None:
    """For JSON, which says everything at the end."""


def _show_news(out: Console, result: Result) -> None:
    if result.rounds:
        _show_round(out, result.rounds[-1])
    else:
        _show_opening(out, result.packages)


def _show_opening(out: Console, packages: Mapping[str, int]) -> None:
    text = (
        f"The functions of {', '.join(f'{name} ({count})' for name, count in packages.items())}, read from the source "
        f"of Python {platform.python_version()} into SQLite, are served as cached trees. Each round, the source of one "
        "package changes. An answer is shown by the revision of the source it comes from; old: the database has a "
        "newer one."
    )
    out.print(textwrap.fill(text, min(out.width, _WIDTH)))


def _show_round(out: Console, now: Round) -> None:
    out.print()
    out.print(f"Round {now.number}: {now.package}", style="bold")
    for line in now.edits:
        out.print(f"  {line}", markup=False, style="cyan")
    out.print(f"{'ms':>{_MS}}  {'what':<{_WHAT}}{'tidings':<{_ANSWER}}TTL only", style="dim")
    for moment in now.moments:
        row = Text(f"{_ms(now, moment):>{_MS}}  {moment.what:<{_WHAT}}")
        if moment.ttl_only is not None:
            row.append(_answer(moment.tidings, moment.current))
            row.pad_right(_MS + 2 + _WHAT + _ANSWER - len(row))
            row.append(_answer(moment.ttl_only, moment.current))
        row.rstrip()
        out.print(row)


def _ms(now: Round, moment: Moment) -> str:
    """Return the time from the event; a round that failed before it has none."""
    if not now.published_at:
        return ""
    ms = now.ms(moment.at)
    return f"{ms:+.1f}" if round(ms, 1) else "0.0"


def _answer(revision: str | None, current: str | None) -> Text:
    if revision is None:
        return Text("nothing")
    return Text(revision, style="green") if revision == current else Text(f"{revision} old", style="red")


def _show_summary(out: Console, result: Result) -> None:
    rounds = f"{len(result.rounds)} {'round' if len(result.rounds) == 1 else 'rounds'}"
    served = f"tidings served 0 stale answers, a TTL-only cache {result.ttl_only_stale}"
    applied = result.p50_ms(lambda r: r.applied_at)
    warmed = result.p50_ms(lambda r: r.warmed_at)
    fresh = result.p50_ms(lambda r: r.fresh_at)
    out.print()
    out.print(f"{rounds}, {result.reads} reads: {served}.", style="bold")
    out.print(f"p50 after the event: applied {applied:.1f} ms, warmed {warmed:.1f} ms, read fresh {fresh:.1f} ms.")
    out.print(f"No stale read, no missing warm, no lost event. Took {result.took_seconds:.1f} s.")


def _show_failure(errors: Console, failure: CheckFailed, worker_log: Iterable[str]) -> None:
    errors.print(f"tidings: the demo failed: {failure.check}: {failure}", style="red", markup=False, soft_wrap=True)
    for line in worker_log:
        errors.print(f"  worker: {line}", style="dim", markup=False, soft_wrap=True)
