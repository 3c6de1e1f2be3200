"""What the journal says of an event or a warm, and how it is found out. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from tidings import Envelope
from tidings.causes import parse
from tidings.events import from_fields

from .batches import Batch
from .delivery import Entry, RetryPolicy
from .metrics import WarmOutcome
from .plans import Draft, Plan, merge
from .rules import Rules

#: Characters of a text that are told.
TEXT_LENGTH = 200

#: Tokens, rules or warms of an event that are told.
_NAMES = 50


EventOutcome = Literal["applied", "unruled", "again"]


class _Record(BaseModel):
    """Anybody may have written one."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)


class EventRecord(_Record):
    """What one event did. `outcome`: it was applied, no rule is for it, or a rule failed and it comes again."""

    of: Literal["event"] = "event"
    worker: str
    group: str
    stream: str
    stream_id: str
    outcome: EventOutcome
    type: str
    subject: str | None = None
    event_id: str
    #: what failed
    reason: str = ""
    #: seconds until it is delivered again, with ``again``
    again_in_s: float = 0
    #: names of the tokens that this event asked to change, with how many more there are; the rules that asked first
    tokens: tuple[str, ...] = ()
    tokens_more: int = 0
    rules: tuple[str, ...] = ()
    #: names of the entries that it asked to warm
    warms: tuple[str, ...] = ()
    warms_more: int = 0
    #: from then until this is told of
    ago_ms: float = 0
    #: from the event's own time until what it makes wrong was invalidated
    age_ms: float | None = None
    #: what its batch took, from its delivery to its acknowledgement, and how many events that had
    took_ms: float | None = None
    batch: int = 1


class WarmRecord(_Record):
    """What became of one try of a warm, and why there was one: an event, or a schedule."""

    of: Literal["warm"] = "warm"
    worker: str
    name: str
    function: str
    outcome: WarmOutcome
    took_ms: float
    why: Literal["event", "schedule"]


class MoreRecord(_Record):
    """How many events and warms of the last second have not been told of."""

    of: Literal["more"] = "more"
    worker: str
    untold: int


Record = EventRecord | WarmRecord | MoreRecord

#: Reads what a worker, or anybody, has written into the journal. Raises pydantic's ValidationError.
read_record = TypeAdapter[Record](Annotated[Record, Field(discriminator="of")]).validate_json


@dataclass(frozen=True, slots=True)
class Handled:
    """A batch that was acknowledged, and what it takes to say what each of its events did."""

    worker: str
    group: str
    stream: str
    batch: Batch
    rules: Rules
    policy: RetryPolicy
    #: when what it makes wrong was invalidated
    at: datetime
    took_ms: float


def records_of(handled: Handled, ago_ms: float) -> Iterator[EventRecord]:
    """Give what to tell of each event that was applied, or failed, so many milliseconds after it was.

    Runs the rules again for what was applied, and no others; nor for a batch of one event, whose plan is its own.
    """
    batch, rules, ruled = handled.batch, handled.rules, handled.rules.event_types
    alone = len(batch.delivered) == 1
    for envelope in batch.applied:
        plan = batch.plan if alone else _plan_of(envelope, rules)
        outcome: EventOutcome = "applied" if envelope.type in ruled else "unruled"
        age_ms = round((handled.at - envelope.time).total_seconds() * 1000, 2)
        record = _record(handled, envelope, outcome, plan)
        yield record.model_copy(update={"ago_ms": ago_ms, "age_ms": age_ms})
    for entry, error in batch.failed:
        record = _record(handled, _envelope(handled.stream, entry), "again", Plan())
        reason, again_in_s = repr(error)[:TEXT_LENGTH], handled.policy.delay(entry.deliveries)
        yield record.model_copy(update={"ago_ms": ago_ms, "reason": reason, "again_in_s": again_in_s})


def _plan_of(envelope: Envelope, rules: Rules) -> Plan:
    draft = Draft()
    rules.plan_into(draft, envelope)
    return merge([draft.plan()])


def _envelope(stream: str, entry: Entry) -> Envelope:
    """Read an entry again over which a rule has failed: it could be read."""
    return from_fields(stream, entry.stream_id, entry.fields, snapshot_reads=True)


def _record(handled: Handled, envelope: Envelope, outcome: EventOutcome, plan: Plan) -> EventRecord:
    warms = [*(warm.name for warm in plan.warms), *(hot.name for hot in plan.hot)]
    rules = dict.fromkeys([parse(cause).rule for cause in islice(plan.causes.values(), _NAMES)])
    return EventRecord(
        worker=handled.worker[:TEXT_LENGTH],
        group=handled.group[:TEXT_LENGTH],
        stream=handled.stream,
        stream_id=envelope.stream_id or "",
        outcome=outcome,
        type=envelope.type[:TEXT_LENGTH],
        subject=None if envelope.subject is None else envelope.subject[:TEXT_LENGTH],
        event_id=envelope.id[:TEXT_LENGTH],
        tokens=tuple([name[:TEXT_LENGTH] for name in islice(plan.causes, _NAMES)]),
        tokens_more=max(0, len(plan.causes) - _NAMES),
        rules=tuple([name[:TEXT_LENGTH] for name in rules]),
        warms=tuple([name[:TEXT_LENGTH] for name in warms[:_NAMES]]),
        warms_more=max(0, len(warms) - _NAMES),
        took_ms=round(handled.took_ms, 2),
        batch=len(handled.batch.delivered),
    )
