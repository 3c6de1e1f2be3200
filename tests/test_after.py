"""Reading one's writes: inside of `after` nothing is served from before the event. The test plays the worker."""

import asyncio
import os
import signal
import threading

import pytest
import redis
import structlog
from tidings import Cache, Event
from tidings.after import Rule
from tidings.errors import ArgumentError
from tidings.keys import tag_token

TAG = "row:1"


class Saved(Event, type="test.after_saved"):
    row: int


class Worker:
    """Another process: reads events and applies them, when the test says so."""

    def __init__(self, cache):
        self.cache = cache
        self.client = cache.reader().store.client

    async def apply(self, receipt, *, tags=(TAG,)):
        """Read, invalidate, acknowledge one event as the worker does: its own and nothing else's."""
        stream = receipt.stream
        if not await self.client.exists(stream.events) or not await self.client.xinfo_groups(stream.events):
            await self.client.xgroup_create(stream.events, "tidings", id="0", mkstream=True)
        await self.client.xreadgroup("tidings", "me", {stream.events: ">"})
        causes = dict.fromkeys(map(tag_token, tags), "test")
        await self.cache.invalidate_tokens(causes, events=receipt.id, stream=stream)
        await self.client.xack(stream.events, "tidings", receipt.id)

    async def bury(self, receipt):
        """Set it aside in the dead letters."""
        stream = receipt.stream
        await self.client.xgroup_create(stream.events, "tidings", id="0", mkstream=True)
        await self.client.xreadgroup("tidings", "me", {stream.events: ">"})
        pipe = self.client.pipeline(transaction=True)
        letter = {"reason": "no rule can read it", "stream": stream.events, "stream_id": receipt.id}
        pipe.xadd(self.cache.keys.dead, letter)
        pipe.xack(stream.events, "tidings", receipt.id)
        await pipe.execute()


class Database:
    """One row, and how often it was read; a read takes its value at its start and returns it when the gate is open."""

    def __init__(self):
        self.row, self.reads = "old", 0
        self.gate, self.begun = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def load(self):
        row = self.row
        self.reads += 1
        self.begun.set()
        await self.gate.wait()
        return row


@pytest.fixture
def database():
    return Database()


@pytest.fixture
async def worker(url):
    async with Cache(url) as made:
        yield Worker(made)


@pytest.fixture
def deaf(cache):
    """Hold the tail of the cache back: its local tier serves, and hears of nothing."""
    cache._shared.tail.leave()
    cache.tier.alive(float("inf"))
    return cache


async def change(database, cache):
    """Commit, then publish."""
    database.row = "new"
    return await cache.publish(Saved(row=1))


def counted(cache, name, namespace="default"):
    return cache.stats()[namespace][name]


async def test_a_local_tier_whose_tail_lags_is_not_asked(deaf, database, worker):
    @deaf.cached(key="row", tags=[TAG], local_ttl=60)
    async def load() -> str:
        return await database.load()

    assert [await load(), await load()] == ["old", "old"]
    receipt = await change(database, deaf)
    await worker.apply(receipt)
    assert await load() == "old", "the tail lags"
    async with deaf.after(receipt):
        assert [await load(), await load()] == ["new", "new"]
    assert database.reads == 2, "inside, Redis is asked: the second read was a hit"


@pytest.mark.parametrize("old", [{"local_ttl": 60}, {"max_staleness": 60}], ids=["local tier", "stale by policy"])
async def test_what_a_load_reads_is_as_new_as_the_tokens_that_its_result_is_stored_under(deaf, database, worker, old):
    """The outer function permits nothing old: it must not be stored with what the inner one permits."""

    @deaf.cached(key="inner", tags=[TAG], **old)
    async def inner() -> str:
        return await database.load()

    @deaf.cached(key="outer", tags=[TAG])
    async def outer() -> str:
        return await inner()

    assert [await inner(), await outer()] == ["old", "old"]
    receipt = await change(database, deaf)
    await worker.apply(receipt)
    assert await inner() == "old", "the inner one alone may be"
    assert await outer() == "new"
    assert await outer() == "new"


async def test_entering_waits_until_the_event_is_applied(cache, database, worker):
    @cache.cached(key="row", tags=[TAG])
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)

    async def read():
        async with cache.after(receipt, timeout=30):
            return await load()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    assert not reading.done()
    await worker.apply(receipt)
    assert await reading == "new"
    assert counted(cache, "unapplied") == 0


