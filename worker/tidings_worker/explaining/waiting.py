"""The events that have not had their effect yet, and which of them would make an entry wrong.

"It is cached, and it is wrong": then the event has not been published, or it waits, or it was set aside, or no rule
asks for the right tag. The first nobody can see here; the others are looked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from redis.exceptions import ResponseError
from tidings.errors import EventError
from tidings.events import from_fields

from tidings_worker.dead_letters.letters import original_of
from tidings_worker.metrics import StreamState
from tidings_worker.observer import stream_state
from tidings_worker.plans import Draft
from tidings_worker.rules import Rules

from .asking import Servers

#: Events of each kind that are looked at, at most.
MOST = 10_000


class Place(Enum):
    """Where an event is that has not had its effect."""

    UNREAD = "unread"
    PENDING = "pending"
    DEAD = "dead letter"


@dataclass(frozen=True, slots=True)
class Waiting:
    """One event that would invalidate the entry, and has not; or that its rules fail over, so that it might."""

    stream_id: str
    type: str
    place: Place
    #: the tokens' names that both the event's plan and the entry have
    names: tuple[str, ...]
    #: of a dead letter: why
    reason: str = ""
    #: why its rules cannot say all that it would invalidate
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the workers are: by stream, and how many letters there are."""

    streams: Mapping[str, StreamState]
    dead_letters: int

    @property
    def waiting(self) -> int:
        """Events that were read and not applied, and those that were not read, as far as the server can tell."""
        return sum(state.pending + (state.lag or 0) for state in self.streams.values())

    @property
    def oldest_s(self) -> float:
        """The age of the oldest of them in seconds."""
        ages = [age for s in self.streams.values() for age in (s.oldest_pending_age, s.oldest_unread_age) if age]
        return max(ages, default=0.0)

    @property
    def unread_by_anybody(self) -> list[str]:
        """The streams that have events and no group: no worker has ever been there, or the group is gone."""
        return [name for name, state in self.streams.items() if state.entries and state.oldest_unread_age is None]


async def backlog(servers: Servers) -> Backlog:
    """Look at every stream's group, and at the dead letters. Raises what Redis raises."""
    states = {
        stream: await servers.timely(stream_state(await servers.holding(stream), stream, servers.group))
        for stream in servers.streams
    }
    dead = servers.keys.dead
    return Backlog(states, await servers.timely((await servers.holding(dead)).xlen(dead)))


@dataclass(frozen=True, slots=True)
class Unapplied:
    """An event that has not had its effect, as it stands in its stream."""

    stream: str
    stream_id: bytes
    fields: Mapping[bytes, bytes]
    place: Place
    reason: str = ""


async def unapplied(servers: Servers) -> Sequence[Unapplied]:
    """Return the events that wait, and the dead letters. Raises what Redis raises.

    Of each kind the first ten thousand, of the dead letters the last.
    """
    seen = [entry for stream in servers.streams for entry in await _unapplied(servers, stream)]
    return [*seen, *await _dead(servers)]


def concerning(seen: Iterable[Unapplied], rules: Rules, names: Iterable[str]) -> list[Waiting]:
    """Return those that under these rules would change one of these tokens, or fail."""
    wanted = set(names)
    return [one for entry in seen if (one := _judged(entry, rules, wanted)) is not None]


async def _unapplied(servers: Servers, stream: str) -> Sequence[Unapplied]:
    client = await servers.holding(stream)
    try:
        pending = await servers.timely(client.xpending_range(stream, servers.group, "-", "+", MOST))
        groups = await servers.timely(client.xinfo_groups(stream))
    except ResponseError:  # no stream, or no group: then nothing was read
        unread = await servers.timely(client.xrange(stream, count=MOST))
        return [Unapplied(stream, stream_id, fields, Place.UNREAD) for stream_id, fields in unread]
    pipe = client.pipeline(transaction=False)
    for row in pending:
        pipe.xrange(stream, row["message_id"], row["message_id"])
    delivered = next(row["last-delivered-id"] for row in groups if row["name"] == servers.group.encode())
    pipe.xrange(stream, b"(" + delivered, count=MOST)
    *read, unread = await servers.timely(pipe.execute())
    return [
        *(Unapplied(stream, stream_id, fields, Place.PENDING) for entries in read for stream_id, fields in entries),
        *(Unapplied(stream, stream_id, fields, Place.UNREAD) for stream_id, fields in unread),
    ]


async def _dead(servers: Servers) -> Iterator[Unapplied]:
    dead = servers.keys.dead
    letters: Any = await servers.timely((await servers.holding(dead)).xrevrange(dead, count=MOST))
    return (_original(letter_id, fields, servers.keys.events) for letter_id, fields in letters)


def _original(letter_id: bytes, fields: Mapping[bytes, bytes], stream: str) -> Unapplied:
    return Unapplied(
        stream, letter_id, original_of(fields), Place.DEAD, fields.get(b"reason", b"").decode(errors="replace")
    )


def _judged(entry: Unapplied, rules: Rules, wanted: set[str]) -> Waiting | None:
    """Plan an event, and say whether it would change one of the wanted tokens, or whether nobody can tell.

    A rule that fails may have wanted to; what cannot be read is about nothing.
    """
    draft, stream_id = Draft(), entry.stream_id.decode(errors="replace")
    try:
        envelope = from_fields(entry.stream, stream_id, entry.fields)
    except EventError:
        return None
    problems, error = rules.plan_into(draft, envelope)
    hit = tuple(name for name in draft.plan().causes if name in wanted)
    failed = "; ".join([*problems, *([] if error is None else [repr(error)])])
    if not hit and not failed:
        return None
    return Waiting(stream_id, envelope.type, entry.place, hit, entry.reason, failed)
