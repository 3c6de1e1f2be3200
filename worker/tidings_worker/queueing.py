"""The queue of warms: how plans become jobs, in bulk.

A job is named after its entry, so that while it is queued, more events for the same entry add nothing.

What is read most is found out by a job as well, in which the warms of the moment are handed off: asking for it must not
hold up the events behind. These jobs are named after the second in which they were asked for, and due at its end. So a
namespace is looked at once a second, however many events ask for it; and one that asks while the job runs belongs to
the next second, and is not lost in the last moments of a job that has done its looking already.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from pydantic_core import to_json
from redis.asyncio import Redis
from tidings.tracing import Carrier

from .plans import Hot, Warm

JOB_NAME = "tidings.warm"
HOT_JOB_NAME = "tidings.warm_hot"

#: Jobs that go to the server in one script: it serves nobody else meanwhile.
_CHUNK = 1000

#: Queues jobs. A script, because redis-py takes as long for one command as the server for several jobs. Keys: the
#: queue, and that of each job. Arguments: the length of what these begin with before the job's id, when they expire in
#: ms, and for each job its text and when it is due.
_ENQUEUE = """
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2], 'NX')
  redis.call('ZADD', KEYS[1], 'NX', ARGV[2 * i], string.sub(KEYS[i], ARGV[1] + 1))
end
"""
_JOB_EXPIRES_MS = 86_400_000
_UNTRACED: Mapping[str, Carrier] = MappingProxyType({})

#: Name, function, arguments, keyword arguments, when it is due.
_Job = tuple[str, str, tuple[str | int, ...], dict[str, str | bool], int]


class WarmQueue:
    """Hands warms to arq: one exchange with the server for a thousand of them."""

    def __init__(self, client: Redis, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._enqueue = client.register_script(_ENQUEUE)

    async def hand_off(
        self,
        warms: Sequence[Warm],
        hot: Sequence[Hot] = (),
        *,
        refresh: bool = False,
        carriers: Mapping[str, Carrier] = _UNTRACED,
    ) -> None:
        """Queue each warm unless its entry's is queued already; arq's own keys and payload, written in bulk.

        With `refresh` they load whatever is cached. `carriers` are trace contexts by the names of warms. Raises what
        Redis raises; then some may be queued, and repeating it is safe.
        """
        now_ms = time.time_ns() // 1_000_000
        jobs = [
            *(_warm_job(warm, now_ms, carriers.get(warm.name, {}), refresh=refresh) for warm in warms),
            *(_hot_job(one, now_ms, refresh=refresh) for one in hot),
        ]
        for start in range(0, len(jobs), _CHUNK):
            await self._write(jobs[start : start + _CHUNK], now_ms)

    async def _write(self, jobs: Iterable[_Job], now_ms: int) -> None:
        keys = [self._queue]
        arguments: list[bytes | int] = [len(job_key_prefix), _JOB_EXPIRES_MS]
        for name, function, args, options, due_ms in jobs:
            keys.append(f"{job_key_prefix}{self._queue}:{name}")
            arguments += serialize_job(function, args, options, None, now_ms, serializer=to_json), due_ms
        await self._enqueue(keys, arguments)


def _warm_job(warm: Warm, now_ms: int, carrier: Carrier, *, refresh: bool) -> _Job:
    options: dict[str, str | bool] = {**carrier, "refresh": True} if refresh else {**carrier}
    return _named(warm.name, refresh=refresh), JOB_NAME, (warm.function, warm.arguments), options, now_ms


def _hot_job(hot: Hot, now_ms: int, *, refresh: bool) -> _Job:
    second = now_ms // 1000 + 1
    options: dict[str, str | bool] = {"refresh": True} if refresh else {}
    return (
        _named(f"{hot.name}:{second}", refresh=refresh),
        HOT_JOB_NAME,
        (hot.namespace, hot.top),
        options,
        second * 1000,
    )


def _named(name: str, *, refresh: bool) -> str:
    return f"{name}:refresh" if refresh else name


def warm_name(queue: str, job_id: str) -> str:
    """Return the name of the warm that a job is for: an entry's, or a `Hot`'s, without what else a job's name tells."""
    name = job_id.removeprefix(f"{queue}:").removesuffix(":refresh")
    return name.rpartition(":")[0] if name.startswith("!hot:") else name