@pytest.mark.parametrize("policy", [{"max_staleness": 60}, {"stale_while_revalidate": 60, "max_staleness": 60}])
async def test_no_stale_value_is_served_that_the_policy_permits(cache, database, worker, policy):
    @cache.cached(key="row", tags=[TAG], **policy)
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)
    await worker.apply(receipt)
    async with cache.after(receipt):
        assert await load() == "new"


async def test_a_load_that_raises_is_not_covered_by_a_stale_value(cache, database, worker):
    fails = False

    @cache.cached(key="row", tags=[TAG], stale_if_error=60)
    async def load() -> str:
        if fails:
            raise LookupError
        return await database.load()

    await load()
    receipt = await change(database, cache)
    await worker.apply(receipt)
    fails = True
    assert await load() == "old", "outside, the policy covers it"
    async with cache.after(receipt):
        with pytest.raises(LookupError):
            await load()


async def test_a_load_that_is_late_is_waited_for_although_the_policy_has_a_stale_value(cache, database, worker):
    @cache.cached(key="row", tags=[TAG], stale_if_error=60, timeout=0.001)
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)
    await worker.apply(receipt)
    database.gate.clear()
    database.begun.clear()

    async def read():
        async with cache.after(receipt):
            return await load()

    reading = asyncio.create_task(read())
    await database.begun.wait()
    assert await load() == "old", "outside, the timeout passed"
    database.gate.set()
    assert await reading == "new"


async def test_a_load_in_flight_from_before_is_not_joined(cache, database, worker):
    @cache.cached(key="row", tags=[TAG])
    async def load() -> str:
        return await database.load()

    database.gate.clear()
    early = asyncio.create_task(load())
    await database.begun.wait()
    receipt = await change(database, cache)
    await worker.apply(receipt)
    async with cache.after(receipt):
        database.begun.clear()
        reading = asyncio.create_task(load())
        await database.begun.wait()  # a load of its own
        database.gate.set()
        assert [await early, await reading] == ["old", "new"]
        assert await load() == "new"


async def test_a_shared_read_inside_is_not_one_that_began_outside(cache, database, worker):
    """Both ask in the same tick; the one outside may be served a stale value, the one inside may not."""

    @cache.cached(key="row", tags=[TAG], max_staleness=60)
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)
    await worker.apply(receipt)
    entered, go = asyncio.Event(), asyncio.Event()

    async def inside():
        async with cache.after(receipt):
            entered.set()
            await go.wait()
            return await load()

    async def outside():
        await go.wait()
        return await load()

    tasks = [asyncio.create_task(outside()), asyncio.create_task(inside()), asyncio.create_task(outside())]
    await entered.wait()
    go.set()
    assert await asyncio.gather(*tasks) == ["old", "new", "old"]


async def test_without_a_worker_reads_load_directly_and_keep_nothing(cache, database):
    @cache.cached(key="row", tags=[TAG])
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            async with cache.after(receipt, timeout=0.11):
                assert [await load(), await load()] == ["new", "new"]
    assert await load() == "old", "nothing was kept"
    assert counted(cache, "unapplied") == 4
    assert [line["event"] for line in logs] == ["after_not_applied"], "said once"
    assert "no worker" in logs[0]["reason"]


async def test_once_events_are_applied_again_it_is_said(cache, worker):
    receipt = await cache.publish(Saved(row=1))
    with structlog.testing.capture_logs() as logs:
        async with cache.after(receipt, timeout=0):
            pass
        await worker.apply(receipt)
        for _ in range(2):
            async with cache.after(receipt):
                assert cache.scopes.rule() is Rule.FRESH
    assert [line["event"] for line in logs] == ["after_not_applied", "after_applied"]


async def test_a_dead_letter_is_said_once_and_reads_load(cache, database, worker):
    @cache.cached(key="row", tags=[TAG])
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)
    await worker.bury(receipt)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            async with cache.after(receipt):
                assert await load() == "new"
    assert [(line["event"], line["reason"]) for line in logs] == [("after_dead_lettered", "no rule can read it")]


async def test_redis_away_raises_nothing_and_the_outage_store_is_not_read(new_server, database):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2, outage_ttl=60) as cache:

        @cache.cached(key="row", tags=[TAG], stale_if_error=60)
        async def load() -> str:
            return await database.load()

        receipt = await cache.publish(Saved(row=1))
        server._process.send_signal(signal.SIGSTOP)
        assert [await load(), await load()] == ["old", "old"]  # the second from the outage's store
        assert database.reads <= 2
        database.row = "new"
        async with cache.after(receipt, timeout=0.1):
            assert await load() == "new"
        database.row = "newer"
        async with cache.after(receipt, timeout=0.1):
            assert await load() == "newer"


