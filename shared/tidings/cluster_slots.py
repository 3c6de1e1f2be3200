"""Which node of a Redis Cluster serves which key, as far as is known here. Pure, but for what is learned.

A table may be wrong at any time: slots move and nodes die. A node that does not serve a key says who does, so that a
wrong table costs a round trip and never a wrong answer.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Redirection(NamedTuple):
    """A node's word that another one serves a slot: from now on, or (`once`) this one key, while the slot moves."""

    slot: int
    address: Address
    once: bool


class Slots:
    """Who serves each slot. Threads may read it while one learns: each slot is replaced as a whole."""

    def __init__(self) -> None:
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        #: the primaries, in a stable order; empty: nothing is known yet
        self.primaries: tuple[Address, ...] = ()

    def of(self, key: str | bytes) -> Address | None:
        """Return who serves a key; None: nobody, as far as is known."""
        return self._owners[key_slot(key.encode() if isinstance(key, str) else key)]

    def learn(self, reply: Any, asked: Address) -> None:
        """Take the reply of CLUSTER SLOTS; a node that does not say its own host is where it was `asked`."""
        owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in reply:
            owners[first : last + 1] = [_address(host, port, asked)] * (last + 1 - first)
        self._owners = owners
        self.primaries = tuple(sorted({owner for owner in owners if owner is not None}))

    def move(self, redirection: Redirection) -> None:
        """Take note of a slot's new owner."""
        self._owners[redirection.slot] = redirection.address
        if redirection.address not in self.primaries:
            self.primaries = tuple(sorted({*self.primaries, redirection.address}))


def redirection(reply: Any, asked: Address) -> Redirection | None:
    """Read an error reply that names another node; None for any other. Parsers differ in whether they know these."""
    if not isinstance(reply, Exception):
        return None
    words = str(reply).split(" ")
    if isinstance(reply, AskError):
        words = ["MOVED" if isinstance(reply, MovedError) else "ASK", *words]
    if words[0] not in {"MOVED", "ASK"}:
        return None
    _, slot, node = words
    host, _, port = node.rpartition(":")
    return Redirection(int(slot), _address(host, int(port), asked), words[0] == "ASK")


class Serving(NamedTuple):
    """What a node says of itself: which slots it serves since when, how many, and whether one of them is on its way."""

    since: str
    slots: int
    moving: bool


def serving(nodes: bytes | str) -> Serving:
    """Read a node's own line of its CLUSTER NODES."""
    text = nodes.decode() if isinstance(nodes, bytes) else nodes
    for line in text.splitlines():
        identity, _, flags, _, _, _, epoch, _, *slots = line.split()
        if "myself" in flags.split(","):
            ranges = [slot.partition("-") for slot in slots if not slot.startswith("[")]
            count = sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
            return Serving(" ".join((identity, epoch, *slots)), count, len(ranges) < len(slots))
    return Serving("", 0, moving=True)


def by_address(wanted: Iterable[tuple[Address, Any]]) -> dict[Address, list[Any]]:
    """Group what goes to the same node, in order."""
    groups: dict[Address, list[Any]] = {}
    for address, thing in wanted:
        groups.setdefault(address, []).append(thing)
    return groups


def _address(host: Any, port: int, asked: Address) -> Address:
    name = host.decode() if isinstance(host, bytes) else host
    return Address(asked.host if name in {None, "", "?"} else name, port)
