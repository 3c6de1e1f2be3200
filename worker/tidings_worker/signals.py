"""SIGTERM and Ctrl-C outside of the event loop: while the worker starts, and while a server is started or stopped.

Between those `app.serve` has handlers of its own.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopAsked(SystemExit):
    """A stop was asked for before the worker served: what has been started is stopped, and the exit code is 0."""


def exit_on_signals() -> None:
    """Let the first SIGTERM or SIGINT raise StopAsked in the main thread; those after it change nothing."""

    def ask(_number: int, _frame: object) -> None:
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        raise StopAsked(0)

    for number in _STOPPING:
        signal.signal(number, ask)


@contextmanager
def held() -> Iterator[list[int]]:
    """Keep SIGTERM and SIGINT from interrupting the block; give the numbers of those that came.

    They are forgotten afterwards, unless the caller raises them again.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # signal handlers run in the main thread alone, so that nothing interrupts this one
        return
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _STOPPING}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
