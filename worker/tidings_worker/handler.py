"""A batch of events -> one merged plan -> invalidate -> hand off warms -> ack. In that order, always.

Invalidating comes first because it is the promise; warms come after it, because a warm that ran before would load under
tokens that are about to change; the ack comes last, because until then another worker may have to do all of it again. A
crash between any two steps repeats what was done, and repeating costs a load, never correctness.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol

from redis.typing import EncodableT
from tidings import Cache
from tidings.tracing import Applied, Carrier, tracing

from .batches import Batch, digest
from .delivery import Entry, RetryPolicy, ranges
from .groups import Group, Reading, Receipts
from .journal import Journal
from .journal_records import Handled
from .metrics import Metrics
from .plans import Hot, Warm
from .rules import Rules
from .telemetry import log

#: What redis-py takes as a stream entry's fields.
Fields = dict[EncodableT, EncodableT]

#: Types without a rule are counted each by name up to this many, so that a hostile producer cannot fill the server.
_TYPES_COUNTED = 100

#: Tokens that one invalidation names at most: the server does nothing else meanwhile, and a rule may name any number.
_TOKENS_AT_ONCE = 1000


class Warmer(Protocol):
    """Where warms are handed to."""

    async def hand_off(self, warms: Sequence[Warm], hot: Sequence[Hot], *, carriers: Mapping[str, Carrier]) -> None:
        """Queue the warms; each is in the queue when this returns. `carriers` are trace contexts by warms' names."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What remains after a batch was handled."""

    #: delivered again later, each with its error
    failed: tuple[tuple[Entry, Exception], ...]
    #: whether some of the entries were no longer ours to acknowledge
    incomplete: bool


