"""Which events are applied: who waits to know it, what is heard, and what is asked on behalf of all. Sans I/O.

Workers say in a stream, `EventStream.applied`, which events they have applied, in the same step that invalidates. All
who wait in one event loop, or in the threads of one process, hear of it through one read of that stream, and whoever
has not heard after a while is asked after in one question for all, whatever their number; `hearing` and
`thread_hearing` do both.

**No word is missed.** A waiter needs every word from the moment of its event's id on, because the word comes later and
ids are the server's time. The board knows from where on it has heard everything: from where its reading began, or from
where its memory of words reaches back to.

    1. publisher   adds the event, at the server's time t
    2. worker      invalidates, and says so
    3. listener    reads the word, for others: nobody waits for this event yet
    4. publisher   is told of 1, and begins to wait

In 4 the word is among those remembered. A waiter from before what the board has heard is asked after at once. Asking
also finds out when the word was trimmed, came with an earlier id because the server's clock was set back, or was never
said because the worker died after its ack: soon at first, and then once a second.

**What asking shows.** The group has been handed the event, and after that it is not pending: so it was acknowledged,
and an ack comes after the invalidation. In that order, because the event is pending from the moment it is handed out.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from redis.exceptions import AskError, ClusterError, RedisError, ResponseError

from .errors import DeadLetteredError, NotAppliedError, TidingsError, UnavailableError
from .event_ids import Id, Range, among, as_pair, entries_of, ranges_of
from .keys import EventStream, Keyspace

#: Seconds until a waiter that has not heard is asked after, and from one question to the next at least.
FIRST_ASK = 0.05

#: Seconds until it is asked after again.
_ASK_AGAIN = 1.0

#: Words that are remembered for those who come later.
_REMEMBERED = 1000

#: Entries in one reply: pending ones are small, and a dead letter may be as large as its event.
_PENDING_PAGE, _DEAD_PAGE = 1000, 100

#: Sends a command by a client of either kind, or adds it to a pipeline.
Question = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions for the server that holds `key`, in one exchange; errors come among the replies."""

    key: str
    questions: Sequence[Question]


Asking = Generator[Batch, list[Any], None]


@dataclass(eq=False, slots=True)
class Waiter:
    """One who waits for an event until `deadline`, in the seconds of whoever drives the board; `wake` makes it look."""

    stream_id: str
    #: how errors name the event
    label: str
    timeout: float
    deadline: float
    wake: Callable[[], object]
    #: when it is to be asked after
    due: float
    id: Id = field(init=False)
    over: bool = False
    _failure: Exception | None = None

    def __post_init__(self) -> None:
        self.id = as_pair(self.stream_id)
        self.due = min(self.due, self.deadline)

    @property
    def position(self) -> Id:
        """From where on words may be about this event."""
        return max(0, self.id[0] - 1), 0

    def end(self, failure: Exception | None = None) -> None:
        """Let it go on: its event is applied, or there is a reason why that is not known."""
        if not self.over:
            self.over, self._failure = True, failure
            self.wake()

    def result(self) -> None:
        """Raise what it ended with, if not with an applied event."""
        failure = self._failure
        unsaid = isinstance(failure, UnavailableError) or not isinstance(failure, TidingsError)
        if isinstance(failure, RedisError | OSError | UnavailableError) and unsaid:
            raise UnavailableError(f"waiting for the event {self.label}: {failure}") from failure
        if failure is not None:
            raise failure


