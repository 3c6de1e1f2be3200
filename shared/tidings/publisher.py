"""What publishing gives: a receipt, which can wait until its event has been applied.

async or threads: a receipt waits where it was published: the coroutine awaits, the thread blocks. `hearing` has all who
wait share one connection.
"""

from dataclasses import dataclass, field

from .errors import NotAppliedError
from .event_ids import as_pair, covers, entries_of, reference
from .hearing import Hearing
from .keys import EventStream, Keyspace
from .thread_hearing import ThreadHearing

__all__ = ["Receipt", "SyncReceipt", "as_pair", "covers", "entries_of"]

_NO_WORKER = "a memory:// cache has no worker: nothing applies its events"


@dataclass(frozen=True, slots=True)
class _Published:
    #: the stream entry's id, ``milliseconds-sequence``
    id: str
    #: the event's own id, unique for all time
    event_id: str
    stream: EventStream = field(repr=False)
    _keys: Keyspace = field(repr=False)

    @property
    def reference(self) -> str:
        """The event as a short text of digits, ``-`` and ``:``, which `Cache.after` takes in any process.

        It is the stream entry's id, with partitions behind ``{partition}:``. A service can hand it to a browser with
        the answer to a write, and get it back with the next request.
        """
        return reference(self.stream, self._keys, self.id)


@dataclass(frozen=True, slots=True)
class Receipt(_Published):
    """Proof that an event is in the stream."""

    _hearing: Hearing | None = field(repr=False)

    async def applied(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 the design's name
        """Wait until the worker has invalidated everything that this event makes wrong.

        From then on no cache serves a value from before the event. Raises NotAppliedError after `timeout` seconds (the
        event stays in the stream and will be applied), DeadLetteredError when the worker has set the event aside, and
        UnavailableError when Redis does not answer. However many wait, they cost the server what one does.
        """
        if self._hearing is None:
            raise NotAppliedError(_NO_WORKER)
        await self._hearing.wait(self.stream, self.id, timeout, label=self.event_id)


@dataclass(frozen=True, slots=True)
class SyncReceipt(_Published):
    """Proof that an event is in the stream, for threads."""

    _hearing: ThreadHearing | None = field(repr=False)

    def applied(self, timeout: float = 5.0) -> None:
        """Block until the event is applied; see `Receipt.applied`."""
        if self._hearing is None:
            raise NotAppliedError(_NO_WORKER)
        self._hearing.wait(self.stream, self.id, timeout, label=self.event_id)
