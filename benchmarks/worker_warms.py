"""The row about handing off warms: 1 000 at once, against arq's `enqueue_job` in a loop with the same jobs."""

import random
import statistics
import time

from arq.connections import ArqRedis
from common import fail, rounds, server
from redis.asyncio import ConnectionPool
from tidings import Cache
from tidings_worker import Warm
from tidings_worker.jobs import from_json, to_json
from tidings_worker.warming import JOB_NAME, WarmQueue
from worker_load import user_page
from worker_rows import Outcome, Row, Run

WARMS = 1000
#: At least this many times the rate of the loop.
BAR = 10.0
BULK, LOOP = "hand-off", "enqueue_job"


async def one_round(url: str, count: int) -> dict[str, float]:
    """Return warms a second, of both."""
    warms = [Warm(user_page, number) for number in range(count)]
    rates: dict[str, float] = {}
    async with Cache(url) as cache:
        queue = cache.keys.jobs
        pool = ArqRedis(
            ConnectionPool.from_url(url), job_serializer=to_json, job_deserializer=from_json, default_queue_name=queue
        )
        for name in random.sample([BULK, LOOP], 2):
            await pool.flushall()
            started = time.perf_counter()
            if name == BULK:
                await WarmQueue(pool, queue).hand_off(warms)
            else:
                for warm in warms:
                    await pool.enqueue_job(JOB_NAME, warm.function, warm.arguments, _job_id=f"{queue}:{warm.name}")
            rates[name] = count / (time.perf_counter() - started)
            if (queued := await pool.zcard(queue)) != count:
                fail(f"{name} queued {queued} of {count}")
        await pool.aclose(close_connection_pool=True)
    return rates


def measure(run: Run) -> Outcome:
    """Measure both in every round."""
    found: list[dict[str, float]] = []
    with server() as url:
        for counts in rounds(run.rounds, "warms"):
            rates = run.run(one_round(url, run.scaled(WARMS)))
            if counts:
                found.append(rates)
    ratio = statistics.median(rates[BULK] / rates[LOOP] for rates in found)
    medians = {name: statistics.median(rates[name] for rates in found) for name in found[0]}
    note = f"{medians[BULK]:,.0f} warms/s; enqueue_job {medians[LOOP]:,.0f}"
    return Outcome(f"{ratio:.1f} times", note, ratio >= BAR, {"ratio": ratio, "medians": medians, "rounds": found})


ROW = Row("warms", f"handing off {WARMS} warms, against enqueue_job in a loop", f"at least {BAR:g} times", measure)
