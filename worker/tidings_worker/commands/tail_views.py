"""How `tidings tail` shows a line: on one, or as many as it takes, the time at its left edge."""

import time
from datetime import datetime

from rich.console import Console
from rich.text import Text

from tidings_worker.escaping import escaped
from tidings_worker.tailing.lines import Line, Outcome
from tidings_worker.times import age

#: Names that are shown of many; JSON has them all.
_SHOWN = 12

#: Columns for what is beside the time, however narrow the terminal is.
_LEAST_WIDTH = 20

_STYLES = {
    Outcome.APPLIED: "green",
    Outcome.WARMED: "green",
    Outcome.WAITING: "yellow",
    Outcome.AGAIN: "yellow",
    Outcome.WARM_RETRIED: "yellow",
    Outcome.WARM_IN_VAIN: "yellow",
    Outcome.DEAD: "red",
    Outcome.LOST: "red",
    Outcome.WARM_FAILED: "red",
}

_WARMS = {
    Outcome.WARMED: "warmed",
    Outcome.WARM_IN_VAIN: "warmed in vain",
    Outcome.WARM_RETRIED: "warm failed and is tried again:",
    Outcome.WARM_FAILED: "warm failed:",
}


def print_line(console: Console, line: Line) -> None:
    """Print a line, folded at the console's width with the time left free."""
    stamp = f"{_time(line.at)} "
    room = max(_LEAST_WIDTH, console.width - len(stamp))
    for number, part in enumerate(_body(line).wrap(console, room)):
        part.rstrip()
        console.print(Text.assemble(" " * len(stamp) if number else (stamp, "dim"), part), soft_wrap=True)


def _body(line: Line) -> Text:
    said = Text()
    if line.outcome in _WARMS:
        said.append(f"{_WARMS[line.outcome]} ", style=_STYLES[line.outcome]).append(_names(line.warms))
        said.append(f" in {_milliseconds(line.took_ms)}")
        if line.type is not None:
            said.append(f", for {escaped(line.type)} {escaped(line.subject or '')}".rstrip())
        elif line.reason == "schedule":
            said.append(", as scheduled")
        return said
    if line.stream_id is not None:
        said.append(escaped(line.type or "an event without a type"), style="bold")
        said.append(f" {escaped(line.subject or line.stream_id)}  ")
    said.append(_outcome(line), style=_STYLES.get(line.outcome, ""))
    return said.append(_effects(line))


def _outcome(line: Line) -> str:
    reason = escaped(line.reason)
    after = "" if line.age_ms is None else f" after {_milliseconds(line.age_ms)}"
    said = {
        Outcome.APPLIED: f"applied{after}",
        Outcome.UNRULED: "no rule is for it",
        Outcome.IGNORED: f"ignored: {reason}",
        Outcome.AGAIN: f"failed, again in {age(line.again_in_s or 0)}: {reason}",
        Outcome.WAITING: f"not applied for {age((line.age_ms or 0) / 1000)}: {reason}",
        Outcome.DEAD: f"dead letter: {reason}",
        Outcome.LOST: f"events may be lost ({reason})",
    }
    return said.get(line.outcome, f"invalidated by {reason}" if reason else "invalidated")


def _effects(line: Line) -> str:
    """Say what was invalidated and what is to be warmed."""
    named = [*line.tags, *(f"namespace {name}" for name in line.namespaces), *(["everything"] * line.everything)]
    named += [*line.entries, *(f"every {pattern}" for pattern in line.patterns)]
    text = ""
    if named:
        perhaps = "" if line.complete else ", perhaps more"
        text = f" -> {_names(named, line.tokens_more)}{perhaps}"
    if line.warms:
        text += f"{';' if named else ' ->'} warms {_names(line.warms, line.warms_more)}"
    return text


def _names(names: tuple[str, ...] | list[str], more: int = 0) -> str:
    more += max(0, len(names) - _SHOWN)
    shown = ", ".join(_hot(escaped(name)) for name in names[:_SHOWN])
    return f"{shown} and {more} more" if more else shown


def _hot(name: str) -> str:
    """Return a warm's name for people: one for what is read most is no entry's."""
    if not name.startswith("!hot:"):
        return name
    namespace, _, top = name.removeprefix("!hot:").partition(":")
    return f"the {top} most read of {namespace}"


def _milliseconds(given: float | None) -> str:
    found = max(0.0, given or 0.0)
    if found >= 1000:  # noqa: PLR2004 a second
        return age(found / 1000)
    return f"{found:.1f} ms" if found < 10 else f"{found:.0f} ms"  # noqa: PLR2004 two digits are enough


def _time(at: datetime) -> str:
    """Return a time here, with its date unless that is today's."""
    try:
        here = at.astimezone()
    except OverflowError:  # an id made by hand, at the end of time
        here = at
    text = f"{here:%H:%M:%S}.{here.microsecond // 1000:03d}"
    return text if f"{here:%Y-%m-%d}" == time.strftime("%Y-%m-%d") else f"{here:%Y-%m-%d} {text}"
