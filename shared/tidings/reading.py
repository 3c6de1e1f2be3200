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
from collections.abc import Callable, Container
from dataclasses import replace
from functools import partial
from random import random
from typing import Any

from .entries import Look, Looked, Opened
from .errors import DecodeError, EncodeError
from .fence import Ticket, judge
from .filling import Filling, Flown, Lead, Stored
from .layout import LINEAGE_START, VACANT, unique
from .looking import Looking, ask, is_quick
from .policy import refresh_early
from .sealing import Sealer
from .seen import AwayError, Found, Seen
from .settings import Settings
from .steps import Ask, Behind, Fly, Follow, Invoke, LoadTimeoutError, Outcome, Steps, Wait
from .targets import Request, Target
from .telemetry import log

#: How often a reader waits for another process's load before it loads on its own.
MOST_WAITS = 3


class Reading(Looking):
    """Decisions of one driver; `flights` says which loads it has under way, `chance` gives numbers from 0 to 1."""

    def __init__(
        self,
        settings: Settings,
        filling: Filling,
        *,
        sealer: Sealer,
        note: Callable[[], int | None],
        flights: Container[Any],
        chance: Callable[[], float] = random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings, filling, sealer=sealer, note=note, clock=clock)
        self._flights = flights
        self._chance = chance

    def read(
        self, request: Request, looked: Looked | None = None, noted: int | None = None, *, stale: bool = True
    ) -> Steps[Found]:
        """Return a value that no acknowledged invalidation has made wrong, unless the policy permits a stale one.

        `looked` is what has been read already, under `noted`; with `stale` false the policy permits none. Raises what
        the load raises, and AwayError.
        """
        found = yield from self._find(request, looked, noted, stale=stale)
        return found if isinstance(found, Found) else (yield from self._load(request, *found, stale=stale))

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
            flown, _ = yield from self._fly(request, found[1])
        stored: Stored = yield Outcome(flown.fill)
        return stored

    def refresh(self, request: Request) -> Steps[Any]:
        """Load now and fill, whatever is cached.

        It starts a new lineage, so that an older load that is still under way cannot undo it. Raises what the load
        raises, and AwayError.
        """
        return (yield from self._renew(request)).value

    # Finding a value, or the right to load it

    def _find(
        self, request: Request, looked: Looked | None, noted: int | None, *, stale: bool = True
    ) -> Steps[Found | tuple[Seen, Lead, str]]:
        """Look until there is something to serve or to load under; another process's load is waited for.

        After MOST_WAITS waits it is loaded here all the same, so that no reader waits for ever.
        """
        waits, counted = 0, ""
        while True:
            seen = yield from self.see(request, looked, noted)
            counted = counted or self.count(request, seen)
            if seen.fresh:
                yield from self._refresh_early(request, seen)
                return Found(seen.value, seen.payload, counted)
            if stale and seen.permitted(request.target.call.policy):
                yield self._behind(request, seen)
                request.target.counts.stale += 1
                return Found(seen.value, seen.payload, counted)
            try:
                lead = yield from self._lead(request, seen, waits=waits)
            except AwayError:
                if stale and seen.covers(request.target.call.policy, 0):
                    return (yield from self._load_covered(request, seen, counted))
                raise
            if lead is not None:
                return seen, lead, counted
            looked, waits = None, waits + 1

    def _lead(self, request: Request, seen: Seen, *, waits: int) -> Steps[Lead | None]:
        """Return what to load under, or None after a wait for somebody else's load: then look again."""
        wanted, ticket, now_us = request.target, seen.sighting.ticket, seen.looked.now_us
        if ticket is not None and request.result_tags is None:
            if is_quick(seen.sighting.born) or ticket in self._flights:
                return Lead(ticket, seen_us=now_us, noted=seen.noted)
            if ("wait", ticket) in self._flights and waits < MOST_WAITS:
                yield from self._wait(ticket, None)
                return None
        opened, lead = yield from self._open(request, noted=seen.noted)
        if lead.identity in self._flights:
            return lead
        last = waits >= MOST_WAITS
        if seen.sighting.born is None and opened.head[:LINEAGE_START] != VACANT and not last:
            yield from self._give_back(wanted, lead)  # filled since it was looked for
            return None
        if last or (opened.leads and not (yield from self._replaced(wanted, seen.looked.entry, lead))):
            return lead
        if not opened.leads:
            left_ms = min(opened.left_ms, self.filling.lease_ms)  # another's may be longer, or hostile
            yield from self._wait(lead.ticket, Wait(wanted.key, wanted.places.wakes, opened.position, left_ms))
        return None

    def _replaced(self, wanted: Target, entry: bytes | None, lead: Lead) -> Steps[bool]:
        """Say whether the entry has been filled since it was looked at; then the lease is given back.

        Under load there are always reads on their way when a load ends, and their answer is the old value. A fill ends
        the lease of its load, so whoever has the lease and finds what was there before knows that nobody was faster.
        """
        if entry is None or entry[:LINEAGE_START] == VACANT:
            return False
        try:
            now: Looked = yield from ask(wanted, Ask(Look((wanted.key,)), wanted.bulk))
        except GeneratorExit:
            raise
        except BaseException:  # the caller has gone
            yield from self._give_back(wanted, lead)
            raise
        if now.entry == entry:
            return False
        yield from self._give_back(wanted, lead)
        return True

    def _give_back(self, wanted: Target, lead: Lead) -> Steps[None]:
        """End a lease under which nothing will be loaded, if there is one."""
        if lead.owner:
            yield Follow(self.filling.release(wanted, lead.owner))

    def _wait(self, ticket: Ticket, wait: Wait | None) -> Steps[None]:
        """Wait for a load elsewhere, together with all who wait here for the same; without `wait` only with those.

        Whoever joins has just seen the ticket under which the lease was refused, and looks again afterwards. Raises
        AwayError when there is no point in looking again.
        """
        goes_on, _ = yield Fly(("wait", ticket), partial(_waited, wait))
        if not goes_on:
            raise AwayError

    def _open(self, request: Request, *, renew: bool = False, noted: int | None) -> Steps[tuple[Opened, Lead]]:
        """Make a load possible. Raises AwayError also when Redis evicts tokens faster than they are read."""
        wanted = request.target
        results = request.result_tags is not None
        opening = self.filling.opening(wanted, renew=renew, leased=True, log=results)
        owner = b"" if opening.lease is None else opening.lease.owner
        try:
            opened: Opened = yield from ask(wanted, Ask(opening))
        except (AwayError, GeneratorExit):
            raise
        except BaseException:  # the caller has gone, and the question is on its way
            yield Follow(self.filling.release(wanted, owner))
            raise
        ticket = judge(wanted.key, opened.head, opened.tokens).ticket
        if ticket is None:
            wanted.counts.errors += 1
            raise AwayError
        lead = Lead(ticket, owner if opened.leads else b"", opened.now_us, noted=noted)
        if results:
            lead = replace(lead, logged=opened.logged, logged_at=opened.logged_at)
        return opened, lead

    # Loading

    def _load(self, request: Request, seen: Seen, lead: Lead, counted: str, *, stale: bool) -> Steps[Found]:
        """Join or start the load; where it fails or is late, serve what the policy permits in its place."""
        policy = request.target.call.policy
        timeout = policy.timeout if stale and seen.covers(policy, 0) else None
        try:
            flown, first = yield from self._fly(request, lead, timeout)
        except EncodeError:
            raise
        except Exception as error:
            if stale and self._covers(request, seen):
                return self._covered(request, seen, counted, error)
            if not isinstance(error, LoadTimeoutError):
                raise
            flown, first = yield from self._fly(request, lead)
        if first:
            return Found(flown.value, flown.payload, counted)
        try:
            return Found(request.codec.decode(flown.payload), flown.payload, counted)
        except DecodeError:  # whoever started the load keeps another type under this key
            value = yield Invoke(request.load)
            return Found(value, request.codec.encode(value), counted)

    def _load_covered(self, request: Request, seen: Seen, counted: str) -> Steps[Found]:
        """Load without Redis, which has gone away since it was looked at, with what was seen for the worst case."""
        request.target.counts.direct += 1
        try:
            value = yield Invoke(request.load)
        except Exception as error:
            if self._covers(request, seen):
                return self._covered(request, seen, counted, error)
            raise
        return Found(value, request.codec.encode(value), counted)

    def _fly(self, request: Request, lead: Lead, timeout: float | None = None) -> Steps[tuple[Flown, bool]]:
        """Join the load in flight or start it; a lease that the load does not run under is given back."""
        if lead.identity in self._flights:
            yield from self._give_back(request.target, lead)
            lead = replace(lead, owner=b"")
        flown: Flown
        flown, first = yield Fly(lead.identity, partial(self.filling.load_and_fill, request, lead), timeout)
        if lead.owner != flown.owner:  # another thread was faster
            yield from self._give_back(request.target, lead)
        return flown, first

    def _covers(self, request: Request, seen: Seen) -> bool:
        return seen.covers(request.target.call.policy, (self.clock() - seen.at) * 1000)

    def _covered(self, request: Request, seen: Seen, counted: str, error: Exception) -> Found:
        wanted = request.target
        wanted.counts.stale += 1
        log.warning("stale_served_on_error", function=wanted.call.label, key=wanted.key, error=type(error).__name__)
        return Found(seen.value, seen.payload, counted)

    def _renew(self, request: Request) -> Steps[Flown]:
        self.filling.overtake(request.target)
        noted = self.note(request.target)
        _, lead = yield from self._open(request, renew=True, noted=noted)
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
            opened, lead = yield from self._open(request, noted=self.note(wanted))
            if opened.leads and not (yield from self._replaced(wanted, entry, lead)):
                wanted.counts.refreshes += 1
                yield from self._fly(request, lead)
        except AwayError:
            return
        except Exception as error:  # noqa: BLE001 whatever the load raises; the value that was served stays
            log.error("refresh_failed", function=wanted.call.label, key=wanted.key, exc_info=error)


def _waited(wait: Wait | None) -> Steps[bool]:
    """Wait; without `wait` it is over by now. Gives whether Redis is there to be asked again."""
    return True if wait is None else (yield wait)
