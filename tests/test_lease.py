"""Leases: one load for all processes, waiters that wait cheaply, and leaders that die, fail or are overtaken."""

import asyncio
import signal
import sys
import threading

import pytest
import redis
from tidings import Cache

_CALLERS = """
import asyncio, sys
from tidings import Cache

async def main(url, callers):
    async with Cache(url, lease_ttl=float(sys.argv[3])) as cache:

        async def load() -> str:
            print("loads", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            return "loaded"

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        answers = await asyncio.gather(*(cache.get_or_set("1", load, tags=["t:1"]) for _ in range(callers)))
        print("done", set(answers), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


class Row:
    """What a cached function loads, and a gate at which the load waits."""

    def __init__(self):
        self.value = "old"
        self.loads = 0
        self.loading = asyncio.Event()
        self.gate = asyncio.Event()

    async def load(self):
        self.loads += 1
        value = self.value
        self.loading.set()
        await self.gate.wait()
        return value


class Service:
    """One process's cache of a row."""

    def __init__(self, url, **options):
        self.cache = Cache(url, lease_ttl=options.pop("lease_ttl", 60), **options)
        self.row = Row()

        @self.cache.cached(namespace="n", key="{x}", tags=["t:{x}"])
        async def load(x: int) -> str:
            return await self.row.load()

        self.load = load

    async def get(self, x):
        """Read under a key that programs, threads and `set` can name."""

        async def load() -> str:
            return await self.row.load()

        return await self.cache.get_or_set(str(x), load, tags=[f"t:{x}"])

    @property
    def waits(self):
        """Whether somebody waits here for a load elsewhere."""
        return bool(self.cache.reader()._wakes._board)


@pytest.fixture
async def services(url):
    """Services of one server, as if each were a process of its own: nothing is shared between their caches."""
    made = []

    def make(**options):
        made.append(Service(url, **options))
        return made[-1]

    yield make
    for service in made:
        service.row.gate.set()
        await service.cache.aclose(drain_timeout=5)


@pytest.fixture
def a(services):
    return services()


@pytest.fixture
def b(services):
    return services()


async def _leading(service):
    task = asyncio.create_task(service.load(1))
    await asyncio.wait_for(service.row.loading.wait(), 10)
    return task


async def _waiting(service, eventually, callers=1):
    tasks = [asyncio.create_task(service.load(1)) for _ in range(callers)]
    await eventually(lambda: service.waits, "a waiter")
    return tasks


def test_eight_hundred_cold_calls_of_four_processes_are_one_load_and_few_commands(new_server, new_shell, until):
    address = f"redis://127.0.0.1:{new_server().port}"
    shell = new_shell()
    processes = [shell.start_program(sys.executable, "-c", _CALLERS, address, "200", "60") for _ in range(4)]
    until(lambda: all("ready" in process.out for process in processes), "the processes")
    with redis.Redis.from_url(address) as client, client.monitor() as monitor:
        for process in processes:
            process.popen.stdin.write(b"go\n")
            process.popen.stdin.flush()
        until(lambda: any("loads" in process.out for process in processes), "a load")
        with redis.Redis.from_url(address) as other:
            until(lambda: len([c for c in other.client_list() if c["cmd"] == "xread"]) == 3, "three waiters")
        leader = next(process for process in processes if "loads" in process.out)
        leader.popen.stdin.write(b"go\n")
        leader.popen.stdin.flush()
        until(lambda: all("done" in process.out for process in processes), "the answers")
        with redis.Redis.from_url(address) as other:
            other.set("the end", 1)
        commands = []
        for seen in monitor.listen():
            if "the end" in seen["command"]:
                break
            name = seen["command"].split(" ")[0].upper()
            if seen["client_type"] != "lua" and name not in {"CLIENT", "HELLO", "INFO"}:
                commands.append((seen["client_port"], name))
    assert [process.out.count("loads") for process in processes].count(1) == 1
    assert sum(process.out.count("loads") for process in processes) == 1
    assert all("{'loaded'}" in process.out for process in processes)
    assert len(commands) < 4 * 10, commands


async def test_waiters_take_the_value_when_it_is_filled(a, b, eventually):
    leading = await _leading(a)
    waiting = await _waiting(b, eventually, callers=20)
    a.row.gate.set()
    assert await asyncio.wait_for(asyncio.gather(leading, *waiting), 10) == ["old"] * 21
    assert b.row.loads == 0