async def test_a_frozen_server_opens_the_breaker_so_that_later_blocks_do_not_wait(new_server, database, eventually):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:
        receipt = await cache.publish(Saved(row=1))
        server._process.send_signal(signal.SIGSTOP)
        async with cache.after(receipt, timeout=0.05):
            assert cache.scopes.rule() is Rule.DIRECT
        await eventually(lambda: not cache.reader().breaker.closed, "the breaker to open")
        async with cache.after(receipt, timeout=600):
            assert cache.scopes.rule() is Rule.DIRECT


async def test_redis_that_goes_away_inside_has_reads_load_although_the_outage_has_a_value(new_server, database):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2, outage_ttl=60) as cache:

        @cache.cached(key="row", tags=[TAG])
        async def load() -> str:
            return await database.load()

        receipt = await change(database, cache)
        await Worker(cache).apply(receipt)
        async with cache.after(receipt):
            assert cache.scopes.rule() is Rule.FRESH
            server._process.send_signal(signal.SIGSTOP)
            assert await load() == "new"
            database.row = "newer"
            assert await load() == "newer"


async def test_in_memory_reads_inside_load(database):
    async with Cache("memory://") as cache:

        @cache.cached(key="row", tags=[TAG], local_ttl=60)
        async def load() -> str:
            return await database.load()

        await load()
        receipt = await change(database, cache)
        async with cache.after(receipt):
            assert await load() == "new"
        assert await load() == "old"


async def test_the_commands_of_a_cache_read_by_it_too(cache, database, worker):
    async def load() -> str:
        return await database.load()

    async def load_many(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, await database.load())

    await cache.get_or_set("one", load, tags=[TAG])
    await cache.get_or_set_many(["two"], load_many, tags=[TAG])
    receipt = await change(database, cache)
    async with cache.after(receipt, timeout=0):
        assert await cache.get("one") is None
        assert await cache.get_many(["one", "two"]) == {"one": None, "two": None}
        assert await cache.get_or_set("one", load, tags=[TAG]) == "new"
        assert await cache.get_or_set_many(["two"], load_many, tags=[TAG]) == {"two": "new"}
    assert await cache.get_many(["one", "two"]) == {"one": "old", "two": "old"}
    await worker.apply(receipt)
    async with cache.after(receipt):
        assert await cache.get_many(["one", "two"]) == {"one": None, "two": None}
        assert await cache.get_or_set("one", load, tags=[TAG]) == "new"
        assert await cache.get_or_set_many(["two"], load_many, tags=[TAG]) == {"two": "new"}
        assert await cache.get_many(["one", "two"]) == {"one": "new", "two": "new"}


async def test_refresh_inside_loads_and_fills(cache, database, worker):
    @cache.cached(key="row", tags=[TAG])
    async def load() -> str:
        return await database.load()

    await load()
    receipt = await change(database, cache)
    async with cache.after(receipt, timeout=0):
        assert await load.refresh() == "new"
    await worker.apply(receipt)
    async with cache.after(receipt):
        assert await load.refresh() == "new"
    reads = database.reads
    assert await load() == "new"
    assert database.reads == reads


# Who is inside


async def test_two_tasks_have_each_their_own(cache, worker):
    applied, lost = await cache.publish(Saved(row=1)), await cache.publish(Saved(row=2))
    await worker.apply(applied)
    rules, both, go = {}, asyncio.Barrier(3), asyncio.Event()

    async def task(name, *receipts):
        if receipts:
            async with cache.after(*receipts, timeout=0):
                await both.wait()
                rules[name] = cache.scopes.rule()
                await go.wait()
        else:
            await both.wait()
            rules[name] = cache.scopes.rule()
            await go.wait()

    # `lost` was read with the other, and never acknowledged.
    tasks = [
        asyncio.create_task(task("applied", applied)),
        asyncio.create_task(task("lost", lost)),
        asyncio.create_task(task("none")),
    ]
    while len(rules) < 3:
        await asyncio.sleep(0)
    assert (rules, cache.scopes.open) == ({"applied": Rule.FRESH, "lost": Rule.DIRECT, "none": None}, 2)
    go.set()
    await asyncio.gather(*tasks)
    assert cache.scopes.open == 0


