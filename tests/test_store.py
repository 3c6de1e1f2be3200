"""One conformance suite for every store: memory, fakeredis, a real server; from coroutines and from threads."""

import asyncio

import fakeredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from tidings import Cache
from tidings.errors import UnavailableError
from tidings.fence import Facts, Ticket, Verdict, judge, pack_entry, pack_vacancy, token_value, unique
from tidings.memory import Memory, MemoryStore, SyncMemoryStore
from tidings.operations import Append, Fill, Invalidate, Look, Open, Ping, Put
from tidings.store import RedisStore, SyncRedisStore

TOKENS = ("token:all", "token:tag:a")
KEY = "cache:default:f:1"


class Threaded:
    """A blocking store behind the asynchronous interface, each operation in a thread."""

    def __init__(self, store):
        self.store = store

    async def run(self, operation):
        return await asyncio.to_thread(self.store.run, operation)

    async def aclose(self):
        await asyncio.to_thread(self.store.close)


@pytest.fixture(params=["memory", "fakeredis", "server", "memory-sync", "fakeredis-sync", "server-sync"])
async def store(request, url):
    kind, _, sync = request.param.partition("-")
    if kind == "memory":
        made = Threaded(SyncMemoryStore(Memory())) if sync else MemoryStore(Memory())
    elif kind == "fakeredis":
        server = fakeredis.FakeServer()
        fake, driver = (fakeredis.FakeRedis, SyncRedisStore) if sync else (fakeredis.FakeAsyncRedis, RedisStore)
        made = driver(fake(server=server), fake(server=server), "fakeredis")
        made = Threaded(made) if sync else made
    else:
        settings = Cache(url).settings
        made = Threaded(SyncRedisStore.connect(settings)) if sync else RedisStore.connect(settings)
    yield made
    await made.aclose()


async def look(store):
    raw, tokens = await store.run(Look(KEY, TOKENS))
    return judge(KEY, raw, tokens)


async def ticket_for(store):
    seen = await look(store)
    if seen.ticket is not None:
        return seen.ticket
    head, tokens = await store.run(Open(KEY, pack_vacancy(), 60_000, TOKENS, 60_000))
    return judge(KEY, head, tokens).ticket


async def fill(store, ticket, payload=b"J1", ttl_ms=60_000):
    packed = pack_entry(ticket, Facts((), 0.0, "test"), payload)
    return await store.run(Fill(KEY, ticket.lineage, packed, ttl_ms, TOKENS, 60_000))


async def invalidate(store, *names, entries=()):
    causes = dict.fromkeys(names, "call:test")
    keys = tuple(f"token:{name}" for name in names)
    vacancies = {entry: pack_vacancy() for entry in entries}
    uniques = tuple(unique() for _ in names)
    return await store.run(Invalidate(causes, keys, uniques, vacancies, "log", 100, 60_000, 60_000, "applied"))


async def test_nothing_is_there_at_first(store):
    seen = await look(store)
    assert (seen.verdict, seen.missing) == (Verdict.ABSENT, (0, 1))


async def test_open_makes_what_is_missing_and_reads_the_tokens(store):
    ticket = await ticket_for(store)
    seen = await look(store)
    assert seen.verdict is Verdict.VACANT
    assert seen.ticket == ticket


async def test_opening_twice_gives_both_readers_the_same_ticket(store):
    opened = [await store.run(Open(KEY, pack_vacancy(), 60_000, TOKENS, 60_000)) for _ in range(2)]
    first, second = (judge(KEY, head, tokens).ticket for head, tokens in opened)
    assert first is not None
    assert first == second


async def test_opening_anew_refuses_older_fills_and_leaves_the_value(store):
    older = await ticket_for(store)
    await fill(store, older)
    head, tokens = await store.run(Open(KEY, pack_vacancy(), 60_000, TOKENS, 60_000, renew=True))
    renewed = judge(KEY, head, tokens).ticket
    seen = await look(store)
    assert (seen.verdict, seen.payload, seen.ticket) == (Verdict.FRESH, b"J1", renewed)
    assert not await fill(store, older, b"J2")
    assert await fill(store, renewed, b"J3")
    assert (await look(store)).payload == b"J3"


