"""What a read asks of Redis for one entry: look, open, fill, put; and the lease on loading it. Sans I/O.

The scripts are in `scripts`, with what each of them promises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .layout import Packed, unique
from .operations import Command
from .scripts import FILL, OPEN, PUT, RELEASE


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
        return _keep_ms(self.token_ms, self.ttl_ms)

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
class Put:
    """Store a value whatever is there, starting a new lineage: a load in flight must not overwrite it."""

    keys: tuple[str, ...]
    packed: Packed
    ttl_ms: int
    token_ms: int

    @property
    def keep_ms(self) -> int:
        """How long the tokens are needed at least."""
        return _keep_ms(self.token_ms, self.ttl_ms)

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        arguments = (self.packed.header, self.packed.rest, self.ttl_ms, self.keep_ms)
        return ((PUT, len(self.keys), *self.keys, *arguments),)

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing; a refusal is an error reply."""


def microseconds(reply: Sequence[Any]) -> int:
    """Read the reply of TIME."""
    seconds, rest = reply
    return int(seconds) * 1_000_000 + int(rest)


def _keep_ms(token_ms: int, ttl_ms: int) -> int:
    """Return how long tokens are kept: a token must outlive the entries under it, or they end early."""
    return max(token_ms, 2 * ttl_ms)
