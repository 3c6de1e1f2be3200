"""How the servers are asked: the store and the jobs of one cache, each answer within the operation's timeout."""

from collections.abc import Awaitable
from typing import TypeVar

from redis.asyncio import Redis
from tidings import Cache
from tidings.errors import DecodeError
from tidings.keys import Keyspace
from tidings.layout import born_and_payload, header_tokens
from tidings.sealing import ENCRYPTED, Sealer

from tidings_worker.servers import store_of, timely

from .subjects import Subject

T = TypeVar("T")


class Servers:
    """The servers of a cache; `jobs` is None where nobody has said which has them.

    Raises ConfigurationError for a cache in memory.
    """

    def __init__(self, cache: Cache, jobs: Redis | None) -> None:
        self.store = store_of(cache)
        self.jobs = jobs
        self._sealer = Sealer(cache.settings)
        self.keys: Keyspace = cache.keys
        self.group = cache.settings.group
        self.streams = [stream.events for stream in cache.keys.streams(cache.settings.partitions)]

    def unsealed(self, call: str, namespace: str, key: str) -> str:
        """Return the text of the call that an entry names; empty where this process has not the keys to read it."""
        try:
            return self._sealer.unseal_call(call, namespace, key)
        except DecodeError:
            return ""

    def unreadable(self, entry: bytes, subject: Subject, key: str) -> str:
        """Return why an entry's value does not decode; empty: it does, or this process has no key to tell."""
        _, payload = born_and_payload(entry, len(header_tokens(entry)))
        if payload[:1] == ENCRYPTED and not self._sealer.encrypts(subject.namespace):
            return ""
        try:
            payload = self._sealer.unseal(payload, subject.namespace, key)
            if subject.function is not None:
                subject.function.codec.decode(payload)
        except DecodeError as error:
            return str(error)
        return ""

    async def holding(self, key: str) -> Redis:
        """Return a client of the server that has a key."""
        return await self.store.client_for(key)

    async def timely(self, reply: Awaitable[T]) -> T:
        """Wait for a client's reply. Raises UnavailableError when it takes too long, and what Redis raises."""
        return await timely(self.store, reply)
