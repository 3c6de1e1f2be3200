"""The in-process tier: values kept in this process, held to the invalidation log. Sans I/O; `tail` reads the log.

A value in this process is not asked about at each hit, so somebody must tell of invalidations: the log, which every
invalidation writes in the same step in which it changes the tokens, and which the tail applies here in its order. The
*position* is how much of it has been applied. The race of the fence returns in this form:

    1. reader    notes the position; looks up Redis (or loads): gets the old value
    2. writer    commits, invalidates, is told that it is done
    3. tail      applies the log entry: nothing here to drop
    4. reader    puts the old value
    5. anybody   is served the old value, until its ttl

So a reader notes the position *before* its look-up or load begins, and the tier remembers what was applied last. In
step 4 it finds that one of the value's names was invalidated behind the noted position, and refuses. With 3 and 4 the
other way round the value is there, and is dropped. In both orders:

    served  =>  the log as far as it is applied has no invalidation of the value's names behind the position noted
            =>  what was looked up or loaded after the note is as new as every invalidation of it applied here

What the tier cannot know is an invalidation that is acknowledged and not applied here yet: between 2 and 3 the old
value is served. That is the *lag*, usually below a millisecond, which the tail measures; `alive_until` bounds it when
the tail hears nothing more. What is remembered is bounded too: a note from further back than that is refused.

Replacing or dropping never changes a slot into another value: a slot that is dropped stays dropped. Therefore a hit
takes no lock. It reads the value first, and then whether the slot still stood and the tail was alive:

    value = slot.value
    if (now := clock()) < slot.expires and now < tier.alive_until:
        slot.visited = True
        return value

The other way round a thread could find the slot valid, be overtaken by the drop, and return what the drop left there.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import chain
from math import inf
from re import Pattern
from typing import Any

from .forks import in_child
from .globs import glob_to_regex
from .immutable import immutable
from .keys import ALL

#: Names and patterns whose last invalidation is remembered: it must reach back over the loads in flight.
_NAMES_REMEMBERED = 16_384
_PATTERNS_REMEMBERED = 64

#: Seconds that go on while the machine is suspended, where the system has such a clock: a laptop or a virtual machine
#: that wakes must not take what it kept for a second old. 65 ns a call, against 50 for `time.monotonic`.
clock: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class Slot:
    """One value. `expires` is in seconds of the tier's clock, and 0.0 once dropped; then value and payload are gone.

    `value` may be handed to everybody if `shared`; if not it is None, and each caller decodes `payload`.
    """

    __slots__ = ("expires", "key", "names", "newer", "older", "payload", "shared", "size", "value", "visited")

    def __init__(self, key: str, names: tuple[str, ...], payload: bytes, expires: float) -> None:
        self.key = key
        #: what invalidates it: its tokens' names (but for "all": that drops everything) and its key
        self.names = names
        self.payload = payload
        self.expires = expires
        self.size = len(payload) + len(key)
        self.value: Any = None
        self.shared = False
        self.visited = False
        self.newer: Slot | None = None
        self.older: Slot | None = None

    def release(self) -> None:
        """End it: first so that nobody is served any more, then the memory."""
        self.expires = 0.0
        self.value = None
        self.payload = b""


class LocalTier:
    """Values of this process, at most `max_entries` and `max_bytes` of them (payloads and keys). Safe under threads.

    `clock` gives seconds; pass the same to whatever compares with `Slot.expires` and `alive_until`.

    What leaves first is chosen by SIEVE (Zhang et al., NSDI 2024): a queue in the order of arrival, and a hand that
    goes through it from the oldest on, lets off once what was read since it last passed, and takes out what was not.
    A hit only marks its slot, where LRU would move it under a lock; and what is read once never displaces what is read
    often.
    """

    def __init__(self, max_entries: int, max_bytes: int, clock: Callable[[], float] = clock) -> None:
        #: values are served before this time of the clock; -inf: the tail is not alive
        self.alive_until = -inf
        #: what is held now, and how many slots had to make room so far
        self.bytes = 0
        self.evictions = 0
        self.clock = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._position = 0
        self._slots: dict[str, Slot] = {}
        self._empty()
        in_child(self.forked)

    def __len__(self) -> int:
        return len(self._slots)

    # For readers

    def note(self) -> int | None:
        """Return the position, to be noted before a look-up in Redis or a load begins; None: do without the tier now.

        Whoever shares a load puts under the note of the one who began it.
        """
        position = self._position
        return position if self.clock() < self.alive_until else None

    def get(self, key: str) -> Slot | None:
        """Return the slot that may be served now under a key."""
        slot = self._slots.get(key)
        if slot is None or (now := self.clock()) >= slot.expires or now >= self.alive_until:
            return None
        slot.visited = True
        return slot

    def put(
        self,
        key: str,
        tokens: tuple[str, ...],
        noted: int,
        value: object,
        payload: bytes,
        *,
        ttl: float,
        share: bool = False,
    ) -> Slot | None:
        """Keep a value for `ttl` seconds; `tokens` are the names of its tokens, `payload` is its encoding.

        Refused with None when it may be older than an invalidation that was applied since `noted`: of one of its names,
        by a pattern, or unknown because the tail was lost or too much was invalidated since; also when it is larger
        than the whole tier. A value that a policy served although it was stale is not to be put. With `share` every
        caller gets this very object, although it could be changed.
        """
        names = (*(name for name in tokens if name != ALL), key)
        slot = Slot(key, names, payload, self.clock() + ttl)
        if slot.size > self._max_bytes or ttl <= 0:
            return None
        if share or immutable(value):
            slot.value, slot.shared = value, True
        with self._lock:
            if self._overtaken(slot, noted):
                return None
            if (former := self._slots.get(key)) is not None:
                self._drop(former)
            while len(self._slots) >= self._max_entries or self.bytes + slot.size > self._max_bytes:
                self._evict()
            self._insert(slot)
        return slot

    # For the tail

    def applied(self, tokens: Iterable[str], entries: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """Apply one entry of the log: token names, entry keys, and globs over entry keys, as SCAN's MATCH has them."""
        regexes = [glob_to_regex(glob) for glob in patterns]
        with self._lock:
            self._position += 1
            # Tokens and keys share one index. Should a key read like a token's name, too much is dropped.
            for name in chain(tokens, entries):
                if name == ALL:
                    self._empty()
                    continue
                self._drop_all(tuple(self._index.get(name, ())))
                self._remember(name)
            for regex in regexes:
                self._drop_all([slot for key, slot in self._slots.items() if regex.fullmatch(key.encode())])
                self._remember_pattern(regex)

    def alive(self, until: float) -> None:
        """Serve until a time of the clock, which may be moved by calling this again."""
        self.alive_until = until

    def bypass(self) -> None:
        """Serve nothing until `alive`, but keep what is there: the tail will go on where it was."""
        self.alive_until = -inf

    def lost(self) -> None:
        """Drop everything and serve nothing until `alive`: the log has a gap, so what changed is not known.

        What was noted before is refused from now on.
        """
        self.alive_until = -inf
        with self._lock:
            self._position += 1
            self._empty()

    def forked(self) -> None:
        """Begin with nothing in a forked child: the tail stayed in the parent, as did whoever held the lock."""
        self._lock = threading.Lock()
        self.lost()

    # Under the lock

    def _empty(self) -> None:
        """Drop everything, and forget what was invalidated up to now: no earlier note is good for anything.

        Goes by the dict alone: in a forked child the rest may be in the middle of a change.
        """
        for slot in self._slots.values():
            slot.release()
        self._slots = {}
        self._index: dict[str, set[Slot]] = {}
        self._oldest: Slot | None = None
        self._newest: Slot | None = None
        self._hand: Slot | None = None
        self.bytes = 0
        # When each name was last invalidated, in that order; and how far back that is complete.
        self._last: OrderedDict[str, int] = OrderedDict()
        self._patterns: deque[tuple[int, Pattern[bytes]]] = deque()
        self._reach = self._position

    def _overtaken(self, slot: Slot, noted: int) -> bool:
        if noted < self._reach or any(self._last.get(name, 0) > noted for name in slot.names):
            return True
        key = slot.key.encode()
        return any(position > noted and regex.fullmatch(key) for position, regex in self._patterns)

    def _remember(self, name: str) -> None:
        self._last[name] = self._position
        self._last.move_to_end(name)
        if len(self._last) > _NAMES_REMEMBERED:
            self._reach = max(self._reach, self._last.popitem(last=False)[1])

    def _remember_pattern(self, regex: Pattern[bytes]) -> None:
        self._patterns.append((self._position, regex))
        if len(self._patterns) > _PATTERNS_REMEMBERED:
            self._reach = max(self._reach, self._patterns.popleft()[0])

    def _insert(self, slot: Slot) -> None:
        self._slots[slot.key] = slot
        self.bytes += slot.size
        for name in slot.names:
            self._index.setdefault(name, set()).add(slot)
        slot.older = self._newest
        if self._newest is None:
            self._oldest = slot
        else:
            self._newest.newer = slot
        self._newest = slot

    def _drop_all(self, slots: Collection[Slot]) -> None:
        for slot in slots:  # served no more before the books are put in order, which takes longer
            slot.release()
        for slot in slots:
            self._drop(slot)

    def _drop(self, slot: Slot) -> None:
        slot.release()
        del self._slots[slot.key]
        self.bytes -= slot.size
        for name in slot.names:
            if (slots := self._index.get(name)) is not None:
                slots.discard(slot)
                if not slots:
                    del self._index[name]
        if self._hand is slot:
            self._hand = slot.newer
        if slot.older is None:
            self._oldest = slot.newer
        else:
            slot.older.newer = slot.newer
        if slot.newer is None:
            self._newest = slot.older
        else:
            slot.newer.older = slot.older
        slot.newer = slot.older = None

    def _evict(self) -> None:
        slot = self._hand or self._oldest
        now = self.clock()
        while slot is not None and slot.visited and slot.expires > now:
            slot.visited = False
            slot = slot.newer or self._oldest
        if slot is not None:
            self._hand = slot
            self._drop(slot)
            self.evictions += 1
