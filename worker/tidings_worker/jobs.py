"""arq's side of warming: what a job looks like, and arq's worker with an end of ours.

Jobs are JSON, not arq's default pickle: whoever can write to Redis must not be able to run code here. Nor to end the
worker, as arq's does when it finds in its queue what arq never writes.
"""

import asyncio
import json
from contextlib import suppress
from types import NoneType
from typing import Any

from arq.worker import Worker

from .telemetry import log

#: The fields of a job as arq names them: function, arguments, keyword arguments, try, time of its making.
_FIELDS: dict[str, type | tuple[type, ...]] = {"f": str, "a": list, "k": dict, "t": (int, NoneType), "et": int}
#: The end of the year 9999 in milliseconds; arq turns a job's time into a datetime.
_LATEST_MS = 253_402_300_799_000

#: What jobs that were ended have to be noted in Redis as to be run again.
_NOTING_SECONDS = 2.0
_CANCEL_AGAIN_SECONDS = 0.05


def to_json(job: dict[str, Any]) -> bytes:
    """Serialize a job, or a result with whatever exception it ended with."""
    return json.dumps(job, default=repr).encode()


def from_json(data: bytes) -> dict[str, Any]:
    """Read a job. Raises ValueError for anything but a JSON object with the fields of a job, each of its type."""
    try:
        job = json.loads(data)
    except RecursionError:
        raise ValueError("a job is not nested that deep") from None
    if not isinstance(job, dict):
        raise ValueError("a job is a JSON object")  # noqa: TRY004 it is data that is wrong, not code
    for name, kind in _FIELDS.items():
        if name not in job or not isinstance(job[name], kind):
            raise ValueError(f"a job's {name!r} is missing or of another type")
    if not 0 <= job["et"] <= _LATEST_MS:
        raise ValueError("a job's time is out of range")
    return job


class JobWorker(Worker):
    """arq's worker, which ends when it is asked to, and only between two looks at the queue."""

    async def work(self, stop: asyncio.Event, drain_timeout: float) -> None:
        """Run jobs until `stop` is set; then give the running ones `drain_timeout` seconds to finish.

        Those that have not are ended, and are in the queue for the next worker. Raises what Redis does to the worker.
        """
        self._stop = stop
        try:
            await self.main()
        except Exception as error:
            for other in await self._drain(0):
                error.add_note(f"and a job that was running: {other!r}")
            raise
        if errors := await self._drain(drain_timeout):
            raise errors[0]

    async def main(self) -> None:
        """Look at the queue until the stop.

        arq's own never returns. Cancelled while it picks a job, it can leave the job marked as running without anybody
        running it, and no worker looks at it again before the mark expires.
        """
        self.ctx["redis"] = self.pool
        while not self._stop.is_set():
            await self._poll_iteration()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_delay_s):
                    await self._stop.wait()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start jobs, one by one until the stop; remove what has no name or time that a job could have."""
        foreign = [job_id for job_id in job_ids if not _is_text(job_id)]
        if foreign:
            await self.pool.zrem(self.queue_name, *foreign)
        if job_ids:
            removed = len(foreign) + await self.pool.zremrangebyscore(self.queue_name, "-inf", 0)
            if removed:
                log.error("jobs_refused", jobs=removed)
        for job_id in job_ids:
            if job_id not in foreign and not self._stop.is_set():
                await super().start_jobs([job_id])

    async def _drain(self, timeout: float) -> list[Exception]:  # noqa: ASYNC109 what is late is ended
        """End every job; return what went wrong with noting it in Redis."""
        running = set(self.tasks.values())
        if not running:
            return []
        _, late = await asyncio.wait(running, timeout=timeout)
        clock = asyncio.get_running_loop().time
        deadline = clock() + _NOTING_SECONDS
        while late and clock() < deadline:
            # The load alone, never what arq does around it. And again, because a job may be about to start its load,
            # and because before Python 3.12 asyncio.wait_for, under every command of redis-py, swallows a cancellation
            # that comes as the command ends.
            for load in list(self.job_tasks.values()):
                load.cancel()
            _, late = await asyncio.wait(late, timeout=_CANCEL_AGAIN_SECONDS)
        for job in late:
            job.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
        errors: list[Exception] = [error for error in ended if isinstance(error, Exception)]
        if late:
            errors.append(TimeoutError(f"{len(late)} warm jobs could not be given back: Redis does not answer"))
        return errors


def _is_text(job_id: bytes) -> bool:
    try:
        job_id.decode()
    except UnicodeDecodeError:
        return False
    return True
