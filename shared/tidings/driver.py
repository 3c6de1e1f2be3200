"""What both drivers of `reading` are built of, whether coroutines or threads carry its steps out."""

from collections.abc import Container
from typing import Any

from .breaker import Breaker
from .commands import Commands
from .errors import UnavailableError
from .filling import Filling
from .reading import Reading
from .shared import Shared
from .steps import Steps
from .targets import Target


class Driver:
    """The decisions of one driver; `main` is false for one on an outage's memory, which serves for so long only."""

    def __init__(self, shared: Shared, flights: Container[Any], *, main: bool) -> None:
        self.breaker = shared.breaker if main else Breaker.never()
        # What memory answers in an outage says nothing of the server.
        self._failed = shared.failed if main else _ignore
        self._succeeded = shared.succeeded if main else _ignore
        settings, sealer, clock = shared.settings, shared.sealer, shared.clock
        tier, longest_ms = (shared.tier, None) if main else (None, round(settings.outage_ttl * 1000))
        filling = Filling(
            settings, sealer=sealer, telemetry=shared.telemetry, tier=tier, clock=clock, longest_ms=longest_ms
        )
        note = shared.note if main else _no_note
        self.reading = Reading(settings, filling, sealer=sealer, note=note, flights=flights, clock=clock)
        self.commands = Commands(shared, self.reading)
        self._most_refreshes = settings.max_refreshes
        self._hot = shared.hot

    def tell_hot(self) -> None:
        """Send which calls are read most, in the background; not while Redis is away."""
        if self.breaker.closed:
            self._send(self._hot.flush())

    def _send(self, steps: Steps[None]) -> None:
        """Carry out steps that nobody waits for."""
        raise NotImplementedError

    def missed(self, wanted: Target, error: UnavailableError) -> None:
        """Take note of a read that Redis did not answer."""
        wanted.counts.errors += 1
        self._failed(error)


def _no_note() -> None:
    """Do without a local tier in an outage: nobody could say what is invalidated meanwhile."""


def _ignore(*_: object) -> None:
    """Take no note."""
