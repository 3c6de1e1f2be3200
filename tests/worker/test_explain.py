"""What `tidings explain` answers: which token changed, when, by which event or call, through which rule."""

import asyncio
import json

import pytest
from redis.exceptions import RedisError
from tidings import Cache, Event, cached
from tidings.causes import Kind
from tidings.errors import ConfigurationError, TidingsError, UnavailableError
from tidings.events import from_fields
from tidings.keys import ALL
from tidings_worker import Rules
from tidings_worker.explaining.asking import Servers
from tidings_worker.explaining.documents import document
from tidings_worker.explaining.explanation import State
from tidings_worker.explaining.gathering import answer
from tidings_worker.explaining.subjects import by_call, by_key
from tidings_worker.explaining.waiting import Place
from tidings_worker.explaining.wording import rows
from tidings_worker.failing import FailingWarms
from tidings_worker.importing import cached_function_at
from tidings_worker.jobs import jobs_pool
from tidings_worker.plans import Warm
from tidings_worker.queueing import WarmQueue


class ExplainUpdated(Event, type="explain.updated"):
    user_id: int


RULES = Rules()
RULES.map(ExplainUpdated, tags=["user:{user_id}"])


@pytest.fixture
async def cache(url):
    async with Cache(url) as cache:
        yield cache


@pytest.fixture
def get_user(cache):
    @cache.cached(namespace="users", tags=["user:{user_id}"], ttl=600)
    async def get_user(user_id: int) -> int:
        return user_id

    return get_user


@pytest.fixture
async def explain(cache, get_user):
    """Explain the entry of user 1, or a key's."""
    jobs = jobs_pool(cache.settings)

    async def explain(key=None, rules=None):
        subject, call = by_call(get_user, ["1"]) if key is None else (by_key(cache.keys, key), "")
        return await answer(Servers(cache, jobs), subject, call, rules)

    yield explain
    await jobs.aclose()


def text(found):
    """Return everything that is said to people, in one line."""
    return " ".join(" ".join(row) for row in rows(found))


async def apply(cache, receipt):
    """Do what a worker does about the events in the stream."""
    store = cache.reader().store
    client = await store.client_for(cache.keys.events)
    for stream_id, fields in await client.xrange(cache.keys.events, receipt.id, receipt.id):
        plan = RULES.plan(from_fields(cache.keys.events, stream_id.decode(), fields))
        await cache.invalidate_tokens(plan.causes)


async def test_what_was_never_loaded_is_absent(explain):
    found = await explain()
    assert found.explanation.state is State.ABSENT
    assert found.explanation.changes == ()
    assert "never loaded" in text(found)


async def test_what_was_loaded_is_served_and_says_by_whom_and_how_long_it_lives(explain, get_user):
    await get_user(1)
    found = await explain()
    entry = found.explanation.entry
    assert found.explanation.state is State.FRESH
    assert (entry.facts.how, entry.facts.tags) == ("read", ("user:1",))
    assert 590_000 < entry.left_ms <= 600_000
    assert document(found)["served"] is True
    assert "for a read" in text(found)


async def test_an_event_that_invalidated_is_named_with_its_rule_and_how_long_it_took(explain, cache, get_user):
    await get_user(1)
    receipt = await cache.publish(ExplainUpdated(user_id=1))
    await apply(cache, receipt)
    found = await explain()
    assert found.explanation.state is State.INVALIDATED
    (change,) = found.explanation.changes
    assert (change.what, change.cause.kind, change.cause.event_id) == ("tag:user:1", Kind.EVENT, receipt.event_id)
    assert found.events[receipt.event_id].type == "explain.updated"
    told = document(found)["changes"][0]
    assert told["rule"].startswith("rules.map('explain.updated')")
    assert 0 <= told["latency_ms"] < 10_000
    assert "explain.updated" in text(found)


async def test_an_event_that_the_stream_no_longer_has_is_named_by_its_id(explain, cache, client, get_user):
    await get_user(1)
    receipt = await cache.publish(ExplainUpdated(user_id=1))
    await apply(cache, receipt)
    client.xtrim("events", maxlen=0, approximate=False)
    found = await explain()
    assert found.events == {}
    assert receipt.event_id in text(found)


