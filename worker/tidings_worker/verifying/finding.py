"""What is told of an entry that is stale, or unstable. Pure."""

from tidings.calls import split_call
from tidings.causes import Kind, parse
from tidings.keys import tag_token
from tidings.layout import Token
from tidings.seen import Seen

from .reports import Finding, TokenSeen
from .subjects import Subject
from .verdicts import Difference, Outcome, Value, differs

#: Characters of a value that are shown where values are asked for.
_SHOWN = 200


def finding_of(
    subject: Subject, seen: Seen, outcome: Outcome, cached: Value, loaded: Value, *, values: bool, encrypted: bool
) -> Finding:
    """Return what to report of an entry, as it was seen; `loaded` is the last load.

    Without `values` neither they are told nor, where the namespace is encrypted, the arguments.
    """
    wanted, born, now_us = subject.request.target, seen.sighting.born, seen.looked.now_us
    change = differs(cached, loaded) or Difference("$", "there and back", (cached.value, cached.value))
    names = (*wanted.names, *map(tag_token, wanted.result_tags))
    tokens = [(name, Token.unpack(value or b"")) for name, value in zip(names, seen.looked.tokens, strict=True)]
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
