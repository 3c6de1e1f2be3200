"""The warms that keep failing: a hash of at most a thousand, so that somebody can see what readers find cold.

A warm is in it from its second failure in a row on, or from when it is given up; and until it succeeds.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from redis.asyncio import Redis

#: So many are kept; when there are more, the tenth that failed longest ago goes.
MOST = 1000
_LEFT = MOST * 9 // 10
_MESSAGE_LENGTH = 300
_CALL_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class Failing:
    """A warm that keeps failing. Times are seconds since 1970 by the workers' clocks."""

    #: the function, ``module:qualname``
    call: str
    #: as the job has them; those that are very long are cut
    arguments: str
    #: the error's type, and what it says, cut
    error: str
    message: str
    #: failures that were noted since it last succeeded
    failures: int
    first: FiniteFloat
    last: FiniteFloat


_READ = TypeAdapter(Failing)


class FailingWarms:
    """The list under one key of the jobs' server. Every method raises what Redis raises."""

    def __init__(self, client: Redis, key: str, clock: Callable[[], float] = time.time) -> None:
        self._client: Any = client
        self._key = key
        self._clock = clock

    async def failed(self, name: str, call: str, arguments: str, error: BaseException) -> None:
        """Note a failure; `name` is the warm's.

        Only one worker has the job, so that nobody else writes this field meanwhile.
        """
        before = _decoded(await self._client.hget(self._key, name))
        now = self._clock()
        first, failures = (now, 0) if before is None else (before.first, before.failures)
        note = Failing(
            call[:_CALL_LENGTH],
            arguments[:_CALL_LENGTH],
            type(error).__qualname__[:_MESSAGE_LENGTH],
            str(error)[:_MESSAGE_LENGTH],
            failures + 1,
            first,
            now,
        )
        pipe = self._client.pipeline(transaction=False)
        pipe.hset(self._key, name, json.dumps(asdict(note)))
        pipe.hlen(self._key)
        _, length = await pipe.execute()
        if length > MOST:
            await self._shorten()

    async def succeeded(self, name: str) -> None:
        """Note that a warm has succeeded: it is not in the list any more."""
        await self._client.hdel(self._key, name)

    async def read(self) -> dict[str, Failing]:
        """Return what fails by the names of the warms, what failed last first. What is no note of ours is left out."""
        noted = await self._noted()
        known = {name.decode(errors="replace"): note for name, note in noted.items() if note is not None}
        return dict(sorted(known.items(), key=lambda item: -item[1].last))

    async def _noted(self) -> dict[bytes, Failing | None]:
        return {name: _decoded(data) for name, data in (await self._client.hgetall(self._key)).items()}

    async def _shorten(self) -> None:
        """Remove what failed longest ago, and before that what is no note of ours."""
        noted = await self._noted()
        oldest = sorted(noted, key=lambda name: 0.0 if (note := noted[name]) is None else note.last)
        if goes := oldest[: max(0, len(oldest) - _LEFT)]:
            await self._client.hdel(self._key, *goes)


def _decoded(data: bytes | None) -> Failing | None:
    if data is None:
        return None
    try:
        return _READ.validate_json(data, strict=True)
    except ValidationError:
        return None