async def test_a_direct_call_is_named_with_its_method_and_process(explain, cache, get_user):
    await get_user(1)
    await cache.invalidate_tags("user:1")
    (change,) = (await explain()).explanation.changes
    assert change.cause.method == "invalidate_tags"
    assert change.cause.process


async def test_of_several_changes_the_first_made_it_wrong_and_all_are_told(explain, cache, get_user):
    await get_user(1)
    await cache.invalidate_tags("user:1")
    await cache.invalidate_namespace("users")
    await cache.invalidate_all()
    await cache.invalidate_tags("user:1")
    told = (await explain()).explanation
    assert [change.what for change in told.changes] == ["tag:user:1", "namespace:users", ALL, "tag:user:1"]
    assert told.complete


async def test_a_log_that_does_not_go_back_to_the_load_is_said_to_be_short(explain, cache, client, get_user):
    await get_user(1)
    await cache.invalidate_tags("user:1")
    await cache.invalidate_tags("user:1")
    client.xtrim("invalidations", maxlen=0, approximate=False)
    told = (await explain()).explanation
    assert [change.what for change in told.changes] == ["tag:user:1"]
    assert not told.complete


async def test_one_change_is_all_that_is_needed_without_a_log(explain, cache, client, get_user):
    """The token names the value before it, which is the entry's."""
    await get_user(1)
    await cache.invalidate_tags("user:1")
    client.delete("invalidations")
    told = (await explain()).explanation
    assert [change.what for change in told.changes] == ["tag:user:1"]
    assert told.complete


async def test_an_entry_that_was_loaded_again_says_what_came_before_and_how_long_it_took(explain, cache, get_user):
    await get_user(1)
    await cache.invalidate_tags("user:1")
    await get_user(1)
    told = (await explain()).explanation
    assert told.state is State.FRESH
    assert [change.cause.method for change in told.changes] == ["invalidate_tags"]
    assert told.since_change_us > 0


async def test_an_entry_that_was_invalidated_by_its_name_says_by_whom(explain, get_user):
    await get_user(1)
    await get_user.invalidate(1)
    found = await explain()
    assert found.explanation.state is State.VACANT
    (change,) = found.explanation.changes
    assert change.what == "entry"
    assert change.cause.method.endswith("get_user.invalidate")


async def test_an_entry_that_a_pattern_deleted_says_so(explain, cache, get_user):
    await get_user(1)
    await cache.invalidate_pattern("*get_user*", namespace="users")
    found = await explain()
    assert found.explanation.state is State.ABSENT
    (change,) = found.explanation.changes
    assert change.what == "cache:users:*get_user*"
    assert change.cause.method == "invalidate_pattern"


async def test_lost_events_are_told_in_words(explain, cache, get_user):
    await get_user(1)
    await cache.invalidate_tokens({ALL: "lost:group,trimmed events"})
    found = await explain()
    assert found.explanation.changes[0].cause.codes == ("group", "trimmed")
    assert "the consumer group was gone" in text(found)


@pytest.mark.parametrize("token", ["token:all", "token:namespace:users", "token:tag:user:1"])
async def test_a_token_that_is_gone_is_told_from_one_that_changed(explain, client, get_user, token):
    await get_user(1)
    client.delete(token)
    told = (await explain()).explanation
    assert told.state is State.GONE
    assert [now.name for now in told.tokens if now.token is None] == [token.removeprefix("token:")]


async def test_what_is_kept_beyond_its_ttl_is_expired(explain, cache, client):
    get_user = cache.cached(namespace="users", tags=["user:1"], ttl=600, stale_if_error=3600)(_user)
    await get_user()
    key = get_user.key()
    client.pexpire(key, 3_000_000)
    found = await explain(key)
    assert found.explanation.state is State.EXPIRED
    assert found.explanation.entry.left_ms < 0


async def _user() -> int:
    return 1


async def test_a_key_alone_names_its_call_and_its_tags(explain, cache):
    get_user = cache.cached(namespace="users", tags=["user:1"], ttl=600)(_user)
    await get_user()
    found = await explain(get_user.key())
    assert found.call == "test_explain:_user()"
    assert "tag:user:1" in text(found)


