"""`resource`: reads and writes of one kind of thing, in memory and on a server."""

import asyncio
import inspect
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import ClassVar

import pytest
import tidings
from structlog.testing import capture_logs
from tidings import Cache, cached
from tidings import resource as resource_of_default
from tidings.errors import (
    ArgumentError,
    ConfigurationError,
    InvalidationError,
    TemplateError,
    WriteNotInvalidatedError,
)
from tidings.resource import Resource

UNREACHABLE = "redis://127.0.0.1:1/0"


@pytest.fixture(params=["memory", "server"])
async def cache(request):
    url = "memory://" if request.param == "memory" else request.getfixturevalue("url")
    async with Cache(url) as made:
        yield made


class Users:
    """A table of users, and what was read from it."""

    def __init__(self):
        self.rows = {}
        self.loads = []

    def fetch(self, user_id: int) -> str:
        self.loads.append(user_id)
        return self.rows.get(user_id, "nobody")

    def save(self, user_id: int, name: str) -> str:
        self.rows[user_id] = name
        return f"saved {name}"


@pytest.fixture
def users():
    return Users()


@pytest.fixture
def user(cache):
    return cache.resource("user", "user_id")


@pytest.fixture
def get(user, users):
    @user.cache_read(suffix="name")
    async def get(user_id: int) -> str:
        return users.fetch(user_id)

    return get


@pytest.fixture
def update(user, users):
    @user.cache_write()
    async def update(user_id: int, name: str = "new") -> str:
        return users.save(user_id, name)

    return update


@pytest.fixture
async def default(cache):
    tidings.set_cache(cache)
    yield cache
    tidings.set_cache(None)


async def test_the_example_in_the_docstring_does_what_it_says(default):
    rows, loads = {1: {"name": "old"}}, []

    async def fetch(user_id):
        loads.append(user_id)
        return rows[user_id]

    async def save(user_id, data):
        rows[user_id] = data

    blocks = inspect.getdoc(inspect.getmodule(Resource)).split("\n\n")
    example = "\n\n".join(textwrap.dedent(block) for block in blocks if block.startswith("    "))
    scope = {"resource": resource_of_default, "fetch": fetch, "save": save, "__name__": "service"}
    exec(compile(example, "docstring", "exec"), scope)  # noqa: S102 the module's own text
    get_profile, update_profile = scope["get_profile"], scope["update_profile"]

    assert await get_profile(user_id=1) == await get_profile(user_id=1) == {"name": "old"}
    assert loads == [1]
    await update_profile(user_id=1, data={"name": "new"})
    assert loads == [1, 1]
    assert await get_profile(user_id=1) == {"name": "new"}
    assert loads == [1, 1]


# Reads


async def test_a_read_has_the_namespace_the_key_and_the_tag_of_its_resource(cache, user):
    @user.cache_read(suffix="permissions:{role}", tags=["role:{role}"], ttl=60)
    async def permissions(user_id: int, role: str) -> list[str]:
        return [role]

    call = permissions.call_of(42, "admin")
    assert permissions.key(42, "admin").rpartition(":")[0] == "cache:user:permissions:42:permissions:admin"
    assert (call.namespace, call.tags, call.policy.ttl_ms) == ("user", ("user:42", "role:admin"), 60_000)


async def test_a_read_is_one_entry_however_its_id_is_passed(get, users):
    assert await get(1) == await get(user_id=1)
    assert users.loads == [1]


async def test_reads_of_one_resource_without_a_suffix_have_entries_of_their_own(user):
    @user.cache_read()
    async def name(user_id: int) -> str:
        return "name"

    @user.cache_read()
    async def age(user_id: int) -> int:
        return 7

    assert (await name(1), await age(1), await name(1)) == ("name", 7, "name")


