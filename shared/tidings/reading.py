"""The life of a read, sans I/O: look, judge, then serve, or load and fill. One core, driven by coroutines and threads.

    look ── fresh ──────────────────────────────────────────────> serve, perhaps refresh early behind it
      │
      ├─ stale, and the policy permits it ──────────────────────> serve, refresh behind it
      │
      └─ else: join the load in flight for this ticket, or open
            ├─ another process has the lease ── wait ── look again
            └─ load ── fill, which ends the lease ──────────────> serve

`Reading` decides and yields `steps`; a driver (`reader`, `sync_reader`) carries them out.
"""

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import partial
from random import random
from typing import Any, cast

from .codec import Codec
from .entries import Look, Looked, Opened
from .errors import DecodeError, EncodeError, UnavailableError
from .fence import Ticket, Verdict, hit, judge, uniques
from .filling import Filling, Flown, Lead, Stored
from .layout import LINEAGE_START, UNIQUE_LENGTH, VACANT, born_of, facts_of, header_tokens, unique
from .policy import refresh_early
from .sealing import SEALED, Sealer
from .seen import NOTHING, AwayError, Found, Seen
from .settings import Settings
from .steps import Admit, Ask, Behind, Fly, Follow, Invoke, LoadTimeoutError, Outcome, Steps, Wait
from .targets import Request, Target
from .telemetry import AGE_SAMPLE, log

#: A load that took less than this last time is not worth the round trip of asking who else loads.
LEASE_WORTH_US = 2000

#: How often a reader waits for another process's load before it loads on its own.
MOST_WAITS = 3


