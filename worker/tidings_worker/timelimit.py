"""A limit to what code of the service's own may take where nobody else could end it: a rule that yields for ever."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class EndlessError(Exception):
    """It took too long, and was ended."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise EndlessError where the code in this block is when the time is over.

    Signals are how: elsewhere than in the main thread, and where there is no such timer, it takes what it takes.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(_number: int, _frame: object) -> NoReturn:
        raise EndlessError(f"it does not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    # Again and again, for what takes every exception for one that it can go on after.
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
