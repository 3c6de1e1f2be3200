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
from .looking import Looking, ask
from .policy import refresh_early
from .sealing import Sealer
from .seen import AwayError, Found, Seen
from .settings import Settings
from .steps import Ask, Behind, Fly, Follow, Invoke, LoadTimeoutError, Outcome, Steps, Wait
from .targets import Request, Target
from .telemetry import log

#: A load that took less than this last time is not worth the round trip of asking who else loads.
LEASE_WORTH_US = 2000

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

    def read(self, request: Request, looked: Looked | None = None, noted: int | None = None) -> Steps[Found]:
        """Return a value that no acknowledged invalidation has made wrong, unless the policy permits a stale one.

        `looked` is what has been read already, under `noted`. Raises what the load raises, and AwayError.
        """
        found = yield from self._find(request, looked, noted)
        return found if isinstance(found, Found) else (yield from self._load(request, *found))

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

    # Finding a value, or the right to load it

    def _find(
        self, request: Request, looked: Looked | None, noted: int | None, *, stale: bool = True
    ) -> Steps[Found | tuple[Seen, Lead]]:
        """Look until there is something to serve or to load under; another process's load is waited for.

        After MOST_WAITS waits it is loaded here all the same, so that no reader waits for ever.
        """
        waits = 0
        while True:
            seen = yield from self.see(request, looked, noted)
            if waits == 0:
                self.count(request, seen)
            if seen.fresh:
                yield from self._refresh_early(request, seen)
                return Found(seen.value, seen.payload)
            if stale and seen.permitted(request.target.call.policy):
                yield self._behind(request, seen)
                request.target.counts.stale += 1
                return Found(seen.value, seen.payload)
            lead = yield from self._lead(request, seen, waits=waits)
            if lead is not None:
                return seen, lead
            looked, waits = None, waits + 1

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
            if opened.leads:  # filled since it was looked for
                yield Follow(self.filling.release(wanted, owner))
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
        now: Looked = yield from ask(wanted, Ask(Look((wanted.key,)), wanted.bulk))
        if now.entry == entry:
            return False
        yield Follow(self.filling.release(wanted, owner))
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
        opened: Opened = yield from ask(wanted, Ask(opening))
        ticket = judge(wanted.key, opened.head, opened.tokens).ticket
        if ticket is None:
            wanted.counts.errors += 1
            raise AwayError
        owner = b"" if opening.lease is None else opening.lease.owner
        lead = Lead(ticket, owner if opened.leads else b"", opened.now_us, noted=noted)
        if results:
            lead = replace(lead, logged=opened.logged, logged_at=opened.logged_at)
        return owner, opened, lead

    # Loading

    def _load(self, request: Request, seen: Seen, lead: Lead) -> Steps[Found]:
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
        if lead.owner and lead.owner != flown.owner:
            yield Follow(self.filling.release(request.target, lead.owner))
        if first:
            return Found(flown.value, flown.payload)
        try:
            return Found(request.codec.decode(flown.payload), flown.payload)
        except DecodeError:  # whoever started the load keeps another type under this key
            value = yield Invoke(request.load)
            return Found(value, request.codec.encode(value))

    def _fly(self, request: Request, lead: Lead, timeout: float | None) -> Fly:
        return Fly(lead.identity, partial(self.filling.load_and_fill, request, lead), timeout)

    def _covered(self, request: Request, seen: Seen, error: Exception) -> Found:
        wanted = request.target
        wanted.counts.stale += 1
        log.warning("stale_served_on_error", function=wanted.call.label, key=wanted.key, error=type(error).__name__)
        return Found(seen.value, seen.payload)

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
