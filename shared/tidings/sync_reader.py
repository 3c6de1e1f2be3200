"""The driver of `reading` for all threads of a process.

async or threads: each thread carries out its own reads, and blocks in Redis and in the load; nothing is handed to a
pool that could be full. Only what outlives its caller gets a thread (`threadflight`).
"""

from typing import Any, TypeVar, cast

from .breaker import Breaker
from .commands import Commands
from .entries import Looked
from .errors import UnavailableError
from .filling import Filling, Stored
from .operations import Operation
from .reading import Reading
from .seen import AwayError
from .shared import Shared
from .steps import Ask, Behind, Fly, Follow, Invoke, Outcome, Step, Steps, Wait
from .store import SyncStore
from .targets import Request, Target
from .threadflight import ThreadFlights
from .wakes import ThreadWakes

T = TypeVar("T")


class SyncReader:
    """Reads and fills for threads; the methods are those of `reader.Reader`, blocking."""

    def __init__(
        self, store: SyncStore, shared: Shared, *, outage: "SyncReader | None" = None, main: bool = True
    ) -> None:
        self.store = store
        self.flights = ThreadFlights()
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
        blocking = getattr(store, "blocking", None)
        self._wakes = None if blocking is None else ThreadWakes(blocking, self._failed)

    def missed(self, wanted: Target, error: UnavailableError) -> None:
        """Take note of a read that Redis did not answer."""
        wanted.counts.errors += 1
        self._failed(error)

    def read(self, request: Request, looked: Looked | None = None) -> Any:
        """See `Reader.read`."""
        if self.breaker.closed:
            try:
                return self.drive(self.reading.read(request, looked)).value
            except AwayError:
                pass
        return self.read_without(request)

    def read_without(self, request: Request) -> Any:
        """See `Reader.read_without`."""
        request.target.counts.direct += 1
        if self.outage is not None and not self.breaker.closed:
            return self.outage.read(request)
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

    def _carry_out(self, step: Step) -> Any:  # noqa: PLR0911 one arm for each step
        match step:
            case Ask(operation):
                return self.ask(operation)
            case Invoke(load):
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


def _no_note() -> None:
    """Do without a local tier in an outage: nobody could say what is invalidated meanwhile."""


def _ignore(*_: object) -> None:
    """Take no note."""
