"""The audit as a job of the worker: every so often, by one worker of all, within its budget.

The times are multiples of the interval, the same for all workers, and the job has one name, so that arq queues it once,
and not again while it runs. It starts, and goes on, only while no events wait: as a warm, it takes from the database
what readers need, and is less urgent than they are.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from arq.cron import CronJob, cron
from redis.exceptions import RedisError
from tidings import Cache
from tidings.errors import TidingsError

from tidings_worker.metrics import Metrics
from tidings_worker.outage import is_outage
from tidings_worker.settings import WorkerSettings
from tidings_worker.telemetry import log

from .audit import Audit
from .plan import Plan
from .reports import Finding, Report
from .verdicts import Outcome

if TYPE_CHECKING:
    from arq.typing import WorkerCoroutine

#: What an audit may take, since it waits for events: times what its loads take at the rate permitted, and seconds. So
#: many seconds more the job has to say what was found.
_TIMES, _SECONDS = 2.0, 30.0


class Auditor:
    """Audits a cache as the worker's settings say, tells the log and the metrics."""

    def __init__(
        self, cache: Callable[[], Cache], settings: WorkerSettings, metrics: Metrics, idle: Callable[[], bool]
    ) -> None:
        self._cache = cache
        self._metrics = metrics
        self._idle = idle
        self._plan = Plan(
            settings.verify_sample,
            settings.verify_per_second,
            settings.verify_sample / settings.verify_per_second * _TIMES + _SECONDS,
            settings.verify_grace,
            load_timeout=settings.warm_timeout,
            repair=settings.verify_repair,
        )

    @property
    def timeout(self) -> float:
        """Seconds after which an audit that has not ended is ended."""
        return self._plan.at_most + _SECONDS

    async def audit(self, _ctx: dict[str, Any]) -> None:
        """Audit once. An outage of Redis ends it until the next time."""
        try:
            report = await Audit(self._cache(), self._plan, found=_tell, idle=self._idle).run()
        except (TidingsError, RedisError, OSError) as error:
            if not is_outage(error):
                raise
            log.warning("audit_ended", error=f"{type(error).__name__}: {error}")
            return
        self._note(report)

    def _note(self, report: Report) -> None:
        self._metrics.audited({name: tally.counts for name, tally in report.namespaces.items()})
        log.info(
            "audited",
            ended=report.ended,
            **{outcome.value: report.count(outcome) for outcome in Outcome},
            repaired=report.repaired,
            loads=report.cost.loads,
            took_s=round(report.cost.elapsed_seconds, 1),
        )


def _tell(finding: Finding) -> None:
    if finding.outcome is Outcome.STALE:
        told = finding.as_json()
        del told["outcome"]
        log.error("stale_entry_found", **told)
    else:
        log.warning("unstable_entry_found", key=finding.key, call=finding.call, place=finding.place)


class _Every(CronJob):
    """A job at each multiple of so many seconds since 1970, whatever the calendar says."""

    def __init__(self, template: CronJob, seconds: float) -> None:
        super().__init__(**vars(template))
        self._seconds = seconds

    def calculate_next(self, prev_run: datetime) -> None:
        number = prev_run.timestamp() // self._seconds + 1
        self.next_run = datetime.fromtimestamp(number * self._seconds, prev_run.tzinfo or UTC)


def audits(queue: str, auditor: Auditor, settings: WorkerSettings) -> list[CronJob]:
    """Return the job of the audits of a queue's worker: none where they are off."""
    if not settings.verify_every:
        return []
    name = f"{queue}:audit"
    job = cron(
        cast("WorkerCoroutine", auditor.audit),
        name=name,
        job_id=name,
        timeout=auditor.timeout,
        max_tries=settings.warm_tries + 1,
        keep_result=0,
    )
    return [_Every(job, settings.verify_every)]
