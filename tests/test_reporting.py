"""What processes add to the counts of all: every read once, whatever becomes of answers, processes and Redis."""

import asyncio
import gc
import os
import threading
from collections import Counter

import pytest
from structlog.testing import capture_logs
from tidings import Cache
from tidings.counting import COUNTERS
from tidings.errors import ConfigurationError, UnavailableError
from tidings.keys import Keyspace
from tidings.operations import AddCounts
from tidings.reporting import KEPT_SECONDS, PROCESS_MARK, WINDOW_SECONDS, Reporter, window_at
from tidings.settings import Settings
from tidings.store import SyncRedisStore
from tidings.telemetry import Telemetry

#: For caches that report when they are told to, or closed.
SELDOM = 3600


def told(client, pattern="stats:*") -> dict[str, int]:
    """Return what all processes have told, of all windows together."""
    sums = Counter()
    for key in client.scan_iter(pattern):
        for name, value in client.hgetall(key).items():
            if not name.startswith(PROCESS_MARK.encode()):
                sums[name.decode()] += int(value)
    return dict(sums)


def processes(client) -> set[bytes]:
    return {name for key in client.scan_iter("stats:*") for name in client.hkeys(key) if name.startswith(b":")}


def report_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tidings-report"]


def reads(cache, *numbers: int, namespace: str = "reported") -> None:
    """Read from a thread."""
    for number in numbers:
        assert cache.sync.get_or_set(f"key:{number}", lambda number=number: number, namespace=namespace) == number


class Deaf:
    """A store that carries operations out; of the first so many the answers are lost."""

    def __init__(self, url: str, lost: int) -> None:
        self._store = SyncRedisStore.connect(Settings(url=url))
        self._lost = lost

    def run(self, operation):
        reply = self._store.run(operation)
        if self._lost:
            self._lost -= 1
            raise UnavailableError("no answer")
        return reply

    def close(self) -> None:
        self._store.close()


@pytest.fixture
def make_cache(url):
    """Make caches, each as another process would have it; they are closed at the end."""
    made = []

    def make(**options) -> Cache:
        made.append(Cache(url, **{"report_interval": SELDOM, "hot_sample": 0, **options}))
        return made[-1]

    yield make
    for cache in made:
        cache.sync.close()


@pytest.fixture
def make_reporter(url):
    """Make a reporter of a telemetry of its own."""
    made = []

    def make(*, clock=lambda: 0.0, make_store=None, **options) -> tuple[Telemetry, Reporter]:
        telemetry = Telemetry("server")
        connect = make_store or (lambda: SyncRedisStore.connect(Settings(url=url)))
        made.append(Reporter(telemetry, Keyspace(), connect, SELDOM, clock=clock, **options))
        return telemetry, made[-1]

    yield make
    for reporter in made:
        reporter.stop()


# What is told


def test_what_two_processes_have_counted_is_added_up_when_they_close(make_cache, client):
    first, second = make_cache(), make_cache()
    reads(first, 1, 2, 1)
    reads(second, 1, 3, namespace="reported")
    reads(second, 1, namespace="reported-too")
    first.sync.close()
    second.sync.close()
    found = told(client)
    assert {name: found[f"reported:{name}"] for name in ("hits", "misses", "loads", "fills", "load_us:count")} == {
        "hits": 2,
        "misses": 3,
        "loads": 3,
        "fills": 3,
        "load_us:count": 3,
    }
    assert found["reported-too:misses"] == 1
    assert len(processes(client)) == 2


def test_every_counter_of_stats_is_told_and_none_that_is_zero(make_reporter, client):
    telemetry, reporter = make_reporter()
    counts = telemetry.of("reported", "f")
    for amount, name in enumerate(COUNTERS):
        setattr(counts, name, amount)
    counts.load_us.add(1500)
    counts.load_us.add(500)
    counts.age_s.add(30)
    reporter.report()
    assert told(client) == {
        **{f"reported:{name}": amount for amount, name in enumerate(COUNTERS) if amount},
        "reported:load_us": 2000,
        "reported:load_us:count": 2,
        "reported:age_s": 30,
        "reported:age_s:count": 1,
    }


