"""Closing what belongs to an event loop when the loop ends, since nobody does it in a script that simply ends."""

import asyncio
from collections.abc import Awaitable, Callable

Close = Callable[[], Awaitable[None]]


class LoopEnd:
    """Closes something when the event loop ends: by a task that the end cancels, as links close themselves."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def watch(self, close: Close) -> None:
        """From now on close with the running loop; costs next to nothing when that is so already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(_close_at_end(close))

    async def come(self) -> None:
        """Act as if the loop had ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})


async def _close_at_end(close: Close) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        await close()
        raise
