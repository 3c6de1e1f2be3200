"""Who reads in the demo: every read is asked of both caches and held to the promise.

async or threads: all readers share one event loop, as the requests of a service do; SQLite is read in threads.
"""

import asyncio
from collections.abc import Sequence
from datetime import date
from itertools import cycle
from typing import Any

from tidings import Cache
from tidings.codec import Codec
from tidings.fence import Facts, facts_of
from tidings.operations import Look

from .result import CheckFailed, Round
from .service import Answer, get_function_tree, loads, read_tree
from .ttl_only import TtlOnly

#: Seconds that a reader in the background waits between two reads.
_PAUSE = 0.002


class Audience:
    """Reads of one day's trees through `cache`, beside a TTL-only cache with the same ttl.

    Every method that reads raises CheckFailed for an answer that is stale: not among those that were right when the
    read began.
    """

    def __init__(self, cache: Cache, as_of: date) -> None:
        self.as_of = as_of
        self._cache = cache
        self._ttl_only: TtlOnly[str, Answer] = TtlOnly((get_function_tree.options.ttl_ms or 0) / 1000)
        #: the answers that a read beginning now may be given: two while an event is under way, else one
        self._right: dict[str, list[Answer]] = {}

    def committed(self, package: str, answer: Answer) -> None:
        """Take note of what the database holds now: readers may be given it, or what they were given before."""
        self._right.setdefault(package, []).append(answer)

    def applied(self, package: str) -> None:
        """Take note that the event is applied: from now on, only what was committed last is right."""
        self._right[package] = self._right[package][-1:]

    def current(self, package: str) -> str | None:
        """Return the revision that the database holds."""
        return self._right[package][-1][1]

    async def read(self, now: Round, package: str) -> tuple[Answer, Answer, bool]:
        """Return tidings' answer, the TTL-only one, and whether tidings had to load; both are counted.

        Only one reader of a package at a time can tell a load of its own.
        """
        right, before = self._right[package], loads[package]
        answer = await get_function_tree(package, self.as_of)
        loaded = loads[package] != before
        ttl_only = await self.ttl_only(package)
        now.reads += 1
        now.ttl_only_stale += ttl_only not in right
        _check(package, answer, right)
        return answer, ttl_only, loaded

    async def peek(self, package: str) -> Answer | None:
        """Return what tidings would serve without loading."""
        right = self._right[package]
        codec: Codec[Any] = get_function_tree.codec
        call = get_function_tree.call_of(package, self.as_of)
        answer: Answer | None = await self._cache.reader().peek(call, codec, None)
        if answer is not None:
            _check(package, answer, right)
        return answer

    async def ttl_only(self, package: str) -> Answer:
        """Return what a TTL-only cache answers."""
        return await self._ttl_only.get(package, lambda: asyncio.to_thread(read_tree, package, self.as_of))

    async def facts(self, package: str) -> Facts | None:
        """Return what the entry in Redis says of its load, whether it would be served or not; None: no entry."""
        raw, _ = await self._cache.reader().store.run(Look(get_function_tree.key(package, self.as_of), ()))
        return facts_of(raw)

    async def keep_reading(self, now: Round, packages: Sequence[str], over: asyncio.Event) -> None:
        """Read the packages in turn until the round is over."""
        for package in cycle(packages):
            if over.is_set():
                return
            await self.read(now, package)
            await asyncio.sleep(_PAUSE)


def _check(package: str, answer: Answer, right: Sequence[Answer]) -> None:
    if answer not in right:
        message = f"{package}: revision {answer[1]} was served although the event of {right[-1][1]} had been applied"
        raise CheckFailed("stale read", message)
