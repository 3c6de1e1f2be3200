"""The worker's connections: to the servers of the cache and the events, by key, and to that of the jobs."""

import asyncio
from typing import Self

from redis.asyncio import Redis
from tidings import Cache
from tidings.keys import EventStream
from tidings.servers import Servers, async_servers

from .checks import check, report
from .groups import Clients
from .observer import Watched
from .watch import Ledger


class WorkerServers:
    """Clients of the servers that hold the cache and the events; made without connecting."""

    def __init__(self, cache: Cache) -> None:
        self._servers: Servers[Redis] = async_servers(cache.settings)
        self._keys = cache.keys
        self._partitions = cache.settings.partitions
        self.timeout = cache.settings.operation_timeout

    def client_of(self, key: str) -> Redis:  # noqa: ARG002 on a cluster it matters
        """Return the client of the server that has this key."""
        return self._servers.client

    def ledger(self) -> Ledger:
        """Return what the workers have last seen."""
        return Ledger(self.client_of(self._keys.ledger), self._keys.ledger, self.timeout)

    def watched(self, group: str, jobs: Redis) -> Watched:
        """Return what is looked at for metrics, and where."""
        keys = self._keys
        streams = {s.events: self.client_of(s.events) for s in keys.streams(self._partitions)}
        return Watched(group, streams, keys.dead, self.client_of(keys.dead), keys.jobs, jobs)

    async def check_settings(self, jobs: Redis, jobs_where: str) -> None:
        """Say in the log what is wrong with the servers' settings; `jobs_where` is the jobs', without secrets."""
        one = jobs_where == self._servers.where
        report(self._servers.where, await check(self._servers.client, jobs=one))
        if not one:
            report(jobs_where, await check(jobs, events=False))

    def clients_of(self, stream: EventStream) -> Clients:
        """Return the connections for one stream's group."""
        return Clients.of_one_server(self._servers.client, self._servers.blocking)

    async def histories(self) -> tuple[frozenset[str], bool]:
        """Return the replication ids of the servers that answer, and whether all did; see `continuity`."""
        async with asyncio.timeout(self.timeout):
            found = await self._servers.client.info("replication")
        return frozenset([str(found["master_replid"])]), True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in (self._servers.client, self._servers.blocking, *self._servers.sentinels):
            await client.aclose()
