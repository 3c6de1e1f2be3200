"""The bytes of entries and tokens in Redis: how they are put together and taken apart. Pure; hostile bytes included.

The first byte of an entry is the version of this layout:

    kind (2 bytes) lineage (16) | number of tokens (1) tokens (16 each) | time filled (16 digits) | times, length of
    facts (28) | facts (JSON) | payload

Facts are for people and for readers that do not know the tags; a hit skips them unread. The server puts in the time of
the fill, and the tokens of result tags, which nobody else knows.
"""

import json
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

#: Characters of a token's or lineage's unique part: 96 random bits as URL-safe base64.
UNIQUE_LENGTH = 16

#: Digits of a server time in microseconds: enough until the year 2286.
STAMP_LENGTH = 16

ENTRY = b"\x03e"
KEPT = b"\x03g"  # an entry that is kept for a while after its ttl has passed: whoever reads it asks for its ttl
VACANT = b"\x03v"
ENTRY_KINDS = (ENTRY, KEPT)

#: Where the lineage stands in an entry's bytes; the fill script compares just these.
LINEAGE_START, LINEAGE_END = 2, 2 + UNIQUE_LENGTH
_COUNT = struct.Struct(">B")
TOKENS_START = LINEAGE_END + _COUNT.size
_BORN = struct.Struct(">QQQI")

#: Bytes between the tokens and the facts.
BORN_LENGTH = STAMP_LENGTH + _BORN.size

#: A header counts its tokens in one byte; two are taken by "everything" and the namespace.
MAX_TAGS = 253

#: Stands in a token where there was no value before it.
NO_TOKEN = b"-" * UNIQUE_LENGTH


def unique() -> bytes:
    """Return a value that has not been used before and will not be again: 96 random bits."""
    return secrets.token_urlsafe(12).encode("ascii")


@dataclass(frozen=True, slots=True)
class Token:
    """A token's value, ``{unique} {server µs} {unique before it} {cause}``; readers compare the first part alone."""

    value: bytes
    made_us: int
    before: bytes
    cause: str

    def pack(self) -> bytes:
        """Return the bytes that the scripts in `operations` write as well."""
        return b"%b %0*d %b %b" % (self.value, STAMP_LENGTH, self.made_us, self.before, encode_cause(self.cause))

    @classmethod
    def unpack(cls, data: bytes) -> "Token | None":
        """Read a token; None for bytes that are none."""
        parts = data.split(b" ", 3)
        if len(parts) != 4:  # noqa: PLR2004
            return None
        value, stamp, before, cause = parts
        if len(value) != UNIQUE_LENGTH or not stamp.isdigit():
            return None
        try:
            made_us = int(stamp)
        except ValueError:  # more digits than Python reads
            return None
        return cls(value, made_us, before, cause.decode("utf-8", "replace"))