class Reading:
    """Decisions of one driver; `flights` says which loads it has under way, `note` where the local tier is."""

    def __init__(
        self,
        settings: Settings,
        filling: Filling,
        *,
        sealer: Sealer,
        note: Callable[[], int | None],
        flights: Container[Any],
        clock: Callable[[], float],
        chance: Callable[[], float] = random,
    ) -> None:
        self.filling = filling
        self._sealer = sealer
        self._note = note
        self._flights = flights
        self._clock = clock
        self._chance = chance
        self._bulk_bytes = settings.bulk_bytes
        self._until_sample = AGE_SAMPLE

    def hit(self, wanted: Target, codec: Codec[Any], values: Sequence[bytes | None]) -> Any:
        """Return the value of a plain target whose entry and tokens were read, or a Looked, for `read` to go on with.

        The shortest way to a hit there is: everything that is not one is left to `read`.
        """
        entry, tokens = values[0], values[1:]
        known = wanted.tokens  # as a whole: another thread may bring older ones meanwhile
        if tokens != known[0]:
            known = wanted.tokens = (tokens, uniques(tokens))
        if start := hit(entry, known[1]):
            entry = cast("bytes", entry)
            try:
                value = codec.decode(entry, start)
            except DecodeError:  # or sealed: `read` unseals
                return Looked(entry, list(tokens))
            counts = wanted.counts
            counts.hits += 1
            size = len(entry) - start  # not in the line that counts: see `Counts`
            counts.bytes_read += size
            self._until_sample -= 1
            if self._until_sample <= 0:
                self.sample_age(wanted, entry)
            return value
        return Looked(entry, list(tokens))

    def read(self, request: Request, looked: Looked | None = None, noted: int | None = None) -> Steps[Any]:
        """Return a value that no acknowledged invalidation has made wrong, unless the policy permits a stale one.

        `looked` is what has been read already, under `noted`. Raises what the load raises, and AwayError.
        """
        found = yield from self._find(request, looked, noted)
        if isinstance(found, Found):
            return found.value
        return (yield from self._load(request, *found))

    def ensure(self, request: Request, *, renew: bool = False) -> Steps[Stored]:
        """Load and fill unless the entry is fresh, joining a load in flight as `read` does, and say what came of it.

        With `renew`, load now and join nothing, as `refresh` does. Raises what the load raises, and AwayError.
        """
        if renew:
            flown = yield from self._renew(request)
        else:
            found = yield from self._find(request, None, None, stale=False)
            if isinstance(found, Found):
                return Stored.FRESH
            _, lead = found
            flown, _ = yield Fly(lead.identity, partial(self.filling.load_and_fill, request, lead))
        stored: Stored = yield Outcome(flown.fill)
        return stored

    def refresh(self, request: Request) -> Steps[Any]:
        """Load now and fill, whatever is cached.

        It starts a new lineage, so that an older load that is still under way cannot undo it. Raises what the load
        raises, and AwayError.
        """
        return (yield from self._renew(request)).value

    def peek(self, request: Request, default: Any) -> Steps[Any]:
        """Return the entry's value, or `default` where there is none. Its own facts name its tags. Raises AwayError."""
        wanted = request.target
        looked: Looked = yield from _ask(wanted, Ask(Look(wanted.keys)))
        facts = facts_of(looked.entry)
        if facts is not None and facts.tags:
            wanted.know(facts.tags)
            looked = yield from _ask(wanted, Ask(wanted.look))
        seen = self.judge(request, looked)
        self.count(request, seen)
        return seen.value if seen.fresh else default

    def is_fresh(self, request: Request) -> Steps[bool]:
        """Say whether a read would be served from the cache now. Raises AwayError."""
        return (yield from self._see(request, None, None)).fresh

    def count(self, request: Request, seen: Seen) -> None:
        """Count what a look has found."""
        counts, sighting = request.target.counts, seen.sighting
        if seen.fresh:
            counts.hits += 1
            size = len(sighting.payload or b"")  # not in the line that counts: see `Counts`
            counts.bytes_read += size
            self._until_sample -= 1
            if self._until_sample <= 0:
                self.sample_age(request.target, seen.looked.entry or b"")
        elif sighting.verdict is Verdict.INVALIDATED:
            counts.invalidated += 1
        else:
            counts.misses += 1

    def sample_age(self, wanted: Target, entry: bytes) -> None:
        """Note the age of a hit; of how many, `_until_sample` counts."""
        self._until_sample = AGE_SAMPLE
        if (born := born_of(entry)) is not None:
            wanted.counts.age_s.add(round(time.time() - born.filled_us / 1e6))

    def note(self, wanted: Target) -> int | None:
        """Note the position of the local tier, before anything is read or loaded."""
        return self._note() if wanted.call.policy.local_ttl_ms else None

    def decoded(self, request: Request, stored: bytes) -> tuple[Any, bytes]:
        """Return the value and the codec's bytes of what is stored, or (NOTHING, b"") for what does not decode."""
        wanted = request.target
        try:
            if stored[:1] in SEALED or self._sealer.encrypts(wanted.call.namespace):
                stored = self._sealer.unseal(stored, wanted.call.namespace, wanted.key)
            return request.codec.decode(stored), stored
        except DecodeError:
            wanted.counts.undecodable += 1
            return NOTHING, b""

    # Finding a value, or the right to load it

    def _find(
        self, request: Request, looked: Looked | None, noted: int | None, *, stale: bool = True
    ) -> Steps[Found | tuple[Seen, Lead]]:
        """Look until there is something to serve or to load under; another process's load is waited for.

        After MOST_WAITS waits it is loaded here all the same, so that no reader waits for ever.
        """
        waits = 0
        while True:
            seen = yield from self._see(request, looked, noted)
            if waits == 0:
                self.count(request, seen)
            if seen.fresh:
                yield from self._refresh_early(request, seen)
                return Found(seen.value)
            if stale and seen.permitted(request.target.call.policy):
                yield self._behind(request, seen)
                request.target.counts.stale += 1
                return Found(seen.value)
            lead = yield from self._lead(request, seen, waits=waits)
            if lead is not None:
                return seen, lead
            looked, waits = None, waits + 1

    def _see(self, request: Request, looked: Looked | None, noted: int | None) -> Steps[Seen]:
        wanted, look = request.target, request.target.look  # another reader may learn other tags meanwhile
        if looked is None:
            noted = self.note(wanted)
            looked = yield from _ask(wanted, Ask(look, wanted.bulk))
        if request.result_tags is not None:
            looked = yield from self._with_result_tags(wanted, look, looked)
        seen = self.judge(request, looked, noted)
        if seen.fresh and noted is not None:
            self._keep(wanted, seen, noted)
        return seen

    def _keep(self, wanted: Target, seen: Seen, noted: int) -> None:
        """Put what was found in Redis into the local tier, for as long as Redis keeps it at most.

        Under the tags that the entry itself names: what the target knows may be of another thread's load.
        """
        looked, born, facts = seen.looked, seen.sighting.born, facts_of(seen.looked.entry)
        if looked.left_ms is not None and born is not None and facts is not None:
            left_ms = min(looked.left_ms - born.grace_ms, wanted.call.policy.local_ttl_ms)
            own = facts.tags[len(wanted.tags) :]
            self.filling.keep(wanted, noted, seen.value, seen.payload, ttl_ms=left_ms, tags=own)

    def judge(self, request: Request, looked: Looked, noted: int | None = None) -> Seen:
        """Decide what a look means; see `fence.judge`. Never raises: what does not decode is no value."""
        wanted = request.target
        sighting = judge(wanted.key, looked.entry, looked.tokens, looked.left_ms)
        if len(looked.tokens) != len(wanted.names):
            # A fill learns the tokens of result tags when it comes: a load goes by the others alone.
            own = judge(wanted.key, looked.entry, looked.tokens[: len(wanted.names)])
            sighting = replace(sighting, ticket=own.ticket, missing=own.missing)
        policy = wanted.call.policy
        useful = sighting.verdict is Verdict.FRESH or policy.max_staleness_ms or policy.grace_ms
        value, payload = NOTHING, b""
        if sighting.payload is not None and useful:
            value, payload = self.decoded(request, sighting.payload)
            wanted.bulk = len(sighting.payload) >= self._bulk_bytes
        return Seen(sighting, looked, noted, value, payload, self._clock())

    def _with_result_tags(self, wanted: Target, look: Look, looked: Looked) -> Steps[Looked]:
        """Look again when the entry has other tags than it had last time; a third time is left to chance: a miss."""
        for _ in range(2):
            current = tuple((token or b"")[:UNIQUE_LENGTH] for token in looked.tokens)
            if looked.entry is None or header_tokens(looked.entry) == current:
                break
            facts = facts_of(looked.entry)
            wanted.know(() if facts is None else facts.tags)
            if wanted.look is look:
                break
            look = wanted.look
            looked = yield from _ask(wanted, Ask(look, wanted.bulk))
        return looked

    def _lead(self, request: Request, seen: Seen, *, waits: int) -> Steps[Lead | None]:
        """Return what to load under, or None after a wait for somebody else's load: then look again."""
        wanted, ticket, now_us = request.target, seen.sighting.ticket, seen.looked.now_us
        if ticket is not None and request.result_tags is None:
            born = seen.sighting.born
            quick = born is not None and born.load_us < LEASE_WORTH_US
            if quick or ticket in self._flights:
                return Lead(ticket, seen_us=now_us, noted=seen.noted)
            if ("wait", ticket) in self._flights and waits < MOST_WAITS:
                yield from self._wait(ticket, None)
                return None
        owner, opened, lead = yield from self._open(request, noted=seen.noted)
        if lead.identity in self._flights:
            return lead
        last = waits >= MOST_WAITS
        if seen.sighting.born is None and opened.head[:LINEAGE_START] != VACANT and not last:
            if opened.leads:  # filled since it was looked for; everybody who shares the opening is here
                yield Fly(("release", owner), partial(self.filling.release, wanted, owner))
            return None
        if last or (opened.leads and not (yield from self._replaced(wanted, seen.looked.entry, owner))):
            return lead
        if not opened.leads:
            wait = Wait(wanted.key, wanted.places.wakes, opened.position, opened.left_ms)
            yield from self._wait(lead.ticket, wait)
        return None

    def _replaced(self, wanted: Target, entry: bytes | None, owner: bytes) -> Steps[bool]:
        """Say whether the entry has been filled since it was looked at; then the lease is given up.

        Under load there are always reads on their way when a load ends, and their answer is the old value. A fill ends
        the lease of its load, so whoever has the lease and finds what was there before knows that nobody was faster.
        """
        if entry is None or entry[:LINEAGE_START] == VACANT:
            return False
        now: Looked = yield from _ask(wanted, Ask(Look((wanted.key,)), wanted.bulk))
        if now.entry == entry:
            return False
        yield Fly(("release", owner), partial(self.filling.release, wanted, owner))
        return True

    def _wait(self, ticket: Ticket, wait: Wait | None) -> Steps[None]:
        """Wait for a load elsewhere, together with all who wait here for the same; without `wait` only with those.

        Whoever joins has just seen the ticket under which the lease was refused, and looks again afterwards. Raises
        AwayError when there is no point in looking again.
        """
        goes_on, _ = yield Fly(("wait", ticket), partial(_waited, wait))
        if not goes_on:
            raise AwayError

    def _open(self, request: Request, *, renew: bool = False, noted: int | None) -> Steps[tuple[bytes, Opened, Lead]]:
        """Make a load possible. Raises AwayError also when Redis evicts tokens faster than they are read."""
        wanted = request.target
        results = request.result_tags is not None
        opening = self.filling.opening(wanted, renew=renew, leased=True, log=results)
        owner, opened = yield from _ask(wanted, Admit(opening))
        ticket = judge(wanted.key, opened.head, opened.tokens).ticket
        if ticket is None:
            wanted.counts.errors += 1
            raise AwayError
        lead = Lead(ticket, owner if opened.leads else b"", opened.now_us, noted=noted)
        if results:
            lead = replace(lead, logged=opened.logged, logged_at=opened.logged_at)
        return owner, opened, lead

    # Loading

    def _load(self, request: Request, seen: Seen, lead: Lead) -> Steps[Any]:
        """Join or start the load; where it fails or is late, serve what the policy permits in its place."""
        policy = request.target.call.policy
        timeout = policy.timeout if seen.covers(policy, 0) else None
        try:
            flown, first = yield self._fly(request, lead, timeout)
        except EncodeError:
            raise
        except Exception as error:
            if lead.owner:  # ours if we have joined another's load; the load itself has given up its own
                yield Follow(self.filling.release(request.target, lead.owner))
            if seen.covers(policy, (self._clock() - seen.at) * 1000):
                return self._covered(request, seen, error)
            if not isinstance(error, LoadTimeoutError):
                raise
            flown, first = yield self._fly(request, lead, None)
        if first:
            return flown.value
        if lead.owner and lead.owner != flown.owner:
            yield Follow(self.filling.release(request.target, lead.owner))
        # Each caller gets an object of its own, as from Redis: one that changes it must not change it for the others.
        try:
            return request.codec.decode(flown.payload)
        except DecodeError:  # whoever started the load keeps another type under this key
            return (yield Invoke(request.load))

    def _fly(self, request: Request, lead: Lead, timeout: float | None) -> Fly:
        return Fly(lead.identity, partial(self.filling.load_and_fill, request, lead), timeout)

    def _covered(self, request: Request, seen: Seen, error: Exception) -> Any:
        wanted = request.target
        wanted.counts.stale += 1
        log.warning("stale_served_on_error", function=wanted.call.label, key=wanted.key, error=type(error).__name__)
        return seen.value

    def _renew(self, request: Request) -> Steps[Flown]:
        noted = self.note(request.target)
        _, _, lead = yield from self._open(request, renew=True, noted=noted)
        flown: Flown
        flown, _ = yield Fly((lead.ticket, unique()), partial(self.filling.load_and_fill, request, lead))
        return flown

    # Refreshing behind a value that is served

    def _refresh_early(self, request: Request, seen: Seen) -> Steps[None]:
        policy, born, left_ms = request.target.call.policy, seen.sighting.born, seen.looked.left_ms
        if policy.early and born is not None and left_ms is not None:
            fresh_ms = left_ms - born.grace_ms
            if refresh_early(policy.early, born.load_us / 1000, fresh_ms, 1 - self._chance()):
                yield self._behind(request, seen)

    def _behind(self, request: Request, seen: Seen) -> Behind:
        return Behind(request.target.key, partial(self._refresh_behind, request, seen.looked.entry))

    def _refresh_behind(self, request: Request, entry: bytes | None) -> Steps[None]:
        """Load and fill, unless another process does or has done it. What goes wrong is said: nobody waits to hear it.

        `entry` is what was looked at.
        """
        wanted = request.target
        try:
            owner, opened, lead = yield from self._open(request, noted=self.note(wanted))
            if opened.leads and not (yield from self._replaced(wanted, entry, owner)):
                wanted.counts.refreshes += 1
                yield self._fly(request, lead, None)
        except AwayError:
            return
        except Exception as error:  # noqa: BLE001 whatever the load raises; the value that was served stays
            log.error("refresh_failed", function=wanted.call.label, key=wanted.key, exc_info=error)


def _waited(wait: Wait | None) -> Steps[bool]:
    """Wait; without `wait` it is over by now. Gives whether Redis is there to be asked again."""
    return True if wait is None else (yield wait)


def _ask(wanted: Target, step: Ask | Admit) -> Steps[Any]:
    try:
        return (yield step)
    except UnavailableError as error:
        wanted.counts.errors += 1
        raise AwayError from error
