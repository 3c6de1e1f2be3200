"""A batch of events -> one merged plan -> invalidate -> hand off warms -> ack. In that order, always.

Invalidating comes first because it is the promise; warms come after it, because a warm that ran before would load under
tokens that are about to change; the ack comes last, because until then another worker may have to do all of it again. A
crash between any two steps repeats what was done, and repeating costs a load, never correctness.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis
from redis.typing import EncodableT
from tidings import Cache
from tidings.errors import PermanentError
from tidings.events import from_fields
from tidings.operations import APPLIED_LENGTH

from .plans import Plan, Warm, merge
from .rules import Rules
from .telemetry import log

#: What redis-py takes as a stream entry's fields.
Fields = dict[EncodableT, EncodableT]

#: One stream entry: its id and its fields.
Entry = tuple[str, Mapping[bytes, bytes]]

#: Types without a rule are counted each by name up to this many, so that a hostile producer cannot fill the server.
_TYPES_COUNTED = 100


class Warmer(Protocol):
    """Where warms are handed to."""

    async def hand_off(self, warms: Sequence[Warm]) -> None:
        """Queue the warms; each is in the queue when this returns."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What a batch of entries comes to, decided before anything is done."""

    plan: Plan
    delivered: tuple[str, ...]
    #: entries that no repetition can help, with the reason
    dead: tuple[tuple[Entry, str], ...]
    #: how many events came of each type that no rule is for
    unruled: Mapping[str, int]

    @property
    def dead_ids(self) -> list[str]:
        """The stream ids of the dead."""
        return [stream_id for (stream_id, _), _ in self.dead]


def digest(stream: str, entries: Sequence[Entry], rules: Rules) -> Batch:
    """Decode and plan every entry. Pure. Raises what a rule raises, unless one event's data are the matter."""
    plans: list[Plan] = []
    dead: list[tuple[Entry, str]] = []
    unruled: Counter[str] = Counter()
    for entry in entries:
        stream_id, fields = entry
        try:
            envelope = from_fields(stream, stream_id, fields)
        except PermanentError as error:
            dead.append((entry, f"{type(error).__name__}: {error}"))
            continue
        plan = rules.plan(envelope)
        plans.append(plan)
        if plan.problems:  # what could be done is done; what could not is somebody's to look at
            dead.append((entry, "; ".join(plan.problems)))
        elif not plan.ruled:
            unruled[envelope.type] += 1
    return Batch(merge(plans), tuple(stream_id for stream_id, _ in entries), tuple(dead), unruled)


class Handler:
    """Applies batches; the only place where events turn into effects."""

    def __init__(self, cache: Cache, client: Redis, rules: Rules, warmer: Warmer) -> None:
        self._cache = cache
        self._client = client
        self._rules = rules
        self._warmer = warmer
        self._group = cache.settings.group
        self._types_counted: set[str] = set()

    async def handle(self, entries: Sequence[Entry]) -> None:
        """Apply a batch and acknowledge it. Raises InvalidationError or a Redis error; then nothing is acknowledged."""
        started = time.perf_counter()
        batch = digest(self._cache.keys.events, entries, self._rules)
        await self._cache.invalidate_tokens(batch.plan.causes, events=ranges(batch.delivered, batch.dead_ids))
        await self._warmer.hand_off(batch.plan.warms)
        await self._acknowledge(batch)
        self._report(batch, (time.perf_counter() - started) * 1000)

    async def _acknowledge(self, batch: Batch) -> None:
        """Ack, set dead letters aside and tell their receipts, count: one transaction."""
        keys = self._cache.keys
        pipe = self._client.pipeline(transaction=True)
        for (stream_id, fields), reason in batch.dead:
            pipe.xadd(keys.dead, dead_letter(keys.events, self._group, stream_id, fields, reason))
        pipe.xack(keys.events, self._group, *batch.delivered)
        if batch.dead:
            word: Fields = {"ids": "", "dead": " ".join(batch.dead_ids)}
            pipe.xadd(keys.stream().applied, word, maxlen=APPLIED_LENGTH, approximate=True)
        for name, amount in self._amounts(batch).items():
            pipe.hincrby(keys.counts, name, amount)
        await pipe.execute()

    def _amounts(self, batch: Batch) -> dict[str, int]:
        amounts = {
            "applied": len(batch.delivered) - len(batch.dead),
            "dead": len(batch.dead),
            "tokens": len(batch.plan.causes),
            "warms": len(batch.plan.warms),
            "unruled": sum(batch.unruled.values()),
        }
        for event_type, amount in batch.unruled.items():
            if len(self._types_counted) < _TYPES_COUNTED or event_type in self._types_counted:
                self._types_counted.add(event_type)
                amounts[f"unruled:{event_type[:100]}"] = amount
        return {name: amount for name, amount in amounts.items() if amount}

    def _report(self, batch: Batch, took_ms: float) -> None:
        for (stream_id, _), reason in batch.dead:
            log.error("event_dead_lettered", stream_id=stream_id, reason=reason)
        plan = batch.plan
        log.info(
            "events_applied",
            events=len(batch.delivered) - len(batch.dead),
            invalidated=sorted(plan.causes)[:20],
            warms=len(plan.warms),
            took_ms=round(took_ms, 2),
        )


def dead_letter(stream: str, group: str, stream_id: str, fields: Mapping[bytes, bytes], reason: str) -> Fields:
    """Return the fields of a dead letter: why, where it came from, and the entry as it was under ``original:``."""
    original: Fields = {b"original:" + name: value for name, value in fields.items()}
    return {"reason": reason, "stream": stream, "stream_id": stream_id, "group": group, **original}


def ranges(delivered: Sequence[str], but: Sequence[str] = ()) -> str:
    """Return the delivered ids but some, as ``first..last`` runs: ``"5-0..5-9 7-1"``.

    One delivery is contiguous in the stream, so a run covers nothing that another worker has.
    """
    runs: list[list[str]] = [[]]
    for stream_id in delivered:
        if stream_id in but:
            runs.append([])
        else:
            runs[-1].append(stream_id)
    return " ".join(run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if run)
