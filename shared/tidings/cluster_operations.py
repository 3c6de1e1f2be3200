"""Every operation on a Redis Cluster: which keys are asked for what, in which order. Pure.

On one server an operation is one script. Here each key may be on a node of its own, so an operation is a program: it
yields commands of one key each, which go out together, takes a reply for each, and goes on. It is thrown what went
wrong. Why the promises of `fence` hold without the one instant:

**Reads.** Entry and tokens are read at different times. Take an invalidation that was acknowledged before the read
began: its token had its new value by then, so the read finds that value or a later one, whenever it comes to that key.
An entry has that value in its header only if whoever loaded it had read it before the load, and then the load began
after the invalidation, which came after the commit. So the header is equal only where the load saw what was committed.
Each token is an argument of its own; nothing is said about two of them together.

**Open, fill.** Lineage and tokens are all read before the load begins, in whatever order; that is all that the argument
of `fence` needs. A fill compares and replaces the lineage in the entry's key alone, in one script.

**Leases.** Who is refused a lease is told of its end in a stream elsewhere, and reads it from a position:

    1. waiter    reads the end of the stream
    2. waiter    asks for the lease, is refused, and leaves a mark in it
    3. leader    fills, then ends the lease, finds the mark
    4. leader    writes to the stream

4 comes after 2, so it is behind the position of 1. A leader that dies between 3 and 4 is waited for until the lease
would have run out, like one that dies before. Where the node of the lease or of the stream is away, everybody loads: a
lease saves loads, and nothing depends on it.

**Invalidate.** Tokens and tombstones first, and when each is acknowledged, the log and then the word to receipts: who
hears of an invalidation finds it done. When one of them fails nothing is logged, and the caller repeats it all.

**Result tags** are known only after the load. On one server the fill compares the token's time with the log's, in one
instant. Here a token's time would prove nothing: times are handed out by one node and written on another, and one that
was handed out early may be written late, over a newer one. So an invalidation of tokens also gives *notice*: before it
touches a token, it adds an entry to the log that names the tokens, and the fill looks for those:

    1. reader    notes the last id of the log, then loads
    2. reader    reads the tokens of the result tags, making those that are missing
    3. reader    reads the log from that id on: refuses when the id is gone, or a notice names one of the tokens
    4. reader    stores, with the tokens of step 2 in the header

Take an invalidation of such a token that the load may have missed: its commit is later than 1, and so its notice.
Either it changed the token after 2, and then the header is unequal for ever, since values never repeat. Or it changed
it before 2, so the notice was in the log before 3, behind the id of 1: found, and refused. A token that was lost makes
no difference, since the notice stands in the log; and of the log the oldest goes first, so while the id of 1 is there,
everything behind it is. No clock is in this.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from .cluster_programs import Around, Program, To, together
from .cluster_scan import scan
from .cluster_scripts import (
    END_LEASE,
    FILL_ENTRY,
    FIRST_USE,
    INVALIDATE_ENTRY,
    INVALIDATE_TOKEN,
    LOG,
    LOG_END,
    OPEN_ENTRY,
    PUT_ENTRY,
    TAKE_LEASE,
    TELL,
    WAKES_END,
)
from .entries import Fill, Look, Looked, Open, Opened, Places, Put, Release, Results
from .layout import LINEAGE_START, STAMP_LENGTH, UNIQUE_LENGTH, Packed, encode_cause, unique
from .operations import (
    APPLIED_LENGTH,
    Batch,
    Command,
    Drop,
    Invalidate,
    Operation,
    Ping,
    Scan,
    microseconds,
)
from .scripts import Script

T = TypeVar("T")

#: Entries of the log behind the beginning of a load that its fill looks through; with more of them it is refused.
MOST_NOTICES = 1000

#: The reply of TIME where the log's node is away: a time that was not asked.
_NO_TIME = (0, 0)

_NOTHING_TOLD = '{"tokens":{},"entries":[]}'


def program(operation: Operation[Any], around: Around) -> Program[Any]:  # noqa: PLR0911 one arm for each operation
    """Return how an operation is carried out; gives what its `parse` would."""
    match operation:
        case Look():
            return _look(operation, around)
        case Open():
            return _open(operation)
        case Fill():
            return _fill(operation)
        case Put():
            return _put(operation)
        case Release():
            return _end_lease(operation.places, operation.owner, operation.entry)
        case Invalidate():
            return _invalidate(operation)
        case Scan():
            return scan(operation, around)
        case Drop():
            return _drop(operation)
        case Ping():
            return _ping(around)
        case Batch():
            return together([program(inner, around) for inner in operation.operations])
    return _plain(operation)


def insists(operation: Operation[Any]) -> bool:
    """Say whether an operation is tried even at a node that is away: what reads does without, others are told."""
    if isinstance(operation, Batch):
        return any(map(insists, operation.operations))
    return not isinstance(operation, Look | Open | Fill | Release | Put)


def walks(operation: Operation[Any]) -> bool:
    """Say whether an operation begins a walk over all nodes, for which one must know of all of them."""
    return isinstance(operation, Scan) and operation.cursor == 0


def _script(script: Script, key: str | bytes, *arguments: str | bytes | int, optional: bool = False) -> To:
    return To(key, (script, 1, key, *arguments), optional)


def _plain(operation: Operation[T]) -> Program[T]:
    """Send commands whose key comes first, as it does in most, or scripts of one key."""
    wanted = []
    for command in operation.commands:
        key = command[2] if isinstance(command[0], Script) else command[1]
        if not isinstance(key, str):
            raise NotImplementedError(type(operation).__name__)
        wanted.append(To(key, command))
    replies = yield wanted
    return operation.parse(replies)


def _ping(around: Around) -> Program[None]:
    yield [To(address, ("PING",)) for address in around.primaries]


def _look(look: Look, around: Around) -> Program[Looked]:
    # MGET even of one: it takes what is no string for nothing, where GET fails.
    wanted = [To(key, ("MGET", key)) for key in look.keys]
    if look.ttl:
        wanted.insert(0, To(look.keys[0], ("PTTL", look.keys[0])))
    if look.time:
        wanted.insert(0, To(around.log, ("TIME",), optional=True))
    replies = yield wanted
    if look.time and isinstance(replies[0], Exception):
        replies[0] = _NO_TIME
    asked = len(wanted) - len(look.keys)
    return look.parse([*replies[:asked], [value for (value,) in replies[asked:]]])


def _open(opening: Open) -> Program[Opened]:
    entry, *tokens = opening.keys
    places, lease = opening.places, opening.lease
    wanted = [
        _script(OPEN_ENTRY, entry, opening.vacancy, opening.vacancy_ms, int(opening.renew)),
        To(places.log, ("TIME",), optional=True),
        _script(WAKES_END, places.wakes, optional=True),
        *([_script(LOG_END, places.log)] if opening.log else []),
        *(To(token, ("MGET", token)) for token in tokens),
    ]
    head, time, position, *rest = yield wanted
    now_us = microseconds(_NO_TIME if isinstance(time, Exception) else time)
    logged, at = rest.pop(0) if opening.log else (b"", 0)
    found: list[bytes | None] = [value for (value,) in rest]
    missing = [index for index, value in enumerate(found) if value is None or len(value) < UNIQUE_LENGTH]
    if missing:
        made = yield [_script(FIRST_USE, tokens[i], unique(), _digits(now_us), opening.token_ms) for i in missing]
        for index, value in zip(missing, made, strict=True):
            found[index] = value
    leads, left_ms = 1, 0
    if isinstance(position, Exception):
        position = b"0-0"
    elif lease is not None:
        under = b"".join((head[LINEAGE_START:], *((value or b"")[:UNIQUE_LENGTH] for value in found), logged))
        (taken,) = yield [_script(TAKE_LEASE, places.lease, lease.owner, under, lease.ms, optional=True)]
        leads, left_ms = (1, 0) if isinstance(taken, Exception) else taken
    return Opened(head, found, now_us, bool(leads), max(0, left_ms), position.decode(), logged.decode(), int(at))


def _fill(fill: Fill) -> Program[bool]:
    stored = False
    try:
        results = yield from _result_tokens(fill.results, fill.places.log, fill.keep_ms)
        if results is not None:
            stored = yield from _store(fill, results)
    except Exception:  # nobody is to wait any longer
        yield from _end_lease(fill.places, fill.owner, fill.keys[0])
        raise
    yield from _end_lease(fill.places, fill.owner, fill.keys[0])
    return stored


def _store(fill: Fill, results: tuple[bytes, ...]) -> Program[bool]:
    entry, *tokens = fill.keys
    header = Packed(fill.packed.head, (*fill.packed.tokens, *results), b"").header
    (stored, *_) = yield [
        _script(FILL_ENTRY, entry, fill.lineage, header, fill.packed.rest, fill.ttl_ms),
        *_prolong((*tokens, *fill.results.tokens), fill.keep_ms),
    ]
    return bool(stored)


def _result_tokens(results: Results, log: str, keep_ms: int) -> Program[tuple[bytes, ...] | None]:
    """Return what the header has for result tags; None: one may have been invalidated since the load began."""
    if not results.tokens:
        return ()
    stamp = _digits(results.logged_at)
    found = yield [_script(FIRST_USE, token, unique(), stamp, keep_ms) for token in results.tokens]
    (since,) = yield [To(log, ("XRANGE", log, results.logged, "+", "COUNT", MOST_NOTICES))]
    if not since or not _is_the_same(since[0], results) or len(since) == MOST_NOTICES:
        return None
    if any(_notice(fields) & set(results.tokens) for _, fields in since[1:]):
        return None
    return tuple(token[:UNIQUE_LENGTH] for token in found)


def _is_the_same(entry: Sequence[Any], results: Results) -> bool:
    """Say whether this entry was the log's last one: begun anew within a millisecond, a log has the same ids."""
    identifier, fields = entry[0].decode(), entry[1]
    at = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"at", b"")
    logged_at = int(at) if at.isdigit() else int(identifier.partition("-")[0]) * 1000 + 999  # as in `scripts`
    return identifier == results.logged and logged_at == results.logged_at


