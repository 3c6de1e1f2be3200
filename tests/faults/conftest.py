"""A service under test with its truth, its readers and its workers, and how long it took them to recover.

Real processes and real servers. A *fault* is done to them while events flow; afterwards must hold:

- every event that was acknowledged to its publisher is applied, or in the dead letters;
- no read that began after an event was acknowledged as applied has returned a value from before it;
- the worker is alive, or was started again by the test as a supervisor would.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from tidings import Cache, Event
from tidings.causes import Kind
from tidings.errors import DeadLetteredError, NotAppliedError, PublishError, UnavailableError
from tidings.keys import ALL
from tidings.publisher import Receipt
from tidings_worker.explaining.asking import Servers
from tidings_worker.explaining.explanation import State
from tidings_worker.explaining.gathering import Answer, answer
from tidings_worker.explaining.subjects import Subject
from tidings_worker.explaining.waiting import Place
from tidings_worker.explaining.wording import LOSSES
from tidings_worker.jobs import jobs_pool

RULES = """
import os
from pathlib import Path
from tidings_worker import Invalidate, Rules

rules = Rules()


@rules.on("faults.changed")
def changed(event):
    poison = event.model_extra.get("poison")
    if poison == "raise":
        raise ZeroDivisionError("a bug in a rule")
    if poison == "die":
        os._exit(66)
    change = event.model_extra.get("change")
    return Invalidate(tags=[f"thing:{event.thing}", *([] if change is None else [f"change:{change}"])])