async def test_tags_may_be_a_callable_and_come_on_top_of_the_resources_own(user):
    @user.cache_read(tags=lambda *, user_id, **_: [f"shard:{user_id % 2}"])
    async def read(user_id: int) -> int:
        return user_id

    assert read.call_of(3).tags == ("user:3", "shard:1")
    with pytest.raises(ArgumentError, match="tags returned the string 'a' where a list"):
        user.cache_read(tags=lambda **_: "a")(read.uncached).call_of(3)


async def test_several_ids_are_one(cache):
    member = cache.resource("member", "team_id", "user_id")
    loads = []

    @member.cache_read(suffix="role")
    async def role(team_id: int, user_id: int) -> int:
        loads.append((team_id, user_id))
        return len(loads)

    @member.cache_write()
    async def promote(user_id: int, team_id: int) -> None:
        """Its arguments stand in another order."""

    assert (await role(1, 2), await role(2, 1)) == (1, 2)
    await promote(team_id=1, user_id=2)
    assert (await role(1, 2), await role(2, 1)) == (3, 2)
    assert role.call_of(1, 2).tags == ("member:1:2",)


# Writes


@pytest.mark.parametrize("call", [((1, "x"), {}), ((1,), {}), ((), {"user_id": 1, "name": "x"})])
async def test_what_was_written_is_read_as_soon_as_the_write_has_returned(get, update, users, call):
    users.rows[1] = "old"
    assert [await get(1), await get(2)] == ["old", "nobody"]
    args, kwargs = call
    assert (await update(*args, **kwargs)).startswith("saved")
    assert await get(1) == users.rows[1] != "old"
    assert await get(2) == "nobody"
    assert users.loads == [1, 2, 1]


async def test_a_defaulted_id_counts(user, get, users):
    @user.cache_write()
    async def reset(user_id: int = 1) -> None:
        users.rows[user_id] = "reset"

    await get(1)
    await reset()
    assert await get(1) == "reset"


async def test_a_write_that_raises_invalidates_nothing(user, get, users):
    @user.cache_write()
    async def fail(user_id: int) -> None:
        raise LookupError(user_id)

    await get(1)
    with pytest.raises(LookupError):
        await fail(1)
    await get(1)
    assert users.loads == [1]


async def test_a_write_invalidates_its_own_tags_as_well(cache, user):
    loads = []

    @cache.cached(tags=["role:{role}"])
    async def members(role: str) -> int:
        loads.append(role)
        return len(loads)

    @user.cache_write(tags=["role:{role}"])
    async def by_template(user_id: int, role: str) -> None: ...

    @user.cache_write(tags=lambda *, role, **_: [f"role:{role}"])
    async def by_callable(user_id: int, role: str) -> None: ...

    assert await members("a") == 1
    await by_template(1, "a")
    assert await members("a") == 2
    await by_callable(1, "a")
    assert await members("a") == 3
    await by_callable(1, "b")
    assert await members("a") == 3


async def test_the_cause_of_an_invalidation_is_the_function_that_wrote(url, client):
    async with Cache(url) as cache:

        @cache.resource("user", "user_id").cache_write()
        async def update(user_id: int) -> None: ...

        await update(1)
    cause = client.get("token:tag:user:1").decode().partition("call:")[2]
    assert cause.startswith(f"{__name__}:{update.__qualname__} ")


class Opaque:
    """Nothing of it is the same in another process."""


@pytest.mark.parametrize("bad", [Opaque(), "\ud800"], ids=["no stable text", "no Unicode"])
async def test_what_could_not_be_invalidated_is_not_written(update, users, bad):
    with pytest.raises(ArgumentError):
        await update(bad, "x")
    assert users.rows == {}


async def test_a_write_whose_callable_of_tags_raises_is_not_written(user, users):
    @user.cache_write(tags=lambda **_: [1 / 0])
    async def update(user_id: int) -> None:
        users.save(user_id, "x")

    with pytest.raises(ZeroDivisionError):
        await update(1)
    with pytest.raises(TypeError, match=r"update\(\) missing 1 required positional argument: 'user_id'"):
        await update()
    assert users.rows == {}