async def test_waiters_of_a_policy_that_asks_for_times_are_no_more_costly(url, client, eventually):
    async with Cache(url, lease_ttl=60) as cache, Cache(url, lease_ttl=60) as other:

        async def load(x: int) -> int:
            begun.set()
            await gate.wait()
            return x

        begun, gate = asyncio.Event(), asyncio.Event()
        one = cache.cached(stale_if_error=10)(load)
        two = other.cached(stale_if_error=10)(load)
        leading = asyncio.create_task(one(1))
        await asyncio.wait_for(begun.wait(), 10)
        waiting = [asyncio.create_task(two(1)) for _ in range(50)]
        await eventually(lambda: bool(other.reader()._wakes._board))
        client.config_resetstat()
        gate.set()
        assert set(await asyncio.wait_for(asyncio.gather(leading, *waiting), 10)) == {1}
        assert client.info("commandstats")["cmdstat_mget"]["calls"] == 1


async def test_a_leader_killed_in_its_load_is_followed_by_exactly_one_of_the_waiters(url, shell, services, eventually):
    leader = shell.start_program(sys.executable, "-c", _CALLERS, url, "1", "1.5")
    await eventually(lambda: "ready" in leader.out)
    leader.popen.stdin.write(b"go\n")
    leader.popen.stdin.flush()
    await eventually(lambda: "loads" in leader.out)
    leader.send(signal.SIGKILL)
    leader.wait()
    followers = [services() for _ in range(3)]
    waiting = [asyncio.create_task(follower.get(1)) for follower in followers for _ in range(3)]
    await eventually(lambda: all(follower.waits for follower in followers))
    await eventually(lambda: sum(follower.row.loads for follower in followers) == 1)
    for follower in followers:
        follower.row.gate.set()
    assert set(await asyncio.wait_for(asyncio.gather(*waiting), 10)) == {"old"}
    assert sum(follower.row.loads for follower in followers) == 1


async def test_a_load_that_raises_gives_its_lease_up_at_once(a, b, eventually):
    async def fail():
        a.row.loading.set()
        await a.row.gate.wait()
        raise ValueError("no row")

    a.row.load = fail
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    b.row.gate.set()
    a.row.gate.set()
    with pytest.raises(ValueError, match="no row"):
        await leading
    assert await asyncio.wait_for(waiting[0], 10) == "old"


async def test_a_load_that_is_cancelled_gives_its_lease_up_at_once(a, b, eventually):
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    b.row.gate.set()
    await a.cache.aclose(drain_timeout=0)
    with pytest.raises(asyncio.CancelledError):
        await leading
    assert await asyncio.wait_for(waiting[0], 10) == "old"