@pytest.mark.parametrize("value", [b"", b"\x02e" + b"x" * 100, b"\x03e", b"\x03e" + b"\xff" * 300, b"\x1b[31mred"])
async def test_foreign_bytes_are_no_entry(explain, client, get_user, value):
    client.set(get_user.key(1), value)
    found = await explain()
    assert found.explanation.state is State.FOREIGN
    assert json.dumps(document(found))


async def test_a_log_of_foreign_bytes_says_nothing(explain, cache, client, get_user):
    await get_user(1)
    for fields in ({"x": "y"}, {"at": "1", "what": "["}, {"at": str(10**16), "what": '{"tokens":[],"entries":3}'}):
        client.xadd("invalidations", fields)
    await cache.invalidate_tags("user:1")
    await cache.invalidate_tags("user:1")
    assert len((await explain()).explanation.changes) == 2


async def test_a_load_that_runs_is_seen(explain, cache):
    """The reader leads; whoever asks sees that it does, and for how long others would wait."""
    loading, go_on = asyncio.Event(), asyncio.Event()

    @cache.cached(namespace="users", tags=["user:1"])
    async def slow() -> int:
        loading.set()
        await go_on.wait()
        return 1

    reading = asyncio.create_task(slow())
    await loading.wait()
    found = await explain(slow.key())
    go_on.set()
    await reading
    assert found.explanation.state is State.VACANT
    assert found.explanation.lease_ms > 0


async def test_an_encrypted_call_is_shown_to_whoever_has_the_key(url, client):
    key = "MDEyMzQ1Njc4OWFiY2RlZg=="
    async with Cache(url, encryption_keys={"users": [key]}) as cache, Cache(url) as other:
        get_user = cache.cached(namespace="users", tags=["user:1"], ttl=600)(_user)
        await get_user()
        assert b"_user" not in client.get(get_user.key())[100:]
        for asking, call in ((cache, "test_explain:_user()"), (other, "")):
            jobs = jobs_pool(asking.settings)
            found = await answer(Servers(asking, jobs), by_key(asking.keys, get_user.key()), "", None)
            await jobs.aclose()
            assert found.call == call


@cached(namespace="users", tags=["user:1"])
async def get_one() -> int:
    return 1


async def test_a_warm_is_seen_while_it_is_queued_and_while_it_runs(explain, cache):
    jobs, name = jobs_pool(cache.settings), Warm(get_one).name
    await WarmQueue(jobs, cache.keys.jobs).hand_off([Warm(get_one)])
    assert (await explain(f"cache:{name}")).warm.queued_for is not None
    await jobs.set(f"arq:in-progress:{cache.keys.jobs}:{name}", b"1")  # as arq does
    assert (await explain(f"cache:{name}")).warm.running
    await jobs.aclose()


async def test_a_warm_that_keeps_failing_says_with_what(explain, cache):
    jobs, name = jobs_pool(cache.settings), Warm(get_one).name
    await FailingWarms(jobs, cache.keys.failing).failed(name, "explain:get_one", "{}", ZeroDivisionError("a bug"))
    assert "ZeroDivisionError: a bug" in text(await explain(f"cache:{name}"))
    await jobs.aclose()


