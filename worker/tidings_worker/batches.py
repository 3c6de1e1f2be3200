"""What a batch of entries comes to: decoded, planned and merged, before anything is done about it. Pure.

One bad event takes nothing from the others: what cannot be read or has failed too often is dead, what a rule has failed
over is to be tried again, and neither is part of the plan that the rest is merged into.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidings.errors import PermanentError
from tidings.events import Envelope, from_fields, shorten

from .delivery import Entry, RetryPolicy
from .plans import Plan, merge
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
    #: the events that are part of the plan, each with its own
    applied: tuple[tuple[Envelope, Plan], ...]
    #: how many events came of each type that no rule is for
    unruled: Mapping[str, int]

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


def digest(stream: str, entries: Sequence[Entry], rules: Rules, policy: RetryPolicy) -> Batch:
    """Decode and plan every entry. Raises nothing for an entry's or a rule's sake."""
    plans: list[Plan] = []
    dead: list[tuple[Entry, str]] = []
    failed: list[tuple[Entry, Exception]] = []
    applied: list[tuple[Envelope, Plan]] = []
    unruled: Counter[str] = Counter()
    for entry in entries:
        try:
            envelope = from_fields(stream, entry.stream_id, entry.fields)
            plan = rules.plan(envelope)
        except PermanentError as error:
            dead.append((entry, shorten(f"{type(error).__name__}: {error}")))
            continue
        except Exception as error:  # noqa: BLE001 a rule is the service's code, and may raise anything
            if policy.is_last(entry.deliveries):
                dead.append((entry, shorten(f"failed {entry.deliveries} times, at last with {error!r}")))
            else:
                failed.append((entry, error))
            continue
        plans.append(plan)
        if plan.problems:  # what could be done is done; what could not is somebody's to look at
            dead.append((entry, "; ".join(plan.problems)))
            continue
        applied.append((envelope, plan))
        if not plan.ruled:
            unruled[envelope.type] += 1
    delivered = tuple(entry.stream_id for entry in entries)
    return Batch(merge(plans), delivered, tuple(dead), tuple(failed), tuple(applied), unruled)
