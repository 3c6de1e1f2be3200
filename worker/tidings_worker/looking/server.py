"""What a server holds and how far the workers are: read, never changed. Behind `tidings stats`."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from redis.asyncio import Redis
from tidings.cluster_store import ClusterStore
from tidings.keys import Keyspace
from tidings.store import RedisStore

from tidings_worker.groups import MARK

from .reads import Reported, count_in, read

#: Keys of a server that are looked at when entries are counted; beyond it the counts are of a part, and say so.
SCAN_AT_MOST = 100_000


@dataclass(frozen=True, slots=True)
class GroupStats:
    """One consumer group of one event stream."""

    stream: str
    name: str
    #: events not yet delivered; None when the server cannot tell
    lag: int | None
    #: delivered and not yet acknowledged
    pending: int
    #: workers, without the group's mark
    consumers: int


@dataclass(frozen=True, slots=True)
class Stats:
    """One look at everything under a prefix."""

    events: int
    groups: list[GroupStats]
    dead_letters: int
    invalidations_logged: int
    warms_queued: int
    #: what the workers have counted: applied, dead, tokens, warms, unruled, unruled:{type}
    worker: dict[str, int]
    #: entries by namespace, valid or not yet expired
    entries: dict[str, int]
    entries_complete: bool
    #: how the reads went, by the names of `reads.SPANS`
    reads: dict[str, Reported]

    def only(self, namespaces: Collection[str]) -> "Stats":
        """Return the same, of entries and reads only those of some namespaces."""
        kept = {name: count for name, count in self.entries.items() if name in namespaces}
        return replace(
            self, entries=kept, reads={span: reported.only(namespaces) for span, reported in self.reads.items()}
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **found,
            "groups": [asdict(group) for group in self.groups],
            "reads": {span: reported.as_json() for span, reported in self.reads.items()},
        }


async def look(store: RedisStore | ClusterStore, keys: Keyspace, partitions: int, warms_queued: int) -> Stats:
    """Read the streams, their groups and the entries; warms may be queued elsewhere. Raises Redis's exceptions."""
    streams = [stream.events for stream in keys.streams(partitions)]
    client_for = store.client_for
    counts = await (await client_for(keys.counts)).hgetall(keys.counts)  # type: ignore[misc]
    entries, complete = await _entries(await store.primaries(), keys)
    return Stats(
        sum([await (await client_for(stream)).xlen(stream) for stream in streams]),
        [group for stream in streams for group in await _groups(await client_for(stream), stream)],
        await (await client_for(keys.dead)).xlen(keys.dead),
        await (await client_for(keys.log)).xlen(keys.log),
        warms_queued,
        {
            name.decode(errors="replace"): count
            for name, value in sorted(counts.items())
            if (count := count_in(value)) is not None
        },
        entries,
        complete,
        await read(store, keys),
    )


async def _groups(client: Redis, stream: str) -> list[GroupStats]:
    if not await client.exists(stream):
        return []
    found = []
    for group in await client.xinfo_groups(stream):
        name = group["name"].decode(errors="replace")
        consumers = [row["name"] for row in await client.xinfo_consumers(stream, group["name"])]
        workers = [consumer for consumer in consumers if not consumer.startswith(MARK.encode())]
        found.append(GroupStats(stream, name, group.get("lag"), group["pending"], len(workers)))
    return found


async def _entries(servers: Sequence[Redis], keys: Keyspace) -> tuple[dict[str, int], bool]:
    pattern, start = keys.entry("*", "*"), keys.entries
    counts: Counter[str] = Counter()
    complete = True
    for server in servers:
        cursor, seen = 0, 0
        while seen < SCAN_AT_MOST:
            cursor, found = await server.scan(cursor, match=pattern, count=1000)
            seen += 1000
            counts.update(key.decode(errors="replace").removeprefix(start).partition(":")[0] for key in found)
            if cursor == 0:
                break
        complete = complete and cursor == 0
    return dict(sorted(counts.items())), complete