async def test_opening_a_vacancy_again_prolongs_it(store):
    await store.run(Put(KEY, pack_vacancy(), 50))
    head, tokens = await store.run(Open(KEY, pack_vacancy(), 60_000, TOKENS, 60_000))
    await asyncio.sleep(0.06)  # its first life
    assert await fill(store, judge(KEY, head, tokens).ticket)


async def test_what_is_filled_is_served(store):
    assert await fill(store, await ticket_for(store))
    seen = await look(store)
    assert (seen.verdict, seen.payload) == (Verdict.FRESH, b"J1")


@pytest.mark.parametrize("name", ["all", "tag:a"])
async def test_an_invalidated_token_makes_the_entry_invalid(store, name):
    await fill(store, await ticket_for(store))
    await invalidate(store, name)
    assert (await look(store)).verdict is Verdict.INVALIDATED


async def test_a_token_of_somebody_else_does_not(store):
    await fill(store, await ticket_for(store))
    await invalidate(store, "tag:b", "namespace:other")
    assert (await look(store)).verdict is Verdict.FRESH


async def test_a_fill_from_before_a_token_changed_is_not_served(store):
    ticket = await ticket_for(store)
    await invalidate(store, "tag:a")
    await fill(store, ticket)
    assert (await look(store)).verdict is Verdict.INVALIDATED


async def test_a_fill_from_before_the_entry_was_invalidated_is_refused(store):
    ticket = await ticket_for(store)
    assert await invalidate(store, entries=[KEY]) == 0
    assert not await fill(store, ticket)
    assert (await look(store)).verdict is Verdict.VACANT


async def test_a_fill_is_refused_when_the_tombstone_has_expired_too(store):
    """The race that a tombstone alone loses: nothing looks like nothing again."""
    ticket = await ticket_for(store)
    await store.run(Put(KEY, pack_vacancy(), 1))  # a tombstone with one millisecond to live
    while (await look(store)).verdict is not Verdict.ABSENT:
        await asyncio.sleep(0)
    assert not await fill(store, ticket)


async def test_a_fill_from_after_the_entry_was_invalidated_is_stored(store):
    await ticket_for(store)
    await invalidate(store, entries=[KEY])
    assert await fill(store, await ticket_for(store))
    assert (await look(store)).verdict is Verdict.FRESH


async def test_invalidating_an_entry_says_whether_it_held_a_value(store):
    await fill(store, await ticket_for(store))
    assert await invalidate(store, entries=[KEY]) == 1
    assert await invalidate(store, entries=[KEY]) == 0


async def test_two_fills_of_one_lineage_may_overwrite_each_other(store):
    ticket = await ticket_for(store)
    assert await fill(store, ticket, b"J1")
    assert await fill(store, ticket, b"J2")
    assert (await look(store)).payload == b"J2"


async def test_a_value_put_by_hand_is_not_overwritten_by_a_load_in_flight(store):
    ticket = await ticket_for(store)
    by_hand = Ticket(KEY, unique(), ticket.tokens)
    await store.run(Put(KEY, pack_entry(by_hand, Facts((), 0.0, "test"), b"J9"), 60_000))
    assert not await fill(store, ticket)
    assert (await look(store)).payload == b"J9"


async def test_an_entry_expires(store):
    await fill(store, await ticket_for(store), ttl_ms=1)
    while (await look(store)).verdict is not Verdict.ABSENT:
        await asyncio.sleep(0)


async def test_foreign_bytes_are_absent_and_are_replaced_when_a_load_begins(store):
    await store.run(Put(KEY, b"\x02somebody else's format, longer than a header", 60_000))
    assert (await look(store)).verdict is Verdict.ABSENT
    assert await fill(store, await ticket_for(store))
    assert (await look(store)).verdict is Verdict.FRESH


