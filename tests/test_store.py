"""One conformance suite for every store: memory, fakeredis, a real server; from coroutines and from threads."""

import asyncio

import fakeredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from tidings import Cache
from tidings.cluster_store import ClusterStore
from tidings.cluster_threads import SyncClusterStore
from tidings.entries import Fill, Lease, Look, Open, Places, Put, Release, Results
from tidings.errors import UnavailableError
from tidings.fence import Verdict, judge
from tidings.layout import Facts, Token, pack_entry, pack_vacancy, unique
from tidings.memory import Memory, MemoryStore, SyncMemoryStore
from tidings.operations import Append, Batch, Drop, Invalidate, Ping, Scan
from tidings.store import RedisStore, SyncRedisStore

TOKENS = ("token:all", "token:tag:a")
KEY = "cache:default:f:1"
KEYS = (KEY, *TOKENS)
PLACES = Places("lease:default:f:1", "lease:ended", "log")
RESULT = "token:tag:result"


class Threaded:
    """A blocking store behind the asynchronous interface, each operation in a thread."""

    def __init__(self, store):
        self.store = store

    async def run(self, operation):
        return await asyncio.to_thread(self.store.run, operation)

    async def aclose(self):
        await asyncio.to_thread(self.store.close)


KINDS = ["memory", "fakeredis", "server", "cluster"]


@pytest.fixture(params=[*KINDS, *(f"{kind}-sync" for kind in KINDS)])
async def store(request, url):
    kind, _, sync = request.param.partition("-")
    if kind == "memory":
        made = Threaded(SyncMemoryStore(Memory())) if sync else MemoryStore(Memory())
    elif kind == "fakeredis":
        server = fakeredis.FakeServer()
        fake, driver = (fakeredis.FakeRedis, SyncRedisStore) if sync else (fakeredis.FakeAsyncRedis, RedisStore)
        made = driver(fake(server=server), fake(server=server), "fakeredis")
        made = Threaded(made) if sync else made
    elif kind == "cluster":
        settings = Cache(request.getfixturevalue("cluster").url).settings
        made = Threaded(SyncClusterStore.connect(settings)) if sync else ClusterStore.connect(settings)
    else:
        settings = Cache(url).settings
        made = Threaded(SyncRedisStore.connect(settings)) if sync else RedisStore.connect(settings)
    yield made
    await made.aclose()


async def look(store, **asked):
    found = await store.run(Look(KEYS, **asked))
    return judge(KEY, found.entry, found.tokens, found.left_ms)


async def opened(store, *, owner=None, vacancy=None, **options):
    lease = None if owner is None else Lease(owner, 60_000)
    return await store.run(Open(KEYS, PLACES, vacancy or pack_vacancy(), 60_000, 60_000, lease=lease, **options))


def ticket_of(found):
    return judge(KEY, found.head, found.tokens).ticket


async def ticket_for(store):
    seen = await look(store)
    return ticket_of(await opened(store)) if seen.ticket is None else seen.ticket


def packed(ticket, payload=b"J1", **times):
    return pack_entry(ticket.lineage, ticket.tokens, Facts((), "test"), payload, **times)


async def fill(store, ticket, payload=b"J1", *, ttl_ms=60_000, owner=b"", results=None, **times):
    what = packed(ticket, payload, **times)
    return await store.run(Fill(KEYS, PLACES, ticket.lineage, what, ttl_ms, 60_000, owner, results or Results()))


async def invalidate(store, *names, entries=(), vacancy_ms=60_000, patterns=()):
    causes = dict.fromkeys(names, "call:test")
    keys = tuple(f"token:{name}" for name in names)
    vacancies = entries if isinstance(entries, dict) else {entry: pack_vacancy() for entry in entries}
    uniques = tuple(unique() for _ in names)
    return await store.run(
        Invalidate(
            causes, keys, uniques, vacancies, "log", 100, 60_000, vacancy_ms, "applied", patterns=tuple(patterns)
        )
    )


async def plant(store, value, ttl_ms=60_000):
    """Put any bytes under the key, for so long."""
    await invalidate(store, entries={KEY: value}, vacancy_ms=ttl_ms)


async def test_nothing_is_there_at_first(store):
    seen = await look(store)
    assert (seen.verdict, seen.missing) == (Verdict.ABSENT, (0, 1))


async def test_open_makes_what_is_missing_and_reads_the_tokens(store):
    ticket = await ticket_for(store)
    seen = await look(store)
    assert seen.verdict is Verdict.VACANT
    assert seen.ticket == ticket


async def test_opening_twice_gives_both_readers_the_same_ticket(store):
    first, second = [ticket_of(await opened(store)) for _ in range(2)]
    assert first is not None
    assert first == second


