"""Warming: the job that loads an entry ahead of its readers, and the worker that runs such jobs.

While it is queued, more events for the same entry add nothing (see `queueing`). That includes the last moments of a job
that has done its load already; so, once it has left the queue, a job looks whether its entry has been invalidated
meanwhile, and hands it off again.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from arq.connections import ArqRedis
from arq.constants import retry_key_prefix
from arq.cron import CronJob, cron
from arq.worker import Retry, func
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tidings import Cache, get_cache
from tidings.breaker import delays_seconds
from tidings.errors import ConfigurationError, PermanentError, UnavailableError
from tidings.filling import Stored
from tidings.tracing import tracing

from .budget import Budget
from .calls import NotLoadedError
from .entry import Entry
from .failing import FailingWarms
from .hot import warms_of
from .jobs import from_json, to_json
from .jobworker import JobWorker
from .journal import Journal
from .metrics import Metrics, WarmOutcome
from .outage import Outage, is_outage
from .plans import Hot
from .queueing import HOT_JOB_NAME, JOB_NAME, WarmQueue, warm_name
from .schedules import Schedule, job_name
from .settings import WorkerSettings
from .telemetry import log
from .verifying.scheduled import Auditor, audits

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine

__all__ = ["JOB_NAME", "WarmQueue", "WarmWorker", "from_json", "to_json"]

_LONGEST_DELAY = 60.0
#: Before a warm is tried again that Redis alone was in the way of.
_AWAY_DELAY = 2.0
#: arq ends a job after this many seconds more than a warm ends itself: arq forgets the job, a warm is tried again.
_ARQ_TIMEOUT_EXTRA = 5.0
#: Where a job notes in its context which entry it has left fresh.
_LEFT_FRESH = "left_fresh"


class Warming:
    """The jobs themselves, as arq calls them.

    A failing one is tried again, `warm_tries` times, later each time; that Redis is away does not count.
    """

    def __init__(
        self,
        client: Redis,
        queue: str,
        settings: WorkerSettings,
        cache: Callable[[], Cache],
        metrics: Metrics,
        *,
        journal: Journal | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self.queue = WarmQueue(client, queue)
        self._name = queue
        self._client: Any = client
        self._failing = FailingWarms(client, f"{queue}:failing")
        self._timeout = settings.warm_timeout
        self._tries = settings.warm_tries
        self._cache = cache
        self._chance = chance

    async def warm(
        self,
        ctx: dict[str, Any],
        identity: str,
        arguments: str,
        *,
        refresh: bool = False,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> None:
        """Load a call's entry unless it is there; with `refresh` whatever is there. Runs at least once."""
        started = time.perf_counter()
        limit = asyncio.timeout(self._timeout)
        carrier = {"traceparent": traceparent, "tracestate": tracestate}
        try:
            entry = Entry(identity, arguments)
            with tracing().warming(identity, self._name, carrier):
                async with limit:
                    # A second try loads by itself: the load that it would join may be the one that hung.
                    again = ctx["job_try"] > 1
                    stored = await entry.fill(renew=refresh or (again and not await entry.is_fresh()))
        except Exception as error:  # whatever a loader raises: it is the service's code, and the next try may succeed
            reason = TimeoutError(f"it took more than {self._timeout} s") if limit.expired() else error
            again_later = await self._again(ctx, str(identity), str(arguments), reason)
            self._ended(ctx, identity, "retried" if again_later else "failed", started, refresh=refresh)
            if again_later:
                raise Retry(defer=self._delay(ctx, reason)) from error
            return
        await self._succeeded(ctx)
        self._ended(ctx, identity, "warmed" if stored is Stored.FRESH else "in_vain", started, refresh=refresh)
        if stored is Stored.FRESH:
            ctx[_LEFT_FRESH] = entry
            log.info("warmed", call=identity, took_ms=round((time.perf_counter() - started) * 1000, 2))
        else:
            log.warning("warm_in_vain", call=identity, reason=stored.value)

    async def warm_hot(self, ctx: dict[str, Any], namespace: str, top: int, *, refresh: bool = False) -> None:
        """Hand off warms of the calls of a namespace that were read most lately."""
        try:
            warms = await warms_of(Hot(namespace, top), self._cache())
            await self.queue.hand_off(warms, refresh=refresh)
        except (PermanentError, ConfigurationError, UnavailableError, RedisError, OSError) as error:
            if await self._again(ctx, f"Warm.hot({namespace!r:.200})", str(top), error):
                raise Retry(defer=self._delay(ctx, error)) from error
            return
        await self._succeeded(ctx)
        log.info("hot_handed_off", namespace=namespace, warms=len(warms))

    async def after_job(self, ctx: dict[Any, Any]) -> None:
        """Hand off again what was handed off in vain while the job was still in the queue; now it no longer is."""
        entry: Entry | None = ctx.get(_LEFT_FRESH)
        if entry is None or not await entry.was_overtaken():
            return
        for delay in delays_seconds(self._chance):
            if await self._noting(self.queue.hand_off([entry.warm])):
                return
            await asyncio.sleep(delay)

    async def _again(self, ctx: dict[str, Any], call: str, arguments: str, error: BaseException) -> bool:
        """Say whether to try again: not if that is in vain or was done often enough. Tell, and note what keeps failing.

        That Redis is away says nothing about the warm: such a try is not counted, and told of elsewhere.
        """
        tries = ctx["job_try"]
        if _is_away(error):
            await self._noting(self._client.decr(retry_key_prefix + ctx["job_id"]))
            return True
        in_vain = isinstance(error, PermanentError | ConfigurationError) and not isinstance(error, NotLoadedError)
        given_up = in_vain or tries >= self._tries
        if given_up:
            log.error("warm_failed", call=call, tries=tries, error=repr(error))
        else:
            log.warning("warm_retried", call=call, tries=tries, error=repr(error))
        if given_up or tries > 1:
            await self._noting(self._failing.failed(warm_name(self._name, ctx["job_id"]), call, arguments, error))
        return not given_up

    def _ended(self, ctx: dict[str, Any], call: Any, outcome: WarmOutcome, started: float, *, refresh: bool) -> None:
        """Count a try, and tell of it whoever looks on."""
        took_s = time.perf_counter() - started
        self._metrics.warm(outcome, took_s)
        if self._journal is not None and self._journal.wanted:
            name = warm_name(self._name, ctx["job_id"])
            self._journal.warmed(name, str(call), outcome, took_s=took_s, why="schedule" if refresh else "event")

    async def _succeeded(self, ctx: dict[str, Any]) -> None:
        await self._noting(self._failing.succeeded(warm_name(self._name, ctx["job_id"])))

    async def _noting(self, note: Awaitable[Any]) -> bool:
        """Write what a job can go on without; say whether it was written, and not so because Redis is away."""
        try:
            await note
        except (RedisError, OSError) as error:
            if not is_outage(error):
                raise
            return False
        return True

    def _delay(self, ctx: dict[str, Any], error: BaseException) -> float:
        return _AWAY_DELAY if _is_away(error) else delay_seconds(ctx["job_try"], self._chance())


