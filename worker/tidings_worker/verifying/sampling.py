"""Which entries are checked: of each namespace some, by chance.

One walk over the keys (SCAN) keeps of each namespace those with the lowest of random numbers. A key's number is a hash
of it with a salt of this walk's own, so that a key which SCAN returns twice is one. Then the sample is shared out: a
small namespace comes in as a whole, and the big ones have the rest in equal parts, so that none is hidden behind
another; of each, those with the lowest numbers.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappush, heappushpop
from itertools import chain, zip_longest

from redis.asyncio import Redis
from tidings.keys import Keyspace

#: Keys that a walk looks at, in all; beyond it the sample is of a part, and says so.
SCAN_AT_MOST = 1_000_000
#: Keys that one step of it looks at: the server serves nobody else meanwhile.
_STEP = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """The keys to look at, namespaces in turn; how many each has, about, and whether all keys were walked over."""

    keys: Sequence[tuple[str, bytes]]
    found: Mapping[str, int]
    complete: bool
    scans: int
    bytes_read: int


@dataclass(slots=True)
class Reservoir:
    """The keys of one namespace that have the lowest numbers, `most` of them."""

    most: int
    salt: bytes
    seen: int = 0
    #: the highest number first, as `heapq` has it when numbers are negative
    _heap: list[tuple[int, bytes]] = field(default_factory=list)
    _kept: set[bytes] = field(default_factory=set)

    def offer(self, key: bytes) -> None:
        """Look at a key, perhaps not for the first time."""
        if key in self._kept:
            return
        self.seen += 1
        number = int.from_bytes(blake2b(key, key=self.salt, digest_size=8).digest(), "big")
        if len(self._heap) < self.most:
            heappush(self._heap, (-number, key))
            self._kept.add(key)
        else:
            _, gone = heappushpop(self._heap, (-number, key))
            self._kept.add(key)
            self._kept.discard(gone)

    @property
    def keys(self) -> list[bytes]:
        """The keys kept, in the order of chance."""
        return [key for _, key in sorted(self._heap, reverse=True)]


class Walk:
    """Chooses `most` keys of entries; `namespaces` names those that are meant, empty: all."""

    def __init__(self, keys: Keyspace, most: int, namespaces: Sequence[str] = (), salt: bytes | None = None) -> None:
        only = namespaces[0] if len(namespaces) == 1 else None
        self._pattern = keys.pattern(only, "*")
        self._start = keys.entries.encode()
        self._namespaces = frozenset(namespaces)
        self._most = most
        self._salt = salt or secrets.token_bytes(16)
        self._reservoirs: dict[str, Reservoir] = {}
        self._bytes = 0

    async def over(
        self, servers: Sequence[Redis], going: Callable[[], bool] = lambda: True, scan_at_most: int = SCAN_AT_MOST
    ) -> Sample:
        """Walk over the keys of all servers while `going`. Raises what Redis does."""
        complete, scans = True, 0
        for server in servers:
            cursor, left = 0, scan_at_most // len(servers)
            while left > 0 and going():
                cursor, found = await server.scan(cursor, match=self._pattern, count=_STEP)
                left, scans = left - _STEP, scans + 1
                for key in found:
                    self._offer(key)
                if cursor == 0:
                    break
            else:
                complete = False
        counts = {name: one.seen for name, one in sorted(self._reservoirs.items())}
        return Sample(self._chosen(), counts, complete, scans, self._bytes)

    def _offer(self, key: bytes) -> None:
        self._bytes += len(key)
        namespace = key.removeprefix(self._start).partition(b":")[0].decode(errors="replace")
        if self._namespaces and namespace not in self._namespaces:
            return
        found = self._reservoirs.get(namespace)
        if found is None:
            found = self._reservoirs[namespace] = Reservoir(self._most, self._salt)
        found.offer(key)

    def _chosen(self) -> list[tuple[str, bytes]]:
        kept = {name: one.keys for name, one in self._reservoirs.items()}
        parts = shares({name: len(keys) for name, keys in kept.items()}, self._most)
        columns = [[(name, key) for key in keys[: parts[name]]] for name, keys in sorted(kept.items())]
        # In turn, so that an audit whose time is over has seen something of every namespace.
        return [one for one in chain.from_iterable(zip_longest(*columns)) if one is not None]


def shares(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """Share `most` places out: nobody gets more than it has, and nobody less than another unless it has no more."""
    found: dict[str, int] = {}
    left = most
    for place, name in enumerate(sorted(counts, key=lambda one: (counts[one], one))):
        found[name] = min(counts[name], left // (len(counts) - place))
        left -= found[name]
    return found
