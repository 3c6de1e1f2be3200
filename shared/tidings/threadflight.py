"""One load per ticket across the threads of a process, as `singleflight` is for coroutines.

async or threads: the thread that comes first loads, on its own stack and with its own context variables; the others
wait for it. Only what must outlive its caller, a load with a timeout or a refresh in the background, gets a thread of
its own; these are daemons, so that a load that hangs does not keep the process from ending.
"""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, wait
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from .forks import in_child
from .singleflight import loading
from .steps import LoadTimeoutError
from .telemetry import log

T = TypeVar("T")


class _Flight(Future[Any]):
    """A load in flight."""

    #: those who have not given up, whoever loads among them
    callers = 0
    #: whether some caller loads, or has loaded
    led = False
    #: whether it runs on a thread of its own
    alone = False
    #: where its callers go on when the thread that loads was interrupted
    successor: "_Flight | None" = None


class ThreadFlights:
    """Loads in flight in all threads of one process."""

    def __init__(self) -> None:
        self.forked()
        in_child(self.forked)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._flights

    def join(self, ticket: Hashable, load: Callable[[], T], timeout: float | None = None) -> tuple[T, bool]:
        """Return the load's result and whether this caller started it; see `singleflight.Flights.join`.

        A thread that is interrupted while it loads for others lets one of them take over: what ends it, an exception
        that is no `Exception`, is nobody else's affair. On a thread of its own it is what the load raises.
        """
        if ticket in loading.get():
            return load(), True
        flight: _Flight | None = None
        while True:
            first = False
            try:  # from here on: an interrupt may come between any two steps, and must leave no flight that nobody ends
                with self._lock:
                    flight = self._flights.get(ticket) if flight is None else flight.successor
                    if flight is None:
                        flight = self._flights[ticket] = _Flight()
                    first, flight.led = not flight.led, True
                    flight.callers += 1
                alone = partial(self._fly_alone, ticket, flight, load)
                if first and (timeout is None or not self._start(ticket, alone)):
                    return self._fly(ticket, flight, load), True
            except BaseException as error:
                if first and flight is not None:
                    self._crash(ticket, flight, error)
                raise
            try:
                if timeout is not None and not wait((flight,), timeout).done:
                    raise LoadTimeoutError  # noqa: TRY301 it counts as going, too
                return flight.result(), first
            except BaseException as error:
                if not flight.done():
                    with self._lock:
                        flight.callers -= 1
                elif flight.cancelled() and isinstance(error, CancelledError):
                    continue  # and not the load's own
                raise

    def behind(self, key: Hashable, work: Callable[[], object], limit: int) -> bool:
        """Run `work` in the background, unless some runs for this key or `limit` for others."""
        with self._lock:
            if key in self._behind or len(self._behind) >= limit:
                return False
            self._behind.add(key)

        def run() -> None:
            try:
                work()
            finally:
                self._behind.discard(key)

        if self._start(key, run):
            return True
        self._behind.discard(key)
        return False

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until what runs in the background has ended, at most `timeout` seconds; say whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while others := self._running():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            others[0].join(left)
        return True

    def forked(self) -> None:
        """Begin with nothing, in a child process too: the threads that would end the parent's flights are not here."""
        self._flights: dict[Hashable, _Flight] = {}
        self._threads: set[threading.Thread] = set()
        self._behind: set[Hashable] = set()
        self._lock = threading.Lock()

    def _running(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread is not threading.current_thread()]

    def _start(self, key: Hashable, work: Callable[[], object]) -> bool:
        """Run `work` on a thread of its own, with the caller's context variables; say no when there is none to be had.

        That is so when the system has no more, or while the interpreter ends.
        """

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 nobody else would hear of it
                log.error("background_failed", key=_name(key), exc_info=error)
            finally:
                with self._lock:
                    self._threads.discard(thread)

        name = f"tidings-{_name(key)}"[:60]
        thread = threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True)
        with self._lock:  # who drains joins only what has been started
            try:
                thread.start()
            except RuntimeError as error:
                log.error("background_failed", key=_name(key), exc_info=error)
                return False
            self._threads.add(thread)
        return True

    def _fly(self, ticket: Hashable, flight: _Flight, load: Callable[[], T]) -> T:
        marked = loading.set(loading.get() | {ticket})
        try:
            result = load()
        finally:
            loading.reset(marked)
        self._land(ticket, flight)
        flight.set_result(result)
        return result

    def _fly_alone(self, ticket: Hashable, flight: _Flight, load: Callable[[], T]) -> None:
        with self._lock:
            if flight.done():  # whoever started this thread was interrupted, and has handed over
                return
            flight.alone = True
        try:
            self._fly(ticket, flight, load)
        except BaseException as error:  # noqa: BLE001 whoever still waits raises it
            self._land(ticket, flight)
            flight.set_exception(error)
            if not flight.callers:
                log.error("load_failed_unheard", ticket=_name(ticket), exc_info=error)

    def _crash(self, ticket: Hashable, flight: _Flight, error: BaseException) -> None:
        """End a flight that its first caller leaves; an error is everybody's, an interrupt hands over."""
        with self._lock:
            if flight.alone or flight.done():
                return
            interrupted = not isinstance(error, Exception)
            if self._flights.get(ticket) is flight:
                del self._flights[ticket]
                if interrupted and flight.callers > 1:
                    flight.successor = self._flights[ticket] = _Flight()
            if interrupted:
                flight.cancel()
                flight.set_running_or_notify_cancel()  # `wait` hears of it no sooner
            else:
                flight.set_exception(error)

    def _land(self, ticket: Hashable, flight: _Flight) -> None:
        with self._lock:
            if self._flights.get(ticket) is flight:
                del self._flights[ticket]


def _name(key: Hashable) -> str:
    """Return what a log line calls a load: of a ticket, only its key."""
    return str(getattr(key, "key", key))
