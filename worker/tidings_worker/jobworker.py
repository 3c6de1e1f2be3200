"""arq's worker, which ends when it is asked to, outlives outages, and is ended by nothing that it finds in its queue.

Whoever runs a job has marked it, in arq's own word ``arq:in-progress:{job}``: with the worker's name, for some seconds,
again and again while it runs. What arq writes there says not whose job it is, and lasts for as long as a job may take
and ten seconds more. With it this happens:

    1. a worker marks a job and runs it
    2. Redis goes away; that the job has ended, or has failed, cannot be noted
    3. Redis is back; the worker finds the job in the queue, marked as running, and leaves it alone, as do all others

Here the worker knows its own mark again and runs the job anew, at once; and the jobs of one that was killed are
everybody's after `MARK_SECONDS`. Running a warm twice is harmless.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.cron import CronJob
from arq.worker import Function, Worker
from redis.exceptions import NoPermissionError, ResponseError
from tidings.telemetry import process_name

from .budget import Budget
from .jobs import from_json, to_json
from .outage import Outage, Patience, is_outage, pause
from .schedules import was_due_lately
from .telemetry import log

if TYPE_CHECKING:
    from arq.typing import StartupShutdown

#: How long a job is marked as running without its worker saying so again, and how often it does.
MARK_SECONDS = 15.0
_MARK_AGAIN_SECONDS = 5.0
#: The name of this part of the process in what `Outage` says.
PART = "warm jobs"

#: What jobs that were ended have to be noted in Redis as to be run again.
_NOTING_SECONDS = 2.0
_CANCEL_AGAIN_SECONDS = 0.05
#: More digits than a number of tries has.
_TRIES_DIGITS = 9


class JobWorker(Worker):
    """Runs the jobs of one queue; `budget` says how many may start, `outage` hears when Redis goes away and is back."""

    def __init__(
        self,
        pool: ArqRedis,
        queue: str,
        functions: Sequence[Function],
        cron_jobs: Sequence[CronJob],
        *,
        budget: Budget,
        outage: Outage,
        after_job_end: Callable[[dict[Any, Any]], Coroutine[Any, Any, None]],
        max_jobs: int,
        job_timeout: float,
        max_tries: int,
        poll_seconds: float,
    ) -> None:
        self._name = f"{process_name()}:{secrets.token_hex(4)}"
        super().__init__(
            functions,
            queue_name=queue,
            cron_jobs=cron_jobs,
            redis_pool=pool,
            handle_signals=False,
            after_job_end=cast("StartupShutdown", after_job_end),
            max_jobs=max_jobs,
            job_timeout=job_timeout,
            keep_result=0,
            poll_delay=poll_seconds,
            max_tries=max_tries,
            health_check_key=f"{queue}:health:{self._name}",
            job_serializer=to_json,
            job_deserializer=from_json,
            log_results=False,
        )
        self._budget = budget
        self._outage = outage
        self._marked_at = 0.0

    async def work(self, stop: asyncio.Event, drain_timeout: float) -> None:
        """Run jobs until `stop` is set; then give the running ones `drain_timeout` seconds to finish.

        Those that have not are ended, and are in the queue for the next worker. While Redis is away, what runs goes on,
        and the queue is asked for again and again. Raises whatever else Redis does to the worker, and TimeoutError for
        jobs that could not be ended.
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
        running it.
        """
        self.ctx["redis"] = self.pool
        patience = Patience(PART, self._outage, self._stop)
        while not self._stop.is_set():
            try:
                await self._poll_iteration()
            except Exception as error:  # noqa: BLE001 `wait` raises what is no outage
                await patience.wait(error)
            else:
                patience.succeeded()
                await pause(self.poll_delay_s, self._stop)

    def use_cron_jobs(self, jobs: Sequence[CronJob]) -> None:
        """Queue these, each at its times, in place of those until now.

        One that was there already is due when it was due. Those that are gone may have been queued for the moments
        to come, by this worker or another, so that they can still be run.
        """
        due = {job.name: job.next_run for job in self.cron_jobs}
        for job in jobs:
            job.next_run = due.get(job.name)
        self.functions.update({job.name: job for job in jobs})
        self.cron_jobs = list(jobs)

    async def run_cron(self, n: Any, delay: float, num_windows: int = 2) -> None:
        """Queue the schedules that are due; one that Redis did not take is due still."""
        due = {job.name: job.next_run for job in self.cron_jobs}
        try:
            await super().run_cron(n, delay, num_windows)
        except Exception:
            for job in self.cron_jobs:  # which `use_cron_jobs` may have given meanwhile
                job.next_run = due.get(job.name, job.next_run)
            raise

    async def run_job(self, job_id: str, score: int) -> None:
        """Run a job; one whose keys are not what arq writes is removed."""
        try:
            await super().run_job(job_id, score)
        except ResponseError as error:
            if is_outage(error) or isinstance(error, NoPermissionError) or not await self._is_foreign(job_id):
                raise
            await self._refuse([job_id.encode()])

    async def _poll_iteration(self) -> None:
        self._reap()
        room = self._budget.available(self.max_jobs - len(self.tasks))
        if room > 0 and not self._stop.is_set():
            now_ms = time.time_ns() // 1_000_000
            due = await self.pool.zrangebyscore(
                self.queue_name, min=float("-inf"), max=now_ms, start=0, num=self.queue_read_limit
            )
            await self._start(due, room, now_ms)
        await self._mark_again()
        await self.heart_beat()

    def _reap(self) -> None:
        """Forget the jobs that have ended. Raises what their bookkeeping raised, an outage only if nothing is worse."""
        errors = []
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if not task.cancelled() and (error := task.exception()) is not None:
                    errors.append(error)
        if errors:
            raise min(errors, key=is_outage)

    async def _start(self, due: list[bytes], room: int, now_ms: int) -> None:
        """Start as many of these jobs as there is room for; remove what has no name or time that a job could have."""
        if foreign := [job_id for job_id in due if not _is_text(job_id)]:
            await self._refuse(foreign)
        if due and (removed := await self.pool.zremrangebyscore(self.queue_name, "-inf", 0)):
            log.error("jobs_refused", jobs=removed)
        names = (job_id.decode() for job_id in due if job_id not in foreign)
        startable = (name for name in names if name not in self.tasks and not self._is_for_others(name, now_ms))
        while room and not self._stop.is_set() and (some := list(islice(startable, room))):
            room -= await self._claim(some, now_ms)

    async def _claim(self, job_ids: list[str], now_ms: int) -> int:
        """Mark jobs and start those that are marked as this worker's now; return how many.

        In this order, mark and then look: whoever ends a job takes it from the queue and unmarks it in one step, so
        that what is marked by us and still in the queue is nobody else's.
        """
        pipe = self.pool.pipeline(transaction=False)
        for job_id in job_ids:
            mark = in_progress_key_prefix + job_id
            pipe.set(mark, self._name, nx=True, px=round(MARK_SECONDS * 1000))
            pipe.get(mark)
            pipe.zscore(self.queue_name, job_id)
        replies = iter(await pipe.execute(raise_on_error=False))
        ours, gone, foreign = [], [], []
        for job_id, marked, holder, score in zip(job_ids, replies, replies, replies, strict=True):
            for reply in (marked, score):
                if isinstance(reply, Exception):
                    raise reply
            if isinstance(holder, Exception):
                foreign.append(job_id.encode())
            elif holder == self._name.encode():
                if score is None or score > now_ms:
                    gone.append(in_progress_key_prefix + job_id)
                else:
                    ours.append((job_id, int(score)))
        for job_id, due_ms in ours:
            self.tasks[job_id] = self.loop.create_task(self.run_job(job_id, due_ms))
        self._budget.take(len(ours))
        if gone:
            await self.pool.delete(*gone)
        if foreign:
            await self._refuse(foreign)
        return len(ours)

    async def _mark_again(self) -> None:
        """Keep running jobs marked: before another worker takes them for left behind."""
        now = self.loop.time()
        running = [job_id for job_id, task in self.tasks.items() if not task.done()]
        if now - self._marked_at < _MARK_AGAIN_SECONDS:
            return
        pipe = self.pool.pipeline(transaction=False)
        for job_id in running:
            pipe.pexpire(in_progress_key_prefix + job_id, round(MARK_SECONDS * 1000))
        await pipe.execute()
        self._marked_at = now

    def _is_for_others(self, job_id: str, now_ms: int) -> bool:
        """Say whether a job is of a schedule that only others have, who were told of new rules before this worker.

        arq would take it from the queue, only to note that it has no such function. What nobody takes goes that way.
        """
        known = job_id.rpartition(":")[0] in self.functions
        return not known and was_due_lately(job_id, self.queue_name, now_ms)

    async def _is_foreign(self, job_id: str) -> bool:
        """Say whether what is kept for a job is not what arq keeps."""
        pipe = self.pool.pipeline(transaction=False)
        pipe.type(job_key_prefix + job_id)
        pipe.type(retry_key_prefix + job_id)
        pipe.get(retry_key_prefix + job_id)
        job, retry, tries = await pipe.execute(raise_on_error=False)
        kinds = {b"string", b"none"}
        return job not in kinds or retry not in kinds or not _is_number(tries)

    async def _refuse(self, job_ids: list[bytes]) -> None:
        """Remove what is no job of ours, with everything that is kept for it."""
        prefixes = (in_progress_key_prefix, job_key_prefix, retry_key_prefix)
        pipe = self.pool.pipeline(transaction=True)
        pipe.zrem(self.queue_name, *job_ids)
        pipe.delete(*(prefix.encode() + job_id for prefix in prefixes for job_id in job_ids))
        await pipe.execute()
        log.error("jobs_refused", jobs=len(job_ids))

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
        failed = [error for error in ended if isinstance(error, Exception)]
        errors: list[Exception] = [error for error in failed if not is_outage(error)]
        if len(errors) < len(failed):  # they are in the queue, and others look at them when the marks expire
            log.warning("jobs_not_given_back", jobs=len(failed) - len(errors))
        if late:
            errors.append(TimeoutError(f"{len(late)} warm jobs could not be given back: Redis does not answer"))
        return errors


def _is_text(job_id: bytes) -> bool:
    try:
        job_id.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_number(tries: Any) -> bool:
    return tries is None or (isinstance(tries, bytes) and tries.isdigit() and len(tries) <= _TRIES_DIGITS)
