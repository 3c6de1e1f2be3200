"""Reading one's writes: inside `after(receipt)` no read is served from before that event.

    1. writer   commits, publishes the event, and hands on its receipt (or the text `receipt.reference`)
    2. worker   applies the event: changes the tokens that its rules name, then says so
    3. reader   enters the block: waits until the event is applied, for so long at most
    4. reader   reads

**Applied in time.** Then every token that the event's rules name was changed before 3 ended. Why no read in 4 is from
before the event, tier by tier:

- *Redis.* A read asks for entry and tokens after 3, so it is shown each token as the event left it, or newer. It serves
  the entry only if the header has these same tokens: then the entry's load began after somebody had read them, which
  was after they were made, which was after the commit. (Tokens of result tags come into the header at the fill, which
  is refused if one of them was changed since the load began: see `fence`. What `set` stored is as new as its caller
  says.) Reads that share one question share it before it is sent.
- *A load in flight.* It is joined only by those who have themselves just read the tokens (and lineage) that it began
  under: by the same argument it began after the commit. So did what another process loads under a lease, for whoever
  waits for that looks at entry and tokens again.
- *The local tier.* What the tail has not applied yet it still serves, and that the event is applied says nothing of how
  far the tail is. It is bypassed. (To serve from it as soon as the tail has passed the event's entry in the log, that
  entry's id would have to come with the word to receipts.)
- *Stale values that a policy permits* are those whose tokens are others, or whose time is over. None is served, whether
  this event made it stale or something else; where the load raises, that is raised.
- *The store for outages* knows nothing of invalidations elsewhere. When Redis goes away inside the block, reads load.

**Not applied in time**, set aside as a dead letter, or not known since Redis does not answer: then what the cache has
may be from before the event, and every read in the block loads directly and keeps nothing. The commit came before the
event, so a load that begins now sees it. The same holds on ``memory://``, where nothing applies events.

**Loads are such blocks too.** A cached function that calls another would otherwise take what is wrong beyond every
bound, and beyond what either of the two permits:

    1. writer   commits, invalidates the tag of both functions
    2. reader   calls the outer one: finds the new token, loads
    3. load     calls the inner one: the local tier, whose tail has not heard yet, serves the value of before
    4. reader   stores the result under the new token, for its whole ttl

So what a load reads is read as inside a block: from Redis, not stale, or loaded.

**Who is inside**: the task or thread that entered, and the tasks that it starts inside, until the block ends, for
reads of this cache both ways, awaited and blocking. Blocks nest and lie side by side: each reads under the strictest of
those around it. Outside, a read pays one look at a counter.

async or threads: a context variable says who is inside, which both follow; only waiting differs.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .errors import ArgumentError, DeadLetteredError, NotAppliedError, UnavailableError
from .event_ids import referred
from .forks import in_child
from .keys import EventStream, Keyspace
from .publisher import Receipt, SyncReceipt
from .settings import Settings
from .telemetry import log

if TYPE_CHECKING:
    from .reader import Reader
    from .sync_reader import SyncReader

#: What names an event: a receipt, or its `reference`. None: there is no event to wait for.
After = Receipt | SyncReceipt | str | None

#: Seconds that the server has to answer the question whether an event is applied, when the time to wait is over.
_ANSWER = 0.1

#: Dead letters that have been spoken of.
_REMEMBERED = 1000


class Rule(Enum):
    """How reads inside a block are to be done."""

    #: from Redis or loaded, never stale: the events are applied
    FRESH = "fresh"
    #: loaded, and not kept: it is not known that they are
    DIRECT = "direct"


@dataclass(eq=False, slots=True)
class _Scope:
    """One block: whose, how reads are done in it, and what was around it."""

    owner: "Scopes"
    rule: Rule
    outer: "_Scope | None"
    ended: bool = False


_NOTHING = nullcontext()

_scope: ContextVar[_Scope | None] = ContextVar("tidings_after", default=None)


class Scopes:
    """The blocks of one cache. Safe under threads.

    `open` counts those that have not ended, in all tasks and threads: where it is 0, nobody needs to ask for a rule.
    """

    def __init__(self) -> None:
        self.open = 0
        #: whether some function of this cache may serve what is older than the tokens in Redis
        self.nests = False
        self._lock = threading.Lock()
        self._late = False
        self._said: OrderedDict[str, None] = OrderedDict()
        in_child(self._forked)

    def rule(self) -> Rule | None:
        """Return how the caller has to read: by the strictest of the blocks that it is inside of; None: it is not."""
        found = None
        scope = _scope.get()
        while scope is not None:
            if scope.owner is self and not scope.ended:
                if scope.rule is Rule.DIRECT:
                    return Rule.DIRECT
                found = Rule.FRESH
            scope = scope.outer
        return found

    @contextmanager
    def inside(self, rule: Rule | None) -> Iterator[None]:
        """Have the caller read by a rule; None: as before."""
        if rule is None:
            yield
            return
        scope = _Scope(self, rule, _scope.get())
        with self._lock:
            self.open += 1
        token = _scope.set(scope)
        try:
            yield
        finally:
            scope.ended = True
            with self._lock:
                self.open -= 1
            with suppress(ValueError):  # it ends in another context than it began in; that it has ended is enough
                _scope.reset(token)

    def loading(self) -> AbstractContextManager[None]:
        """Have what a load reads be as new as the tokens that its result is stored under; see above."""
        return self.inside(Rule.FRESH) if self.nests else _NOTHING

    def came(self, outcome: Exception | None, name: str) -> Rule:
        """Take note of what came of waiting for an event, say it where it is worth a line, and return the rule."""
        if outcome is None:
            if self._late:
                self._late = False
                log.info("after_applied", ref=name)
            return Rule.FRESH
        if isinstance(outcome, DeadLetteredError):
            if self._first(name):
                log.warning("after_dead_lettered", ref=name, reason=str(outcome))
        elif isinstance(outcome, NotAppliedError) and not self._late:
            self._late = True
            log.warning("after_not_applied", ref=name, reason=str(outcome))
        return Rule.DIRECT

    def _first(self, name: str) -> bool:
        with self._lock:
            first = name not in self._said
            self._said[name] = None
            if len(self._said) > _REMEMBERED:
                self._said.popitem(last=False)
        return first

    def _forked(self) -> None:
        """In a forked child there is one thread, and of the blocks only those around it."""
        self._lock = threading.Lock()
        self.open, scope = 0, _scope.get()
        while scope is not None:
            self.open += scope.owner is self and not scope.ended
            scope = scope.outer


@asynccontextmanager
async def after(
    find_reader: "Callable[[], Reader]",
    scopes: Scopes,
    events: "list[Awaited]",
    timeout: float,  # noqa: ASYNC109 what it ends raises nothing
) -> AsyncIterator[None]:
    """Wait, then have the caller read by the rule that follows; see `Cache.after`."""
    rule, deadline, reader = None, time.monotonic() + timeout, find_reader()
    for event in events:
        if rule is not Rule.DIRECT:
            rule = await _wait(reader, scopes, event, max(0.0, deadline - time.monotonic()))
    with scopes.inside(rule):
        yield


async def _wait(reader: "Reader", scopes: Scopes, event: "Awaited", left: float) -> Rule:
    if reader.hearing is None or not reader.breaker.closed:
        return Rule.DIRECT
    outcome: Exception | None = None
    try:
        async with asyncio.timeout(left + _ANSWER):
            await reader.hearing.wait(event.stream, event.id, left, label=event.name, ask_at_once=event.ask_at_once)
    except (NotAppliedError, DeadLetteredError, UnavailableError, TimeoutError) as error:
        outcome = error
    return scopes.came(outcome, event.name)


@contextmanager
def sync_after(reader: "SyncReader", scopes: Scopes, events: "list[Awaited]", timeout: float) -> Iterator[None]:
    """See `SyncCache.after`."""
    rule, deadline = None, time.monotonic() + timeout
    for event in events:
        if rule is not Rule.DIRECT:
            rule = _wait_blocking(reader, scopes, event, max(0.0, deadline - time.monotonic()))
    with scopes.inside(rule):
        yield


def _wait_blocking(reader: "SyncReader", scopes: Scopes, event: "Awaited", left: float) -> Rule:
    if reader.hearing is None or not reader.breaker.closed:
        return Rule.DIRECT
    outcome: Exception | None = None
    try:
        reader.hearing.wait(event.stream, event.id, left, label=event.name, ask_at_once=event.ask_at_once)
    except (NotAppliedError, DeadLetteredError, UnavailableError) as error:
        outcome = error
    return scopes.came(outcome, event.name)


@dataclass(frozen=True, slots=True)
class Awaited:
    """An event to wait for. One that comes as a text may have been applied for long."""

    stream: EventStream
    id: str
    name: str
    ask_at_once: bool


def events_of(given: tuple[After, ...], keys: Keyspace, settings: Settings) -> list[Awaited]:
    """Return the events to wait for. Raises ArgumentError for a text that is no reference, or another cache's event."""
    found = []
    for one in given:
        if isinstance(one, Receipt | SyncReceipt):
            if one.stream not in keys.streams(settings.partitions):
                raise ArgumentError(f"the event {one.event_id} is in the stream {one.stream.events}, not this cache's")
            found.append(Awaited(one.stream, one.id, one.reference, ask_at_once=False))
        elif one is not None:
            found.append(Awaited(*referred(one, keys, settings.partitions), one, ask_at_once=True))
    return found
