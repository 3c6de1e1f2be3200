"""The stream of dead letters: reading it, putting events back to where they came from, dropping letters.

**Put back once.** On one server the event is added to its stream and the letter removed in one script: a crash of
either side leaves both or neither, and of two operators who do this at once, one finds the letter gone.

On a cluster the two streams are in two slots, and nothing can change both at once. There the event is added first, and
the letter dropped after:

    1. operator   reads the letter
    2. operator   adds the event to its stream
    3. operator   dies, or another has read the letter before it is dropped
    4. another    adds the event again

So it may come twice, which costs a load; the other way round it could be lost.

Nothing here ever gives XADD a length to keep: what is behind may not have been read.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from tidings.cluster_store import ClusterStore
from tidings.errors import DeadLetteredError, NotAppliedError, UnavailableError
from tidings.keys import Keyspace
from tidings.operations import Command

from tidings_worker.clock import server_now
from tidings_worker.exchange import Store

from .letters import Letter, Wanted, letter_of

#: Letters that are read, put back or dropped in one exchange.
PAGE = 100

#: What was no event because it is too large is a letter too: so many bytes of each field come with a page of them.
CUT = 65_536

#: Reads a page. Keys: dead letters. Arguments: the command, from where, to where, how many, where to cut.
_READ = """
local page = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
for _, letter in ipairs(page) do
  for i, part in ipairs(letter[2]) do
    if #part > tonumber(ARGV[5]) then letter[2][i] = string.sub(part, 1, ARGV[5]) end
  end