async def test_every_new_token_has_a_new_value_and_carries_its_cause(store):
    seen = set()
    for _ in range(5):
        await invalidate(store, "all", "tag:a")
        _, tokens = await store.run(Look(KEY, TOKENS))
        seen.update(token[:16] for token in tokens)
        assert all(token.endswith(b" call:test") for token in tokens)
        assert all(token.split(b" ")[1].isdigit() for token in tokens)
    assert len(seen) == 10


async def test_an_event_is_appended_under_a_growing_id(store):
    ids = [await store.run(Append("events", {"type": "x"})) for _ in range(3)]
    assert sorted(ids, key=lambda i: tuple(map(int, i.split("-")))) == ids
    assert len(set(ids)) == 3
    await store.run(Ping())


# What only a server can show


@pytest.fixture
async def server_store(url):
    store = RedisStore.connect(Cache(url).settings)
    yield store
    await store.aclose()


async def test_a_key_of_another_redis_type_is_absent_and_is_replaced(server_store):
    await server_store.client.rpush(KEY, "a list")
    assert (await look(server_store)).verdict is Verdict.ABSENT
    assert await fill(server_store, await ticket_for(server_store))
    assert (await look(server_store)).verdict is Verdict.FRESH


async def test_a_token_of_another_redis_type_is_replaced(server_store):
    await server_store.client.rpush(TOKENS[1], "a list")
    assert await fill(server_store, await ticket_for(server_store))
    assert (await look(server_store)).verdict is Verdict.FRESH


async def test_scripts_survive_a_server_that_forgot_them(server_store):
    await ticket_for(server_store)
    await server_store.client.script_flush()
    assert await fill(server_store, await ticket_for(server_store))
    await server_store.client.script_flush()
    await invalidate(server_store, "all")
    assert (await look(server_store)).verdict is Verdict.INVALIDATED


async def test_a_flushed_server_costs_misses_and_no_stale_hit(server_store):
    await fill(server_store, await ticket_for(server_store))
    raw = await server_store.client.get(KEY)
    await server_store.client.flushall()
    await server_store.client.set(KEY, raw)  # as a restored or replicated copy would
    assert (await look(server_store)).verdict is Verdict.INVALIDATED
    await ticket_for(server_store)
    assert (await look(server_store)).verdict is Verdict.INVALIDATED


async def test_each_log_entry_names_the_one_before_it(server_store):
    for name in ("tag:a", "all", "tag:b"):
        await invalidate(server_store, name)
    entries = await server_store.client.xrange("log")
    assert [fields[b"prev"] for _, fields in entries] == [b"0-0", *(i for i, _ in entries[:-1])]
    assert entries[0][1][b"what"] == b'{"tokens":{"tag:a":"call:test"},"entries":[]}'


async def test_a_fill_prolongs_its_tokens_and_never_shortens_them(server_store):
    await fill(server_store, await ticket_for(server_store), ttl_ms=600_000)
    assert await server_store.client.pttl(TOKENS[1]) > 1_000_000
    await fill(server_store, await ticket_for(server_store), ttl_ms=1000)
    assert await server_store.client.pttl(TOKENS[1]) > 1_000_000


async def test_an_error_reply_inside_a_batch_is_not_taken_for_an_answer(server_store):
    await server_store.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(UnavailableError, match="OutOfMemoryError"):
            await ticket_for(server_store)
    finally:
        await server_store.client.config_set("maxmemory", "0")


async def test_no_server_is_an_unavailable_error_that_shows_no_password():
    store = RedisStore.connect(Cache("redis://app:s3cret@127.0.0.1:1/0").settings)
    with pytest.raises(UnavailableError) as caught:
        await store.run(Ping())
    assert isinstance(caught.value.__cause__, RedisConnectionError)
    assert "s3cret" not in str(caught.value)
    await store.aclose()


def test_a_token_made_by_a_reader_says_so():
    assert token_value("0 first use").partition(b" ")[2] == b"0 first use"
