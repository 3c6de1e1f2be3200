"""An answer as rows of a label and a text, for people. Pure."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from tidings import Envelope
from tidings.causes import Cause, Kind

from tidings_worker.times import age

from .explanation import STALE, Entry, Explanation, State, TokenNow, own_change
from .gathering import Answer, WarmState
from .history import Change, latency
from .waiting import MOST, Backlog

#: What the codes of `continuity` mean.
LOSSES = {
    "group": "the consumer group was gone, or made anew",
    "stream": "the stream was replaced",
    "trimmed": "entries were removed that may not have been read",
    "deleted": "entries were deleted that may not have been read",
    "position": "the group's position was set by hand",
    "pending": "entries that were delivered and not applied were removed",
    "history": "a server was restarted, or another took over, which may lack what was acknowledged",
}

_STATES = {
    State.FRESH: "served from the cache",
    State.EXPIRED: "its ttl has passed, and it is kept for a while longer",
    State.INVALIDATED: "invalidated since its load began",
    State.GONE: "a token it was loaded under is gone (evicted, flushed or expired), so it may be wrong",
    State.RETAGGED: "it was loaded under other tags than its function gives this call now",
    State.UNREADABLE: "not served: it is valid, and does not decode here",
    State.BYPASSED: "never cached: `when` is false for these arguments",
    State.VACANT: "not cached: invalidated by its name, or a load began and has stored nothing (yet)",
    State.ABSENT: "not cached: never loaded, expired, deleted by a pattern, or evicted",
    State.FOREIGN: "not served: the bytes are none of this version's entries",
}

#: Of what is not valid any more, by whether it is served.
_STALE = {
    True: "served stale while one refresh runs",
    False: "not served",
    None: "not served, unless its function allows stale values",
}

#: Changes, and events of each kind, that are listed one by one.
_LISTED = 5
_DAY_US = 86_400_000_000
_SECOND_MS = 1000

_HOW = {"read": "for a read", "warm": "as a warm", "refresh": "by refresh()", "set": "by set()"}


def rows(answer: Answer) -> Iterator[tuple[str, str]]:
    """Give what there is to say, the most important first."""
    told = answer.explanation
    yield "key", told.key
    if answer.call:
        yield "call", answer.call
    yield "state", _state(told)
    if told.state is State.UNREADABLE:
        yield "", told.unreadable
    yield from _why(told, answer.events)
    if told.entry is not None:
        yield from _entry_rows(told, told.entry)
    yield "tokens", ", ".join(_token(now, loaded=told.entry is not None) for now in told.tokens)
    if told.entry is None and told.policy is None:
        yield "", "its tags are not known without the entry; asked for as MODULE:FUNCTION ARGS, they are"
    if told.policy is not None and told.policy.local_ttl_ms:
        kept = _duration(told.policy.local_ttl_ms)
        yield "local", f"processes keep copies of their own for up to {kept}; these are not seen from here"
    if told.lease_ms:
        yield "load", f"one began and has not ended; readers may wait for it {_duration(told.lease_ms)} more at most"
    yield "warm", _warm(answer.warm)
    yield from _waiting_rows(answer)


def _state(told: Explanation) -> str:
    state = _STATES[told.state]
    return f"{_STALE[told.served]}: {state}" if told.state in STALE else state


def _why(told: Explanation, events: Mapping[str, Envelope]) -> Iterator[tuple[str, str]]:
    wrong = told.state in {State.INVALIDATED, State.GONE}
    if wrong and not told.complete:
        others = "others may have come before these" if told.changes else "it may have been invalidated, too"
        yield "why", f"the log does not have all that has happened since the load: {others}"
    shown = told.changes[:_LISTED] if wrong else told.changes[-1:]
    for change in shown:
        label = "why" if wrong else "last"
        yield label, f"{_what(change)} was invalidated {_ago(told, change.at_us)}"
        for line in _by(change, events):
            yield "", line
    if wrong and (more := len(told.changes) - len(shown)):
        yield "", f"and {more} more, the last {_ago(told, told.changes[-1].at_us)}; --json has them all"
    if not wrong and not told.changes:
        yield "last", "no invalidation is known"


def _by(change: Change, events: Mapping[str, Envelope]) -> Iterator[str]:
    cause = change.cause
    if cause.kind is Kind.EVENT:
        event = events.get(cause.event_id)
        name = cause.event_id if event is None else f"{event.type} {cause.event_id}"
        entry = "" if cause.stream_id in {"", cause.event_id} else f", entry {cause.stream_id}"
        yield f"by the event {name}{entry}"
        yield f"through {cause.rule}"
        latency_ms = latency(change)
        if latency_ms is not None:
            yield f"{_duration(latency_ms)} after it was in the stream"
    elif cause.kind is Kind.CALL:
        yield f"by a call of {cause.method} in {cause.process}"
    elif cause.kind is Kind.LOST:
        yield f"because events may have been lost{f' from {cause.stream}' if cause.stream else ''}: {_losses(cause)}"
    else:
        yield f"by {cause.text or 'somebody who did not say why'}"


def _losses(cause: Cause) -> str:
    return "; ".join(LOSSES.get(code, code) for code in cause.codes)


def _entry_rows(told: Explanation, entry: Entry) -> Iterator[tuple[str, str]]:
    born, facts = entry.born, entry.facts
    how = _HOW.get(facts.how, "")
    took = f", loaded in {_duration(born.load_us / 1000)}" if born.load_us else ""
    yield "filled", f"{_ago(told, born.filled_us)}, {how} in {facts.by}{took}"
    if told.state is State.FRESH and told.since_change_us is not None:
        yield "", f"{_duration(told.since_change_us / 1000)} after the last invalidation"
    yield "ttl", f"{_left(entry)}; {entry.size} bytes"


def _left(entry: Entry) -> str:
    if entry.left_ms is None:
        return "none"
    if entry.left_ms > 0:
        return f"{age(entry.left_ms / 1000)} left"
    return f"passed {age(-entry.left_ms / 1000)} ago"


def _warm(state: WarmState | None) -> str:
    if state is None:
        return "not known: the server of the jobs does not answer, or TIDINGS_JOBS_URL is missing"
    queued = "none is queued" if state.queued_for is None else "queued"
    now = "running" if state.running else queued
    if state.failing is None:
        return now
    failing = state.failing
    return f"{now}; keeps failing, {failing.failures} times: {failing.error}: {failing.message}"


def _waiting_rows(answer: Answer) -> Iterator[tuple[str, str]]:
    backlog = answer.backlog
    for stream in backlog.unread_by_anybody:
        yield "events", f"{stream} has events that no worker has ever read"
    if answer.concerning is None:
        if backlog.waiting or backlog.dead_letters:
            yield "events", f"{_count(backlog)}; --rules says which would invalidate this entry"
        return
    if answer.concerning and backlog.waiting:
        yield "events", _count(backlog)
    certain = [one for one in answer.concerning if one.names]
    for one in certain[:_LISTED]:
        yield one.place.value, f"{one.type} {one.stream_id} would invalidate {', '.join(one.names)}"
        if one.reason:
            yield "", f"it was set aside: {one.reason}"
    failing = [one for one in answer.concerning if not one.names]
    for one in failing[:_LISTED]:
        yield one.place.value, f"{one.type} {one.stream_id} might concern it: {one.failed}"
    more = max(0, len(certain) - _LISTED) + max(0, len(failing) - _LISTED)
    if more:
        yield "", f"and {more} more"
    if not answer.concerning:
        beyond = max(backlog.waiting, backlog.dead_letters) > MOST
        looked_at = f", of the {MOST} of each that were looked at," if beyond else ""
        yield "events", f"none that waits or was set aside{looked_at} would invalidate it"


def _count(backlog: Backlog) -> str:
    oldest = f" (the oldest {age(backlog.oldest_s)} old)" if backlog.waiting else ""
    letters = f"{backlog.dead_letters} dead letter{'' if backlog.dead_letters == 1 else 's'}"
    return f"{backlog.waiting} not applied yet{oldest}, {letters}"


def _duration(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < _SECOND_MS else age(ms / 1000)


def _token(now: TokenNow, *, loaded: bool) -> str:
    if now.same or (now.there and not loaded):
        return now.name
    if not now.there:
        return f"{now.name} ({'gone' if loaded else 'none yet'})"
    if now.same is None:
        return f"{now.name} (not the entry's)"
    return f"{now.name} ({'made anew' if own_change(now) is None else 'changed'})"


def _what(change: Change) -> str:
    return {"entry": "the entry itself", "all": "everything"}.get(change.what, change.what)


def _ago(told: Explanation, us: int) -> str:
    moment = datetime.fromtimestamp(us / 1e6, UTC)
    date = "" if told.now_us - us < _DAY_US else f"{moment:%Y-%m-%d} "
    return f"{age((told.now_us - us) / 1e6)} ago, at {date}{moment:%H:%M:%S.%f}"[:-3] + "Z"
