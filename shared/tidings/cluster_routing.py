"""What goes to which node of a cluster, and what to make of a redirection. Sans I/O.

A command is sent again only where a node said that it has not carried it out: that it serves the key no longer (MOVED),
that the key may be at another node while its slot is on its way (ASK), or that it does not know a script.
"""

from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import NoScriptError

from .cluster import Cluster, NodeError
from .cluster_programs import To
from .cluster_slots import Address, redirection
from .errors import UnavailableError
from .scripts import Script

#: Times that one command is sent.
_MOST_ROUNDS = 6

Wire = Sequence[Any]
Batches = Mapping[Address, Sequence[Wire]]
Answers = Mapping[Address, Sequence[Any] | Exception]


def exchange(
    cluster: Cluster, wanted: Sequence[To], known: set[tuple[Address, str]], *, insist: bool = False
) -> Generator[Batches, Answers, list[Any]]:
    """Yield what to send to which node, take the answers, and return a reply for each command, errors among them.

    `known` are the digests of scripts that a node has had from this store; with `insist` also nodes are asked that are
    known to be away.
    """
    replies: list[Any] = [None] * len(wanted)
    pending = [_Sent(index, to) for index, to in enumerate(wanted)]
    for _ in range(_MOST_ROUNDS):
        sent: dict[Address, list[_Sent]] = {}
        for one in pending:
            try:
                sent.setdefault(_address(cluster, one, insist=insist), []).append(one)
            except UnavailableError as error:
                replies[one.index] = error
        if not sent:
            break
        answers = yield {
            address: [wire for one in ones for wire in one.wires(address, known)] for address, ones in sent.items()
        }
        pending = []
        for address, ones in sent.items():
            answer = answers[address]
            rest = None
            if not isinstance(answer, Exception):
                rest = iter(answer)
                cluster.answered(address)
            for one in ones:
                reply = answer if rest is None else one.reply(rest)
                replies[one.index], again = _judge(cluster, one, address, reply)
                if again is not None:
                    pending.append(again)
                elif isinstance(script := one.to.command[0], Script) and not isinstance(reply, Exception):
                    known.add((address, script.digest))
    return replies


def _judge(cluster: Cluster, sent: "_Sent", address: Address, reply: Any) -> "tuple[Any, _Sent | None]":
    """Return what a reply comes to, and what is to be sent in its place."""
    if not isinstance(reply, Exception) or isinstance(reply, NodeError):
        return reply, None
    error = cluster.failed(address, reply)
    if isinstance(reply, NoScriptError):
        return error, replace(sent, in_full=True)
    moved = redirection(reply, address)
    if moved is None or isinstance(sent.to.where, Address):
        return error, None
    if not moved.once:
        cluster.slots.move(moved)
        cluster.doubt()
    return error, replace(sent, address=moved.address, asking=moved.once)


def _address(cluster: Cluster, sent: "_Sent", *, insist: bool) -> Address:
    where = sent.address or sent.to.where
    address = where if isinstance(where, Address) else cluster.server(where)
    return address if insist else cluster.there(address)


@dataclass(frozen=True, slots=True)
class _Sent:
    """One command on its way; `address` is where it was redirected to."""

    index: int
    to: To
    address: Address | None = None
    #: the node serves the key only while its slot is on its way there
    asking: bool = False
    in_full: bool = False

    def wires(self, address: Address, known: Container[tuple[Address, str]]) -> list[Wire]:
        head, *rest = self.to.command
        wire: Wire = self.to.command
        if isinstance(head, Script):
            short = not self.in_full and (address, head.digest) in known
            wire = ("EVALSHA", head.digest, *rest) if short else ("EVAL", head.text, *rest)
        return [("ASKING",), wire] if self.asking else [wire]

    def reply(self, replies: Iterator[Any]) -> Any:
        if self.asking:
            next(replies)
        return next(replies)
