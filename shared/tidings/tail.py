"""The tail of the invalidation log: it applies to the in-process tier what was invalidated anywhere.

Why nothing is missed:

**In the log.** Each entry names its predecessor, and the tail takes an entry only behind the one that it took last. A
log that was trimmed past our position or cut by a failover continues with an entry whose predecessor is another: a gap,
and the tier drops everything. Two cases give no such entry. Ids follow the server's clock: a log begun anew where the
clock is behind grows below our position, where a read from that position never looks. And a log deleted and begun anew
within a millisecond can have another entry under the very id that we took last. So each read begins *at* our position
and not behind it: the entry that we took last must be there, and say what it said, or that is a gap too. An empty log
has no such entry, and what is written and deleted at once leaves it as it was; so the tail begins an empty log itself.
Only the log counts, not the connection: redis-py may have reconnected to another server without our seeing it.

**In time.** The tier may serve until `BOUND` seconds after the tail *sent* a question that showed it at the end of the
log:

    1. tail      asks at s what is behind its position
    2. server    answers at some time from s on: nothing (or: these, and no more)
    3. tail      applies, and lets the tier serve until s + BOUND

An invalidation that was acknowledged before s is in the answer, or was before. So whoever is served at t misses none
that was acknowledged before t - BOUND, whatever happens to the network after s, and however long the answer took. While
all is well the tail hears of each as soon as it is written; that time is the lag. While other threads compute, Python
adds up to 5 ms to it (`sys.getswitchinterval`).

What this cannot see is a network that leaves the tail with a deposed primary that still answers: then reads of Redis
are wrong in the same way, and `min-replicas-to-write` on the server is the cure.
"""

import os
import random
import threading
from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import Any

import redis
from pydantic import BaseModel, ValidationError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .forks import in_child
from .lag import Lag, Lags
from .layout import unique
from .local import LocalTier
from .publisher import as_pair

#: Seconds for which one answer keeps the tier alive: how old a value can be when the network fails.
BOUND = 1.0

#: How long one read waits for an entry. What it says when it returns counts from when it was sent, so that an idle
#: tail still has half of the bound left when the next one returns.
_BLOCK_MS = 250

#: Entries in one reply; more are read at once afterwards.
_PAGE = 256

#: Seconds between attempts to reach the server, at first and at most; up to half less at random.
_PAUSES = 0.05, 2.0

#: Seconds between comparisons of the server's clock and ours: quartz drifts a millisecond in about a minute.
_COMPARE_EVERY = 20.0

#: Begins an empty log with an entry that invalidates nothing, and is like no other.
_BEGIN = """
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('XADD', KEYS[1], '*', 'prev', '0-0', 'what', '{"tokens":{},"entries":[]}', 'begun', ARGV[1])
end
"""

_OnChange = Callable[[bool, str], None]
_Entry = tuple[bytes, dict[bytes, bytes]]


class _What(BaseModel, extra="forbid", strict=True):
    """What one entry of the log says. What is not understood completely may have invalidated anything."""

    tokens: dict[str, str]
    entries: tuple[str, ...]
    patterns: tuple[str, ...] = ()


