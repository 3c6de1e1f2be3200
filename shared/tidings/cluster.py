"""What all event loops and threads of one cache know of its Redis Cluster: who serves what, and who is away. No store.

`cluster_store` and `cluster_threads` send what `cluster_operations` asks for, as `cluster_routing` divides it.

async or threads: what is known is one for all. It is learned by blocking, on a connection that is closed again, from
whichever thread: an event loop hands that to a thread, for it happens rarely.

One node that is away does not make the others useless, so each has a breaker of its own, as `breaker` describes it. The
cache's breaker, which lets every read load directly, is for the node that each read needs, the one with the token of
everything.
"""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from redis.exceptions import ClusterDownError, RedisError

from .breaker import Breaker, is_answer
from .cluster_programs import Around
from .cluster_slots import Address, Slots
from .connections import Connections
from .errors import UnavailableError
from .forks import in_child
from .keys import ALL, Keyspace
from .link import ClosedError, pack
from .servers import cluster_nodes
from .settings import Settings
from .telemetry import log

#: Seconds between two looks at the slots, unless nothing is known of them.
_LEARN_AGAIN = 0.2


class NodeError(UnavailableError):
    """One node of a cluster did not do its part; `vital`: it is the one that every read needs."""

    def __init__(self, message: str, *, vital: bool) -> None:
        super().__init__(message)
        self.vital = vital


