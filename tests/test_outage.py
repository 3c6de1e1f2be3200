"""Redis away: reads load and are right, whoever changes something hears that it failed, recovery costs no caller."""

import asyncio
import os
import signal
import threading
import warnings
from functools import partial

import pytest
import redis
from structlog.testing import capture_logs
from tidings import Cache, Event
from tidings.errors import InvalidationError, PublishError, UnavailableError

DEADLINE = 0.25


class Happened(Event, type="outage.happened"):
    x: int


class Service:
    """A cache on a server of its own, which can be harmed, and a function that says how often it was loaded."""

    def __init__(self, server, **options):
        self.server = server
        self.url = f"redis://127.0.0.1:{server.port}"
        self.cache = Cache(self.url, operation_timeout=DEADLINE, **options)
        self.loads = 0

        @self.cache.cached(namespace="n", tags=["t:{x}"])
        async def load(x: int) -> list[int]:
            self.loads += 1
            return [x, self.loads]

        @self.cache.cached(namespace="n", tags=["t:{x}"])
        def blocking(x: int) -> list[int]:
            self.loads += 1
            return [x, self.loads]

        self.load = load
        self.blocking = blocking

    @property
    def breaker(self):
        return self.cache._shared.breaker

    def freeze(self):
        self.server._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.server._process.send_signal(signal.SIGCONT)

    def kill(self):
        self.server._process.kill()
        self.server._process.wait()


@pytest.fixture
async def new_service(new_server):
    made = []

    def make(**options):
        made.append(Service(new_server(), **options))
        return made[-1]

    yield make
    for service in made:
        service.thaw()
        await service.cache.aclose(drain_timeout=5)


@pytest.fixture
def service(new_service):
    return new_service()


@pytest.fixture
def kept(new_service):
    """A service with an outage store."""
    return new_service(outage_ttl=60)


def events(logs):
    return [entry["event"] for entry in logs]


@pytest.mark.parametrize("harm", ["freeze", "kill"])
@pytest.mark.parametrize("connected", [True, False])
async def test_reads_load_and_say_so_once_and_are_counted(service, harm, connected):
    if connected:
        await service.load(0)
        service.blocking(0)
    with capture_logs() as logs:
        getattr(service, harm)()
        assert [(await service.load(1))[0] for _ in range(3)] == [1] * 3
        assert [service.blocking(2)[0] for _ in range(3)] == [2] * 3
        assert await service.cache.get("k", default="none") == "none"
        assert await service.cache.get_many(["k"], default="none") == {"k": "none"}
    assert events(logs) == ["cache_unavailable"]
    assert service.cache.stats()["n"]["errors"] == 1
    assert service.cache.stats()["n"]["direct"] == 6


async def test_reads_under_way_when_it_freezes_all_load_and_wait_for_one_deadline_alone(service):
    await service.load(0)
    with capture_logs() as logs:
        service.freeze()
        threads = [asyncio.to_thread(service.blocking, x) for x in range(4)]
        answers = await asyncio.gather(*(service.load(x) for x in range(50)), *threads)
    assert [x for x, _ in answers] == [*range(50), *range(4)]
    assert events(logs) == ["cache_unavailable"]


async def test_recovery_is_found_without_a_caller_and_said_once(service, eventually):
    await service.load(1)
    with capture_logs() as logs:
        service.freeze()
        await service.load(1)
        service.thaw()
        await eventually(lambda: service.breaker.closed, "the recovery")
        await eventually(lambda: len(logs) == 2)
        service.loads = 0
        await service.load(1)
    assert events(logs) == ["cache_unavailable", "cache_available"]
    assert service.loads == 0, "it was cached all the while"


async def test_changes_raise_while_it_is_away_and_work_at_once_when_it_is_back(service):
    cache = service.cache
    await service.load(1)
    await cache.reader().flights.drain()
    service.freeze()
    for change in (
        cache.invalidate_tags("t:1"),
        cache.delete("k"),
        cache.invalidate_pattern("*"),
        cache.invalidate_all(),
    ):
        with pytest.raises(InvalidationError):
            await change
    with pytest.raises(PublishError):
        await cache.publish(Happened(x=1))
    with pytest.raises(InvalidationError):
        await asyncio.to_thread(cache.sync.invalidate_tags, "t:1")
    assert service.breaker.closed, "who asked for a change was told; the breaker is the reads'"
    await service.load(1)
    assert not service.breaker.closed
    service.thaw()
    before = service.loads
    await cache.invalidate_tags("t:1")
    assert service.breaker.closed, "it is what has noticed"
    await service.load(1)
    assert service.loads == before + 1
    await cache.publish(Happened(x=1))


