"""The process: the consumers and the warm jobs under one supervisor. Any part dying stops the others.

async or threads: one event loop. All parts wait on Redis nearly all the time; what blocks is the service's own loaders,
which are coroutines already. What must answer while the loop does not (health, the stop's watchdog) are threads.

arq's own entry point is not used: it always runs a bare arq worker, and its signal handling cancels mid-drain.
"""

import asyncio
import gc
import secrets
import signal
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

from redis.exceptions import RedisError
from tidings import Cache
from tidings.cluster_store import ClusterStore
from tidings.errors import TidingsError
from tidings.settings import redact
from tidings.store import RedisStore
from tidings.telemetry import process_name

from . import unread
from .consumer import Consumer
from .delivery import Retries, RetryPolicy
from .groups import Group
from .handler import Handler
from .health import Health, keep_beating, pages, serving
from .jobs import JobsClient, jobs_pool, jobs_url
from .journal import Journal
from .keeping import WarmKeeper
from .ledger import Ledger
from .metrics import Metrics
from .observer import SERVERS, Observer, Watched
from .outage import Outage, Patience, is_group_gone, is_outage
from .queueing import WarmQueue
from .reclaimer import Reclaimer, Upkeep
from .reloading import Reloading, Reloads
from .rules import Rules
from .servers import check_settings, histories, store_of
from .settings import WorkerSettings
from .stopping import Stop
from .telemetry import log
from .threads import DaemonThreads
from .warming import WarmWorker
from .watch import Watch

EXIT_FAILED = 1

#: What a worker must be able to do to be ready, beside reaching its servers.
_PARTS = ("consumer", "warm jobs")
#: Seconds between two looks at the servers for the gauges.
_LOOK_SECONDS = 2.0


async def serve(
    rules: Rules, cache: Cache, settings: WorkerSettings, *, owns_server: bool = False, reloads: Reloads | None = None
) -> int:
    """Run a worker until SIGTERM or SIGINT; return the process's exit code. 0 only for a stop that was asked for.

    `owns_server`: the server ends with the worker, in an orderly way, so that its next start is no sign of a loss.
    `reloads`: with SIGHUP the rules are read again from where `rules` came from.

    From the signal the process has `stop_timeout` seconds to end; then it is ended. Threads in which loads wait do not
    hold it up.
    """
    store_of(cache)
    stop = Stop(settings)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonThreads())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask, number.name)
    exit_code = EXIT_FAILED
    try:
        async with AsyncExitStack() as stack:
            process = _Process(rules, cache, settings, stop, owns_server=owns_server, reloads=reloads)
            exit_code = await process.run(stack)
    except (RedisError, OSError, TidingsError) as error:
        log.error("part_failed", part="connection", exc_info=error)
        exit_code = EXIT_FAILED
    finally:
        stop.ended(exit_code)
    log.info("stopped", exit_code=exit_code)
    return exit_code