def test_functions_of_one_namespace_are_told_together(make_reporter, client):
    telemetry, reporter = make_reporter()
    telemetry.of("reported", "f").hits = 2
    telemetry.of("reported", "g").hits = 3
    reporter.report()
    assert told(client) == {"reported:hits": 5}


def test_more_than_one_exchange_can_hold_is_told_as_well(make_reporter, client):
    telemetry, reporter = make_reporter()
    for number in range(2500):
        telemetry.of(f"reported-{number}", "f").hits = number + 1
    reporter.report()
    reporter.report()
    assert told(client) == {f"reported-{number}:hits": number + 1 for number in range(2500)}


def test_each_report_has_only_what_is_new(make_reporter, client):
    telemetry, reporter = make_reporter()
    counts = telemetry.of("reported", "f")
    for hits in (1, 1, 5, 9):
        counts.hits = hits
        reporter.report()
        assert told(client) == {"reported:hits": hits}


def test_nothing_is_sent_when_nothing_was_counted(make_reporter, client):
    _, reporter = make_reporter()
    reporter.report()
    reporter.stop()
    assert client.keys() == []


def test_a_reset_forgets_what_was_counted_here_and_loses_nothing_of_what_is_to_be_told(make_cache, client):
    cache = make_cache()
    reads(cache, 1, 1)
    cache._shared.reporter.report()
    reads(cache, 1)
    cache.reset_stats()
    assert cache.stats()["reported"]["hits"] == 0
    reads(cache, 1, 1)
    cache.sync.reset_stats()
    reads(cache, 1)
    cache.sync.close()
    assert told(client)["reported:hits"] == 5


def test_the_key_has_the_prefix(make_cache, client):
    cache = make_cache(prefix="app", version="v2")
    reads(cache, 1)
    cache.sync.close()
    assert told(client, "stats:*") == {}
    assert told(client, "app:stats:*")["reported:misses"] == 1


# Windows


def test_each_window_has_a_hash_of_its_own_which_expires(make_reporter, client):
    now = 5 * WINDOW_SECONDS - 1.0
    telemetry, reporter = make_reporter(clock=lambda: now)
    counts = telemetry.of("reported", "f")
    counts.hits = 1
    reporter.report()
    now += 1
    counts.hits = 4
    reporter.report()
    keys = client.keys()
    assert {key: client.hget(key, "reported:hits") for key in keys} == {b"stats:4": b"1", b"stats:5": b"3"}
    assert all(KEPT_SECONDS - 60 < client.ttl(key) <= KEPT_SECONDS for key in keys)


def test_a_window_is_known_by_its_number_and_how_much_of_it_is_over():
    assert window_at(3 * WINDOW_SECONDS) == (3, 0)
    assert window_at(4 * WINDOW_SECONDS - 1.5) == (3, WINDOW_SECONDS - 1.5)


# Answers that are lost, and a Redis that is away or refuses


def test_what_was_added_but_not_acknowledged_is_not_added_again(make_reporter, url, client):
    store = Deaf(url, lost=3)
    now = 0.0
    telemetry, reporter = make_reporter(make_store=lambda: store, clock=lambda: now)
    counts = telemetry.of("reported", "f")
    counts.hits = 2
    reporter.report()
    assert told(client) == {"reported:hits": 2}
    for hits in (3, 7, 7):  # the answers of the first two are lost, too
        counts.hits = hits
        now += WINDOW_SECONDS  # what is sent again goes where it went before
        reporter.report()
    assert told(client) == {"reported:hits": 7}


def test_a_report_that_the_server_reads_after_a_later_one_is_not_added_again(url, client):
    """It lay in the buffer of a connection that was given up while the server hung."""
    store = SyncRedisStore.connect(Settings(url=url))
    fifth, sixth = (AddCounts("stats:1", ":me", number, {"reported:hits": number}, 60_000) for number in (5, 6))
    assert [store.run(one) for one in (fifth, sixth, fifth, sixth)] == [True, True, False, False]
    assert told(client) == {"reported:hits": 11}
    store.close()


