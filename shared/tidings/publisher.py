"""Publishing, and waiting until an event has been applied.

The receipt's wait is written once, sans I/O, as a generator of questions (`_waiting`); a coroutine and a thread each
put them to the server.

async or threads: a receipt waits where it was published: the coroutine awaits, the thread blocks, with its own
connection.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError, ResponseError

from .errors import DeadLetteredError, NotAppliedError, UnavailableError
from .keys import EventStream, Keyspace
from .store import LONGEST_BLOCK, RedisStore, SyncRedisStore

#: Adds a command to a pipeline, of either client.
_Question = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class _Batch:
    questions: list[_Question]
    #: whether the last of them blocks
    blocking: bool = False


#: Seconds until a receipt asks after its event for the first time, if it has not heard.
_FIRST_ASK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Published:
    #: the stream entry's id, ``milliseconds-sequence``
    id: str
    #: the event's own id, unique for all time
    event_id: str
    _stream: EventStream = field(repr=False)
    _keys: Keyspace = field(repr=False)
    _group: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receipt(_Published):
    """Proof that an event is in the stream."""

    _store: RedisStore | None = field(repr=False)

    async def applied(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 the design's name
        """Wait until the worker has invalidated everything that this event makes wrong.

        From then on no cache serves a value from before the event. Raises NotAppliedError after `timeout` seconds (the
        event stays in the stream and will be applied), DeadLetteredError when the worker has set the event aside, and
        UnavailableError when Redis does not answer.
        """
        if self._store is None:
            raise NotAppliedError("a memory:// cache has no worker: nothing applies its events")
        self._store.close_with_loop()
        try:
            questions = _waiting(self._stream, self._keys, self._group, self.id, timeout)
            batch = next(questions)
            while True:
                client = self._store.blocking if batch.blocking else self._store.client
                pipe = client.pipeline(transaction=False)
                for question in batch.questions:
                    question(pipe)
                async with asyncio.timeout(self._store.timeout + (LONGEST_BLOCK if batch.blocking else 0)):
                    replies = await pipe.execute(raise_on_error=False)
                batch = questions.send(replies)
        except StopIteration:
            return
        except NotAppliedError:  # a TimeoutError, and so an OSError, but not Redis's
            raise
        except (RedisError, OSError) as error:
            raise UnavailableError(f"waiting for the event {self.event_id}: {error}") from error


@dataclass(frozen=True, slots=True)
class SyncReceipt(_Published):
    """Proof that an event is in the stream, for threads."""

    _store: SyncRedisStore | None = field(repr=False)

    def applied(self, timeout: float = 5.0) -> None:
        """Block until the event is applied; see `Receipt.applied`."""
        if self._store is None:
            raise NotAppliedError("a memory:// cache has no worker: nothing applies its events")
        try:
            questions = _waiting(self._stream, self._keys, self._group, self.id, timeout)
            batch = next(questions)
            while True:
                client = self._store.blocking if batch.blocking else self._store.client
                pipe = client.pipeline(transaction=False)
                for question in batch.questions:
                    question(pipe)
                batch = questions.send(pipe.execute(raise_on_error=False))
        except StopIteration:
            return
        except NotAppliedError:  # a TimeoutError, and so an OSError, but not Redis's
            raise
        except (RedisError, OSError) as error:
            raise UnavailableError(f"waiting for the event {self.event_id}: {error}") from error


def _waiting(
    stream: EventStream, keys: Keyspace, group: str, stream_id: str, timeout: float
) -> Generator[_Batch, list[Any], None]:
    """Yield questions to the server until the event is known to be applied; raise when it will not be.

    Listening comes first, since the word is usually on its way: from the moment of the event's own id, because the word
    comes later and ids are the server's time. Should the word be gone already, or have come with an earlier id after
    the server's clock was set back, then asking finds out, soon at first and then once a second.
    """
    deadline = time.monotonic() + timeout
    from_id: str | bytes = f"{max(0, as_pair(stream_id)[0] - 1)}-0"
    ask_at = time.monotonic() + _FIRST_ASK_SECONDS
    while True:
        while (remaining := min(ask_at, deadline) - time.monotonic()) > 0:
            (news,) = yield _Batch([_read_on(stream.applied, from_id, remaining)], blocking=True)
            if isinstance(news, Exception):
                raise news
            for from_id, fields in entries_of(news):  # noqa: B007 the next read goes on from it
                if covers(fields[b"ids"].decode("ascii"), stream_id):
                    return
                if covers(fields[b"dead"].decode("ascii"), stream_id):
                    ask_at = 0.0
        groups, pending = yield _Batch(
            [
                lambda pipe: pipe.xinfo_groups(stream.events),
                lambda pipe: pipe.xpending_range(stream.events, group, stream_id, stream_id, 1),
            ]
        )
        why = _why_not_yet(group, stream_id, groups, pending)
        if not why:
            yield from _raise_if_dead(keys, stream.events, stream_id)
            return
        if time.monotonic() >= deadline:
            raise NotAppliedError(f"not applied after {timeout:g} s: {why}")
        ask_at = time.monotonic() + LONGEST_BLOCK


def _read_on(stream: str, from_id: str | bytes, seconds: float) -> _Question:
    return lambda pipe: pipe.xread({stream: from_id}, count=100, block=max(1, int(seconds * 1000)))


def _why_not_yet(group: str, stream_id: str, groups: Any, pending: Any) -> str:
    """Return why the event cannot be called applied, or nothing when it is."""
    for reply in (groups, pending):
        if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
            raise reply
    if isinstance(groups, ResponseError):
        return "its stream is gone"
    mine = next((g for g in groups if g["name"] == group.encode()), None)
    if mine is None or isinstance(pending, ResponseError):
        return f"no worker of the group {group!r} has read the stream yet"
    if as_pair(mine["last-delivered-id"].decode("ascii")) < as_pair(stream_id):
        return "no worker has read it yet"
    return "a worker has it and has not acknowledged it" if pending else ""


def _raise_if_dead(keys: Keyspace, stream: str, stream_id: str) -> Generator[_Batch, list[Any], None]:
    """Look through the dead letters since the event, page by page, for the event's own."""
    from_id: str | bytes = stream_id.partition("-")[0]
    while True:
        (page,) = yield _Batch([_page(keys.dead, from_id)])
        if isinstance(page, Exception):
            raise page
        for dead_id, fields in page:
            from_id = b"(" + dead_id
            if (fields.get(b"stream"), fields.get(b"stream_id")) == (stream.encode(), stream_id.encode()):
                raise DeadLetteredError(fields.get(b"reason", b"").decode(errors="replace"))
        if not page:
            return


def _page(stream: str, from_id: str | bytes) -> _Question:
    return lambda pipe: pipe.xrange(stream, from_id, count=1000)


def entries_of(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the entries of one stream from an XREAD's reply, which the newer protocol gives as a mapping."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [entry for page in next(iter(reply.values())) for entry in page]
    return list(reply[0][1])


def as_pair(stream_id: str) -> tuple[int, int]:
    """Return a stream id as numbers that order as the stream does."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def covers(ranges: str, stream_id: str) -> bool:
    """Say whether a stream id is among ``"5-0..5-9 7-1"``: ranges and single ids, separated by spaces."""
    wanted = as_pair(stream_id)
    for part in ranges.split():
        first, _, last = part.partition("..")
        if as_pair(first) <= wanted <= as_pair(last or first):
            return True
    return False
