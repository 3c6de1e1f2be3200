"""What each step of the fence asks of Redis: commands and how to read their replies, as values. Sans I/O.

An operation is one exchange with the server. `store` sends it, from a coroutine or from a thread, and `memory` carries
it out on a dict; both know nothing of the fence, and the fence knows nothing of them. On one server each is a single
command. None needs its keys to change together: given to a script one by one, they give the same promises, which is how
a cluster will have it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Protocol, TypeVar

from .fence import LINEAGE_END, LINEAGE_START, token_value

#: Entries kept in the stream of applied events, about: a receipt that falls behind further asks after its event
#: instead.
APPLIED_LENGTH = 1000

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, sent by its digest and, to a server that does not know it, once in full."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> "Script":
        """Make a script of its text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


Command = tuple[str | bytes | int | Script, ...]


class Operation(Protocol[T_co]):
    """One exchange with the server: `commands` go out together, `parse` reads their replies."""

    @property
    def commands(self) -> Sequence[Command]:
        """Commands in order; a script stands first in its own, followed by the number of keys, keys, arguments."""
        ...

    def parse(self, replies: Sequence[Any]) -> T_co:
        """Make the result of one reply for each command."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """Read an entry and its tokens, together."""

    entry: str
    tokens: tuple[str, ...]

    @property
    def commands(self) -> Sequence[Command]:
        """One MGET: atomic on one server, so that no invalidation can fall between entry and tokens."""
        return (("MGET", self.entry, *self.tokens),)

    def parse(self, replies: Sequence[Any]) -> tuple[bytes | None, list[bytes | None]]:
        """Return the entry's bytes and the tokens'."""
        values = replies[0]
        return values[0], values[1:]


# A value without a lineage is absent, foreign or of another format version: it is replaced. The tokens are read after
# all that is missing was made, by us or by somebody faster. A new lineage is written into the value, which stays as it
# is.
_OPEN = Script.of(f"""
local head = redis.pcall('GETRANGE', KEYS[1], 0, {LINEAGE_END - 1})
local kind = type(head) == 'string' and #head == {LINEAGE_END} and string.sub(head, 1, {LINEAGE_START})
if kind == '\\1e' or kind == '\\1v' then
  if ARGV[4] == '1' then
    redis.call('SETRANGE', KEYS[1], {LINEAGE_START}, string.sub(ARGV[1], {LINEAGE_START + 1}))
    head = kind .. string.sub(ARGV[1], {LINEAGE_START + 1})
  end
  if kind == '\\1v' then redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') end
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  head = ARGV[1]
end
local reply = {{head}}
for i = 2, #KEYS do
  local made = redis.call('SET', KEYS[i], ARGV[i + 3], 'NX', 'PX', ARGV[3])
  if not made and redis.call('TYPE', KEYS[i]).ok ~= 'string' then
    redis.call('SET', KEYS[i], ARGV[i + 3], 'PX', ARGV[3])
  end
  reply[i] = redis.call('GET', KEYS[i])
end
return reply
""")


@dataclass(frozen=True, slots=True)
class Open:
    """Before a load: make sure that the entry has a lineage and that every token exists, then read the tokens.

    With `renew` the entry gets a new lineage, so that fills of older loads are refused; its value stays.
    """

    entry: str
    vacancy: bytes
    vacancy_ms: int
    tokens: tuple[str, ...]
    token_ms: int
    renew: bool = False

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        fresh = [token_value("0 first use") for _ in self.tokens]
        keys = (self.entry, *self.tokens)
        arguments: Command = (self.vacancy, self.vacancy_ms, self.token_ms, int(self.renew), *fresh)
        return ((_OPEN, len(keys), *keys, *arguments),)

    def parse(self, replies: Sequence[Any]) -> tuple[bytes, list[bytes | None]]:
        """Return the head of the entry (its kind and lineage) and the tokens."""
        head, *tokens = replies[0]
        return head, tokens


# A token must outlive the entries under it, or they end early: each fill prolongs its tokens, and never shortens them.
_FILL = Script.of(f"""
if redis.pcall('GETRANGE', KEYS[1], {LINEAGE_START}, {LINEAGE_END - 1}) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[4], 'GT') end
return 1
""")


@dataclass(frozen=True, slots=True)
class Fill:
    """Store what was loaded, unless the entry's lineage is no longer the one seen before the load."""

    entry: str
    lineage: bytes
    value: bytes
    ttl_ms: int
    tokens: tuple[str, ...]
    token_ms: int

    @property
    def keep_ms(self) -> int:
        """How long the tokens are needed at least."""
        return max(self.token_ms, 2 * self.ttl_ms)

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        keys = (self.entry, *self.tokens)
        return ((_FILL, len(keys), *keys, self.lineage, self.value, self.ttl_ms, self.keep_ms),)

    def parse(self, replies: Sequence[Any]) -> bool:
        """Return whether the value was stored."""
        return bool(replies[0])