end
return page
"""

#: Adds the originals of letters to the stream that they came from, and removes the letters. What one of them meets
#: (more fields than Lua can pass on, no memory) takes nothing from the others. Keys: dead letters, stream. Arguments:
#: the letters' ids, what the names of the original's fields begin with. Gives for each its new id, an error's text
#: after "!", or '' for a letter that is gone.
_PUT_BACK = """
local before = ARGV[#ARGV]
local done = {}
for i = 1, #ARGV - 1 do
  done[i] = ''
  local letter = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if letter then
    local original = {}
    for j = 1, #letter[2], 2 do
      if string.sub(letter[2][j], 1, #before) == before then
        original[#original + 1] = string.sub(letter[2][j], #before + 1)
        original[#original + 1] = letter[2][j + 1]
      end
    end
    local ok, reply = pcall(function() return redis.call('XADD', KEYS[2], '*', unpack(original)) end)
    if ok and type(reply) == 'string' then
      redis.call('XDEL', KEYS[1], ARGV[i])
      done[i] = reply
    else
      done[i] = '!' .. (type(reply) == 'table' and reply.err or tostring(reply))
    end
  end
end
return done
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of putting one letter's event back. Without the event, so that many of these take little room."""

    #: the letter's, and the event's
    id: str
    type: str
    stream: str
    #: the id of the new entry; None: there is none
    new_id: str | None = None
    #: why it could not be put back; None: it was, or the letter was gone
    error: str | None = None

    @classmethod
    def of(cls, letter: Letter, *, new_id: str | None = None, error: str | None = None) -> "Outcome":
        """Make one for a letter."""
        return cls(letter.id, letter.type, letter.stream, new_id, error)

    @property
    def gone(self) -> bool:
        """Whether there was no such letter any more: somebody else has put it back, or dropped it."""
        return self.new_id is None and self.error is None


class DeadLetters:
    """The dead letters of one prefix. Every method raises UnavailableError when Redis does not do its part."""

    def __init__(self, store: Store, keys: Keyspace, partitions: int) -> None:
        self._store = store
        self._key = keys.dead
        self.streams = [stream.events for stream in keys.streams(partitions)]

    async def now(self) -> datetime:
        """Return the time by the clock of the server that gives letters their ids."""
        return await server_now(self._store, self._key)

    async def count(self) -> int:
        """Return how many there are."""
        (length,) = await self._ask(("XLEN", self._key))
        return int(length)

    async def last_id(self) -> str | None:
        """Return the id of the newest; None: there is none. Whoever goes through all goes no further.

        What is put back may become a dead letter again at once, and would be come upon again and again.
        """
        (newest,) = await self._ask(("XREVRANGE", self._key, "+", "-", "COUNT", 1))
        return newest[0][0].decode() if newest else None

    async def find(self, ids: Iterable[str]) -> dict[str, Letter]:
        """Return the letters of these ids, those that there are, as they come in pages."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Letter] = {}
        for start in range(0, len(wanted), PAGE):
            some = wanted[start : start + PAGE]
            replies = await self._ask(*(("EVAL", _READ, 1, self._key, "XRANGE", one, one, 1, CUT) for one in some))
            letters = [letter_of(stream_id, flat) for entries in replies for stream_id, flat in entries]
            found.update((letter.id, letter) for letter in letters)
        return found

    async def whole(self, letter_id: str) -> Letter | None:
        """Return one letter with everything in it; None: there is no such letter."""
        (entries,) = await self._ask(("XRANGE", self._key, letter_id, letter_id))
        return letter_of(*entries[0]) if entries else None

    async def pages(self, wanted: Wanted, *, newest_first: bool = False) -> AsyncIterator[list[Letter]]:
        """Give those that are meant, page by page; a page may be empty.

        Fields longer than CUT bytes are cut, and the type of an event in another format than ours is then not known.
        """
        command, behind, last = "XRANGE", wanted.first, wanted.last
        if newest_first:
            command, behind, last = "XREVRANGE", wanted.last, wanted.first
        while True:
            (entries,) = await self._ask(("EVAL", _READ, 1, self._key, command, behind, last, PAGE, CUT))
            letters = [letter_of(stream_id, flat) for stream_id, flat in entries]
            yield [letter for letter in letters if wanted.has(letter)]
            if len(entries) < PAGE:
                return
            behind = f"({letters[-1].id}"

    async def put_back(self, letters: Sequence[Letter]) -> list[Outcome]:
        """Add the events of letters to the streams that they came from, and remove the letters; see above.

        Raises UnavailableError; then some may have been put back, and those letters are gone.
        """
        outcomes = [Outcome.of(one, error=reason) for one in letters if (reason := one.obstacle(self.streams))]
        able = [one for one in letters if one.obstacle(self.streams) is None]
        for stream, group in groupby(sorted(able, key=attrgetter("stream")), attrgetter("stream")):
            of_stream = list(group)
            put = self._put_back_at_once if self.at_once else self._put_back_in_turn
            for start in range(0, len(of_stream), PAGE):
                outcomes += await put(stream, of_stream[start : start + PAGE])
        return outcomes

    async def drop(self, ids: Sequence[str]) -> int:
        """Remove letters for good; return how many there were."""
        (dropped,) = await self._ask(("XDEL", self._key, *ids))
        return int(dropped)

    @property
    def at_once(self) -> bool:
        """Whether an event is put back and its letter removed in one step: not on a cluster."""
        return not isinstance(self._store, ClusterStore)

    async def _put_back_at_once(self, stream: str, letters: Sequence[Letter]) -> list[Outcome]:
        ids = [letter.id for letter in letters]
        (replies,) = await self._ask(("EVAL", _PUT_BACK, 2, self._key, stream, *ids, "original:"))
        return [
            _outcome(letter, reply.decode(errors="replace")) for letter, reply in zip(letters, replies, strict=True)
        ]

    async def _put_back_in_turn(self, stream: str, letters: Sequence[Letter]) -> list[Outcome]:
        outcomes = []
        for letter in letters:
            new_id = None
            if (whole := await self.whole(letter.id)) is not None:
                fields = (part for pair in whole.original for part in pair)
                (reply,) = await self._store.transact(stream, [("XADD", stream, "*", *fields)], bulk=True)
                new_id = reply.decode()
                await self.drop([letter.id])
            outcomes.append(Outcome.of(letter, new_id=new_id))
        return outcomes

    async def _ask(self, *commands: Command) -> list[Any]:
        return await self._store.transact(self._key, commands, bulk=True)


def _outcome(letter: Letter, reply: str) -> Outcome:
    if reply.startswith("!"):
        return Outcome.of(letter, error=f"the server refused it: {reply[1:]}")
    return Outcome.of(letter, new_id=reply or None)


#: Waits for one entry of a stream to be applied, for so many seconds; raises as `Receipt.applied` does.
Wait = Callable[[str, str, float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of an event that was put back: applied, or why it was not."""

    outcome: Outcome
    #: None: it is applied
    problem: str | None
    #: whether it is a dead letter again
    dead_again: bool = False


async def became(outcome: Outcome, wait: Wait, seconds: float) -> Applied:
    """Wait until an event that was put back is applied, or dead again, or the time is over."""
    assert outcome.new_id is not None  # noqa: S101 for the type checker; only those are asked about
    try:
        await wait(outcome.stream, outcome.new_id, seconds)
    except DeadLetteredError as error:
        return Applied(outcome, str(error), dead_again=True)
    except (NotAppliedError, UnavailableError) as error:
        return Applied(outcome, str(error))
    return Applied(outcome, None)
