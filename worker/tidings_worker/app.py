"""The process: the consumer and the warm jobs under one supervisor. Either one dying stops the other.

async or threads: one event loop. Both halves wait on Redis nearly all the time; what blocks is the service's own
loaders, which are coroutines already.

arq's own entry point is not used: it always runs a bare arq worker, and its signal handling cancels mid-drain.
"""

import asyncio
import os
import signal
import threading
import time
from contextlib import AsyncExitStack

import redis.asyncio
from arq.connections import ArqRedis
from redis.exceptions import RedisError
from tidings import Cache
from tidings.errors import ConfigurationError

from .consumer import Consumer
from .handler import Handler
from .jobs import from_json, to_json
from .rules import Rules
from .settings import WorkerSettings
from .telemetry import log
from .threads import DaemonThreads
from .warming import WarmQueue, WarmWorker

EXIT_FAILED = 1
EXIT_STOP_TIMED_OUT = 70


class _Stop:
    """The wish to stop, and what holds the process to it. Once only: a second signal changes nothing."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.asked = asyncio.Event()
        self._settings = settings
        self._drain_until: float | None = None
        self._exit_code: int | None = None

    def ask(self, reason: str) -> None:
        """Stop for this reason."""
        if self.asked.is_set():
            return
        log.info("stopping", reason=reason)
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        self.asked.set()
        # A thread: the event loop may be what hangs. A daemon: it ends with the process that it watches.
        threading.Thread(target=self._watch, name="tidings-stop-watchdog", daemon=True).start()

    def drain_left(self) -> float:
        """Return how many seconds what is running has to finish."""
        until = self._drain_until
        return self._settings.drain_timeout if until is None else max(0.0, until - time.monotonic())

    def ended(self, exit_code: int) -> None:
        """Note that everything is closed; what remains is the end of the process, which a thread may still hold up."""
        self._exit_code = exit_code

    def _watch(self) -> None:
        time.sleep(self._settings.stop_timeout)
        if self._exit_code is None:
            log.error("stopped", exit_code=EXIT_STOP_TIMED_OUT)
            os._exit(EXIT_STOP_TIMED_OUT)
        log.warning("threads_left", threads=[thread.name for thread in threading.enumerate() if not thread.daemon])
        os._exit(self._exit_code)


async def serve(rules: Rules, cache: Cache, settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM or SIGINT; return the process's exit code. 0 only for a stop that was asked for.

    From the signal the process has `stop_timeout` seconds to end; then it is ended. Threads in which loads wait do not
    hold it up.
    """
    if cache.settings.url is None or cache.telemetry.server.startswith("memory:"):
        raise ConfigurationError("a worker needs Redis: the default cache is in memory; set TIDINGS_URL")
    stop = _Stop(settings)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask, number.name)
    exit_code = EXIT_FAILED
    try:
        async with AsyncExitStack() as stack:
            exit_code = await _run(rules, cache, settings, stop, stack)
    except (RedisError, OSError) as error:
        log.error("part_failed", part="connection", exc_info=error)
        exit_code = EXIT_FAILED
    finally:
        stop.ended(exit_code)
    log.info("stopped", exit_code=exit_code)
    return exit_code


async def _run(rules: Rules, cache: Cache, settings: WorkerSettings, stop: _Stop, stack: AsyncExitStack) -> int:
    url = cache.settings.url.get_secret_value() if cache.settings.url else ""
    timeout = cache.settings.operation_timeout
    patient = timeout + settings.block_ms / 1000
    client = redis.asyncio.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    blocking = redis.asyncio.Redis.from_url(url, socket_timeout=patient, socket_connect_timeout=timeout)
    jobs = redis.asyncio.ConnectionPool.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    arq_pool = ArqRedis(jobs, job_serializer=to_json, job_deserializer=from_json, default_queue_name=cache.keys.jobs)
    for close in (client.aclose, blocking.aclose, arq_pool.aclose, jobs.disconnect):
        stack.push_async_callback(close)

    async def close_cache() -> None:
        await cache.aclose(drain_timeout=stop.drain_left())

    stack.push_async_callback(close_cache)

    consumer = Consumer(
        blocking, cache.keys.events, cache.settings.group, batch=settings.batch, block_ms=settings.block_ms
    )
    handler = Handler(cache, client, rules, WarmQueue(client, cache.keys.jobs))
    warms = WarmWorker(arq_pool, cache.keys.jobs, rules.schedules, settings)
    await consumer.create_group()
    log.info(
        "worker_started",
        server=cache.telemetry.server,
        stream=cache.keys.events,
        group=cache.settings.group,
        consumer=consumer.name,
        types=sorted(rules.event_types),
    )
    parts = {
        asyncio.create_task(consumer.run(handler.handle, stop.asked)): "consumer",
        asyncio.create_task(warms.run(stop.asked)): "warm jobs",
    }
    stopping = asyncio.create_task(stop.asked.wait())
    await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
    failed = not stop.asked.is_set()  # a part ended although nobody asked
    if failed:
        stop.ask(" and ".join(f"the {name} ended" for part, name in parts.items() if part.done()))
    await asyncio.wait(parts)  # each ends by itself once stop is set; the watchdog sees to one that does not
    for part, name in parts.items():
        if (error := part.exception()) is not None:
            failed = True
            log.error("part_failed", part=name, exc_info=error)
    if not failed:
        await consumer.leave()
    await stopping
    return EXIT_FAILED if failed else 0
