"""Warming: the job that loads an entry ahead of its readers, and how plans become jobs.

A job is named after its entry, so that while it is queued, more events for the same entry add nothing. That includes
the last moments of a job that has done its load already; so, once it has left the queue, a job looks whether its entry
has been invalidated meanwhile, and hands it off again.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.cron import CronJob, cron
from arq.jobs import serialize_job
from arq.worker import Retry, func
from redis.asyncio import Redis
from tidings.errors import ConfigurationError, PermanentError, UnavailableError
from tidings.filling import Stored
from tidings.functions import CachedSyncFunction
from tidings.telemetry import process_name

from .calls import NotLoadedError, decode_call, resolve
from .jobs import JobWorker, from_json, to_json
from .plans import Warm
from .rules import Schedule
from .settings import WorkerSettings
from .telemetry import log

JOB_NAME = "tidings.warm"

_JOB_EXPIRES_MS = 86_400_000
_LONGEST_DELAY = 60.0
#: A warm whose entry is invalidated while it loads, loads again; this often, then it is up to the next reader or event.
_LOADS_AT_MOST = 3
#: arq ends a job after this many seconds more than a warm ends itself: arq forgets the job, a warm is tried again.
_ARQ_TIMEOUT_EXTRA = 5.0
#: Where a job notes in its context which entry it has left fresh.
_LEFT_FRESH = "left_fresh"


class WarmQueue:
    """Hands warms to arq: one exchange with the server for any number of them."""

    def __init__(self, client: Redis, queue: str) -> None:
        self._client = client
        self._queue = queue

    async def hand_off(self, warms: Sequence[Warm], *, refresh: bool = False) -> None:
        """Queue each warm unless its entry's is queued already; arq's own keys and payload, written in bulk.

        With `refresh` they load whatever is cached.
        """
        if not warms:
            return
        now_ms = time.time_ns() // 1_000_000
        options, ending = ({"refresh": True}, ":refresh") if refresh else ({}, "")
        pipe = self._client.pipeline(transaction=True)
        for warm in warms:
            job_id = f"{self._queue}:{warm.name}{ending}"
            arguments = (warm.function, warm.arguments)
            job = serialize_job(JOB_NAME, arguments, options, None, now_ms, serializer=to_json)
            pipe.set(job_key_prefix + job_id, job, px=_JOB_EXPIRES_MS, nx=True)
            pipe.zadd(self._queue, {job_id: now_ms}, nx=True)
        await pipe.execute()


class _Target:
    """The entry that a job is to fill. Raises NotLoadedError or ConfigurationError, DecodeError, ArgumentError."""

    def __init__(self, identity: str, arguments: str) -> None:
        function = resolve(identity)
        args, kwargs = decode_call(function, arguments)
        self.warm = Warm(function, *args, **kwargs)
        load = partial(function.uncached, *args, **kwargs)
        if isinstance(function, CachedSyncFunction):
            load = partial(asyncio.to_thread, load)
        self._request = function.request(load, *args, **kwargs)
        self._reader = function.cache.reader()
        self._lives = self._reader.reading.filling.ttl_ms(self._request.target, ...) / 1000
        self._fresh_at = 0.0

    async def is_fresh(self) -> bool:
        """Say whether the entry is fresh now. Raises UnavailableError."""
        return await self._reader.is_fresh(self._request)

    async def fill(self, *, renew: bool) -> Stored:
        """Load until the entry is fresh; return FRESH, or why it is not. With `renew`, load at least once.

        Raises what the load raises, and UnavailableError when Redis does not take the value.
        """
        stored = Stored.REFUSED
        for _ in range(_LOADS_AT_MOST):
            stored = await self._reader.ensure(self._request, renew=renew)
            if stored is Stored.UNAVAILABLE:
                raise UnavailableError("Redis did not take the value")
            if stored is Stored.TOO_LARGE:
                return stored
            if stored is Stored.FRESH or (stored is Stored.STORED and await self.is_fresh()):
                self._fresh_at = time.monotonic()
                return Stored.FRESH
            renew = False
        return Stored.REFUSED

    async def was_overtaken(self) -> bool:
        """Say whether the entry has been invalidated since `fill` left it fresh.

        An entry that may have expired by itself has not: one that lives for milliseconds would be warmed for ever.
        """
        if time.monotonic() - self._fresh_at > self._lives / 2:
            return False
        try:
            return not await self.is_fresh()
        except UnavailableError:
            return True  # nobody knows: a warm too many finds a fresh entry, one too few leaves a cold one


async def warm(ctx: dict[str, Any], identity: str, arguments: str, *, refresh: bool = False) -> None:
    """Load a call's entry unless it is there. Runs at least once; a failing load is tried again, later each time."""
    started = time.perf_counter()
    limit = asyncio.timeout(ctx["warm_timeout"])
    try:
        target = _Target(identity, arguments)
        async with limit:
            # A second try loads by itself: the load that it would join may be the one that hung.
            again = ctx["job_try"] > 1
            stored = await target.fill(renew=refresh or (again and not await target.is_fresh()))
    except Exception as error:  # whatever a loader raises: it is the service's code, and the next try may succeed
        reason = f"it took more than {ctx['warm_timeout']} s" if limit.expired() else repr(error)
        if (retry := _retry(ctx, identity, error, reason)) is not None:
            raise retry from error
        return
    if stored is Stored.FRESH:
        ctx[_LEFT_FRESH] = target
        log.info("warmed", call=identity, took_ms=round((time.perf_counter() - started) * 1000, 2))
    else:
        log.warning("warm_in_vain", call=identity, reason=stored.value)


