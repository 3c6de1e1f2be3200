"""One audit: a sample of the entries, checked several at a time, within a budget.

What costs is bounded one by one: keys walked over and entries sampled (`sampling`), loads a second and at the same time
(`checking`), and time: no entry is begun when it is over. What differs by then is still waited for, until the plan's
`at_most`; then it is unsettled.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError
from tidings import Cache
from tidings.errors import UnavailableError
from tidings.layout import ENTRY_KINDS, LINEAGE_START, facts_of
from tidings.sealing import Sealer

from tidings_worker.servers import store_of

from .checking import Checked, Checker
from .finding import Differing
from .plan import Plan
from .reports import Finding, Report
from .sampling import Walk
from .subjects import FOREIGN, Skipped, Subject, identify
from .verdicts import Outcome

#: Entries that are looked at, loaded or waited for at the same time; it bounds what is held in memory.
_AT_ONCE = 50
#: Those of them that are looked at and loaded for the first time: what is under way when the time is over.
_BEGUN_AT_ONCE = 10
#: Bytes of an entry that nearly always have its facts.
_HEAD = 4096
#: Seconds between two questions whether it may go on.
_BUSY = 0.05


class Audit:
    """One run over the entries of a cache. `found` hears of each finding; `progress` of how many more are done.

    Nothing is begun while `idle` says no. Raises ConfigurationError for a cache in memory.
    """

    def __init__(
        self,
        cache: Cache,
        plan: Plan,
        *,
        found: Callable[[Finding], None] = lambda _finding: None,
        progress: Callable[[int], None] = lambda _more: None,
        idle: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._plan = plan
        self._found = found
        self._progress = progress
        self._idle = idle
        self._clock = clock
        self._store = store_of(cache)
        self._sealer = Sealer(cache.settings)
        self._report = Report()
        self._checker = Checker(cache, self._store, plan, self._report.cost, clock=clock)
        self._handing_out = asyncio.Lock()
        self._beginning = asyncio.Semaphore(_BEGUN_AT_ONCE)
        self._left: deque[tuple[str, bytes]] = deque()
        self._until = 0.0
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event | None = None) -> Report:
        """Audit until all is done, the time is over, or `stop` is set; return what was found by then.

        Raises UnavailableError or what Redis raises. Cancelled, it leaves nothing behind but loads in threads.
        """
        started = self._clock()
        self._until = started + self._plan.longest
        self._stop = stop or self._stop
        try:
            await self._choose()
            all_done = await self._check_all(started + self._plan.at_most)
        finally:
            await self._checker.aclose()
        report = self._report
        if not all_done or report.looked_at < report.sampled or (self._is_over() and not report.complete):
            report.ended = "stopped" if self._stop.is_set() else "time"
        report.cost.elapsed_seconds = self._clock() - started
        return report

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._clock() >= self._until

    # Which entries

    async def _choose(self) -> None:
        report, cost = self._report, self._report.cost
        walk = Walk(self._cache.keys, self._plan.sample, self._plan.namespaces)
        sample = await walk.over(await self._store.primaries(), lambda: not self._is_over())
        report.sampled, report.complete = len(sample.keys), sample.complete
        cost.commands, cost.bytes_read = sample.scans, sample.bytes_read
        for namespace in (*self._plan.namespaces, *sample.found):
            report.of(namespace).entries = sample.found.get(namespace, 0)
        self._left.extend(sample.keys)

    async def _identify(self, key: bytes) -> Subject | Skipped:
        """Find out what an entry is the result of. Raises UnavailableError, and what Redis raises."""
        try:
            name = key.decode()
        except UnicodeDecodeError:
            return Skipped(Outcome.NOT_AUDITABLE, FOREIGN)
        head = await self._head(name)
        try:
            return identify(name, head, self._cache, self._sealer)
        except Exception as error:  # noqa: BLE001 whatever the service's own code raises
            return Skipped(Outcome.FAILED, type(error).__name__)

    async def _head(self, key: str) -> bytes | None:
        """Return an entry's bytes as far as its facts; None for what is no string. Raises UnavailableError."""
        cost = self._report.cost
        try:
            async with asyncio.timeout(self._store.timeout):
                client = await self._store.client_for(key)
                cost.commands += 1
                head: bytes = await client.getrange(key, 0, _HEAD - 1)
                if len(head) == _HEAD and head[:LINEAGE_START] in ENTRY_KINDS and facts_of(head) is None:
                    cost.commands += 1
                    head = await client.getrange(key, 0, -1)
        except TimeoutError as error:
            raise UnavailableError(f"{self._cache.telemetry.server}: no answer") from error
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None
        cost.bytes_read += len(head)
        return head

    # All of them

    async def _check_all(self, deadline: float) -> bool:
        """Check what was chosen, several at a time; say whether all was done before the deadline and the stop."""
        workers = [asyncio.create_task(self._check_each()) for _ in range(_AT_ONCE)]
        stopping: asyncio.Future[Any] = asyncio.create_task(self._stop.wait())
        working: asyncio.Future[Any] = asyncio.gather(*workers)
        try:
            left = max(0.0, deadline - self._clock())
            await asyncio.wait({working, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return working.done()
        finally:
            for task in (*workers, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, *workers, return_exceptions=True)
            for subject in self._checker.differing.values():  # no alarm: the audit was ended before it knew
                self._count(subject.namespace, Checked(Outcome.UNSETTLED))

    async def _check_each(self) -> None:
        while (differing := await self._next_differing()) is not None:
            checked = await self._checker.settle(differing)
            self._count(differing.subject.namespace, checked)
            if checked.finding is not None:
                await self._tell(differing.subject, checked.finding)

    async def _next_differing(self) -> Differing | None:
        """Begin entries until one differs from its load; None: there is no more, or no time for it."""
        async with self._beginning:
            while self._left and not self._is_over():
                namespace, key = self._left.popleft()
                found = await self._identify(key)
                if isinstance(found, Skipped):
                    checked: Checked | Differing = Checked(found.outcome, found.reason)
                elif await self._turn():
                    checked = await self._checker.begin(found)
                else:
                    break
                if isinstance(checked, Differing):
                    return checked
                self._count(namespace, checked)
        return None

    async def _turn(self) -> bool:
        """Wait until an entry may be begun; False: the time is over before."""
        async with self._handing_out:
            while not self._is_over():
                if self._idle():
                    return await self._checker.pace.turn(self._until)
                await asyncio.sleep(_BUSY)
        return False

    def _count(self, namespace: str, checked: Checked) -> None:
        self._report.of(namespace).add(checked.outcome, checked.reason)
        self._progress(1)

    async def _tell(self, subject: Subject, finding: Finding) -> None:
        """Report a finding; then invalidate the entry, if that was asked for."""
        self._report.findings.append(finding)
        self._found(finding)
        if self._plan.repair and finding.outcome is Outcome.STALE:
            await self._cache.invalidate_call(subject.request.target.call)
            self._report.repaired += 1
