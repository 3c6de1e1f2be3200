"""What is known of an entry, and what it means. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from tidings.causes import Kind, parse
from tidings.entries import Looked
from tidings.fence import Sighting, Verdict, judge
from tidings.layout import (
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
from tidings.policy import Policy
from tidings.seen import Seen

from .history import Change, Log, change_at


class State(Enum):
    """What a reader that asks now finds."""

    #: it is served
    FRESH = "fresh"
    #: its ttl has passed; it is kept for `stale_while_revalidate` or `stale_if_error`
    EXPIRED = "expired"
    #: a token has changed since it was loaded
    INVALIDATED = "invalidated"
    #: a token that it depends on is gone, or was and is made anew: evicted, flushed or expired
    GONE = "token gone"
    #: it was loaded under other tags than its function gives the call now
    RETAGGED = "other tags"
    #: it is valid, and its value does not decode here
    UNREADABLE = "unreadable"
    #: `when` says that this call is not cached
    BYPASSED = "bypassed"
    #: there is no value: it was invalidated by its name, or a load has stored none
    VACANT = "vacant"
    #: nothing is there
    ABSENT = "absent"
    #: what is there is none of our entries, or of another version of the layout
    FOREIGN = "foreign"


#: There is a value, and it is not valid: whether it is served stale is up to the function's options.
STALE = frozenset((State.EXPIRED, State.INVALIDATED, State.GONE, State.RETAGGED))


@dataclass(frozen=True, slots=True)
class TokenNow:
    """A token that an entry depends on, or should.

    `same`: the entry was loaded under the value that it has now; None: under none, or there is no entry.
    """

    name: str
    same: bool | None
    there: bool
    #: what it says of itself; None: there is none, or its bytes say nothing
    token: Token | None


@dataclass(frozen=True, slots=True)
class Found:
    """What one look has found, all of it at one server's time."""

    key: str
    #: of tokens: those of the entry in the order of its header, and behind them those that its function asks for too
    names: tuple[str, ...]
    entry: bytes | None
    tokens: Sequence[bytes | None]
    left_ms: int | None
    now_us: int
    log: Log
    #: milliseconds that somebody still has for loading it; 0: nobody loads it
    lease_ms: int = 0
    #: of the function; None: it is not known
    policy: Policy | None = None
    bypassed: bool = False
    #: whether the function gives the call other tags than the entry has
    retagged: bool = False
    #: why the value does not decode here; empty: it does, or nobody can tell
    unreadable: str = ""


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
    #: None: only the function's options tell, and it is not known
    served: bool | None
    now_us: int
    entry: Entry | None
    tokens: tuple[TokenNow, ...]
    #: what made it wrong, the first first; of one that is served or absent, what was invalidated last before
    changes: tuple[Change, ...]
    #: whether these are all of them, as far as can be told
    complete: bool
    lease_ms: int
    policy: Policy | None
    unreadable: str

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
        TokenNow(name, _is_same(index, header, value), _is_token(value), None if value is None else Token.unpack(value))
        for index, (name, value) in enumerate(zip(found.names, found.tokens, strict=True))
    )
    sighting = judge(found.key, found.entry, found.tokens[: len(header)], found.left_ms)
    since, complete = ((), True) if entry is None else _since_the_load(found, entry, header, tokens)
    state = _state(found, entry, sighting, since)
    wrong = state in {State.INVALIDATED, State.GONE}
    return Explanation(
        found.key,
        state,
        _served(found, state, sighting),
        found.now_us,
        entry,
        tokens,
        since if wrong else _before(found, entry, tokens),
        complete or not wrong,
        found.lease_ms,
        found.policy,
        found.unreadable,
    )


def _entry(found: Found) -> Entry | None:
    born, facts = born_of(found.entry), facts_of(found.entry)
    if found.entry is None or born is None or facts is None:
        return None
    left_ms = None if found.left_ms is None else found.left_ms - born.grace_ms
    return Entry(born, facts, len(found.entry), left_ms)


