"""Stories of a service and a pipeline that use tidings for the first time, end to end, by its interface alone."""

import asyncio
import math
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from pydantic import BaseModel
from structlog.testing import capture_logs
from tidings import Cache, Event, cached, configure, get_cache, publish, resource, set_cache
from tidings.errors import ArgumentError, ConfigurationError, EncodeError, InvalidationError
from tidings.testing import assert_invalidated, assert_not_published, assert_published


class Price(BaseModel):
    sku: str
    cents: int | None


@pytest.fixture
def default():
    """Put the default cache back as it was."""
    before = set_cache(None)
    yield
    set_cache(before)


@pytest.fixture(params=["server", "memory"])
def where(request):
    """The same stories on a server and without one."""
    return request.getfixturevalue("url") if request.param == "server" else "memory://"


# --- cache-aside, one at a time and in a batch


async def test_a_batch_loads_what_is_missing_in_one_call_and_an_event_of_one_row_ends_that_row_alone(where):
    asked: list[list[str]] = []

    async def load(missing: list[str]) -> dict[str, Price]:
        asked.append(missing)
        return {sku: Price(sku=sku, cents=len(asked)) for sku in missing if sku != "gone"}

    def tags(sku: str) -> Iterable[str]:
        return [f"price:{sku}"]

    async with Cache(where) as cache:
        first = await cache.get_or_set_many(["a", "b", "gone"], load, tags=tags, namespace="prices")
        assert first == {"a": Price(sku="a", cents=1), "b": Price(sku="b", cents=1)}
        await cache.invalidate_tags("price:a")
        second = await cache.get_or_set_many(["a", "b"], load, tags=tags, namespace="prices")
        assert (second["a"].cents, second["b"].cents) == (2, 1)
        assert asked == [["a", "b", "gone"], ["a"]]


async def test_a_batch_and_a_single_read_by_hand_share_their_entries(where):
    async def load(missing: list[str]) -> dict[str, Price]:
        return {sku: Price(sku=sku, cents=5) for sku in missing}

    async def never() -> Price:
        raise AssertionError("it is there already")

    async with Cache(where) as cache:
        await cache.get_or_set_many(["a"], load, namespace="prices")
        assert await cache.get_or_set("a", never, namespace="prices") == Price(sku="a", cents=5)


async def test_a_loader_that_returns_no_mapping_is_told_so_and_keeps_nothing(where):
    async def rows(missing: list[str]) -> list[str]:
        return missing

    async with Cache(where) as cache:
        with pytest.raises(EncodeError, match="the loader returned a list, not a mapping"):
            await cache.get_or_set_many(["a"], rows)  # type: ignore[arg-type]
        assert await cache.get("a") is None


# --- services beside each other on one server


async def test_services_with_prefixes_of_their_own_do_not_hear_of_each_other_and_versions_do(url):
    loads: list[str] = []

    def reader(cache: Cache, name: str):
        @cache.cached(namespace="rows", tags=["row:{number}"])
        async def row(number: int) -> str:
            loads.append(name)
            return name

        return row

    async with (
        Cache(url, prefix="billing") as billing,
        Cache(url, prefix="billing", version="2") as deployed,
        Cache(url, prefix="shop") as shop,
    ):
        readers = [reader(billing, "billing"), reader(deployed, "deployed"), reader(shop, "shop")]
        assert [await read(1) for read in readers] == ["billing", "deployed", "shop"]
        loads.clear()
        await billing.invalidate_tags("row:1")
        assert [await read(1) for read in readers] == ["billing", "deployed", "shop"]
        assert loads == ["billing", "deployed"]


async def test_keys_of_others_survive_the_invalidation_of_everything(url, client):
    client.set("auth:access:1", "session")
    async with Cache(url) as cache:
        await cache.set("rates", {"usd": 1})
        await cache.invalidate_all()
        assert await cache.get("rates") is None
    assert client.get("auth:access:1") == b"session"


# --- a day in the life: frozen server, restarts of the loop, threads