# Tokens and tombstones first, then the log, then the word to receipts: whoever hears of the invalidation finds it done.
_INVALIDATE = Script.of("""
local tokens, entries, value, live = tonumber(ARGV[1]), tonumber(ARGV[2]), 9, 0
local log, applied = KEYS[#KEYS - 1], KEYS[#KEYS]
local now = redis.call('TIME')
local stamp = now[1] .. string.format('%06d', now[2])
for i = 1, tokens do
  redis.call('SET', KEYS[i], ARGV[value] .. ' ' .. stamp .. ' ' .. ARGV[value + 1], 'PX', ARGV[3])
  value = value + 2
end
for i = tokens + 1, tokens + entries do
  if redis.pcall('GETRANGE', KEYS[i], 0, 1) == '\\1e' then live = live + 1 end
  redis.call('SET', KEYS[i], ARGV[value], 'PX', ARGV[4])
  value = value + 1
end
if tokens + entries > 0 then
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local previous = last[1] and last[1][1] or '0-0'
  redis.call('XADD', log, 'MAXLEN', '~', ARGV[5], '*', 'prev', previous, 'what', ARGV[6])
end
if ARGV[8] ~= '' then redis.call('XADD', applied, 'MAXLEN', '~', ARGV[7], '*', 'ids', ARGV[8], 'dead', '') end
return live
""")


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Give tokens new values and entries new lineages, and say so. Costs the same for any number of entries cached.

    `causes` maps each token's name to why; `entries` maps entry keys to fresh vacancies; `token_key` and the log's key
    come from the keyspace. The log's entry is ``prev`` (the id before it, so that a gap shows) and ``what``, JSON:
    ``{"tokens": {name: cause}, "entries": [key]}``. `events` are the ids of the stream entries that are applied by
    this, in the form of `publisher.covers`; receipts hear of them in the stream `applied`.
    """

    causes: Mapping[str, str]
    token_keys: tuple[str, ...]
    uniques: tuple[bytes, ...]
    entries: Mapping[str, bytes]
    log: str
    log_length: int
    token_ms: int
    vacancy_ms: int
    applied: str
    events: str = ""

    @property
    def what(self) -> str:
        """The log entry's JSON."""
        return json.dumps({"tokens": dict(self.causes), "entries": list(self.entries)}, separators=(",", ":"))

    @property
    def commands(self) -> Sequence[Command]:
        """One script: on one server all of it happens at once."""
        keys = (*self.token_keys, *self.entries, self.log, self.applied)
        pairs = (part for pair in zip(self.uniques, self.causes.values(), strict=True) for part in pair)
        counts = (len(self.token_keys), len(self.entries), self.token_ms, self.vacancy_ms, self.log_length)
        word = (APPLIED_LENGTH, self.events)
        return ((_INVALIDATE, len(keys), *keys, *counts, self.what, *word, *pairs, *self.entries.values()),)

    def parse(self, replies: Sequence[Any]) -> int:
        """Return how many of `entries` held a value."""
        return int(replies[0])


_PUT = Script.of("""
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[3], 'GT') end
""")


@dataclass(frozen=True, slots=True)
class Put:
    """Store a value whatever is there, starting a new lineage: a load in flight must not overwrite it."""

    entry: str
    value: bytes
    ttl_ms: int
    tokens: tuple[str, ...] = ()
    token_ms: int = 0

    @property
    def keep_ms(self) -> int:
        """How long the tokens are needed at least."""
        return max(self.token_ms, 2 * self.ttl_ms)

    @property
    def commands(self) -> Sequence[Command]:
        """One script."""
        keys = (self.entry, *self.tokens)
        return ((_PUT, len(keys), *keys, self.value, self.ttl_ms, self.keep_ms),)

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing; a refusal is an error reply."""


@dataclass(frozen=True, slots=True)
class Append:
    """Add an event to a stream."""

    stream: str
    fields: Mapping[str, str]

    @property
    def commands(self) -> Sequence[Command]:
        """One XADD, never with MAXLEN: only the worker knows what may go."""
        return (("XADD", self.stream, "*", *(part for pair in self.fields.items() for part in pair)),)

    def parse(self, replies: Sequence[Any]) -> str:
        """Return the entry's id, ``milliseconds-sequence``."""
        return bytes(replies[0]).decode("ascii")


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask whether the server answers."""

    @property
    def commands(self) -> Sequence[Command]:
        """One PING."""
        return (("PING",),)

    def parse(self, replies: Sequence[Any]) -> None:
        """Return nothing; silence and refusal are errors."""
