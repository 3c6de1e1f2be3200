"""Waiting in threads until events are applied; see `hearing`.

async or threads: of the threads of a process, one of those who wait listens for the others, and whoever is due first
asks for all. So it is one connection that blocks for each stream of events, and nobody has a thread of his own for it.
"""

import threading
import time
from typing import Any, Protocol, runtime_checkable

import redis
from redis.exceptions import ResponseError

from .applied import FIRST_ASK, Batch, Board, Waiter
from .forks import in_child
from .hearing import OnFailure, report
from .keys import EventStream, Keyspace
from .servers import LONGEST_BLOCK


@runtime_checkable
class ThreadClients(Protocol):
    """What the store of threads has beside its operations; see `RedisStore`."""

    def client_for(self, key: str) -> redis.Redis:
        """Return a client of the server that has this key."""
        ...

    def blocking_for(self, key: str) -> redis.Redis:
        """Return one for reads that block."""
        ...


class ThreadHearing:
    """The waits of all threads of a process; `failed` is as with `Hearing`, the timeouts are the clients'."""

    def __init__(self, store: ThreadClients, keys: Keyspace, group: str, failed: OnFailure) -> None:
        self._store = store
        self._keys = keys
        self._group = group
        self._failed = failed
        self._begin()
        in_child(self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._desks: dict[EventStream, _ThreadDesk] = {}

    def wait(
        self, stream: EventStream, stream_id: str, timeout: float, *, label: str, ask_at_once: bool = False
    ) -> None:
        """See `Hearing.wait`."""
        with self._lock:
            desk = self._desks.get(stream)
            if desk is None:
                board = Board(stream, self._keys, self._group)
                desk = self._desks[stream] = _ThreadDesk(board, self._store, self._failed)
        desk.wait(stream_id, timeout, label=label, ask_at_once=ask_at_once)


class _ThreadDesk:
    """The threads that wait for events of one stream. A role is somebody's until he goes, or has done with it."""

    def __init__(self, board: Board, store: ThreadClients, failed: OnFailure) -> None:
        self._lock = threading.Lock()
        self._board = board
        self._store = store
        self._failed = failed
        self._listener: Waiter | None = None
        self._asking = False

    def wait(self, stream_id: str, timeout: float, *, label: str, ask_at_once: bool) -> None:
        event, now = threading.Event(), time.monotonic()
        due = now if ask_at_once else now + FIRST_ASK
        waiter = Waiter(stream_id, label, timeout, now + timeout, event.set, due)
        with self._lock:
            self._board.add(waiter, listening=self._listener is not None)
        try:
            while not waiter.over:
                self._take_part(waiter, event)
        finally:
            self._leave(waiter)
        waiter.result()

    def _take_part(self, waiter: Waiter, event: threading.Event) -> None:
        """Ask if it is time, else listen if nobody does, else wait to be woken: by the word, or by who listened."""
        now = time.monotonic()
        with self._lock:
            if waiter.over:
                return
            left = self._board.ask_at(waiter) - now
            asks = left <= 0 and not self._asking
            self._asking = self._asking or asks
            if not asks and self._listener is None:
                self._listener = waiter
            listens = not asks and self._listener is waiter
            event.clear()
        if asks:
            self._ask(now)
            return
        seconds = min(LONGEST_BLOCK, left if left > 0 else FIRST_ASK)  # somebody asks, and has it soon
        if listens:
            self._listen(seconds)
        else:
            event.wait(seconds)

    def _leave(self, waiter: Waiter) -> None:
        """Go, and leave the listening to somebody who stays."""
        with self._lock:
            self._board.remove(waiter)
            if self._listener is waiter:
                self._listener = None
                if (other := next(iter(self._board), None)) is not None:
                    other.wake()

    def _listen(self, seconds: float) -> None:
        try:
            replies = self._exchange(self._board.listening(seconds), blocking=True)
            with self._lock:
                self._board.take(replies)
        except Exception as error:  # noqa: BLE001 all who wait raise it
            self._fail(error)

    def _ask(self, now: float) -> None:
        try:
            with self._lock:
                asking = self._board.asking(now)
                batch = next(asking, None)
            while batch is not None:
                replies = self._exchange(batch)
                with self._lock:
                    try:
                        batch = asking.send(replies)
                    except StopIteration:
                        break
        except Exception as error:  # noqa: BLE001 all who wait raise it
            self._fail(error)
        finally:
            self._asking = False

    def _exchange(self, batch: Batch, *, blocking: bool = False) -> list[Any]:
        find = self._store.blocking_for if blocking else self._store.client_for
        client = find(batch.key)
        if len(batch.questions) == 1:  # as in `hearing`
            try:
                return [batch.questions[0](client)]
            except ResponseError as error:
                return [error]
        pipe = client.pipeline(transaction=False)
        for question in batch.questions:
            question(pipe)
        return list(pipe.execute(raise_on_error=False))

    def _fail(self, error: Exception) -> None:
        report(error, self._failed)
        with self._lock:
            self._board.fail(error)
