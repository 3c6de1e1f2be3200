"""The fixtures that pytest finds by itself where tidings is installed; the only module that imports pytest."""

from collections.abc import Iterator

import pytest

from .local import clock as real_clock
from .testing import FrozenClock, RecordingCache, recording


@pytest.fixture
def tidings_cache(request: pytest.FixtureRequest) -> Iterator[RecordingCache]:
    """Make a cache in memory the default for one test; it records what is published and invalidated.

    Afterwards it is closed, and the default cache is the one before. Its time is frozen if the test asks for
    `tidings_clock` as well.
    """
    frozen = "tidings_clock" in request.fixturenames
    with recording(clock=FrozenClock() if frozen else real_clock) as cache:
        yield cache


@pytest.fixture
def tidings_clock(tidings_cache: RecordingCache) -> FrozenClock:
    """Freeze the time of `tidings_cache`: ``tidings_clock.advance(60)`` lets a minute pass for what is cached."""
    clock = tidings_cache.clock
    if not isinstance(clock, FrozenClock):
        pytest.fail(
            "tidings_clock must be among the test's arguments, or make tidings_cache with clock=FrozenClock()",
            pytrace=False,
        )
    return clock
