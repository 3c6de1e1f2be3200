"""What a row of the worker's benchmark is."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """How to measure: rounds that count, and the size of what each works off, where 1 is the size that is quoted."""

    rounds: int
    scale: float = 1.0

    def scaled(self, count: int) -> int:
        """Return how many, at this scale."""
        return max(1, int(count * self.scale))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end on a fresh loop."""
        return asyncio.run(work)


@dataclass
class Outcome:
    """What a row came to: the figure that the bar is for, and what there is to say about it."""

    figure: str
    note: str
    met: bool
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, and the bar."""

    name: str
    title: str
    bar: str
    measure: Callable[[Run], Outcome]
