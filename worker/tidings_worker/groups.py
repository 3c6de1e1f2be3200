"""A consumer group of one event stream: every command that the worker sends about it.

Raises redis-py's exceptions, and TimeoutError for an answer that does not come in time.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from tidings.batching import Multiplexer
from tidings.cluster_store import ClusterStore
from tidings.errors import UnavailableError
from tidings.exchanges import entries_in, in_transaction, replies_of
from tidings.keys import EventStream
from tidings.layout import unique
from tidings.operations import APPLIED_LENGTH
from tidings.servers import LONGEST_BLOCK

from . import group_scripts
from .continuity import Position
from .delivery import Entry
from .exchange import Exchange, Store
from .outage import is_group_gone

#: What the name of the consumer that marks a group begins with.
MARK = "tidings:group:"

#: Entries that one trim removes at most: it holds up the server for as long as it takes.
_TRIMMED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Claimed:
    """What XAUTOCLAIM gave: ids that are ours now, and those that it found deleted."""

    cursor: str
    ids: list[str]
    deleted: list[str]


class Reading(NamedTuple):
    """How new entries are read: so many at most, waiting so long for the first."""

    most: int
    block_ms: int


class Taken(NamedTuple):
    """What XCLAIM gave: entries that are ours now, and the ids of those that were pending and have no data any more."""

    entries: list[Entry]
    removed: list[str]


@dataclass(frozen=True, slots=True)
class Receipts:
    """What one acknowledgement says beside the ack itself."""

    #: dead letters as stream fields, and the events that they are of
    dead: Sequence[Mapping[Any, Any]] = ()
    dead_ids: Sequence[str] = ()
    #: what to add to the hash of counts
    amounts: Mapping[str, int] = field(default_factory=dict)


class Group:
    """One consumer's view of its group. `clients` are the store's, by key: on a cluster they lead to several nodes."""

    def __init__(
        self,
        clients: Store,
        stream: EventStream,
        group: str,
        name: str,
        *,
        dead: str = "events:dead",
        counts: str = "events:counts",
    ) -> None:
        self.stream = stream
        self.group = group
        self.name = name
        self._clients = clients
        self._dead = dead
        self._counts = counts
        self._link: Multiplexer | None = None
        self._reading: asyncio.Future[list[Any]] | None = None

    async def create(self) -> None:
        """Make the group, and the stream if need be, and mark it; what there is already stays.

        It starts at 0: what came before the first worker counts too.
        """
        await self._eval(group_scripts.CREATE, self.group, f"{MARK}{unique().decode()}", MARK)

    @property
    def is_reading(self) -> bool:
        """Whether a read is under way whose entries nobody has taken yet."""
        return self._reading is not None

    async def read(self, count: int, block_ms: int) -> list[Entry]:
        """Return new entries, at most `count`, waiting up to `block_ms`; or those of the read that is under way.

        Never cancel it: what is delivered to nobody stays pending.
        """
        if self._reading is None:
            self._reading = self._ask(await self._own_link(), Reading(count, block_ms))
        reading, self._reading = self._reading, None
        try:
            (reply,) = await reading
            if isinstance(reply, Exception):
                raise reply
        except (UnavailableError, RedisError):
            await self.aclose()  # the stream may be on another node by now, which an error reply may say, too
            raise
        return [Entry(one.decode("ascii"), fields) for one, fields in entries_in(reply)]

    def _ask(self, link: Multiplexer, reading: Reading) -> asyncio.Future[list[Any]]:
        count, block = ("COUNT", reading.most), ("BLOCK", max(1, reading.block_ms))
        key = self.stream.events
        return link.exchange([("XREADGROUP", "GROUP", self.group, self.name, *count, *block, "STREAMS", key, ">")])

    async def _own_link(self) -> Multiplexer:
        """Return a connection for reads: whatever else was sent on it would wait as long as they do."""
        if self._link is None:
            self._link = await self._clients.apart(self.stream.events, self._clients.timeout + LONGEST_BLOCK)
        return self._link

    async def aclose(self) -> None:
        """Close the connection for reads; a later one makes another."""
        link, reading = self._link, self._reading
        self._link = self._reading = None
        if reading is not None:
            reading.cancel()
        if link is not None:
            await link.aclose()
        if reading is not None and not reading.cancelled():
            reading.exception()  # it had failed already, which whoever closes this knows

    async def acknowledge(self, ids: Sequence[str], receipts: Receipts, ahead: Reading | None = None) -> int:
        """Ack, set dead letters aside and tell their receipts, count; return how many of the ids were pending.

        With `ahead` the next read begins right behind that, in the same write; `read` has what comes of it.

        On one server that is one transaction. On a cluster dead letters are written before the ack: they may come
        twice, and are never lost.

        An event is set aside by whom it is pending for. This is asked first, because the same is done again when the
        answer got lost, and by a worker that was frozen while another took its events over.
        """
        exchange, stream = Exchange(self._clients), self.stream
        ours = await self.deliveries(receipts.dead_ids) if receipts.dead_ids else {}
        letters = [letter for one, letter in zip(receipts.dead_ids, receipts.dead, strict=True) if one in ours]
        if len(letters) < len(receipts.dead):
            done = {one for one in receipts.dead_ids if one not in ours}
            ids = [one for one in ids if one not in done]
        for letter in letters:
            exchange.add(self._dead, "XADD", self._dead, "*", *(part for pair in letter.items() for part in pair))
        if ids:
            exchange.add(stream.events, "XACK", stream.events, self.group, *ids)
        if receipts.dead_ids:
            dead = " ".join(receipts.dead_ids)
            exchange.add(
                *(stream.applied, "XADD", stream.applied, "MAXLEN", "~", APPLIED_LENGTH, "*", "ids", "", "dead", dead)
            )
        for name, amount in receipts.amounts.items():
            exchange.add(self._counts, "HINCRBY", self._counts, name, amount)
        if ahead is not None and self._reading is None and not isinstance(self._clients, ClusterStore):
            link = await self._own_link()
            answers = link.exchange(in_transaction(exchange.commands))
            self._reading = self._ask(link, ahead)  # if the ack fails, what this gives is still to be taken
            replies = replies_of(await answers, stream.events)
        else:
            replies = await exchange.execute()
        return int(replies[len(letters)]) if ids else 0

    async def claim(self, ids: Sequence[str], deliveries: int | None = None) -> Taken:
        """Take entries over, which counts as a delivery; with `deliveries` it does not, and that is their number.

        Those that are acknowledged are left out.
        """
        pipe = (await self._client()).pipeline(transaction=True)
        for stream_id in ids:
            pipe.xpending_range(self.stream.events, self.group, stream_id, stream_id, 1)
        pipe.xclaim(self.stream.events, self.group, self.name, 0, list(ids), retrycount=deliveries)
        *pending, claimed = await self._timely(pipe.execute())
        counts = {row["message_id"].decode(): row["times_delivered"] for rows in pending for row in rows}
        found = {stream_id.decode("ascii"): fields for stream_id, fields in claimed if fields is not None}
        entries = [Entry(one, fields, deliveries or counts[one] + 1) for one, fields in found.items()]
        return Taken(entries, [one for one in counts if one not in found])

    async def claim_idle(self, idle_ms: int, cursor: str, count: int) -> Claimed:
        """Take over entries that nobody has touched for `idle_ms`, without counting that as a delivery."""
        following, ids, *deleted = await self._eval(
            group_scripts.CLAIM_IDLE, self.group, self.name, idle_ms, cursor, count
        )
        return Claimed(_text(following), [_text(i) for i in ids], [_text(i) for ids in deleted for i in ids])

    async def deliveries(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how often each has been delivered, of those that are pending for this consumer."""
        pipe = (await self._client()).pipeline(transaction=False)
        for stream_id in ids:
            pipe.xpending_range(self.stream.events, self.group, stream_id, stream_id, 1, self.name)
        replies = await self._timely(pipe.execute())
        return {row["message_id"].decode(): row["times_delivered"] for rows in replies for row in rows}

    async def renew(self, ids: Sequence[str]) -> None:
        """Say that these are still being worked on, so that nobody claims them."""
        pipe = (await self._client()).pipeline(transaction=False)
        for first in range(0, len(ids), 500):
            pipe.xclaim(self.stream.events, self.group, self.name, 0, list(ids[first : first + 500]), justid=True)
        await self._timely(pipe.execute())

    async def position(self) -> Position:
        """Look at the stream and the group; a group that is not there, or has no mark, has the mark ''."""
        key = self.stream.events
        pipe = (await self._client()).pipeline(transaction=True)
        pipe.xinfo_stream(key)
        pipe.xinfo_groups(key)
        pipe.xinfo_consumers(key, self.group)
        pipe.xpending(key, self.group)
        stream, groups, consumers, pending = await self._timely(pipe.execute(raise_on_error=False))
        for reply in (stream, groups, consumers, pending):
            if isinstance(reply, Exception) and not _is_absence(reply):
                raise reply
        group = {} if isinstance(groups, Exception) else _named(groups, self.group)
        if isinstance(stream, Exception):
            stream = {}
        first = stream.get("first-entry")
        oldest = None if isinstance(pending, Exception) else pending["min"]
        return Position(
            mark="" if isinstance(consumers, Exception) else _mark(consumers),
            added=stream.get("entries-added", 0),
            length=stream.get("length", 0),
            read=group.get("entries-read"),
            first=_text(first[0]) if first else "0-0",
            last=_text(stream.get("last-generated-id", b"0-0")),
            deleted=_text(stream.get("max-deleted-entry-id", b"0-0")),
            delivered=_text(group.get("last-delivered-id", b"0-0")),
            oldest_pending=None if oldest is None else _text(oldest),
        )

    async def trim(self, keep: int, upto: str) -> int:
        """Remove what every group has acknowledged up to an id, but for about the last `keep` entries.

        Return how many went: some may be left.
        """
        return int(await self._eval(group_scripts.TRIM, keep, _TRIMMED_AT_ONCE, upto))

    async def remove_idle(self, idle_ms: int) -> list[str]:
        """Remove consumers that have nothing pending and were not heard of for `idle_ms`; return their names."""
        return [_text(name) for name in await self._eval(group_scripts.REMOVE, self.group, idle_ms, "", MARK)]

    async def leave(self) -> None:
        """Remove this consumer from the group if nothing is pending for it: with it, its pending list would go."""
        await self._eval(group_scripts.REMOVE, self.group, 0, self.name, MARK)

    async def _eval(self, script: str, *arguments: str | int) -> Any:
        client = await self._client()
        reply: Awaitable[Any] = client.eval(script, 1, self.stream.events, *map(str, arguments))  # type: ignore[assignment]
        return await self._timely(reply)

    async def _client(self) -> Redis:
        return await self._clients.client_for(self.stream.events)

    async def _timely(self, reply: Awaitable[Any]) -> Any:
        async with asyncio.timeout(self._clients.timeout):
            return await reply


def _is_absence(error: Exception) -> bool:
    return is_group_gone(error) or (isinstance(error, ResponseError) and "no such key" in str(error).lower())


def _named(groups: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next((group for group in groups if group["name"] == name.encode()), {})


def _mark(consumers: Sequence[Mapping[str, Any]]) -> str:
    names = sorted(_text(consumer["name"]) for consumer in consumers)
    return next((name for name in names if name.startswith(MARK)), "")


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