async def test_when_redis_is_away_the_write_is_told_and_its_result_is_not_lost(users):
    async with Cache(UNREACHABLE, operation_timeout=0.2) as cache:

        @cache.resource("user", "user_id").cache_write(tags=["users"])
        async def update(user_id: int, name: str) -> str:
            return users.save(user_id, name)

        with pytest.raises(
            WriteNotInvalidatedError, match=r"update has written, .* user:1, users .* not ack"
        ) as caught:
            await update(1, "x")
    error = caught.value
    assert (error.result, error.tags, users.rows) == ("saved x", ("user:1", "users"), {1: "x"})
    assert isinstance(error.__cause__, InvalidationError)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 as a queue hands it to another process
    assert (str(again), again.result, again.tags) == (str(error), error.result, error.tags)


async def test_an_invalidation_that_was_not_acknowledged_is_repeated_by_its_tags(new_server, get_of, users):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:
        get, update = get_of(cache)
        assert await get(1) == "nobody"
        await cache.reader().ask(Do("CONFIG", "SET", "min-replicas-to-write", "1"))
        with pytest.raises(WriteNotInvalidatedError) as caught:
            await update(1, "new")
        await cache.reader().ask(Do("CONFIG", "SET", "min-replicas-to-write", "0"))
        await cache.invalidate_tags(*caught.value.tags)
        assert await get(1) == "new"


class Do:
    """One command as an operation."""

    def __init__(self, *command):
        self.commands = (command,)

    def parse(self, replies):
        return replies[0]


@pytest.fixture
def get_of(users):
    """Make a read and a write of users in any cache."""

    def make(cache, **options):
        user = cache.resource("user", "user_id")

        @user.cache_read(suffix="name")
        async def get(user_id: int) -> str:
            return users.fetch(user_id)

        @user.cache_write(**options)
        async def update(user_id: int, name: str) -> str:
            return users.save(user_id, name)

        return get, update

    return make


async def test_the_default_cache_is_whichever_is_current_at_the_call():
    user = resource_of_default("user", "user_id")
    loads = []

    @user.cache_read()
    async def get(user_id: int) -> int:
        loads.append(user_id)
        return len(loads)

    @user.cache_write()
    async def update(user_id: int) -> None: ...

    async with Cache("memory://") as first, Cache("memory://") as second:
        try:
            tidings.set_cache(first)
            assert await get(1) == 1
            tidings.set_cache(second)
            assert await get(1) == 2
            await update(1)
            assert await get(1) == 3
            tidings.set_cache(first)
            assert await get(1) == 1
        finally:
            tidings.set_cache(None)


# Races


async def test_a_read_from_before_a_write_that_fills_after_it_is_not_served(user, update, users):
    read, gate = asyncio.Event(), asyncio.Event()

    @user.cache_read()
    async def get(user_id: int) -> str:
        row = users.fetch(user_id)
        read.set()
        await gate.wait()
        return row

    before = asyncio.create_task(get(1))
    await read.wait()
    await update(1, "new")
    after = asyncio.create_task(get(1))
    gate.set()
    assert (await before, await after, await get(1)) == ("nobody", "new", "new")


async def test_a_warm_does_not_join_the_load_of_a_read_from_before_the_write(user, users):
    read, gate = asyncio.Event(), asyncio.Event()

    @user.cache_read()
    async def get(user_id: int) -> str:
        row = users.fetch(user_id)
        if row == "nobody":
            read.set()
            await gate.wait()
        return row

    @user.cache_write(warm=[get])
    async def update(user_id: int) -> None:
        users.save(user_id, "new")

    before = asyncio.create_task(get(1))
    await read.wait()
    await update(1)
    gate.set()
    assert await before == "nobody"
    assert await get(1) == "new"