def _notice(fields: Sequence[bytes]) -> set[str]:
    """Return the tokens that an entry of the log names before they are invalidated."""
    named = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"notice")
    return set() if named is None else set(json.loads(named))


def _prolong(tokens: Sequence[str], keep_ms: int) -> list[To]:
    """Return what keeps tokens for longer than the entry under them, which would end early without them."""
    return [To(token, ("PEXPIRE", token, keep_ms, "GT")) for token in tokens]


def _end_lease(places: Places, owner: bytes, entry: str) -> Program[None]:
    if not owner:
        return
    (waited,) = yield [_script(END_LEASE, places.lease, owner, optional=True)]
    if waited == 1:
        yield [_script(TELL, places.wakes, entry, optional=True)]


def _put(put: Put) -> Program[None]:
    entry, *tokens = put.keys
    yield [
        _script(PUT_ENTRY, entry, put.packed.header, put.packed.rest, put.ttl_ms),
        *_prolong(tokens, put.keep_ms),
    ]


def _invalidate(told: Invalidate) -> Program[int]:
    stamp: str | bytes = ""
    if told.token_keys:
        (stamp,) = yield [_log(told, _NOTHING_TOLD, json.dumps(told.token_keys))]
    causes = map(encode_cause, told.causes.values())
    lives: list[Any] = []
    if told.token_keys or told.entries:
        done = yield [
            *(
                _script(INVALIDATE_TOKEN, key, fresh, stamp, cause, told.token_ms)
                for key, fresh, cause in zip(told.token_keys, told.uniques, causes, strict=True)
            ),
            *(_script(INVALIDATE_ENTRY, key, vacancy, told.vacancy_ms) for key, vacancy in told.entries.items()),
        ]
        lives = done[len(told.token_keys) :]
    if told.what:
        yield [_log(told, told.what)]
    if told.events:
        word: Command = ("XADD", told.applied, "MAXLEN", "~", APPLIED_LENGTH, "*", "ids", told.events, "dead", "")
        yield [To(told.applied, word)]
    return sum(lives)


def _log(told: Invalidate, what: str, notice: str = "") -> To:
    return _script(LOG, told.log, 2 * told.log_length, what, notice, encode_cause(told.why))  # notices are half of it


def _drop(drop: Drop) -> Program[int]:
    replies = yield [To(key, ("UNLINK", key)) for key in drop.keys]
    return sum(replies)


def _digits(time_us: int) -> bytes:
    return b"%0*d" % (STAMP_LENGTH, time_us)
