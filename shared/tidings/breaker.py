"""The circuit breaker of one cache's reads: while Redis is away, reads load directly instead of waiting for it.

async or threads: one thread of its own that blocks, whichever of them read. The server is away for all event loops and
threads of the process alike, and a task would end with its loop.

A server that refuses connections costs a read little. One that is frozen, or behind a partition, costs every read its
whole deadline: a service with a deadline of 2 s and a load of 5 ms is slower with its cache than without. Hence the
breaker opens at the first failure and not at the fifth, as each further one would be a caller who waits in vain. It may
then open by mistake, over one lost packet. That is cheap, since the probe starts at once: if the server is there, reads
were direct for the time of one PING. Half-open is the business of the probe alone; no caller is sent ahead to find out.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from random import random as _random
from weakref import WeakSet

from redis.exceptions import ResponseError

from .errors import TidingsError
from .telemetry import log

#: Between a probe that failed and the next: doubled from the first to the last.
FIRST_DELAY_SECONDS = 0.05
LAST_DELAY_SECONDS = 2.0


def delays_seconds(random: Callable[[], float]) -> Iterator[float]:
    """Yield how long to wait after each failed probe, without end.

    Half of each delay is random, so that the processes of a service that lost Redis together do not all ask at once
    when it is back; `random` returns numbers from 0 to 1.
    """
    longest = FIRST_DELAY_SECONDS
    while True:
        yield longest * (1 + random()) / 2
        longest = min(2 * longest, LAST_DELAY_SECONDS)


def is_answer(error: BaseException) -> bool:
    """Return whether the error is the server's own word: out of memory, read-only, not permitted.

    It came without waiting, and a PING would be answered: to open over it would end in opening and closing with each
    command that is refused.
    """
    return isinstance(error.__cause__, ResponseError)


class Breaker:
    """Says whether reads ask Redis. Shared by all event loops and threads; a forked child begins closed.

    `probe` asks the server once, blocking, and raises a TidingsError within a deadline of its own when there is no
    answer. It is called from a daemon thread that lives while the breaker is open, never from two threads at a time.

    `on_change(open, reason)` is called once for each change, in their order, one call at a time, under no lock; from
    the thread that brought the change, or from one that brought an earlier one. What it raises is logged. A fork and
    `stop` are no changes.

    `clock` gives seconds, for the reason; `wait` is how the probe's thread sleeps; `random` spreads its delays.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        on_change: Callable[[bool, str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
        random: Callable[[], float] = _random,
    ) -> None:
        self._probe = probe
        self._on_change = on_change
        self._clock = clock
        self._wait = wait
        self._random = random
        self._begin()
        _breakers.add(self)

    @classmethod
    def never(cls) -> "Breaker":
        """Return one for a store in process, which cannot be away: nothing that reports a failure is given it."""
        return cls(lambda: None, lambda _open, _reason: None)

    def _begin(self) -> None:
        #: whether reads may ask Redis; to be read, never set, from outside
        self.closed = True
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: set unless there is an opening that the thread has to see to its end; each has its own
        self._over = threading.Event()
        self._over.set()
        self._opened_at = 0.0
        self._news: deque[tuple[bool, str]] = deque()
        self._announcing = False

    def failed(self, error: Exception) -> None:
        """Open, unless the server did answer, with an error of its own. Costs nothing while open."""
        if not self.closed or is_answer(error):
            return
        reason, now = str(error) or type(error).__name__, self._clock()
        try:
            with self._lock:
                if not self._over.is_set():
                    return
                if self._thread is None:
                    thread = threading.Thread(target=self._watch, name="tidings-probe", daemon=True)
                    thread.start()
                    self._thread = thread
                self._over = threading.Event()
                self._opened_at = now
                self.closed = False
                self._news.append((True, reason))
        except RuntimeError as no_thread:
            # Nothing would close it again. Staying closed costs deadlines, staying open would cost the cache.
            log.error("breaker_thread_not_started", exc_info=no_thread)
            return
        self._announce()

    def succeeded(self) -> None:
        """Close: Redis has acknowledged an operation. Costs nothing while closed."""
        if not self.closed:
            self._close("an operation was acknowledged")

    def stop(self) -> None:
        """End the thread and be closed; returns at once, and a probe that is under way ends by its deadline.

        A failure after it opens again: a cache that is used after it was closed has a breaker as before.
        """
        with self._lock:
            self.closed = True
            self._over.set()

    def _close(self, reason: str, over: threading.Event | None = None) -> None:
        """Close; with `over` only if that is the opening that lasts: a late answer says nothing about the next one."""
        now = self._clock()
        with self._lock:
            if self.closed or (over is not None and over is not self._over):
                return
            self.closed = True
            self._over.set()
            self._news.append((False, f"{reason} after {now - self._opened_at:.1f} s"))
        self._announce()

    def _announce(self) -> None:
        """Tell the changes in their order.

        Whoever changes the state lets go of the lock before telling it, so without a queue this could happen:

            1. a reader   opens
            2. the probe  closes, says "closed"
            3. the reader says "open", and that is the last that is heard of a server that is there
        """
        while True:
            with self._lock:
                if self._announcing or not self._news:
                    return
                self._announcing = True
                news = self._news.popleft()
            try:
                self._on_change(*news)
            except Exception as error:  # noqa: BLE001 a listener's fault must fail neither a read nor the probe
                log.error("breaker_listener_failed", exc_info=error)
            finally:
                with self._lock:
                    self._announcing = False

    def _watch(self) -> None:
        """Probe for as long as there is an opening: the life of the thread."""
        try:
            while (over := self._opening()) is not None:
                self._probe_until(over)
        except BaseException:
            # Whatever ended this thread, nobody would close the breaker after it. In this order: who opens it next must
            # not take this thread for one that will probe.
            with self._lock:
                self._thread = None
            self._close("the probe's thread ended by an error")
            raise

    def _opening(self) -> threading.Event | None:
        """Return the event of the present opening; None: there is none, and from now on there is no thread either.

        Both under one lock: an opening either finds this thread, which then takes it over, or starts another.
        """
        with self._lock:
            if self._over.is_set():
                self._thread = None
                return None
            return self._over

    def _probe_until(self, over: threading.Event) -> None:
        for delay_seconds in delays_seconds(self._random):
            if over.is_set():
                return
            if self._answered():
                self._close("a probe was answered", over)
                return
            if self._wait(over, delay_seconds):
                return

    def _answered(self) -> bool:
        try:
            self._probe()
        except TidingsError as error:
            return is_answer(error)
        except Exception as error:  # noqa: BLE001 a thread that ended of it would leave the breaker open
            log.error("breaker_probe_failed", exc_info=error)
            return False
        return True


_breakers: WeakSet[Breaker] = WeakSet()


def _begin_in_child() -> None:
    """Begin anew after a fork: the thread stayed in the parent, and another may have held the lock at that moment."""
    for breaker in _breakers:
        breaker._begin()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_in_child)
