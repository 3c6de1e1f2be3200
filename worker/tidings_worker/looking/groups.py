"""How far the consumer groups of the event streams are, and who is in them: read, never changed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis.asyncio import Redis
from tidings.cluster_store import ClusterStore
from tidings.keys import Keyspace
from tidings.store import RedisStore

from tidings_worker.dead_letters.letters import text_of
from tidings_worker.groups import MARK
from tidings_worker.observer import stream_state
from tidings_worker.servers import timely
from tidings_worker.unread import unread_partitions

Store = RedisStore | ClusterStore


@dataclass(frozen=True, slots=True)
class ConsumerView:
    """One worker in a group; seconds."""

    name: str
    pending: int
    #: since it was heard of: a worker asks for events at least once a second
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group of a stream; seconds."""

    name: str
    #: whether it is the group of this prefix's workers, and not somebody else's on the same stream
    ours: bool
    #: events not yet delivered; None when the server cannot tell
    lag: int | None
    pending: int
    #: since the oldest of each was published; 0: there is none
    oldest_unread_seconds: float
    oldest_pending_seconds: float
    last_delivered: str
    consumers: tuple[ConsumerView, ...]


@dataclass(frozen=True, slots=True)
class StreamView:
    """One event stream."""

    name: str
    exists: bool
    events: int = 0
    groups: tuple[GroupView, ...] = ()


@dataclass(frozen=True, slots=True)
class Groups:
    """All the event streams of a prefix."""

    #: the name of the workers' group
    group: str
    streams: tuple[StreamView, ...]
    #: partitions beyond those of this prefix's settings that have events which nobody has read
    beyond: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def late(self, max_lag: int | None, max_age: float | None) -> list[str]:
        """Say where the workers' group is further behind than so many events, or so many seconds; None: never.

        The age is that of the oldest event that is not acknowledged. A lag that the server cannot tell counts as too
        much while there is anything to read, and so does a group that is not there while there are events.
        """
        if max_lag is None and max_age is None:
            return []
        found = [f"{name}: nobody reads this partition" for name in self.beyond]
        for stream in self.streams:
            ours = [group for group in stream.groups if group.ours]
            if stream.events and not ours:
                found.append(f"{stream.name}: no worker has ever read it")
            for group in ours:
                lag = (None if group.oldest_unread_seconds else 0) if group.lag is None else group.lag
                if max_lag is not None and (lag is None or lag > max_lag):
                    found.append(f"{stream.name}: {'?' if lag is None else lag} events to read, more than {max_lag}")
                oldest = max(group.oldest_unread_seconds, group.oldest_pending_seconds)
                if max_age is not None and oldest > max_age:
                    found.append(f"{stream.name}: the oldest event waits for {oldest:.1f} s, more than {max_age:g}")
        return found


async def view_groups(store: Store, keys: Keyspace, partitions: int, group: str) -> Groups:
    """Look at every stream. Raises UnavailableError, and what else Redis raises."""
    streams = [await _stream(store, stream.events, group) for stream in keys.streams(partitions)]
    return Groups(group, tuple(streams), tuple(await unread_partitions(store, keys, partitions, group)))


async def _stream(store: Store, name: str, ours: str) -> StreamView:
    client = await store.client_for(name)
    if not await timely(store, client.exists(name)):
        return StreamView(name, exists=False)
    groups: Sequence[Mapping[str, Any]] = await timely(store, client.xinfo_groups(name))
    views = [await _group(store, client, name, group, ours) for group in groups]
    views.sort(key=lambda view: not view.ours)
    return StreamView(name, exists=True, events=await timely(store, client.xlen(name)), groups=tuple(views))


async def _group(store: Store, client: Redis, stream: str, group: Mapping[str, Any], ours: str) -> GroupView:
    raw: bytes = group["name"]
    # as bytes, since it is somebody's own and may be no text; the client sends either
    state = await timely(store, stream_state(client, stream, cast("str", raw)))
    consumers = await timely(store, client.xinfo_consumers(stream, raw))
    return GroupView(
        text_of(raw),
        raw == ours.encode(),
        state.lag,
        state.pending,
        state.oldest_unread_age or 0.0,
        state.oldest_pending_age or 0.0,
        text_of(group["last-delivered-id"]),
        tuple(
            ConsumerView(text_of(one["name"]), one["pending"], one["idle"] / 1000)
            for one in sorted(consumers, key=lambda one: (-one["pending"], one["idle"]))
            if not one["name"].startswith(MARK.encode())
        ),
    )
