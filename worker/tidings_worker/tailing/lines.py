"""The lines of `tidings tail`. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tidings.events import IgnoredEventError, from_fields
from tidings.keys import ALL


class Outcome(StrEnum):
    """What a line tells."""

    APPLIED = "applied"
    #: applied in so far as no rule is for the event's type
    UNRULED = "unruled"
    #: an entry that says nothing of a change, like a tombstone
    IGNORED = "ignored"
    #: a rule failed; the event comes again
    AGAIN = "again"
    #: not applied for some seconds
    WAITING = "waiting"
    DEAD = "dead"
    #: not an event's doing: a service has invalidated by itself
    DIRECT = "direct"
    #: events may be lost, and everything is invalidated
    LOST = "lost"
    WARMED = "warmed"
    WARM_IN_VAIN = "warm_in_vain"
    WARM_RETRIED = "warm_retried"
    WARM_FAILED = "warm_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that happened; None and empty where nothing is known, or there is nothing.

    `at` is the server's time; `complete` says whether the tokens and warms are all that the event asked for.
    """

    at: datetime
    outcome: Outcome
    type: str | None = None
    subject: str | None = None
    event_id: str | None = None
    stream: str | None = None
    stream_id: str | None = None
    reason: str = ""
    again_in_s: float | None = None
    tokens: tuple[str, ...] = ()
    tokens_more: int = 0
    rules: tuple[str, ...] = ()
    warms: tuple[str, ...] = ()
    warms_more: int = 0
    complete: bool = True
    #: keys of entries, and patterns of keys, that were invalidated by themselves
    entries: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    age_ms: float | None = None
    took_ms: float | None = None
    batch: int | None = None
    worker: str | None = None

    @property
    def tags(self) -> list[str]:
        """The tags among the tokens."""
        return [name.removeprefix("tag:") for name in self.tokens if name.startswith("tag:")]

    @property
    def namespaces(self) -> list[str]:
        """The namespaces among the tokens."""
        return [name.removeprefix("namespace:") for name in self.tokens if name.startswith("namespace:")]

    @property
    def everything(self) -> bool:
        """Whether everything was invalidated."""
        return ALL in self.tokens


def described(stream: str, stream_id: str, fields: Mapping[bytes, bytes], at: datetime) -> tuple[Line, datetime, str]:
    """Return a line about an event, its own time, and what kind of event it is if workers ignore that kind."""
    ignored = ""
    try:
        try:
            envelope = from_fields(stream, stream_id, fields)
        except IgnoredEventError as nothing:
            ignored = nothing.kind
            envelope = from_fields(stream, stream_id, fields, snapshot_reads=True)
    except Exception:  # noqa: BLE001 whatever it is, workers set it aside and say why
        event_type = fields.get(b"type", b"").decode(errors="replace") or None
        subject = fields[b"subject"].decode(errors="replace") if b"subject" in fields else None
        line = Line(
            at=at, outcome=Outcome.WAITING, type=event_type, subject=subject, stream=stream, stream_id=stream_id
        )
        return line, at, ignored
    line = Line(
        at=at,
        outcome=Outcome.WAITING,
        type=envelope.type,
        subject=envelope.subject,
        event_id=envelope.id,
        stream=stream,
        stream_id=stream_id,
    )
    return line, envelope.time, ignored


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Return lines by their times."""
    return sorted(lines, key=lambda line: line.at)