async def test_a_server_out_of_memory_serves_what_it_has_and_loads_the_rest(service, eventually):
    await service.load(1)
    with redis.Redis.from_url(service.url) as client, capture_logs() as logs:
        client.config_set("maxmemory", "1")
        assert await asyncio.gather(*(service.load(1) for _ in range(3))) == [[1, 1]] * 3
        assert [x for x, _ in await asyncio.gather(*(service.load(2) for _ in range(20)))] == [2] * 20
        assert (await asyncio.to_thread(service.blocking, 2))[0] == 2
        with pytest.raises(InvalidationError):
            await service.cache.invalidate_tags("t:1")
        assert events(logs) == ["cache_refused"]
        client.config_set("maxmemory", "0")
        await service.load(3)
        await eventually(lambda: len(logs) == 2)
        assert events(logs) == ["cache_refused", "cache_accepted"]
    assert service.breaker.closed


async def test_a_server_that_became_a_replica_serves_and_loads_and_is_said_once(service):
    await service.load(1)
    with redis.Redis.from_url(service.url) as client, capture_logs() as logs:
        client.config_set("replica-serve-stale-data", "yes")
        client.replicaof("127.0.0.1", 1)
        for _ in range(5):
            answers = await asyncio.gather(*(service.load(x % 4) for x in range(20)))
            assert [x for x, _ in answers] == [x % 4 for x in range(20)]
        with pytest.raises(InvalidationError):
            await service.cache.invalidate_tags("t:1")
        said = events(logs)
        client.replicaof("NO", "ONE")
    assert said.count("cache_refused") == 1
    assert said == ["cache_refused"], said


async def test_a_callers_timeout_ends_a_read_of_a_frozen_server(new_service):
    service = new_service()
    await service.cache.aclose()
    service.cache = cache = Cache(service.url, operation_timeout=30)

    @cache.cached()
    async def load() -> int:
        return 1

    await load()
    await cache.reader().flights.drain(5)
    service.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await load()
    service.thaw()
    assert await load() == 1


async def test_a_load_that_fails_while_redis_is_away_raises_its_own_error(service):
    @service.cache.cached(stale_if_error=60)
    async def load() -> int:
        if fails:
            raise ValueError("no row")
        return 1

    fails = False
    await load()
    service.kill()
    fails = True
    for _ in range(2):
        with pytest.raises(ValueError, match="no row"):
            await load()


async def test_without_an_outage_store_every_read_loads(service):
    await service.load(1)
    service.kill()
    before = service.loads
    for _ in range(3):
        await service.load(1)
    assert service.loads == before + 3


async def test_an_outage_store_keeps_what_was_loaded_in_the_outage(kept):
    await kept.load(1)
    kept.kill()
    await kept.load(2)  # it finds out
    before = kept.loads
    first, second = await kept.load(1), await kept.load(1)
    assert first == second
    assert first is not second, "each caller has a value of its own"
    assert kept.loads == before + 1
    assert await asyncio.to_thread(kept.blocking, 1) == await asyncio.to_thread(kept.blocking, 1)


@pytest.mark.parametrize("how", ["tag", "namespace", "all", "entry", "pattern", "thread"])
async def test_an_outage_store_respects_this_processs_own_invalidations(kept, how):
    cache = kept.cache
    kept.kill()
    await kept.load(1)
    first = await kept.load(1)
    assert await kept.load(1) == first
    invalidate = {
        "tag": partial(cache.invalidate_tags, "t:1"),
        "namespace": partial(cache.invalidate_namespace, "n"),
        "all": cache.invalidate_all,
        "entry": partial(kept.load.invalidate, 1),
        "pattern": partial(cache.invalidate_pattern, "*", namespace="n"),
        "thread": partial(asyncio.to_thread, cache.sync.invalidate_pattern, "*", namespace="n"),
    }[how]
    with pytest.raises(InvalidationError):
        await invalidate()
    assert await kept.load(1) != first


async def test_a_load_that_an_invalidation_of_the_outage_overtakes_is_not_kept(kept):
    kept.kill()
    await kept.load(0)
    gate, begun, rows = asyncio.Event(), asyncio.Event(), ["old"]

    @kept.cache.cached(tags=["row"])
    async def load() -> str:
        row = rows[0]
        begun.set()
        await gate.wait()
        return row

    loading = asyncio.create_task(load())
    await asyncio.wait_for(begun.wait(), 10)
    rows[0] = "new"
    with pytest.raises(InvalidationError):
        await kept.cache.invalidate_pattern("*")
    with pytest.raises(InvalidationError):
        await kept.cache.invalidate_tags("row")
    gate.set()
    assert await loading == "old"
    assert await load() == "new"


async def test_an_outage_store_is_dropped_at_recovery_and_not_asked_again(kept, eventually):
    await kept.load(1)
    kept.freeze()
    await kept.load(1)
    await kept.load(1)
    kept.thaw()
    await eventually(lambda: kept.breaker.closed)
    await eventually(lambda: not kept.cache._shared.outage._values, "nothing kept")
    assert await kept.load(1) == [1, 1], "what Redis has"
    assert not kept.cache._shared.outage._values


async def test_an_outage_store_holds_no_more_bytes_than_it_may(new_service):
    service = new_service(outage_ttl=60, outage_max_bytes=10_000)
    service.kill()

    @service.cache.cached()
    async def load(x: int) -> str:
        return "x" * 1000

    for x in range(100):
        await load(x)
    store = service.cache._shared.outage
    assert 0 < sum(len(value) for value, _ in store._values.values()) <= 10_000


