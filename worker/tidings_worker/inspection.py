"""What a server holds and how far the workers are: read, never changed. Behind `tidings stats`."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from tidings.keys import Keyspace

#: Keys looked at when entries are counted; beyond it the counts are of a part, and say so.
SCAN_AT_MOST = 100_000


@dataclass(frozen=True, slots=True)
class GroupStats:
    """One consumer group of the event stream."""

    name: str
    #: events not yet delivered; None when the server cannot tell
    lag: int | None
    #: delivered and not yet acknowledged
    pending: int
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

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


async def look(client: Redis, keys: Keyspace) -> Stats:
    """Read the stream, its groups, the queues and the entries. Raises Redis's exceptions."""
    pipe = client.pipeline(transaction=False)
    pipe.xlen(keys.events)
    pipe.xlen(keys.dead)
    pipe.xlen(keys.log)
    pipe.zcard(keys.jobs)
    pipe.hgetall(keys.counts)
    events, dead, logged, warms, counts = await pipe.execute()
    entries, complete = await _entries(client, keys)
    return Stats(
        events,
        await _groups(client, keys),
        dead,
        logged,
        warms,
        {name.decode(errors="replace"): int(value) for name, value in sorted(counts.items())},
        entries,
        complete,
    )


async def _groups(client: Redis, keys: Keyspace) -> list[GroupStats]:
    try:
        groups = await client.xinfo_groups(keys.events)
    except ResponseError:
        return []  # no stream yet
    return [
        GroupStats(group["name"].decode(errors="replace"), group.get("lag"), group["pending"], group["consumers"])
        for group in groups
    ]


async def _entries(client: Redis, keys: Keyspace) -> tuple[dict[str, int], bool]:
    pattern = keys.entry("*", "*")
    start = pattern.removesuffix("*:*")
    counts: Counter[str] = Counter()
    cursor, seen = 0, 0
    while seen < SCAN_AT_MOST:
        cursor, found = await client.scan(cursor, match=pattern, count=1000)
        seen += 1000
        counts.update(key.decode(errors="replace").removeprefix(start).partition(":")[0] for key in found)
        if cursor == 0:
            return dict(sorted(counts.items())), True
    return dict(sorted(counts.items())), False
