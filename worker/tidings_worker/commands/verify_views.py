"""How `tidings verify` shows what it has found."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from tidings_worker.explaining.calls_shown import call_shown
from tidings_worker.times import age
from tidings_worker.verifying.nines import nines_text, percent
from tidings_worker.verifying.reports import Finding, Report, Tally
from tidings_worker.verifying.verdicts import Outcome

from .base import out, several

#: Findings that are shown in full; all are in the JSON.
_SHOWN = 20

_SAID = {
    Outcome.MOVED: "invalidated while they were looked at, as they should be",
    Outcome.REPLACED: "differed, and gone or filled anew before it was known why",
    Outcome.UNSTABLE: "unstable: each load gives something else",
    Outcome.UNSETTLED: "unsettled: they differ, and events from before are not applied, or the audit was stopped",
    Outcome.FAILED: "failed",
    Outcome.NOT_AUDITABLE: "not auditable",
    Outcome.NOT_SERVED: "not served to anybody now",
}


def show(report: Report) -> None:
    """Print findings, then what is known of each namespace, then what it cost."""
    for finding in report.findings[:_SHOWN]:
        _show_finding(finding)
    if (more := len(report.findings) - _SHOWN) > 0:
        out.print(f"and {more} more; --json has them all\n")
    table = Table(box=None, pad_edge=False)
    table.add_column("namespace", overflow="fold")
    for heading in ("entries", "checked", "stale", "consistency at least", "nines"):
        table.add_column(heading, justify="right")
    for name, tally in sorted(report.namespaces.items()):
        table.add_row(Text(_plain(name)), str(tally.entries), str(tally.checked), str(tally.stale), *_bound(tally))
    out.print(table)
    for name, tally in sorted(report.namespaces.items()):
        for line in _others(tally):
            out.print(f"{_plain(name)}: {line}", markup=False)
    for line in _ending(report):
        out.print(line, markup=False)


def _show_finding(finding: Finding) -> None:
    grid = Table.grid(padding=(0, 2))
    style = "red" if finding.outcome is Outcome.STALE else "yellow"
    for label, text in _rows(finding):
        grid.add_row(
            Text(label, style=style if label == finding.outcome else "bold"), Text(_plain(text), overflow="fold")
        )
    out.print(grid)
    out.print()


def _rows(finding: Finding) -> Iterator[tuple[str, str]]:
    yield finding.outcome.value, finding.key
    yield "call", call_shown(finding.call) if " " in finding.call else finding.call
    yield "filled", f"{age(finding.age_s)} ago by {finding.by} ({finding.how})"
    yield "differs", f"{finding.place}: {finding.difference}"
    if finding.cached is not None:
        yield "cached", finding.cached
        yield "loaded", finding.loaded or ""
    for token in finding.tokens:
        if token.age_s is not None:
            yield "token", f"{token.name}, last invalidated {age(token.age_s)} ago, {token.cause}"
    if never := [token.name for token in finding.tokens if token.age_s is None]:
        yield "tokens", f"never invalidated: {', '.join(never)}"


def _plain(text: str) -> str:
    """Return a text without what a terminal would obey: anybody may have written it into Redis."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _bound(tally: Tally) -> tuple[str, str]:
    if not tally.checked:
        return "-", "-"
    return percent(tally.stale_at_most), nines_text(tally.stale_at_most)


def _others(tally: Tally) -> Iterator[str]:
    for outcome, said in _SAID.items():
        if number := tally.outcomes[outcome]:
            reasons = tally.reasons_of(outcome)
            why = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.most_common())})" if reasons else ""
            yield f"{number} {said}{why}"


def _ending(report: Report) -> Iterator[str]:
    if not report.complete:
        yield "The sample is of a part of the keys: there are more than were walked over."
    if report.ended == "time":
        yield f"The time was over after {report.looked_at} of {report.sampled} entries."
    if report.ended == "stopped":
        yield f"Stopped after {report.looked_at} of {report.sampled} entries."
    if report.repaired:
        yield f"Invalidated: {several(report.repaired, 'stale entry', 'stale entries')}."
    if any(tally.checked for tally in report.namespaces.values()):
        yield "At least: with 95 % confidence. The fewer were checked, the less is known."
    cost = report.cost
    yield (
        f"{several(cost.loads, 'load')}, {cost.load_seconds:.2f} s of loading; "
        f"{several(cost.commands, 'command')} and {cost.bytes_read / 1e6:.2f} MB from Redis; "
        f"{cost.elapsed_seconds:.1f} s."
    )
