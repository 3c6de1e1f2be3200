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
served. The vacancy also makes a load in flight visible in the keyspace, so that a scan by pattern meets it.

**Sharing.** Somebody who starts after an acknowledgement must not be handed a load that began before it. Loads in
flight are therefore keyed by entry, lineage and tokens (`Ticket`): a reader joins only a load that began under what it
has itself just read.
"""

import json
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

#: Characters of a token's or lineage's unique part: 96 random bits as URL-safe base64.
UNIQUE_LENGTH = 16

# The first byte of an entry is the version of this layout:
#
#   kind (2 bytes) lineage (16) | number of tokens (1) tokens (16 each) | length of facts (4) facts (JSON) | payload
#
# Facts are for people and for `Cache.get`; a hit skips them unread.
_ENTRY = b"\x01e"
_VACANT = b"\x01v"

#: Where the lineage stands in an entry's bytes; the fill script compares just these.
LINEAGE_START, LINEAGE_END = 2, 2 + UNIQUE_LENGTH
_COUNT = struct.Struct(">B")
_LENGTH = struct.Struct(">I")
_TOKENS_START = LINEAGE_END + _COUNT.size

#: A header counts its tokens in one byte; two are taken by "everything" and the namespace.
MAX_TAGS = 253


def unique() -> bytes:
    """Return a value that has not been used before and will not be again: 96 random bits."""
    return secrets.token_urlsafe(12).encode("ascii")


def token_value(cause: str) -> bytes:
    """Return a token's bytes: the unique part, then why it was made, which readers ignore and people ask for."""
    return unique() + b" " + cause.encode("utf-8", "surrogatepass")


class Verdict(Enum):
    """What the bytes under an entry's key are, given the tokens read with them."""

    FRESH = "fresh"
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
    """One read, judged. `ticket` is None when something has to be made first: a vacancy, or the tokens in `missing`."""

    verdict: Verdict
    payload: bytes | None
    ticket: Ticket | None
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What an entry says of itself beyond what the fence needs: its tags, milliseconds to load, and who loaded it."""

    tags: tuple[str, ...]
    load_ms: float
    by: str


def pack_entry(ticket: Ticket, facts: Facts, payload: bytes) -> bytes:
    """Return the bytes to store for a value loaded under this ticket."""
    text = json.dumps({"tags": facts.tags, "load_ms": facts.load_ms, "by": facts.by}, separators=(",", ":")).encode()
    count, length = _COUNT.pack(len(ticket.tokens)), _LENGTH.pack(len(text))
    return b"".join((_ENTRY, ticket.lineage, count, *ticket.tokens, length, text, payload))


def pack_vacancy() -> bytes:
    """Return the bytes that start a new lineage: a reader's claim on nothing, or an invalidated entry's tombstone."""
    return _VACANT + unique()


def judge(key: str, entry: bytes | None, tokens: Sequence[bytes | None]) -> Sighting:
    """Decide what one read of an entry and its tokens means. Never raises, whatever the bytes are.

    `tokens` are in the order in which the entry's keys were named: everything, namespace, tags.
    """
    seen = tuple(None if token is None or len(token) < UNIQUE_LENGTH else token[:UNIQUE_LENGTH] for token in tokens)
    missing = tuple(index for index, token in enumerate(seen) if token is None)
    kind = entry[:LINEAGE_START] if entry is not None and len(entry) >= LINEAGE_END else b""
    if entry is None or kind not in {_ENTRY, _VACANT}:
        return Sighting(Verdict.ABSENT, None, None, missing)
    lineage = entry[LINEAGE_START:LINEAGE_END]
    ticket = None if missing else Ticket(key, lineage, tuple(token for token in seen if token is not None))
    if kind == _VACANT:
        return Sighting(Verdict.VACANT, None, ticket, missing)
    if ticket is not None:
        start = _TOKENS_START + UNIQUE_LENGTH * len(seen)
        if entry[LINEAGE_END:start] == _COUNT.pack(len(seen)) + b"".join(ticket.tokens):
            _, payload = _split(entry, start)
            return Sighting(Verdict.FRESH, payload, ticket, ())
    return Sighting(Verdict.INVALIDATED, None, ticket, missing)


def facts_of(entry: bytes | None) -> Facts | None:
    """Return what an entry says of itself, valid or not; None for a vacancy, nothing or foreign bytes."""
    if entry is None or entry[:LINEAGE_START] != _ENTRY or len(entry) < _TOKENS_START:
        return None
    (count,) = _COUNT.unpack_from(entry, LINEAGE_END)
    text, _ = _split(entry, _TOKENS_START + UNIQUE_LENGTH * count)
    try:
        fields = json.loads(text)
        tags = tuple(fields["tags"])
        facts = Facts(tags, float(fields["load_ms"]), str(fields["by"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    wrong = len(tags) > MAX_TAGS or not all(isinstance(tag, str) and tag for tag in tags)
    return None if wrong else facts


def _split(entry: bytes, start: int) -> tuple[bytes, bytes]:
    """Return the facts and the payload, which a truncated entry leaves empty."""
    if len(entry) < start + _LENGTH.size:
        return b"", b""
    (length,) = _LENGTH.unpack_from(entry, start)
    end = start + _LENGTH.size + length
    return entry[start + _LENGTH.size : end], entry[end:]