async def test_a_frozen_server_costs_readers_one_deadline_and_writers_an_error(new_server):
    server = new_server()
    calls: list[int] = []
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:

        @cache.cached(tags=["number:{number}"])
        async def double(number: int) -> int:
            calls.append(number)
            return 2 * number

        assert await double(4) == 8
        os.kill(server._process.pid, signal.SIGSTOP)
        assert [await double(4), await double(4)] == [8, 8]
        assert calls == [4, 4, 4]
        with pytest.raises(InvalidationError):
            await cache.invalidate_tags("number:4")
        health = await cache.health()
        assert (health["ok"], health["reads"]) == (False, "direct")
        os.kill(server._process.pid, signal.SIGCONT)
        async with asyncio.timeout(10):  # until a call is a hit again
            loads = 0
            while loads != len(calls):
                loads = len(calls)
                await asyncio.sleep(0.01)
                await double(4)
        assert (await cache.health())["reads"] == "cached"


@pytest.mark.usefixtures("default")
def test_a_pipeline_uses_threads_and_one_loop_after_another_and_sees_every_change(where):
    configure(where)
    rates = {"usd": 1}

    @cached(namespace="rates", local_ttl=5, tags=["rate:{currency}"])
    def rate(currency: str) -> int:
        return rates[currency]

    async def change(value: int) -> int:
        rates["usd"] = value
        await get_cache().invalidate_tags("rate:usd")
        return await asyncio.to_thread(rate, "usd")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(rate, ["usd"] * 100)) == {1}
        assert [asyncio.run(change(value)) for value in (2, 3)] == [2, 3]
        assert set(pool.map(rate, ["usd"] * 100)) == {3}
    get_cache().sync.close()


# --- arguments and objects


async def test_an_object_is_part_of_the_key_when_it_is_named(where):
    async with Cache(where) as cache:

        class Tenant:
            def __init__(self, name: str) -> None:
                self.name = name

            @cache.cached(key="{self.name}:{page}")
            async def orders(self, page: int) -> str:
                return f"{self.name} {page}"

        assert [await Tenant(name).orders(1) for name in ("ann", "bob", "ann")] == ["ann 1", "bob 1", "ann 1"]


async def test_a_request_is_left_out_of_the_key_by_a_template_and_refused_without_one(where):
    class Request:
        pass

    async with Cache(where) as cache:

        async def profile(request: Request, user_id: int) -> int:
            return user_id

        with pytest.raises(ArgumentError, match=r"'request': a .*Request has no canonical form"):
            await cache.cached()(profile)(Request(), 7)
        of_user = cache.cached(key="{user_id}")(profile)
        assert [await of_user(Request(), 7), await of_user(Request(), 7)] == [7, 7]
        assert cache.stats()["default"]["loads"] == 1


# --- the tests of a service


class StockChanged(Event, type="user_story.stock_changed"):
    sku: str


item = resource("item", "sku")
stock: dict[str, int] = {}


@item.cache_read(suffix="stock", ttl=60, negative_ttl=5)
async def in_stock(*, sku: str) -> int | None:
    return stock.get(sku)


@item.cache_write(warm=[in_stock])
async def restock(*, sku: str, number: int) -> None:
    stock[sku] = number
    await publish(StockChanged(sku=sku))


async def test_a_service_is_tested_without_a_server_and_without_waiting(tidings_cache, tidings_clock):
    stock.clear()
    assert [await in_stock(sku="a"), await in_stock(sku="b")] == [None, None]
    await restock(sku="a", number=9)
    assert_published(StockChanged, sku="a")
    assert_not_published(StockChanged, sku="b")
    assert_invalidated(tags=["item:a"])
    assert await in_stock(sku="a") == 9
    stock.update(a=1, b=1)
    tidings_clock.advance(6)
    assert [await in_stock(sku="a"), await in_stock(sku="b")] == [9, 1]
    tidings_clock.advance(55)
    assert await in_stock(sku="a") == 1
    assert tidings_cache.stats()["item"]["loads"] == 5


async def test_a_loader_whose_keys_are_numbers_is_told_so(where):
    """An easy mistake, with ids from a database: each would be found under no key, and nothing would be kept."""

    async def by_id(missing: list[str]) -> dict[int, int]:
        return {int(key): 1 for key in missing}

    async with Cache(where) as cache:
        with pytest.raises(EncodeError, match=r"by_id\): the loader returned a mapping with a key of type int"):
            await cache.get_or_set_many(["1"], by_id)  # type: ignore[arg-type]


