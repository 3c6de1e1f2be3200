"""What is told of an entry that is stale, or unstable. Pure."""

from dataclasses import dataclass

from tidings.calls import split_call
from tidings.causes import Kind, parse
from tidings.layout import Token
from tidings.seen import Seen

from .reports import Finding, TokenSeen
from .subjects import Subject
from .verdicts import Difference, Outcome, Value, differs

#: Characters of a value that are shown where values are asked for.
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Differing:
    """An entry that a load differs from: how it was first seen, with its tokens by name, and the loads since then."""

    subject: Subject
    first: Seen
    tokens: dict[str, bytes | None]
    cached: Value
    loads: list[Value]


def finding_of(differing: Differing, outcome: Outcome, *, values: bool, encrypted: bool) -> Finding:
    """Return what to report of an entry.

    Without `values` neither they are told nor, where the namespace is encrypted, the arguments.
    """
    subject, seen, cached = differing.subject, differing.first, differing.cached
    wanted, born, now_us = subject.request.target, seen.sighting.born, seen.looked.now_us
    change = differs(cached, differing.loads[-1]) or Difference("$", "there and back", (cached.value, cached.value))
    tokens = [(name, Token.unpack(value or b"")) for name, value in differing.tokens.items()]
    return Finding(
        outcome,
        subject.key,
        subject.namespace,
        split_call(subject.call)[0] if encrypted and not values else subject.call,
        _seconds(now_us, now_us if born is None else born.filled_us),
        subject.facts.by,
        subject.facts.how,
        (*wanted.tags, *wanted.result_tags),
        change.place,
        change.how,
        tuple(_token(name, token, now_us) for name, token in tokens if token is not None),
        *((_shown(value) for value in change.pair) if values else (None, None)),
    )


def _token(name: str, token: Token, now_us: int) -> TokenSeen:
    if parse(token.cause).kind is Kind.FIRST_USE:  # its time is that of the last invalidation of anything
        return TokenSeen(name, "", None)
    return TokenSeen(name, token.cause, _seconds(now_us, token.made_us))


def _seconds(now_us: int, then_us: int) -> float:
    return max(0.0, round((now_us - then_us) / 1e6, 3))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
