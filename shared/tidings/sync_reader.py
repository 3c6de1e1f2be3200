"""The driver of `reading` for all threads of a process.

async or threads: each thread carries out its own reads, and blocks in Redis and in the load; nothing is handed to a
pool that could be full. Only what outlives its caller gets a thread (`threadflight`).
"""

from typing import Any, TypeVar, cast

from .after import Rule
from .driver import Driver
from .entries import Looked
from .errors import UnavailableError
from .filling import Stored
from .operations import Operation
from .seen import AwayError
from .shared import Shared
from .steps import Ask, Behind, Fly, Follow, Invoke, Outcome, Step, Steps, Wait
from .store import SyncStore
from .targets import Request
from .thread_hearing import ThreadClients, ThreadHearing
from .threadflight import ThreadFlights
from .wakes import ThreadWakes

T = TypeVar("T")


class SyncReader(Driver):
    """Reads and fills for threads; the methods are those of `reader.Reader`, blocking."""

    def __init__(
        self, store: SyncStore, shared: Shared, *, outage: "SyncReader | None" = None, main: bool = True
    ) -> None:
        self.store = store
        self.flights = ThreadFlights()
        self.outage = outage
        super().__init__(shared, self.flights, main=main)
        keys, group = shared.keys, shared.settings.group
        #: the waits for events; None where nothing applies them
        self.hearing = ThreadHearing(store, keys, group, self._failed) if isinstance(store, ThreadClients) else None
        self._scopes = shared.scopes
        blocking = getattr(store, "blocking_for", None)
        self._wakes = None if blocking is None else ThreadWakes(blocking, self._failed)

    def read(self, request: Request, looked: Looked | None = None) -> Any:
        """See `Reader.read`."""
        rule = self._scopes.rule() if self._scopes.open else None
        if rule is Rule.DIRECT:
            request.target.counts.unapplied += 1
            with request.target.counts.loading():
                return request.load()
        if self.breaker.closed:
            try:
                return self.drive(self.reading.read(request, looked, stale=rule is None)).value
            except AwayError:
                pass
        return self.read_without(request)

    def read_without(self, request: Request) -> Any:
        """See `Reader.read_without`."""
        request.target.counts.direct += 1
        if (outage := self._outage_now()) is not None:
            return outage.read(request)
        with request.target.counts.loading():
            return request.load()

    def refresh(self, request: Request) -> Any:
        """See `Reader.refresh`."""
        if self.breaker.closed:
            try:
                return self.drive(self.reading.refresh(request))
            except AwayError:
                pass
        if self.outage is not None and not self.breaker.closed:
            request.target.counts.direct += 1
            return self.outage.refresh(request)
        return self.read_without(request)

    def ensure(self, request: Request, *, renew: bool = False) -> Stored:
        """See `Reading.ensure`."""
        try:
            return self.drive(self.reading.ensure(request, renew=renew))
        except AwayError:
            return Stored.UNAVAILABLE

    def peek(self, request: Request, default: Any) -> Any:
        """See `Reader.peek`."""
        if self._scopes.open and self._scopes.rule() is Rule.DIRECT:
            request.target.counts.unapplied += 1
            return default
        if self.breaker.closed:
            try:
                return self.drive(self.reading.peek(request, default))
            except AwayError:
                pass
        request.target.counts.direct += 1
        return default

    def ask(self, operation: Operation[T]) -> T:
        """See `Reader.ask`."""
        try:
            result = self.store.run(operation)
        except UnavailableError as error:
            self._failed(error, operation)
            raise
        self._succeeded(operation)
        return result

    def close(self, drain_timeout: float | None = None) -> None:
        """Wait for what runs in the background, then close the connections; a later command opens new ones."""
        self.flights.drain(drain_timeout)
        if self.outage is not None:
            self.outage.close(drain_timeout)
        self.store.close()

    def drive(self, steps: Steps[T]) -> T:
        """Carry out steps to their end."""
        try:
            step = next(steps)
            while True:
                try:
                    result = self._carry_out(step)
                except StopIteration as error:  # which means something else to a generator
                    step = steps.throw(_StoppedError(error))
                except BaseException as error:  # noqa: BLE001 an interrupted load still has a lease to give up
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return cast("T", done.value)
        except _StoppedError as stopped:
            raise stopped.error from None

    def _send(self, steps: Steps[None]) -> None:
        self.flights.behind("hot calls", lambda: self.drive(steps), self._most_refreshes + 1)

    def _outage_now(self) -> "SyncReader | None":
        inside = self._scopes.open and self._scopes.rule() is not None
        return None if self.breaker.closed or inside else self.outage

    def _carry_out(self, step: Step) -> Any:  # noqa: PLR0911 one arm for each step
        match step:
            case Ask(operation):
                return self.ask(operation)
            case Invoke(load):
                with self._scopes.loading():
                    return load()
            case Fly(identity, make, timeout):
                return self.flights.join(identity, lambda: self.drive(make()), timeout)
            case Follow(following):
                return self.drive(following)
            case Outcome(handle):
                return handle
            case Behind(key, make):
                return self.flights.behind(key, lambda: self.drive(make()), self._most_refreshes)
            case Wait():
                return self._wakes is not None and self._wakes.wait(step) and self.breaker.closed


class _StoppedError(Exception):
    """A load raised StopIteration."""

    def __init__(self, error: StopIteration) -> None:
        super().__init__()
        self.error = error