async def test_of_two_writers_the_last_to_commit_is_read_after_both(user, get, users):
    committed, gates = {}, {}

    @user.cache_write()
    async def update(user_id: int, name: str) -> None:
        users.save(user_id, name)
        committed[name].set()
        await gates[name].wait()

    for name in ("first", "second"):
        committed[name], gates[name] = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(update(1, "first"))
    await committed["first"].wait()
    assert await get(1) == "first"
    second = asyncio.create_task(update(1, "second"))
    await committed["second"].wait()
    gates["second"].set()
    await second
    assert await get(1) == "second"
    gates["first"].set()
    await first
    assert await get(1) == "second"


# Cancellation


async def cancelled(task):
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


async def test_a_caller_cancelled_between_commit_and_invalidation_has_invalidated(user, get, users):
    @user.cache_write()
    async def update(user_id: int) -> None:
        users.save(user_id, "new")
        asyncio.current_task().cancel()  # raised where it waits next: for the invalidation

    await get(1)
    assert await cancelled(asyncio.create_task(update(1)))
    assert await get(1) == "new"


async def test_a_write_cancelled_after_its_commit_invalidates(user, get, users):
    committed = asyncio.Event()

    @user.cache_write()
    async def update(user_id: int) -> None:
        users.save(user_id, "new")
        committed.set()
        await asyncio.Event().wait()

    await get(1)
    task = asyncio.create_task(update(1))
    await committed.wait()
    task.cancel()
    assert await cancelled(task)
    assert await get(1) == "new"


async def test_a_caller_cancelled_again_and_again_has_invalidated(user, get, users):
    """As anyio's scopes do: in each round of the event loop."""
    task, rounds = None, 0

    def cancel():
        nonlocal rounds
        if not task.done():
            rounds += 1
            task.cancel()
            asyncio.get_running_loop().call_soon(cancel)

    @user.cache_write()
    async def update(user_id: int) -> None:
        users.save(user_id, "new")
        cancel()

    await get(1)
    task = asyncio.create_task(update(1))
    assert await cancelled(task)
    assert rounds > 1
    assert await get(1) == "new"


async def test_an_event_loop_that_ends_every_task_does_not_end_the_invalidation(user, get, users):
    own = asyncio.current_task()

    def end_all():
        for task in asyncio.all_tasks() - {own, *before}:
            task.cancel()

    @user.cache_write()
    async def update(user_id: int) -> None:
        users.save(user_id, "new")
        asyncio.get_running_loop().call_soon(end_all)

    await get(1)
    before = asyncio.all_tasks()
    assert await cancelled(asyncio.create_task(update(1)))
    assert await get(1) == "new"


async def test_a_cancelled_write_that_cannot_be_invalidated_is_logged(users):
    async with Cache(UNREACHABLE, operation_timeout=0.2) as cache:

        @cache.resource("user", "user_id").cache_write()
        async def update(user_id: int) -> None:
            asyncio.current_task().cancel()

        with capture_logs() as logs:
            assert await cancelled(asyncio.create_task(update(1)))
    (said,) = [entry for entry in logs if entry["event"] == "write_not_invalidated"]
    assert (said["log_level"], said["tags"]) == ("error", ("user:1",))
    assert said["function"].endswith("update")


# Warming


async def test_what_is_warmed_is_there_when_the_write_returns(cache, get_of, users):
    get, _ = get_of(cache)
    _, update = get_of(cache, warm=[get])
    await get(1)
    await update(1, "new")
    assert users.loads == [1, 1]
    assert await get(1) == "new"
    assert users.loads == [1, 1]


async def test_a_warm_takes_what_it_shares_by_name_with_the_write_and_its_defaults(user):
    seen = []

    @user.cache_read(suffix="{lang}:{page}:{size}", ignore=["data", "rest", "more"])
    async def read(
        page: int, /, user_id: int, lang: str = "de", *rest: int, size: int = 7, data: int = 0, **more: int
    ) -> int:
        seen.append((page, user_id, lang, rest, size, data, more))
        return 1

    @user.cache_write(warm=[read])
    async def update(lang: str, *, user_id: int, page: int = 3, **data: int) -> None: ...

    await update("en", user_id=1, a=1)
    assert seen == [(3, 1, "en", (), 7, 0, {})]