class Tail:
    """Follows the log of one cache for one process and holds `tier` to it.

    A daemon thread and not a task: it hears while an event loop is busy or over, and serves all loops and all threads.

    `make_client` makes a client that reaches the server where invalidations are written (never a replica) and answers
    in bytes; it is the tail's alone, with the tail's own timeout and no retries. `on_change` is told, in the tail's
    thread, when following begins (True), and why when it ends (False): once for each change of state. It must not call
    `start` or `stop`.
    """

    def __init__(
        self, make_client: Callable[[], redis.Redis], log_key: str, tier: LocalTier, on_change: _OnChange
    ) -> None:
        self._make_client = make_client
        self._log_key = log_key
        self._tier = tier
        self._on_change = on_change
        self._thread: threading.Thread | None = None
        self._left = False
        self._forked()
        in_child(self._forked)

    def start(self) -> None:
        """Follow the log from now on, if it is not followed already; costs next to nothing then. Never waits for Redis.

        Until the log has been found the tier is bypassed. In a forked child it has to be called again, and begins anew.
        """
        if self._pid != os.getpid():  # forked by something that does not tell Python
            self._forked()
        if self._thread is not None and self._thread.is_alive():
            return
        if self._left:
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stopping = threading.Event()
                thread = threading.Thread(target=self._run, name="tidings-tail", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # none to be had, as while the interpreter ends; a read needs none
                    self._say(following=False, why=str(error))
                else:
                    self._thread = thread

    def stop(self) -> None:
        """End the thread and empty the tier. Waits up to 0.25 s; for a server that does not answer, up to `BOUND`."""
        with self._lock:
            self._stopping.set()
            if self._thread is not None:
                self._thread.join()
                self._thread = None
        self._tier.lost()

    def leave(self) -> None:
        """End the thread soon, for ever, and wait for nothing: the cache was dropped without having been closed.

        Takes no lock, as this is called while Python collects garbage, in the midst of anything.
        """
        self._left = True

    @property
    def lag(self) -> Lag | None:
        """How far behind the log was followed; None: no entry so far."""
        return self._lags.summary()

    def _forked(self) -> None:
        """Begin with nothing: in a forked child, the thread has stayed behind, and with it who may hold a lock."""
        self._tier.forked()
        self._pid = os.getpid()
        self._lags = Lags()
        self._lock = threading.Lock()
        self._thread = None
        self._stopping = threading.Event()
        # From here on the thread's own: the last entry applied (None: not known), what `on_change` was told last,
        # attempts since the last answer, and the server's clock against ours.
        self._position: _Entry | None = None
        self._following: bool | None = None
        self._failures = 0
        self._ahead = 0.0
        self._compare_at = -inf

    def _run(self) -> None:
        try:
            while self._goes_on:
                try:
                    self._follow()
                except (RedisError, OSError) as error:
                    # The log may go on where we left it, so the values stay.
                    self._tier.bypass()
                    self._say(following=False, why=f"{type(error).__name__}: {error}")
                except Exception as error:  # noqa: BLE001 a thread that died of a mistake here would be missed by nobody
                    self._lose(f"{type(error).__name__}: {error}")
                    self._position = None
                self._pause()
        finally:
            self._tier.lost()
            self._position = self._following = None

    @property
    def _goes_on(self) -> bool:
        return not (self._stopping.is_set() or self._left)

    def _pause(self) -> None:
        first, longest = _PAUSES
        pause = min(longest, first * 2 ** min(self._failures, 10))
        self._failures += 1
        self._stopping.wait(pause * random.uniform(0.5, 1))  # noqa: S311 spreads processes, guards nothing

    def _follow(self) -> None:
        """Follow the log until stopped, or until an error."""
        with self._make_client() as client:
            # An answer after BOUND confirms nothing. A retry of redis-py's would only hide a lost connection from us.
            client.get_connection_kwargs().update(socket_timeout=BOUND)
            client.get_connection_kwargs().pop("socket_connect_timeout", None)
            client.set_retry(Retry(NoBackoff(), 0))
            self._compare_at = -inf
            block_ms = 1  # with what was missed meanwhile, or nothing, the tier is alive again at once
            while self._goes_on:
                self._compare_clocks(client)
                if self._position is None:
                    self._begin(client)
                else:
                    self._read(client, self._position, block_ms)
                    block_ms = _BLOCK_MS

    def _begin(self, client: redis.Redis) -> None:
        """Take the end of the log for our position: what is before it is older than anything in the tier."""
        client.eval(_BEGIN, 1, self._log_key, unique().decode())
        asked = self._tier.clock()
        newest: Any = client.xrevrange(self._log_key, count=1)
        if newest:  # else deleted between the two
            self._position = newest[0]
            self._confirm(asked)

    def _read(self, client: redis.Redis, position: _Entry, block_ms: int) -> None:
        """Wait until there is something behind our position or the time is up, then apply what is there."""
        asked = self._tier.clock()
        with client.pipeline(transaction=False) as pipe:
            # One exchange: the server begins with the second when the first, which only waits, has ended.
            pipe.xread({self._log_key: position[0]}, count=1, block=block_ms)
            pipe.xrange(self._log_key, min=position[0], count=_PAGE)
            entries: list[_Entry] = pipe.execute()[1]
        if entries[:1] != [position]:
            self._lose(f"a gap in the log: the entry {position[0]!r} is not there any more")
            self._position = None
            return
        for former, entry in pairwise(entries):
            self._apply(former[0], entry)
            self._position = entry
        if len(entries) < _PAGE:
            self._confirm(asked)

    def _apply(self, former: bytes, entry: _Entry) -> None:
        identifier, fields = entry
        if (previous := fields.get(b"prev")) != former:
            self._lose(f"a gap in the log: {identifier!r} follows {previous!r:.40}, not {former!r}")
        try:
            what = _What.model_validate_json(fields.get(b"what", b""))
        except ValidationError:
            self._lose(f"the log's entry {identifier!r} cannot be read")
        else:
            self._tier.applied(what.tokens, what.entries, what.patterns)
        self._lags.add(self._tier.clock() + self._ahead - as_pair(identifier.decode())[0] / 1000)

    def _confirm(self, asked: float) -> None:
        """We were at the end of the log at some time after `asked`."""
        self._failures = 0
        self._tier.alive(asked + BOUND)
        self._say(following=True, why=f"following {self._log_key}")

    def _lose(self, why: str) -> None:
        self._tier.lost()
        self._say(following=False, why=why)

    def _say(self, *, following: bool, why: str) -> None:
        if following != self._following:
            self._following = following
            self._on_change(following, why)

    def _compare_clocks(self, client: redis.Redis) -> None:
        """Estimate how far the server's clock is ahead of ours, by the quickest of three answers."""
        if self._tier.clock() < self._compare_at:
            return
        quickest = inf
        for _ in range(3):
            sent = self._tier.clock()
            reply: Any = client.time()
            answered = self._tier.clock()
            if answered - sent < quickest:
                quickest = answered - sent
                self._ahead = reply[0] + reply[1] / 1_000_000 - (sent + answered) / 2
        self._compare_at = self._tier.clock() + _COMPARE_EVERY