async def test_an_outage_store_keeps_a_value_no_longer_than_it_may(new_service):
    service = new_service(outage_ttl=5)
    service.kill()
    await service.load(0)
    first = await service.load(1)
    assert await service.load(1) == first
    store = service.cache._shared.outage
    later = store.clock() + 6
    store.clock = lambda: later
    assert await service.load(1) != first


async def test_the_local_tier_is_not_served_beyond_its_bound_in_an_outage(service, eventually):
    @service.cache.cached(local_ttl=60)
    async def load() -> int:
        service.loads += 1
        return service.loads

    await load()
    tier = service.cache.tier
    await eventually(lambda: tier.clock() < tier.alive_until, "a tail")
    await load.refresh()
    await load()
    assert service.cache.stats()["default"]["local_hits"]
    service.kill()
    await eventually(lambda: tier.clock() >= tier.alive_until, "the loss of the tail")
    before = service.loads
    assert await load() == before + 1


def test_many_event_loops_share_one_breaker_and_each_reads_right(new_service_sync):
    service = new_service_sync
    service.kill()
    answers = []

    def run():
        async def main():
            answers.extend(await asyncio.gather(*(service.load(x) for x in range(5))))
            await service.cache.aclose()

        asyncio.run(main())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(x for x, _ in answers) == sorted([*range(5)] * 4)


@pytest.fixture
def new_service_sync(new_server):
    service = Service(new_server(), outage_ttl=60)
    yield service
    service.thaw()
    service.cache.sync.close()
    service.cache._shared.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_in_an_outage_reads_and_finds_the_recovery_by_itself(new_service_sync, until):
    service = new_service_sync
    service.blocking(1)
    service.freeze()
    service.blocking(1)
    memory = service.cache._shared.outage
    with memory._lock, warnings.catch_warnings():  # as if another thread were in it
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if service.blocking(7)[0] == 7 and service.blocking(7)[0] == 7 else 2
            finally:
                os._exit(code)
    done = until(lambda: (found := os.waitpid(child, os.WNOHANG))[0] and found, "the child")
    assert os.waitstatus_to_exitcode(done[1]) == 0


# --- what is said and counted


async def test_a_server_that_refuses_is_not_taken_for_one_that_accepts_because_it_answers(service):
    with redis.Redis.from_url(service.url) as client, capture_logs() as logs:
        await service.load(0)
        client.config_set("maxmemory", "1")
        for x in range(1, 4):
            await service.load(x)
            health = await service.cache.health()
            assert (health["ok"], health["reads"], health["refusing"]) == (True, "cached", True)
            await asyncio.to_thread(service.cache.sync.health)
        assert events(logs) == ["cache_refused"]
        client.config_set("maxmemory", "0")
        await service.cache.set("k", 1)
        assert not (await service.cache.health())["refusing"]
    assert events(logs) == ["cache_refused", "cache_accepted"]


async def test_setting_does_not_wait_for_a_server_that_is_known_to_be_away_but_invalidating_tries(service):
    await service.load(1)
    service.freeze()
    await service.load(1)
    assert not service.breaker.closed
    asked = []
    run = service.cache.reader().store.run

    async def noted(operation, *, bulk=False):
        asked.append(operation)
        return await run(operation, bulk=bulk)

    service.cache.reader().store.run = noted
    for store in (service.cache.set("k", 1), service.cache.set_many({"k": 1})):
        with pytest.raises(UnavailableError, match="is away"):
            await store
    with pytest.raises(UnavailableError, match="is away"):
        await asyncio.to_thread(service.cache.sync.set, "k", 1)
    assert not asked
    with pytest.raises(InvalidationError):
        await service.cache.delete("k")
    assert asked


async def test_loads_past_a_server_that_is_away_are_counted(service):
    service.kill()

    async def many(missing):
        return dict.fromkeys(missing, 1)

    for x in range(2):
        await service.load(x)
        service.blocking(x)
    found = service.cache.stats()["n"]
    assert (found["loads"], found["load_errors"], found["direct"]) == (4, 0, 4)
    await service.cache.get_or_set_many(["a", "b"], many)
    assert service.cache.stats()["default"]["loads"] == 1

    @service.cache.cached(namespace="failing")
    async def failing() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        await failing()
    found = service.cache.stats()["failing"]
    assert (found["loads"], found["load_errors"]) == (1, 1)


async def test_a_server_that_goes_away_in_the_middle_of_a_batch_is_one_counted_load(service):
    async def many(missing):
        return dict.fromkeys(missing, 1)

    service.kill()
    assert await service.cache.get_or_set_many(["a", "b"], many) == {"a": 1, "b": 1}
    assert service.cache.stats()["default"]["loads"] == 1


async def test_a_line_names_its_server_once(service):
    service.kill()
    with capture_logs() as logs:
        await service.load(1)
    assert logs[0]["server"] == service.cache.telemetry.server
    assert not logs[0]["error"].startswith(logs[0]["server"])
