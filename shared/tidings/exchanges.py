"""What goes out for operations and transactions, and what to make of the replies. Sans I/O."""

from collections.abc import Container, Generator, Sequence
from typing import Any

from redis.exceptions import NoScriptError

from .errors import UnavailableError
from .operations import Command
from .scripts import Script

Wires = list[Sequence[Any]]
Replies = list[Any]


def in_transaction(commands: Sequence[Command]) -> list[Command]:
    """Return the commands with those around them that make them one transaction."""
    return [("MULTI",), *commands, ("EXEC",)]


def replies_of(answers: Sequence[Any], where: str) -> list[Any]:
    """Return the replies to the commands of a transaction, or raise UnavailableError for the first error among them."""
    *queued, replies = answers
    for reply in (*queued, *(replies if isinstance(replies, list) else (replies,))):
        if isinstance(reply, Exception):
            raise unavailable(where, reply) from reply
    found: list[Any] = replies
    return found


def exchange_of(commands: Sequence[Command], known: set[str]) -> Generator[Wires, Replies, Replies]:
    """Yield what to send, take the replies, return one reply for each command or raise the first error among them.

    `known` are the digests of scripts that the server has had from this store: the others go in full, so that what is
    sent next never overtakes them. A server that has been restarted says that it knows nothing, and gets them again.
    """
    replies = yield [_wire(command, known) for command in commands]
    unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:
        again = yield [_wire(commands[index], ()) for index in unknown]
        for index, reply in zip(unknown, again, strict=True):
            replies[index] = reply
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    known.update(head.digest for head, *_ in commands if isinstance(head, Script))
    return replies


def _wire(command: Command, known: Container[str]) -> Sequence[Any]:
    head, *rest = command
    if not isinstance(head, Script):
        return command
    return ("EVALSHA", head.digest, *rest) if head.digest in known else ("EVAL", head.text, *rest)


def unavailable(where: str, failure: Exception) -> UnavailableError:
    """Return the error for what a server, named by `where`, did not do."""
    error = UnavailableError(f"{where}: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


def entries_in(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the entries of one stream from what the server writes to an XREAD; the newer protocol has a mapping."""
    if not reply:
        return []
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return [(identifier, paired(fields)) for identifier, fields in entries]


def paired(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return fields and values that follow each other as a mapping."""
    parts = iter(flat)
    return dict(zip(parts, parts, strict=True))