class Board:
    """Who waits for events of one stream, and what has been heard of them. Pure; not safe under threads."""

    def __init__(self, stream: EventStream, keys: Keyspace, group: str) -> None:
        self.stream = stream
        self._keys = keys
        self._group = group
        self._waiting: dict[Id, set[Waiter]] = {}
        self._ids: list[Id] = []  # of those who wait, in order
        self._words: deque[tuple[Id, list[Range], list[Range]]] = deque()
        self._heard_from: Id = (0, 0)
        self._asked_at = -inf
        #: from where to read on
        self.position: str | bytes = "0-0"

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        for waiters in list(self._waiting.values()):
            yield from list(waiters)

    # Those who wait

    def add(self, waiter: Waiter, *, listening: bool) -> None:
        """Add one, or end it at once where its word has been heard. Unless `listening`, reading begins where it has to.

        `listening` means that a read is under way, whoever it was begun for.
        """
        if not listening and (not self or waiter.position < self._heard_from):
            self._heard_from, self._words = waiter.position, deque()
            self.position = f"{waiter.position[0]}-{waiter.position[1]}"
        if waiter.position < self._heard_from:
            waiter.due = -inf
        for position, ids, dead in reversed(self._words):
            if position <= waiter.position:
                break
            if among(waiter.id, ids):
                waiter.end()
                return
            if among(waiter.id, dead):
                waiter.due = -inf
        if waiter.id not in self._waiting:
            insort(self._ids, waiter.id)
        self._waiting.setdefault(waiter.id, set()).add(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Remove one, if it is there."""
        waiters = self._waiting.get(waiter.id)
        if waiters is None:
            return
        waiters.discard(waiter)
        if not waiters:
            del self._waiting[waiter.id]
            del self._ids[bisect_left(self._ids, waiter.id)]

    def fail(self, error: Exception) -> None:
        """Let everybody go on: nothing can be heard, or asked."""
        for waiter in self:
            self._end(waiter, error)

    def _end(self, waiter: Waiter, failure: Exception | None = None) -> None:
        self.remove(waiter)
        waiter.end(failure)

    # Listening

    def listening(self, seconds: float) -> Batch:
        """Return the question that waits for words, so long at most."""
        position, block_ms = self.position, max(1, round(seconds * 1000))
        applied = self.stream.applied
        return Batch(applied, [lambda pipe: pipe.xread({applied: position}, count=100, block=block_ms)])

    def take(self, replies: Sequence[Any]) -> bool:
        """Take what was heard; say whether somebody is to be asked after at once. Raises an error among the replies."""
        dead_heard = False
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
            for identifier, fields in entries_of(reply):
                self.position, position = identifier, as_pair(identifier.decode("ascii"))
                ids, dead = ranges_of(fields.get(b"ids")), ranges_of(fields.get(b"dead"))
                self._words.append((position, ids, dead))
                if len(self._words) > _REMEMBERED:
                    self._heard_from = max(self._heard_from, self._words.popleft()[0])
                for waiter in self._covered(ids, position):
                    self._end(waiter)
                for waiter in self._covered(dead, position):
                    waiter.due, dead_heard = -inf, True
        return dead_heard

    def _covered(self, ranges: Iterable[Range], position: Id) -> list[Waiter]:
        found = []
        for first, last in ranges:
            for identifier in self._ids[bisect_left(self._ids, first) : bisect_right(self._ids, last)]:
                found += [waiter for waiter in self._waiting[identifier] if waiter.position < position]
        return found

    # Asking

    def ask_at(self, waiter: Waiter | None = None) -> float:
        """Return when to ask next: for this one, or for whoever is due first; inf: nobody waits."""
        due = min((one.due for one in self), default=inf) if waiter is None else waiter.due
        return max(due, self._asked_at + FIRST_ASK)

    def asking(self, now: float) -> Asking:
        """Ask after all who wait, and end those who need not wait any longer, or cannot."""
        asked, self._asked_at = list(self), now
        if not asked:
            return
        late = [waiter for waiter in asked if waiter.deadline <= now]
        for waiter in asked:
            if waiter.due <= now:
                waiter.due = now + _ASK_AGAIN if waiter.deadline <= now else min(now + _ASK_AGAIN, waiter.deadline)
        groups, pending = yield from self._standing(sorted({waiter.id for waiter in asked}))
        why = {waiter: _why_not_yet(self._group, waiter.id, groups, pending) for waiter in asked}
        acked = [waiter for waiter in asked if not why[waiter]]
        if acked:
            dead = yield from self._dead_since(acked)
            for waiter in acked:
                reason = dead.get(waiter.stream_id)
                self._end(waiter, None if reason is None else DeadLetteredError(reason))
        for waiter in late:
            self._end(waiter, NotAppliedError(f"not applied after {waiter.timeout:g} s: {why[waiter]}"))

    def _standing(self, ids: Sequence[Id]) -> Generator[Batch, list[Any], tuple[Any, Any]]:
        """Return the groups, and which of these ids are pending; or the error replies in their place."""
        events, last = self.stream.events, "{}-{}".format(*ids[-1])
        groups, page = yield Batch(
            events, [lambda pipe: pipe.xinfo_groups(events), self._pending("{}-{}".format(*ids[0]), last)]
        )
        _raise_unless_refused(groups, page)
        pending: set[Id] = set()
        while not isinstance(page, Exception):
            found = [as_pair(one["message_id"].decode("ascii")) for one in page]
            pending.update(found)
            following = bisect_right(ids, found[-1]) if len(found) == _PENDING_PAGE else len(ids)
            if following == len(ids):
                return groups, pending
            (page,) = yield Batch(events, [self._pending("{}-{}".format(*ids[following]), last)])
            _raise_unless_refused(page)
        return groups, page

    def _pending(self, first: str, last: str) -> Question:
        events, group = self.stream.events, self._group
        return lambda pipe: pipe.xpending_range(events, group, first, last, _PENDING_PAGE)

    def _dead_since(self, waiters: Iterable[Waiter]) -> Generator[Batch, list[Any], dict[str, str]]:
        """Look through the dead letters since the first of these events, page by page; return reasons by stream id."""
        wanted = {waiter.stream_id.encode(): waiter.stream_id for waiter in waiters}
        stream, dead = self.stream.events.encode(), self._keys.dead
        from_id: str | bytes = str(min(as_pair(one)[0] for one in wanted.values()))
        found: dict[str, str] = {}
        while True:
            (page,) = yield Batch(dead, [_page(dead, from_id)])
            if isinstance(page, Exception):
                raise page
            for dead_id, fields in page:
                from_id = b"(" + dead_id
                if fields.get(b"stream") == stream and (own := wanted.get(fields.get(b"stream_id", b""))) is not None:
                    found[own] = fields.get(b"reason", b"").decode(errors="replace")
            if len(page) < _DEAD_PAGE:
                return found


def _page(stream: str, from_id: str | bytes) -> Question:
    return lambda pipe: pipe.xrange(stream, from_id, count=_DEAD_PAGE)


def _raise_unless_refused(*replies: Any) -> None:
    """Raise an error among the replies, but not what the server says of a stream or group that is not there."""
    for reply in replies:
        refused = isinstance(reply, ResponseError) and not isinstance(reply, AskError | ClusterError)
        if isinstance(reply, Exception) and not refused:
            raise reply


def _why_not_yet(group: str, identifier: Id, groups: Any, pending: Any) -> str:
    """Return why the event cannot be called applied, or nothing when it is."""
    if isinstance(groups, ResponseError):
        return "its stream is gone"
    mine = next((g for g in groups if g["name"] == group.encode()), None)
    if mine is None or isinstance(pending, ResponseError):
        return f"no worker of the group {group!r} has read the stream yet"
    if as_pair(mine["last-delivered-id"].decode("ascii")) < identifier:
        return "no worker has read it yet"
    return "a worker has it and has not acknowledged it" if identifier in pending else ""
