"""Riding out an outage: what counts as one, how long to wait, and saying so once.

A worker does not end because Redis does. It keeps what it has in hand, asks again with growing pauses, and goes on;
whoever supervises processes sees it alive and not ready (`health`).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tidings.breaker import delays_seconds
from tidings.errors import UnavailableError

from .telemetry import log

#: The server's own words that name a state of its own, and redis-py has no type for.
_STATES = (
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "BUSY",
    "UNKILLABLE",
    "UNBLOCKED",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "OOM",
    "MOVED",
    "ASK",
)

_OUTAGES = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    ClusterError,
    MasterDownError,
    TryAgainError,
    TimeoutError,
    OSError,
)


def is_outage(error: BaseException | None) -> bool:
    """Say whether an error is the server's state and not ours, so that the same may succeed later.

    Not so a password that is not taken, a key of another type or a command that is not permitted: those want somebody
    who changes something, and the worker ends with them.
    """
    if isinstance(error, UnavailableError):
        return error.__cause__ is None or is_outage(error.__cause__)
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    if isinstance(error, ResponseError) and _said(error).startswith(_STATES):
        return True
    return isinstance(error, _OUTAGES)


def is_group_gone(error: BaseException) -> bool:
    """Say whether the server says that the consumer group, or its stream, is not there."""
    if isinstance(error, UnavailableError) and error.__cause__ is not None:
        return is_group_gone(error.__cause__)
    return isinstance(error, RedisError) and _said(error).startswith("NOGROUP")


def _said(error: RedisError) -> str:
    """Return the server's words. Where a command was one of several, redis-py puts its own before them."""
    return str(error).rpartition(" of pipeline caused error: ")[2].lstrip("('\"")


class Outage:
    """Which parts of the process Redis lets down now, told in the log once when it begins and once when it is over.

    `clock` gives seconds; `on_change` hears whether Redis is there.
    """

    def __init__(
        self, server: str, on_change: Callable[[bool, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._server = server
        self._on_change = on_change
        self._clock = clock
        self._away: set[str] = set()
        self._since = 0.0

    @property
    def over(self) -> bool:
        """Whether every part reaches Redis."""
        return not self._away

    def began(self, part: str, error: BaseException) -> None:
        """Note that Redis does not do its part for this one."""
        if not self._away:
            self._since = self._clock()
            log.error("redis_away", server=self._server, part=part, error=f"{type(error).__name__}: {error}")
            self._on_change(False, f"Redis is away: {type(error).__name__}")  # what it says may be an address
        self._away.add(part)

    def ended(self, part: str) -> None:
        """Note that it does again."""
        if not self._away:
            return
        self._away.discard(part)
        if not self._away:
            log.warning("redis_back", server=self._server, away_s=round(self._clock() - self._since, 3))
            self._on_change(True, "")


class Patience:
    """The pauses of one part between attempts, which end early when the process stops."""

    def __init__(self, part: str, outage: Outage, stop: asyncio.Event) -> None:
        self._part = part
        self._outage = outage
        self._stop = stop
        self._delays = delays_seconds(random.random)
        self._waited = False

    async def tried(self, attempt: Awaitable[object]) -> bool:
        """Make an attempt; where an outage is in its way, wait for the next and return False. Raises anything else.

        That it has gone through is not noted: it may be one step of what is to succeed.
        """
        try:
            await attempt
        except Exception as error:  # noqa: BLE001 `wait` raises what is no outage
            await self.wait(error)
            return False
        return True

    async def wait(self, error: BaseException) -> None:
        """Wait for the next attempt. Raises the error if it is no outage."""
        if not is_outage(error):
            raise error
        self._outage.began(self._part, error)
        self._waited = True
        await pause(next(self._delays), self._stop)

    def succeeded(self) -> None:
        """Begin anew: an attempt has gone through."""
        if self._waited:
            self._delays, self._waited = delays_seconds(random.random), False
        self._outage.ended(self._part)


async def pause(seconds: float, stop: asyncio.Event) -> None:
    """Wait, at most until the process stops."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
