"""What each step of the fence asks of Redis: commands and how to read their replies, as values. Sans I/O.

An operation is one exchange with the server. `store` sends it, from a coroutine or from a thread, and `memory` carries
it out on a dict; both know nothing of the fence, and the fence knows nothing of them. On one server each is a single
command, or several that are sent together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .layout import Packed, encode_cause, unique
from .scripts import FILL, INVALIDATE, OPEN, PUT, RELEASE, Script

#: Entries kept in the stream of applied events, about: a receipt that falls behind further asks after its event
#: instead.
APPLIED_LENGTH = 1000

#: Keys that one step of a scan looks at, about.
SCAN_COUNT = 500

T_co = TypeVar("T_co", covariant=True)

Command = tuple[str | bytes | int | Script, ...]


class Operation(Protocol[T_co]):
    """One exchange with the server: `commands` go out together, `parse` reads their replies."""

    @property
    def commands(self) -> Sequence[Command]:
        """Commands in order; a script stands first in its own, followed by the number of keys, keys, arguments."""
        ...

    def parse(self, replies: Sequence[Any]) -> T_co:
        """Make the result of one reply for each command."""
        ...


@dataclass(frozen=True, slots=True)
class Looked:
    """What was read: the entry's bytes, the tokens', and what else was asked for."""

    entry: bytes | None
    tokens: list[bytes | None]
    #: milliseconds that Redis still keeps the entry; None: not asked, or no entry
    left_ms: int | None = None
    #: the server's time in microseconds; 0: not asked
    now_us: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """Read an entry and its tokens, together; `keys` are the entry's and then the tokens'.

    With `ttl` also how long the entry is kept, with `time` also the server's time. Both are asked before the entry is
    read: a value that is replaced in between counts as older than it is, never as younger.
    """

    keys: tuple[str, ...]
    ttl: bool = False
    time: bool = False

    @property
    def commands(self) -> Sequence[Command]:
        """One MGET: atomic on one server, so that no invalidation can fall between entry and tokens."""
        commands: list[Command] = [("MGET", *self.keys)]
        if self.ttl:
            commands.insert(0, ("PTTL", self.keys[0]))
        if self.time:
            commands.insert(0, ("TIME",))
        return commands

    def parse(self, replies: Sequence[Any]) -> Looked:
        """Return what was read."""
        entry, *tokens = replies[-1]
        left_ms = int(replies[-2]) if self.ttl else -1
        now_us = microseconds(replies[0]) if self.time else 0
        return Looked(entry, tokens, left_ms if left_ms >= 0 else None, now_us)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to be the one process that loads, for `ms` milliseconds; `owner` is unique to whoever asks."""

    owner: bytes
    ms: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What `Open` found or made; `leads` is false when another process holds the lease for the same ticket."""

    #: the entry's kind and lineage
    head: bytes
    tokens: list[bytes | None]
    #: the server's time in microseconds, and the last id of the invalidation log where it was asked for
    now_us: int
    leads: bool = True
    #: milliseconds that the other's lease has left, and the last id of the stream of wakes
    left_ms: int = 0
    position: str = "0-0"
    logged: str = ""
    logged_at: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where an entry's lease is, where its end is told, and where the invalidation log is."""

    lease: str
    wakes: str
    log: str


@dataclass(frozen=True, slots=True)
class Open:
    """Before a load: make sure that the entry has a lineage and that every token exists, then read the tokens.

    With `renew` the entry gets a new lineage, so that fills of older loads are refused; its value stays. With a `lease`
    it is asked for, and free unless another process holds it under this lineage and these tokens. With `log` the last
    id of the invalidation log is noted, for result tags.
    """

    keys: tuple[str, ...]
    places: Places
    vacancy: bytes
    vacancy_ms: int
    token_ms: int
    renew: bool = False
    lease: Lease | None = None
    log: bool = False

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        keys = (*self.keys, self.places.lease, self.places.wakes, self.places.log)
        owner, lease_ms = (b"", 0) if self.lease is None else (self.lease.owner, self.lease.ms)
        fresh = [unique() for _ in self.keys[1:]]
        options: Command = (int(self.renew), owner, lease_ms, int(self.log))
        return ((OPEN, len(keys), *keys, self.vacancy, self.vacancy_ms, self.token_ms, *options, *fresh),)

    def parse(self, replies: Sequence[Any]) -> Opened:
        """Return what there is now."""
        head, tokens, now, leads, left_ms, position, logged, at = replies[0]
        left_ms = max(0, left_ms)
        return Opened(head, tokens, int(now), bool(leads), left_ms, position.decode(), logged.decode(), int(at))


@dataclass(frozen=True, slots=True)
class Results:
    """Tags that the load has found, to be held against the invalidation log as it was before the load."""

    tokens: tuple[str, ...] = ()
    #: the last id of the log, and its time
    logged: str = ""
    logged_at: int = 0


@dataclass(frozen=True, slots=True)
class Fill:
    """Store what was loaded, unless the entry's lineage is no longer the one seen before the load; end the lease.

    With `results` also unless one of those tags was invalidated since, or may have been; see `fence`.
    """

    keys: tuple[str, ...]
    places: Places
    lineage: bytes
    packed: Packed
    ttl_ms: int
    token_ms: int
    owner: bytes = b""
    results: Results = Results()

    @property
    def keep_ms(self) -> int:
        """How long the tokens are needed at least."""
        return max(self.token_ms, 2 * self.ttl_ms)

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        packed, results = self.packed, self.results
        keys = (*self.keys, *results.tokens, self.places.lease, self.places.wakes, self.places.log)
        times = (self.ttl_ms, self.keep_ms)
        counts = (len(packed.tokens), len(results.tokens), results.logged_at, results.logged)
        fresh = [unique() for _ in results.tokens]
        arguments: Command = (
            self.lineage,
            packed.head,
            packed.rest,
            *times,
            *counts,
            self.owner,
            *packed.tokens,
            *fresh,
        )
        return ((FILL, len(keys), *keys, *arguments),)

    def parse(self, replies: Sequence[Any]) -> bool:
        """Return whether the value was stored."""
        return bool(replies[0])


