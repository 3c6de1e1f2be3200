"""What a row of the read benchmark is, and how rows become one table."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

OURS = "tidings"
BAR = "at most"
NOTHING = "-"


@dataclass(frozen=True)
class Run:
    """How to measure: rounds that count, and on which event loop."""

    rounds: int
    uvloop: bool = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end on a fresh loop."""
        with asyncio.Runner(loop_factory=self._loop_factory()) as runner:
            return runner.run(work)

    def _loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        if not self.uvloop:
            return None
        import uvloop  # noqa: PLC0415 only who asks for it needs it

        return uvloop.new_event_loop


@dataclass
class Outcome:
    """What a row came to."""

    #: what is printed, by column
    cells: dict[str, str]
    met: bool
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, and the bar."""

    name: str
    title: str
    bar: str
    measure: Callable[[Run], Outcome]


def table(outcomes: Sequence[tuple[Row, Outcome]]) -> str:
    """Return a table in Markdown: a line for each row, a column for whatever any row has, "-" where one cannot."""
    columns = [OURS, BAR]
    for _, outcome in outcomes:
        columns += [column for column in outcome.cells if column not in columns]
    lines = [["", *columns]]
    for row, outcome in outcomes:
        cells = {BAR: row.bar, **outcome.cells}
        lines.append([row.title, *(cells.get(column, NOTHING) for column in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
