"""Streams of events that nobody here reads, because publishers were told of more partitions than this worker.

Nothing else shows it: the events are acknowledged to their publishers, and the groups that there are have no lag.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from tidings import Settings
from tidings.cluster_store import ClusterStore
from tidings.keys import Keyspace
from tidings.store import RedisStore

from .observer import stream_state
from .outage import Patience, pause
from .telemetry import log

#: `Settings.partitions` is this at most.
MOST_PARTITIONS = 256

_INTERVAL = 60.0

#: Seconds after which an event counts as unread although there is a group: its workers may have more partitions.
_LATE = 10.0


async def watch(
    store: RedisStore | ClusterStore, keys: Keyspace, settings: Settings, stop: asyncio.Event, patience: Patience
) -> None:
    """Say now, and once a minute, which partitions have events that the group has not read, beyond those it reads."""
    while not stop.is_set():
        if await patience.tried(_look(store, keys, settings)):
            patience.succeeded()
            await pause(_INTERVAL, stop)


async def _look(store: RedisStore | ClusterStore, keys: Keyspace, settings: Settings) -> None:
    if found := await unread_partitions(store, keys, settings.partitions, settings.group):
        cure = "give TIDINGS_PARTITIONS of publishers and workers the same number, the greatest there is"
        log.error("partitions_unread", streams=found, partitions=settings.partitions, cure=cure)


async def unread_partitions(store: RedisStore | ClusterStore, keys: Keyspace, partitions: int, group: str) -> list[str]:
    """Return the streams of partitions beyond so many in which the group has something to read. Raises what Redis does.

    One that was read to its end when there were more partitions is none of them.
    """
    beyond = [keys.stream(number).events for number in range(partitions if partitions > 1 else 0, MOST_PARTITIONS)]
    there = await store.run(_Exist(beyond))
    return [name for name, exists in zip(beyond, there, strict=True) if exists and await _is_unread(store, name, group)]


async def _is_unread(store: RedisStore | ClusterStore, stream: str, group: str) -> bool:
    client = await store.client_for(stream)
    async with asyncio.timeout(store.timeout):
        state = await stream_state(client, stream, group)
    if state.oldest_unread_age is None:
        return state.entries > 0
    return state.oldest_unread_age > _LATE


class _Exist:
    """Say of each key whether it is there."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.commands = [("EXISTS", key) for key in keys]

    def parse(self, replies: Sequence[Any]) -> Sequence[int]:
        return replies
