"""What is in the queue of warms, what runs, and what keeps failing: read, never changed.

arq leaves a job in its queue until it has ended, and marks it while it runs. So what runs is looked for at the front of
the queue and not among all keys of the server; of a longer queue than is looked at, it may be more.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from arq.constants import in_progress_key_prefix, job_key_prefix
from redis.asyncio import Redis

from tidings_worker.dead_letters.letters import text_of
from tidings_worker.failing import FailingWarms
from tidings_worker.jobs import from_json
from tidings_worker.queueing import HOT_JOB_NAME, JOB_NAME

#: Jobs at the front of the queue that are looked at.
LOOKED_AT = 1000

#: In milliseconds, the latest time that a job can be due: a score may be anything, infinite too.
_LATEST = 1e15


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the queue."""

    id: str
    #: the function, what is read most of a namespace, or a schedule; '?' for what is no job of ours
    call: str
    #: as the job has them
    arguments: str
    #: seconds since it was due, by this machine's clock; below 0: until it is
    overdue_seconds: float
    #: who runs it; None: nobody
    worker: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A warm that keeps failing."""

    name: str
    call: str
    arguments: str
    error: str
    message: str
    failures: int
    first_seconds_ago: float
    last_seconds_ago: float


@dataclass(frozen=True, slots=True)
class Warms:
    """One look at the warms."""

    #: jobs in the queue, running ones among them, and those of them that are due later
    queued: int
    later: int
    #: seconds since the oldest that nobody runs was due; None: none is, among the first
    oldest_seconds: float | None
    #: how many run, and some of them
    running_count: int
    running: tuple[Job, ...]
    #: whether all jobs that are due were looked at
    complete: bool
    #: the next ones that nobody runs
    next: tuple[Job, ...]
    failing: tuple[Failure, ...]
    #: how many fail in all
    failing_count: int

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


async def view_warms(
    client: Redis, queue: str, failing: str, *, limit: int, clock: Callable[[], float] = time.time
) -> Warms:
    """Look at the queue, and at the hash of what fails; `limit` jobs and failures at most. Raises what Redis raises."""
    now = clock()
    pipe = client.pipeline(transaction=False)
    pipe.zcard(queue)
    pipe.zcount(queue, f"({now * 1000:.0f}", "+inf")
    pipe.zrange(queue, 0, LOOKED_AT - 1, withscores=True)
    queued, later, front = await pipe.execute()
    holders = await client.mget([in_progress_key_prefix.encode() + job_id for job_id, _ in front]) if front else []
    jobs = [
        (job_id, min(max(due_ms, 0.0), _LATEST), holder)
        for (job_id, due_ms), holder in zip(front, holders, strict=True)
    ]
    running = [job for job in jobs if job[2] is not None]
    idle = [job for job in jobs if job[2] is None]
    oldest = now - idle[0][1] / 1000 if idle else None
    failed = await FailingWarms(client, failing).read()
    return Warms(
        queued,
        later,
        oldest if oldest is not None and oldest >= 0 else None,
        len(running),
        await _jobs(client, queue, running[:limit], now),
        queued - later <= LOOKED_AT,
        await _jobs(client, queue, idle[:limit], now),
        tuple(
            Failure(
                name, one.call, one.arguments, one.error, one.message, one.failures, now - one.first, now - one.last
            )
            for name, one in list(failed.items())[:limit]
        ),
        len(failed),
    )


async def _jobs(
    client: Redis, queue: str, found: Sequence[tuple[bytes, float, bytes | None]], now: float
) -> tuple[Job, ...]:
    if not found:
        return ()
    texts = await client.mget([job_key_prefix.encode() + job_id for job_id, _, _ in found])
    return tuple(
        Job(
            text_of(job_id).removeprefix(f"{queue}:"),
            *_call(text),
            now - due_ms / 1000,
            None if holder is None else text_of(holder),
        )
        for (job_id, due_ms, holder), text in zip(found, texts, strict=True)
    )


def _call(text: bytes | None) -> tuple[str, str]:
    """Return what a job calls, and its arguments; anybody may have written it."""
    try:
        job = from_json(text or b"")
    except ValueError:
        return "?", ""
    match job["f"], job["a"]:
        case str(name), [str(function), str(arguments)] if name == JOB_NAME:
            return function, arguments
        case str(name), [str(namespace), int(top)] if name == HOT_JOB_NAME:
            return f"hot:{namespace}", str(top)
        case name, _:
            return str(name), ""
