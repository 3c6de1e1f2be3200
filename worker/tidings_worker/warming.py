"""Warming: the arq job that loads an entry ahead of its readers, and how plans become jobs.

A job is named after its entry, so that while it is queued, more events for the same entry add nothing. Jobs are JSON,
not arq's default pickle: whoever can write to Redis must not be able to run code here.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.cron import CronJob, cron
from arq.jobs import serialize_job
from arq.worker import Function, Retry, Worker, func
from redis.asyncio import Redis
from tidings import CachedFunction
from tidings.errors import ConfigurationError
from tidings.reader import process_name

from .calls import decode_call, resolve
from .rules import Schedule, Warm
from .settings import WorkerSettings
from .telemetry import log

JOB_NAME = "tidings.warm"

_JOB_EXPIRES_MS = 3_600_000
_LONGEST_DELAY = 60.0
#: A warm whose entry is invalidated while it loads, loads again; this often, then it is up to the next reader or event.
_LOADS_AT_MOST = 3


def to_json(job: dict[str, Any]) -> bytes:
    """Serialize a job, or a result with whatever exception it ended with."""
    return json.dumps(job, default=repr).encode()


def from_json(data: bytes) -> dict[str, Any]:
    """Read a job. Raises ValueError for anything but a JSON object."""
    job = json.loads(data)
    if not isinstance(job, dict):
        raise ValueError("a job is a JSON object")  # noqa: TRY004 it is data that is wrong, not code
    return job


class WarmQueue:
    """Hands warms to arq: one exchange with the server for any number of them."""

    def __init__(self, client: Redis, queue: str) -> None:
        self._client = client
        self._queue = queue

    async def hand_off(self, warms: Sequence[Warm]) -> None:
        """Queue each warm unless its entry's is queued already; arq's own keys and payload, written in bulk."""
        if not warms:
            return
        now_ms = time.time_ns() // 1_000_000
        pipe = self._client.pipeline(transaction=True)
        for warm in warms:
            job_id = f"{self._queue}:{warm.name}"
            arguments = (warm.function, warm.arguments)
            job = serialize_job(JOB_NAME, arguments, {}, None, now_ms, serializer=to_json)
            pipe.set(job_key_prefix + job_id, job, px=_JOB_EXPIRES_MS, nx=True)
            pipe.zadd(self._queue, {job_id: now_ms}, nx=True)
        await pipe.execute()


async def warm(ctx: dict[str, Any], identity: str, arguments: str, *, refresh: bool = False) -> None:
    """Load a call's entry unless it is there. Runs at least once; a failing load is tried again, later each time."""
    function = resolve(identity)
    args, kwargs = decode_call(function, arguments)
    started = time.perf_counter()
    try:
        await _until_fresh(function, args, kwargs, refresh=refresh)
    except Exception as error:  # whatever a loader raises: it is the service's code, and the next try may succeed
        tries = ctx["job_try"]
        if tries >= ctx["warm_tries"]:
            log.error("warm_failed", call=identity, tries=tries, error=repr(error))
            return
        log.warning("warm_retried", call=identity, tries=tries, error=repr(error))
        raise Retry(defer=min(2.0 ** (tries - 1), _LONGEST_DELAY)) from error
    log.info("warmed", call=identity, took_ms=round((time.perf_counter() - started) * 1000, 2))


async def _until_fresh(
    function: CachedFunction[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, refresh: bool
) -> None:
    if refresh:
        await function.refresh(*args, **kwargs)
    reader, call = function.cache.reader(), function.call_of(*args, **kwargs)
    for _ in range(_LOADS_AT_MOST):
        if await reader.is_fresh(call):
            return
        await function(*args, **kwargs)


class WarmWorker:
    """arq's worker, for warm jobs and schedules, without its own signal handling.

    Raises ConfigurationError for a schedule that arq refuses.
    """

    def __init__(self, pool: ArqRedis, queue: str, schedules: Sequence[Schedule], settings: WorkerSettings) -> None:
        self._drain_timeout = settings.drain_timeout
        self._worker = Worker(
            [self._function(settings)],
            queue_name=queue,
            cron_jobs=[_cron(index, schedule, settings) for index, schedule in enumerate(schedules)],
            redis_pool=pool,
            handle_signals=False,
            max_jobs=settings.max_warms,
            job_timeout=settings.warm_timeout,
            keep_result=0,
            poll_delay=settings.poll,
            max_tries=settings.warm_tries + 1,
            health_check_key=f"{queue}:health:{process_name()}:{secrets.token_hex(4)}",
            ctx={"warm_tries": settings.warm_tries},
            job_serializer=to_json,
            job_deserializer=from_json,
            log_results=False,
        )

    @staticmethod
    def _function(settings: WorkerSettings) -> Function:
        return func(warm, name=JOB_NAME, keep_result=0, timeout=settings.warm_timeout)

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set, then let the running ones finish within the drain timeout."""
        running = asyncio.create_task(self._worker.main())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if running.done():
            running.result()  # raises what ended it
            raise RuntimeError("the worker of warm jobs returned while it should run")
        self._worker.allow_pick_jobs = False
        if jobs := set(self._worker.tasks.values()):
            await asyncio.wait(jobs, timeout=self._drain_timeout)
        for job in jobs:
            job.cancel()  # arq notes it as to be run again
        # Before Python 3.12, asyncio.wait_for, under every command that redis-py sends, swallows a cancellation that
        # comes as the command ends: one cancel() may be lost, and arq's loop would go on.
        while not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=0.05)
        await asyncio.gather(running, *jobs, return_exceptions=True)


def _cron(index: int, schedule: Schedule, settings: WorkerSettings) -> CronJob:
    async def scheduled(ctx: dict[str, Any]) -> None:
        await warm(ctx, schedule.warm.function, schedule.warm.arguments, refresh=True)

    try:
        return cron(
            scheduled,
            name=f"tidings.schedule:{index}:{schedule.warm.name}",
            month=schedule.month,
            day=schedule.day,
            weekday=schedule.weekday,
            hour=schedule.hour,
            minute=schedule.minute,
            second=schedule.second,
            timeout=settings.warm_timeout,
            keep_result=0,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"rules.schedule({schedule.warm!r}): {error}") from None
