"""What each process has counted of its reads, added up in Redis, where other processes see it.

Every `report_interval` seconds a process adds what it has counted since the last time to a hash, one for each window of
`WINDOW_SECONDS`. Its fields are ``{namespace}:{counter}``, with the counters of `counting.Counts`, of a histogram the
sum, and as ``{namespace}:{histogram}:count`` how many values it has; and one for each process that reported, with the
number of its last report. A hash expires `KEPT_SECONDS` after its last report.

async or threads: one daemon thread for a process. Counters belong to the process, to all its loops and threads, and
must be told while a loop is busy, idle or over; and so a read pays nothing for it.

Nothing is added twice, and while Redis is away nothing is lost: what was not acknowledged is told later.

    1. a process  adds report 7, and the answer is lost: nobody here knows whether it was added
    2. a process  adds report 7 again as it was, in the same window
    3. the server has had a 7 of this process in this window, and adds nothing

It errs to one side only: what a process counts after its last report, and does not close its cache, is not told.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from secrets import token_hex

from .breaker import is_answer
from .counting import COUNTERS
from .errors import UnavailableError
from .forks import in_child
from .keys import Keyspace
from .operations import AddCounts
from .store import SyncStore
from .telemetry import Telemetry, log, process_name

#: How long reads are counted together.
WINDOW_SECONDS = 150
#: For how long they are kept after the last report.
KEPT_SECONDS = 4200
#: Begins the fields that name processes; no namespace begins with it.
PROCESS_MARK = ":"
#: Numbers that are added in one exchange, which keeps the server for about a millisecond.
_ADDED_AT_ONCE = 1000


class Reporter:
    """Adds what a process counts in `telemetry` to what all have counted; every `interval` seconds, 0: not at all.

    `make_store` makes the store that it sends with, which is its own; `there` says whether Redis is known to be there;
    `clock` gives the time of day.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        keys: Keyspace,
        make_store: Callable[[], SyncStore],
        interval: float,
        *,
        there: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._telemetry = telemetry
        self._keys = keys
        self._make_store = make_store
        self._interval = interval
        self._there = there
        self._clock = clock
        self._left = False
        self._begin()
        in_child(self._forked)

    def _begin(self) -> None:
        #: whether `start` would do anything
        self.idle = self._interval > 0
        self._lock = threading.Lock()
        #: held while something is sent, which can take as long as an operation may
        self._sending = threading.Lock()
        self._ended = threading.Event()
        self._store: SyncStore | None = None
        self._name = f"{PROCESS_MARK}{process_name()}:{token_hex(4)}"
        self._number = 0
        #: what was acknowledged, and what may have been added or not
        self._told: Counter[str] = Counter()
        self._unsure: AddCounts | None = None
        self._refused = False

    def _forked(self) -> None:
        """Begin anew in a forked child: what has been counted up to here is for the parent to tell."""
        self._begin()
        self._told = self._counted()

    def start(self) -> None:
        """Report from now on, if that is not so already; waits for nobody. Also after `stop`, and in a forked child."""
        with self._lock:
            if not self.idle or self._left:
                return
            self._ended = threading.Event()
            thread = threading.Thread(target=self._run, args=(self._ended,), name="tidings-report", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # none to be had, as while the interpreter ends; `stop` still reports
                return
            self.idle = False

    def stop(self) -> None:
        """End the thread, and report what is left; while Redis hangs this takes as long as an operation may."""
        with self._lock:
            self._ended.set()
            self.idle = self._interval > 0
        self.report()
        with self._sending:
            self._close()

    def leave(self) -> None:
        """Report once more, after the interval, and end: the cache was dropped without having been closed.

        Takes no lock, as this is called while Python collects garbage, in the midst of anything.
        """
        self._left = True

    def report(self) -> None:
        """Add what has been counted since the last time. Raises nothing for Redis's sake: it is told the next time."""
        if not self._interval:
            return
        with self._sending:
            for report in self._reports():
                if not self._there():
                    return
                self._unsure = report
                try:
                    self._open().run(report)
                except UnavailableError as error:
                    self._failed(error)
                    return
                with self._lock:
                    self._told.update(report.amounts)
                self._unsure = None
                self._refused = False

    def reset(self) -> None:
        """Start every counter again at zero; what has not been told yet still will be."""
        with self._lock:
            counted = self._counted()
            self._telemetry.reset()
            self._told.subtract(counted)

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(self._interval):
            try:
                self.report()
            except Exception as error:  # noqa: BLE001 a thread that died of a mistake here would be missed by nobody
                log.error("background_failed", key="report", exc_info=error)
            if self._left:
                self._close()
                return

    def _reports(self) -> Iterator[AddCounts]:
        """Give what has to be added; each must have been acknowledged before the next is asked for."""
        if self._unsure is not None:
            yield self._unsure
        window, _ = window_at(self._clock())
        with self._lock:
            counted = self._counted()
            owed = iter([(name, n - self._told[name]) for name, n in counted.items() if n > self._told[name]])
        while amounts := dict(islice(owed, _ADDED_AT_ONCE)):
            self._number += 1
            yield AddCounts(self._keys.stats(window), self._name, self._number, amounts, KEPT_SECONDS * 1000)

    def _counted(self) -> Counter[str]:
        sums: Counter[str] = Counter()
        for namespace, counts in self._telemetry.all():
            for name in COUNTERS:
                sums[f"{namespace}:{name}"] += getattr(counts, name)
            for name, histogram in (("load_us", counts.load_us), ("age_s", counts.age_s)):
                sums[f"{namespace}:{name}"] += histogram.total
                sums[f"{namespace}:{name}:count"] += histogram.count
        return sums

    def _failed(self, error: UnavailableError) -> None:
        """Without an answer it may have been added; of an absent Redis the breaker tells."""
        if is_answer(error):
            self._unsure = None
            if not (self._refused or self._telemetry.refusing):  # of a server that takes nothing it tells already
                self._refused = True
                log.warning("counts_refused", error=str(error))

    def _open(self) -> SyncStore:
        if self._store is None:
            self._store = self._make_store()
        return self._store

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


def window_at(now: float) -> tuple[int, float]:
    """Return the number of the window of a time of day, and how many seconds of it are over."""
    number, over = divmod(now, WINDOW_SECONDS)
    return int(number), over
