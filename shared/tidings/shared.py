"""What all drivers of one cache have in common, in all event loops and threads of a process."""

from collections.abc import Iterable
from math import inf
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from .after import Rule, Scopes
from .breaker import Breaker, is_answer
from .cluster import Cluster, NodeError
from .cluster_store import ClusterStore
from .cluster_threads import SyncClusterStore
from .entries import Fill, Look, Open, Put, Release
from .errors import UnavailableError
from .hot import HotCalls
from .keys import Keyspace
from .link import ClosedError
from .local import LocalTier, clock
from .memory import Memory, MemoryStore, SyncMemoryStore
from .operations import Append, Batch, Invalidate, Operation, Ping
from .reporting import Reporter
from .sealing import Sealer
from .servers import is_cluster, sync_servers
from .settings import Settings, redact
from .store import AsyncStore, RedisStore, SyncRedisStore, SyncStore
from .tail import Tail
from .targets import Call, Request, Target, target
from .telemetry import Telemetry, log


class Shared:
    """Settings and keys, the local tier and its tail, the breaker, counters; and memory where there is no server.

    `memory` is used in place of one that would be made for a ``memory://`` URL; its clock is then everybody's.
    """

    def __init__(self, settings: Settings, memory: Memory | None = None) -> None:
        url = settings.url.get_secret_value() if settings.url is not None else "memory://"
        self.settings = settings
        self.keys = Keyspace(settings.prefix, settings.version)
        self.telemetry = Telemetry(server=redact(url))
        self.sealer = Sealer(settings)
        self.memory = Memory() if memory is None and url.startswith("memory://") else memory
        #: seconds, for whatever is measured in this process
        self.clock = clock if memory is None else memory.clock
        self.tier = LocalTier(settings.local_max_entries, settings.local_max_bytes, self.clock)
        #: who is inside of `after`
        self.scopes = Scopes()
        #: what is kept while Redis is away, if anything
        self.outage = (
            Memory(max_bytes=settings.outage_max_bytes) if self.memory is None and settings.outage_ttl else None
        )
        #: which calls are read most; where there is no server, nobody warms them
        self.hot = HotCalls(self.keys, settings.hot_sample if self.memory is None else 0)
        #: what is counted here, for others to see; where there is no server, there is nobody else
        self.reporter = Reporter(
            self.telemetry,
            self.keys,
            self.sync_store,
            settings.report_interval if self.memory is None else 0,
            there=lambda: self.breaker.closed,
        )
        self.tail: Tail | None = None
        self._tail_lost = False
        self._tier_used = False
        self._prober: SyncRedisStore | None = None
        self._cluster = Cluster(settings) if self.memory is None and is_cluster(settings) else None
        if self.memory is None:
            if self._cluster is None:
                self._prober = SyncRedisStore.connect(settings)
            self.tail = Tail(self._tail_client, self.keys.log, self.tier, self._tail_changed)
        else:
            self.tier.alive(inf)
            self.memory.listeners.append(self.tier.applied)
        self.breaker = Breaker(self._probe, self._availability)

    def store(self) -> AsyncStore:
        """Make what carries out operations for the running event loop."""
        if self.memory is not None:
            return MemoryStore(self.memory)
        if self._cluster is not None:
            return ClusterStore(self._cluster, self.settings.operation_timeout)
        return RedisStore.connect(self.settings)

    def sync_store(self) -> SyncStore:
        """Make what carries out operations for threads."""
        if self.memory is not None:
            return SyncMemoryStore(self.memory)
        if self._cluster is not None:
            return SyncClusterStore(self._cluster, self.settings.operation_timeout)
        return SyncRedisStore.connect(self.settings)

    def target(self, call: Call) -> Target:
        """Return where everything of a call is. The first time, begin to report what is counted."""
        if self.reporter.idle:
            self.reporter.start()
        made = target(call, self.keys, self.telemetry.of(call.namespace, call.label))
        # Where values are encrypted, what decodes without a key is not ours.
        made.plain = made.plain and not self.sealer.encrypts(call.namespace)
        self.scopes.nests = self.scopes.nests or call.policy.may_be_old
        if call.policy.local_ttl_ms:
            made.slot = self.tier.get(made.key)
        return made

    @property
    def asks(self) -> bool:
        """Whether the caller's reads ask Redis: not while it is away, nor where `after` has them load."""
        return self.breaker.closed and not (self.scopes.open and self.scopes.rule() is Rule.DIRECT)

    def count_unapplied(self, requests: Iterable[Request]) -> bool:
        """Count reads of a caller who has to do without the cache inside of `after`; say whether it is one."""
        if not self.scopes.open or self.scopes.rule() is not Rule.DIRECT:
            return False
        for request in requests:
            request.target.counts.unapplied += 1
        return True

    def note(self) -> int | None:
        """Return the position of the local tier; see `LocalTier.note`. The first time, begin to follow the log."""
        self._tier_used = True
        if self.tail is None:
            self.tier.alive(inf)  # again, in a forked child
        else:
            self.tail.start()
        return self.tier.note()

    def invalidated(self, operation: Invalidate) -> None:
        """Apply an invalidation to what is held here, without waiting to hear of it: who invalidates reads its own."""
        self.tier.applied(operation.causes, operation.entries, operation.patterns)
        if self.outage is not None:
            if operation.patterns:
                self.outage.forget()
            self.outage.run(operation)

    def health(self) -> dict[str, Any]:
        """Return what is known without asking: whether reads ask Redis, and how far the tail is behind.

        `refusing`: it answered the last time something was to be written, and did not do it.
        """
        found: dict[str, Any] = {
            "server": self.telemetry.server,
            "reads": "cached" if self.breaker.closed else "direct",
            "refusing": self.telemetry.refusing,
        }
        lag = None if self.tail is None else self.tail.lag
        found["local_tier"] = {
            "alive": self.tier.clock() < self.tier.alive_until if self._tier_used else None,
            "entries": len(self.tier),
            "bytes": self.tier.bytes,
            "evictions": self.tier.evictions,
            "lag_ms": None
            if lag is None
            else {name: round(getattr(lag, name) * 1e3, 3) for name in ("last", "p50", "p99", "max")},
        }
        return found

    def failed(self, error: UnavailableError, operation: Operation[Any] | None = None) -> None:
        """Take note of an operation of a read that failed: Redis is away, or it answers and refuses.

        Others raise, and whoever asked for them knows.
        """
        if isinstance(error.__cause__, ClosedError) or (operation is not None and not _reads(operation)):
            return
        if not isinstance(error, NodeError) or error.vital:  # without another node, others go on being read
            self.breaker.failed(error)
        if is_answer(error):
            self.telemetry.refused(str(error))

    def succeeded(self, operation: Operation[Any]) -> None:
        """Take note of one that went through: Redis is there, and if it wrote, it takes what is written."""
        if self._cluster is None:  # else it says nothing of the node that every read needs
            self.breaker.succeeded()
        if self.reporter.idle and _reads(operation):  # in a forked child, or after `stop`
            self.reporter.start()
        if self.telemetry.refusing and _writes(operation):
            self.telemetry.accepted()

    def stop(self) -> None:
        """End the threads, which begin again when they are needed, and report what is left."""
        self.reporter.stop()  # first: the breaker says whether Redis is there
        self.breaker.stop()
        if self.tail is not None:
            self.tail.stop()
        if self._prober is not None:
            self._prober.close()
        if self._cluster is not None:
            self._cluster.stop()

    def leave(self) -> None:
        """End the threads soon, for ever, and wait for nothing: the cache was dropped without having been closed."""
        self.reporter.leave()
        if self.tail is not None:
            self.tail.leave()

    def _probe(self) -> None:
        if self._cluster is not None:
            self._cluster.probe_vital()
        if self._prober is not None:
            self._prober.run(Ping())

    def _availability(self, away: bool, reason: str) -> None:
        self.telemetry.availability(away, reason)
        if self.outage is not None:  # at the beginning too: a load may have ended after the last recovery
            self.outage.forget()

    def _tail_client(self) -> Any:
        if self._cluster is None:
            return sync_servers(self.settings).blocking
        try:
            address = self._cluster.locate(self.keys.log)
        except UnavailableError as error:
            raise RedisConnectionError(str(error)) from error  # to the tail, whose client this is to be
        return self._cluster.nodes.sync_servers(*address).blocking

    def _tail_changed(self, alive: bool, reason: str) -> None:
        if alive and self._tail_lost:
            log.info("local_tier_alive", server=self.telemetry.server)
        self._tail_lost = not alive
        if not alive:
            log.warning("local_tier_lost", server=self.telemetry.server, reason=reason)


def _writes(operation: Operation[Any]) -> bool:
    """Say whether an operation that went through has written what a server without memory would not have taken.

    A PING or a look does not tell; nor does an `Open`, which writes only where something is missing, or the end of a
    lease: between two fills that are refused they would say each time that all is well again.
    """
    operations = operation.operations if isinstance(operation, Batch) else (operation,)
    return any(isinstance(one, Fill | Put | Append | Invalidate) for one in operations)


def _reads(operation: Operation[Any]) -> bool:
    operations = operation.operations if isinstance(operation, Batch) else (operation,)
    return any(isinstance(one, Look | Open | Fill | Release) for one in operations)
