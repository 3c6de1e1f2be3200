"""One load per ticket in a process: callers join a load in flight, and none of them can cancel it for the others.

async or threads: a task per load on the caller's event loop. The task belongs to the flights, not to the first caller,
so that a caller's timeout neither kills what the others wait for nor loses what was almost loaded.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextvars import ContextVar
from typing import Any, TypeVar

from .steps import LoadTimeoutError
from .telemetry import log

T = TypeVar("T")

#: What a cancelled load has to clean up before it is cancelled again.
_CLEANUP_SECONDS = 1.0

loading: ContextVar[frozenset[Hashable]] = ContextVar("tidings_loading", default=frozenset())


class Flights:
    """Loads in flight on one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._waiting: dict[asyncio.Task[Any], int] = {}
        #: reads that have not begun yet, by what they will find out
        self._unbegun: dict[Hashable, asyncio.Task[Any]] = {}
        #: those who wait for a read, by the task that carries it out
        self._callers: dict[asyncio.Task[Any], list[asyncio.Future[Any]]] = {}
        #: how many such reads wait for a load
        self._reading: dict[asyncio.Task[Any], int] = {}
        #: reads that were cancelled because nobody waits for them
        self._dropped: set[asyncio.Task[Any]] = set()
        self._cancelling = False

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._tasks

    async def join(
        self,
        ticket: Hashable,
        load: Callable[[], Coroutine[Any, Any, T]],
        timeout: float | None = None,  # noqa: ASYNC109 the load goes on: nothing is cancelled
    ) -> tuple[T, bool]:
        """Return the load's result and whether this caller started it; start it if nobody has.

        Raises what the load raises, to every caller, and LoadTimeoutError to one who has waited `timeout` seconds. A
        load that asks for its own ticket would wait for itself: it is run on its own instead.
        """
        if ticket in loading.get():
            return await load(), True
        task = self._tasks.get(ticket)
        first = task is None
        if task is None:
            task = asyncio.create_task(self._marked(ticket, load))
            self._tasks[ticket] = task
            task.add_done_callback(lambda done: self._landed(ticket, done))
        # The callers of a shared read are counted where they wait for it.
        waiting = self._reading if asyncio.current_task() in self._callers else self._waiting
        waiting[task] = waiting.get(task, 0) + 1
        try:
            return await _patiently(task, timeout), first
        except (asyncio.CancelledError, LoadTimeoutError):
            if not task.done():
                waiting[task] -= 1
            raise

    async def share(self, same: Hashable, key: str, read: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """Carry out a read, together with those who ask for the `same` before it has begun (None: with nobody).

        Gives what `read` returns, and whether it was this caller's. It belongs to the flights: a caller who goes stops
        it only if all others have gone. A task begins in the next round of the event loop, so whoever joins has asked
        before anything was sent on its behalf, and is answered as if it had asked alone; a crowd that misses at once
        costs one read.
        """
        # A load that reads its own entry must find the flight that it is in, not join one who waits for that flight.
        mark = None if same is None else (same, loading.get())
        task = None if mark is None else self._unbegun.get(mark)
        first = task is None
        if task is None:
            task = asyncio.create_task(self._begin(mark, read))
            self._tasks[task] = task
            if mark is not None:
                self._unbegun[mark] = task
            self._callers[task] = []
            task.add_done_callback(lambda done: self._read(key, done))
        # A future for each caller, as `asyncio.shield` makes, at a quarter of its cost: it is crowds that share.
        caller: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        callers = self._callers[task]
        callers.append(caller)
        try:
            return await caller, first
        except asyncio.CancelledError:
            # Nobody wants to know any more. The load that it waits for goes on, but for a crowd that comes and goes
            # while a load hangs nothing must be left behind.
            if not task.done() and all(other.done() for other in callers):
                self._unbegun.pop(mark, None)
                self._dropped.add(task)
                task.cancel()
            raise

    async def _begin(self, mark: Hashable, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._unbegun.pop(mark, None)
        return await read()

    def _read(self, key: str, task: asyncio.Task[Any]) -> None:
        """Hand what a read has brought to those of its callers who are still there."""
        del self._tasks[task]
        self._dropped.discard(task)
        callers = [caller for caller in self._callers.pop(task) if not caller.done()]
        error = None if task.cancelled() else task.exception()
        for caller in callers:
            if task.cancelled():
                caller.cancel()
            elif error is not None:
                caller.set_exception(error)
            else:
                caller.set_result(task.result())
        if error is not None and not callers:
            log.error("load_failed_unheard", ticket=key, exc_info=error)

    def follow(self, work: Coroutine[Any, Any, T], *, heard: bool = False) -> asyncio.Task[T]:
        """Run what comes after a load without anybody waiting for it, but for `drain`; a failure is logged.

        Not if it is `heard`: by those who share the task, or because it was said elsewhere.
        """
        task = asyncio.create_task(work)
        self._tasks[task] = task
        task.add_done_callback(lambda done: self._landed(done, done, heard=heard))
        return task

    @property
    def ending(self) -> bool:
        """Whether the event loop ends, asked by a load that is being cancelled: nobody else has its task to cancel.

        Then nothing that it starts would be carried out, and Python would complain of it on standard error.
        """
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the loop has been closed in the middle of the load
            return True
        ours = task is not None and task.cancelling() > 0 and task in self._tasks.values()
        return ours and not self._cancelling and task not in self._dropped

    @property
    def waiting(self) -> int:
        """How many callers wait for loads in flight."""
        reads = sum(not caller.done() for callers in self._callers.values() for caller in callers)
        return reads + sum(self._waiting.values())

    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 what is late is ended, not abandoned
        """Wait until every load in flight has ended, however it ends; its callers hear how.

        After `timeout` seconds (None: never) the loads that are left are cancelled and awaited; their callers get the
        CancelledError. A load that takes long to clean up is cancelled again every second. A thread that a load waits
        for cannot be cancelled: it goes on, and nobody waits for it any more.
        """
        clock = asyncio.get_running_loop().time
        deadline = None if timeout is None else clock() + timeout
        while self._tasks:
            left = None if deadline is None else max(0.0, deadline - clock())
            await asyncio.wait(self._tasks.values(), timeout=left)
            if deadline is not None and clock() >= deadline:
                await self._cancel_all()

    async def _cancel_all(self) -> None:
        self._cancelling = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLEANUP_SECONDS)
        self._cancelling = False

    @staticmethod
    async def _marked(ticket: Hashable, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loading.set(loading.get() | {ticket})
        return await load()

    def _landed(self, ticket: Hashable, task: asyncio.Task[Any], *, heard: bool = False) -> None:
        del self._tasks[ticket]
        waiting = self._waiting.pop(task, 0) + self._reading.pop(task, 0)
        if not task.cancelled() and (error := task.exception()) is not None and not (waiting or heard):
            log.error("load_failed_unheard", ticket=getattr(ticket, "key", None), exc_info=error)


async def _patiently(task: asyncio.Task[T], timeout: float | None) -> T:  # noqa: ASYNC109 the task goes on
    if timeout is not None and not (await asyncio.wait({task}, timeout=timeout))[0]:
        raise LoadTimeoutError
    return await asyncio.shield(task)
