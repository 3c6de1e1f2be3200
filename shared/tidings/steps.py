"""What the life of a read asks of whoever drives it, as values: one core for coroutines and for threads.

`reading` yields these and is sent what each docstring promises; an exception that carrying one out raises is thrown
back in. A driver knows how to wait and how to run things side by side, and nothing else.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from .fence import Ticket
from .operations import Operation

T = TypeVar("T")

Steps = Generator["Step", Any, T]


@dataclass(frozen=True, slots=True)
class Ask:
    """Carry out an operation; gives what it returns. Raises UnavailableError. `bulk`: on the connection for these."""

    operation: Operation[Any]
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class Invoke:
    """Run the caller's function; gives what it returns, raises what it raises."""

    load: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Fly:
    """Join the flight of this identity, or start it with these steps; gives (what they returned, whether started here).

    Raises what they raise, to everybody; LoadTimeoutError after `timeout` seconds of waiting, and then it goes on.
    """

    identity: Ticket | tuple[Any, ...]
    steps: Callable[[], Steps[Any]]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Follow:
    """Carry out steps that nobody waits for; gives a handle for `Outcome`. A failure is logged."""

    steps: Steps[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Wait for what was started by `Follow`; gives what it returned."""

    handle: Any


@dataclass(frozen=True, slots=True)
class Behind:
    """Carry out steps in the background, unless some are under way for this key or too many for others."""

    key: str
    steps: Callable[[], Steps[Any]]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the lease on an entry has ended, at most `left_ms` milliseconds; `position` is from `Opened`.

    Gives whether Redis is to be asked again: not when it did not answer meanwhile, or its connections were closed.
    """

    entry: str
    wakes: str
    position: str
    left_ms: int


Step = Ask | Invoke | Fly | Follow | Outcome | Behind | Wait


class LoadTimeoutError(Exception):
    """A load took longer than its callers want to wait; it goes on. Never leaves the library."""
