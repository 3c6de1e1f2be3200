"""Who reads in the demo: every read is asked of both caches and held to the promise.

async or threads: all readers share one event loop, as the requests of a service do; SQLite is read in threads.
"""

import asyncio
from collections.abc import Sequence
from datetime import date
from itertools import cycle

from tidings import Cache
from tidings.entries import Look
from tidings.layout import born_of, facts_of

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
        self._ttl_only: TtlOnly[str, Answer] = TtlOnly((get_function_tree.options.policy.ttl_ms or 0) / 1000)
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
        request = get_function_tree.request(_no_load, package, self.as_of)
        answer: Answer | None = await self._cache.reader().peek(request, None)
        if answer is not None:
            _check(package, answer, right)
        return answer

    async def ttl_only(self, package: str) -> Answer:
        """Return what a TTL-only cache answers."""
        return await self._ttl_only.get(package, lambda: asyncio.to_thread(read_tree, package, self.as_of))

    async def loaded(self, package: str) -> tuple[str, float] | None:
        """Return who loaded the entry in Redis and in how many ms, be it valid or not; None: no entry."""
        found = await self._cache.reader().ask(Look((get_function_tree.key(package, self.as_of),)))
        facts = facts_of(found.entry)
        born = born_of(found.entry)
        return None if facts is None or born is None else (facts.by, born.load_us / 1000)

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


async def _no_load() -> Answer:
    raise AssertionError("a peek does not load")