async def test_opening_anew_refuses_older_fills_and_leaves_the_value(store):
    older = await ticket_for(store)
    await fill(store, older)
    renewed = ticket_of(await opened(store, renew=True))
    seen = await look(store)
    assert (seen.verdict, seen.payload, seen.ticket) == (Verdict.FRESH, b"J1", renewed)
    assert not await fill(store, older, b"J2")
    assert await fill(store, renewed, b"J3")
    assert (await look(store)).payload == b"J3"


async def test_opening_a_vacancy_again_prolongs_it(store):
    await plant(store, pack_vacancy(), 50)
    ticket = ticket_of(await opened(store))
    await asyncio.sleep(0.06)  # its first life
    assert await fill(store, ticket)


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
    await plant(store, pack_vacancy(), 1)  # a tombstone with one millisecond to live
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
    by_hand = pack_entry(unique(), ticket.tokens, Facts((), "test"), b"J9")
    await store.run(Put(KEYS, by_hand, 60_000, 60_000))
    assert not await fill(store, ticket)
    assert (await look(store)).payload == b"J9"


async def test_an_entry_expires(store):
    await fill(store, await ticket_for(store), ttl_ms=1)
    while (await look(store)).verdict is not Verdict.ABSENT:
        await asyncio.sleep(0)


async def test_foreign_bytes_are_absent_and_are_replaced_when_a_load_begins(store):
    await plant(store, b"\x01e somebody else's format, longer than a header")
    assert (await look(store)).verdict is Verdict.ABSENT
    assert await fill(store, await ticket_for(store))
    assert (await look(store)).verdict is Verdict.FRESH


async def test_every_new_token_has_a_new_value_and_carries_its_cause(store):
    seen = set()
    for _ in range(5):
        await invalidate(store, "all", "tag:a")
        tokens = [Token.unpack(token) for token in (await store.run(Look(KEYS))).tokens]
        seen.update(token.value for token in tokens)
        assert {token.cause for token in tokens} == {"call:test"}
        assert all(token.made_us > 1_600_000_000_000_000 for token in tokens)
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


async def test_a_token_made_by_a_reader_says_so(store):
    await ticket_for(store)
    assert {Token.unpack(token).cause for token in (await store.run(Look(KEYS))).tokens} == {"first use"}


async def test_a_token_names_the_one_before_it(store):
    await ticket_for(store)
    before = (await store.run(Look(KEYS))).tokens[1][:16]
    await invalidate(store, "tag:a")
    token = Token.unpack((await store.run(Look(KEYS))).tokens[1])
    assert token.before == before
    assert token.value != before


async def test_a_look_tells_the_time_left_and_the_servers_time_when_asked(store):
    found = await store.run(Look(KEYS, ttl=True, time=True))
    assert found.left_ms is None
    await fill(store, await ticket_for(store), ttl_ms=50_000)
    later = await store.run(Look(KEYS, ttl=True, time=True))
    assert 0 < later.left_ms <= 50_000
    assert later.now_us >= found.now_us > 0
    assert (await store.run(Look(KEYS))).left_ms is None


async def test_a_kept_value_is_expired_when_only_its_grace_is_left(store):
    await fill(store, await ticket_for(store), ttl_ms=60_000, grace_ms=60_001)
    assert (await look(store, ttl=True)).verdict is Verdict.EXPIRED
    await fill(store, await ticket_for(store), ttl_ms=60_000, grace_ms=10)
    assert (await look(store, ttl=True)).verdict is Verdict.FRESH


# Result tags


def results_of(found):
    return Results((RESULT,), found.logged, found.logged_at)


async def test_a_result_tag_is_stored_when_nothing_was_invalidated_since(store):
    found = await opened(store, log=True)
    assert await fill(store, ticket_of(found), results=results_of(found))
    raw = await store.run(Look((*KEYS, RESULT)))
    assert judge(KEY, raw.entry, raw.tokens).verdict is Verdict.FRESH


async def test_a_result_tag_invalidated_during_the_load_refuses_the_fill(store):
    found = await opened(store, log=True)
    await invalidate(store, "tag:result")
    assert not await fill(store, ticket_of(found), results=results_of(found))


async def test_a_result_tag_invalidated_before_the_load_does_not(store):
    await invalidate(store, "tag:result")
    found = await opened(store, log=True)
    await invalidate(store, "tag:another")
    assert await fill(store, ticket_of(found), results=results_of(found))


async def test_a_result_tag_that_is_missing_while_others_were_invalidated_costs_one_more_load(store):
    """It might have been invalidated and then evicted: nobody can tell, but on a cluster, where the log is asked."""
    found = await opened(store, log=True)
    await invalidate(store, "tag:another")
    asks_the_log = isinstance(getattr(store, "store", store), ClusterStore | SyncClusterStore)
    assert await fill(store, ticket_of(found), results=results_of(found)) == asks_the_log
    again = await opened(store, log=True)
    await invalidate(store, "tag:another")
    assert await fill(store, ticket_of(again), results=results_of(again))


