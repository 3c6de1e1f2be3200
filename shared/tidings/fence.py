"""The fence: why a value that was loaded before an acknowledged invalidation is never served from Redis. Sans I/O.

Every cache of this kind meets this interleaving, and without a fence serves the old row until its TTL:

    1. reader    looks up the entry: nothing
    2. reader    loads: reads the old row
    3. writer    commits the new row
    4. writer    invalidates, and is told that it is done
    5. reader    stores the old row
    6. anybody   is served the old row

**Tokens.** "Everything", each namespace and each tag has a token key that holds a value never used before or again. The
reader of step 1 has read the entry *and* its tokens, and puts those tokens into the header of what it stores in step 5.
Step 4 gave the token a new value. Whoever looks in step 6 reads entry and tokens in one command, finds them unequal,
and loads. The argument needs only the order 1 before 2, and 4 between 3 and its acknowledgement:

    served  =>  header tokens = current tokens
            =>  no invalidation between reading the tokens (1) and now (6), since values never repeat
            =>  the load (2) saw every row committed before any invalidation acknowledged before now

A token that is missing (never made, expired, evicted, flushed) equals nothing, so it costs a miss; the reader makes a
fresh one before it loads. There is no clock in this, and no counter that could restart.

**Lineage.** Invalidating *one entry* (`delete`, `.invalidate(*args)`, a pattern) changes no token. Deleting the key
alone would lose the race above, and "store only where there is nothing" cannot tell nothing from nothing again:

    1. reader    looks up the entry: nothing;  loads the old row
    2. writer    commits, invalidates the entry: leaves a tombstone for a while
    3. the tombstone expires
    4. reader    finds nothing, as in step 1, and stores the old row

So a reader never loads against nothing. Every value of an entry's key carries a *lineage*, as unique as a token; a
reader that finds no lineage first leaves a *vacancy* with a fresh one (SET only where there is nothing), and a fill may
replace only a value of the lineage that its reader saw before the load. Fills hand the lineage on, invalidating an
entry starts a new one by leaving a vacancy (that is the tombstone), and where the key is gone, for whatever reason, the
fill is refused:

    stored  =>  lineage now = lineage before the load  =>  the entry was not invalidated in between

Two fills of one lineage may overwrite each other in either order: whichever stands, its own tokens decide whether it is
served.

**Patterns.** A scan finds keys, and a load that has stored nothing yet would have none: its fill would come after the
scan has passed. But a load leaves a vacancy before it starts, so its key is there from before the call on. Either the
scan meets it (SCAN returns every key that exists from its beginning to its end) and deletes it, or it went before; in
both cases the lineage is gone and the fill is refused. What begins to load after the call began is not the call's
business.

**Result tags** are known only after the load, so their tokens cannot have been read before it. Instead the time of the
invalidation log is: each entry of the log has a time behind that of the one before it, whatever the server's clock
does, and every token carries the time that the log had when it was made. So

    1. reader    opens: notes the log's time t and its last id, then loads
    2. writer    commits, invalidates the tag: its token is made anew at a time behind t
    3. reader    fills, naming the tag

In step 3 the server, in one script with storing the value, refuses it when the token's time is behind t. A token that
is missing might have been invalidated and then evicted: the value is refused as well, unless the log's last id is still
the one of step 1, which proves that nothing at all was invalidated since. The token is made for the next load. And the
log may be evicted with the token, whose next value then has a time that says nothing: so the log's entry of step 1 must
still be there.

    stored  =>  the log goes back to t, and since then nothing is logged, or no result tag's token has a time behind t
            =>  no invalidation of the tag between t (before the load) and now  =>  the header may name today's tokens

**Sharing.** Somebody who starts after an acknowledgement must not be handed a load that began before it. Loads in
flight are therefore keyed by entry, lineage and tokens (`Ticket`): a reader joins only a load that began under what it
has itself just read. A lease across processes carries the same ticket, so a reader of newer tokens does not wait for
it, and whoever waited looks at entry and tokens again, as any other reader.

**Age.** How long an invalidated value has been wrong is the time since the *first* invalidation after its load. A token
names the value before it, so if just one invalidation came in between, that is known exactly; otherwise it is at most
the time since the load began, which the header has. Both are the server's own times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .layout import (
    BORN_LENGTH,
    ENTRY,
    KEPT,
    LINEAGE_END,
    LINEAGE_START,
    TOKENS_START,
    UNIQUE_LENGTH,
    VACANT,
    Born,
    Token,
    born_and_payload,
    header_tokens,
)


class Verdict(Enum):
    """What the bytes under an entry's key are, given the tokens read with them."""

    FRESH = "fresh"
    #: valid by its tokens, and kept beyond its ttl
    EXPIRED = "expired"
    INVALIDATED = "invalidated"
    VACANT = "vacant"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a reader saw before its load: the identity of the load, and what its fill will be held to."""

    key: str
    lineage: bytes
    tokens: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Sighting:
    """One read, judged. `ticket` is None when something has to be made first: a vacancy, or the tokens in `missing`.

    `payload` and `born` are there unless there is no value; `superseded_us` is the server time at which an invalidated
    value became wrong, if that is known exactly.
    """

    verdict: Verdict
    ticket: Ticket | None
    missing: tuple[int, ...]
    payload: bytes | None = None
    born: Born | None = None
    superseded_us: int | None = None


def uniques(tokens: Sequence[bytes | None]) -> bytes | None:
    """Return what a header has for these tokens, or None when one is missing or hostile."""
    try:
        joined = b"".join([token[:UNIQUE_LENGTH] for token in tokens])  # type: ignore[index]
    except TypeError:
        return None
    return joined if len(joined) == UNIQUE_LENGTH * len(tokens) else None


def hit(entry: bytes | None, current: bytes | None) -> int:
    """Return where in a fresh entry without grace its payload begins; 0: `judge` has to tell what else it is.

    `current` is `uniques` of the tokens that were read with it. It is the same decision as `judge` makes, for the one
    case that has to be fast.
    """
    if entry is None or current is None or entry[:LINEAGE_START] != ENTRY:
        return 0
    end = TOKENS_START + len(current)
    if entry[TOKENS_START:end] != current or entry[LINEAGE_END] * UNIQUE_LENGTH != len(current):
        return 0
    start = end + BORN_LENGTH
    return start + int.from_bytes(entry[start - 4 : start], "big")


def judge(key: str, entry: bytes | None, tokens: Sequence[bytes | None], left_ms: int | None = None) -> Sighting:
    """Decide what one read of an entry and its tokens means. Never raises, whatever the bytes are.

    `tokens` are in the order in which the entry's keys were named: everything, namespace, tags. `left_ms` is how long
    Redis still keeps the entry (None: not asked, and then a value that is kept beyond its ttl counts as expired).
    """
    seen = tuple(None if token is None or len(token) < UNIQUE_LENGTH else token[:UNIQUE_LENGTH] for token in tokens)
    missing = tuple(index for index, token in enumerate(seen) if token is None)
    kind = entry[:LINEAGE_START] if entry is not None and len(entry) >= LINEAGE_END else b""
    if entry is None or kind not in {ENTRY, KEPT, VACANT}:
        return Sighting(Verdict.ABSENT, None, missing)
    lineage = entry[LINEAGE_START:LINEAGE_END]
    ticket = None if missing else Ticket(key, lineage, tuple(token for token in seen if token is not None))
    if kind == VACANT:
        return Sighting(Verdict.VACANT, ticket, missing)
    header = header_tokens(entry)
    born, payload = born_and_payload(entry, len(header))
    if ticket is not None and ticket.tokens == header:
        over = born is not None and born.grace_ms > 0 and (left_ms is None or left_ms <= born.grace_ms)
        return Sighting(Verdict.EXPIRED if over else Verdict.FRESH, ticket, (), payload, born)
    return Sighting(Verdict.INVALIDATED, ticket, missing, payload, born, _superseded(header, tokens))


def _superseded(header: tuple[bytes, ...], tokens: Sequence[bytes | None]) -> int | None:
    """Return when the first of an entry's tokens was replaced, or None when a token's history does not reach back."""
    if len(header) != len(tokens):
        return None
    times: list[int] = []
    for own, current in zip(header, tokens, strict=True):
        if current is not None and current[:UNIQUE_LENGTH] == own:
            continue
        token = None if current is None else Token.unpack(current)
        if token is None or token.before != own:
            return None
        times.append(token.made_us)
    return min(times, default=None)
