"""One entry, checked: loaded again and compared; if it differs, looked at again before it is called stale.

A load that differs from the entry proves nothing while others write. A cache that does everything right shows this:

    1. auditor   looks: the entry is valid, its value is A
    2. writer    commits B
    3. auditor   loads: B
    4. writer    publishes the event
    5. worker    applies it: the entry's token is changed

Between 2 and 5 the entry is behind, as every cache is that is told of changes; no reader was promised otherwise. So,
for each entry E that differs:

    1. look      E is valid, its value is A: what readers are served; a stale one that a policy permits is not meant
    2. load      gives B, another value; so somebody has committed after E's own load, and before 2 ended
    3. grace     wait: whoever has committed before 2 ended publishes meanwhile
    4. note      the last event of each stream
    5. settle    wait until the group has acknowledged all events up to these; a worker invalidates before it does that
    6. look      if E is another (its bytes are: another lineage, other tokens, a later fill) or not valid: `moved`
                 where one of its tokens has changed since 1, else `replaced`
    7. load      gives B again, so this is what the source says, and not something in between
    8. look      as 6
    9.           E is `stale`

**Why there is no false alarm.** Take the commit of step 2. Its event was published before 4, within `grace`; so it was
applied before 6, and if a rule invalidates E because of it, E was not valid in 6, for a token never has an old value
again and a lineage does not either. A writer that invalidates directly has done so before 6, too. A load that was
overtaken by the invalidation, and filled afterwards, is not valid either (see `tidings.fence`), and one that began
after it has other bytes. So E as it stands in 6 was not invalidated since its own load, although what it is made from
has changed since: nobody will tell it, and it is served until its ttl ends.

**What could still raise one**, since the auditor cannot tell it from the above:

- a writer that takes longer than `grace` from its commit to publishing: raise it above what an outbox takes
- a result that depends on what no event tells of: the time, chance, the machine, another code version, settings or a
  database that are others here than where readers run; a load that reads from a replica that is behind by more than
  `grace`
- a list in no particular order, that is in another one at each load: the order of a list counts

A result that is another at each load is no alarm: when the loads of 2 and 7 differ, steps 3 to 7 are done once more,
and the last two loads have to agree; else it is `unstable`. So is one that is A again in 7 (A, B, A): its source went
there and back with nothing said, or the function is not one of its arguments alone. If events from before are not
applied in time (5), the entry is `unsettled`, and no alarm: `groups` knows more. A dead letter is acknowledged, so what
it would have invalidated is `stale`, as it is for readers: `dlq` knows more. What is written so often, and never told
of, that no two loads `grace` seconds apart agree, is `unstable`, and missed.

**What is left open**, and counted as neither: an entry that expires, or is filled anew under the same tokens, before 9
is `replaced`. It may have been wrong with nobody told, or it was invalidated alone, which changes no token.

A load reads through no cache: cached functions that it calls load as well, and keep nothing, if they are of the same
`Cache`. That an entry differs from the one in a process's local tier does not matter: it is what the local tier is held
to, and Redis is looked at.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidings import Cache
from tidings.after import Rule
from tidings.errors import UnavailableError
from tidings.keys import tag_token
from tidings.sealing import Sealer
from tidings.seen import AwayError, Seen

from tidings_worker.exchange import Store

from .finding import Differing, finding_of
from .pace import Pace
from .plan import Plan
from .reports import Cost, Finding
from .settling import Settling
from .subjects import Subject
from .verdicts import Outcome, Value, verdict

#: Loads at the same time.
_LOADS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of an entry: a reason where it failed, a finding where there is something to tell."""

    outcome: Outcome
    reason: str = ""
    finding: Finding | None = None