def delay_seconds(tries: int, chance: float) -> float:
    """Return how long to wait after a failure: doubled each time, up to a minute, and half of it by chance.

    Warms that failed together, because a database went away, should not all come back to it together.
    """
    return min(2.0 ** min(tries - 1, 10), _LONGEST_DELAY) * (1 + chance) / 2


def _is_away(error: BaseException) -> bool:
    """Say whether Redis was in the way, and not the load's own database."""
    return isinstance(error, UnavailableError) and is_outage(error)


class WarmWorker:
    """arq's worker, for warm jobs and schedules, without its own signal handling.

    `pool` is `jobs.jobs_pool`'s, `cache` gives the one in which reads are noted for `Warm.hot`. While `idle` says no,
    because there are events to apply, no warm is started. `outage` hears when the jobs' server goes away and is back.
    Raises ConfigurationError for a schedule that arq refuses.
    """

    def __init__(
        self,
        pool: ArqRedis,
        queue: str,
        schedules: Sequence[Schedule],
        settings: WorkerSettings,
        *,
        outage: Outage | None = None,
        idle: Callable[[], bool] = lambda: True,
        cache: Callable[[], Cache] = get_cache,
        metrics: Metrics | None = None,
        journal: Journal | None = None,
    ) -> None:
        warming = Warming(pool, queue, settings, cache, metrics or Metrics(), journal=journal)
        self._drain_timeout = settings.drain_timeout
        self._queue = warming.queue
        self._name = queue
        self._settings = settings
        self._audits = audits(queue, Auditor(cache, settings, metrics or Metrics(), idle), settings)
        self._worker = JobWorker(
            pool,
            queue,
            [func(warming.warm, name=JOB_NAME), func(warming.warm_hot, name=HOT_JOB_NAME)],
            self._crons(schedules),
            budget=Budget(settings.warms_per_second, idle),
            outage=outage or Outage("jobs", lambda _there, _reason: None),
            after_job_end=warming.after_job,
            max_jobs=settings.max_warms,
            job_timeout=settings.warm_timeout + _ARQ_TIMEOUT_EXTRA,
            max_tries=settings.warm_tries + 1,
            poll_seconds=settings.poll,
        )

    def use(self, schedules: Sequence[Schedule]) -> None:
        """Follow these schedules from now on. Raises ConfigurationError for one that arq refuses; then none changes."""
        self._worker.use_cron_jobs(self._crons(schedules))

    def _crons(self, schedules: Sequence[Schedule]) -> list[CronJob]:
        named = {schedule.name: schedule for schedule in schedules}  # one that is there twice is one
        crons = [_cron(self._queue, self._name, schedule, self._settings) for schedule in named.values()]
        return [*crons, *self._audits]

    async def run(self, stop: asyncio.Event) -> None:
        """Run jobs until `stop` is set, then let the running ones finish within the drain timeout.

        While Redis is away this waits for it. Raises whatever else Redis does to the worker.
        """
        await self._worker.work(stop, self._drain_timeout)


def _cron(queue: WarmQueue, name: str, schedule: Schedule, settings: WorkerSettings) -> CronJob:
    """Return what hands a schedule's warm off at its times."""

    async def hand_off(_ctx: dict[str, Any]) -> None:
        if isinstance(schedule.warm, Hot):
            await queue.hand_off([], [schedule.warm], refresh=True)
        else:
            await queue.hand_off([schedule.warm], refresh=True)

    try:
        return cron(
            cast("WorkerCoroutine", hand_off),
            name=job_name(name, schedule.name),
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
