"""Carries out every operation of the cache on a Redis Cluster, from threads; see `cluster_store`.

Connections to each node are taken and given back, as in `store`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import redis
from redis.exceptions import RedisError

from .batching import Values
from .cluster import Cluster
from .cluster_operations import insists, program, walks
from .cluster_programs import To, together
from .cluster_routing import Answers, Batches, exchange
from .cluster_slots import Address
from .connections import Connections, Sent
from .durable import append_in_thread, is_durable
from .link import pack
from .operations import Operation
from .servers import Servers
from .settings import Settings

T = TypeVar("T")


class SyncClusterStore:
    """The same for threads; safe to share between them, and after a fork."""

    def __init__(self, cluster: Cluster, timeout: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.cluster = cluster
        self.timeout = timeout
        self._clock = clock
        self._known_scripts: set[tuple[Address, str]] = set()
        self._servers: dict[Address, _Node] = {}

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """See `ClusterStore.connect`."""
        return cls(Cluster(settings), settings.operation_timeout)

    def read(self, keys: tuple[str, ...]) -> Values:
        """See SyncStore."""
        self._learn()
        replies = self._exchange([To(key, ("MGET", key)) for key in keys])
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [value for (value,) in replies]

    def run(self, operation: Operation[T]) -> T:
        """See SyncStore."""
        if is_durable(operation):
            return cast("T", append_in_thread(self.client_for(operation.stream), operation))
        deadline = self._clock() + self.timeout
        self._learn(again=walks(operation))
        steps = together([program(operation, self.cluster.around)])
        replies: list[Any] | None = None
        while True:
            try:
                wanted = steps.send(replies)
            except StopIteration as done:
                result: T = done.value[0]
                return result
            if self._clock() > deadline:
                raise self.cluster.too_late(self.timeout)
            replies = self._exchange(wanted, insist=insists(operation))

    def _exchange(self, wanted: Sequence[To], *, insist: bool = False) -> list[Any]:
        sending = exchange(self.cluster, wanted, self._known_scripts, insist=insist)
        try:
            batches = next(sending)
            while True:
                batches = sending.send(self._send(batches))
        except StopIteration as done:
            replies: list[Any] = done.value
            return replies

    def _send(self, batches: Batches) -> Answers:
        """Send to all, then receive from all."""
        packed = {address: b"".join(map(pack, batch)) for address, batch in batches.items()}
        sent: dict[Address, Sent] = {}
        answers: dict[Address, Sequence[Any] | Exception] = {}
        for address, data in packed.items():
            try:
                sent[address] = self._node(address).connections.send(data)
            except (RedisError, OSError) as error:
                answers[address] = self.cluster.failed(address, error)
        try:
            for address in list(sent):
                try:
                    answers[address] = self._node(address).connections.receive(sent.pop(address), len(batches[address]))
                except (RedisError, OSError) as error:
                    answers[address] = self.cluster.failed(address, error)
        finally:
            for idle, _ in sent.values():  # interrupted: nobody reads what they will answer
                idle.connection.disconnect()
        return answers

    def _learn(self, *, again: bool = False) -> None:
        cluster = self.cluster
        if again:
            cluster.doubt(now=True)
        if again or not cluster.known:
            cluster.learn()
        elif cluster.doubtful:
            cluster.try_to_learn()

    def client_for(self, key: str) -> redis.Redis:
        """See `RedisStore.client_for`."""
        return self._node(self.cluster.locate(key)).servers.client

    def blocking_for(self, key: str) -> redis.Redis:
        """See `RedisStore.client_for`."""
        return self._node(self.cluster.locate(key)).servers.blocking

    def _node(self, address: Address) -> "_Node":
        found = self._servers.get(address)
        if found is None:
            servers = self.cluster.nodes.sync_servers(*address)
            made = _Node(servers, Connections(servers.client.connection_pool))
            found = self._servers.setdefault(address, made)  # another thread may have been faster
        return found

    def close(self) -> None:
        """Close the connections; a later command connects anew."""
        for node in list(self._servers.values()):
            node.connections.close()
            node.servers.client.close()
            node.servers.blocking.close()


@dataclass(frozen=True, slots=True)
class _Node:
    servers: Servers[redis.Redis]
    connections: Connections
