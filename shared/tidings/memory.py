"""The store in process, for ``memory://`` and for outages: the same operations on a dict, with the same answers.

Expiry is by the clock given, checked when a key is touched and swept as the dict grows, so that memory is bounded by
what is alive; a limit on bytes evicts the oldest values, which costs misses, as in Redis. One lock makes each operation
as atomic as Redis makes it; nothing waits while holding it. There is one process, so every lease is granted: the loads
of this process are shared without one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, TypeVar, cast

from .entries import Fill, Look, Looked, Open, Opened, Put, Release, Results
from .errors import ConfigurationError
from .fence import Verdict, judge
from .forks import in_child
from .globs import glob_to_regex
from .layout import ENTRY_KINDS, LINEAGE_END, LINEAGE_START, NO_TOKEN, UNIQUE_LENGTH, Token, unique
from .operations import Append, AppendDurably, Batch, Drop, Invalidate, NoteCalls, Operation, Ping, ReadCalls, Scan

T = TypeVar("T")

#: Hears of token names, entry keys and patterns that have been invalidated.
Listener = Callable[[Iterable[str], Iterable[str], Iterable[str]], None]

_SWEEP_EVERY = 1024
_EVENTS_KEPT = 1000


class Memory:
    """What a Redis server would hold, at most `max_bytes` of it (None: no limit). Shared by a cache's drivers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_bytes: int | None = None) -> None:
        #: seconds, by which everything here expires
        self.clock = clock
        self._epoch_us = round((time.time() - clock()) * 1_000_000)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._ids = count(1)
        # The last id of the invalidation log, which is kept nowhere, and its time: see `scripts`.
        self._logged, self._logged_at = "0-0", 0
        self._next_sweep = _SWEEP_EVERY
        self.listeners: list[Listener] = []
        #: The last events published, newest last, as (stream, id, fields): nothing consumes them here.
        self.events: deque[tuple[str, str, dict[str, str]]] = deque(maxlen=_EVENTS_KEPT)
        in_child(self._forked)

    def _forked(self) -> None:
        """Begin with nothing in a forked child: whoever held the lock is not here, and left it half changed."""
        self._lock = threading.Lock()
        self.forget()

    def run(self, operation: Operation[T]) -> T:
        """Carry out one operation."""
        with self._lock:
            return cast("T", self._dispatch(operation))

    def read(self, keys: tuple[str, ...]) -> list[bytes | None]:
        """Return the values of these keys at one instant."""
        with self._lock:
            return [self._get(key) for key in keys]

    def forget(self) -> None:
        """Drop everything that is cached."""
        with self._lock:
            self._values = {}
            self._bytes = 0

    def _dispatch(self, operation: Any) -> Any:  # noqa: PLR0911 one arm for each operation
        match operation:
            case Look():
                return self._look(operation)
            case Open():
                return self._open(operation)
            case Fill():
                return self._fill(operation)
            case Put():
                self._set(operation.keys[0], operation.packed.assemble((), self._now_us()), operation.ttl_ms)
                return self._prolong(operation.keys[1:], operation.keep_ms)
            case Invalidate():
                return self._invalidate(operation)
            case Scan():
                matches = glob_to_regex(operation.glob).fullmatch
                return 0, [key for key in map(str.encode, self._values) if matches(key)]
            case Drop():
                return sum(self._remove(key if isinstance(key, str) else key.decode()) for key in operation.keys)
            case Append():
                identifier = self._next_id()
                self.events.append((operation.stream, identifier, dict(operation.fields)))
                return identifier
            case AppendDurably():
                raise ConfigurationError("a cache in memory has no replicas: publish without them, or set TIDINGS_URL")
            case Batch():
                return [self._dispatch(inner) for inner in operation.operations]
            case ReadCalls():
                return {}  # nobody warms what is kept here
            case Release() | Ping() | NoteCalls():
                return None
        raise NotImplementedError(type(operation).__name__)

    def _now_us(self) -> int:
        return self._epoch_us + round(self.clock() * 1_000_000)

    def _next_id(self) -> str:
        return f"{self._now_us() // 1000}-{next(self._ids)}"

    def _get(self, key: str) -> bytes | None:
        value, expires = self._values.get(key, (None, 0.0))
        if value is not None and expires <= self.clock():
            self._remove(key)
            return None
        return value

    def _remove(self, key: str) -> bool:
        value, _ = self._values.pop(key, (None, 0.0))
        self._bytes -= 0 if value is None else len(value)
        return value is not None

    def _set(self, key: str, value: bytes, ttl_ms: int) -> None:
        now = self.clock()
        if len(self._values) >= self._next_sweep:
            for late in [k for k, v in self._values.items() if v[1] <= now]:
                self._remove(late)
            self._next_sweep = 2 * len(self._values) + _SWEEP_EVERY
        self._remove(key)
        self._values[key] = (value, now + ttl_ms / 1000)
        self._bytes += len(value)
        while self._max_bytes is not None and self._bytes > self._max_bytes:
            self._remove(next(iter(self._values)))

    def _look(self, operation: Look) -> Looked:
        entry, *tokens = (self._get(key) for key in operation.keys)
        left_ms = None
        if operation.ttl and entry is not None:
            left_ms = int((self._values[operation.keys[0]][1] - self.clock()) * 1000)
        return Looked(entry, tokens, left_ms, self._now_us() if operation.time else 0)

    def _open(self, operation: Open) -> Opened:
        entry, *tokens = operation.keys
        now_us = self._now_us()
        for token in tokens:
            if len(self._get(token) or b"") < UNIQUE_LENGTH:
                self._set(token, Token(unique(), self._logged_at, NO_TOKEN, "first use").pack(), operation.token_ms)
        value = self._get(entry) or b""
        head = value[:LINEAGE_END]
        if judge(entry, head, ()).ticket is None:
            head = operation.vacancy
            self._set(entry, head, operation.vacancy_ms)
        elif operation.renew:
            head = value[:LINEAGE_START] + operation.vacancy[LINEAGE_START:]
            self._values[entry] = (head + value[LINEAGE_END:], self._values[entry][1])
        if judge(entry, head, ()).verdict is Verdict.VACANT:
            self._prolong((entry,), operation.vacancy_ms)
        return Opened(
            head, [self._get(token) for token in tokens], now_us, logged=self._logged, logged_at=self._logged_at
        )

    def _fill(self, operation: Fill) -> bool:
        entry = operation.keys[0]
        if (self._get(entry) or b"")[LINEAGE_START:LINEAGE_END] != operation.lineage:
            return False
        results = self._results(operation.results, operation.keep_ms)
        if results is None:
            return False
        self._set(entry, operation.packed.assemble(results, self._now_us()), operation.ttl_ms)
        self._prolong((*operation.keys[1:], *operation.results.tokens), operation.keep_ms)
        return True

    def _results(self, results: Results, keep_ms: int) -> list[bytes] | None:
        """Return the values of result tags, or None when one of them may have been invalidated; see `fence`."""
        quiet, refused, found = results.logged == self._logged, False, []
        for key in results.tokens:
            token = Token.unpack(self._get(key) or b"")
            if token is None:
                token = Token(unique(), self._logged_at, NO_TOKEN, "first use")
                self._set(key, token.pack(), keep_ms)
                refused = refused or not quiet
            refused = refused or token.made_us > results.logged_at
            found.append(token.value)
        return None if refused else found

    def _prolong(self, keys: Iterable[str], keep_ms: int) -> None:
        keep = keep_ms / 1000 + self.clock()
        for key in keys:
            value, expires = self._values.get(key, (None, 0.0))
            if value is not None:
                self._values[key] = (value, max(expires, keep))

    def _invalidate(self, operation: Invalidate) -> int:
        stamp = max(self._now_us(), self._logged_at + 1)
        named = zip(operation.token_keys, operation.uniques, operation.causes.values(), strict=True)
        for key, fresh, cause in named:
            before = (self._get(key) or NO_TOKEN)[:UNIQUE_LENGTH]
            self._set(key, Token(fresh, stamp, before, cause).pack(), operation.token_ms)
        live = 0
        for key, vacancy in operation.entries.items():
            live += (self._get(key) or b"").startswith(ENTRY_KINDS)
            self._set(key, vacancy, operation.vacancy_ms)
        if operation.what:
            self._logged, self._logged_at = self._next_id(), stamp
            for listener in self.listeners:
                listener(operation.causes, operation.entries, operation.patterns)
        return live


class MemoryStore:
    """`Memory` for coroutines: it never waits, so nothing here yields to the event loop."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def run(self, operation: Operation[T], *, bulk: bool = False) -> T:  # noqa: ARG002 one connection's worth
        """See AsyncStore."""
        return self._memory.run(operation)

    async def read(self, keys: tuple[str, ...], *, bulk: bool = False) -> list[bytes | None]:  # noqa: ARG002
        """See AsyncStore."""
        return self._memory.read(keys)

    async def aclose(self) -> None:
        """Nothing is held."""


class SyncMemoryStore:
    """`Memory` for threads."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def run(self, operation: Operation[T]) -> T:
        """See SyncStore."""
        return self._memory.run(operation)

    def read(self, keys: tuple[str, ...]) -> list[bytes | None]:
        """See SyncStore."""
        return self._memory.read(keys)

    def close(self) -> None:
        """Nothing is held."""
