"""Lifetimes, as a new user meets them: loops that end, forks, threads, and scripts that simply stop.

Scripts run with every warning an error and Python's development mode on: whatever is left open or unfinished when the
interpreter ends is written to standard error, which must stay empty.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest
from structlog.testing import capture_logs
from tidings import Cache, forks

SECONDS = 20

HEAD = """
import asyncio, contextlib, os, signal, sys, threading, time
import tidings
from tidings import Cache, Event, cached

cache = tidings.configure(sys.argv[1])
calls = []

def count(*what):
    calls.append(what)
    return len(calls)
"""


@pytest.fixture
def run(shell, url):
    """Run a script that has `cache` and `count`; give its standard output after it has ended without a complaint."""

    def start(script: str, cache_url: str = url) -> str:
        path = shell.write("script.py", HEAD + dedent(script))
        process = shell.start_program(sys.executable, "-X", "dev", "-W", "error", path, cache_url)
        assert process.wait(SECONDS) == 0, process.output
        assert process.err == ""
        return process.out

    return start


# Event loops that end


def test_a_loop_that_is_closed_in_the_middle_of_a_load_and_dropped_says_no_more_than_asyncio(shell, url):
    path = shell.write(
        "script.py",
        HEAD
        + dedent("""
            import gc

            @cached()
            async def load() -> int:
                began.set()
                await asyncio.sleep(3600)
                return 1

            async def until_it_loads():
                global began
                began = asyncio.Event()
                task = asyncio.create_task(load())
                await began.wait()
                return task

            loop = asyncio.new_event_loop()
            task = loop.run_until_complete(until_it_loads())
            loop.close()
            del task, loop
            cache._readers.clear()
            cache._last = None
            gc.collect()
            """),
    )
    process = shell.start_program(sys.executable, path, url)
    assert process.wait(SECONDS) == 0, process.output
    assert "RuntimeError" not in process.err
    assert "ignored" not in process.err


@pytest.mark.parametrize("where", ["server", "memory"])
def test_caches_that_are_made_and_dropped_leave_no_hooks(url, where, monkeypatch):
    hooks = []
    monkeypatch.setattr(os, "register_at_fork", lambda **hook: hooks.append(hook))
    known = len(forks._methods)
    for _ in range(3):
        Cache(url if where == "server" else "memory://")
    for _ in range(2):  # the caches, and then the tails that their end lets go
        gc.collect()
    assert (hooks, len(forks._methods) <= known) == ([], True)


async def test_reads_while_the_cache_is_closed_are_served_and_leave_no_connection(url, client, eventually):
    before = len(client.client_list())
    cache, over = Cache(url), asyncio.Event()

    @cache.cached(ttl=60)
    async def load(key: int) -> int:
        return key

    async def read():
        while not over.is_set():
            assert await load(1) == 1

    readers = [asyncio.create_task(read()) for _ in range(20)]
    with capture_logs() as logs:
        for _ in range(5):
            await eventually(lambda: cache.stats() and cache.stats()["default"]["hits"], "readers to be served")
            await asyncio.wait_for(cache.aclose(), SECONDS)
            cache.reset_stats()
        over.set()
        await asyncio.gather(*readers)
        await cache.aclose()
    await eventually(lambda: len(client.client_list()) <= before, "the connections to be gone")
    assert [entry["event"] for entry in logs if entry["event"] == "cache_unavailable"] == []


async def test_closing_twice_at_once_leaves_a_new_reader_to_its_owner(url):
    cache, go_on = Cache(url), asyncio.Event()
    await cache.set("k", 1)
    first = cache.reader()
    close = first.aclose

    async def held_up(drain_timeout=None):
        await close(drain_timeout)
        await go_on.wait()

    first.aclose = held_up
    late = asyncio.create_task(cache.aclose())
    await asyncio.sleep(0)
    first.aclose = close
    await cache.aclose()
    await cache.set("k", 2)
    second = cache.reader()
    go_on.set()
    await late
    assert (cache.reader() is second, second is first) == (True, False)
    await cache.aclose()


@pytest.mark.parametrize("where", ["server", "memory"])
def test_two_runs_in_a_row_share_one_cache_without_closing_it(run, url, where):
    script = """
        @cached()
        async def load(key: str) -> int:
            await asyncio.sleep(0.01)
            return count(key)

        @cached(local_ttl=60)
        async def local(key: str) -> int:
            return count(key)

        async def value() -> int:
            return count()

        async def values(keys: list[str]) -> dict[str, int]:
            return {key: count(key) for key in keys}

        async def use():
            return (
                await load("a"),
                await local("a"),
                await cache.get_or_set("k", value),
                await cache.get_or_set_many(["m", "n"], values),
            )

        print(*(asyncio.run(use()) for _ in range(3)), sep="\\n")
    """
    printed = run(script, url if where == "server" else "memory://")
    assert printed.splitlines() == ["(1, 2, 3, {'m': 4, 'n': 5})"] * 3


def test_a_single_call_is_kept_although_its_loop_ends_with_it(run):
    printed = run("""
        @cached()
        async def load() -> int:
            return count()

        print(*(asyncio.run(load()) for _ in range(3)))
    """)
    assert printed.split() == ["1", "1", "1"]


def test_a_loop_that_ends_with_loads_under_way_says_nothing(run):
    """Its tasks are cancelled by whoever ends the loop, and what they would start then nobody would carry out."""
    run("""
        @cached()
        async def hang(key: str) -> int:
            await asyncio.sleep(600)

        @cached(max_staleness=600)
        async def stale() -> int:
            if count() > 1:
                await asyncio.sleep(600)
            return 1

        async def many(keys: list[str]) -> dict[str, int]:
            await asyncio.sleep(600)

        async def main():
            assert await stale() == 1
            await cache.invalidate_namespace("default")
            assert await stale() == 1
            tasks = [asyncio.create_task(hang(str(number % 3))) for number in range(6)]
            tasks.append(asyncio.create_task(cache.get_or_set_many(["a", "b"], many)))
            elsewhere = Cache(sys.argv[1])
            for abandoned in hang("0"), hang("other"), elsewhere.cached(key="{key}")(hang.uncached)("0"):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await abandoned
            for task in tasks[:2]:
                task.cancel()

        asyncio.run(main())
        asyncio.run(main())
    """)


def test_a_loop_that_ends_while_it_waits_for_a_lease_says_nothing(run):
    run("""
        other = Cache(sys.argv[1])

        async def load() -> int:
            await asyncio.sleep(600)

        async def main():
            tasks = [asyncio.create_task(each.get_or_set("k", load)) for each in (cache, other)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in tasks)

        asyncio.run(main())
    """)


def test_an_interrupted_script_says_only_that(run, shell, url):
    path = shell.write(
        "script.py",
        HEAD
        + dedent("""
        @cached(local_ttl=60)
        async def hang() -> int:
            print("hanging", flush=True)
            await asyncio.sleep(600)

        asyncio.run(hang())
    """),
    )
    process = shell.start_program(sys.executable, "-X", "dev", "-W", "error", path, url)
    while "hanging" not in process.out:
        assert process.code is None, process.err
    process.send(signal.SIGINT)
    assert process.wait(SECONDS) == -signal.SIGINT
    assert process.err.count("Traceback") == process.err.count("KeyboardInterrupt\n") + process.err.count(
        "CancelledError"
    )
    assert "never retrieved" not in process.err
    assert "destroyed" not in process.err
    assert "ResourceWarning" not in process.err


def test_event_loops_in_several_threads_share_one_cache(url):
    """Each has its connections; the lease keeps them from loading the same."""
    cache, calls, together = Cache(url, lease_ttl=600), [], threading.Barrier(6)

    @cache.cached(tags=["row"], local_ttl=60)
    async def load(key: int) -> list[int]:
        calls.append(key)
        await asyncio.sleep(0.02)
        return [key]

    async def use():
        try:
            for _ in range(20):
                assert await asyncio.gather(*(load(key) for key in range(5))) == [[key] for key in range(5)]
            before = len(calls)
            await asyncio.to_thread(together.wait, SECONDS)
            await cache.invalidate_tags("row")
            assert await load(1) == [1]
            return before
        finally:
            await asyncio.to_thread(together.wait, SECONDS)
            await cache.reader().aclose()

    with ThreadPoolExecutor(6) as pool:
        assert [future.result(SECONDS) for future in [pool.submit(asyncio.run, use()) for _ in range(6)]] == [5] * 6
    cache.sync.close()


# Forks

FORK = """
    def in_child(work):
        child = os.fork()
        if child == 0:
            try:
                work()
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        return child

    def ended(*children):
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)

    def eventually(condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def threads():
        return {thread.name for thread in threading.enumerate()}
"""


def test_workers_forked_after_first_use_have_connections_and_tails_of_their_own(run):
    """As gunicorn does with an application that was loaded, and used, before it forks."""
    printed = run(
        FORK
        + """
    @cached(tags=["row"], local_ttl=600)
    def load(key: str) -> int:
        return count(key)

    def is_local():
        before = cache.stats()["default"]["local_hits"]
        return load("a") and cache.stats()["default"]["local_hits"] > before

    assert load("a") == 1
    eventually(is_local)
    assert "tidings-tail" in threads()

    to_child, from_parent = os.pipe()
    child_said, said = os.pipe()

    def worker():
        assert "tidings-tail" not in threads()
        assert load("a") == 1
        eventually(is_local)
        assert "tidings-tail" in threads()
        os.write(said, b"ready")
        assert os.read(to_child, 2) == b"go"
        eventually(lambda: load("a") == 2)
        assert load("b") == 2
        cache.sync.invalidate_tags("row")
        os.write(said, b"done!")

    child = in_child(worker)
    os.close(said)
    assert os.read(child_said, 5) == b"ready"
    assert is_local()
    cache.sync.invalidate_tags("row")
    assert load("a") == 2
    os.write(from_parent, b"go")
    assert os.read(child_said, 5) == b"done!"
    ended(child)
    eventually(lambda: load("a") == 3)
    print(len(calls))
    """
    )
    assert printed.split() == ["3"]


def test_a_fork_in_the_middle_of_loads_leaves_the_child_nothing_to_wait_for(run):
    """Threads of the parent load, wait for a lease, and refresh in the background; in the child they are not."""
    run(
        FORK
        + """
    release, begun = threading.Event(), threading.Semaphore(0)
    parent = os.getpid()

    def load() -> int:
        if os.getpid() == parent:
            begun.release()
            assert release.wait(10)
        return os.getpid()

    slow = cached()(load)
    patient = cached(stale_if_error=600, timeout=60, namespace="patient")(load)
    refreshed = cached(max_staleness=600, namespace="refreshed")(load)
    release.set()
    assert [patient(), refreshed()] == [parent] * 2
    release.clear()
    cache.sync.invalidate(namespaces=["patient", "refreshed"])
    while begun.acquire(blocking=False):
        pass

    workers = [threading.Thread(target=function, daemon=True) for function in (slow, slow, patient, refreshed)]
    for worker in workers:
        worker.start()
    for _ in range(3):
        assert begun.acquire(timeout=10)

    def work():
        cache.sync.invalidate_all()
        assert slow() != parent
        assert patient() != parent
        eventually(lambda: refreshed() != parent)
        cache.sync.close()

    ended(in_child(work), in_child(work))
    release.set()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()
    cache.sync.invalidate_all()
    assert [slow(), patient()] == [parent] * 2
    """
    )


def test_loops_before_and_after_a_fork(run):
    run(
        FORK
        + """
    @cached(tags=["row"], local_ttl=600)
    async def load(key: str) -> int:
        return count(key)

    async def use():
        await cache.invalidate_tags("row")
        before = len(calls)
        assert await load("a") == before + 1
        assert await asyncio.gather(load("a"), load("a"), load("b")) == [before + 1, before + 1, before + 2]
        assert (await cache.health())["ok"]

    asyncio.run(use())
    children = [in_child(lambda: asyncio.run(use())) for _ in range(1)]
    ended(*children)
    asyncio.run(use())
    ended(in_child(lambda: (asyncio.run(use()), asyncio.run(use()))))
    asyncio.run(use())
    """
    )


def test_entries_say_which_process_has_filled_them_after_a_fork_too(run):
    run(
        FORK
        + """
    from tidings.layout import facts_of
    import redis

    @cached()
    def load(key: str) -> int:
        return 1

    def filled_by(key):
        load(key)
        with redis.Redis.from_url(sys.argv[1]) as client:
            return facts_of(client.get(load.key(key))).by

    def work():
        assert filled_by("b").endswith(f":{os.getpid()}")

    assert filled_by("a").endswith(f":{os.getpid()}")
    ended(in_child(work))
    """
    )


# Scripts that use everything and simply end

EVERYTHING = """
    refreshes = []

    @cached(tags=["row:{key}"], local_ttl=60, early=1.0, jitter=0.1, result_tags=lambda value: [f"value:{value}"])
    async def load(key: str) -> int:
        return count(key)

    @cached(max_staleness=600, stale_if_error=600, timeout=0.01, local_ttl=60)
    def plain(key: str) -> int:
        refreshes.append(key)
        if len(refreshes) > 1:
            time.sleep(600)
        return 1

    @cached(local_ttl=60)
    def quick(key: str) -> int:
        return count(key)

    class Changed(Event, type="changed"):
        key: str

    async def value() -> int:
        return count()

    async def values(keys: list[str]) -> dict[str, int]:
        return dict.fromkeys(keys, 1)

    async def main():
        assert await load("a") == await load("a")
        await cache.set("k", 1, tags=["t"])
        assert await cache.get("k") == 1
        assert await cache.get_many(["k"]) == {"k": 1}
        assert await cache.get_or_set_many(["k", "l"], values) == {"k": 1, "l": 1}
        await cache.set_many({"m": "x" * 100_000})
        assert len(await cache.get("m")) == 100_000
        await cache.get_or_set("n", value)
        await cache.delete("n")
        await cache.invalidate_tags("t")
        await cache.invalidate_pattern("*")
        receipt = await cache.publish(Changed(key="a"))
        with contextlib.suppress(tidings.errors.NotAppliedError):
            await receipt.applied(timeout=0.1)
        assert (await cache.health())["ok"]
        asyncio.create_task(load("z"))

    def in_threads():
        assert plain("a") == 1
        cache.sync.invalidate_namespace("default")
        assert plain("a") == 1  # and a refresh goes on in the background
        for number in range(3):
            thread = threading.Thread(target=quick, args=(str(number),))
            thread.start()
            thread.join()
        cache.sync.set("k", 1)
        cache.sync.get_or_set_many(["p", "q"], lambda keys: dict.fromkeys(keys, 1))
        receipt = cache.sync.publish(Changed(key="a"))
        with contextlib.suppress(tidings.errors.NotAppliedError):
            receipt.applied(timeout=0.1)
        assert cache.sync.health()["ok"]
"""


@pytest.mark.parametrize(
    "end", ["", "cache.sync.close(drain_timeout=0)\n", "asyncio.run(cache.aclose(drain_timeout=0))\n"]
)
def test_a_script_that_uses_everything_just_ends(run, end):
    run(EVERYTHING + "\n    asyncio.run(main())\n    in_threads()\n    asyncio.run(main())\n    " + end)


def test_a_script_in_memory_just_ends(run):
    run(EVERYTHING + "\n    asyncio.run(main())\n    in_threads()\n    asyncio.run(main())\n", "memory://")


def test_a_script_without_redis_just_ends(run, shell):
    """The breaker's probe is under way."""
    path = shell.write(
        "script.py",
        HEAD
        + dedent("""
        @cached(local_ttl=60)
        async def load() -> int:
            return count()

        @cached(local_ttl=60)
        def plain() -> int:
            return count()

        asyncio.run(load())
        plain()
    """),
    )
    process = shell.start_program(sys.executable, "-X", "dev", "-W", "error", path, "redis://127.0.0.1:1/0")
    assert process.wait(SECONDS) == 0
    assert [
        line for line in process.err.splitlines() if "cache_unavailable" not in line and "local_tier_lost" not in line
    ] == []


def test_functions_called_while_the_interpreter_ends_are_served_without_threads(shell, url):
    """Some versions of Python start none then: nothing is refreshed and the local tier is bypassed, which is said."""
    path = shell.write(
        "script.py",
        HEAD
        + dedent("""
        import atexit

        @cached(max_staleness=600, local_ttl=60)
        def load() -> int:
            return count()

        assert load() == 1
        cache.sync.invalidate_namespace("default")

        def last():
            assert load() in (1, 2)
            assert cache.sync.get("none") is None
            print("served")

        atexit.register(last)
        cache.sync.close()
    """),
    )
    process = shell.start_program(sys.executable, "-X", "dev", "-W", "error", path, url)
    assert process.wait(SECONDS) == 0
    assert process.out == "served\n"
    assert "Exception ignored" not in process.err


# Instances


@pytest.mark.parametrize("where", ["server", "memory"])
async def test_a_method_cached_on_a_thousand_instances_keeps_none_of_them(request, where):
    """Neither the key nor anything that is remembered depends on the instance, unless a template names it."""
    async with Cache("memory://" if where == "memory" else request.getfixturevalue("url")) as cache:
        calls = []

        class Repository:
            def __init__(self, name: str) -> None:
                self.name = name

            @cache.cached(local_ttl=60)
            async def find(self, key: int) -> int:
                calls.append(key)
                return key

            @cache.cached(local_ttl=60)
            def count(self, key: int) -> int:
                calls.append(key)
                return key

            @cache.cached(key="{self.name}:{key}")
            async def own(self, key: int) -> str:
                return f"{self.name}{key}"

        instances = [Repository(f"{number % 2}") for number in range(1000)]
        alive = [weakref.ref(instance) for instance in instances]
        keys, own_keys = set(), set()
        for instance in instances:
            assert await instance.find(1) == 1
            assert await instance.own(1) == f"{instance.name}1"
            keys.add(instance.find.key(1))
            own_keys.add(instance.own.key(1))
        await asyncio.to_thread(lambda: [instance.count(1) for instance in instances])
        assert (len(keys), len(own_keys), calls) == (1, 2, [1, 1])
        del instance
        instances.clear()
        await cache.reader().flights.drain()
        gc.collect()
        assert [reference for reference in alive if reference() is not None] == []
        assert len(cache.tier) == 2