class _Process:
    """The parts of one worker, made and run together."""

    def __init__(
        self,
        rules: Rules,
        cache: Cache,
        settings: WorkerSettings,
        stop: Stop,
        *,
        owns_server: bool,
        reloads: Reloads | None,
    ) -> None:
        self._owns_server = owns_server
        self._reloads = reloads
        self._rules = rules
        self._cache = cache
        self._settings = settings
        self._stop = stop
        self._name = f"{process_name()}:{secrets.token_hex(4)}"
        self._health = Health([*_PARTS, *SERVERS])
        self._metrics = Metrics(rules.event_types, beat_age=lambda: self._health.beat_age)
        self._outage = self._new_outage("consumer", cache.telemetry.server)
        self._jobs_server = jobs = redact(jobs_url(cache.settings))
        self._jobs_outage = self._outage if jobs == cache.telemetry.server else self._new_outage("warm jobs", jobs)
        self._parts: dict[asyncio.Task[None], str] = {}
        self._consumers: list[Consumer] = []

    async def run(self, stack: AsyncExitStack) -> int:
        """Run until the stop, or until a part dies; return the exit code."""
        cache, keys = self._cache, self._cache.keys
        self._beat(stack)
        store = store_of(cache)
        pool = jobs_pool(cache.settings)
        stack.push_async_callback(pool.aclose)

        async def close_cache() -> None:
            # It takes a thread, and loads may hang in all of the others.
            asyncio.get_running_loop().set_default_executor(DaemonThreads())
            await cache.aclose(drain_timeout=self._stop.drain_left())

        stack.push_async_callback(close_cache)
        groups = [
            Group(store, stream, cache.settings.group, self._name, dead=keys.dead, counts=keys.counts)
            for stream in keys.streams(cache.settings.partitions)
        ]
        for group in groups:
            stack.push_async_callback(group.aclose)
        ledger = Ledger(store, keys.ledger)
        watch = Watch(cache, groups, ledger, lambda: histories(store), lambda loss: self._metrics.lost(loss.code))
        if not await self._first_look(watch):
            return 0
        await check_settings(store, cache.telemetry.server, pool, self._jobs_server)
        self._start_parts(store, pool, groups, watch)
        gc.freeze()  # modules, classes and rules: the collector need not look through them again and again
        failed = await self._until_all_ended()
        if not failed:
            await self._leave(groups, watch, ledger)
        return EXIT_FAILED if failed else 0

    def _start_parts(
        self, store: RedisStore | ClusterStore, pool: JobsClient, groups: Sequence[Group], watch: Watch
    ) -> None:
        cache, settings, asked, keys = self._cache, self._settings, self._stop.asked, self._cache.keys
        journal = Journal(store, keys, self._name)
        warms = WarmWorker(
            pool,
            keys.jobs,
            self._rules.schedules,
            settings,
            outage=self._jobs_outage,
            idle=self._is_idle,
            cache=lambda: cache,
            metrics=self._metrics,
            journal=journal,
        )
        log.info(
            "worker_started",
            server=cache.telemetry.server,
            stream=keys.events,
            group=cache.settings.group,
            consumer=self._name,
            types=sorted(self._rules.event_types),
        )
        policy = RetryPolicy(settings.max_deliveries, settings.retry_delay)
        keeper = WarmKeeper(WarmQueue(pool, keys.jobs))
        handler = Handler(
            cache,
            self._rules,
            keeper,
            policy,
            self._metrics,
            snapshot_reads=settings.snapshot_reads,
            journal=journal,
        )
        for group in groups:
            self._consume(group, handler, watch, policy)
        streams = [group.stream.events for group in groups]
        watched = Watched(cache.settings.group, streams, keys.dead, store, keys.jobs, pool)
        observer = Observer(watched, self._metrics, self._health, timeout=store.timeout)
        self._start("watch", watch.run(asked, self._patience("watch"), settings.check_interval))
        self._start("observer", observer.run(asked, _LOOK_SECONDS))
        strays = unread.watch(store, keys, cache.settings, asked, self._patience("partitions"))
        self._start("partitions", strays)
        self._start("journal", journal.run(asked, self._patience("journal")))
        self._start("warm jobs", warms.run(asked))
        self._start("warm keeper", keeper.run(asked, Patience("warm keeper", self._jobs_outage, asked)))
        self._reload_with(handler, warms)
        for name in _PARTS:
            self._health.part(name, ok=True)

    def _reload_with(self, handler: Handler, warms: WarmWorker) -> None:
        """Let these parts have other rules when the process is told to read them again."""

        def take(rules: Rules) -> None:
            warms.use(rules.schedules)  # the one that may refuse
            handler.use(rules)
            self._metrics.rules_changed(rules.event_types)

        if self._reloads is not None:
            targets, hang_ups = self._reloads
            hang_ups.wake(asyncio.get_running_loop())
            reloading = Reloading(targets, hang_ups.came, self._rules, take, self._metrics)
            self._start("reloads", reloading.run(self._stop.asked))

    async def _first_look(self, watch: Watch) -> bool:
        """Make the groups, and make up for what was lost while no worker ran; say whether to go on."""
        patience = self._patience("watch")
        while not self._stop.asked.is_set():
            if await patience.tried(watch.check()):
                patience.succeeded()
                return True
        return False

    def _beat(self, stack: AsyncExitStack) -> None:
        """Let health be asked for, from now until the end."""
        beating = asyncio.create_task(keep_beating(self._health))
        stack.callback(beating.cancel)
        if self._settings.http_port is not None:
            served = pages(self._health, self._metrics.expose)
            stack.enter_context(serving(self._settings.http_host, self._settings.http_port, served))

    def _new_outage(self, part: str, url: str) -> Outage:
        return Outage(url, lambda there, reason: self._health.part(part, ok=there, reason=reason))

    def _consume(self, group: Group, handler: Handler, watch: Watch, policy: RetryPolicy) -> None:
        """Start everything that belongs to one stream."""
        settings, asked, stream = self._settings, self._stop.asked, group.stream.events
        consumer = Consumer(group, handler, watch, Retries(), policy, batch=settings.batch, block_ms=settings.block_ms)
        self._consumers.append(consumer)
        upkeep = Upkeep(settings.claim_idle, settings.consumer_idle, settings.keep_events)
        reclaimer = Reclaimer(consumer, handler, watch, policy, upkeep)
        self._start(f"consumer of {stream}", consumer.run(asked, self._patience(f"consumer of {stream}")))
        self._start(f"reclaimer of {stream}", reclaimer.run(asked, self._patience(f"reclaimer of {stream}")))
        self._start(f"renewals of {stream}", reclaimer.renew(asked))

    def _is_idle(self) -> bool:
        """Say whether warms may start: no events wait that have been seen."""
        return not any(consumer.is_behind for consumer in self._consumers)

    def _patience(self, part: str) -> Patience:
        return Patience(part, self._outage, self._stop.asked)

    def _start(self, name: str, part: Coroutine[Any, Any, None]) -> None:
        self._parts[asyncio.create_task(part)] = name

    async def _until_all_ended(self) -> bool:
        """Wait for the stop, or for a part that ends without it; then for all. Say whether any has failed."""
        stop, parts = self._stop, self._parts
        stopping = asyncio.create_task(stop.asked.wait())
        await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
        failed = not stop.asked.is_set()  # a part ended although nobody asked
        if failed:
            stop.ask(" and ".join(f"the {name} ended" for part, name in parts.items() if part.done()))
            for part, name in parts.items():
                if part.done():
                    self._health.died(name, type(part.exception()).__name__)
        self._health.stopping()
        await asyncio.wait(parts)  # each ends by itself once stop is set; the watchdog sees to one that does not
        for part, name in parts.items():
            if (error := part.exception()) is not None:
                failed = True
                log.error("part_failed", part=name, exc_info=error)
        await stopping
        return failed

    async def _leave(self, groups: Sequence[Group], watch: Watch, ledger: Ledger) -> None:
        """Say how far the groups are, for the next worker to compare, and take this one's name out of them."""
        if not self._outage.over:
            return
        try:
            await watch.check()
            if self._owns_server:
                await ledger.forget_histories()
            for group in groups:
                await group.leave()  # unless something is pending for it
        except Exception as error:
            if not (is_outage(error) or is_group_gone(error)):  # else its name goes when it has idled long enough
                raise
