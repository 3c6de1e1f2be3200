"""The guarantee, under interleavings that nobody thought of: a state machine over the whole read side.

Two processes read, fill, set, refresh and invalidate a few items, one half step at a time: an operation that was asked
for is carried out at one moment, and its answer arrives at another, with anything in between. Between them entries,
tokens and the log are lost, time passes, loads fail, answers do not arrive, tails lag and break. There are no threads,
no event loop and no real time: the machine is the driver of `reading`, as `reader` and `sync_reader` are.

Against a model that knows the version of every item and every invalidation, each value that is served must be no older
than the newest version that was committed before an invalidation of one of its tags, its namespace or its entry, which
was acknowledged before the read began. From the local tier: acknowledged, and applied by the tail or longer ago than
its bound. A stale policy allows for its window, counted from the first such invalidation.

The tests at the end take the fence apart, one comparison at a time; the machine must find each of them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from tidings import bulk, entries, fence, filling, looking, memory, reading
from tidings.entries import Look, Looked, Put
from tidings.errors import InvalidationError, UnavailableError
from tidings.filling import Filling, Lead
from tidings.invalidation import by_pattern, invalidation
from tidings.keys import ALL, Keyspace, namespace_token, tag_token
from tidings.layout import LINEAGE_END, LINEAGE_START, VACANT, header_tokens
from tidings.local import LocalTier
from tidings.memory import Memory
from tidings.naming import untyped
from tidings.operations import Batch, Drop, Invalidate
from tidings.policy import Policy
from tidings.reading import Reading
from tidings.scripts import Script
from tidings.sealing import Sealer
from tidings.seen import NOTHING, AwayError
from tidings.settings import GivenSettings
from tidings.steps import Ask, Behind, Fly, Follow, Invoke, LoadTimeoutError, Outcome, Wait
from tidings.store import SyncRedisStore
from tidings.tail import BOUND, Tail
from tidings.targets import Call, Request, Target, target
from tidings.telemetry import Telemetry

#: Every operation takes the server this long. A power of two, so that no sum of times is rounded.
TICK = 2.0**-10
PAUSES = (0.125, 0.5, 0.5, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 16.0, 64.0, 700.0)
ITEMS = (0, 1)
OWNERS = ("a", "b")
NAMESPACE = "n"
KEYS = Keyspace("machine", "")
OPTIONS = GivenSettings.of("memory://", {"vacancy_ttl": 10, "default_ttl": 60, "token_ttl": 600, "lease_ttl": 600})

STALE = Policy(max_staleness_ms=8_000, swr_ms=8_000, stale_if_error_ms=30_000, early=1.0, timeout=1.0)
LOCAL = Policy(local_ttl_ms=30_000)
#: What is explored: a policy, and whether values bring tags of their own.
MODES = {
    "plain": (Policy(), False),
    "result tags": (Policy(), True),
    "stale": (STALE, False),
    "stale, result tags": (STALE, True),
    "local": (LOCAL, False),
    "local, result tags": (LOCAL, True),
    "local, stale": (replace(STALE, local_ttl_ms=30_000), False),
}
#: With the server's own time, no window can be held against the model's clock.
SERVER_MODES = {name: mode for name, mode in MODES.items() if "stale" not in name}


class ViolationError(AssertionError):
    """A value was served that must not have been."""


class LoadError(Exception):
    """What a load raises here."""


@dataclass
class ByHand:
    """When a `set` has read its tokens, and when it has stored its value."""

    looked_at: float = 0.0
    stored_at: float = 0.0


@dataclass(frozen=True)
class Origin:
    """Where a value came from; values are numbers, and their origins are kept by number."""

    item: int
    version: int
    names: frozenset[str]
    owner: str
    by_hand: ByHand | None = None


@dataclass(eq=False)
class Invalidated:
    """One invalidation: what it names, what was committed before it was called, and how far it has come."""

    names: frozenset[str]
    items: frozenset[int]
    floors: dict[int, int]
    #: when its first command was carried out, and when the log was told
    at: float | None = None
    told_at: float | None = None
    acked: int | None = None
    acked_at: float = 0.0
    applied: "set[Process]" = field(default_factory=set)

    def _precedes(self, by_hand: "ByHand | None") -> bool:
        """Whether a `set` came after it: it counts from when it has read its tokens, for the entry when it is stored.

        What it stores was read before it was called, so an invalidation in between is the caller's affair.
        """
        if by_hand is None or self.at is None:
            return False
        return self.at < (by_hand.stored_at if self.items else by_hand.looked_at)

    def concerns(self, origin: Origin) -> bool:
        """Whether the value must not be served any more once this is acknowledged."""
        if origin.version >= self.floors[origin.item] or self._precedes(origin.by_hand):
            return False
        if origin.names & self.names:
            return True
        return origin.item in self.items


class Group:
    """An opening that has not been sent yet, and who shares it."""

    def __init__(self, operation: Any, tasks: "list[Task] | None" = None) -> None:
        self.operation = operation
        self.tasks: list[Task] = tasks or []
        self.parts: list[Any] = []


def _answer(operation: Any, parts: list[Any]) -> Any:
    """What a driver gives for a step, of the parts that the server has answered."""
    if isinstance(operation, Batch):
        return parts if operation.operations else []
    if isinstance(operation, Look):  # the time and the ttl are asked before the entry is read
        return replace(parts[-1], left_ms=parts[0].left_ms, now_us=parts[0].now_us)
    return parts[-1]


class Task:
    """Steps under way in one process, and what they wait for."""

    def __init__(self, process: "Process", steps: Any, done: "Callable[[Task], None] | None" = None) -> None:
        self.process = process
        self.world = process.world
        self.steps = steps
        self.done = done
        self.step: Any = None
        self.over = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.answer: tuple[Any, BaseException | None] | None = None
        self.awaited: Task | None = None
        self.failed = False
        self.began = self.world.tick()
        self.asked_at = self.world.now
        self.invalidated: Invalidated | None = None
        self.by_hand: ByHand | None = None
        self.world.tasks.append(self)
        self._resume(lambda: next(steps))

    def _resume(self, go_on: Callable[[], Any]) -> None:
        self.answer, self.awaited = None, None
        self.process.leave(self)
        try:
            self.step = go_on()
        except StopIteration as end:
            self._end(end.value, None)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, ViolationError):
                raise
            self._end(None, error)
        else:
            self.process.arrange(self)

    def _end(self, value: Any, error: BaseException | None) -> None:
        self.over, self.value, self.error = True, value, error
        self.world.tasks.remove(self)
        if self.done is not None:
            self.done(self)

    def give(self, value: Any) -> None:
        """Answer the step at once."""
        self._resume(lambda: self.steps.send(value))

    def throw(self, error: BaseException) -> None:
        """Answer the step with an error."""
        self.failed = True
        self._resume(lambda: self.steps.throw(error))

    def advance(self) -> None:
        """Carry the step out, or hear how that went, or let what it waits for go on."""
        if self.awaited is not None:
            if not self.awaited.over:
                self.awaited.advance()
            else:
                self._land(self.awaited)
        elif self.answer is not None:
            value, error = self.answer
            if error is None:
                self.give(value)
            else:
                self.throw(error)
        else:
            self.process.carry_out(self)

    def _land(self, awaited: "Task") -> None:
        if awaited.error is not None:
            self.throw(awaited.error)
        elif isinstance(self.step, Fly):
            self.give((awaited.value, awaited.first is self))
        elif isinstance(self.step, Follow):
            self.give(awaited)
        else:
            self.give(awaited.value)

    first: "Task | None" = None


class Process:
    """One process that reads: a local tier, flights, and the rest of a driver. `threads`: as `sync_reader` has it."""

    def __init__(self, world: "World", *, threads: bool) -> None:
        self.world = world
        self.threads = threads
        telemetry, sealer = Telemetry(""), Sealer(OPTIONS)
        self.tier = LocalTier(100, 10_000, lambda: world.now)
        self.flights: dict[Any, Task] = {}
        self.groups: dict[Any, Group] = {}
        self.sent: dict[Task, Group] = {}
        self.behind: set[str] = set()
        how = {"sealer": sealer, "clock": lambda: world.now, "chance": world.chance}
        self.filling = Filling(OPTIONS, telemetry=telemetry, tier=self.tier, **how)
        self.reading = Reading(OPTIONS, self.filling, note=self.tier.note, flights=self.flights, **how)
        self.calls = [Call(f"f{item}", NAMESPACE, f"f:{item}", ("shared", f"t:{item}"), world.policy) for item in ITEMS]
        self._counts = telemetry.of(NAMESPACE, "f")
        self.targets = [self.new_target(item) for item in ITEMS]
        #: what the log says that the tail has not heard: what to apply, or None for a gap
        self.unheard: deque[tuple[Any, ...] | None] = deque()
        self.tail = None if world.server is None else Tail(world.tail_client, KEYS.log, self.tier, lambda *_: None)

    def new_target(self, item: int) -> Target:
        """What a call by hand makes each time, and a cached function once."""
        return target(self.calls[item], KEYS, self._counts)

    # The driver

    def arrange(self, task: Task) -> None:
        """Take the next step of a task as far as it goes without anything happening."""
        step = task.step
        match step:
            case Fly(identity, make, _):
                flight = self.flights.get(identity)
                if flight is None:
                    flight = Task.__new__(Task)
                    self.flights[identity] = flight
                    flight.first = task
                    Task.__init__(flight, self, make(), lambda _: self.flights.pop(identity, None))
                task.awaited = flight
            case Follow(steps):
                made = Task(self, steps)
                if self.threads:
                    task.awaited = made
                else:
                    task.give(made)
            case Outcome(handle):
                task.awaited = handle
            case Behind(key, make):
                if key not in self.behind:
                    self.behind.add(key)
                    Task(self, make(), lambda _: self.behind.discard(key))
                task.give(None)
            case Ask(Look() as operation) if (shared := self._shared(operation)) is not None:
                self.groups.setdefault(shared, Group(operation)).tasks.append(task)

    def _shared(self, operation: Look) -> Any:
        """What those have in common who share a look that has not been sent yet; None: it is not shared."""
        return None if self.threads else operation

    def carry_out(self, task: Task) -> None:
        """Let happen what the task has asked for; it hears of it another time."""
        self.world.pass_time(TICK)
        task.asked_at = self.world.now
        match task.step:
            case Ask(operation):
                self._ask(task, operation)
            case Invoke(load):
                task.answer = self.world.attempt(load)
            case Wait():
                task.answer = True, None

    def _ask(self, task: Task, operation: Any) -> None:
        """Carry out one part of an exchange, and answer everybody who shares it when that was the last.

        Between the parts others come in.
        """
        shared = self._shared(operation) if isinstance(operation, Look) else None
        group = self.sent.get(task) or self.groups.pop(shared, None) or Group(operation, [task])
        parts, operation = group.parts, group.operation
        if isinstance(operation, Batch):
            wanted = len(operation.operations)
            part = operation.operations[len(parts)] if wanted else operation
        else:
            wanted = 1 + (operation.ttl or operation.time) if isinstance(operation, Look) else 1
            part = operation
        if (made := task.invalidated) is not None:
            made.at = self.world.now if made.at is None else made.at
            made.told_at = self.world.now if isinstance(operation, Invalidate) else None
        if task.by_hand is not None:
            task.by_hand.stored_at = self.world.now
            task.by_hand.looked_at = task.by_hand.looked_at if isinstance(part, Put) else self.world.now
        value, error = self.world.run(part)
        parts.append(value)
        finished = len(parts) >= wanted or error is not None
        for each in group.tasks:
            each.asked_at = self.world.now
            self.sent[each] = group
            if finished:
                each.answer = None if error is not None else _answer(operation, parts), error

    def leave(self, task: Task) -> None:
        """Take no more part in what was shared."""
        if (sent := self.sent.pop(task, None)) is not None:
            sent.tasks.remove(task)
        for shared, group in list(self.groups.items()):
            if task in group.tasks:
                group.tasks.remove(task)
                if not group.tasks:
                    del self.groups[shared]

    # What is asked of it

    def read(self, item: int) -> None:
        """Begin what a call of a cached function does; a hit in the local tier is served at once."""
        wanted, world = self.targets[item], self.world
        slot = wanted.slot = wanted.slot if wanted.slot is not None else self.tier.get(wanted.key)
        if slot is not None:
            value, payload = slot.value, slot.payload
            if (now := world.now) < slot.expires and now < self.tier.alive_until:
                slot.visited = True
                world.check_local(self, item, value if slot.shared else untyped.decode(payload))
                return
        Task(self, self._reading(self._request(item)), partial(world.check_read, item))

    def _reading(self, request: Request) -> Any:
        wanted, looked = request.target, None
        try:
            if wanted.plain and request.result_tags is None:
                read = yield Ask(Look(wanted.keys))
                found = self.reading.hit(wanted, untyped, [read.entry, *read.tokens])
                if type(found) is not Looked:
                    return found
                looked = found
            return (yield from self.reading.read(request, looked)).value
        except (AwayError, UnavailableError):
            return (yield Invoke(request.load))

    def _request(self, item: int, *, new: bool = False) -> Request:
        wanted = self.new_target(item) if new else self.targets[item]
        result_tags = None if new or not self.world.result_tags else self.world.tags_of
        return Request(wanted, partial(self.world.load, item), untyped, result_tags)

    def refresh(self, item: int) -> None:
        """Begin a refresh; what it returns was loaded by it."""
        Task(self, self.reading.refresh(self._request(item)), partial(self.world.check_read, item))

    def warm(self, item: int, *, renew: bool) -> None:
        """Begin what the worker does to have an entry in the cache."""
        Task(self, self.reading.ensure(self._request(item), renew=renew))

    def peek(self, item: int) -> None:
        """Begin a `get`, which knows no tags but those of the entry."""
        bare = replace(self.calls[item], tags=())
        request = Request(target(bare, KEYS, self._counts), None, untyped)
        Task(self, self.reading.peek(request, None), partial(self.world.check_read, item))

    def peek_many(self) -> None:
        """Begin a `get_many`."""
        bare = [replace(call, tags=()) for call in self.calls]
        requests = [Request(target(call, KEYS, self._counts), None, untyped) for call in bare]
        Task(self, bulk.peek_many(self.reading, requests, None), self.world.check_many)

    def read_many(self) -> None:
        """Begin a `get_or_set_many`."""
        requests = [self._request(item, new=True) for item in ITEMS]

        def load(indices: list[int]) -> Any:
            return (yield Invoke(lambda: {index: self.world.load(ITEMS[index]) for index in indices}))

        Task(self, bulk.read_many(self.reading, requests, load), self.world.check_many)

    def set(self, item: int) -> None:
        """Begin a `set` of what is in the database now."""
        by_hand = ByHand()
        value = self.world.load(item, by_hand)
        task = Task(self, self.filling.put([self._request(item, new=True)], [value]))
        task.by_hand = by_hand

    def invalidate(self, names: frozenset[str], items: frozenset[int], *, pattern: bool = False) -> None:
        """Begin an invalidation."""
        world = self.world
        made = Invalidated(names, items, dict(world.versions))
        if pattern:
            glob = f"f:[{''.join(map(str, items))}]"
            steps: Any = self._telling(by_pattern(KEYS, OPTIONS, glob, NAMESPACE))
        else:
            entries = [self.targets[item].key for item in items]
            steps = self._telling(self._invalidating(dict.fromkeys(names, "why"), entries))
        task = Task(self, steps, partial(world.acknowledge, made))
        task.invalidated = made
        world.invalidations.append(made)

    def _invalidating(self, causes: dict[str, str], entries: list[str]) -> Any:
        operation = invalidation(KEYS, OPTIONS, causes, entries)
        yield Ask(operation)
        return operation

    def _telling(self, steps: Any) -> Any:
        """What `Cache` does when it is done: the own tier hears at once."""
        told = yield from steps
        self.tier.applied(told.causes, told.entries, told.patterns)
        return told

    # The tail

    def hear(self, most: int) -> None:
        """Let the tail apply what the log has, and if that is all, vouch for the tier."""
        world = self.world
        if self.tail is not None:
            self._hear_from_server(self.tail)
            return
        for _ in range(min(most, len(self.unheard))):
            said = self.unheard.popleft()
            if said is None:
                self.lose_tail()
                return
            self.tier.applied(*said[:3])
            if said[3] is not None:
                said[3].applied.add(self)
        if not self.unheard:
            self.tier.alive(world.now + BOUND)

    def _hear_from_server(self, tail: Tail) -> None:
        if tail._position is None:
            tail._begin(self.world.server.client)
        else:
            tail._read(self.world.server.client, tail._position, None)  # without waiting
        self._has_applied_all()

    def lose_tail(self) -> None:
        """Lose track of the log: from now on only what is said later."""
        self.tier.lost()
        self.unheard.clear()
        if self.tail is not None:
            self.tail._position = None
        self._has_applied_all()

    def _has_applied_all(self) -> None:
        for made in self.world.invalidations:
            if made.told_at is not None:
                made.applied.add(self)


class World:
    """The database, the model of what is true, and the cache's server: a memory, or a real one."""

    def __init__(self, mode: tuple[Policy, bool], threads: tuple[bool, bool], server: SyncRedisStore | None) -> None:
        self.policy, self.result_tags = mode
        self.server = server
        self.now = 1000.0
        self._moments = 0
        self.versions = dict.fromkeys(ITEMS, 0)
        self.owners = dict.fromkeys(ITEMS, OWNERS[0])
        self.origins: list[Origin] = []
        self.invalidations: list[Invalidated] = []
        self.tasks: list[Task] = []
        self.eager = False
        if server is None:
            self.memory = Memory(lambda: self.now)
            self.memory._epoch_us = 1_700_000_000_000_000
            self.memory.listeners.append(self._said)
        else:
            server.client.flushall()
        self.processes = [Process(self, threads=each) for each in threads]
        for process in self.processes:
            process.hear(1)

    def tail_client(self) -> Any:
        """What the tail makes itself; here it is handed one."""
        raise NotImplementedError

    def chance(self) -> float:
        """Refresh early whenever that is possible, or never."""
        return 1 - 1e-9 if self.eager else 0.0

    def tick(self) -> int:
        """Return a moment: what is said of "before" goes by these."""
        self._moments += 1
        return self._moments

    def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds

    # The server

    def run(self, operation: Any) -> tuple[Any, UnavailableError | None]:
        """Carry out an operation now."""
        try:
            return (self.memory if self.server is None else self.server).run(operation), None
        except UnavailableError as error:
            return None, error

    def _said(self, tokens: Any, entries: Any, patterns: Any) -> None:
        made = next((made for made in self.invalidations if made.told_at == self.now), None)
        for process in self.processes:
            process.unheard.append((tuple(tokens), tuple(entries), tuple(patterns), made))

    def lose(self, key: str) -> None:
        """Evict a key."""
        if self.server is not None:
            self.server.client.delete(key)
        else:
            self.memory._remove(key)

    def lose_everything(self) -> None:
        """FLUSHALL: the log is gone as well."""
        if self.server is not None:
            self.server.client.flushall()
            return
        self.memory.forget()
        self.lose_log()

    def lose_log(self) -> None:
        """Begin the log anew."""
        if self.server is not None:
            self.server.client.delete(KEYS.log)
            return
        self.memory._logged = self.memory._next_id()
        for process in self.processes:
            process.unheard.append(None)

    # The database

    def commit(self, item: int, owner: str) -> None:
        """Change an item."""
        self.versions[item] += 1
        self.owners[item] = owner

    def load(self, item: int, by_hand: ByHand | None = None) -> int:
        """Read the item's row."""
        owner = self.owners[item]
        names = {ALL, namespace_token(NAMESPACE), tag_token("shared"), tag_token(f"t:{item}")}
        if self.result_tags and by_hand is None:
            names.add(tag_token(f"o:{owner}"))
        made = Origin(item, self.versions[item], frozenset(names), owner, by_hand)
        self.origins.append(made)
        return len(self.origins) - 1

    def tags_of(self, value: int) -> tuple[str, ...]:
        """What `result_tags` says of a value."""
        return (f"o:{self.origins[value].owner}",)

    def attempt(self, load: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Run the caller's function."""
        try:
            return load(), None
        except Exception as error:  # noqa: BLE001 LeftOutError and its like are the caller's
            return None, error

    # The guarantee

    def acknowledge(self, made: Invalidated, task: Task) -> None:
        """An invalidation has returned, or raised: then it promises nothing."""
        if task.error is None:
            made.acked, made.acked_at = self.tick(), self.now
            made.applied.add(task.process)
        elif not isinstance(task.error, UnavailableError | InvalidationError | asyncio.CancelledError):
            raise task.error

    def check_read(self, item: int, task: Task) -> None:
        """Hold what a read returned against everything that was acknowledged when it began."""
        if task.error is not None:
            if not isinstance(task.error, LoadError | AwayError | UnavailableError | asyncio.CancelledError):
                raise task.error
        elif task.value is not None:
            self.check(item, task.value, task)

    def check_many(self, task: Task) -> None:
        """The same for many."""
        if task.error is not None:
            self.check_read(0, task)
            return
        for item, value in zip(ITEMS, task.value, strict=True):
            if value is not None and value is not NOTHING:
                self.check(item, value, task)

    def check(self, item: int, value: int, task: Task) -> None:
        """Hold a value from Redis or a load against the guarantee."""
        known = [made for made in self.invalidations if made.acked is not None and made.acked < task.began]
        self._judge(item, value, known, f"read that began at {task.began}", task)

    def check_local(self, process: Process, item: int, value: int) -> None:
        """Hold a value from the local tier against what has reached it, or should have."""
        late = self.now - BOUND
        known = [
            made
            for made in self.invalidations
            if made.acked is not None and (process in made.applied or made.acked_at <= late)
        ]
        self._judge(item, value, known, "local hit", None)

    def _judge(self, item: int, value: int, known: list[Invalidated], how: str, task: Task | None) -> None:
        origin = self.origins[value]
        broken = [made for made in known if made.concerns(origin)]
        if origin.item != item:
            raise ViolationError(f"{how}: asked for item {item}, got {origin}")
        if not broken:
            return
        dropped = any(item in made.items for made in broken if not origin.names & made.names)
        if task is not None and not dropped:
            first = min(made.at for made in broken if made.at is not None)
            if (task.asked_at - first) * 1000 < self.policy.max_staleness_ms:
                return
            if task.failed and (self.now - first) * 1000 < self.policy.stale_if_error_ms:
                return
        raise ViolationError(
            f"{how}, now {self.now}: item {item} is at {self.versions[item]}, got {origin} despite {broken}"
        )

    def finish(self, task: Task) -> None:
        """Let a task go on to its end, and only what it waits for with it."""
        for _ in range(10_000):
            if task.over:
                return
            task.advance()
        raise AssertionError(f"never ends: {task.step}")


def _fail(task: Task, *, cancel: bool) -> None:
    """An answer does not arrive, a load raises, a caller has waited for long enough, or goes away."""
    match task.step:
        case Invoke():
            task.answer = None, LoadError()
        case Fly() | Wait() if cancel:
            task.throw(asyncio.CancelledError())
        case Fly(timeout=float()):
            task.throw(LoadTimeoutError())
        case Ask():
            task.answer = None, UnavailableError("lost")


ALL_STEPS = 16
#: Half steps that a task takes before something else happens.
STEPS = st.sampled_from([*range(11), *[ALL_STEPS] * 8])
PROCESS = st.sampled_from([0, 0, 0, 1])
OWNER = st.sampled_from(OWNERS)
WHAT = st.sampled_from(
    ["tag", "shared", "result", "result", "namespace", "all", "entry", "entry", "pattern", "pattern"]
)
ITEM = st.sampled_from([0, 0, 0, 0, 1])
MISHAPS = (
    *["fail"] * 4,
    *["cancel"] * 2,
    *["token lost"] * 5,
    *["entry lost"] * 3,
    *["lease lost"] * 2,
    *["commit"] * 2,
    "tail lost",
    "tail away",
    "log lost",
    "all lost",
)


class Machine(RuleBasedStateMachine):
    """The rules. What they draw is taken modulo what there is."""

    def __init__(self, modes: dict[str, tuple[Policy, bool]], server: SyncRedisStore | None = None) -> None:
        super().__init__()
        self.modes = modes
        self.server = server
        self.world: Any = None
        self._time = looking.time

    @initialize(mode=st.integers(0, 50), threads=st.tuples(st.booleans(), st.booleans()))
    def begin(self, mode, threads):
        names = list(self.modes)
        self.world = world = World(self.modes[names[mode % len(names)]], threads, self.server)
        looking.time = SimpleNamespace(time=lambda: world.now)

    @rule(process=PROCESS, item=ITEM, steps=STEPS)
    def read(self, process, item, steps):
        before = len(self.world.tasks)
        self.world.processes[process].read(item)
        self._advance(before, steps)

    @rule(process=PROCESS, item=ITEM, steps=STEPS, how=st.integers(0, 7))
    def do(self, process, item, steps, how):
        it, before = self.world.processes[process], len(self.world.tasks)
        many = it.peek_many if self.world.result_tags else it.read_many
        ways = [it.refresh, it.refresh, it.peek, it.set, partial(it.warm, renew=False), partial(it.warm, renew=True)]
        ways += [lambda _: it.peek_many(), lambda _: many()]
        ways[how](item)
        self._advance(before, steps)

    @rule(process=PROCESS, item=ITEM, what=WHAT, owner=OWNER, steps=STEPS)
    def change(self, process, item, what, owner, steps):
        """Commit, then invalidate: what was loaded before is wrong, and somebody says so."""
        world, before = self.world, len(self.world.tasks)
        names = {
            "tag": {f"tag:t:{item}"},
            "shared": {"tag:shared"},
            "result": {f"tag:o:{world.owners[item]}"},
            "namespace": {namespace_token(NAMESPACE)},
            "all": {ALL},
        }.get(what, set())
        world.commit(item, owner)
        items = frozenset() if names else frozenset({item})
        world.processes[process].invalidate(frozenset(names), items, pattern=what == "pattern")
        self._advance(before, steps)

    @rule(process=PROCESS, by=PROCESS, item=ITEM, what=WHAT, owner=OWNER, steps=st.integers(1, 9), then=PROCESS)
    def overtake(self, process, by, item, what, owner, steps, then):
        """The race itself: a read has begun, the item changes, and somebody reads it who knows of that."""
        self.world.processes[process].hear(5)
        self.read(process, item, steps)
        self.change(by, item, what, owner, ALL_STEPS)
        self.world.processes[then].hear(5)
        self.read(then, item, ALL_STEPS)

    @rule(index=st.integers(0, 7), steps=STEPS)
    def go_on(self, index, steps):
        if self.world.tasks:
            self._advance(index % len(self.world.tasks), steps)

    @rule(process=PROCESS, most=st.integers(1, 5))
    def hear(self, process, most):
        self.world.processes[process].hear(most)

    @rule(kind=st.sampled_from(MISHAPS), process=PROCESS, item=ITEM, index=st.integers(0, 7))
    def mishap(self, kind, process, item, index):
        world, it = self.world, self.world.processes[process]
        match kind:
            case "fail":
                if world.tasks:
                    _fail(world.tasks[index % len(world.tasks)], cancel=False)
            case "cancel":
                if world.tasks:
                    _fail(world.tasks[index % len(world.tasks)], cancel=True)
            case "tail lost":
                it.lose_tail()
            case "tail away":
                it.tier.bypass()
            case "log lost":
                world.lose_log()
            case "all lost":
                world.lose_everything()
            case "token lost":
                keys = [*it.targets[item].keys[1:], *(KEYS.token(f"tag:o:{owner}") for owner in OWNERS)]
                world.lose(keys[index % len(keys)])
            case "entry lost":
                world.lose(it.targets[item].key)
            case "lease lost":
                world.lose(it.targets[item].places.lease)
            case "commit":
                world.commit(item, OWNERS[index % 2])

    @precondition(lambda self: self.server is None)
    @rule(pause=st.sampled_from(PAUSES), eager=st.booleans())
    def pass_time(self, pause, eager):
        self.world.pass_time(pause)
        self.world.eager = eager

    def _advance(self, index: int, steps: int) -> None:
        """Let a task take so many half steps; more than any takes: to its end."""
        if index >= len(self.world.tasks):
            return  # it was over at once
        task = self.world.tasks[index]
        if steps == ALL_STEPS:
            self.world.finish(task)
        for _ in range(steps):
            if not task.over:
                task.advance()

    def teardown(self):
        """Let everything come to its end, then look at what is left."""
        try:
            if self.world is not None:
                self._settle()
        finally:
            looking.time = self._time

    def _settle(self) -> None:
        world = self.world
        while world.tasks:
            world.finish(world.tasks[0])
        for process in world.processes:
            for item in ITEMS:
                process.read(item)
                process.hear(1000)
                process.peek(item)
                process.read(item)
                while world.tasks:
                    world.finish(world.tasks[0])


def explore(examples: int, steps: int, modes: Any = MODES, server: SyncRedisStore | None = None) -> None:
    """Run the machine, the same way each time; raises ViolationError."""
    run_state_machine_as_test(
        lambda: Machine(modes, server),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


# It finds nothing


def test_no_interleaving_serves_what_an_invalidation_has_made_wrong():
    explore(500, 50)


def test_no_interleaving_does_with_the_scripts_and_leases_of_a_server(server_store):
    explore(150, 40, SERVER_MODES, server_store)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_no_interleaving_of_many_more_does_either(mode):
    explore(5_000, 80, {mode: MODES[mode]})


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", SERVER_MODES)
def test_no_interleaving_of_many_more_does_with_a_server(mode, server_store):
    explore(1_000, 60, {mode: MODES[mode]}, server_store)


@pytest.fixture
def server_store(url):
    made = SyncRedisStore.connect(GivenSettings.of(url, {}))
    yield made
    made.close()


# It finds what is broken on purpose


def tokens_not_compared(patch):
    """Every entry has the tokens of the moment."""
    judge = fence.judge

    def own(entry, tokens):
        return list(header_tokens(entry)) if entry is not None and entry[:2] in (b"\x03e", b"\x03g") else tokens

    def blind_judge(key, entry, tokens, left_ms=None):
        return judge(key, entry, own(entry, tokens), left_ms)

    for module in (looking, reading, filling, bulk, memory):
        patch.setattr(module, "judge", blind_judge)
    hits_compare_no_tokens(patch)


def hits_compare_no_tokens(patch):
    """Only the short way to a hit is blind."""
    hit = fence.hit
    patch.setattr(looking, "hit", lambda entry, _: hit(entry, b"".join(header_tokens(entry or b""))))


def lineage_not_compared(patch):
    """A fill stores whatever is there, or nothing."""
    fill = Memory._fill

    def blind(self, operation):
        there = (self._get(operation.keys[0]) or b"")[LINEAGE_START:LINEAGE_END]
        return fill(self, replace(operation, lineage=there))

    patch.setattr(Memory, "_fill", blind)


def result_tags_not_stamped(patch):
    """A fill believes today's tokens of result tags, whenever they were made."""
    results = Memory._results

    def blind(self, named, keep_ms):
        return results(self, replace(named, logged=self._logged, logged_at=self._logged_at), keep_ms)

    patch.setattr(Memory, "_results", blind)


def flights_by_key(patch):
    """Whoever wants an entry joins any load of it."""
    patch.setattr(Lead, "identity", property(lambda lead: lead.ticket.key))


def flights_without_the_log(patch):
    """With result tags the ticket alone says which load it is."""
    patch.setattr(Lead, "identity", property(lambda lead: lead.ticket))


def local_tier_ignores_the_note(patch):
    """A value is put whatever was applied since it was noted."""
    put = LocalTier.put

    def blind(self, key, tokens, noted, *values, **options):
        return put(self, key, tokens, self._position, *values, **options)

    patch.setattr(LocalTier, "put", blind)


def local_tier_noted_late(patch):
    """The position is noted when the answer is there, not before the question."""
    keep = Filling.keep

    def late(self, wanted, noted, *values, **options):
        return keep(self, wanted, None if noted is None else self._tier.note(), *values, **options)

    patch.setattr(Filling, "keep", late)


def local_tier_does_not_know_result_tags(patch):
    """A value is put under the tags of its arguments alone."""
    keep = Filling.keep

    def untagged(*values, **options):
        keep(*values, **{**options, "tags": ()})

    patch.setattr(Filling, "keep", untagged)


def patterns_leave_vacancies(patch):
    """A pattern deletes what has a value, and no more."""
    dispatch = Memory._dispatch

    def sparing(self, operation):
        if isinstance(operation, Drop):
            values = [key for key in operation.keys if not (self._get(key.decode()) or b"").startswith(VACANT)]
            operation = Drop(tuple(values))
        return dispatch(self, operation)

    patch.setattr(Memory, "_dispatch", sparing)


def patterns_are_not_logged(patch):
    """Local tiers hear nothing of patterns."""
    applied = LocalTier.applied
    patch.setattr(LocalTier, "applied", lambda self, tokens, entries, _=(): applied(self, tokens, entries))


#: Each way of breaking it, and where it can be seen.
BREAKS = {
    tokens_not_compared: "plain",
    hits_compare_no_tokens: "plain",
    lineage_not_compared: "plain",
    result_tags_not_stamped: "result tags",
    flights_by_key: "plain",
    flights_without_the_log: "result tags",
    local_tier_ignores_the_note: "local",
    local_tier_noted_late: "local",
    local_tier_does_not_know_result_tags: "local, result tags",
    patterns_leave_vacancies: "plain",
    patterns_are_not_logged: "local",
}


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda each: each.__name__)
def test_the_machine_finds_a_fence_in_which(break_it, monkeypatch):
    break_it(monkeypatch)
    with pytest.raises(ViolationError):
        explore(1000, 50, {BREAKS[break_it]: MODES[BREAKS[break_it]]})


@pytest.mark.parametrize(
    ("test", "mode"),
    [
        (
            f"if redis.pcall('GETRANGE', KEYS[1], {LINEAGE_START}, {LINEAGE_END - 1}) ~= ARGV[1] then return 0 end",
            "plain",
        ),
        ("if refused then return 0 end", "result tags"),
    ],
    ids=["lineage", "result tags"],
)
def test_the_machine_finds_a_fill_script_without_its_test_of_the(test, mode, monkeypatch, server_store):
    assert entries.FILL.text.count(test) == 1
    monkeypatch.setattr(
        entries, "FILL", Script.of(entries.FILL.text.replace(test, test.replace("return 0", "local _")))
    )
    with pytest.raises(ViolationError):
        explore(500, 40, {mode: MODES[mode]}, server_store)
