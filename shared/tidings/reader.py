"""The read side on one event loop: look, judge, open, load, fill.

`Reader.read` is the life of one read. Entry and tokens are looked up in one command; when they are not fresh, what is
missing is opened, the load for exactly what was seen is joined or started, and its result is filled under that.
Whatever Redis fails to do, the caller gets a loaded value.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, cast

from .codec import Codec
from .errors import ConfigurationError, DecodeError, UnavailableError
from .fence import (
    MAX_TAGS,
    Facts,
    Sighting,
    Ticket,
    Verdict,
    facts_of,
    judge,
    pack_entry,
    pack_vacancy,
    unique,
)
from .keys import ALL, Keyspace, namespace_token, tag_token
from .operations import Fill, Look, Open, Put
from .settings import Settings
from .singleflight import Flights
from .store import AsyncStore
from .telemetry import Telemetry, process_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to be read: what its entry is called, what it depends on, how long it lives."""

    #: the function or key as messages name it
    label: str
    namespace: str
    #: the entry's key after ``cache:{namespace}:``
    name: str
    tags: tuple[str, ...]
    #: None: the cache's default
    ttl_ms: int | None


class Stored(Enum):
    """What became of an entry that was to be in the cache."""

    #: it was there already
    FRESH = "fresh"
    #: it was loaded and filled
    STORED = "stored"
    #: it was loaded, and invalidated meanwhile
    REFUSED = "refused"
    #: it was loaded, and is over the size limit
    TOO_LARGE = "too large"
    #: Redis did not answer, or keeps no tokens
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A call's key, and its tokens in the order of every header: everything, namespace, tags."""

    call: Call
    key: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]


