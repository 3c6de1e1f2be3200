"""What each step of the fence asks of Redis: commands and how to read their replies, as values. Sans I/O.

An operation is one exchange with the server. `store` sends it, from a coroutine or from a thread, and `memory` carries
it out on a dict; both know nothing of the fence, and the fence knows nothing of them. On one server each is a single
command, or several that are sent together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .layout import encode_cause
from .scripts import ADD_COUNTS, INVALIDATE, Script

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
class Invalidate:
    """Give tokens new values and entries new lineages, and say so. Costs the same for any number of entries cached.

    `causes` maps each token's name to why; `entries` maps entry keys to fresh vacancies; `token_key` and the log's key
    come from the keyspace. The log's entry is ``prev`` (the id before it, so that a gap shows) and ``what``, JSON:
    ``{"tokens": {name: cause}, "entries": [key]}``, and ``"patterns": [glob]`` where a scan has been made; beside it
    ``why`` is the cause of what is no token's. `events` are the ids of the stream entries that are applied by this, in
    the form of `publisher.covers`; receipts hear of them in the stream `applied`.
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
    why: str = ""

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
        why = encode_cause(self.why)
        return ((INVALIDATE, len(keys), *keys, *counts, self.what, *word, why, *pairs, *self.entries.values()),)

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
class AppendDurably:
    """Add an event to a stream, and wait up to `wait_ms` milliseconds until so many replicas have it: see `durable`."""

    stream: str
    fields: Mapping[str, str]
    replicas: int
    wait_ms: int

    @property
    def commands(self) -> Sequence[Command]:
        """The XADD of `Append`, and a WAIT for what came over this connection."""
        return (*Append(self.stream, self.fields).commands, ("WAIT", self.replicas, self.wait_ms))

    def parse(self, replies: Sequence[Any]) -> tuple[str, int]:
        """Return the entry's id, and how many replicas have it."""
        added, acknowledged = replies
        return bytes(added).decode("ascii"), int(acknowledged)


@dataclass(frozen=True, slots=True)
class NoteCalls:
    """Add reads to the counts of calls in a sorted set, which keeps the `most` that were read most."""

    key: str
    reads: Mapping[str, int]
    most: int
    keep_ms: int

    @property
    def commands(self) -> Sequence[Command]:
        """One ZINCRBY for each call, then what bounds the set in size and time."""
        return (
            *(("ZINCRBY", self.key, reads, call) for call, reads in self.reads.items()),
            ("ZREMRANGEBYRANK", self.key, 0, -self.most - 1),
            ("PEXPIRE", self.key, self.keep_ms),
        )

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing."""


@dataclass(frozen=True, slots=True)
class ReadCalls:
    """Read the calls of a sorted set that were read most, at most so many."""

    key: str
    most: int

    @property
    def commands(self) -> Sequence[Command]:
        """One ZREVRANGE."""
        return (("ZREVRANGE", self.key, 0, self.most - 1, "WITHSCORES"),)

    def parse(self, replies: Sequence[Any]) -> dict[bytes, float]:
        """Return the counts by call; RESP2 has them one after the other, RESP3 in pairs."""
        flat = replies[0]
        if flat and isinstance(flat[0], list):
            flat = [part for pair in flat for part in pair]
        return {call: float(count) for call, count in zip(flat[::2], flat[1::2], strict=True)}


@dataclass(frozen=True, slots=True)
class AddCounts:
    """Add amounts to fields of a hash, once: what a sender has sent under a number is not added again under it.

    `sender` is a field, too. A sender counts up, and goes on only when it knows what has become of the number before.
    """

    key: str
    sender: str
    number: int
    amounts: Mapping[str, int]
    keep_ms: int

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        pairs = (part for pair in self.amounts.items() for part in pair)
        return ((ADD_COUNTS, 1, self.key, self.sender, self.number, self.keep_ms, *pairs),)

    def parse(self, replies: Sequence[Any]) -> bool:
        """Say whether they were added now, and not before."""
        return bool(replies[0])


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