def test_while_redis_is_away_counts_are_kept_and_told_when_it_is_back(new_server):
    server = new_server()
    port = server.port
    telemetry = Telemetry("server")
    settings = Settings(url=f"redis://127.0.0.1:{port}")
    reporter = Reporter(telemetry, Keyspace(), lambda: SyncRedisStore.connect(settings), SELDOM)
    counts = telemetry.of("reported", "f")
    counts.hits = 1
    reporter.report()
    server.stop()
    for hits in (2, 3):
        counts.hits = hits
        reporter.report()
    new_server(port=port)
    reporter.report()
    with SyncRedisStore.connect(settings).client as client:
        assert told(client) == {"reported:hits": 2}  # the first went with the server that had it
    reporter.stop()


def test_nothing_is_asked_of_a_redis_that_is_known_to_be_away(make_reporter, url, client):
    away = True
    telemetry, reporter = make_reporter(there=lambda: not away)
    telemetry.of("reported", "f").hits = 1
    reporter.report()
    assert told(client) == {}
    away = False
    reporter.report()
    assert told(client) == {"reported:hits": 1}


def test_a_refusal_is_said_once_and_what_was_refused_is_told_in_a_later_window(make_reporter, client):
    client.set("stats:0", "somebody else's")
    now = 0.0
    telemetry, reporter = make_reporter(clock=lambda: now)
    counts = telemetry.of("reported", "f")
    with capture_logs() as logs:
        for hits in (1, 2, 3):
            counts.hits = hits
            reporter.report()
    assert [entry["event"] for entry in logs] == ["counts_refused"]
    assert "WRONGTYPE" in logs[0]["error"]
    now += WINDOW_SECONDS
    reporter.report()
    assert client.hget("stats:1", "reported:hits") == b"3"
    assert client.get("stats:0") == b"somebody else's"


def test_a_server_without_memory_adds_nothing_and_later_everything_once(make_reporter, new_server):
    server = new_server()
    address = f"redis://127.0.0.1:{server.port}"
    telemetry, reporter = make_reporter(make_store=lambda: SyncRedisStore.connect(Settings(url=address)))
    telemetry.of("reported", "f").hits = 3
    with SyncRedisStore.connect(Settings(url=address)).client as client:
        client.config_set("maxmemory", 1)
        with capture_logs() as logs:
            reporter.report()
        assert [entry["event"] for entry in logs] == ["counts_refused"]
        client.config_set("maxmemory", 0)
        reporter.report()
        assert told(client) == {"reported:hits": 3}


def test_a_field_that_holds_no_number_stays_as_it_is_and_the_others_are_added(make_reporter, client):
    client.hset("stats:0", "reported:hits", "many")
    telemetry, reporter = make_reporter()
    counts = telemetry.of("reported", "f")
    counts.hits, counts.misses = 2, 3
    reporter.report()
    assert client.hmget("stats:0", "reported:hits", "reported:misses") == [b"many", b"3"]


# When it is told


def test_counts_are_told_while_nobody_reads_any_more(make_cache, client, until):
    cache = make_cache(report_interval=0.05)
    reads(cache, 1, 1)
    until(lambda: told(client).get("reported:hits") == 1, "the report")
    reads(cache, 1)
    until(lambda: told(client).get("reported:hits") == 2, "the next report")


async def test_counts_of_an_event_loop_are_told_while_the_loop_is_busy(make_cache, client, until):
    cache = make_cache(report_interval=0.05)

    async def load() -> int:
        return 1

    await cache.get_or_set("key", load, namespace="reported")
    until(lambda: told(client).get("reported:loads") == 1, "the report")  # it blocks the loop
    await cache.aclose()


def test_several_event_loops_and_threads_of_a_process_have_one_thread_that_tells(make_cache, client):
    cache = make_cache()

    async def load() -> int:
        return 1

    async def use(number: int) -> None:
        assert await cache.get_or_set(f"key:{number}", load, namespace="reported") == 1
        await cache.reader().aclose()

    before = len(report_threads())
    for number in range(3):
        asyncio.run(use(number))
    reads(cache, 7)
    assert len(report_threads()) == before + 1
    cache.sync.close()
    assert told(client)["reported:loads"] == 4
    assert len(processes(client)) == 1