async def test_a_warm_that_fails_is_logged_and_counted_and_the_write_and_the_other_warms_succeed(cache, user, users):
    @user.cache_read()
    async def broken(user_id: int) -> int:
        raise LookupError(user_id)

    @user.cache_read()
    async def fine(user_id: int) -> str:
        return users.fetch(user_id)

    @user.cache_write(warm=[broken, fine])
    async def update(user_id: int) -> str:
        return users.save(user_id, "new")

    with capture_logs() as logs:
        assert await update(1) == "saved new"
    (said,) = [entry for entry in logs if entry["event"] == "warm_failed"]
    assert (said["function"], said["after"]) == (broken.identity, f"{__name__}:{update.__qualname__}")
    assert isinstance(said["exc_info"], LookupError)
    assert cache.stats()["user"]["functions"][broken.identity]["warm_errors"] == 1
    assert users.loads == [1]


async def test_a_write_that_was_not_invalidated_or_that_raised_warms_nothing(get_of, users):
    async with Cache(UNREACHABLE, operation_timeout=0.2) as cache:
        get, _ = get_of(cache)
        _, update = get_of(cache, warm=[get])
        with pytest.raises(WriteNotInvalidatedError):
            await update(1, "x")
        with pytest.raises(ArgumentError):
            await update(Opaque(), "x")
    assert users.loads == []


async def test_a_warm_that_when_sends_past_the_cache_is_not_loaded(user, users):
    @user.cache_read(when=lambda user_id: user_id > 1)
    async def get(user_id: int) -> str:
        return users.fetch(user_id)

    @user.cache_write(warm=[get])
    async def update(user_id: int) -> None: ...

    await update(1)
    await update(2)
    assert users.loads == [2]


async def test_a_plain_function_is_warmed_in_a_thread(user, users):
    threads = set()

    @user.cache_read()
    def get(user_id: int) -> str:
        threads.add(threading.get_ident())
        return users.fetch(user_id)

    @user.cache_write(warm=[get])
    async def update(user_id: int) -> None:
        users.save(user_id, "new")

    await update(1)
    assert users.loads == [1]
    assert threading.get_ident() not in threads
    assert await asyncio.to_thread(get, 1) == "new"
    assert users.loads == [1]


# Kinds of functions


def test_plain_functions_do_the_same_in_threads(request, users):
    for url in ("memory://", request.getfixturevalue("url")):
        cache = Cache(url)
        user = cache.resource("user", "user_id")

        @user.cache_read(suffix="name")
        def get(user_id: int) -> str:
            return users.fetch(user_id)

        @user.cache_write(warm=[get])
        def update(user_id: int, name: str) -> str:
            return users.save(user_id, name)

        def write_and_read(user_id, get=get, update=update):
            get(user_id)
            assert update(user_id, "new") == "saved new"
            return get(user_id)

        users.rows.clear()
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(write_and_read, range(20))) == {"new"}
        assert len(users.loads) == 40
        users.loads.clear()
        with pytest.raises(ArgumentError):
            update(Opaque(), "x")
        cache.sync.close()


def test_a_plain_write_that_raises_invalidates_nothing_and_one_that_is_interrupted_does(users):
    cache = Cache("memory://")
    user = cache.resource("user", "user_id")

    @user.cache_read()
    def get(user_id: int) -> str:
        return users.fetch(user_id)

    @user.cache_write()
    def update(user_id: int, error: BaseException) -> None:
        raise error

    get(1)
    with pytest.raises(LookupError):
        update(1, LookupError())
    get(1)
    assert users.loads == [1]
    with pytest.raises(KeyboardInterrupt):
        update(1, KeyboardInterrupt())
    get(1)
    assert users.loads == [1, 1]
    cache.sync.close()