async def test_a_caller_cancelled_while_it_asks_for_the_lease_leaves_none_behind(a, client):
    a.row.gate.set()
    await a.cache.get("connect")
    sent = asyncio.Event()
    ask = a.cache.reader().store.run

    async def noticed(operation, **options):
        if type(operation).__name__ == "Open":
            sent.set()
        return await ask(operation, **options)

    a.cache.reader().store.run = noticed
    caller = asyncio.create_task(a.load(1))
    await asyncio.wait_for(sent.wait(), 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await a.cache.reader().flights.drain()
    assert not client.keys("lease:*"), "whether the load had begun or not"


async def test_who_reads_after_an_invalidation_does_not_wait_for_the_load_before_it(a, b):
    leading = await _leading(a)
    b.row.value = "new"
    b.row.gate.set()
    await b.cache.invalidate_tags("t:1")
    assert await asyncio.wait_for(b.load(1), 10) == "new"
    a.row.gate.set()
    assert await leading == "old"
    assert await asyncio.wait_for(b.load(1), 10) == "new"


@pytest.mark.parametrize("how", ["tag", "entry"])
async def test_who_waited_since_before_an_invalidation_waits_for_the_load_after_it(a, b, services, eventually, how):
    c = services()
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    await (c.cache.invalidate_tags("t:1") if how == "tag" else c.load.invalidate(1))
    c.row.value = "new"
    overtaking = await _leading(c)
    c.row.gate.set()
    assert await overtaking == "new"
    assert await asyncio.wait_for(waiting[0], 10) == "new", "nobody told it that the load has ended"
    assert b.row.loads == 0
    a.row.gate.set()
    await leading


async def test_a_refused_fill_lets_the_waiters_look_again_and_one_of_them_load(a, b, services, eventually):
    c = services()
    leading = await _leading(a)
    waiting = [*await _waiting(b, eventually, callers=5), *await _waiting(c, eventually, callers=5)]
    await a.load.invalidate(1)
    for service in (b, c):
        service.row.value = "new"
        service.row.gate.set()
    a.row.gate.set()
    assert await leading == "old"
    assert set(await asyncio.wait_for(asyncio.gather(*waiting), 10)) == {"new"}
    assert b.row.loads + c.row.loads == 1


@pytest.mark.parametrize("harm", ["deleted", "trimmed", "a string", "hostile", "flushed"])
async def test_a_stream_of_wakes_that_is_no_good_costs_nothing_but_time(url, client, services, eventually, harm):
    a, b = services(lease_ttl=1), services(lease_ttl=1)
    b.row.gate.set()
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    wakes = a.cache.keys.wakes
    if harm == "flushed":
        client.flushall()
    client.delete(wakes)
    if harm == "trimmed":
        client.xadd(wakes, {"key": "x"}, maxlen=0)
    elif harm == "a string":
        client.set(wakes, b"\xff")
    elif harm == "hostile":
        client.xadd(wakes, {b"\xff\x00": b"\xfe", b"key": b"\xff\xfe"})
        client.xadd(wakes, {b"other": b""})
    a.row.gate.set()
    assert await asyncio.wait_for(leading, 10) == "old"
    assert await asyncio.wait_for(waiting[0], 10) == "old"
    await a.cache.reader().flights.drain(5)
    assert await asyncio.wait_for(services().load(1), 10) == "old", "it was stored"


@pytest.mark.parametrize("held", [b"", b"x", b"\xff" * 500, b" w", "list"])
async def test_hostile_bytes_in_place_of_a_lease_hold_nobody_up(client, a, held):
    lease = a.cache.keys.lease("default", "1")
    a.row.gate.set()
    if held == "list":
        client.lpush(lease, "x")
    else:
        client.set(lease, held)
    assert await asyncio.wait_for(a.get(1), 10) == "old"
    await a.cache.reader().flights.drain(5)
    assert a.row.loads == 1
    assert not client.exists(lease), "it was taken over, and ended with the load"


async def test_a_lease_without_an_end_is_nobodys(client, a, b):
    leading = asyncio.create_task(a.get(1))
    await asyncio.wait_for(a.row.loading.wait(), 10)
    assert client.persist(a.cache.keys.lease("default", "1"))
    b.row.gate.set()
    assert await asyncio.wait_for(b.get(1), 10) == "old"
    a.row.gate.set()
    await leading


def _listening(client) -> int:
    return len([c for c in client.client_list() if c["cmd"] == "xread"])


async def test_two_hundred_keys_are_waited_for_on_one_connection(a, b, client, eventually):
    leading = [asyncio.create_task(a.load(x)) for x in range(200)]
    await eventually(lambda: a.row.loads == 200)
    waiting = [asyncio.create_task(b.load(x)) for x in range(200)]
    await eventually(lambda: len(list(b.cache.reader()._wakes._board)) == 200)
    await eventually(lambda: _listening(client) > 0)
    assert _listening(client) == 1
    a.row.gate.set()
    assert set(await asyncio.wait_for(asyncio.gather(*leading, *waiting), 20)) == {"old"}
    assert b.row.loads == 0


def _unwanted() -> str:
    pytest.fail("loaded in a thread")


async def test_threads_and_coroutines_of_one_process_wait_side_by_side(a, b, client, eventually):
    leading = asyncio.create_task(a.get(1))
    await asyncio.wait_for(a.row.loading.wait(), 10)
    threads = [
        asyncio.create_task(asyncio.to_thread(b.cache.sync.get_or_set, "1", _unwanted, tags=["t:1"])) for _ in range(5)
    ]
    waiting = [asyncio.create_task(b.get(1)) for _ in range(5)]
    await eventually(lambda: b.waits and bool(b.cache.sync.reader._wakes._board))
    await eventually(lambda: _listening(client) >= 2)
    assert _listening(client) == 2, "one for threads, one for the loop"
    a.row.gate.set()
    assert set(await asyncio.wait_for(asyncio.gather(leading, *waiting, *threads), 10)) == {"old"}
    assert b.row.loads == 0


async def test_many_keys_are_waited_for_by_threads_on_one_connection(a, b, client, eventually):
    leading = [asyncio.create_task(a.get(x)) for x in range(20)]
    await eventually(lambda: a.row.loads == 20)
    answers = []

    def read(x):
        answers.append(b.cache.sync.get_or_set(str(x), _unwanted, tags=[f"t:{x}"]))

    threads = [threading.Thread(target=read, args=(x,), daemon=True) for x in range(20)]
    for thread in threads:
        thread.start()
    await eventually(lambda: len(list(b.cache.sync.reader._wakes._board)) == 20)
    assert len([c for c in client.client_list() if c["cmd"] == "xread"]) == 1
    a.row.gate.set()
    await asyncio.gather(*leading)
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    assert answers == ["old"] * 20


async def test_a_waiter_that_is_cancelled_leaves_the_others_waiting(a, b, eventually):
    leading = await _leading(a)
    first, second = await _waiting(b, eventually, callers=2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    a.row.gate.set()
    assert await asyncio.wait_for(asyncio.gather(leading, second), 10) == ["old", "old"]
    assert b.row.loads == 0


async def test_a_callers_own_timeout_ends_its_wait(a, b, eventually):
    leading = await _leading(a)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await b.load(1)
    a.row.gate.set()
    await leading


async def test_a_cache_closed_while_somebody_waits_lets_him_load(a, b, client, eventually):
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    b.row.gate.set()
    connections = len(client.client_list())
    await b.cache.aclose()
    assert await asyncio.wait_for(waiting[0], 10) == "old"
    assert len(client.client_list()) < connections, "and connects no more"
    assert b.row.loads == 1
    a.row.gate.set()
    await leading


async def test_redis_killed_while_somebody_waits_lets_him_load(new_server, eventually):
    server = new_server()
    url = f"redis://127.0.0.1:{server.port}"
    a, b = Service(url, operation_timeout=0.5), Service(url, operation_timeout=0.5)
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    b.row.gate.set()
    server._process.kill()
    server._process.wait()
    assert await asyncio.wait_for(waiting[0], 10) == "old"
    a.row.gate.set()
    assert await leading == "old"
    for service in (a, b):
        await service.cache.aclose()


async def test_redis_frozen_while_somebody_waits_lets_him_load(new_server, eventually):
    server = new_server()
    url = f"redis://127.0.0.1:{server.port}"
    a, b = Service(url, operation_timeout=0.3), Service(url, operation_timeout=0.3)
    leading = await _leading(a)
    waiting = await _waiting(b, eventually, callers=3)
    b.row.gate.set()
    server._process.send_signal(signal.SIGSTOP)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 20) == ["old"] * 3
    assert b.cache.stats()["n"]["direct"] == 3
    server._process.send_signal(signal.SIGCONT)
    a.row.gate.set()
    assert await leading == "old"
    for service in (a, b):
        await service.cache.aclose()


async def test_a_quick_load_of_an_invalidated_entry_asks_nobody(a, client):
    a.row.gate.set()
    await a.load(1)
    await a.cache.reader().flights.drain(5)
    await a.cache.invalidate_tags("t:1")
    client.config_resetstat()
    assert await a.load(1) == "old"
    await a.cache.reader().flights.drain(5)
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1, "the fill"


async def test_functions_with_result_tags_share_one_load_too(url, eventually):
    async with Cache(url, lease_ttl=60) as one, Cache(url, lease_ttl=60) as two:
        loads, begun, gate = [], asyncio.Event(), asyncio.Event()

        async def load(x: int) -> list[int]:
            loads.append(x)
            begun.set()
            await gate.wait()
            return [x]

        first, second = (c.cached(key="{x}", result_tags=lambda r: [f"r:{r[0]}"])(load) for c in (one, two))
        leading = asyncio.create_task(first(1))
        await asyncio.wait_for(begun.wait(), 10)
        waiting = [asyncio.create_task(second(1)) for _ in range(10)]
        await eventually(lambda: bool(two.reader()._wakes._board))
        gate.set()
        assert await asyncio.wait_for(asyncio.gather(leading, *waiting), 10) == [[1]] * 11
        assert loads == [1]
        await one.invalidate_tags("r:1")
        assert await asyncio.wait_for(second(1), 10) == [1]
        assert loads == [1, 1]


async def test_a_refresh_does_not_wait_and_its_value_reaches_who_waits(a, b, services, eventually):
    c = services()
    leading = await _leading(a)
    waiting = await _waiting(b, eventually)
    c.row.value = "refreshed"
    c.row.gate.set()
    assert await asyncio.wait_for(c.load.refresh(1), 10) == "refreshed"
    assert await asyncio.wait_for(waiting[0], 10) == "refreshed"
    a.row.gate.set()
    assert await leading == "old"
    assert await services().load(1) == "refreshed"


async def test_a_warm_waits_like_a_reader(a, b, eventually):
    async def unwanted():
        pytest.fail("loaded")

    leading = await _leading(a)
    warming = asyncio.create_task(b.cache.reader().ensure(b.load.request(unwanted, 1)))
    await eventually(lambda: b.waits)
    a.row.gate.set()
    await leading
    assert (await asyncio.wait_for(warming, 10)).value == "fresh"


async def test_a_value_set_while_others_wait_is_what_they_get(a, b, eventually):
    leading = asyncio.create_task(a.get(1))
    await asyncio.wait_for(a.row.loading.wait(), 10)
    waiting = asyncio.create_task(b.get(1))
    await eventually(lambda: b.waits)
    await b.cache.set("1", "set", tags=["t:1"])
    a.row.gate.set()
    assert await leading == "old"
    assert await asyncio.wait_for(waiting, 10) == "set"