class Reader:
    """Reads and fills for one event loop; `store` and `flights` belong to it."""

    def __init__(self, store: AsyncStore, settings: Settings, keys: Keyspace, telemetry: Telemetry) -> None:
        self.store = store
        self.flights = Flights()
        self._keys = keys
        self._telemetry = telemetry
        self._settings = settings
        self._vacancy_ms = round(settings.vacancy_ttl * 1000)
        self._token_ms = round(settings.token_ttl * 1000)
        self._by = process_name()

    async def read(self, call: Call, load: Callable[[], Awaitable[T]], codec: Codec[T]) -> T:
        """Return a value that no acknowledged invalidation has made wrong: cached, or loaded and then cached."""
        entry = self._entry(call)
        try:
            sighting = await self._look(entry)
            hit, value = self._served(entry, sighting, codec)
            if hit:
                return cast("T", value)
            ticket = await self._admit(entry, sighting)
        except UnavailableError as error:
            self._telemetry.unavailable(call.namespace, error)
            return await load()
        if ticket is None:
            return await load()
        (loaded, payload, _), first = await self._fly(entry, ticket, load, codec, alone=False)
        # Each caller gets an object of its own, as from Redis: one that changes it must not change it for the others.
        try:
            return loaded if first else codec.decode(payload)
        except DecodeError:  # whoever started the load keeps another type under this key
            return await load()

    async def refresh(self, call: Call, load: Callable[[], Awaitable[T]], codec: Codec[T]) -> T:
        """Load now and fill, whatever is cached. Cancelling the caller does not cancel the load.

        It starts a new lineage, so that an older load that is still under way cannot undo it.
        """
        entry = self._entry(call)
        try:
            ticket = await self._open(entry, renew=True)
        except UnavailableError as error:
            self._telemetry.unavailable(call.namespace, error)
            return await load()
        if ticket is None:
            return await load()
        (loaded, _, _), _ = await self._fly(entry, ticket, load, codec, alone=True)
        return loaded

    async def ensure(
        self, call: Call, load: Callable[[], Awaitable[T]], codec: Codec[T], *, renew: bool = False
    ) -> Stored:
        """Load and fill unless the entry is fresh, joining a load in flight as `read` does, and say what came of it.

        With `renew`, load now and join nothing, as `refresh` does. Raises what the load raises.
        """
        entry = self._entry(call)
        try:
            if renew:
                ticket = await self._open(entry, renew=True)
            else:
                sighting = await self._look(entry)
                if self._served(entry, sighting, codec)[0]:
                    return Stored.FRESH
                ticket = await self._admit(entry, sighting)
        except UnavailableError as error:
            self._telemetry.unavailable(call.namespace, error)
            return Stored.UNAVAILABLE
        if ticket is None:
            return Stored.UNAVAILABLE
        (_, _, fill), _ = await self._fly(entry, ticket, load, codec, alone=renew)
        return await asyncio.shield(fill)

    async def peek(self, call: Call, codec: Codec[T], default: T) -> T:
        """Return the entry's value, or `default` where there is none or Redis is away. Its own facts name its tags."""
        entry = self._entry(call)
        try:
            raw, tokens = await self.store.run(Look(entry.key, entry.tokens))
            facts = facts_of(raw)
            if facts is not None and facts.tags:
                entry = self._entry(call, facts.tags)
                raw, tokens = await self.store.run(Look(entry.key, entry.tokens))
        except UnavailableError as error:
            self._telemetry.unavailable(call.namespace, error)
            return default
        hit, value = self._served(entry, judge(entry.key, raw, tokens), codec)
        return value if hit else default

    async def is_fresh(self, call: Call) -> bool:
        """Say whether a read would be served from the cache now. Raises UnavailableError."""
        return (await self._look(self._entry(call))).verdict is Verdict.FRESH

    async def put(self, call: Call, value: T, codec: Codec[T]) -> None:
        """Store a value under a new lineage. Raises EncodeError, and UnavailableError when Redis does not take it."""
        entry = self._entry(call)
        payload = codec.encode(value)
        seen = (await self._look(entry)).ticket or await self._open(entry)
        if seen is None:
            raise UnavailableError("Redis drops tokens as soon as they are made: it is out of memory")
        ticket = Ticket(entry.key, unique(), seen.tokens)
        packed = pack_entry(ticket, Facts(entry.tags, 0.0, self._by), payload)
        await self.store.run(Put(entry.key, packed, self._ttl_ms(call), entry.tokens, self._token_ms))

    async def _look(self, entry: _Entry) -> Sighting:
        raw, tokens = await self.store.run(Look(entry.key, entry.tokens))
        return judge(entry.key, raw, tokens)

    async def _admit(self, entry: _Entry, sighting: Sighting) -> Ticket | None:
        """Return a ticket for what was seen, opening what is missing; see `_open`.

        A vacancy may be about to expire, and a fill needs it: opening prolongs it.
        """
        known = None if sighting.verdict is Verdict.VACANT else sighting.ticket
        return known or await self._open(entry)

    async def _open(self, entry: _Entry, *, renew: bool = False) -> Ticket | None:
        """Return a ticket to load under; None when Redis evicts tokens faster than they are read."""
        opening = Open(entry.key, pack_vacancy(), self._vacancy_ms, entry.tokens, self._token_ms, renew)
        head, tokens = await self.store.run(opening)
        return judge(entry.key, head, tokens).ticket

    def _served(self, entry: _Entry, sighting: Sighting, codec: Codec[T]) -> tuple[bool, Any]:
        """Return (True, value) for a hit; count what it was otherwise."""
        namespace = entry.call.namespace
        if sighting.verdict is Verdict.FRESH and sighting.payload is not None:
            try:
                value = codec.decode(sighting.payload)
            except DecodeError:
                self._telemetry.count(namespace, "undecodable")
                return False, None
            self._telemetry.count(namespace, "hits")
            self._telemetry.available()
            return True, value
        self._telemetry.count(namespace, "invalidated" if sighting.verdict is Verdict.INVALIDATED else "misses")
        return False, None

    async def _fly(
        self, entry: _Entry, ticket: Ticket, load: Callable[[], Awaitable[T]], codec: Codec[T], *, alone: bool
    ) -> tuple[tuple[T, bytes, asyncio.Task[Stored]], bool]:
        """Join the load in flight for this ticket or start it; `alone`: start one that begins now and nobody joins."""
        flight = (ticket, unique()) if alone else ticket
        return await self.flights.join(flight, lambda: self._load_and_fill(entry, ticket, load, codec))

    async def _load_and_fill(
        self, entry: _Entry, ticket: Ticket, load: Callable[[], Awaitable[T]], codec: Codec[T]
    ) -> tuple[T, bytes, asyncio.Task[Stored]]:
        """Return the value, its bytes, and the fill, which has been sent but for which no caller needs to wait.

        Who reads here next finds it done: commands of one event loop reach Redis in the order in which they were sent.
        """
        started = time.perf_counter()
        value = await load()
        load_ms = round((time.perf_counter() - started) * 1000, 3)
        payload = codec.encode(value)
        return value, payload, self.flights.follow(self._fill(entry, ticket, load_ms, payload))

    async def _fill(self, entry: _Entry, ticket: Ticket, load_ms: float, payload: bytes) -> Stored:
        call, limit = entry.call, self._settings.max_value_bytes
        if len(payload) > limit:
            self._telemetry.too_large(call.namespace, call.label, len(payload), limit)
            return Stored.TOO_LARGE
        packed = pack_entry(ticket, Facts(entry.tags, load_ms, self._by), payload)
        fill = Fill(entry.key, ticket.lineage, packed, self._ttl_ms(call), entry.tokens, self._token_ms)
        try:
            stored = await self.store.run(fill)
        except UnavailableError as error:
            self._telemetry.unavailable(call.namespace, error)
            return Stored.UNAVAILABLE
        self._telemetry.available()
        self._telemetry.count(call.namespace, "fills" if stored else "refused_fills")
        return Stored.STORED if stored else Stored.REFUSED

    def _entry(self, call: Call, tags: Iterable[str] | None = None) -> _Entry:
        distinct = tuple(dict.fromkeys(call.tags if tags is None else tags))
        if len(distinct) > MAX_TAGS:
            raise ConfigurationError(f"{call.label}: {len(distinct)} tags; at most {MAX_TAGS} are possible")
        names = (ALL, namespace_token(call.namespace), *map(tag_token, distinct))
        key = self._keys.entry(call.namespace, call.name)
        return _Entry(call, key, tuple(map(self._keys.token, names)), distinct)

    def _ttl_ms(self, call: Call) -> int:
        return round(self._settings.default_ttl * 1000) if call.ttl_ms is None else call.ttl_ms