def test_when_redis_is_away_a_plain_write_is_told(users):
    cache = Cache(UNREACHABLE, operation_timeout=0.2)

    @cache.resource("user", "user_id").cache_write()
    def update(user_id: int) -> str:
        return users.save(user_id, "x")

    with pytest.raises(WriteNotInvalidatedError) as caught:
        update(1)
    assert (caught.value.result, users.rows) == ("saved x", {1: "x"})
    cache.sync.close()


def test_a_plain_function_that_returns_an_awaitable_had_not_written():
    cache = Cache("memory://")

    async def save(user_id: int) -> None: ...

    @cache.resource("user", "user_id").cache_write()
    def update(user_id: int) -> object:
        return save(user_id)

    with pytest.raises(ConfigurationError, match=r"update: it returned an awaitable, .* use async def"):
        update(1)
    cache.sync.close()


async def test_methods_of_every_kind_read_write_and_warm(cache, user):
    class Service:
        rows: ClassVar = {1: "old"}
        loads = 0

        @user.cache_read(suffix="name")
        async def get(self, user_id: int) -> str:
            Service.loads += 1
            return self.rows[user_id]

        @user.cache_write(warm=[get])
        async def update(self, user_id: int, name: str) -> "Service":
            self.rows[user_id] = name
            return self

        @user.cache_write()
        @classmethod
        async def above(cls, user_id: int, name: str) -> "type[Service]":
            cls.rows[user_id] = name
            return cls

        @classmethod
        @user.cache_write()
        async def below(cls, user_id: int, name: str) -> "type[Service]":
            cls.rows[user_id] = name
            return cls

        @staticmethod
        @user.cache_write()
        async def static(user_id: int, name: str) -> None:
            Service.rows[user_id] = name

    service = Service()
    assert await service.get(1) == "old"
    assert await service.update(1, "a") is service
    assert (Service.loads, await service.get(1), Service.loads) == (2, "a", 2)
    assert await service.above(1, "b") is Service
    assert await service.get(1) == "b"
    assert await Service.below(1, "c") is Service
    assert await service.get(1) == "c"
    await service.static(1, "d")
    assert await service.get(1) == "d"


async def test_a_write_looks_like_the_function_that_it_decorates(update):
    assert inspect.iscoroutinefunction(update)
    assert str(inspect.signature(update)) == "(user_id: int, name: str = 'new') -> str"
    assert update.__name__ == "update"


# Mistakes, each found at decoration


async def one(user_id: int) -> int:
    return user_id


def plain(user_id: int) -> int:
    return user_id


async def stream(user_id: int):
    yield user_id


async def by_name(name: str) -> str:
    return name


async def with_role(user_id: int, role: str) -> str:
    return role


users_of_memory = Cache("memory://").resource("user", "user_id")
read_one = users_of_memory.cache_read()(one)
read_role = users_of_memory.cache_read(suffix="{role}")(with_role)
write_one = users_of_memory.cache_write()(one)


@wraps(write_one)
async def wrapped_write(*args):
    return await write_one(*args)


