"""What is known of an entry, and what it means. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tidings.causes import Kind, parse
from tidings.fence import Verdict, judge
from tidings.layout import (
    ENTRY_KINDS,
    LINEAGE_START,
    UNIQUE_LENGTH,
    VACANT,
    Born,
    Facts,
    Token,
    born_of,
    facts_of,
    header_tokens,
)

from .history import Change, Log


class State(Enum):
    """What a reader that asks now finds."""

    #: it is served
    FRESH = "fresh"
    #: its ttl has passed; it is kept for `stale_while_revalidate` or `stale_if_error`
    EXPIRED = "expired"
    #: a token has changed since it was loaded
    INVALIDATED = "invalidated"
    #: a token that it depends on is gone: evicted, flushed or expired
    GONE = "token gone"
    #: it was invalidated by its name or is being loaded for the first time: there is no value
    VACANT = "vacant"
    #: nothing is there
    ABSENT = "absent"
    #: what is there is none of our entries, or of another version of the layout
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class TokenNow:
    """A token that an entry depends on. `same`: the entry was loaded under the value that it has now."""

    name: str
    same: bool
    #: None: there is none
    token: Token | None


@dataclass(frozen=True, slots=True)
class Found:
    """What one look has found, all of it at one server's time."""

    key: str
    names: tuple[str, ...]
    entry: bytes | None
    tokens: Sequence[bytes | None]
    left_ms: int | None
    now_us: int
    log: Log
    #: milliseconds that somebody still has for loading it; 0: nobody loads it
    lease_ms: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry says of itself; times are the server's, in microseconds."""

    born: Born
    facts: Facts
    #: all of it, header and facts too
    size: int
    #: milliseconds of its ttl that are left; below 0: it is kept beyond it
    left_ms: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an entry is served, or is not."""

    key: str
    state: State
    now_us: int
    entry: Entry | None
    tokens: tuple[TokenNow, ...]
    #: what made it wrong, the first first; of one that is served or absent, what was invalidated last before
    changes: tuple[Change, ...]
    #: whether the log still goes back to the load: else there may have been changes before the first of these
    complete: bool
    lease_ms: int

    @property
    def since_change_us(self) -> int | None:
        """From the last change until the entry was filled anew; None unless it is newer than a change."""
        last = max((change.at_us for change in self.changes), default=None)
        if last is None or self.entry is None or self.entry.born.filled_us < last:
            return None
        return self.entry.born.filled_us - last


def explain(found: Found) -> Explanation:
    """Decide what was found means. Never raises, whatever the bytes are."""
    header = header_tokens(found.entry or b"")
    entry = _entry(found)
    tokens = tuple(
        TokenNow(name, _is_same(index, header, value), None if value is None else Token.unpack(value))
        for index, (name, value) in enumerate(zip(found.names, found.tokens, strict=True))
    )
    state = _state(found, entry, tokens)
    if state in {State.INVALIDATED, State.GONE} and entry is not None:
        changes, complete = _since_the_load(found, entry, header, tokens)
    else:
        changes, complete = _before(found, entry, tokens), True
    return Explanation(found.key, state, found.now_us, entry, tokens, changes, complete, found.lease_ms)


def _entry(found: Found) -> Entry | None:
    born, facts = born_of(found.entry), facts_of(found.entry)
    if found.entry is None or born is None or facts is None:
        return None
    left_ms = None if found.left_ms is None else found.left_ms - born.grace_ms
    return Entry(born, facts, len(found.entry), left_ms)


def _is_same(index: int, header: tuple[bytes, ...], value: bytes | None) -> bool:
    return value is not None and index < len(header) and header[index] == value[:UNIQUE_LENGTH]


def _state(found: Found, entry: Entry | None, tokens: Sequence[TokenNow]) -> State:
    if found.entry is None:
        return State.ABSENT
    if found.entry[:LINEAGE_START] == VACANT:
        return State.VACANT
    if found.entry[:LINEAGE_START] not in ENTRY_KINDS or entry is None:
        return State.FOREIGN
    verdict = judge(found.key, found.entry, found.tokens, found.left_ms).verdict
    if verdict is Verdict.FRESH:
        return State.FRESH
    if verdict is Verdict.EXPIRED:
        return State.EXPIRED
    changed = any(not token.same and token.token is not None for token in tokens)
    return State.INVALIDATED if changed else State.GONE


def _since_the_load(
    found: Found, entry: Entry, header: tuple[bytes, ...], tokens: Sequence[TokenNow]
) -> tuple[tuple[Change, ...], bool]:
    """Return the changes of the entry's tokens since its load, and whether these are all.

    A token names the value before it: where that is the entry's, its last change is the only one. Else the log has the
    others, as far as it goes back.
    """
    changes: list[Change] = []
    complete = True
    began_us = entry.born.filled_us - entry.born.load_us
    for index, now in enumerate(tokens):
        if now.same:
            continue
        told = [change for change in found.log.changes if change.what == now.name and change.at_us >= began_us]
        own = own_change(now)
        if own is not None and index < len(header) and now.token is not None and now.token.before == header[index]:
            changes.append(own)
            continue
        if own is not None and own.at_us not in {change.at_us for change in told}:
            told.append(own)
        complete = complete and found.log.complete
        changes += told
    return tuple(sorted(changes, key=lambda change: change.at_us)), complete


def _before(found: Found, entry: Entry | None, tokens: Sequence[TokenNow]) -> tuple[Change, ...]:
    """Return the last invalidation of each token, and of the entry itself, before what there is was filled."""
    own = [change for change in map(own_change, tokens) if change is not None]
    named = [change for change in found.log.changes if change.what not in found.names]
    newest = max(named, key=lambda change: change.at_us, default=None)
    until = found.now_us if entry is None else entry.born.filled_us
    known = [*own, *([] if newest is None else [newest])]
    return tuple(sorted((change for change in known if change.at_us <= until), key=lambda change: change.at_us))


def own_change(now: TokenNow) -> Change | None:
    """Return the invalidation that a token tells of; None for a token that nobody has invalidated."""
    if now.token is None:
        return None
    cause = parse(now.token.cause)
    return None if cause.kind is Kind.FIRST_USE else Change(now.name, now.token.made_us, cause)