async def test_blocks_nest_and_the_strictest_counts(cache, worker):
    applied, lost = await cache.publish(Saved(row=1)), await cache.publish(Saved(row=2))
    await worker.apply(applied)
    async with cache.after(applied):
        async with cache.after(lost, timeout=0):
            async with cache.after(applied):
                assert cache.scopes.rule() is Rule.DIRECT
            assert cache.scopes.rule() is Rule.DIRECT
        assert cache.scopes.rule() is Rule.FRESH
    for events in ((applied, lost), (lost, applied)):
        async with cache.after(*events, timeout=0):
            assert cache.scopes.rule() is Rule.DIRECT
        with cache.sync.after(*events, timeout=0):
            assert cache.scopes.rule() is Rule.DIRECT
    assert cache.scopes.rule() is None


async def test_a_task_that_was_started_inside_is_inside_until_the_block_ends(cache, worker):
    receipt = await cache.publish(Saved(row=1))
    await worker.apply(receipt)
    go, rules = asyncio.Event(), []

    async def child():
        rules.append(cache.scopes.rule())
        await go.wait()
        rules.append(cache.scopes.rule())

    async with cache.after(receipt):
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
    go.set()
    await task
    assert rules == [Rule.FRESH, None]


async def test_another_cache_is_not_concerned(cache, worker):
    receipt = await cache.publish(Saved(row=1))
    async with cache.after(receipt, timeout=0):
        assert worker.cache.scopes.rule() is None


async def test_a_block_that_is_left_in_another_context_has_ended_all_the_same(cache, worker):
    """As a dependency of a web framework may be, whose two halves run in two tasks."""
    receipt = await cache.publish(Saved(row=1))
    await worker.apply(receipt)
    block = cache.after(receipt)
    await asyncio.create_task(block.__aenter__())
    assert cache.scopes.open == 1
    await asyncio.create_task(block.__aexit__(None, None, None))
    assert (cache.scopes.open, cache.scopes.rule()) == (0, None)


async def test_what_is_raised_inside_leaves_the_block(cache):
    with pytest.raises(LookupError):
        async with cache.after():
            raise LookupError
    assert cache.scopes.open == 0


async def test_cancelled_while_it_waits_it_leaves_nothing_behind(cache):
    receipt = await cache.publish(Saved(row=1))

    async def enter():
        async with cache.after(receipt, timeout=60):
            pytest.fail("it was cancelled")

    task = asyncio.create_task(enter())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cache.scopes.open == 0


# Threads


async def test_threads_have_blocks_of_their_own(deaf, database, worker):
    rows = ["old"]

    @deaf.cached(key="row", tags=[TAG], local_ttl=60)
    def load() -> str:
        return rows[0]

    sync = deaf.sync
    assert await asyncio.to_thread(load) == "old"
    rows[0] = "new"
    receipt = await asyncio.to_thread(sync.publish, Saved(row=1))
    await worker.apply(receipt)
    inside, leave, found = threading.Event(), threading.Event(), []

    def reader():
        with sync.after(receipt):
            found.append(load())
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=reader)
    thread.start()
    await asyncio.to_thread(inside.wait, 10)
    assert (deaf.scopes.open, deaf.scopes.rule()) == (1, None)
    leave.set()
    await asyncio.to_thread(thread.join)
    assert (found, deaf.scopes.open) == (["new"], 0)


async def test_in_threads_too_what_is_not_applied_is_loaded(cache):
    rows = ["old"]

    @cache.cached(key="row", tags=[TAG])
    def load() -> str:
        return rows[0]

    def loaded(keys: list[str]) -> dict[str, str]:
        return dict.fromkeys(keys, rows[0])

    def run():
        load()
        cache.sync.get_or_set("one", load.uncached)
        rows[0] = "new"
        receipt = cache.sync.publish(Saved(row=1))
        with cache.sync.after(receipt, timeout=0):
            return [
                load(),
                cache.sync.get("one"),
                cache.sync.get_or_set("one", load.uncached),
                cache.sync.get_or_set_many(["one"], loaded),
            ]

    assert await asyncio.to_thread(run) == ["new", None, "new", {"one": "new"}]


async def test_in_threads_too_no_stale_value_is_served(cache, worker):
    rows = ["old"]

    @cache.cached(key="row", tags=[TAG], max_staleness=60)
    def load() -> str:
        return rows[0]

    await asyncio.to_thread(load)
    rows[0] = "new"
    receipt = await asyncio.to_thread(cache.sync.publish, Saved(row=1))
    await worker.apply(receipt)

    def read():
        with cache.sync.after(receipt):
            return load()

    assert await asyncio.to_thread(read) == "new"


