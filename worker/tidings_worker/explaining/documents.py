"""An answer as one JSON object, for programs. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tidings import Envelope
from tidings.causes import Kind

from .explanation import Entry, Explanation
from .gathering import Answer
from .history import Change, latency


def document(answer: Answer) -> dict[str, Any]:
    """Return plain JSON types; times are RFC 3339 in UTC, durations in the unit that their name ends in."""
    told = answer.explanation
    warm, backlog = answer.warm, answer.backlog
    return {
        "key": told.key,
        "call": answer.call or None,
        "state": told.state.value,
        "served": told.served,
        "unreadable": told.unreadable or None,
        "entry": None if told.entry is None else _entry_document(told, told.entry),
        "tokens": [{"name": now.name, "same": now.same, "there": now.there} for now in told.tokens],
        "changes": [_change_document(change, answer.events) for change in told.changes],
        "changes_complete": told.complete,
        "loading_for_at_most_ms": told.lease_ms or None,
        "warm": None
        if warm is None
        else {
            "queued": warm.queued_for is not None,
            "due": None if warm.queued_for is None else _rfc3339(round(warm.queued_for * 1e6)),
            "running": warm.running,
            "failing": None if warm.failing is None else f"{warm.failing.error}: {warm.failing.message}",
        },
        "events_waiting": backlog.waiting,
        "oldest_waiting_s": round(backlog.oldest_s, 3),
        "streams_without_group": backlog.unread_by_anybody,
        "dead_letters": backlog.dead_letters,
        "concerning": None
        if answer.concerning is None
        else [
            {
                "stream_id": one.stream_id,
                "type": one.type,
                "place": one.place.value,
                "invalidates": list(one.names),
                "failed": one.failed or None,
                "reason": one.reason or None,
            }
            for one in answer.concerning
        ],
    }


def _entry_document(told: Explanation, entry: Entry) -> dict[str, Any]:
    born, facts = entry.born, entry.facts
    return {
        "filled_at": _rfc3339(born.filled_us),
        "by": facts.by,
        "how": facts.how,
        "load_ms": born.load_us / 1000,
        "ttl_left_s": None if entry.left_ms is None else entry.left_ms / 1000,
        "bytes": entry.size,
        "tags": list(facts.tags),
        "after_last_change_ms": None if told.since_change_us is None else told.since_change_us / 1000,
    }


def _change_document(change: Change, events: Mapping[str, Envelope]) -> dict[str, Any]:
    cause = change.cause
    event = events.get(cause.event_id)
    return {
        "what": change.what,
        "at": _rfc3339(change.at_us),
        "kind": cause.kind.value,
        "cause": cause.text,
        "event": cause.event_id or None,
        "stream_id": cause.stream_id or None,
        "type": None if event is None else event.type,
        "rule": cause.rule or None,
        "latency_ms": latency(change) if cause.kind is Kind.EVENT else None,
        "method": cause.method or None,
        "process": cause.process or None,
        "lost": list(cause.codes),
        "stream": cause.stream or None,
    }


def _rfc3339(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
