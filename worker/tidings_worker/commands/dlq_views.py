"""How ``tidings dlq`` shows letters: as text that does nothing to a terminal, and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from tidings_worker.dead_letters.box import Applied, Outcome
from tidings_worker.dead_letters.letters import Letter, cure, text_of
from tidings_worker.escaping import escaped
from tidings_worker.times import age

from .base import errors, out

#: Letters that could not be put back, or were not applied, of which each has a line of its own.
_NAMED = 50


@dataclass(frozen=True, slots=True)
class Listing:
    """Some letters of a server; `now` is its time in seconds."""

    server: str
    shown: Sequence[Letter]
    matching: int
    total: int
    now: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        found = [_with_age(letter.as_json(), letter, self.now) for letter in self.shown]
        return {"server": self.server, "total": self.total, "matching": self.matching, "letters": found}


@dataclass
class Replayed:
    """What came of replaying letters."""

    #: nothing was done: the outcomes are what would be
    dry: bool
    #: a cluster: what was put back may come twice
    doubled: bool
    outcomes: list[Outcome] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    #: None: nobody waited
    applied: list[Applied] | None = None

    @property
    def put_back(self) -> list[Outcome]:
        """Those whose events are in their streams again; in a dry run, would be."""
        return [one for one in self.outcomes if one.error is None and (self.dry or one.new_id is not None)]

    @property
    def refused(self) -> list[Outcome]:
        """Those that cannot be put back."""
        return [one for one in self.outcomes if one.error is not None]

    @property
    def gone(self) -> list[Outcome]:
        """Those that somebody else was faster with."""
        return [one for one in self.outcomes if one.gone and not self.dry]

    @property
    def unapplied(self) -> list[Applied]:
        """Those that were waited for in vain."""
        return [one for one in self.applied or [] if one.problem is not None]

    @property
    def failed(self) -> bool:
        """Whether anything was not as it was asked for."""
        return bool(self.refused or self.missing or self.unapplied)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        found: dict[str, Any] = {
            "dry_run": self.dry,
            "replayed": [_replay_as_json(one) for one in self.put_back],
            "refused": [{"id": one.id, "error": one.error} for one in self.refused],
            "gone": [one.id for one in self.gone],
            "missing": self.missing,
        }
        if self.applied is not None:
            found["applied"] = len(self.applied) - len(self.unapplied)
            found["unapplied"] = [
                {**_replay_as_json(one.outcome), "dead_again": one.dead_again, "problem": one.problem}
                for one in self.unapplied
            ]
        return found


def _replay_as_json(one: Outcome) -> dict[str, Any]:
    return {"id": one.id, "type": one.type, "stream": one.stream, "new_id": one.new_id}


def _with_age(document: dict[str, Any], letter: Letter, now: float) -> dict[str, Any]:
    return {**document, "age_seconds": round(max(0.0, now - letter.seconds), 3)}


def letters(amount: int) -> str:
    """Return ``1 letter`` or ``2 letters``."""
    return f"{amount} letter{'' if amount == 1 else 's'}"


def print_listing(listing: Listing) -> None:
    """Print a table, and how many there are."""
    if listing.shown:
        table = Table(box=None, pad_edge=False)
        left = out.width
        for name, longest, most in (
            ("id", max(len(letter.id) for letter in listing.shown), 41),
            ("age", 7, 7),
            ("type", max(len(letter.type) for letter in listing.shown), max(20, out.width // 4)),
        ):
            width = min(most, max(longest, len(name)))
            table.add_column(name, no_wrap=True, overflow="ellipsis", width=width)
            left -= width + 2  # and the space behind it
        table.add_column("reason", no_wrap=True, overflow="ellipsis", max_width=max(20, left))
        for letter in listing.shown:
            cells = (letter.type or "?", letter.reason or "? (no letter of a worker)")
            table.add_row(letter.id, age(listing.now - letter.seconds), *map(escaped, cells))
        out.print(table)
    matching = "" if listing.matching == listing.total else f"{listing.matching} of "
    shown = f", of which these are the newest {len(listing.shown)}" if len(listing.shown) < listing.matching else ""
    out.print(f"{matching}{letters(listing.total)}{shown}")


def letter_as_json(letter: Letter, now: float) -> dict[str, Any]:
    """Return one letter as plain JSON types."""
    return {**_with_age(letter.as_json(whole=True), letter, now), "cure": cure(letter)}


def print_letter(letter: Letter, now: float) -> None:
    """Print everything about one letter."""
    facts = {
        "letter": f"{letter.id}, {age(now - letter.seconds)} old",
        "reason": letter.reason or "?",
        "stream": f"{letter.stream or '?'}, entry {letter.stream_id or '?'}",
        "group": letter.group or "?",
        "deliveries": "?" if letter.deliveries is None else str(letter.deliveries),
        "cure": cure(letter),
    }
    for name, value in facts.items():
        _print_fact(name, escaped(value))
    out.print("\nThe event as it was:" if letter.original else "\nNo event is in it.")
    for field_name, content in letter.original:
        _print_fact(escaped(text_of(field_name)), _pretty(text_of(content)))


def _print_fact(name: str, value: str) -> None:
    lines = value.replace("\n", "\n" + " " * 17)
    out.print(Text(f"{name:<15}  {lines}"), soft_wrap=True)


def _pretty(value: str) -> str:
    """Return a field's value; JSON objects and arrays on several lines."""
    if value[:1] in {"{", "["}:
        try:
            value = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            return escaped(value)
        return "\n".join(map(escaped, value.splitlines()))
    return escaped(value)


def print_replayed(result: Replayed) -> None:
    """Print how many, and each that failed."""
    types = Counter(one.type or "?" for one in result.put_back)
    would = "would be put back" if result.dry else "put back"
    if len(result.put_back) <= _NAMED:
        for one in result.put_back:
            to = f"{one.stream} {one.new_id or ''}".rstrip()
            out.print(f"{one.id} -> {to}  {escaped(one.type or '?')}", soft_wrap=True)
    listed = ", ".join(f"{amount} {escaped(name)}" for name, amount in types.most_common(10))
    more = f" and {len(types) - 10} more types" if len(types) > 10 else ""  # noqa: PLR2004 those listed
    out.print(f"{letters(len(result.put_back))} {would}{': ' if listed else ''}{listed}{more}")
    if result.applied is not None:
        out.print(f"{len(result.applied) - len(result.unapplied)} of {len(result.applied)} applied")
    if result.gone:
        out.print(f"{letters(len(result.gone))} gone meanwhile: somebody else was faster")
    if result.doubled and result.put_back and not result.dry:
        errors.print("on a cluster an event may have been put back twice, if somebody else did the same")
    _print_problems([f"{one.id}: {one.error}" for one in result.refused])
    print_missing(result.missing)
    again = {True: "dead again", False: "not applied"}
    _print_problems([_unapplied(one, again[one.dead_again]) for one in result.unapplied])


def _unapplied(one: Applied, what: str) -> str:
    return f"{one.outcome.id} as {one.outcome.new_id}: {what}: {one.problem}"


def print_missing(missing: Sequence[str]) -> None:
    """Say which letters there are not."""
    _print_problems([f"no dead letter {one}" for one in missing])


def _print_problems(problems: Sequence[str]) -> None:
    for problem in problems[:_NAMED]:
        errors.print(escaped(problem), style="red", soft_wrap=True)
    if len(problems) > _NAMED:
        errors.print(f"and {len(problems) - _NAMED} more", style="red")
