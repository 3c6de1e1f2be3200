"""Whether events were lost: what one look at a stream and its group says against the one before. Pure.

What a worker cannot see it cannot invalidate, and a group that has skipped events looks like one that is up to date. So
whatever can make a group skip has to leave a trace, and each look compares:

1. **The group is gone**, or has another *mark*: FLUSHALL, DEL, XGROUP DESTROY, or made by somebody else, perhaps at
   ``$``. The mark is a consumer that the worker who makes the group puts into it and that nobody removes; a group with
   the same mark is the same group.
2. **The stream is another**: its counters of entries ever added, or its last id, went back.
3. **Unread entries were trimmed.** The server counts the entries ever added to the stream, so also those removed from
   it, and those ever read by the group. Workers remove no more than the group had read at the last look. So if more are
   gone than that, somebody else has removed them, perhaps unread. (What the counts say after the next read is not
   enough: newer servers set the group's count to where it stands then, older ones leave it behind by what was skipped,
   its `deficit`. And `lag` may be wrong.)
4. **Unread entries were deleted** one by one: the greatest deleted id lies behind where the group stood at the last
   look. Or the group's **position was set** by hand: the server has lost count of what it has read.
5. **Pending entries were trimmed**: the oldest of them is older than the oldest entry.

In a failover, the server's *history* changes instead (`histories`).
"""

from dataclasses import dataclass, replace

from pydantic import BaseModel
from tidings.publisher import as_pair


class Position(BaseModel, frozen=True):
    """One look at a stream and the group; ids as the server writes them."""

    #: name of the consumer that marks the group; empty: the group is not there, or is not one that a worker made
    mark: str
    #: entries ever added to the stream, and those in it now
    added: int
    length: int
    #: entries ever read by the group; None: the server cannot tell
    read: int | None
    #: ids: of the first entry, of the last ever added, of the greatest ever deleted, of the last delivered
    first: str
    last: str
    deleted: str
    delivered: str
    #: id of the oldest entry that is delivered and not acknowledged
    oldest_pending: str | None = None
    #: how many entries had been removed unread when this was last looked at; known and dealt with
    deficit: int = 0

    @property
    def removed(self) -> int:
        """How many entries have been removed from the stream since it was made."""
        return self.added - self.length


@dataclass(frozen=True, slots=True)
class Loss:
    """One way in which events may have been lost; `code` is for metrics, `text` for people."""

    code: str
    text: str


def deficit(now: Position) -> int | None:
    """Return how many entries were removed unread as far as the counters say; None: they cannot say now."""
    if now.read is None:
        return None
    if as_pair(now.delivered) >= as_pair(now.last):
        return now.added - now.read
    if now.length == 0 or as_pair(now.first) > as_pair(now.delivered):
        return now.added - now.length - now.read
    return None


def carried_on(before: Position | None, now: Position) -> Position:
    """Return the new position with what is known of the deficit, which the next look is compared with."""
    known = before.deficit if before is not None else 0
    counted = deficit(now)
    return now.model_copy(update={"deficit": known if counted is None else counted})


def losses(before: Position | None, now: Position) -> list[Loss]:
    """Return in what ways events may have been lost since `before`; None: nothing is known of any time before."""
    if not now.mark:
        if before is None:
            return [Loss("group", "the group was not made by a worker: what it has skipped is unknown")]
        return [Loss("group", "the consumer group is gone")]
    if before is None:
        before = now.model_copy(update={"deficit": 0, "length": now.added})
    if now.mark != before.mark:
        return [Loss("group", "the consumer group was made anew")]
    if now.added < before.added or as_pair(now.last) < as_pair(before.last):
        return [Loss("stream", "the stream was replaced")]
    return [*_unread(before, now), *_pending(before, now)]


def _unread(before: Position, now: Position) -> list[Loss]:
    if before.read is not None:
        expected = max(before.read + before.deficit, before.removed)
        if now.removed > expected:
            text = f"{now.removed - expected} events were removed, perhaps before they were read"
            return [Loss("trimmed", text)]
    if as_pair(now.deleted) > max(as_pair(before.delivered), as_pair(before.deleted)):
        return [Loss("deleted", f"the entry {now.deleted} was deleted, perhaps before it was read")]
    # A deleted entry ahead, which was dealt with when it was deleted, makes the server lose count as well.
    if now.read is None and before.read is not None and as_pair(now.deleted) <= as_pair(before.delivered):
        return [Loss("position", "the group's position was set by hand")]
    return []


def _pending(before: Position, now: Position) -> list[Loss]:
    if not _lacks_pending(now) or (_lacks_pending(before) and before.first == now.first):
        return []  # nothing, or what was dealt with: such pending entries stay until somebody claims them
    return [Loss("pending", f"events that were delivered and not applied were removed, from {now.oldest_pending} on")]


def _lacks_pending(position: Position) -> bool:
    oldest = position.oldest_pending
    return oldest is not None and (position.length == 0 or as_pair(oldest) < as_pair(position.first))


@dataclass(frozen=True, slots=True)
class Histories:
    """What the servers that hold the cache and the events call their histories of writes; see `servers`.

    A replica that is promoted begins a new one, and so does a server that starts. Writes that the old one had
    acknowledged may be missing from it: invalidations, so that a token has an old value again; acknowledgements, which
    only repeats work; and events.
    """

    known: frozenset[str]

    def losses(self, seen: frozenset[str]) -> list[Loss]:
        """Return whether a server has a history that was not known; one that is away has none to see."""
        if not self.known or seen <= self.known:
            return []
        return [Loss("history", "a server was restarted or another took over: writes it had acknowledged may be lost")]

    def carried_on(self, seen: frozenset[str], *, complete: bool) -> "Histories":
        """Return what is known now; `complete`: every server answered, so what was not seen is gone."""
        return replace(self, known=seen if complete else self.known | seen)