@dataclass(frozen=True, slots=True)
class Release:
    """End a lease without a fill: the load failed. Does nothing when it is somebody else's by now."""

    entry: str
    places: Places
    owner: bytes

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        return ((RELEASE, 2, self.places.lease, self.places.wakes, self.owner, self.entry),)

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing."""


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Give tokens new values and entries new lineages, and say so. Costs the same for any number of entries cached.

    `causes` maps each token's name to why; `entries` maps entry keys to fresh vacancies; `token_key` and the log's key
    come from the keyspace. The log's entry is ``prev`` (the id before it, so that a gap shows) and ``what``, JSON:
    ``{"tokens": {name: cause}, "entries": [key]}``, and ``"patterns": [glob]`` where a scan has been made. `events` are
    the ids of the stream entries that are applied by this, in the form of `publisher.covers`; receipts hear of them in
    the stream `applied`.
    """

    causes: Mapping[str, str]
    token_keys: tuple[str, ...]
    uniques: tuple[bytes, ...]
    entries: Mapping[str, bytes]
    log: str
    log_length: int
    token_ms: int
    vacancy_ms: int
    applied: str
    events: str = ""
    patterns: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The log entry's JSON; empty when there is nothing to tell."""
        if not (self.causes or self.entries or self.patterns):
            return ""
        told: dict[str, Any] = {"tokens": dict(self.causes), "entries": list(self.entries)}
        if self.patterns:
            told["patterns"] = list(self.patterns)
        return json.dumps(told, separators=(",", ":"))

    @property
    def commands(self) -> Sequence[Command]:
        """One script: on one server all of it happens at once."""
        keys = (*self.token_keys, *self.entries, self.log, self.applied)
        causes = map(encode_cause, self.causes.values())
        pairs = (part for pair in zip(self.uniques, causes, strict=True) for part in pair)
        counts = (len(self.token_keys), len(self.entries), self.token_ms, self.vacancy_ms, self.log_length)
        word = (APPLIED_LENGTH, self.events)
        return ((INVALIDATE, len(keys), *keys, *counts, self.what, *word, *pairs, *self.entries.values()),)

    def parse(self, replies: Sequence[Any]) -> int:
        """Return how many of `entries` held a value."""
        return int(replies[0])


@dataclass(frozen=True, slots=True)
class Scan:
    """One step of a walk over the keys that match a glob."""

    glob: str
    cursor: int = 0

    @property
    def commands(self) -> Sequence[Command]:
        """One SCAN."""
        return (("SCAN", self.cursor, "MATCH", self.glob, "COUNT", SCAN_COUNT),)

    def parse(self, replies: Sequence[Any]) -> tuple[int, list[bytes]]:
        """Return the next cursor, 0 at the end, and the keys."""
        cursor, keys = replies[0]
        return int(cursor), keys


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete entries, and with them their lineages: a load in flight for one of them will not be stored."""

    keys: tuple[str | bytes, ...]

    @property
    def commands(self) -> Sequence[Command]:
        """One UNLINK: the memory is freed in the background."""
        return (("UNLINK", *self.keys),)

    def parse(self, replies: Sequence[Any]) -> int:
        """Return how many there were."""
        return int(replies[0])


@dataclass(frozen=True, slots=True)
class Put:
    """Store a value whatever is there, starting a new lineage: a load in flight must not overwrite it."""

    keys: tuple[str, ...]
    packed: Packed
    ttl_ms: int
    token_ms: int

    @property
    def keep_ms(self) -> int:
        """How long the tokens are needed at least."""
        return max(self.token_ms, 2 * self.ttl_ms)

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        arguments = (self.packed.header, self.packed.rest, self.ttl_ms, self.keep_ms)
        return ((PUT, len(self.keys), *self.keys, *arguments),)

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing; a refusal is an error reply."""


@dataclass(frozen=True, slots=True)
class Append:
    """Add an event to a stream."""

    stream: str
    fields: Mapping[str, str]

    @property
    def commands(self) -> Sequence[Command]:
        """One XADD, never with MAXLEN: only the worker knows what may go."""
        return (("XADD", self.stream, "*", *(part for pair in self.fields.items() for part in pair)),)

    def parse(self, replies: Sequence[Any]) -> str:
        """Return the entry's id, ``milliseconds-sequence``."""
        return bytes(replies[0]).decode("ascii")


@dataclass(frozen=True, slots=True)
class Batch:
    """Several operations in one exchange; gives a list of what they return. An error of one is the error of all."""

    operations: Sequence[Operation[Any]]

    @property
    def commands(self) -> Sequence[Command]:
        """All of theirs, in order."""
        return [command for operation in self.operations for command in operation.commands]

    def parse(self, replies: Sequence[Any]) -> list[Any]:
        """Return what each operation makes of its replies."""
        rest = iter(replies)
        return [operation.parse([next(rest) for _ in operation.commands]) for operation in self.operations]


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask whether the server answers."""

    @property
    def commands(self) -> Sequence[Command]:
        """One PING."""
        return (("PING",),)

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing; silence and refusal are errors."""


def microseconds(reply: Sequence[Any]) -> int:
    """Read the reply of TIME."""
    seconds, rest = reply
    return int(seconds) * 1_000_000 + int(rest)
