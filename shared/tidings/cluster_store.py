"""Carries out every operation of the cache on a Redis Cluster, from coroutines; `cluster_threads` does for threads.

Each node that is needed gets what one server has in `store`: a connection that all share. What is asked of several
nodes is asked at the same time.

async or threads: as in `store`. Both share what is known of the cluster, and nothing else.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Self, TypeVar, cast

import redis
import redis.asyncio

from .batching import Multiplexer, Values
from .cluster import Cluster
from .cluster_operations import insists, program, walks
from .cluster_programs import To, together
from .cluster_routing import Answers, Batches, exchange
from .cluster_slots import Address
from .durable import append, is_durable
from .errors import UnavailableError
from .exchanges import in_transaction, replies_of
from .link import ClosedError
from .loop_end import LoopEnd
from .operations import Command, Operation
from .servers import Servers
from .settings import Settings

T = TypeVar("T")


class ClusterStore:
    """Operations for one event loop, on a connection to each node, and on a second for big values: see `RedisStore`.

    Each exchange of an operation has `timeout` seconds, and none begins when so many have passed since the first.
    """

    def __init__(self, cluster: Cluster, timeout: float = 2.0) -> None:
        self.cluster = cluster
        #: seconds that one exchange has
        self.timeout = timeout
        self._known_scripts: set[tuple[Address, str]] = set()
        self._servers: dict[Address, Servers[redis.asyncio.Redis]] = {}
        self._multiplexers: dict[tuple[Address, bool], Multiplexer] = {}
        self._learning: asyncio.Task[UnavailableError | None] | None = None
        self._loop_end = LoopEnd()
        self._closed = False

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Make a store that connects at its first operation. Raises ConfigurationError for a URL that is none."""
        return cls(Cluster(settings), settings.operation_timeout)

    async def read(self, keys: tuple[str, ...], *, bulk: bool = False) -> Values:
        """See AsyncStore. Reads of one event-loop tick are one write to each node."""
        cluster = self.cluster
        if cluster.doubtful or not cluster.known:
            await self._learn()
        groups: dict[Address, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(cluster.owner(key), []).append(index)
        reads = [
            self._multiplexer(address, bulk=bulk).read(tuple([keys[index] for index in indices]))
            for address, indices in groups.items()
        ]
        answers = await asyncio.gather(*reads)
        values: list[Any] = [None] * len(keys)
        for indices, answer in zip(groups.values(), answers, strict=True):
            for index, value in zip(indices, answer, strict=True):
                values[index] = value
        wrong = [index for index, value in enumerate(values) if isinstance(value, Exception)]
        if wrong:  # moved, most likely
            again = await self._exchange([To(keys[index], ("MGET", keys[index])) for index in wrong], bulk=bulk)
            for index, reply in zip(wrong, again, strict=True):
                if isinstance(reply, Exception):
                    raise reply
                values[index] = reply[0]
        return values

    async def run(self, operation: Operation[T], *, bulk: bool = False) -> T:
        """See AsyncStore."""
        if is_durable(operation):
            return cast("T", await append(self, operation))
        deadline = asyncio.get_running_loop().time() + self.timeout
        if walks(operation):
            self.cluster.doubt(now=True)
        await self._learn(again=walks(operation))
        steps = together([program(operation, self.cluster.around)])
        replies: list[Any] | None = None
        while True:
            try:
                wanted = steps.send(replies)
            except StopIteration as done:
                result: T = done.value[0]
                return result
            if asyncio.get_running_loop().time() > deadline:
                raise self.cluster.too_late(self.timeout)
            replies = await self._exchange(wanted, bulk=bulk, insist=insists(operation))

    async def _exchange(self, wanted: Sequence[To], *, bulk: bool, insist: bool = False) -> list[Any]:
        sending = exchange(self.cluster, wanted, self._known_scripts, insist=insist)
        try:
            batches = next(sending)
            while True:
                batches = sending.send(await self._send(batches, bulk=bulk))
        except StopIteration as done:
            replies: list[Any] = done.value
            return replies

    async def _send(self, batches: Batches, *, bulk: bool) -> Answers:
        futures: list[asyncio.Future[list[Any]]] = []
        try:
            for address, batch in batches.items():
                futures.append(self._multiplexer(address, bulk=bulk).exchange(batch))
        except BaseException:  # what cannot be sent
            for future in futures:
                future.cancel()
            raise
        answers = await asyncio.gather(*futures, return_exceptions=True)
        return cast("Answers", dict(zip(batches, answers, strict=True)))  # no BaseException: nobody else cancels them

    async def _learn(self, *, again: bool = False) -> None:
        """See to it that something is known, and ask behind the caller's back where that is doubtful.

        With `again` the caller wants to know now. Raises UnavailableError.
        """
        cluster = self.cluster
        if cluster.known and not (again or cluster.doubtful):
            return
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(asyncio.to_thread(cluster.try_to_learn))
        if again or not cluster.known:
            try:
                async with asyncio.timeout(self.timeout):
                    error = await asyncio.shield(self._learning)
            except TimeoutError as late:
                raise cluster.unavailable(f"no node says in {self.timeout:g} s who serves what", late) from late
            if error is not None:
                raise error

    async def transact(self, key: str, commands: Sequence[Command], *, bulk: bool = False) -> list[Any]:
        """See `RedisStore.transact`. A key that has moved is an error, and then nothing was carried out."""
        multiplexer = self._multiplexer(await self._locate(key), bulk=bulk)
        return replies_of(await multiplexer.exchange(in_transaction(commands)), self.cluster.where)

    async def client_for(self, key: str) -> redis.asyncio.Redis:
        """See `RedisStore.client_for`."""
        return self._clients(await self._locate(key)).client

    async def apart(self, key: str, timeout: float) -> Multiplexer:  # noqa: ASYNC109 of each answer
        """See `RedisStore.apart`."""
        return self._connect(await self._locate(key), timeout)

    async def primaries(self) -> list[redis.asyncio.Redis]:
        """See `RedisStore.primaries`; those that are away are among them. Raises UnavailableError."""
        self.cluster.doubt()
        await self._learn(again=self.cluster.doubtful)
        return [self._clients(address).client for address in self.cluster.slots.primaries]

    async def blocking_for(self, key: str) -> redis.asyncio.Redis:
        """See `RedisStore.blocking_for`."""
        return self._clients(await self._locate(key)).blocking

    async def _locate(self, key: str) -> Address:
        """See `Cluster.locate`."""
        self.cluster.doubt()
        if self.cluster.doubtful:
            await self._learn(again=True)
        return self.cluster.owner(key)

    def _clients(self, address: Address) -> Servers[redis.asyncio.Redis]:
        found = self._servers.get(address)
        if found is None:
            found = self._servers[address] = self.cluster.nodes.async_servers(*address)
        return found

    def _multiplexer(self, address: Address, *, bulk: bool) -> Multiplexer:
        found = self._multiplexers.get((address, bulk))
        if found is not None:
            return found
        if self._closed:
            raise self.cluster.unavailable("the connection was closed", ClosedError())
        made = self._multiplexers[address, bulk] = self._connect(address, self.timeout)
        return made

    def _connect(self, address: Address, timeout: float) -> Multiplexer:
        pool = self._clients(address).client.connection_pool
        return Multiplexer(
            lambda: pool.connection_class(**pool.connection_kwargs),
            timeout,
            lambda failure: self.cluster.failed(address, failure),
            apart=True,
        )

    async def aclose(self) -> None:
        """Close the connections; every operation fails afterwards."""
        self._closed = True
        for multiplexer in list(self._multiplexers.values()):
            await multiplexer.aclose()
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait({self._learning})
        await self._loop_end.come()
        await self._close_clients()

    def close_with_loop(self) -> None:
        """See `RedisStore.close_with_loop`."""
        self._loop_end.watch(self._close_clients)

    async def _close_clients(self) -> None:
        for servers in list(self._servers.values()):
            await servers.client.aclose()
            await servers.blocking.aclose()
