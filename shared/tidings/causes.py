"""Why a token has the value that it has: one line of text, written by whoever invalidates. Pure.

| text | meaning |
| --- | --- |
| ``event:{id} entry:{stream id} rule:{name}`` | a rule asked for it because of an event |
| ``call:{method} {host}:{pid}`` | a service called the method |
| ``lost:{codes} {stream}`` | events may have been lost, see `tidings_worker.continuity`, so everything is invalidated |
| ``first use`` | nobody has invalidated: a reader needed a token, and there was none |

It is kept in the token and in the invalidation log, which is what makes "why is this entry gone" answerable.
"""

import re
from dataclasses import dataclass
from enum import Enum

#: An event's id is anybody's text, and a cause is kept in every token: this much of it is enough.
_ID_LENGTH = 100

#: Text of this form is asked of the server, which refuses larger numbers.
_ID = r"[0-9]{1,19}-[0-9]{1,19}"
_EVENT = re.compile(rf"event:(\S*)(?: entry:({_ID}))? rule:(.*)", re.DOTALL)
_CALL = re.compile(r"call:(\S+) (\S+)")
_LOST = re.compile(r"lost:(\S*)(?: (.*))?", re.DOTALL)
_STREAM_ID = re.compile(_ID)


class Kind(Enum):
    """What somebody has done."""

    EVENT = "event"
    CALL = "call"
    LOST = "lost"
    FIRST_USE = "first use"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause taken apart; what its kind does not have is empty."""

    kind: Kind
    text: str
    event_id: str = ""
    #: the entry of the event stream
    stream_id: str = ""
    rule: str = ""
    method: str = ""
    process: str = ""
    #: what was lost, and from which stream
    codes: tuple[str, ...] = ()
    stream: str = ""


def id_shown(event_id: str) -> str:
    """Return an event's id as its causes have it."""
    shown = event_id[:_ID_LENGTH]
    if not shown.isalnum():  # as a fresh id is: white space would end it when it is read
        shown = "_".join(shown.split())
    return shown


def by_event(event_id: str, stream_id: str | None) -> str:
    """Return the beginning of a cause: which event; `by_rule` completes it."""
    shown = id_shown(event_id)
    return f"event:{shown}" if stream_id in {None, event_id} else f"event:{shown} entry:{stream_id}"


def by_rule(event: str, rule: str) -> str:
    """Return the cause of what a rule asked for because of an event, given as `by_event` has it."""
    return f"{event} rule:{rule}"


def by_call(method: str, process: str) -> str:
    """Return the cause of what a service does directly."""
    return f"call:{method} {process}"


def by_loss(codes: list[str], stream: str) -> str:
    """Return the cause of invalidating everything because events may be lost."""
    return f"lost:{','.join(codes)} {stream}".strip()


def parse(text: str) -> Cause:
    """Take a cause apart; one that is none of ours is UNKNOWN."""
    if found := _EVENT.fullmatch(text):
        event_id, stream_id, rule = found.groups()
        if stream_id is None:
            stream_id = event_id if _STREAM_ID.fullmatch(event_id) else ""
        return Cause(Kind.EVENT, text, event_id=event_id, stream_id=stream_id, rule=rule)
    if found := _CALL.fullmatch(text):
        return Cause(Kind.CALL, text, method=found[1], process=found[2])
    if found := _LOST.fullmatch(text):
        return Cause(Kind.LOST, text, codes=tuple(found[1].split(",")), stream=found[2] or "")
    return Cause(Kind.FIRST_USE if text == "first use" else Kind.UNKNOWN, text)