"""

#: Settings under which a worker notices and retries within a test's patience.
QUICK = {
    "TIDINGS_WORKER_BLOCK_MS": "200",
    "TIDINGS_WORKER_CLAIM_IDLE": "1",
    "TIDINGS_WORKER_RETRY_DELAY": "0.1",
    "TIDINGS_WORKER_CHECK_INTERVAL": "0.2",
}


class World:
    """Things with versions: the truth is in this process, and its readers are too.

    `acknowledged` is the version of each thing that some receipt has said to be applied; a read that begins then must
    not return an older one.
    """

    def __init__(self, shell, url: str, **settings: str) -> None:
        shell.write("rules.py", RULES)
        self.url = url
        self.settings = settings
        self.truth: dict[int, int] = {}
        self.acknowledged: dict[int, int] = {}
        self.published: list[str] = []
        self.changes = 0
        self.reads = 0
        self.stale: list[str] = []
        self.workers = []
        self._shell = shell
        self._background: set[asyncio.Task] = set()
        self.cache = Cache(url, operation_timeout=1.0, jobs_url=settings.get("TIDINGS_JOBS_URL"))
        self.get = self.cache.cached(namespace="things", tags=["thing:{thing}"])(self._load)

    async def _load(self, thing: int) -> int:
        version = self.truth.get(thing, 0)
        await asyncio.sleep(0)  # what takes time is where races are
        return version

    # Workers

    def start_worker(self, *, ready: bool = True, **settings: str):
        """Start one more worker, and wait until it reads unless told otherwise."""
        variables = {"TIDINGS_URL": self.url, **QUICK, **self.settings, **settings}
        worker = self._shell.start("worker", "rules:rules", **variables)
        if ready:
            worker.event("worker_started", 20)
        self.workers.append(worker)
        return worker

    @asynccontextmanager
    async def supervised(self, count: int) -> AsyncIterator[list]:
        """Keep so many workers running meanwhile: one that ended is started again. Gives those that should run now."""
        running = [self.start_worker() for _ in range(count)]

        async def supervise() -> None:
            while True:
                for place, worker in enumerate(running):
                    if worker.code is not None:
                        running[place] = self.start_worker(ready=False)
                await asyncio.sleep(0.02)

        supervising = asyncio.create_task(supervise())
        try:
            yield running
        finally:
            supervising.cancel()
            await asyncio.wait({supervising})

    def events(self, name: str) -> list[dict]:
        """Return the log events of a name of all workers."""
        return [event for worker in self.workers for event in worker.events(name)]

    async def rode_out(self, worker) -> bool:
        """Wait until all parts of a worker have their server again; say whether it had said that it was away."""
        deadline = time.monotonic() + 10
        while len(worker.events("redis_back")) < len(worker.events("redis_away")):
            assert time.monotonic() < deadline, f"not back: {worker.err[-2000:]}"
            await asyncio.sleep(0.02)
        return bool(worker.events("redis_away"))

    # What the service does

    async def change(self, thing: int, **data: object) -> object:
        """Commit a new version, then publish until that is acknowledged, as a service does; return the receipt."""
        version = self.truth[thing] = self.truth.get(thing, 0) + 1
        self.changes += 1
        receipt = await self.publish(thing=thing, change=self.changes, **data)
        return receipt, thing, version

    async def publish(self, **data: object) -> Receipt:
        """Publish until that is acknowledged; return the receipt."""
        while True:
            try:
                receipt = await self.cache.publish(Event.of("faults.changed", data))
            except PublishError:
                await asyncio.sleep(0.05)
            else:
                self.published.append(receipt.id)
                return receipt

    async def applied(self, change: tuple, timeout: float = 60) -> None:  # noqa: ASYNC109 what a test has patience for
        """Wait until a change is applied; from then on reads are held to it."""
        receipt, thing, version = change
        deadline = time.monotonic() + timeout
        while True:
            try:
                await receipt.applied(max(0.01, deadline - time.monotonic()))
            except NotAppliedError:
                raise
            except UnavailableError:
                assert time.monotonic() < deadline, "Redis did not come back"
                await asyncio.sleep(0.05)
            else:
                self.acknowledged[thing] = max(version, self.acknowledged.get(thing, 0))
                return

    async def read(self, thing: int) -> None:
        """Read once, and hold the value against what had been acknowledged when the read began."""
        floor = self.acknowledged.get(thing, 0)
        value = await self.get(thing)
        self.reads += 1
        if value < floor:
            self.stale.append(f"thing {thing}: version {value}, after {floor} was acknowledged")

    @asynccontextmanager
    async def readers(self, things: int, count: int = 4) -> AsyncIterator[None]:
        """Let readers read at random meanwhile."""

        async def go_on() -> None:
            while True:
                await self.read(random.randrange(things))
                await asyncio.sleep(0.002)

        tasks = [asyncio.create_task(go_on()) for _ in range(count)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    async def publish_many(self, events: int, things: int, at_once: int = 20, **data: object) -> None:
        """Publish events about things at random; every tenth is waited for in the background."""
        left = iter(range(events))

        async def go_on() -> None:
            for number in left:
                change = await self.change(random.randrange(things), **data)
                if number % 10 == 0:
                    self.follow(self.applied(change))

        await asyncio.gather(*(go_on() for _ in range(at_once)))

    async def publish_with_poison(self, events: int, things: int, poison: str) -> list[bytes]:
        """Publish events, of which one in a hundred is poison; return the stream ids of those.

        Their receipts have to say that they were set aside; `settle` waits for that.
        """
        receipts = []

        async def told(receipt: Receipt) -> None:
            while True:
                try:
                    await receipt.applied(90)
                except DeadLetteredError:
                    return
                except NotAppliedError:
                    raise
                except UnavailableError:
                    await asyncio.sleep(0.05)

        for _ in range(events // 100):
            await self.publish_many(99, things)
            receipts.append(await self.publish(poison=poison))
            self.follow(told(receipts[-1]))
        return sorted(receipt.id.encode() for receipt in receipts)

    async def until_published(self, count: int) -> None:
        """Wait until so many events have been acknowledged to their publishers."""
        while len(self.published) < count:
            await asyncio.sleep(0.001)

    def follow(self, waiting: Awaitable[None]) -> None:
        """Do something in the background; `settle` waits for it."""
        task = asyncio.ensure_future(waiting)
        self._background.add(task)

    # What an operator is told

    async def explain(self, thing: int, rules: str | None = None) -> Answer:
        """Ask `tidings explain` about a thing's entry; with `rules` also which waiting events would invalidate it."""
        namespace: dict[str, Any] = {}
        if rules is not None:
            exec(rules, namespace)  # noqa: S102 the text that the workers' rules module has
        call = self.get.call_of(thing)
        jobs = jobs_pool(self.cache.settings)
        try:
            subject = Subject(call.namespace, call.name, call.tags)
            return await answer(Servers(self.cache, jobs), subject, "", namespace.get("rules"))
        finally:
            await jobs.aclose()

    async def waiting(self, thing: int) -> dict[str, Place]:
        """Return by stream id the events that `tidings explain` says would invalidate a thing, and where they are."""
        found = await self.explain(thing, RULES)
        assert found.concerning is not None
        return {one.stream_id: one.place for one in found.concerning}

    async def told_lost(self, thing: int) -> set[str]:
        """Return what `tidings explain` says was lost when everything was invalidated; it must say so in words."""
        found = await self.explain(thing)
        causes = [change.cause for change in found.explanation.changes if change.what == ALL]
        codes = {code for cause in causes if cause.kind is Kind.LOST for code in cause.codes}
        assert codes <= LOSSES.keys()
        return codes

    async def check_explanations(self) -> None:
        """Assert that what is read now is explained: it is served, and what came before it was a change of its own.

        Or everything was invalidated, for a reason that `told_lost` gives.
        """
        for thing in sorted(self.truth)[:3]:
            found = await self.explain(thing)
            assert found.explanation.state is State.FRESH
            assert found.explanation.complete
            last = found.explanation.changes[-1].cause
            assert last.kind in {Kind.EVENT, Kind.LOST}
            event = found.events.get(last.event_id)
            if event is not None:
                assert (event.type, event.data["thing"]) == ("faults.changed", thing)
                assert last.rule.startswith("rules.changed (rules.py:")

    # What must hold

    def group(self, client: redis.Redis, stream: str = "events") -> dict:
        """Return what the server says of the group."""
        return next(group for group in client.xinfo_groups(stream) if group["name"] == b"tidings")

    async def settle(
        self,
        client: redis.Redis,
        *,
        timeout: float = 60,  # noqa: ASYNC109 as above
        streams: tuple[str, ...] = ("events",),
    ) -> float:
        """Wait until nothing is unread or pending and every receipt that was waited for has been told.

        Return the seconds that it took.
        """
        began = time.monotonic()

        def is_settled() -> bool:
            with contextlib.suppress(redis.RedisError, StopIteration):
                for stream in streams:
                    group = self.group(client, stream)
                    last = client.xinfo_stream(stream)["last-generated-id"]
                    if group["pending"] or group["last-delivered-id"] != last:
                        return False
                return True
            return False

        while not is_settled():
            assert time.monotonic() - began < timeout, f"not settled after {timeout} s: {self._state(client)}"
            await asyncio.sleep(0.02)
        background, self._background = self._background, set()
        if background:
            await asyncio.wait_for(asyncio.gather(*background), timeout)
        return time.monotonic() - began

    async def check(self, client: redis.Redis, *, dead: int = 0) -> None:
        """Assert all that must hold after every fault, once it is settled."""
        for thing, version in self.truth.items():
            self.acknowledged[thing] = version  # all events are applied, so every read from now on is held to the last
            await self.read(thing)
        assert self.stale == []
        await self.check_explanations()
        assert client.xlen("events:dead") == dead
        assert any(worker.code is None for worker in self.workers), "no worker is alive"

    def check_every_change(self, client: redis.Redis) -> None:
        """Assert that each change was invalidated by its own event; not so where events were lost for everything."""
        pipe = client.pipeline(transaction=False)
        for change in range(1, self.changes + 1):
            pipe.exists(f"token:tag:change:{change}")
        missing = [change for change, found in enumerate(pipe.execute(), 1) if not found]
        assert missing == [], f"{len(missing)} of {self.changes} changes were never applied"

    def _state(self, client: redis.Redis) -> str:
        try:
            groups = client.xinfo_groups("events")
        except redis.RedisError as error:
            groups = [repr(error)]
        return json.dumps({"groups": repr(groups), "workers": [(w.code, w.err[-2000:]) for w in self.workers]})

    async def aclose(self) -> None:
        """End what runs in this process."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.cache.aclose(drain_timeout=1)


@pytest.fixture
async def new_world(new_shell):
    """Make a world on a server; `settings` are its workers'."""
    worlds = []

    def make(url: str, **settings: str) -> World:
        worlds.append(World(new_shell(), url, **settings))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.aclose()


@pytest.fixture
def recovered(request) -> Callable[[float, str], None]:
    """Note how long a recovery took; printed at the end of the run."""

    def note(seconds: float, what: str = "recovery") -> None:
        request.node.user_properties.append(("recovery", f"{request.node.name}: {what} {seconds:.2f} s"))

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the recovery times, also of tests that ran in other processes."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [text for report in reports for name, text in getattr(report, "user_properties", ()) if name == "recovery"]
    if lines:
        terminalreporter.section("recovery times")
        for line in sorted(set(lines)):
            terminalreporter.write_line(line)