def test_in_threads_too_redis_that_goes_away_inside_has_reads_load(new_server):
    server, rows = new_server(), ["old"]
    cache = Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2, outage_ttl=60)

    @cache.cached(key="row", tags=[TAG])
    def load() -> str:
        return rows[0]

    with cache.sync as sync, redis.Redis(port=server.port) as client:
        receipt = sync.publish(Saved(row=1))
        client.xgroup_create("events", "tidings", id="0")
        client.xreadgroup("tidings", "me", {"events": ">"})
        client.xack("events", "tidings", receipt.id)
        with sync.after(receipt):
            assert cache.scopes.rule() is Rule.FRESH
            server._process.send_signal(signal.SIGSTOP)
            assert [load(), load()] == ["old", "old"]
            rows[0] = "new"
            assert load() == "new"
        assert [load(), load()] == ["new", "new"]
        rows[0] = "newer"
        assert load() == "new", "outside, the outage's store serves"
        with sync.after(receipt, timeout=600):  # the breaker is open: it does not wait
            assert load() == "newer"


async def test_a_plain_function_called_in_a_thread_of_a_block_is_inside(cache, worker):
    receipt = await cache.publish(Saved(row=1))
    await worker.apply(receipt)
    async with cache.after(receipt):
        assert await asyncio.to_thread(cache.scopes.rule) is Rule.FRESH


async def test_sync_after_waits_for_the_event(cache, worker):
    receipt = await cache.publish(Saved(row=1))

    def enter():
        with cache.sync.after(receipt.reference, timeout=30):
            return cache.scopes.rule()

    entering = asyncio.create_task(asyncio.to_thread(enter))
    await worker.apply(receipt)
    assert await entering is Rule.FRESH


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_counts_the_blocks_around_it_alone(cache, worker):
    receipt = await cache.publish(Saved(row=1))
    await worker.apply(receipt)
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with cache.sync.after(receipt):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    await asyncio.to_thread(entered.wait, 10)
    async with cache.after(receipt):
        assert cache.scopes.open == 2
        cache.scopes._forked()
        assert cache.scopes.open == 1
        cache.scopes.open = 2
    leave.set()
    await asyncio.to_thread(thread.join)


# References


async def test_a_reference_does_what_its_receipt_does(cache, worker):
    receipt = await cache.publish(Saved(row=1))
    assert receipt.reference == receipt.id
    async with cache.after(receipt.reference, timeout=0):
        assert cache.scopes.rule() is Rule.DIRECT
    await worker.apply(receipt)
    async with cache.after(receipt.reference, None):
        assert cache.scopes.rule() is Rule.FRESH


async def test_no_event_is_nothing_to_wait_for(cache):
    for block in (cache.after(), cache.after(None)):
        async with block:
            assert cache.scopes.rule() is None
    with cache.sync.after(None):
        assert cache.scopes.rule() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1",
        "1-",
        "-1",
        "1-1 ",
        "1-1\n",
        "+1-1",
        "1:1",
        "0:1-1",
        "1:2:3-4",
        "\u0661-\u0661",
        f"{1 << 64}-0",
        "9" * 99,
        7,
        b"1-1",
    ],
)
async def test_hostile_text_is_an_argument_error(cache, text):
    with pytest.raises(ArgumentError):
        cache.after(text)
    with pytest.raises(ArgumentError):
        cache.sync.after(text)


async def test_an_event_of_another_prefix_is_an_argument_error(url, cache):
    async with Cache(url, prefix="else") as other:
        receipt = await other.publish(Saved(row=1))
    with pytest.raises(ArgumentError, match="else:events"):
        cache.after(receipt)


async def test_one_id_in_two_partitions_is_two_events(url):
    """Both partitions have an entry with the same id; one is applied."""
    async with Cache(url, partitions=2) as cache:
        worker = Worker(cache)
        first = await cache.publish(Saved(row=1), subject="a")
        streams = cache.keys.streams(2)[1:]
        own = streams.index(first.stream)
        other = streams[1 - own]
        await worker.client.xadd(other.events, {"type": "test.after_saved", "data": '{"row":2}'}, id=first.id)
        await worker.client.xgroup_create(other.events, "tidings", id="0")
        assert first.reference == f"{own}:{first.id}"
        await worker.apply(first)
        async with cache.after(f"{own}:{first.id}"):
            assert cache.scopes.rule() is Rule.FRESH
        async with cache.after(f"{1 - own}:{first.id}", timeout=0.06):
            assert cache.scopes.rule() is Rule.DIRECT
        with pytest.raises(ArgumentError, match="partition 2"):
            cache.after(f"2:{first.id}")