class TestWaiting:
    async def test_without_rules_it_is_said_how_many_events_wait(self, explain, cache, get_user):
        await get_user(1)
        await cache.publish(ExplainUpdated(user_id=1))
        found = await explain()
        assert found.explanation.state is State.FRESH
        assert found.concerning is None
        assert found.backlog.unread_by_anybody == ["events"]

    async def test_with_rules_the_events_that_would_invalidate_it_are_named(self, explain, cache, client, get_user):
        """One was read and not acknowledged, one was not read, one was set aside; others are about somebody else."""
        await get_user(1)
        receipts = [await cache.publish(ExplainUpdated(user_id=user)) for user in (1, 2, 1, 2)]
        client.xgroup_create("events", "tidings", "0")
        client.xreadgroup("tidings", "a worker", {"events": ">"}, count=2)
        letter = client.xadd(
            "events:dead", {"reason": "why", "original:type": "explain.updated", "original:data": '{"user_id": 1}'}
        )
        client.xadd(
            "events:dead", {"reason": "why", "original:type": "explain.updated", "original:data": '{"user_id": 2}'}
        )
        client.xadd("events:dead", {"x": b"\xff"})
        found = await explain(rules=RULES)
        assert [(one.stream_id, one.place) for one in found.concerning] == [
            (receipts[0].id, Place.PENDING),
            (receipts[2].id, Place.UNREAD),
            (letter.decode(), Place.DEAD),
        ]
        assert found.backlog.waiting == 4
        assert "pending" in text(found)

    async def test_with_rules_it_is_said_when_nothing_concerns_it(self, explain, cache, get_user):
        await get_user(1)
        await cache.publish(ExplainUpdated(user_id=2))
        found = await explain(rules=RULES)
        assert found.concerning == []
        assert "none that waits or was set aside would invalidate it" in text(found)

    async def test_without_rules_dead_letters_are_counted_even_when_nothing_waits(self, explain, client, get_user):
        await get_user(1)
        client.xadd("events:dead", {"reason": "why"})
        assert "events 0 not applied yet, 1 dead letter; --rules" in text(await explain())

    async def test_an_event_that_its_rule_fails_over_might_concern_it_and_says_why(self, explain, cache, get_user):
        """As with a mistake in a rule: nobody can tell what the event was about."""
        await get_user(1)
        mistaken = Rules()
        mistaken.map("explain.mistaken", tags=["user:{user}"])
        await cache.publish(Event.of("explain.mistaken", {"user_id": 1}))
        found = await explain(rules=mistaken)
        (one,) = found.concerning
        assert one.names == ()
        assert "user" in one.failed
        assert "might concern it" in text(found)


class TestNaming:
    def test_a_key_is_taken_with_and_without_its_prefix(self, url):
        cache = Cache(url, prefix="shop", version="2")
        for key in ("shop:2:cache:users:f:12", "cache:users:f:12"):
            subject = by_key(cache.keys, key)
            assert (subject.namespace, subject.name) == ("users", "f:12")
        cache.sync.close()

    @pytest.mark.parametrize("key", ["x", "cache:", "cache:users", "token:tag:user:1", "other:cache:users:f:12"])
    def test_what_is_no_entrys_key_is_refused(self, url, key):
        cache = Cache(url)
        with pytest.raises(ConfigurationError, match="neither MODULE:FUNCTION"):
            by_key(cache.keys, key)
        cache.sync.close()

    @pytest.mark.parametrize("target", ["json", "json:", ":x", "json:nothing", "json:dumps", "no_such_module:f"])
    def test_what_is_no_cached_function_is_refused(self, target):
        with pytest.raises(ConfigurationError):
            cached_function_at(target)

    @pytest.mark.parametrize("arguments", [["1"], ["user_id=1"]])
    def test_arguments_become_what_the_parameters_annotation_says(self, get_user, arguments):
        subject, call = by_call(get_user, arguments)
        assert subject.name == get_user.call_of(1).name
        assert call.endswith("get_user(user_id=1)")

    def test_a_text_that_looks_like_a_number_stays_text_where_text_belongs(self, cache):
        @cache.cached()
        async def find(name: str, *, since: int = 0) -> int:
            return 1

        assert by_call(find, ["42", "since=3"])[0].name == find.call_of("42", since=3).name

    @pytest.mark.parametrize("arguments", [[], ["1", "2"], ["ada"], ["user=1"]])
    def test_arguments_that_do_not_fit_are_refused(self, get_user, arguments):
        with pytest.raises(TidingsError, match="get_user"):
            by_call(get_user, arguments)


async def test_a_server_that_is_away_is_an_error(new_server):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:
        jobs = jobs_pool(cache.settings)
        server.terminate()
        with pytest.raises((UnavailableError, RedisError)):
            await answer(Servers(cache, jobs), by_key(cache.keys, "cache:users:f:12"), "", None)
        await jobs.aclose()
