"""A stretch of the event streams run again: planned with the rules given, invalidated, warms handed off.

What a worker does, in its order, without a group: nothing is read for one, acknowledged, published, counted or set
aside. Doing what was done already costs loads, never correctness, so a stretch that was cut off is simply run again.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from redis.exceptions import RedisError
from tidings import Cache
from tidings.errors import EventError, TransientError, UnavailableError
from tidings.events import from_fields, shorten

from .batches import Batch, digest
from .delivery import Entry, RetryPolicy
from .exchange import Store
from .handler import Warmer
from .plans import Plan, merge
from .rules import Rules
from .stretches import PAGE, Stretch

#: Tokens that one invalidation names at most, as the worker does it.
_TOKENS_AT_POLICY = 1000

#: Names that are counted each, and failures that are kept: so much of a stretch of any length is held in memory.
_COUNTED = 10_000
_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Meant:
    """Which events of a stretch are run again; None, or no types: all."""

    types: frozenset[str] = frozenset()
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What one event asks for under the rules."""

    stream: str
    stream_id: str
    #: '' for one that cannot be read
    type: str
    subject: str | None
    #: names of tokens, and warms in words
    tokens: tuple[str, ...]
    warms: tuple[str, ...]
    #: for each warm its function; for what is read most ``hot:`` and the namespace
    functions: tuple[str, ...]
    #: whether some rule is for it
    ruled: bool
    #: what kind of entry it is that no rule is for, if it is one of others' that says nothing of what changed
    ignored: str | None
    #: why it, or a rule about it, has failed; what the other rules ask for is done all the same
    problem: str | None


class Tally(Counter[str]):
    """Counts by name, of so many names at most; what is beyond them is counted together."""

    others = 0

    def note(self, name: str) -> None:
        """Count one."""
        if name in self or len(self) < _COUNTED:
            self[name] += 1
        else:
            self.others += 1


@dataclass
class Summary:
    """What came of a replay so far: in how many events each was asked for."""

    read: int = 0
    applied: int = 0
    types: Tally = field(default_factory=Tally)
    unruled: Tally = field(default_factory=Tally)
    ignored: Tally = field(default_factory=Tally)
    tokens: Tally = field(default_factory=Tally)
    #: by function, see `Effect.functions`
    warms: Tally = field(default_factory=Tally)
    problems: int = 0
    #: the first of them: stream, stream id, and what was wrong
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    def note(self, effect: Effect) -> None:
        """Count one event."""
        if effect.problem is not None:
            self.problems += 1
            if len(self.failed) < _KEPT:
                self.failed.append((effect.stream, effect.stream_id, effect.problem))
        elif effect.ignored is not None:
            self.ignored.note(effect.ignored)
        else:
            self.applied += 1
            self.types.note(effect.type)
            if not effect.ruled:
                self.unruled.note(effect.type)
        for token in effect.tokens:
            self.tokens.note(token)
        for warm in effect.functions:
            self.warms.note(warm)


class Replay:
    """Runs stretches again, `batch` events at a time.

    Without a `warmer` nothing is warmed; `dry`: nothing is done at all. `seen` hears of every event,
    before anything is done about it.
    """

    def __init__(
        self,
        cache: Cache,
        store: Store,
        rules: Rules,
        warmer: Warmer | None,
        *,
        dry: bool,
        batch: int = PAGE,
        snapshot_reads: bool = False,
        seen: Callable[[Effect], None] = lambda _: None,
    ) -> None:
        self._cache = cache
        self._store = store
        self._rules = rules
        self._warmer = warmer
        self._dry = dry
        self._batch = batch
        self._snapshot_reads = snapshot_reads
        self._seen = seen
        self.summary = Summary()

    async def run(self, stretch: Stretch, meant: Meant) -> AsyncIterator[int]:
        """Run one stretch, and give after each page how many of its entries were read.

        Raises UnavailableError, which says how far it had come; what was done stays done.
        """
        at = stretch.first
        try:
            async for page in stretch.pages(self._store, self._batch):
                await self._apply(self._planned(stretch.stream, [one for one in page if self._is_meant(one, meant)]))
                at = page[-1].stream_id
                self.summary.read += len(page)
                yield len(page)
        except (TransientError, RedisError, OSError) as error:
            done = f"{self.summary.applied} events were {'planned' if self._dry else 'run again'}"
            cure = "" if self._dry else "; repeat it, or go on from there: doing it twice is safe"
            raise UnavailableError(f"{done}, up to {at} of {stretch.stream}{cure}: {error}") from error

    def _is_meant(self, entry: Entry, meant: Meant) -> bool:
        if not meant.types and meant.subject is None:
            return True
        try:
            envelope = from_fields("", entry.stream_id, entry.fields, snapshot_reads=self._snapshot_reads)
        except EventError:
            return True  # it may be one of them, and is reported
        of_type = not meant.types or envelope.type in meant.types
        return of_type and (meant.subject is None or envelope.subject == meant.subject)

    def _planned(self, stream: str, entries: Sequence[Entry]) -> Plan:
        """Plan each event for itself, tell what it comes to, and return one plan for all."""
        plans = []
        for entry in entries:
            batch = digest(stream, [entry], self._rules, _POLICY, snapshot_reads=self._snapshot_reads)
            effect = _effect(stream, entry, batch, self._rules)
            self.summary.note(effect)
            self._seen(effect)
            plans.append(batch.plan)
        return merge(plans)

    async def _apply(self, plan: Plan) -> None:
        if self._dry:
            return
        causes = iter(plan.causes.items())
        while some := dict(islice(causes, _TOKENS_AT_POLICY)):
            await self._cache.invalidate_tokens(some)
        if self._warmer is not None and (plan.warms or plan.hot):
            await self._warmer.hand_off(plan.warms, plan.hot, carriers={})


#: A rule that fails is reported, and that is that: nobody delivers the event again, or sets it aside.
_POLICY = RetryPolicy()


def _effect(stream: str, entry: Entry, batch: Batch, rules: Rules) -> Effect:
    event = batch.applied[0] if batch.applied else None
    problem = next((reason for _, reason in batch.dead), None)
    for _, error in batch.failed:
        problem = shorten(f"a rule failed: {error!r}")
    return Effect(
        stream,
        entry.stream_id,
        event.type if event else entry.fields.get(b"type", b"").decode(errors="backslashreplace"),
        event.subject if event else None,
        tuple(batch.plan.causes),
        tuple(map(repr, [*batch.plan.warms, *batch.plan.hot])),
        (*(warm.function for warm in batch.plan.warms), *(f"hot:{hot.namespace}" for hot in batch.plan.hot)),
        event is not None and event.type in rules.event_types,
        next(iter(batch.ignored), None),
        problem,
    )
