"""The wish to stop, and what holds the process to it."""

import asyncio
import os
import threading
import time

from .settings import WorkerSettings
from .telemetry import log

EXIT_STOP_TIMED_OUT = 70


class Stop:
    """Asked for once: a second signal changes nothing."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.asked = asyncio.Event()
        self._settings = settings
        self._drain_until: float | None = None
        self._exit_code: int | None = None

    def ask(self, reason: str) -> None:
        """Stop for this reason."""
        if self.asked.is_set():
            return
        log.info("stopping", reason=reason)
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        self.asked.set()
        # A thread: the event loop may be what hangs. A daemon: it ends with the process that it watches.
        threading.Thread(target=self._watch, name="tidings-stop-watchdog", daemon=True).start()

    def drain_left(self) -> float:
        """Return how many seconds what is running has to finish."""
        until = self._drain_until
        return self._settings.drain_timeout if until is None else max(0.0, until - time.monotonic())

    def ended(self, exit_code: int) -> None:
        """Note that everything is closed; what remains is the end of the process, which a thread may still hold up."""
        self._exit_code = exit_code

    def _watch(self) -> None:
        time.sleep(self._settings.stop_timeout)
        if self._exit_code is None:
            log.error("stopped", exit_code=EXIT_STOP_TIMED_OUT)
            os._exit(EXIT_STOP_TIMED_OUT)
        log.warning("threads_left", threads=[thread.name for thread in threading.enumerate() if not thread.daemon])
        os._exit(self._exit_code)
