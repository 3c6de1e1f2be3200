"""A stretch of an event stream, read page by page, and whether it is still all there.

Reading with XRANGE disturbs nobody: groups, their pending entries and what `continuity` compares stay as they are.

**What is gone.** Workers remove what every group has acknowledged, but for about the last `keep_events`. The server
does not tell which ids were removed, only that some were. So a stretch may not be whole when something was removed from
the stream and what is left begins after the stretch does. It may also be removed while it is read:

    1. here     reads a page, up to the entry 7-0
    2. worker   removes everything up to 9-0
    3. here     reads on behind 7-0, and is given 10-0

Each page comes with the first entry that the stream has at that moment. If that is the page's own first, nothing is
left of what had been read before, and it is not known what was between.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidings.event_ids import as_pair
from tidings.exchanges import paired

from .delivery import Entry
from .exchange import Store

#: Entries of one page, unless told otherwise.
PAGE = 500


@dataclass
class Stretch:
    """The entries of a stream from one id to another, both included; `first` and `last` are ``ms-seq``.

    `last` is no further than the stream was when this was made: what comes meanwhile is not part of it.
    """

    stream: str
    first: str
    last: str
    #: why not everything of it may be there; None: it is
    missing: str | None = None
    #: whether there is such a stream
    exists: bool = True

    async def pages(self, store: Store, count: int = PAGE) -> AsyncIterator[list[Entry]]:
        """Give its entries, at most `count` at a time, and note in `missing` what is removed meanwhile.

        Raises UnavailableError.
        """
        behind = self.first
        while as_pair(behind.removeprefix("(")) <= as_pair(self.last):
            found, oldest = await store.transact(
                self.stream,
                [
                    ("XRANGE", self.stream, behind, self.last, "COUNT", count),
                    ("XRANGE", self.stream, "-", "+", "COUNT", 1),
                ],
                bulk=True,
            )
            if behind != self.first and (not oldest or _is_behind(oldest[0][0], behind)):
                self.missing = self.missing or _removed(self.stream, oldest, " while it was read")
            entries = [Entry(stream_id.decode("ascii"), paired(flat)) for stream_id, flat in found]
            if entries:
                yield entries
            if len(entries) < count:
                return
            behind = f"({entries[-1].stream_id}"


async def stretch_of(store: Store, stream: str, since: str, until: str | None = None) -> Stretch:
    """Look at a stream and return its stretch from one id to another; None: to its end as it is now.

    One that is not there has an empty stretch. Raises UnavailableError.
    """
    (exists,) = await store.transact(stream, [("EXISTS", stream)])
    if not exists:
        return Stretch(stream, since, "0-0", exists=False)
    reply, oldest = await store.transact(
        stream, [("XINFO", "STREAM", stream), ("XRANGE", stream, "-", "+", "COUNT", 1)]
    )
    facts = _facts(reply)
    end = facts[b"last-generated-id"].decode("ascii")
    last = end if until is None else min(until, end, key=as_pair)
    stretch = Stretch(stream, since, last)
    removed = facts.get(b"entries-added", 0) > facts[b"length"]
    if removed and as_pair(since) <= as_pair(last) and (not oldest or _is_behind(oldest[0][0], since)):
        stretch.missing = _removed(stream, oldest)
    return stretch


def _is_behind(stream_id: bytes, other: str) -> bool:
    return as_pair(stream_id.decode("ascii")) > as_pair(other.removeprefix("("))


def _removed(stream: str, oldest: list[Any], when: str = "") -> str:
    """Say what may be missing; `oldest` is what the stream begins with, if it has anything."""
    left = f"it begins with {oldest[0][0].decode('ascii')} now" if oldest else "nothing is left in it"
    return (
        f"{stream}: some events have been removed{when}, and {left}: not all of this stretch may be there; "
        "workers keep TIDINGS_WORKER_KEEP_EVENTS, and `tidings invalidate --all` makes up for any that are lost"
    )


def _facts(reply: Any) -> Mapping[bytes, Any]:
    """Return what XINFO says as a mapping, which the newer protocol gives."""
    return reply if isinstance(reply, dict) else paired(reply)
