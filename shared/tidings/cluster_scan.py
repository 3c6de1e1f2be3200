"""A walk over the keys of all nodes of a cluster, in steps. Pure.

The primaries are walked one after the other, and what moves meanwhile from one that is still to be walked to one that
has been would be missed: an entry that a pattern names would stay valid. So each primary is asked at the beginning and
at the end what it serves, since when, and whether a slot is on its way to or from it. If one is, the walk is refused;
if something has changed, it begins again.
"""

from dataclasses import dataclass, replace
from hashlib import sha256

from redis.crc import REDIS_CLUSTER_HASH_SLOTS

from .cluster_programs import Around, Program, To
from .cluster_slots import serving
from .errors import UnavailableError
from .operations import Scan

#: Times that a walk is made because slots have moved.
MOST_WALKS = 3

_MOVING = "slots are being moved between nodes, so a scan could miss keys: repeat it, or invalidate namespaces or tags"


def scan(step: Scan, around: Around) -> Program[tuple[int, list[bytes]]]:
    """Return one step's keys, and where to go on: 0 at the end. Raises UnavailableError while slots are moving."""
    place = _Place.of(step.cursor)
    if step.cursor == 0:
        place = _Place((yield from _served(around)))
    if place.node >= len(around.primaries):
        return (yield from _again(place, around)), []
    found = Scan(step.glob, place.cursor)
    replies = yield [To(around.primaries[place.node], command) for command in found.commands]
    cursor, keys = found.parse(replies)
    place = replace(place, cursor=cursor) if cursor else replace(place, cursor=0, node=place.node + 1)
    if place.node < len(around.primaries):
        return place.packed, keys
    return (yield from _again(place, around)), keys


def _again(place: "_Place", around: Around) -> Program[int]:
    """Return where to go on at the end of a walk: nowhere, or at the beginning when slots have moved meanwhile."""
    served = yield from _served(around)
    if served == place.served:
        return 0
    if place.walks == MOST_WALKS:
        raise UnavailableError(_MOVING)
    return _Place(served, walks=place.walks + 1).packed


def _served(around: Around) -> Program[int]:
    """Return a number for what each primary serves, since when. Raises UnavailableError while that is changing."""
    replies = yield [To(address, ("CLUSTER", "NODES")) for address in around.primaries]
    served = [serving(reply) for reply in replies]
    if any(one.moving for one in served) or sum(one.slots for one in served) != REDIS_CLUSTER_HASH_SLOTS:
        raise UnavailableError(_MOVING)
    said = "\n".join(one.since for one in served)
    return int.from_bytes(sha256(said.encode()).digest()[:8], "big") | 1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a walk is, as one number for whoever walks."""

    #: what the primaries served at its beginning
    served: int
    walks: int = 1
    node: int = 0
    cursor: int = 0

    @property
    def packed(self) -> int:
        return ((self.served << 16 | self.walks) << 16 | self.node) << 64 | self.cursor

    @classmethod
    def of(cls, packed: int) -> "_Place":
        return cls(packed >> 96, packed >> 80 & 0xFFFF, packed >> 64 & 0xFFFF, packed & 0xFFFF_FFFF_FFFF_FFFF)
