"""One load per ticket across the threads of a process, as `singleflight` is for coroutines.

async or threads: the thread that comes first loads, on its own stack and with its own context variables; the others
wait for it. Only what must outlive its caller, a load with a timeout or a refresh in the background, gets a thread of
its own; these are daemons, so that a load that hangs does not keep the process from ending.
"""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from .singleflight import loading
from .steps import LoadTimeoutError
from .telemetry import log

T = TypeVar("T")


class ThreadFlights:
    """Loads in flight in all threads of one process."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Future[Any]] = {}
        self._threads: dict[Hashable, threading.Thread] = {}
        self._given_up: set[Hashable] = set()
        self._lock = threading.Lock()

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._flights

    def join(self, ticket: Hashable, load: Callable[[], T], timeout: float | None = None) -> tuple[T, bool]:
        """Return the load's result and whether this caller started it; see `singleflight.Flights.join`.

        A thread that is interrupted while it loads for others lets one of them take over.
        """
        if ticket in loading.get():
            return load(), True
        while True:
            with self._lock:
                future = self._flights.get(ticket)
                first = future is None
                if future is None:
                    future = self._flights[ticket] = Future()
            if first and timeout is None:
                return self._fly(ticket, future, load), True
            if first:
                self._start(ticket, partial(copy_context().run, self._fly_alone, ticket, future, load))
            try:
                return future.result(timeout), first
            except CancelledError:
                continue
            except TimeoutError:
                if future.done():  # the load's own
                    raise
                self._given_up.add(ticket)
                raise LoadTimeoutError from None

    def behind(self, key: Hashable, work: Callable[[], object], limit: int) -> bool:
        """Run `work` in the background, unless some runs for this key or `limit` for others."""
        with self._lock:
            if key in self._threads or len(self._threads) >= limit:
                return False
            self._threads[key] = threading.current_thread()  # taken; replaced below
        self._start(key, partial(copy_context().run, work))
        return True

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until what runs in the background has ended, at most `timeout` seconds; say whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in list(self._threads.values()):
            if thread is not threading.current_thread():
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in list(self._threads.values()))

    def forked(self) -> None:
        """Begin anew in a child process: the threads that would end these flights are not here."""
        self._flights, self._threads, self._lock = {}, {}, threading.Lock()

    def _start(self, key: Hashable, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 nobody else would hear of it
                log.error("background_failed", key=str(key), exc_info=error)
            finally:
                self._threads.pop(key, None)

        thread = threading.Thread(target=run, name=f"tidings-{key}"[:60], daemon=True)
        self._threads[key] = thread
        thread.start()

    def _fly(self, ticket: Hashable, future: "Future[T]", load: Callable[[], T]) -> T:
        marked = loading.set(loading.get() | {ticket})
        try:
            result = load()
        except Exception as error:
            self._land(ticket)
            future.set_exception(error)
            raise
        except BaseException:  # this thread is being ended; that is nobody else's affair
            self._land(ticket)
            future.cancel()
            raise
        else:
            self._land(ticket)
            future.set_result(result)
            return result
        finally:
            loading.reset(marked)

    def _fly_alone(self, ticket: Hashable, future: "Future[T]", load: Callable[[], T]) -> None:
        try:
            self._fly(ticket, future, load)
        except Exception as error:  # noqa: BLE001 whoever still waits raises it
            if ticket in self._given_up:
                log.error("load_failed_unheard", ticket=getattr(ticket, "key", None), exc_info=error)
        finally:
            self._given_up.discard(ticket)

    def _land(self, ticket: Hashable) -> None:
        with self._lock:
            self._flights.pop(ticket, None)
