"""The process: the consumer and the warm jobs under one supervisor. Either one dying stops the other.

async or threads: one event loop. Both halves wait on Redis nearly all the time; what blocks is the service's own
loaders, which are coroutines already.

arq's own entry point is not used: it always runs a bare arq worker, and its signal handling cancels mid-drain.
"""

import asyncio
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import redis.asyncio
from arq.connections import ArqRedis
from redis.exceptions import RedisError
from tidings import Cache
from tidings.errors import ConfigurationError

from .consumer import Consumer
from .handler import Handler
from .rules import Rules
from .settings import WorkerSettings
from .telemetry import log
from .warming import WarmQueue, WarmWorker, from_json, to_json

EXIT_FAILED = 1
EXIT_STOP_TIMED_OUT = 70


def load_rules(target: str) -> Rules:
    """Import ``module:name`` from here or the import path. Raises ConfigurationError naming file, name and cure."""
    module_name, separator, name = target.partition(":")
    if not separator or not module_name or not name:
        raise ConfigurationError(f"{target!r} is not MODULE:RULES, as in myapp.rules:rules")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{module_name} does not import: no module {error.name!r} on the path or in {here}; "
            "run from the folder that holds it, or install it"
        ) from error
    except ConfigurationError:
        raise  # says itself what to change
    except Exception as error:
        raise ConfigurationError(f"{module_name} does not import: {type(error).__name__}: {error}") from error
    rules = getattr(module, name, None)
    if not isinstance(rules, Rules):
        found = sorted(key for key, value in vars(module).items() if isinstance(value, Rules))
        hint = f"; it has {', '.join(found)}" if found else "; make one with rules = Rules()"
        raise ConfigurationError(f"{module.__file__}: {name!r} is {type(rules).__name__}, not Rules{hint}")
    rules.check()
    return rules


async def serve(rules: Rules, cache: Cache, settings: WorkerSettings) -> int:
    """Run a worker until SIGTERM or SIGINT; return the process's exit code. 0 only for a stop that was asked for."""
    if cache.settings.url is None or cache.telemetry.server.startswith("memory:"):
        raise ConfigurationError("a worker needs Redis: the default cache is in memory; set TIDINGS_URL")
    stop = asyncio.Event()
    reasons: list[str] = []
    finished = threading.Event()

    def ask_to_stop(reason: str) -> None:
        if not reasons:
            log.info("stopping", reason=reason)
            _watch(finished, settings.stop_timeout)
        reasons.append(reason)  # a second signal changes nothing: the drain goes on
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask_to_stop, number.name)
    try:
        async with AsyncExitStack() as stack:
            exit_code = await _run(rules, cache, settings, stop, ask_to_stop, stack)
    except (RedisError, OSError) as error:
        log.error("part_failed", part="connection", exc_info=error)
        exit_code = EXIT_FAILED
    finally:
        finished.set()
    log.info("stopped", exit_code=exit_code)
    return exit_code


async def _run(  # noqa: PLR0917 the parts of one process
    rules: Rules,
    cache: Cache,
    settings: WorkerSettings,
    stop: asyncio.Event,
    ask_to_stop: Callable[[str], None],
    stack: AsyncExitStack,
) -> int:
    url = cache.settings.url.get_secret_value() if cache.settings.url else ""
    timeout = cache.settings.operation_timeout
    patient = timeout + settings.block_ms / 1000
    client = redis.asyncio.Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    blocking = redis.asyncio.Redis.from_url(url, socket_timeout=patient, socket_connect_timeout=timeout)
    jobs = redis.asyncio.ConnectionPool.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout)
    arq_pool = ArqRedis(jobs, job_serializer=to_json, job_deserializer=from_json, default_queue_name=cache.keys.jobs)
    for close in (client.aclose, blocking.aclose, arq_pool.aclose, jobs.disconnect, cache.aclose):
        stack.push_async_callback(close)

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
        asyncio.create_task(consumer.run(handler.handle, stop)): "consumer",
        asyncio.create_task(warms.run(stop)): "warm jobs",
    }
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
    failed = not stop.is_set()  # a part ended although nobody asked
    if failed:
        ask_to_stop(" and ".join(f"the {name} ended" for part, name in parts.items() if part.done()))
    await asyncio.wait(parts)  # each ends by itself once stop is set; the watchdog sees to one that does not
    for part, name in parts.items():
        if (error := part.exception()) is not None:
            failed = True
            log.error("part_failed", part=name, exc_info=error)
    if not failed:
        await consumer.leave()
    await stopping
    return EXIT_FAILED if failed else 0


def _watch(finished: threading.Event, seconds: float) -> None:
    """End the process if it has not finished its stop by then. A thread: the event loop may be what hangs."""

    def watch() -> None:
        if not finished.wait(seconds):
            log.error("stopped", exit_code=EXIT_STOP_TIMED_OUT)
            os._exit(EXIT_STOP_TIMED_OUT)

    threading.Thread(target=watch, name="tidings-stop-watchdog", daemon=True).start()