def _is_same(index: int, header: tuple[bytes, ...], value: bytes | None) -> bool | None:
    return value is not None and header[index] == value[:UNIQUE_LENGTH] if index < len(header) else None


def _is_token(value: bytes | None) -> bool:
    return value is not None and len(value) >= UNIQUE_LENGTH


def _state(found: Found, entry: Entry | None, sighting: Sighting, since: Sequence[Change]) -> State:
    if found.bypassed:
        return State.BYPASSED
    if entry is None:
        vacant = found.entry is not None and found.entry[:LINEAGE_START] == VACANT
        none = State.VACANT if vacant else State.FOREIGN
        return State.ABSENT if found.entry is None else none
    if sighting.verdict is Verdict.INVALIDATED:
        return State.INVALIDATED if since else State.GONE
    if found.retagged:
        return State.RETAGGED
    valid = State.FRESH if sighting.verdict is Verdict.FRESH else State.EXPIRED
    return State.UNREADABLE if found.unreadable else valid


def _served(found: Found, state: State, sighting: Sighting) -> bool | None:
    """Say whether a reader is given the value, stale or not; None: that is up to options that are not known."""
    if state not in STALE:
        return state is State.FRESH
    if found.unreadable:
        return False
    if found.policy is None:
        return None
    if state is State.RETAGGED:  # to a reader, who looks for other tokens, it is as good as invalidated
        sighting = replace(sighting, verdict=Verdict.INVALIDATED)
    looked = Looked(found.entry, list(found.tokens), found.left_ms, found.now_us)
    return Seen(sighting, looked, None, value=b"", payload=b"", at=0.0).permitted(found.policy)


def _since_the_load(
    found: Found, entry: Entry, header: tuple[bytes, ...], tokens: Sequence[TokenNow]
) -> tuple[tuple[Change, ...], bool]:
    """Return the changes of the entry's tokens since its load, and whether these are all."""
    changes: list[Change] = []
    complete = True
    born = entry.born
    loaded_us = born.filled_us - born.load_us
    began_us = min(born.seen_us or loaded_us, loaded_us)
    for loaded_under, now in zip(header, tokens, strict=False):
        if not now.same:
            known, all_of_them = _of_token(now, loaded_under, found.log, began_us)
            changes += known
            complete = complete and all_of_them
    return tuple(sorted(changes, key=lambda change: change.at_us)), complete


def _of_token(now: TokenNow, loaded_under: bytes, log: Log, began_us: int) -> tuple[list[Change], bool]:
    """Return the changes of one token since a load, and whether these are all.

    It names the value before it: where that is the entry's, its last change is the only one. Else there were more, or
    it was gone for a while, and the log has what was invalidated, as far as it goes back.
    """
    last = own_change(now)
    if last is not None and now.token is not None and now.token.before == loaded_under:
        return [last], True
    told = [change for change in log.changes if change.what == now.name and change.at_us >= began_us]
    # On a cluster the log's entry is written when the token is, and its time is a little later.
    if last is not None and not any(change.cause == last.cause and change.at_us >= last.at_us for change in told):
        told.append(last)
    return told, log.reaches(began_us) and (last is None or len(told) > 1)


def _before(found: Found, entry: Entry | None, tokens: Sequence[TokenNow]) -> tuple[Change, ...]:
    """Return the last invalidation of each token, and of the entry itself, before what there is was filled."""
    own = [change for change in map(own_change, tokens) if change is not None]
    until_us = found.now_us if entry is None else entry.born.filled_us
    named = [change for change in found.log.changes if change.what not in found.names and change.at_us <= until_us]
    newest = max(named, key=lambda change: change.at_us, default=None)
    return tuple(sorted([*own, *([] if newest is None else [newest])], key=lambda change: change.at_us))


def own_change(now: TokenNow) -> Change | None:
    """Return the invalidation that a token tells of; None for a token that nobody has invalidated."""
    if now.token is None:
        return None
    cause = parse(now.token.cause)
    return None if cause.kind is Kind.FIRST_USE else change_at(now.name, now.token.made_us, cause)
