"""What `tidings tail` shows, put together from what the streams say. Pure: entries and times go in, lines come out.

    events         what there is to apply; what is not told of within some seconds is asked after
    journal        what each event and warm did, while workers know that somebody reads
    dead letters   what was set aside, and why
    log            what was invalidated, and by whom: services too
    receipts       which events were set aside, of those whose letters are gone

An event is shown once it has been dealt with, with what the journal says of it. Where the journal says nothing, because
nobody read it then or there was too much, what the group shows of the event decides, and the log has the tokens that
the event was the first of its batch to ask for. One that nobody deals with for `LATE` seconds is shown as it stands,
and again when it is dealt with; one that fails is shown each time.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ValidationError
from tidings.causes import Kind, by_event, by_rule, parse
from tidings.event_ids import ranges_of

from tidings_worker.dead_letters.letters import original_of
from tidings_worker.journal_records import EventRecord, MoreRecord, WarmRecord, read_record
from tidings_worker.times import moment_of

from .lines import Line, Outcome, described

#: Seconds after which an event that nobody has told of is asked after.
LATE = 3.0

#: Seconds that are left to the journal, or the dead letters, to tell of an event that has been acknowledged.
_GRACE = 0.5

#: Milliseconds for which a worker may have kept what it tells of; what is said beyond it is not believed.
_GATHERED_MS = 10_000

#: Events, causes and warms that are remembered: what comes for those before them stands alone.
_REMEMBERED = 20_000

#: Events that wait to be told of; beyond it the oldest are asked after at once.
_WAITING = 10_000


@dataclass(slots=True)
class Awaited:
    """An event that has come and that nothing has told of."""

    line: Line
    #: the event's own time
    made: datetime
    arrived: float
    due: float
    ignored: str = ""
    acknowledged: bool = False
    shown_late: bool = False

    @property
    def readable(self) -> bool:
        """Whether workers can say what event it is: they set aside what is none."""
        return self.line.event_id is not None

    @property
    def key(self) -> tuple[str, str]:
        """The stream and the entry's id."""
        return self.line.stream or "", self.line.stream_id or ""


@dataclass(slots=True)
class _Caused:
    """What the log says that an event was the first to ask for."""

    at: datetime
    tokens: list[str]
    rules: dict[str, None]


