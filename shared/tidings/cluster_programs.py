"""Programs: what an operation on a cluster is made of, and how several go side by side. Pure.

A program yields commands of one key each, which go out together, is sent a reply for each, and goes on. It is thrown
what went wrong.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .cluster_slots import Address
from .operations import Command

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class To:
    """A command, and the key whose node it goes to, or the node."""

    where: str | bytes | Address
    command: Command
    #: whether the program goes on without it: then it is sent the error in place of a reply
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Around:
    """What programs need to know of where they run: the log's key, whose node has the clock, and the primaries."""

    log: str
    primaries: tuple[Address, ...]


Program = Generator[Sequence[To], Any, T]


def together(programs: Sequence[Program[Any]]) -> Program[list[Any]]:
    """Carry out programs side by side; is sent errors among the replies, and raises the first when all have ended.

    Each program is thrown the first error of its own, and may still do what has to be done.
    """
    results: list[Any] = [None] * len(programs)
    failures: list[Exception] = []
    running: list[tuple[int, Sequence[To]]] = []

    def advance(index: int, wanted: Sequence[To] = (), replies: Sequence[Any] | None = None) -> None:
        program = programs[index]
        needed = (reply for to, reply in zip(wanted, replies or (), strict=True) if not to.optional)
        error = next((reply for reply in needed if isinstance(reply, Exception)), None)
        try:
            batch = program.send(replies) if error is None else program.throw(error)
        except StopIteration as done:
            results[index] = done.value
        except Exception as failure:  # noqa: BLE001 told when the others have ended
            failures.append(failure)
        else:
            running.append((index, batch))

    for index in range(len(programs)):
        advance(index)
    while running:
        before, running = running, []
        replies = iter((yield [to for _, batch in before for to in batch]))
        for index, batch in before:
            advance(index, batch, [next(replies) for _ in batch])
    if failures:
        raise failures[0]
    return results