async def test_closing_tells_what_is_left_and_ends_the_thread(make_cache, client, eventually):
    before = report_threads()
    cache = make_cache()

    async def load() -> int:
        return 1

    await cache.get_or_set("key", load, namespace="reported")
    assert len(report_threads()) == len(before) + 1
    await cache.aclose()
    assert told(client)["reported:loads"] == 1
    await eventually(lambda: report_threads() == before, "the end of the thread")


def test_a_cache_that_is_used_after_it_was_closed_goes_on_telling(make_cache, client, until):
    cache = make_cache(report_interval=0.05)
    reads(cache, 1)
    cache.sync.close()
    reads(cache, 2)
    until(lambda: told(client).get("reported:loads") == 2, "the report")
    assert len(processes(client)) == 1


def test_a_cache_that_was_dropped_tells_what_is_left_and_its_thread_ends(url, client, until):
    before = report_threads()
    cache = Cache(url, report_interval=0.2, hot_sample=0)
    reads(cache, 1)
    assert len(report_threads()) == len(before) + 1
    cache.sync.reader.close()
    del cache
    gc.collect()
    until(lambda: report_threads() == before, "the end of the thread")
    assert told(client)["reported:loads"] == 1


def test_with_an_interval_of_0_nothing_is_told(make_cache, client):
    before = report_threads()
    cache = make_cache(report_interval=0)
    reads(cache, 1)
    assert report_threads() == before
    cache.sync.close()
    assert told(client) == {}


def test_a_cache_in_memory_tells_nobody():
    before = report_threads()
    cache = Cache("memory://", report_interval=0.01)
    reads(cache, 1)
    assert report_threads() == before
    cache.sync.close()


def test_a_process_that_only_publishes_or_invalidates_has_no_thread_for_it(make_cache):
    before = report_threads()
    make_cache().sync.invalidate_tags("user:1")
    assert report_threads() == before


# Forks


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_child_tells_its_own_counts_and_its_parent_the_others(make_cache, client, until):
    cache = make_cache(report_interval=0.3)
    reads(cache, 1, 2)
    child = os.fork()
    if not child:
        failed = 1
        try:
            assert report_threads() == []
            reads(cache, 1, 3)
            until(lambda: told(client).get("reported:loads") == 3, "the reports of both")
            assert cache.stats()["reported"]["loads"] == 3  # it has gone on from its parent's
            failed = 0
        finally:
            os._exit(failed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.sync.close()
    found = told(client)
    assert (found["reported:misses"], found["reported:hits"]) == (3, 1)
    assert len(processes(client)) == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_child_that_is_forked_in_the_midst_of_a_report_is_not_held_up(make_reporter, client):
    telemetry, reporter = make_reporter()
    telemetry.of("reported", "f").hits = 1
    with reporter._sending, reporter._lock:
        child = os.fork()
        if not child:
            telemetry.of("reported", "f").hits += 5
            reporter.report()
            os._exit(0 if told(client) == {"reported:hits": 5} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reporter.report()
    assert told(client) == {"reported:hits": 6}


# A cluster, and the setting


def test_a_cluster_adds_up_as_well(cluster):
    caches = [Cache(cluster.url, report_interval=SELDOM) for _ in range(2)]
    for cache in caches:
        reads(cache, 1, 1)
        cache._shared.reporter.report()
        reads(cache, 1)
        cache.sync.close()
    found = [told(node.client).get("reported:hits", 0) for node in cluster.nodes]
    assert sum(found) == 5


@pytest.mark.parametrize("interval", [-1, True, float("inf"), float("nan")])
def test_an_interval_that_is_no_time_is_refused(interval):
    with pytest.raises(ConfigurationError, match="REPORT_INTERVAL"):
        Cache("redis://localhost", report_interval=interval)


def test_the_environment_has_the_interval(monkeypatch):
    monkeypatch.setenv("TIDINGS_REPORT_INTERVAL", "0")
    assert Settings.load(development_server=False).report_interval == 0
    monkeypatch.delenv("TIDINGS_REPORT_INTERVAL")
    assert Settings.load(development_server=False).report_interval == 10
