"""Which calls are read most: samples of reads, gathered in each process, and what Redis has of them.

About one read in a hundred is noted (`hot_sample`). Which one comes next is drawn at random when one is noted: so a
read costs a countdown, and a service that reads in a rhythm is not heard at the same beat always. What is noted is
gathered here and goes to Redis behind a later read, every few seconds at most: a sorted set of calls for each namespace
and window of `WINDOW_SECONDS`. Windows expire, and so does the fame of what nobody reads any more.

Gathering costs little because a call that is read often is mostly the same `Target`: its arguments become text once,
when they are sent. Only arguments that can still change by then become text at once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import random
from typing import Any

from .breaker import is_answer
from .calls import call_text, split_call, why_not_importable
from .counting import NEVER
from .described import Described
from .errors import DecodeError, UnavailableError
from .forks import in_child
from .keys import Keyspace
from .operations import Batch, NoteCalls
from .signature import memorable
from .steps import Ask, Steps
from .targets import Target
from .telemetry import log

#: How long reads are counted together.
WINDOW_SECONDS = 600
#: Calls that a sorted set keeps: those that were read most.
CALLS_KEPT = 1000
#: Between two exchanges of one process, at least.
FLUSH_SECONDS = 5.0
#: Calls that a process gathers for one exchange.
MOST_GATHERED = 500
#: Calls that become text and are sent together: reads wait meanwhile, some 15 us for each.
_SENT_AT_ONCE = 50
#: How many reads are noted between two questions whether it is time to send, at most.
_DRAWN_AT_ONCE = 32


@dataclass(slots=True)
class _Gathered:
    """Reads of one call, which becomes text when it is sent."""

    function: Described[Any, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: int = 0


class HotCalls:
    """Notes a part of a process's reads; `fraction` of them, 0 for none.

    `clock` gives the time of day, `elapsed` seconds that only grow, `chance` numbers from 0 to 1.
    """

    def __init__(
        self,
        keys: Keyspace,
        fraction: float,
        *,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random,
    ) -> None:
        self.clock = clock
        self._keys = keys
        self._fraction = fraction
        # From one read that is noted to the next there are from 1 to this many, each number as likely.
        self._most_between = 2 / fraction - 1 if fraction else 0.0
        self._elapsed = elapsed
        self._chance = chance
        self._said: set[str] = set()
        self._refused = False
        self._begin()
        in_child(self._begin)

    def _begin(self) -> None:
        """Begin with nothing, in a forked child too: the parent sends what it has gathered."""
        self._due_at = 0.0
        self._drawn: list[int] = []
        self._gathered: dict[Target, _Gathered] = {}
        self._texts: dict[tuple[str, str], _Gathered] = {}

    def note(
        self, function: Described[Any, Any], wanted: Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Note the read at which its function's countdown is over; say whether it is time to `flush`.

        Raises nothing, and waits for nobody: threads that do the same at once may lose a read or send too early. That
        is asked about now and then only: this is in the way of a read.
        """
        counts = wanted.counts
        try:
            gathered, left = self._gathered[wanted], self._drawn.pop()
        except LookupError:
            return self._note_first(function, wanted, args, kwargs)
        gathered.reads += 1
        counts.sample_at = counts.local_hits + left
        return False

    def _note_first(
        self, function: Described[Any, Any], wanted: Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        counts = wanted.counts
        begins, left = counts.sample_at < 0, self._reads_to_next()
        if begins and left > 1:  # the first read of all is nothing special
            counts.sample_at = counts.local_hits + left - 1
            return False
        counts.sample_at = counts.local_hits + (self._reads_to_next() if begins else left)
        self._drawn = [self._reads_to_next() for _ in range(_DRAWN_AT_ONCE)]
        gathered = self._gather(function, wanted, args, kwargs)
        if gathered is None:
            return False
        gathered.reads += 1
        if (now := self._elapsed()) < self._due_at:
            return False
        self._due_at = now + FLUSH_SECONDS
        return True

    def flush(self) -> Steps[None]:
        """Send what has been gathered, and say once what Redis answers if it does not take it.

        While Redis is away it is lost, which the breaker tells of.
        """
        window, _ = window_at(self.clock())
        keep_ms = 2 * WINDOW_SECONDS * 1000
        taken = self._taken()
        for first in range(0, len(taken), _SENT_AT_ONCE):
            calls = self._named(taken[first : first + _SENT_AT_ONCE])
            notes = [NoteCalls(self._keys.hot(name, window), n, CALLS_KEPT, keep_ms) for name, n in calls.items()]
            try:
                yield Ask(Batch(notes))
            except UnavailableError as error:
                if is_answer(error) and not self._refused:
                    self._refused = True
                    log.warning("hot_calls_refused", error=str(error))
                return
            self._refused = False

    def _reads_to_next(self) -> int:
        return min(NEVER, 1 + int(self._chance() * self._most_between)) if self._fraction else NEVER

    def _gather(
        self, function: Described[Any, Any], wanted: Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Gathered | None:
        """Return where the reads of a call are counted, if there is room for it and it can travel."""
        if why_not_importable(function) is not None:
            wanted.counts.sample_at = wanted.counts.local_hits + NEVER
            return None
        values = (*args, *kwargs.values())
        if memorable((*values, *map(type, values))):
            if len(self._gathered) >= MOST_GATHERED:
                return None
            return self._gathered.setdefault(wanted, _Gathered(function, args, kwargs))
        if len(self._texts) >= MOST_GATHERED or (text := self._text(function, args, kwargs)) is None:
            return None
        return self._texts.setdefault((wanted.call.namespace, text), _Gathered(function, (), {}))

    def _taken(self) -> list[tuple[str, str, _Gathered]]:
        """Return what has been gathered, with namespaces, and texts as far as there are any; and begin anew."""
        gathered, self._gathered = self._gathered, {}
        texts, self._texts = self._texts, {}
        # Copies, which are made in one step: another thread may still be adding to the originals.
        return [
            *((namespace, text, one) for (namespace, text), one in texts.copy().items()),
            *((wanted.call.namespace, "", one) for wanted, one in gathered.copy().items()),
        ]

    def _named(self, taken: list[tuple[str, str, _Gathered]]) -> dict[str, dict[str, int]]:
        """Return numbers of reads by namespace and the call's text."""
        calls: dict[str, dict[str, int]] = {}
        for namespace, text, one in taken:
            if call := text or self._text(one.function, one.args, one.kwargs):
                known = calls.setdefault(namespace, {})
                known[call] = known.get(call, 0) + one.reads
        return calls

    def _text(self, function: Described[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Return a call as text, unless it cannot travel or is too long."""
        try:
            return call_text(function, args, kwargs)
        except Exception as error:  # noqa: BLE001 of the service's own classes; the read has nothing to do with it
            if function.identity not in self._said:
                self._said.add(function.identity)
                log.warning("hot_call_failed", function=function.identity, exc_info=error)
            return None


def parsed(member: bytes) -> tuple[str, str]:
    """Return the function's identity and the arguments' text of a noted call. Raises DecodeError for anything else."""
    try:
        return split_call(member.decode())
    except UnicodeDecodeError:
        raise DecodeError("a noted call is not UTF-8") from None


def window_at(now: float) -> tuple[int, float]:
    """Return the number of the window of a time of day, and what part of it is over."""
    number, over = divmod(now, WINDOW_SECONDS)
    return int(number), over / WINDOW_SECONDS


def hottest(current: Mapping[bytes, float], before: Mapping[bytes, float], over: float) -> list[bytes]:
    """Return calls, those read most first: by the window that is `over` in part, and for the rest by the one before."""
    reads = {
        member: current.get(member, 0.0) + (1 - over) * before.get(member, 0.0) for member in {**before, **current}
    }
    return sorted(reads, key=lambda member: (-reads[member], member))