class _What(BaseModel):
    """What an entry of the invalidation log says."""

    tokens: dict[str, str] = {}
    entries: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class Follower:
    """Puts together what entries of the streams say. Each gives the lines that can be shown from it; `now` in seconds.

    Anybody may write to the streams: what cannot be read is left out.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._waiting: OrderedDict[tuple[str, str], Awaited] = OrderedDict()
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._set_aside: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._caused: OrderedDict[tuple[str, str], _Caused] = OrderedDict()
        self._asked: OrderedDict[str, Line] = OrderedDict()
        #: events and warms that the journal had no room for, since somebody last took the number
        self.untold = 0

    def event(self, stream: str, stream_id: str, fields: Mapping[bytes, bytes], now: float) -> None:
        """Take an event."""
        key = stream, stream_id
        if key in self._told:
            return
        came = moment_of(stream_id) or datetime.fromtimestamp(now, UTC)
        line, made, ignored = described(stream, stream_id, fields, came)
        due = now + min(LATE, max(0.0, LATE - (now - came.timestamp())))
        self._waiting[key] = Awaited(line, made, now, due, ignored)

    def receipt(self, stream: str, fields: Mapping[bytes, bytes]) -> None:
        """Take a receipt."""
        for first, last in ranges_of(fields.get(b"dead")):
            if first == last:  # as workers name them
                self._set_aside[stream, "{}-{}".format(*first)] = None
                _bound(self._set_aside)

    def dead_letter(self, letter_id: str, fields: Mapping[bytes, bytes]) -> Iterator[Line]:
        """Take a dead letter."""
        text = {name: value.decode(errors="replace") for name, value in fields.items()}
        if text.get(b"group", self._group) != self._group:
            return
        stream, stream_id = text.get(b"stream", ""), text.get(b"stream_id", "")
        original = original_of(fields)
        at = moment_of(letter_id) or datetime.now(UTC)
        awaited = self._waiting.pop((stream, stream_id), None)
        line = described(stream, stream_id, original, at)[0] if awaited is None else awaited.line
        self._tell((stream, stream_id))
        yield self._with_causes(replace(line, at=at, outcome=Outcome.DEAD, reason=text.get(b"reason", "")), None)

    def logged(self, log_id: str, fields: Mapping[bytes, bytes]) -> Iterator[Line]:
        """Take an entry of the invalidation log: what events caused is kept for them, what others did is shown."""
        try:
            what = _What.model_validate_json(fields.get(b"what", b""))
        except ValidationError:
            return
        at = moment_of(log_id) or datetime.now(UTC)
        others: dict[str, list[str]] = {}
        for name, text in what.tokens.items():
            cause = parse(text)
            if cause.kind is Kind.EVENT:
                caused = self._caused.setdefault((cause.event_id, cause.stream_id), _Caused(at, [], {}))
                caused.tokens.append(name)
                caused.rules[cause.rule] = None
                _bound(self._caused)
            else:
                others.setdefault(text, []).append(name)
        if what.entries or what.patterns:
            why = fields.get(b"why", b"").decode(errors="replace")
            yield Line(at=at, outcome=Outcome.DIRECT, reason=why, entries=what.entries, patterns=what.patterns)
        for text, names in others.items():
            outcome = Outcome.LOST if parse(text).kind is Kind.LOST else Outcome.DIRECT
            yield Line(at=at, outcome=outcome, reason=text, tokens=tuple(names))

    def journal(self, record_id: str, fields: Mapping[bytes, bytes], now: float) -> Iterator[Line]:
        """Take an entry of the journal."""
        try:
            record = read_record(fields.get(b"what", b""))
        except ValidationError:
            return
        at = moment_of(record_id) or datetime.now(UTC)
        if isinstance(record, MoreRecord):
            self.untold += record.untold
        elif isinstance(record, WarmRecord):
            yield self._warm(record, at)
        elif record.group == self._group:
            yield self._event(record, at, now)

    def due(self, now: float) -> list[Awaited]:
        """Return the events that are to be asked after now; give each answer to `answered`."""
        excess = len(self._waiting) - _WAITING
        return [
            awaited
            for number, awaited in enumerate(self._waiting.values())
            if not awaited.acknowledged and (awaited.due <= now or number < excess)
        ]

    def answered(self, awaited: Awaited, why_not: str, now: float, *, patient: bool = True) -> Iterator[Line]:
        """Take what the group shows of an event: why it has not been dealt with, or nothing if it has.

        Where it has not it is shown when that takes long; at once unless `patient`.
        """
        if not why_not:
            awaited.acknowledged, awaited.due = True, now + _GRACE
            return
        if patient and awaited.due > now:
            return
        awaited.due = now + LATE
        if not awaited.shown_late:
            awaited.shown_late = True
            age_ms = round((now - awaited.made.timestamp()) * 1000, 2)
            at = datetime.fromtimestamp(now, UTC)
            yield replace(awaited.line, at=at, outcome=Outcome.WAITING, reason=why_not, age_ms=age_ms, complete=False)

    def overdue(self, now: float) -> Iterator[Line]:
        """Give the events that were dealt with and that nothing has told of until `now`."""
        for awaited in [one for one in self._waiting.values() if one.acknowledged and one.due <= now]:
            del self._waiting[awaited.key]
            self._tell(awaited.key)
            if awaited.ignored:
                yield replace(awaited.line, outcome=Outcome.IGNORED, reason=awaited.ignored)
            elif awaited.key in self._set_aside or not awaited.readable:
                reason = "its letter is gone: it was put back, or dropped"
                yield self._with_causes(replace(awaited.line, outcome=Outcome.DEAD, reason=reason), None)
            else:
                yield self._with_causes(replace(awaited.line, outcome=Outcome.APPLIED, complete=False), awaited.made)

    def _event(self, record: EventRecord, at: datetime, now: float) -> Line:
        key = record.stream, record.stream_id
        awaited = self._waiting.pop(key, None)
        at -= timedelta(milliseconds=max(0.0, min(record.ago_ms, _GATHERED_MS)))
        told = record.model_dump(exclude={"of", "group", "ago_ms"}) | {"outcome": Outcome(record.outcome)}
        again_in_s = told.pop("again_in_s")
        if record.outcome == "again":
            if awaited is not None:
                awaited.due = now + again_in_s + LATE
                self._waiting[key] = awaited
            return self._with_causes(Line(at=at, again_in_s=again_in_s, complete=False, **told), None)
        self._tell(key)
        line = Line(at=at, **told)
        for name in line.warms:
            self._asked[name] = line
            self._asked.move_to_end(name)
        _bound(self._asked)
        return line

    def _warm(self, record: WarmRecord, at: datetime) -> Line:
        outcome = Outcome(record.outcome if record.outcome == "warmed" else f"warm_{record.outcome}")
        line = Line(
            at=at,
            outcome=outcome,
            reason=record.why,
            warms=(record.name,),
            took_ms=record.took_ms,
            worker=record.worker,
        )
        asker = self._asked.get(record.name) if record.why == "event" else None
        if asker is None:
            return line
        if record.outcome in {"warmed", "failed"}:
            del self._asked[record.name]  # the next may be a replay's, or somebody's at a command line
        return replace(line, type=asker.type, subject=asker.subject, event_id=asker.event_id)

    def _with_causes(self, line: Line, made: datetime | None) -> Line:
        """Add what the log says; with the event's own time, when it says so, and how long after it that was."""
        line, caused = replace(line, complete=False), self._caused.get(_as_cause(line))
        if caused is None:
            return line
        line = replace(line, tokens=tuple(caused.tokens), rules=tuple(caused.rules))
        if made is None:
            return line
        return replace(line, at=caused.at, age_ms=round((caused.at - made).total_seconds() * 1000, 2))

    def _tell(self, key: tuple[str, str]) -> None:
        self._told[key] = None
        _bound(self._told)


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > _REMEMBERED:
        remembered.popitem(last=False)


def _as_cause(line: Line) -> tuple[str, str]:
    """Return the ids of an event as they come back from a cause."""
    cause = parse(by_rule(by_event(line.event_id or "", line.stream_id), ""))
    return cause.event_id, cause.stream_id
