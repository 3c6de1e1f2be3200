"""The driver of `reading` for one event loop.

async or threads: coroutines on the loop of whoever reads. What must not die with its caller (loads, fills, refreshes)
are tasks that belong to the reader, which `drain` waits for.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

from .after import Rule
from .driver import Driver
from .entries import Looked
from .errors import DecodeError, UnavailableError
from .filling import Stored
from .hearing import Clients, Hearing
from .layout import born_of
from .looking import is_quick
from .operations import Operation
from .seen import AwayError
from .shared import Shared
from .singleflight import Flights
from .steps import Ask, Behind, Fly, Follow, Invoke, Outcome, Step, Steps, Wait
from .store import AsyncStore
from .targets import Request
from .wakes import Wakes

T = TypeVar("T")


class Reader(Driver):
    """Reads and fills for one event loop; `store` and `flights` belong to it.

    While Redis is away, `outage` serves, if there is one: a reader on memory, which is not the `main` one.
    """

    def __init__(self, store: AsyncStore, shared: Shared, *, outage: "Reader | None" = None, main: bool = True) -> None:
        self.store = store
        self.flights = Flights()
        self.outage = outage
        super().__init__(shared, self.flights, main=main)
        self._behind: dict[str, asyncio.Task[Any]] = {}
        blocking = getattr(store, "blocking_for", None)
        keys, group = shared.keys, shared.settings.group
        #: the waits for events on this loop; None where nothing applies them
        self.hearing = Hearing(store, keys, group, self._failed) if isinstance(store, Clients) else None
        self._scopes = shared.scopes
        self._wakes = None if blocking is None else Wakes(blocking, shared.settings.operation_timeout, self._failed)

    async def read(self, request: Request, looked: Looked | None = None) -> Any:
        """Return a value as `Reading.read` says; while Redis is away from the outage's store, or loaded.

        A crowd that finds the same is one read; then each caller gets an object of its own, as from Redis: one that
        changes it must not change it for the others. Inside of `after` it is as that says.
        """
        rule = self._scopes.rule() if self._scopes.open else None
        if rule is Rule.DIRECT:
            request.target.counts.unapplied += 1
            with request.target.counts.loading():
                return await request.load()
        if self.breaker.closed:
            try:
                # With no lease to wait for, a task of its own would only make it later.
                if looked is not None and is_quick(born_of(looked.entry)):
                    return (await self.drive(self.reading.read(request, looked, stale=rule is None))).value
                return await self._read_together(request, looked, rule)
            except AwayError:
                pass
        return await self.read_without(request)

    async def _read_together(self, request: Request, looked: Looked | None, rule: Rule | None) -> Any:
        keys, counts = request.target.look.keys, request.target.counts
        same = (rule, keys) if looked is None else (rule, keys, looked.entry, *looked.tokens)
        found, first = await self._share(same, request, lambda: self.reading.read(request, looked, stale=rule is None))
        if first:
            return found.value
        setattr(counts, found.counted, getattr(counts, found.counted) + 1)
        try:
            return request.codec.decode(found.payload)
        except DecodeError:  # whoever was first keeps another type under this key
            return await request.load()

    async def read_without(self, request: Request) -> Any:
        """Return a value without Redis. Loads are not shared: nobody can say under what they began.

        The outage's store is for outages alone: what it holds nobody can invalidate from elsewhere. Nor may
        anybody inside of `after` be served from it.
        """
        request.target.counts.direct += 1
        if (outage := self._outage_now()) is not None:
            return await outage.read(request)
        with request.target.counts.loading():
            return await request.load()

    async def refresh(self, request: Request) -> Any:
        """Load now and fill, whatever is cached. Cancelling the caller does not cancel the load."""
        if self.breaker.closed:
            try:
                return (await self._share(None, request, lambda: self.reading.refresh(request)))[0]
            except AwayError:
                pass
        if self.outage is not None and not self.breaker.closed:
            request.target.counts.direct += 1
            return await self.outage.refresh(request)
        return await self.read_without(request)

    async def ensure(self, request: Request, *, renew: bool = False) -> Stored:
        """See `Reading.ensure`."""
        try:
            return (await self._share(None, request, lambda: self.reading.ensure(request, renew=renew)))[0]
        except AwayError:
            return Stored.UNAVAILABLE

    async def peek(self, request: Request, default: Any) -> Any:
        """Return the entry's value, or `default` where there is none or Redis is away.

        Also where `after` lets nothing be served from the cache.
        """
        if self._scopes.open and self._scopes.rule() is Rule.DIRECT:
            request.target.counts.unapplied += 1
            return default
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
            self._failed(error, operation)
            raise
        self._succeeded(operation)
        return result

    async def aclose(self, drain_timeout: float | None = None) -> None:
        """Wait for what is under way, then let go of the connections; see `Flights.drain`.

        Whoever waits for another process's load does not do so any longer, and loads.
        """
        if self._wakes is not None:
            await self._wakes.aclose()
        if self.hearing is not None:
            await self.hearing.aclose()
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
            case Ask(operation, bulk):
                return await self.ask(operation, bulk=bulk)
            case Invoke(load):
                with self._scopes.loading():
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

    def _outage_now(self) -> "Reader | None":
        inside = self._scopes.open and self._scopes.rule() is not None
        return None if self.breaker.closed or inside else self.outage

    async def _share(self, same: Hashable, request: Request, steps: Callable[[], Steps[T]]) -> tuple[T, bool]:
        return await self.flights.share(same, request.target.key, lambda: self.drive(steps()))

    def _send(self, steps: Steps[None]) -> None:
        if not self.flights.ending:
            self.flights.follow(self.drive(steps))

    def _start_behind(self, key: str, make: Callable[[], Steps[Any]]) -> None:
        if key in self._behind or len(self._behind) >= self._most_refreshes:
            return
        task = self._behind[key] = self.flights.follow(self.drive(make()))
        task.add_done_callback(lambda _: self._behind.pop(key, None))