# --- settings


DURATIONS = (
    "default_ttl",
    "token_ttl",
    "vacancy_ttl",
    "lease_ttl",
    "operation_timeout",
    "outage_ttl",
    "ttl_short",
    "ttl_long",
)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e12, True])
@pytest.mark.parametrize("name", [*DURATIONS, "ttls"])
def test_durations_are_finite_numbers_of_at_most_ten_years(name, value):
    with pytest.raises(ConfigurationError, match=name.upper()):
        Cache("memory://", **{name: {"prices": value} if name == "ttls" else value})


@pytest.mark.parametrize("name", ["max_value_bytes", "local_max_entries", "log_length"])
def test_sizes_are_numbers(name):
    with pytest.raises(ConfigurationError, match=name.upper()):
        Cache("memory://", **{name: True})


@pytest.mark.usefixtures("default")
def test_variables_that_are_no_json_are_listed_with_every_other_problem_and_without_their_text(monkeypatch):
    monkeypatch.setenv("TIDINGS_ENCRYPTION_KEYS", "topsecret")
    monkeypatch.setenv("TIDINGS_TTLS", "profiles:5")
    monkeypatch.setenv("TIDINGS_LEASE_TTL", "inf")
    with pytest.raises(ConfigurationError) as raised:
        get_cache()
    said = str(raised.value)
    assert "TIDINGS_ENCRYPTION_KEYS: is not JSON" in said
    assert "TIDINGS_TTLS: is not JSON" in said
    assert "TIDINGS_LEASE_TTL: " in said
    assert "topsecret" not in said
    assert "profiles:5" not in said
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.usefixtures("default")
def test_variables_that_are_json_are_read(monkeypatch):
    monkeypatch.setenv("TIDINGS_URL", "memory://")
    monkeypatch.setenv("TIDINGS_TTLS", '{"prices": 5}')
    assert get_cache().settings.ttls == {"prices": 5}


@pytest.mark.parametrize("url", [None, 5, "redis://h/abc", "redis://h/1/2", "rediss://h/x"])
def test_a_url_that_names_no_database_is_refused(url):
    with pytest.raises(ConfigurationError, match="the URL"):
        Cache(url)


def test_resources_are_known_by_names():
    for arguments in ((5, "id"), ("user", 5)):
        with pytest.raises(ConfigurationError):
            resource(*arguments)
    with pytest.raises(ConfigurationError, match="unexpected option 'sufix'"):
        resource("user", "id").cache_read(sufix="profile")
    with pytest.raises(ConfigurationError, match="tags must be a list"):

        @resource("user", "id").cache_write(tags=None)
        def write(id: int) -> None:  # noqa: A002
            """Write."""


# --- health


async def test_a_tier_that_nobody_uses_is_neither_alive_nor_dead(where, eventually):
    async with Cache(where) as cache:

        @cache.cached(local_ttl=60)
        async def find(sku: str) -> str:
            return sku

        assert (await cache.health())["local_tier"]["alive"] is None
        await find("a")
        await eventually(lambda: cache._shared.health()["local_tier"]["alive"])


async def test_a_database_that_is_not_there_is_said_once_and_reads_are_not_called_cached(new_server):
    server = new_server()
    with capture_logs() as logs:
        async with Cache(f"redis://127.0.0.1:{server.port}/9999") as cache:

            @cache.cached()
            async def find(sku: str) -> str:
                return sku

            for _ in range(3):
                assert await find("a") == "a"
                health = await cache.health()
                assert (health["ok"], health["reads"], health["refusing"]) == (False, "direct", True)
    assert [entry["event"] for entry in logs] == ["cache_refused"]
    assert not logs[0]["error"].startswith(logs[0]["server"]), "the line names the server once"


async def test_a_user_who_may_only_ping_is_not_told_that_reads_are_cached(new_server):
    server = new_server()
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL", "SETUSER", "guest", "on", "nopass", "-@all", "+ping", "+hello", "+select", "+client"
        )
    async with Cache(f"redis://guest:x@127.0.0.1:{server.port}") as cache:
        health = await cache.health()
    assert (health["ok"], health["reads"]) == (False, "direct")