def _retry(ctx: dict[str, Any], identity: str, error: Exception, reason: str) -> Retry | None:
    """Return what makes arq try again, unless that is in vain or was done often enough; say which."""
    tries = ctx["job_try"]
    in_vain = isinstance(error, PermanentError | ConfigurationError) and not isinstance(error, NotLoadedError)
    if in_vain or tries >= ctx["warm_tries"]:
        log.error("warm_failed", call=identity, tries=tries, error=reason)
        return None
    log.warning("warm_retried", call=identity, tries=tries, error=reason)
    return Retry(defer=min(2.0 ** (tries - 1), _LONGEST_DELAY))


async def _after_job(ctx: dict[Any, Any]) -> None:
    """Hand off again what was handed off in vain while the job was still in the queue; now it no longer is."""
    target: _Target | None = ctx.get(_LEFT_FRESH)
    if target is not None and await target.was_overtaken():
        await ctx["queue"].hand_off([target.warm])


class WarmWorker:
    """arq's worker, for warm jobs and schedules, without its own signal handling.

    Raises ConfigurationError for a schedule that arq refuses.
    """

    def __init__(self, pool: ArqRedis, queue: str, schedules: Sequence[Schedule], settings: WorkerSettings) -> None:
        self._drain_timeout = settings.drain_timeout
        self._worker = JobWorker(
            [func(warm, name=JOB_NAME)],
            queue_name=queue,
            cron_jobs=[_cron(queue, index, schedule, settings) for index, schedule in enumerate(schedules)],
            redis_pool=pool,
            handle_signals=False,
            after_job_end=_after_job,
            max_jobs=settings.max_warms,
            job_timeout=settings.warm_timeout + _ARQ_TIMEOUT_EXTRA,
            keep_result=0,
            poll_delay=settings.poll,
            max_tries=settings.warm_tries + 1,
            health_check_key=f"{queue}:health:{process_name()}:{secrets.token_hex(4)}",
            ctx={
                "queue": WarmQueue(pool, queue),
                "warm_timeout": settings.warm_timeout,
                "warm_tries": settings.warm_tries,
            },
            job_serializer=to_json,
            job_deserializer=from_json,
            log_results=False,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set, then let the running ones finish within the drain timeout.

        Raises what Redis does to the worker.
        """
        await self._worker.work(stop, self._drain_timeout)


def _cron(queue: str, index: int, schedule: Schedule, settings: WorkerSettings) -> CronJob:
    """Return what hands a schedule's warm off at its times; named after the queue, since arq's keys are not."""

    async def hand_off(ctx: dict[str, Any]) -> None:
        await ctx["queue"].hand_off([schedule.warm], refresh=True)

    try:
        return cron(
            hand_off,
            name=f"{queue}:schedule:{index}:{schedule.warm.name}",
            month=schedule.month,
            day=schedule.day,
            weekday=schedule.weekday,
            hour=schedule.hour,
            minute=schedule.minute,
            second=schedule.second,
            max_tries=settings.warm_tries + 1,
            keep_result=0,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigurationError(f"rules.schedule({schedule.warm!r}): {error}") from None