class Checker:
    """Checks entries of a cache, any number at a time, and adds up what that costs."""

    def __init__(
        self, cache: Cache, store: Store, plan: Plan, cost: Cost, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        self._plan = plan
        self._cost = cost
        self._clock = clock
        self._reader = cache.reader()
        self._sealer = Sealer(cache.settings)
        streams = [stream.events for stream in cache.keys.streams(cache.settings.partitions)]
        group = cache.settings.group
        self._settling = Settling(store, streams, group, grace=plan.grace, timeout=plan.settle)
        self._loads = asyncio.Semaphore(_LOADS_AT_ONCE)
        #: entries that differ and of which it is not known yet what that means; those whose check was cancelled stay
        self.differing: dict[str, Subject] = {}
        #: turns of loads; of an entry's first load whoever asks for the check takes the turn
        self.pace = Pace(plan.per_second, clock)

    async def begin(self, subject: Subject) -> Checked | Differing:
        """Look at an entry, load it and compare. Raises UnavailableError and what Redis raises, not what loads do."""
        first = await self._look(subject)
        if not first.fresh:
            return Checked(Outcome.NOT_SERVED)
        cached = Value(first.payload, first.value)
        try:
            differing = Differing(subject, first, _tokens(subject, first), cached, [await self._load(subject)])
            outcome = _judged(differing)
        except _FailedError as error:
            return _failed(error)
        return differing if outcome is None else Checked(outcome)

    async def settle(self, differing: Differing) -> Checked:
        """Look and load again, until it is known what it means that the entry differs. Raises what `begin` raises."""
        self.differing[differing.subject.key] = differing.subject
        try:
            checked = await self._settle(differing)
        except _FailedError as error:
            checked = _failed(error)
        del self.differing[differing.subject.key]
        return checked

    async def aclose(self) -> None:
        """End what waits for events, and note what that has cost."""
        await self._settling.aclose()
        self._cost.commands += self._settling.questions

    async def _settle(self, differing: Differing) -> Checked:
        subject, loads = differing.subject, differing.loads
        while (outcome := _judged(differing)) is None:
            if not await self._settling.settled():
                return Checked(Outcome.UNSETTLED)
            if (gone := await self._gone(differing)) is not None:
                return Checked(gone)
            await self.pace.turn()
            loads.append(await self._load(subject))
        if (gone := await self._gone(differing)) is not None:
            return Checked(gone)
        encrypted = self._sealer.encrypts(subject.namespace)
        finding = finding_of(differing, outcome, values=self._plan.values, encrypted=encrypted)
        return Checked(outcome, finding=finding)

    async def _look(self, subject: Subject) -> Seen:
        """Look as a reader does who asks Redis. Raises UnavailableError."""
        look = subject.request.target.look
        looked = await self._reader.ask(look, bulk=True)
        try:
            seen = await self._reader.drive(self._reader.reading.see(subject.request, looked, None))
        except AwayError as error:
            raise UnavailableError(str(error.__cause__)) from error
        self._cost.commands += len(look.commands)
        self._cost.bytes_read += sum(len(value or b"") for value in (looked.entry, *looked.tokens))
        return seen

    async def _gone(self, differing: Differing) -> Outcome | None:
        """Say what became of an entry that is another than it was, or is not served any more; None: it is as it was."""
        now = await self._look(differing.subject)
        if now.fresh and now.looked.entry == differing.first.looked.entry:
            return None
        tokens = _tokens(differing.subject, now)
        changed = any(tokens[name] != token for name, token in differing.tokens.items() if name in tokens)
        return Outcome.MOVED if changed else Outcome.REPLACED

    async def _load(self, subject: Subject) -> Value:
        """Call the function, and return its result as a reader would get it. Raises _FailedError."""
        codec = subject.request.codec
        async with self._loads:
            started = self._clock()
            self._cost.loads += 1
            try:
                with self._cache.scopes.inside(Rule.DIRECT):
                    async with asyncio.timeout(self._plan.load_timeout):
                        payload = codec.encode(await subject.load())
                return Value(payload, codec.decode(payload))
            except Exception as error:
                raise _FailedError from error
            finally:
                self._cost.load_seconds += self._clock() - started


class _FailedError(Exception):
    """A load raised, or was too late, or what it gave is no value; the cause says what."""


def _judged(differing: Differing) -> Outcome | None:
    try:
        return verdict(differing.cached, differing.loads)
    except Exception as error:  # of a class of the service's own, which compares itself
        raise _FailedError from error


def _tokens(subject: Subject, seen: Seen) -> dict[str, bytes | None]:
    """Return the tokens that were seen with an entry just now, by name."""
    wanted = subject.request.target
    return dict(zip((*wanted.names, *map(tag_token, wanted.result_tags)), seen.looked.tokens, strict=True))


def _failed(error: _FailedError) -> Checked:
    return Checked(Outcome.FAILED, type(error.__cause__).__name__)  # its message may say anything