async def test_a_result_tag_lost_and_made_anew_by_a_reader_refuses_older_loads(store):
    """Invalidated, evicted, then made by somebody's load: its age must not look like innocence."""
    found = await opened(store, log=True)
    await invalidate(store, "tag:result")
    await store.run(Drop((RESULT,)))
    other = (KEY + "2", RESULT)
    await store.run(Open(other, PLACES, pack_vacancy(), 60_000, 60_000))
    assert not await fill(store, ticket_of(found), results=results_of(found))


async def test_a_clock_that_was_set_back_does_not_hide_an_invalidation_during_the_load():
    seconds = [1000.0]
    store = MemoryStore(Memory(lambda: seconds[0]))
    await invalidate(store, "tag:result")
    found = await opened(store, log=True)
    seconds[0] = 900.0
    await invalidate(store, "tag:result")
    assert not await fill(store, ticket_of(found), results=results_of(found))


# Scanning and dropping


async def test_a_scan_finds_entries_and_loads_in_flight_by_pattern(store):
    await ticket_for(store)
    found, cursor = [], 0
    while True:
        cursor, keys = await store.run(Scan("cache:default:f:*", cursor))
        found += keys
        if cursor == 0:
            break
    assert found == [KEY.encode()]


async def test_a_fill_of_a_dropped_vacancy_is_refused(store):
    ticket = await ticket_for(store)
    assert await store.run(Drop((KEY,))) == 1
    assert not await fill(store, ticket)
    assert (await look(store)).verdict is Verdict.ABSENT


async def test_a_batch_gives_what_each_operation_gives(store):
    ticket = await ticket_for(store)
    what = Fill(KEYS, PLACES, ticket.lineage, packed(ticket), 60_000, 60_000)
    found, stored, again = await store.run(Batch((Look(KEYS), what, Look(KEYS, ttl=True))))
    assert found.entry.startswith(pack_vacancy()[:2])
    assert stored
    assert again.left_ms > 0


async def test_a_server_whose_clock_is_behind_the_log_goes_by_the_log(server_store):
    seconds, _ = await server_store.client.time()
    await server_store.client.xadd("log", {"prev": "0-0", "what": "{}", "at": str((seconds + 3600) * 1_000_000)})
    found = await opened(server_store, log=True)
    await invalidate(server_store, "tag:result")
    assert not await fill(server_store, ticket_of(found), results=results_of(found))
    again = await opened(server_store, log=True)
    assert await fill(server_store, ticket_of(again), results=results_of(again))


# Leases, which only separate processes need


async def test_a_lease_is_held_against_others_under_the_same_ticket(server_store):
    first = await opened(server_store, owner=b"A" * 16)
    second = await opened(server_store, owner=b"B" * 16)
    assert (first.leads, second.leads) == (True, False)
    assert 0 < second.left_ms <= 60_000


async def test_a_lease_with_result_tags_is_nobodys_when_anything_was_invalidated_since(server_store):
    await opened(server_store, owner=b"A" * 16, log=True)
    assert not (await opened(server_store, owner=b"B" * 16, log=True)).leads
    await invalidate(server_store, "tag:result")
    assert (await opened(server_store, owner=b"C" * 16, log=True)).leads


async def test_a_lease_under_older_tokens_is_nobodys(server_store):
    await opened(server_store, owner=b"A" * 16)
    await invalidate(server_store, "tag:a")
    assert (await opened(server_store, owner=b"B" * 16)).leads


async def test_a_fill_ends_the_lease_and_tells_those_who_wait(server_store):
    first = await opened(server_store, owner=b"A" * 16)
    second = await opened(server_store, owner=b"B" * 16)
    assert await fill(server_store, ticket_of(first), owner=b"A" * 16)
    told = await server_store.client.xread({PLACES.wakes: second.position})
    assert told[0][1][0][1] == {b"key": KEY.encode()}
    assert not await server_store.client.exists(PLACES.lease)


async def test_nobody_is_told_when_nobody_waits(server_store):
    first = await opened(server_store, owner=b"A" * 16)
    await fill(server_store, ticket_of(first), owner=b"A" * 16)
    assert not await server_store.client.exists(PLACES.wakes)


async def test_a_lease_that_was_taken_over_is_not_ended_by_who_lost_it(server_store):
    await opened(server_store, owner=b"A" * 16)
    await server_store.client.delete(PLACES.lease)
    await opened(server_store, owner=b"B" * 16)
    await server_store.run(Release(KEY, PLACES, b"A" * 16))
    assert await server_store.client.exists(PLACES.lease)
    await server_store.run(Release(KEY, PLACES, b"B" * 16))
    assert not await server_store.client.exists(PLACES.lease)


async def test_an_owner_whose_name_ends_like_the_mark_of_a_wait_wakes_nobody(server_store):
    first = await opened(server_store, owner=b"w" * 16)
    await server_store.run(Release(KEY, PLACES, b"w" * 16))
    assert ticket_of(first) is not None
    assert not await server_store.client.exists(PLACES.wakes)
