"""What a worker saw of its servers when it last looked, as gauges."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream and its group as the server had them at one look. None: the server could not tell."""

    entries: int
    lag: int | None
    pending: int
    #: seconds since the oldest entry of the kind was added, by the server's clock; 0: there is none
    oldest_pending_age: float | None
    oldest_unread_age: float | None


_OF_STREAMS: tuple[tuple[str, str, Callable[[StreamState], float | None]], ...] = (
    ("tidings_stream_entries", "Entries in the stream", lambda state: state.entries),
    ("tidings_group_lag_entries", "Entries not read yet", lambda state: state.lag),
    ("tidings_group_pending_entries", "Entries read and not acknowledged", lambda state: state.pending),
    ("tidings_oldest_pending_age_seconds", "Of the oldest not acknowledged", lambda state: state.oldest_pending_age),
    ("tidings_oldest_unread_age_seconds", "Of the oldest not read", lambda state: state.oldest_unread_age),
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the worker saw of its servers at one time. None: the server could not tell, or did not answer."""

    streams: Mapping[str, StreamState]
    dead_letters: int | None
    warms_queued: int | None


class Looked(Collector):
    """The gauges of the last look. What it could not tell has no sample, so that no old value poses as a new one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[Look, float] | None = None

    def observe(self, look: Look) -> None:
        """Take a look in place of the one before."""
        self._last = (look, self._clock())

    def collect(self) -> Iterator[Metric]:
        """Return the gauges, for the registry."""
        if self._last is None:
            return
        look, at = self._last
        for name, said, value_of in _OF_STREAMS:
            family = GaugeMetricFamily(name, said, labels=["stream"])
            for stream, state in look.streams.items():
                if (value := value_of(state)) is not None:
                    family.add_metric([stream], value)
            yield family
        for name, said, value in (
            ("tidings_dead_letters", "Entries in the dead-letter stream", look.dead_letters),
            ("tidings_warms_queued", "Jobs in the queue of warms", look.warms_queued),
            ("tidings_look_age_seconds", "Since the worker last looked", self._clock() - at),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, said, value)
