"""What a batch of entries comes to: decoded, planned and merged, before anything is done about it. Pure.

One bad event takes nothing from the others: what cannot be read or has failed too often is dead, what a rule has failed
over is to be tried again. What could be done about either is part of the plan that the rest is merged into: a rule that
fails takes nothing from the others, and to do it once more with the next try is harmless. What says nothing of a
change, like a tombstone, is only counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidings.errors import PermanentError
from tidings.events import Envelope, IgnoredEventError, from_fields, shorten

from .delivery import Entry, RetryPolicy
from .plans import Draft, Plan, merge
from .rules import Rules


@dataclass(frozen=True, slots=True)
class Batch:
    """What to do about a batch of entries."""

    plan: Plan
    #: every id that was delivered
    delivered: tuple[str, ...]
    #: entries that no repetition can help, or no further one, with the reason
    dead: tuple[tuple[Entry, str], ...]
    #: entries over which a rule failed, with its error: they stay pending and are delivered again
    failed: tuple[tuple[Entry, Exception], ...]
    #: the events of which nothing is left to do but the plan
    applied: tuple[Envelope, ...]
    #: how many there are of each type
    types: Mapping[str, int]
    #: those of them that no rule is for
    unruled: Mapping[str, int]
    #: by the name of a warm, the stream entry that was the last to ask for it
    askers: Mapping[str, str | None]
    #: how many entries of each kind say nothing of what changed
    ignored: Mapping[str, int]

    @property
    def dead_ids(self) -> list[str]:
        """The stream ids of the dead."""
        return [entry.stream_id for entry, _ in self.dead]

    @property
    def failed_ids(self) -> list[str]:
        """The stream ids of those to be tried again."""
        return [entry.stream_id for entry, _ in self.failed]

    @property
    def done(self) -> list[str]:
        """The stream ids to acknowledge: all but the failed."""
        again = set(self.failed_ids)
        return [stream_id for stream_id in self.delivered if stream_id not in again] if again else list(self.delivered)


def digest(
    stream: str, entries: Sequence[Entry], rules: Rules, policy: RetryPolicy, *, snapshot_reads: bool = False
) -> Batch:
    """Decode and plan every entry. Raises nothing for an entry's or a rule's sake.

    `snapshot_reads`: rows that Debezium has read for a snapshot are events, too.
    """
    draft = Draft()
    dead: list[tuple[Entry, str]] = []
    failed: list[tuple[Entry, Exception]] = []
    applied: list[Envelope] = []
    ignored: Counter[str] = Counter()
    for entry in entries:
        envelope: Envelope | None = None
        try:
            envelope = from_fields(stream, entry.stream_id, entry.fields, snapshot_reads=snapshot_reads)
            problems, error = rules.plan_into(draft, envelope)
        except IgnoredEventError as nothing:
            ignored[nothing.kind] += 1
            continue
        except PermanentError as unreadable:
            problems, error = [shorten(f"{type(unreadable).__name__}: {unreadable}")], None
        except Exception as failure:  # noqa: BLE001 whatever may be wrong with one takes nothing from the others
            problems, error = [], failure
        if error is not None and not policy.is_last(entry.deliveries):
            failed.append((entry, error))
        elif error is not None:
            last = shorten(f"failed {entry.deliveries} times, at last with {error!r}")
            dead.append((entry, "; ".join([*problems, last])))
        elif problems:  # what could be done is done; what could not is somebody's to look at
            dead.append((entry, "; ".join(problems)))
        elif envelope is not None:
            applied.append(envelope)
    types = Counter([envelope.type for envelope in applied])
    return Batch(
        merge([draft.plan()]),
        tuple([entry.stream_id for entry in entries]),
        tuple(dead),
        tuple(failed),
        tuple(applied),
        types,
        {event_type: types[event_type] for event_type in types.keys() - rules.event_types},
        draft.askers,
        ignored,
    )
