"""The event loop's threads, in which services' loaders wait: `asyncio.to_thread` runs there.

asyncio's own are waited for at the end of the loop, and again at the end of the process. A query that hangs would hold
up the worker's stop for as long as it hangs.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DaemonThreads(ThreadPoolExecutor):
    """As many threads as asyncio would have, started when they are needed; nobody waits for them at the end.

    A subclass because asyncio takes nothing else as a loop's default; it starts none of its base's threads. `submit` is
    for the event loop alone.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._startable = min(32, (os.cpu_count() or 1) + 4)
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waiting = threading.Semaphore(0)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in the first thread that is free; return what its result or error will be in."""
        future: Future[T] = Future()
        self._calls.put(partial(_run, future, partial(fn, *args, **kwargs)))
        if not self._waiting.acquire(blocking=False) and self._startable:
            self._startable -= 1
            threading.Thread(target=self._work, name=f"tidings-load-{self._startable}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for nobody, whatever the arguments ask for."""

    def _work(self) -> None:
        while True:
            self._calls.get()()
            self._waiting.release()


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 it is raised where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)