READ, WRITE = users_of_memory.cache_read, users_of_memory.cache_write
MISTAKES = [
    (READ(), by_name, r"by_name: it has no argument 'user_id', by which resource\('user', 'user_id'\) goes; add it"),
    (WRITE(), by_name, "by_name: it has no argument 'user_id'"),
    (READ(), with_role, r"with_role: calls that differ in 'role' .* suffix='…:\{role\}', or write ignore=\['role'\]"),
    (READ(ignore="role"), with_role, r"with_role: ignore is the string 'role'; write ignore=\['role'\]"),
    (READ(ignore=["rule"]), with_role, "with_role: ignore='rule' is no argument that the key leaves out"),
    (READ(suffix="{rule}"), with_role, "with_role, suffix: .* names 'rule'; there is: role, user_id"),
    (READ(suffix="{role}", tags=["role:role"]), with_role, r"'role:role' is the same for all .* write 'role:\{role\}'"),
    (WRITE(tags=["role:role"]), with_role, r"with_role: the tag 'role:role' .* write 'role:\{role\}'"),
    (WRITE(tags=["role:{rule}"]), with_role, "with_role, tags: .* names 'rule'"),
    (WRITE(tags=["role:{{role}}"]), with_role, "with_role, tags: .* doubled braces"),
    (WRITE(tags="role:{role}"), with_role, r"with_role: tags is the string .* write tags=\["),
    (READ(tags="role:{role}", suffix="{role}"), with_role, r"with_role: tags is the string .* write tags=\["),
    (READ(ttl=-1), one, "one: ttl must be"),
    (READ(), write_one, "one: it has a cache_write already; take away one of them"),
    (READ(), wrapped_write, "one: it has a cache_write already"),
    (WRITE(), read_one, "one: it is cached already, and a hit calls nothing; take away one of them"),
    (WRITE(), cached()(one), "one: it is cached already"),
    (READ(), read_one, "one: it is cached already"),
    (WRITE(), write_one, r"one: it has a cache_write already; put its tags into one, as tags=\[…\]"),
    (WRITE(), stream, "stream: a generator has not written when it is called"),
    (READ(), stream, "stream: a generator's values cannot be cached"),
    (WRITE(), 7, r"resource\('user', 'user_id'\).cache_write decorates a function, not 7"),
    (WRITE(warm=[read_role]), one, "one: to warm .*with_role it needs the argument 'role'; add it"),
    (WRITE(warm=[one]), one, "one: warm takes cached functions, .* not <function one"),
    (WRITE(warm=[read_one]), plain, "plain: a plain function has no event loop to load .*one on; warm it by an event"),
]


@pytest.mark.parametrize(("decorator", "function", "said"), MISTAKES, ids=[said[:60] for *_, said in MISTAKES])
def test_a_mistake_is_found_at_decoration_and_names_the_function_and_the_cure(decorator, function, said):
    with pytest.raises((ConfigurationError, TemplateError), match=said):
        decorator(function)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("user",), r"resource\('user'\): name the argument that holds its id"),
        (("user", "{user_id}"), r"resource\('user', '\{user_id\}'\): .* write it without braces"),
        (("user:x", "user_id"), "'user:x' must be"),
    ],
)
def test_a_resource_that_cannot_be_is_refused(given, said):
    with pytest.raises(ConfigurationError, match=said):
        resource_of_default(*given)


USAGE = """
from typing import assert_type
from tidings import resource

user = resource("user", "user_id")

@user.cache_read(suffix="profile", ttl="long", jitter=0.1, tags=["x"], ignore=["db"])
async def get(user_id: int, db: object) -> str:
    return ""

@user.cache_write(warm=[get], tags=lambda user_id, **_: [f"a:{user_id}"])
async def update(user_id: int, name: str, db: object) -> int:
    return 1

class Service:
    @user.cache_write()
    def update(self, user_id: int) -> int:
        return 1

    @user.cache_write()
    @classmethod
    async def make(cls, user_id: int) -> str:
        return ""

async def main() -> None:
    assert_type(await get(1, None), str)
    assert_type(await update(1, "a", None), int)
    assert_type(Service().update(1), int)
    assert_type(await Service.make(1), str)
    await get("1", None)  # type: ignore[arg-type]
    await update("1", "a", None)  # type: ignore[arg-type]
    await update(1)  # type: ignore[call-arg]
    Service().update("1")  # type: ignore[arg-type]
    user.cache_read(key="x")  # type: ignore[call-arg]
    user.cache_read(ttl="longer")  # type: ignore[arg-type]
    user.cache_write(warm=[main])  # type: ignore[list-item]
"""


def test_decorated_functions_keep_their_types(tmp_path):
    """For ``mypy --strict``; each ignore stands on a mistake that must be an error."""
    usage = tmp_path / "usage.py"
    usage.write_text(USAGE, encoding="utf-8")
    root = Path(__file__).parent.parent  # where mypy keeps what it knows of the library
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--config-file=", usage]
    checked = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
