"""SIGHUP: noted from the process's first moment to its last, because by default it would be the last."""

import asyncio
import os
import signal
from types import FrameType


class HangUps:
    """The SIGHUPs of the process, from `listen` until its end: without this the first one would end it.

    The signal means two things. A terminal that is closed tells its processes so, and a worker that was started there
    ends, as it would by Ctrl-C; everybody else means that the rules are to be read again.
    """

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Under nohup the signal is ignored at first: whoever starts a worker so does not want it to end.
        self._had_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def listen(self) -> None:
        """Take the signals from now on; one that comes before the event loop runs is not forgotten."""
        signal.signal(signal.SIGHUP, self._note)

    @staticmethod
    def ignore() -> None:
        """Take no more of them: what the interpreter does last would give the signal its default meaning back."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let signals wake this event loop."""
        self._loop = loop

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._had_terminal and not _has_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._loop is None:
            self.came.set()
        elif not self._loop.is_closed():  # else the process is about to end
            self._loop.call_soon_threadsafe(self.came.set)


def _has_terminal() -> bool:
    """Say whether the process has a terminal that controls it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