class Handler:
    """Applies batches; the only place where events turn into effects."""

    def __init__(
        self,
        cache: Cache,
        rules: Rules,
        warmer: Warmer,
        policy: RetryPolicy,
        metrics: Metrics | None = None,
        *,
        snapshot_reads: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._metrics = metrics or Metrics(rules.event_types)
        self._cache = cache
        self._rules = rules
        self._warmer = warmer
        self._policy = policy
        self._snapshot_reads = snapshot_reads
        self._types_counted: set[str] = set()

    def use(self, rules: Rules) -> None:
        """Apply these rules, from the next batch on."""
        self._rules = rules

    async def handle(
        self,
        group: Group,
        entries: Sequence[Entry],
        *,
        contiguous: bool = True,
        ahead: Callable[[], Reading | None] = lambda: None,
    ) -> Outcome:
        """Apply a batch and acknowledge it. Raises InvalidationError or a Redis error; then nothing is acknowledged.

        `contiguous`: the entries came from one read, and nobody has one that lies between them. `ahead` says, when all
        is done, whether the next read may begin with the acknowledgement.
        """
        started, started_ns = time.perf_counter(), time.time_ns()
        stream = group.stream.events
        rules = self._rules  # one set of rules for the whole batch, also if `use` gives others meanwhile
        batch = digest(stream, entries, rules, self._policy, snapshot_reads=self._snapshot_reads)
        with tracing().applying(stream, group.group, batch.applied, started_ns=started_ns) as applied:
            await self._invalidate(group, batch, contiguous=contiguous)
            applied.invalidated()
            invalidated_at = datetime.now(UTC)
            ages = _ages(batch, invalidated_at)
            await self._warmer.hand_off(batch.plan.warms, batch.plan.hot, carriers=_carriers(batch, applied))
            done = batch.done
            letters = [dead_letter(stream, group.group, entry, reason) for entry, reason in batch.dead]
            receipts = Receipts(letters, batch.dead_ids, self._amounts(batch))
            acknowledged = await group.acknowledge(done, receipts, ahead())
        took = time.perf_counter() - started
        self._count(batch, ages, took)
        self._report(batch, took * 1000)
        if self._journal is not None and self._journal.wanted:
            where = group.name, group.group, stream
            self._journal.took(Handled(*where, batch, rules, self._policy, invalidated_at, took * 1000))
        return Outcome(batch.failed, incomplete=acknowledged < len(done))

    async def set_aside(self, group: Group, entries: Sequence[Entry], reason: str) -> None:
        """Put entries into the dead letters without looking at them."""
        ids = [entry.stream_id for entry in entries]
        letters = [dead_letter(group.stream.events, group.group, entry, reason) for entry in entries]
        await group.acknowledge(ids, Receipts(letters, ids, {"dead": len(ids)}))
        self._metrics.dead_lettered(_types(entries))
        for stream_id in ids:
            log.error("event_dead_lettered", stream_id=stream_id, reason=reason)

    async def _invalidate(self, group: Group, batch: Batch, *, contiguous: bool) -> None:
        """Invalidate, and with the last of it tell the receipts."""
        causes = iter(batch.plan.causes.items())
        words = ranges(batch.delivered, [*batch.dead_ids, *batch.failed_ids], contiguous=contiguous)
        left = len(batch.plan.causes)
        while left > _TOKENS_AT_ONCE:
            await self._cache.invalidate_tokens(dict(islice(causes, _TOKENS_AT_ONCE)))
            left -= _TOKENS_AT_ONCE
        await self._cache.invalidate_tokens(dict(causes), events=words, stream=group.stream)

    def _amounts(self, batch: Batch) -> dict[str, int]:
        amounts = {
            "applied": len(batch.applied),
            "dead": len(batch.dead),
            "retried": len(batch.failed),
            "tokens": len(batch.plan.causes),
            "warms": len(batch.plan.warms),
            "unruled": sum(batch.unruled.values()),
            "ignored": sum(batch.ignored.values()),
        }
        for event_type, amount in batch.unruled.items():
            if len(self._types_counted) < _TYPES_COUNTED or event_type in self._types_counted:
                self._types_counted.add(event_type)
                amounts[f"unruled:{event_type[:100]}"] = amount
        return {name: amount for name, amount in amounts.items() if amount}

    def _count(self, batch: Batch, ages: Mapping[str, Sequence[float]], took: float) -> None:
        metrics, plan = self._metrics, batch.plan
        metrics.applied(batch.types, ages)
        metrics.batch(len(batch.delivered), took, tokens=len(plan.causes), log_entries=int(bool(plan.causes)))
        metrics.handed_off(len(plan.warms))
        metrics.ignored(batch.ignored)
        if batch.dead:
            metrics.dead_lettered(_types([entry for entry, _ in batch.dead]))
        if batch.failed:
            metrics.retried(_types([entry for entry, _ in batch.failed]))

    def _report(self, batch: Batch, took_ms: float) -> None:
        for entry, reason in batch.dead:
            log.error("event_dead_lettered", stream_id=entry.stream_id, reason=reason)
        for entry, error in batch.failed:
            delay = self._policy.delay(entry.deliveries)
            log.warning(
                "event_failed", stream_id=entry.stream_id, deliveries=entry.deliveries, again_in_s=delay, exc_info=error
            )
        plan = batch.plan
        log.info(
            "events_applied",
            events=len(batch.applied),
            invalidated=sorted(plan.causes)[:20],
            warms=len(plan.warms),
            took_ms=round(took_ms, 2),
        )


def _ages(batch: Batch, now: datetime) -> dict[str, list[float]]:
    """Return by type the seconds from each event's own time until now, when what it makes wrong is invalidated."""
    ages: defaultdict[str, list[float]] = defaultdict(list)
    for event in batch.applied:
        ages[event.type].append((now - event.time).total_seconds())
    return ages


def _carriers(batch: Batch, applied: Applied) -> dict[str, Carrier]:
    """Return the trace context for each warm, which is that of the event that asked for it."""
    found = {name: applied.carrier(stream_id) for name, stream_id in batch.askers.items()}
    return {name: carrier for name, carrier in found.items() if carrier}


def _types(entries: Sequence[Entry]) -> Counter[str]:
    return Counter(entry.fields.get(b"type", b"").decode(errors="replace") for entry in entries)


def dead_letter(stream: str, group: str, entry: Entry, reason: str) -> Fields:
    """Return the fields of a dead letter: why, where it came from, and the entry as it was under ``original:``."""
    original: Mapping[EncodableT, EncodableT] = {b"original:" + name: value for name, value in entry.fields.items()}
    where: Fields = {"stream": stream, "stream_id": entry.stream_id, "group": group}
    return {"reason": reason, **where, "deliveries": entry.deliveries, **original}
