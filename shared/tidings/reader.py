"""The driver of `reading` for one event loop.

async or threads: coroutines on the loop of whoever reads. What must not die with its caller (loads, fills, refreshes)
are tasks that belong to the reader, which `drain` waits for.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from .breaker import Breaker
from .commands import Commands
from .entries import Look, Looked, Open, Release
from .errors import UnavailableError
from .filling import Filling, Stored
from .operations import Operation
from .reading import Reading
from .seen import AwayError
from .shared import Shared
from .singleflight import Flights
from .steps import Admit, Ask, Behind, Fly, Follow, Invoke, Outcome, Step, Steps, Wait
from .store import AsyncStore
from .targets import Request, Target
from .wakes import Wakes

T = TypeVar("T")


@dataclass(slots=True)
class _Admission:
    """An opening, and how many wait for it; `leads` once it has brought a lease."""

    operation: Open
    callers: int = 0
    leads: bool = False
    task: asyncio.Task[Any] = field(init=False)


class Reader:
    """Reads and fills for one event loop; `store` and `flights` belong to it.

    While Redis is away, `outage` serves, if there is one: a reader on memory, which is not the `main` one.
    """

    def __init__(self, store: AsyncStore, shared: Shared, *, outage: "Reader | None" = None, main: bool = True) -> None:
        self.store = store
        self.flights = Flights()
        self.outage = outage
        self.breaker = shared.breaker if main else Breaker.never()
        # What memory answers in an outage says nothing of the server.
        self._failed = shared.failed if main else _ignore
        self._succeeded = shared.succeeded if main else _ignore
        settings, sealer = shared.settings, shared.sealer
        tier, longest_ms = (shared.tier, None) if main else (None, round(settings.outage_ttl * 1000))
        filling = Filling(
            settings,
            sealer=sealer,
            telemetry=shared.telemetry,
            tier=tier,
            clock=shared.clock,
            longest_ms=longest_ms,
        )
        note = shared.note if main else _no_note
        self.reading = Reading(settings, filling, sealer=sealer, note=note, flights=self.flights, clock=shared.clock)
        self.commands = Commands(shared, self.reading)
        self._most_refreshes = settings.max_refreshes
        self._admissions: dict[tuple[str, ...], _Admission] = {}
        self._looks: dict[Look, asyncio.Task[Looked]] = {}
        self._behind: dict[str, asyncio.Task[Any]] = {}
        blocking = getattr(store, "blocking", None)
        self._wakes = None if blocking is None else Wakes(blocking, settings.operation_timeout, self._failed)

    def missed(self, wanted: Target, error: UnavailableError) -> None:
        """Take note of a read that Redis did not answer."""
        wanted.counts.errors += 1
        self._failed(error)

    async def read(self, request: Request, looked: Looked | None = None) -> Any:
        """Return a value as `Reading.read` says; while Redis is away from the outage's store, or loaded."""
        if self.breaker.closed:
            try:
                return await self.drive(self.reading.read(request, looked))
            except AwayError:
                pass
        return await self.read_without(request)

    async def read_without(self, request: Request) -> Any:
        """Return a value without Redis. Loads are not shared: nobody can say under what they began.

        The outage's store is for outages alone: what it holds nobody can invalidate from elsewhere.
        """
        request.target.counts.direct += 1
        if self.outage is not None and not self.breaker.closed:
            return await self.outage.read(request)
        return await request.load()

    async def refresh(self, request: Request) -> Any:
        """Load now and fill, whatever is cached. Cancelling the caller does not cancel the load."""
        if self.breaker.closed:
            try:
                return await self.drive(self.reading.refresh(request))
            except AwayError:
                pass
        return await self.read_without(request)

    async def ensure(self, request: Request, *, renew: bool = False) -> Stored:
        """See `Reading.ensure`."""
        try:
            return await self.drive(self.reading.ensure(request, renew=renew))
        except AwayError:
            return Stored.UNAVAILABLE

    async def peek(self, request: Request, default: Any) -> Any:
        """Return the entry's value, or `default` where there is none or Redis is away."""
        if self.breaker.closed:
            try:
                return await self.drive(self.reading.peek(request, default))
            except AwayError:
                pass
        request.target.counts.direct += 1
        return default

    async def is_fresh(self, request: Request) -> bool:
        """Say whether a read would be served from the cache now. Raises UnavailableError."""
        try:
            return await self.drive(self.reading.is_fresh(request))
        except AwayError as error:
            raise UnavailableError(str(error.__cause__ or "Redis keeps no tokens")) from error

    async def ask(self, operation: Operation[T], *, bulk: bool = False) -> T:
        """Carry out an operation, and let the breaker know how it went. Raises UnavailableError."""
        try:
            result = await self.store.run(operation, bulk=bulk)
        except UnavailableError as error:
            self._failed(error)
            raise
        self._succeeded(operation)
        return result

    async def aclose(self, drain_timeout: float | None = None) -> None:
        """Wait for what is under way, then let go of the connections; see `Flights.drain`.

        Whoever waits for another process's load does not do so any longer, and loads.
        """
        if self._wakes is not None:
            await self._wakes.aclose()
        await self.flights.drain(drain_timeout)
        if self.outage is not None:
            await self.outage.aclose(drain_timeout)
        await self.store.aclose()

    async def drive(self, steps: Steps[T]) -> T:
        """Carry out steps to their end."""
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._carry_out(step)
                except BaseException as error:  # noqa: BLE001 a cancelled load still has a lease to give up
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return cast("T", done.value)

    async def _carry_out(self, step: Step) -> Any:  # noqa: PLR0911 one arm for each step
        match step:
            case Ask(Look() as look, bulk):
                return await self._look(look, bulk=bulk)
            case Ask(operation, bulk):
                return await self.ask(operation, bulk=bulk)
            case Admit(operation):
                return await self._admit(operation)
            case Invoke(load):
                return await load()
            case Fly(identity, make, timeout):
                return await self.flights.join(identity, lambda: self.drive(make()), timeout)
            case Follow(following):
                return None if self.flights.ending else self.flights.follow(self.drive(following))
            case Outcome(handle):  # none where the loop ended with the load
                return Stored.UNAVAILABLE if handle is None else await asyncio.shield(handle)
            case Behind(key, make):
                return self._start_behind(key, make)
            case Wait():
                return self._wakes is not None and await self._wakes.wait(step) and self.breaker.closed

    async def _look(self, look: Look, *, bulk: bool) -> Looked:
        """Look; all who look for the same in this round of the event loop share it, as `_admit` says.

        Those who have waited for one load come all at once.
        """
        if not (look.ttl or look.time):
            try:
                entry, *tokens = await self.store.read(look.keys, bulk=bulk)
            except UnavailableError as error:
                self._failed(error)
                raise
            return Looked(entry, tokens)
        task = self._looks.get(look)
        if task is None:
            task = self._looks[look] = self.flights.follow(self._send_look(look, bulk=bulk), heard=True)
        return cast("Looked", await asyncio.shield(task))

    async def _send_look(self, look: Look, *, bulk: bool) -> Looked:
        del self._looks[look]
        return await self.ask(look, bulk=bulk)

    async def _admit(self, operation: Open) -> Any:
        """Share an opening with everybody who asks for the same in this round of the event loop.

        A task starts in the next round, so what is shared has not been sent when it is joined: who joins is opened
        after joining, as if it had asked alone. A lease that comes when all of them have gone is given up.
        """
        same = (*operation.keys, "log" if operation.log else "")
        shared = None if operation.renew else self._admissions.get(same)
        if shared is None:
            shared = _Admission(operation)
            shared.task = self.flights.follow(self._send_admission(same, shared), heard=True)
            if not operation.renew:
                self._admissions[same] = shared
        shared.callers += 1
        try:
            return await asyncio.shield(shared.task)
        except asyncio.CancelledError:
            shared.callers -= 1
            if shared.task.done():
                self._abandon(shared)
            raise

    async def _send_admission(self, same: tuple[str, ...], shared: "_Admission") -> Any:
        operation = shared.operation
        if not operation.renew:
            del self._admissions[same]
        opened = await self.ask(operation)
        shared.leads = operation.lease is not None and opened.leads
        self._abandon(shared)
        return b"" if operation.lease is None else operation.lease.owner, opened

    def _abandon(self, shared: "_Admission") -> None:
        operation = shared.operation
        if shared.callers == 0 and shared.leads and operation.lease is not None:
            shared.leads = False
            release = Release(operation.keys[0], operation.places, operation.lease.owner)
            self.flights.follow(self.ask(release), heard=True)

    def _start_behind(self, key: str, make: Callable[[], Steps[Any]]) -> None:
        if key in self._behind or len(self._behind) >= self._most_refreshes:
            return
        task = self._behind[key] = self.flights.follow(self.drive(make()))
        task.add_done_callback(lambda _: self._behind.pop(key, None))


def _no_note() -> None:
    """Do without a local tier in an outage: nobody could say what is invalidated meanwhile."""


def _ignore(_: object) -> None:
    """Take no note."""
