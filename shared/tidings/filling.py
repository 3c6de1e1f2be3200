"""From a load to an entry, sans I/O: run the function, encode, keep it here, store it where it is still wanted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import random
from typing import Any

from .calls import call_text
from .entries import Fill, Lease, Look, Looked, Open, Opened, Put, Release, Results
from .errors import ConfigurationError, EncodeError, UnavailableError
from .fence import Ticket, judge
from .keys import tag_token
from .layout import MAX_TAGS, Facts, pack_entry, pack_vacancy, unique
from .local import LocalTier
from .operations import Batch
from .policy import lifetime_ms
from .sealing import Sealer
from .settings import Settings
from .steps import Ask, Follow, Invoke, Steps
from .targets import Request, Target
from .telemetry import Telemetry, process_name


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
class Lead:
    """What a load goes by: the ticket it runs under, and what was noted before it began."""

    ticket: Ticket
    #: of the lease that the fill ends; empty: there is none
    owner: bytes = b""
    #: the server's time, and the log's last id and its time, before the load, where they were asked for
    seen_us: int = 0
    logged: str = ""
    logged_at: int = 0
    #: position of the local tier
    noted: int | None = None

    @property
    def identity(self) -> Any:
        """What a load in flight is known by: only those who have just read the same may join it.

        With result tags that is not enough: the load's own tags may be invalidated while its tokens stay. Then only
        those join who have found the invalidation log where it was before the load.
        """
        return (self.ticket, self.logged) if self.logged else self.ticket


@dataclass(frozen=True, slots=True)
class Flown:
    """What a load brought: the value for whoever started it, bytes for the others, and a handle on the fill."""

    value: Any
    payload: bytes
    fill: Any
    #: of the lease that the fill ends
    owner: bytes


class Filling:
    """Loads and fills of one driver. `longest_ms` caps every ttl (an outage's), None: as the policies say."""

    def __init__(
        self,
        settings: Settings,
        *,
        sealer: Sealer,
        telemetry: Telemetry,
        tier: LocalTier | None,
        clock: Callable[[], float],
        longest_ms: int | None = None,
        chance: Callable[[], float] = random,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._sealer = sealer
        self._telemetry = telemetry
        self._tier = tier
        self._longest_ms = longest_ms
        self._chance = chance
        self._token_ms = round(settings.token_ttl * 1000)
        #: how long others wait for a load of this driver
        self.lease_ms = round(settings.lease_ttl * 1000)

    def load_and_fill(self, request: Request, lead: Lead) -> Steps[Flown]:
        """Load, then send the fill, for which no caller needs to wait.

        Who reads here next finds it done: commands of one event loop reach Redis in the order in which they were sent.
        Raises what the load raises, and EncodeError; a lease that was taken for it is then given up.
        """
        target, counts = request.target, request.target.counts
        counts.loads += 1
        started = self._clock()
        try:
            value = yield Invoke(request.load)
            load_us = round((self._clock() - started) * 1e6)
            payload = request.codec.encode(value)
            tags = self._result_tags(request, value)
        except GeneratorExit:
            raise
        except BaseException:
            counts.load_errors += 1
            if lead.owner:
                yield Follow(self.release(target, lead.owner))
            raise
        counts.load_us.add(load_us)
        ttl_ms = self.ttl_ms(target, value)
        self.keep(target, lead.noted, value, payload, ttl_ms=min(ttl_ms, target.call.policy.local_ttl_ms), tags=tags)
        handle = yield Follow(self._fill(request, lead, payload, load_us=load_us, ttl_ms=ttl_ms, tags=tags))
        return Flown(value, payload, handle, lead.owner)

    @staticmethod
    def _result_tags(request: Request, value: Any) -> tuple[str, ...]:
        if request.result_tags is None:
            return ()
        target, given = request.target, tuple(request.result_tags(value))
        target.token_keys(given)  # each is a text
        if len({*target.tags, *given}) > MAX_TAGS:
            raise ConfigurationError(f"{target.call.label}: {len(given)} result tags; at most {MAX_TAGS} are possible")
        return target.know(given)

    def _fill(
        self, request: Request, lead: Lead, payload: bytes, *, load_us: int, ttl_ms: int, tags: tuple[str, ...]
    ) -> Steps[Stored]:
        target, fill = request.target, None
        try:
            fill = self.fill(request, lead, payload, load_us=load_us, ttl_ms=ttl_ms, tags=tags)
        finally:
            if fill is None and lead.owner:
                yield from self.release(target, lead.owner)
        if fill is None:
            return Stored.TOO_LARGE
        try:
            stored = yield Ask(fill, target.bulk)
        except UnavailableError:
            target.counts.errors += 1
            return Stored.UNAVAILABLE
        return self.count(target, fill, stored=stored)

    def fill(
        self, request: Request, lead: Lead, payload: bytes, *, load_us: int, ttl_ms: int, tags: tuple[str, ...] = ()
    ) -> Fill | None:
        """Return what stores a payload, or None for one over the size limit, which is counted and said."""
        target, ticket = request.target, lead.ticket
        call, limit = target.call, self._settings.max_value_bytes
        if len(payload) > limit:
            self._telemetry.too_large(target.counts, call.label, len(payload), limit)
            return None
        sealed = self._sealer.seal(payload, call.namespace, target.key)
        target.bulk = len(sealed) >= self._settings.bulk_bytes
        facts = Facts((*target.tags, *tags), process_name(), request.how, self._call_of(request))
        grace_ms = self._grace_ms(target)
        packed = pack_entry(
            ticket.lineage, ticket.tokens, facts, sealed, seen_us=lead.seen_us, load_us=load_us, grace_ms=grace_ms
        )
        results = Results(target.token_keys(tags), lead.logged, lead.logged_at)
        kept_ms = ttl_ms + grace_ms
        return Fill(target.keys, target.places, ticket.lineage, packed, kept_ms, self._token_ms, lead.owner, results)

    def _call_of(self, request: Request) -> str:
        """Return the text of the call whose result is stored, for whoever is to make it again with the entry alone.

        Arguments are as secret as the result: where that is encrypted, they are.
        """
        target = request.target
        if target.told is None:  # once for a target, which a function remembers by its arguments
            target.told = self._text_of(request)
        return self._sealer.seal_call(target.told, target.call.namespace, target.key) if target.told else ""

    def _text_of(self, request: Request) -> str:
        if request.call is None:
            return ""
        function, args, kwargs = request.call
        try:
            return call_text(function, args, kwargs) or ""
        except Exception as error:  # noqa: BLE001 of the service's own classes; the fill has nothing to do with it
            self._telemetry.call_not_kept(function.identity, error)
            return ""

    def count(self, target: Target, fill: Fill, *, stored: bool) -> Stored:
        """Count a fill that was answered, and say what it came to."""
        if stored:
            target.counts.fills += 1
            size = len(fill.packed.rest)  # not in the line that counts: see `Counts`
            target.counts.bytes_filled += size
        else:
            target.counts.refused_fills += 1
        return Stored.STORED if stored else Stored.REFUSED

    def put(self, requests: Sequence[Request], values: Sequence[Any]) -> Steps[None]:
        """Store values under new lineages. Raises EncodeError, and UnavailableError when Redis does not take them."""
        settings = self._settings
        payloads = [self._sealed(request, value) for request, value in zip(requests, values, strict=True)]
        targets = [request.target for request in requests]
        found: list[Looked] = yield Ask(Batch(tuple(Look(target.keys) for target in targets)))
        tickets = [judge(t.key, looked.entry, looked.tokens).ticket for t, looked in zip(targets, found, strict=True)]
        without = [index for index, ticket in enumerate(tickets) if ticket is None]
        if without:
            made: list[Opened] = yield Ask(Batch(tuple(self.opening(targets[index]) for index in without)))
            for index, opened in zip(without, made, strict=True):
                tickets[index] = judge(targets[index].key, opened.head, opened.tokens).ticket
        puts: list[Put] = []
        for target, ticket, payload, value in zip(targets, tickets, payloads, values, strict=True):
            if ticket is None:
                raise UnavailableError("Redis drops tokens as soon as they are made: it is out of memory")
            packed = pack_entry(unique(), ticket.tokens, Facts(target.tags, process_name(), "set"), payload)
            puts.append(Put(target.keys, packed, self.ttl_ms(target, value), self._token_ms))
        yield Ask(Batch(tuple(puts)), any(len(payload) >= settings.bulk_bytes for payload in payloads))

    def _sealed(self, request: Request, value: Any) -> bytes:
        payload: bytes = request.codec.encode(value)
        limit, target = self._settings.max_value_bytes, request.target
        if len(payload) > limit:
            raise EncodeError(f"{target.key}: the value has {len(payload)} bytes encoded; at most {limit} are kept")
        return self._sealer.seal(payload, target.call.namespace, target.key)

    def overtake(self, target: Target) -> None:
        """Have loads that are under way refused by the local tier: a refresh begins now, and they must not undo it."""
        if self._tier is not None and target.call.policy.local_ttl_ms:
            self._tier.applied((), (target.key,))

    def keep(
        self,
        target: Target,
        noted: int | None,
        value: Any,
        payload: bytes,
        *,
        ttl_ms: float,
        tags: Iterable[str] = (),
    ) -> None:
        """Put a value into the local tier, if the function has one and the tail was alive when it was noted."""
        if self._tier is None or noted is None or ttl_ms <= 0:
            return
        names = (*target.names, *map(tag_token, tags))
        share = target.call.policy.local_shared
        target.slot = self._tier.put(target.key, names, noted, value, payload, ttl=ttl_ms / 1000, share=share)

    def opening(self, target: Target, *, renew: bool = False, leased: bool = False, log: bool = False) -> Open:
        """Return what makes a load of this target possible; `leased`: and asks for the right to be alone with it."""
        settings = self._settings
        lease = Lease(unique(), self.lease_ms) if leased else None
        vacancy_ms = round(settings.vacancy_ttl * 1000)
        return Open(
            target.keys, target.places, pack_vacancy(), vacancy_ms, self._token_ms, renew=renew, lease=lease, log=log
        )

    def ttl_ms(self, target: Target, value: Any) -> int:
        """Return how long a value lives, without its grace."""
        policy, settings = target.call.policy, self._settings
        words = {"short": settings.ttl_short, "default": settings.default_ttl, "long": settings.ttl_long}
        by_namespace = settings.ttls.get(target.call.namespace, settings.default_ttl)
        default = by_namespace if policy.ttl_word is None else words[policy.ttl_word]
        ttl_ms = lifetime_ms(policy, round(default * 1000), negative=value is None, random=self._chance())
        return ttl_ms if self._longest_ms is None else min(ttl_ms, self._longest_ms)

    def _grace_ms(self, target: Target) -> int:
        grace_ms = target.call.policy.grace_ms
        return grace_ms if self._longest_ms is None else min(grace_ms, self._longest_ms)

    def release(self, target: Target, owner: bytes) -> Steps[None]:
        """Give up a lease."""
        try:
            yield Ask(Release(target.key, target.places, owner))
        except UnavailableError:
            target.counts.errors += 1  # the lease ends by itself
