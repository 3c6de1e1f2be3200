"""The store in process, for ``memory://``: the same operations on a dict, with the same answers.

Expiry is by the monotonic clock, checked when a key is touched and swept as the dict grows, so that memory is bounded
by what is alive. One lock makes each operation as atomic as Redis makes it; nothing waits while holding it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar, cast

from .fence import LINEAGE_END, LINEAGE_START, Verdict, judge, token_value
from .operations import Append, Fill, Invalidate, Look, Open, Operation, Ping, Put

T = TypeVar("T")

_SWEEP_EVERY = 1024
_EVENTS_KEPT = 1000


class Memory:
    """What a Redis server would hold. Shared by all drivers of one cache."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._ids = count(1)
        self._next_sweep = _SWEEP_EVERY
        #: The last events published, newest last, as (stream, id, fields): nothing consumes them here.
        self.events: deque[tuple[str, str, dict[str, str]]] = deque(maxlen=_EVENTS_KEPT)

    def run(self, operation: Operation[T]) -> T:
        """Carry out one operation."""
        with self._lock:
            return cast("T", self._dispatch(operation))

    def _dispatch(self, operation: Any) -> Any:  # noqa: PLR0911 one arm for each operation
        match operation:
            case Look():
                return self._get(operation.entry), [self._get(token) for token in operation.tokens]
            case Open():
                return self._open(operation)
            case Fill():
                return self._fill(operation)
            case Invalidate():
                return self._invalidate(operation)
            case Put():
                self._set(operation.entry, operation.value, operation.ttl_ms)
                return self._prolong(operation)
            case Append():
                identifier = f"{time.time_ns() // 1_000_000}-{next(self._ids)}"
                self.events.append((operation.stream, identifier, dict(operation.fields)))
                return identifier
            case Ping():
                return None
        raise NotImplementedError(type(operation).__name__)

    def _get(self, key: str) -> bytes | None:
        value, expires = self._values.get(key, (None, 0.0))
        if value is not None and expires <= self._clock():
            del self._values[key]
            return None
        return value

    def _set(self, key: str, value: bytes, ttl_ms: int) -> None:
        now = self._clock()
        if len(self._values) >= self._next_sweep:
            self._values = {k: v for k, v in self._values.items() if v[1] > now}
            self._next_sweep = 2 * len(self._values) + _SWEEP_EVERY
        self._values[key] = (value, now + ttl_ms / 1000)

    def _open(self, operation: Open) -> tuple[bytes, list[bytes | None]]:
        for token in operation.tokens:
            if self._get(token) is None:
                self._set(token, token_value("0 first use"), operation.token_ms)
        value = self._get(operation.entry) or b""
        head = value[:LINEAGE_END]
        if judge(operation.entry, head, ()).ticket is None:
            head = operation.vacancy
            self._set(operation.entry, head, operation.vacancy_ms)
        elif operation.renew:
            head = value[:LINEAGE_START] + operation.vacancy[LINEAGE_START:]
            _, expires = self._values[operation.entry]
            self._values[operation.entry] = (head + value[LINEAGE_END:], expires)
        if judge(operation.entry, head, ()).verdict is Verdict.VACANT:
            _, expires = self._values[operation.entry]
            prolonged = max(expires, self._clock() + operation.vacancy_ms / 1000)
            self._values[operation.entry] = (head, prolonged)
        return head, [self._get(token) for token in operation.tokens]

    def _fill(self, operation: Fill) -> bool:
        if (self._get(operation.entry) or b"")[LINEAGE_START:LINEAGE_END] != operation.lineage:
            return False
        self._set(operation.entry, operation.value, operation.ttl_ms)
        self._prolong(operation)
        return True

    def _prolong(self, operation: Fill | Put) -> None:
        keep = operation.keep_ms / 1000 + self._clock()
        for key in operation.tokens:
            token, expires = self._values.get(key, (None, 0.0))
            if token is not None:
                self._values[key] = (token, max(expires, keep))

    def _invalidate(self, operation: Invalidate) -> int:
        stamp = str(time.time_ns() // 1000).encode()
        named = zip(operation.token_keys, operation.uniques, operation.causes.values(), strict=True)
        for key, fresh, cause in named:
            self._set(key, b" ".join((fresh, stamp, cause.encode())), operation.token_ms)
        live = 0
        for key, vacancy in operation.entries.items():
            live += (self._get(key) or b"").startswith(b"\x01e")
            self._set(key, vacancy, operation.vacancy_ms)
        return live


class MemoryStore:
    """`Memory` for coroutines: it never waits, so nothing here yields to the event loop."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def run(self, operation: Operation[T]) -> T:
        """See AsyncStore."""
        return self._memory.run(operation)

    async def aclose(self) -> None:
        """Nothing is held."""


class SyncMemoryStore:
    """`Memory` for threads."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def run(self, operation: Operation[T]) -> T:
        """See SyncStore."""
        return self._memory.run(operation)

    def close(self) -> None:
        """Nothing is held."""