class Cluster:
    """One cluster as one cache sees it. Raises ConfigurationError for a URL that cannot be meant."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        keys = Keyspace(settings.prefix, settings.version)
        self.nodes = cluster_nodes(settings)
        self.where = self.nodes.where
        self.slots = Slots()
        self._clock = clock
        self._log = keys.log
        self._vital = keys.token(ALL)
        self._breakers: dict[Address, Breaker] = {}
        self._lock = threading.Lock()
        self._learned_at: float | None = None
        self._stale = False
        self._asked = 0
        self._failure: Exception | None = None
        in_child(self._forked)

    def _forked(self) -> None:
        """Begin with a lock that nobody holds."""
        self._lock = threading.Lock()

    @property
    def around(self) -> Around:
        """What programs need to know."""
        return Around(self._log, self.slots.primaries)

    # Who serves what

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return bool(self.slots.primaries)

    @property
    def doubtful(self) -> bool:
        """Whether it is time to look again."""
        return self._stale and (self._learned_at is None or self._clock() - self._learned_at > _LEARN_AGAIN)

    def doubt(self, *, now: bool = False) -> None:
        """Have the slots looked up again, soon; or `now`, even if that was done a moment ago."""
        self._stale = True
        if now:
            self._learned_at = None

    def learn(self) -> None:
        """Ask who serves what, if that is doubtful, blocking. Raises UnavailableError.

        Who comes while another asks waits for that answer, and for its failure.
        """
        before = self._asked
        with self._lock:
            if self._asked == before and (self.doubtful or not self.known):
                self._failure = self._ask_around()
                self._asked += 1
            if self._failure is not None:
                raise self.unavailable(f"no node says who serves what: {self._failure}", self._failure)

    def _ask_around(self) -> Exception | None:
        failure: Exception | None = None
        self._learned_at = self._clock()
        for address in self._candidates():
            try:
                self.slots.learn(self._ask(address, "CLUSTER", "SLOTS"), address)
            except (RedisError, OSError, ValueError, TypeError) as error:
                failure = error
            else:
                if self.known:
                    self._stale = False
                    return None
                failure = RedisError(f"node {address} knows of nobody who serves a slot")
        return failure

    def try_to_learn(self) -> UnavailableError | None:
        """Ask as `learn` does; return the error."""
        try:
            self.learn()
        except UnavailableError as error:
            return error
        return None

    def locate(self, key: str) -> Address:
        """Return who serves a key, looking that up unless it was done a moment ago, blocking. Raises UnavailableError.

        For whoever keeps a connection to that node and cannot be told that the key has moved.
        """
        self.doubt()
        self.learn()
        return self.owner(key)

    def owner(self, key: str | bytes) -> Address:
        """Return who serves a key, as far as is known. Raises UnavailableError when it is nobody, or away."""
        return self.there(self.server(key))

    def server(self, key: str | bytes) -> Address:
        """Return who serves a key, away or not. Raises UnavailableError when it is nobody."""
        owner = self.slots.of(key)
        if owner is None:
            self.doubt()
            raise self.unavailable(f"no node serves the slot of {key!r}")
        return owner

    def there(self, address: Address) -> Address:
        """Return the address of a node, unless it is away: then raise UnavailableError."""
        if self.is_away(address):
            raise NodeError(f"{self.where} (node {address}): is away", vital=self.slots.of(self._vital) == address)
        return address

    def _candidates(self) -> Iterator[Address]:
        known = dict.fromkeys((*self.slots.primaries, *(Address(*named) for named in self.nodes.named)))
        yield from sorted(known, key=self.is_away)

    def _ask(self, address: Address, *command: str) -> Any:
        connections = Connections(self.nodes.sync_servers(*address).client.connection_pool)
        try:
            (reply,) = connections.exchange(pack(command), 1)
        finally:
            connections.close()
        if isinstance(reply, Exception):
            raise reply
        return reply

    # Who is away

    def is_away(self, address: Address) -> bool:
        """Say whether a node did not answer, and has not since."""
        breaker = self._breakers.get(address)
        return breaker is not None and not breaker.closed

    def failed(self, address: Address, failure: Exception) -> NodeError:
        """Take note of what a node did not do; return what to raise."""
        vital = self.slots.of(self._vital) == address
        error = NodeError(f"{self.where} (node {address}): {type(failure).__name__}: {failure}", vital=vital)
        error.__cause__ = failure
        if not is_answer(error) and not isinstance(failure, ClosedError):
            self._breaker(address).failed(error)
        if not is_answer(error) or str(failure).startswith("CLUSTERDOWN") or isinstance(failure, ClusterDownError):
            self.doubt()
        return error

    def unavailable(self, message: str, cause: Exception | None = None) -> NodeError:
        """Return what to raise when it is nobody's fault in particular."""
        error = NodeError(f"{self.where}: {message}", vital=not self.known)
        error.__cause__ = cause
        return error

    def too_late(self, timeout: float) -> NodeError:
        """Return what to raise when an operation has had its time."""
        return self.unavailable(f"not done in {timeout:g} s", TimeoutError())

    def probe(self, address: Address) -> None:
        """Ask a node whether it answers, unless others serve its slots by now. Raises UnavailableError."""
        self.doubt()
        self.try_to_learn()
        if address in self.slots.primaries:
            try:
                self._ask(address, "PING")
            except (RedisError, OSError) as error:
                raise self.unavailable(f"node {address}: {error}", error) from error
        self.answered(address)

    def probe_vital(self) -> None:
        """Ask the node that every read needs. Raises UnavailableError."""
        self.learn()
        self.probe(self.slots.of(self._vital) or self.slots.primaries[0])

    def stop(self) -> None:
        """End the threads that ask after nodes; they begin again when they are needed."""
        for breaker in list(self._breakers.values()):
            breaker.stop()

    def answered(self, address: Address) -> None:
        """Take note that a node answers."""
        breaker = self._breakers.get(address)
        if breaker is not None:
            breaker.succeeded()

    def _breaker(self, address: Address) -> Breaker:
        found = self._breakers.get(address)
        if found is None:
            made = Breaker(partial(self.probe, address), partial(self._said, address))
            found = self._breakers.setdefault(address, made)
        return found

    def _said(self, address: Address, away: bool, reason: str) -> None:
        if away:
            log.warning("cluster_node_away", server=self.where, node=str(address), error=reason)
        else:
            log.info("cluster_node_back", server=self.where, node=str(address))