def encode_cause(cause: str) -> bytes:
    """Return why a token was made, as bytes: whatever text an event's id or a rule's name is."""
    return cause.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Born:
    """When a value came to be, by the server's clock, and how long it is kept beyond its ttl."""

    #: server time in microseconds before the load; 0: nobody asked
    seen_us: int
    #: server time in microseconds of the fill
    filled_us: int
    load_us: int
    #: milliseconds that it is kept beyond its ttl
    grace_ms: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What an entry says of itself beyond what the fence needs: for people, and for whoever has only the entry."""

    tags: tuple[str, ...]
    #: the process that filled it
    by: str
    #: why it did: for a "read", as a "warm", a "refresh", or a "set" by hand
    how: str = "read"
    #: the call whose result it is, see `calls.call_text`; sealed where the value is encrypted, empty where it has none
    call: str = ""


@dataclass(frozen=True, slots=True)
class Packed:
    """An entry without what only the server knows: `assemble` and the fill script put it together."""

    #: kind, lineage
    head: bytes
    tokens: tuple[bytes, ...]
    #: times, length of facts, facts, payload
    rest: bytes

    @property
    def header(self) -> bytes:
        """Everything before the time of the fill, where there are no result tags."""
        return b"".join((self.head, _COUNT.pack(len(self.tokens)), *self.tokens))

    def assemble(self, results: Sequence[bytes], stamp_us: int) -> bytes:
        """Return the entry's bytes, with the tokens of its result tags and the server's time in microseconds."""
        header = Packed(self.head, (*self.tokens, *results), b"").header
        return b"".join((header, b"%0*d" % (STAMP_LENGTH, stamp_us), self.rest))


def pack_entry(
    lineage: bytes,
    tokens: tuple[bytes, ...],
    facts: Facts,
    payload: bytes,
    *,
    seen_us: int = 0,
    load_us: int = 0,
    grace_ms: int = 0,
) -> Packed:
    """Return what to store for a value loaded under this lineage and these tokens; times as in `Born`."""
    told = {"tags": facts.tags, "by": facts.by, "how": facts.how, "call": facts.call}
    text = json.dumps(told, separators=(",", ":")).encode()
    times = _BORN.pack(seen_us, load_us, grace_ms, len(text))
    return Packed((KEPT if grace_ms else ENTRY) + lineage, tokens, b"".join((times, text, payload)))


def pack_vacancy() -> bytes:
    """Return the bytes that start a new lineage: a reader's claim on nothing, or an invalidated entry's tombstone."""
    return VACANT + unique()


def header_tokens(entry: bytes) -> tuple[bytes, ...]:
    """Return the tokens that an entry was loaded under; a truncated entry has fewer."""
    count = entry[LINEAGE_END] if len(entry) > LINEAGE_END else 0
    last = min(len(entry), TOKENS_START + UNIQUE_LENGTH * count)
    ends = range(TOKENS_START + UNIQUE_LENGTH, last + 1, UNIQUE_LENGTH)
    return tuple(entry[end - UNIQUE_LENGTH : end] for end in ends)


def facts_of(entry: bytes | None) -> Facts | None:
    """Return what an entry says of itself, valid or not; None for a vacancy, nothing or foreign bytes."""
    if entry is None or entry[:LINEAGE_START] not in ENTRY_KINDS or len(entry) <= LINEAGE_END:
        return None
    text, _ = _facts_and_payload(entry, len(header_tokens(entry)))
    try:
        fields = json.loads(text)
        tags = tuple(fields["tags"])
        facts = Facts(tags, str(fields["by"]), str(fields.get("how", "")), str(fields.get("call", "")))
        "".join(tags).encode()
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    wrong = len(tags) > MAX_TAGS or not all(isinstance(tag, str) and tag for tag in tags)
    return None if wrong else facts


def born_of(entry: bytes | None) -> Born | None:
    """Return when an entry came to be, valid or not; None for a vacancy, nothing, foreign or truncated bytes."""
    if entry is None or entry[:LINEAGE_START] not in ENTRY_KINDS:
        return None
    return _born(entry, len(header_tokens(entry)))


def born_and_payload(entry: bytes, tokens: int) -> tuple[Born | None, bytes]:
    """Return an entry's times and payload, given the number of its tokens; (None, b"") for a truncated one."""
    born = _born(entry, tokens)
    return born, b"" if born is None else _facts_and_payload(entry, tokens)[1]


def _born(entry: bytes, tokens: int) -> Born | None:
    start = TOKENS_START + UNIQUE_LENGTH * tokens
    stamp = entry[start : start + STAMP_LENGTH]
    if len(entry) < start + BORN_LENGTH or not stamp.isdigit():
        return None
    seen_us, load_us, grace_ms, _ = _BORN.unpack_from(entry, start + STAMP_LENGTH)
    return Born(seen_us, int(stamp), load_us, grace_ms)


def _facts_and_payload(entry: bytes, tokens: int) -> tuple[bytes, bytes]:
    """Return the facts and the payload, which a truncated entry leaves empty."""
    start = TOKENS_START + UNIQUE_LENGTH * tokens + BORN_LENGTH
    length = int.from_bytes(entry[start - 4 : start], "big") if len(entry) >= start else 0
    return entry[start : start + length], entry[start + length :]
