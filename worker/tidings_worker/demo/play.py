"""The play: rounds of a package whose source changes, told by an event and checked at every step."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from tidings import publish
from tidings.errors import DeadLetteredError, NotAppliedError

from .audience import Audience
from .edits import edit
from .result import CheckFailed, Moment, Result, Round
from .service import Answer, IngestionCompleted, catalog, read_tree
from .source import Function, Source
from .stage import Stage, stage

RULES = "tidings_worker.demo.rules:rules"

#: Seconds that an event, and then a warm, may take before it counts as lost or missing.
PATIENCE = 5.0
_LOOK_AGAIN = 0.001

#: Readers of other packages during a round.
_READERS = 3


async def play(
    sources: Mapping[str, Source],
    rounds: int,
    *,
    heard: Callable[[Result], None],
    rules: str = RULES,
    patience: float = PATIENCE,
) -> Result:
    """Index the packages, play the rounds, and return what happened.

    `heard` is called with the result so far: when the packages have been read, and as each round ends. The first
    check that fails ends the play, and is the result's `failure`. Raises ConfigurationError for a source that cannot be
    used, before anything is started.
    """
    began = time.perf_counter()
    functions = {package: source.functions() for package, source in sources.items()}
    packages = list(sources)
    result = Result({package: len(found) for package, found in functions.items()})
    heard(result)
    try:
        async with stage(rules) as scene:
            result.worker_log = scene.worker.log
            company = Play(scene, sources, patience)
            await company.open(functions)
            for number in range(1, rounds + 1):
                _stop_if_cancelled()
                result.rounds.append(Round(number, packages[(number - 1) % len(packages)]))
                # Packages whose first round is still to come are left alone, so that it can begin with a miss.
                idle = [*packages[: number - 1], *packages[rounds:]]
                try:
                    await company.play_round(result.rounds[-1], idle)
                finally:
                    heard(result)
    except CheckFailed as failure:
        result.failure = failure
    result.took_seconds = time.perf_counter() - began
    return result


def _stop_if_cancelled() -> None:
    """Raise what `asyncio.wait_for` may have swallowed: before Python 3.12 it does when what it waits for is done.

    redis-py sends every command through it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Play:
    """The sources as they are now, and the audience that must hear of every change."""

    def __init__(self, scene: Stage, sources: Mapping[str, Source], patience: float) -> None:
        self._scene = scene
        self._sources = dict(sources)
        self._patience = patience
        self._audience = Audience(scene.cache, datetime.now(UTC).date())

    async def open(self, functions: Mapping[str, Sequence[Function]]) -> None:
        """Ingest every package for the first time, while the worker starts."""
        await asyncio.to_thread(catalog().create)
        for package, found in functions.items():
            self._audience.committed(package, await asyncio.to_thread(self._ingest, package, found))
        await self._scene.worker.started()

    async def play_round(self, now: Round, idle: Sequence[str]) -> None:
        """Play one round while other readers keep reading the idle packages. Raises CheckFailed."""
        over = asyncio.Event()
        others = [package for package in idle if package != now.package]
        readers = [asyncio.create_task(self._audience.keep_reading(now, others, over)) for _ in range(_READERS)]
        try:
            await self._tell(now)
        finally:
            over.set()
            await asyncio.gather(*readers)

    async def _tell(self, now: Round) -> None:
        await self._read(now, "hit")
        await self._read(now, "hit")
        self._audience.committed(now.package, await asyncio.to_thread(self._ingest_again, now))
        self._note(now, "source changed and ingested again", time.perf_counter())
        await self._read(now, "hit, the news is not out yet")
        await self._publish(now)
        self._audience.applied(now.package)
        await self._look(now, "applied: invalidated", now.applied_at)
        await self._wait_for_warm(now)
        await self._look(now, f"warmed: {await self._worker_loaded(now)}", now.warmed_at)
        if await self._read(now, "fresh hit"):
            raise CheckFailed("missing warm", f"{now.package}: the read after it was warmed had to load")
        now.fresh_at = now.moments[-1].at

    async def _publish(self, now: Round) -> None:
        """Publish, and wait until the worker has applied it."""
        now.published_at = time.perf_counter()
        receipt = await publish(IngestionCompleted(package=now.package, as_of=self._audience.as_of))
        self._note(now, "event: ingestion.completed", now.published_at)
        try:
            await receipt.applied(self._patience)
        except (NotAppliedError, DeadLetteredError) as error:
            message = f"{now.package}, event {receipt.event_id}: {error}{self._scene.worker.fate()}"
            raise CheckFailed("lost event", message) from error
        now.applied_at = time.perf_counter()

    async def _wait_for_warm(self, now: Round) -> None:
        """Look, without loading, until there is something to serve."""
        while await self._audience.peek(now.package) is None:
            if time.perf_counter() > now.applied_at + self._patience:
                message = f"{now.package}: nothing loaded it in {self._patience:g} s{self._scene.worker.fate()}"
                raise CheckFailed("missing warm", message)
            await asyncio.sleep(_LOOK_AGAIN)
        now.warmed_at = time.perf_counter()

    async def _worker_loaded(self, now: Round) -> str:
        """Say how long the worker took to load the entry; raise CheckFailed when it was loaded by another."""
        by, load_ms = await self._audience.loaded(now.package) or ("nobody", 0.0)
        if by != self._scene.worker.name:
            raise CheckFailed("missing warm", f"{now.package}: loaded by {by}, not by {self._scene.worker.name}")
        return f"the worker loaded it in {load_ms:.1f} ms"

    async def _read(self, now: Round, hit: str) -> bool:
        """Read the round's package, note it, and return whether this process had to load it."""
        tidings, ttl_only, loaded = await self._audience.read(now, now.package)
        self._note(now, f"read: {'miss, loaded' if loaded else hit}", time.perf_counter(), tidings, ttl_only)
        return loaded

    async def _look(self, now: Round, what: str, at: float) -> None:
        """Note what either cache has to serve, loading nothing."""
        tidings, ttl_only = await self._audience.peek(now.package), await self._audience.ttl_only(now.package)
        self._note(now, what, at, tidings, ttl_only)

    def _note(
        self, now: Round, what: str, at: float, tidings: Answer | None = None, ttl_only: Answer | None = None
    ) -> None:
        current = self._audience.current(now.package)
        now.moments.append(Moment(at, what, current, tidings and tidings[1], ttl_only and ttl_only[1]))

    def _ingest_again(self, now: Round) -> Answer:
        """Edit a copy of the package as it is now, and ingest that."""
        source = self._sources[now.package].copy_to(self._scene.folder / f"round-{now.number}")
        now.edits = edit(source, now.number)
        self._sources[now.package] = source
        return self._ingest(now.package, source.functions())

    def _ingest(self, package: str, functions: Sequence[Function]) -> Answer:
        catalog().ingest(package, self._audience.as_of, functions)
        return read_tree(package, self._audience.as_of)
