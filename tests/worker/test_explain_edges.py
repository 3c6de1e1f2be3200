"""What `tidings explain` answers where the plain answer would be wrong, and when its servers hold what nobody meant."""

import asyncio
import json
import signal
from datetime import date

import pytest
from pydantic import BaseModel, model_serializer
from tidings import Cache
from tidings.calls import call_text
from tidings.causes import by_call as by_method
from tidings.causes import by_event, by_rule, parse
from tidings.errors import ConfigurationError, UnavailableError
from tidings.layout import Facts, Token, pack_entry, unique
from tidings_worker.explaining.asking import Servers
from tidings_worker.explaining.calls_shown import call_shown
from tidings_worker.explaining.documents import document
from tidings_worker.explaining.explanation import Found, State
from tidings_worker.explaining.explanation import explain as decide
from tidings_worker.explaining.gathering import answer
from tidings_worker.explaining.history import Change, Log
from tidings_worker.explaining.subjects import by_call, by_key
from tidings_worker.explaining.wording import rows
from tidings_worker.importing import cached_function_at
from tidings_worker.jobs import jobs_pool


async def ask(cache, function, *arguments, jobs=None):
    """Explain a call, or the entry of a key; the answer must be printable and JSON."""
    if isinstance(function, str):
        subject, call = by_key(cache.keys, function), ""
    else:
        subject, call = by_call(function, arguments)
    found = await answer(Servers(cache, jobs), subject, call, None)
    assert text(found)
    assert json.loads(json.dumps(document(found)))
    return found


def text(found):
    return "\n".join(" ".join(row) for row in rows(found))


def user_of(cache, **options):
    @cache.cached(**{"namespace": "users", "tags": ["user:{user_id}"], "ttl": 600, **options})
    async def get_user(user_id: int) -> int:
        return user_id

    return get_user


async def test_an_invalidation_by_name_is_told_of_an_entry_that_was_filled_again(cache):
    get_user = user_of(cache)
    await get_user(1)
    await get_user.invalidate(1)
    await get_user(1)
    found = await ask(cache, get_user, "1")
    assert found.explanation.state is State.FRESH
    assert [change.what for change in found.explanation.changes] == ["entry"]


async def test_a_token_that_was_gone_and_made_anew_has_not_been_invalidated(cache, client):
    get_user, get_other = user_of(cache), user_of(cache, namespace="others")
    await get_user(1)
    await cache.invalidate_tags("unrelated")
    client.delete("token:tag:user:1")
    await get_other(1)
    found = await ask(cache, get_user, "1")
    assert found.explanation.state is State.GONE
    assert "tag:user:1 (made anew)" in text(found)


async def test_an_entry_of_other_tags_than_its_function_has_now_says_so_and_blames_no_old_invalidation(cache):
    """As after a deployment; invalidated were the tags that the entry was not loaded under, and before it was."""
    await cache.invalidate_tags("person:1")
    await user_of(cache)(1)
    found = await ask(cache, user_of(cache, tags=["person:{user_id}"]), "1")
    assert found.explanation.state is State.RETAGGED
    assert document(found)["served"] is False
    assert "tag:person:1 (not the entry's)" in text(found)
    assert "why" not in text(found)


@pytest.mark.parametrize("result_tags", [None, lambda user_id: [f"result:{user_id}"]])
async def test_tags_of_the_result_are_no_other_tags(cache, result_tags):
    get_user = user_of(cache, result_tags=result_tags)
    await get_user.refresh(1)
    await get_user.refresh(1)
    assert (await ask(cache, get_user, "1")).explanation.state is State.FRESH


async def test_what_max_staleness_permits_is_said_to_be_served(cache):
    get_user = user_of(cache, max_staleness=600)
    await get_user(1)
    await cache.invalidate_tags("user:1")
    found = await ask(cache, get_user, "1")
    assert found.explanation.state is State.INVALIDATED
    assert document(found)["served"] is True
    assert "served stale while one refresh runs" in text(found)


@pytest.mark.parametrize(("left", "served"), [(3_000_000, True), (500_000, False)])
async def test_what_has_expired_is_served_as_long_as_its_function_says(cache, client, left, served):
    get_user = user_of(cache, stale_while_revalidate=1800, stale_if_error=3600)
    await get_user(1)
    client.pexpire(get_user.key(1), left)
    found = await ask(cache, get_user, "1")
    assert found.explanation.state is State.EXPIRED
    assert document(found)["served"] is served


async def test_of_a_key_alone_nobody_knows_whether_a_stale_value_is_served(cache):
    get_user = user_of(cache, max_staleness=600)
    await get_user(1)
    await cache.invalidate_tags("user:1")
    found = await ask(cache, get_user.key(1))
    assert document(found)["served"] is None
    assert "unless its function allows stale values" in text(found)


async def test_a_call_that_when_leaves_out_is_never_cached(cache):
    get_user = user_of(cache, when=lambda user_id: user_id > 1)
    assert (await ask(cache, get_user, "1")).explanation.state is State.BYPASSED
    assert (await ask(cache, get_user, "2")).explanation.state is State.ABSENT


async def test_a_value_that_does_not_decode_is_not_served(cache, client):
    """As after a deployment that has changed what the function returns."""
    get_user = user_of(cache)
    await get_user(1)
    client.set(get_user.key(1), client.get(get_user.key(1)) + b"x")
    found = await ask(cache, get_user, "1")
    assert found.explanation.state is State.UNREADABLE
    assert document(found)["served"] is False
    assert (await ask(cache, get_user.key(1))).explanation.state is State.FRESH  # without the function none can tell


async def test_copies_in_processes_are_named(cache):
    get_user = user_of(cache, local_ttl=5)
    await get_user(1)
    assert "copies of their own for up to 5.0 s" in text(await ask(cache, get_user, "1"))


async def test_an_encrypted_value_is_called_unreadable_only_by_who_has_keys(url):
    keys = ["MDEyMzQ1Njc4OWFiY2RlZg==", "ZmVkY2JhOTg3NjU0MzIxMA=="]
    async with (
        Cache(url, encryption_keys={"users": keys[:1]}) as one,
        Cache(url, encryption_keys={"users": keys[1:]}) as other,
        Cache(url) as without,
    ):
        await user_of(one)(1)
        states = [(await ask(cache, user_of(cache), "1")).explanation.state for cache in (one, other, without)]
    assert states == [State.FRESH, State.UNREADABLE, State.FRESH]


async def test_on_a_cluster_each_change_is_told_once_and_without_a_server_for_jobs(cluster):
    async with Cache(cluster.url) as cache:
        get_user = user_of(cache)
        await get_user(1)
        await cache.invalidate_tags("user:1")
        await cache.invalidate_tags("user:1")
        found = await ask(cache, get_user, "1")
        assert [change.what for change in found.explanation.changes] == ["tag:user:1"] * 2
        assert found.explanation.complete
        assert found.warm is None
        await get_user(1)
        assert (await ask(cache, get_user, "1")).explanation.state is State.FRESH


async def test_a_warm_is_said_to_be_queued_although_it_keeps_failing(cache):
    jobs = jobs_pool(cache.settings)
    get_user = user_of(cache)
    name = get_user.key(1).removeprefix("cache:")
    note = {"call": "f", "arguments": "", "error": "E", "message": "m", "failures": 2, "first": 1.0, "last": 2.0}
    await jobs.zadd(cache.keys.jobs, {f"{cache.keys.jobs}:{name}": 1_700_000_000_000})
    await jobs.hset(cache.keys.failing, name, json.dumps(note))
    found = await ask(cache, get_user, "1", jobs=jobs)
    await jobs.aclose()
    assert "queued; keeps failing, 2 times: E: m" in text(found)
    assert document(found)["warm"]["due"] == "2023-11-14T22:13:20.000000Z"


async def test_of_many_changes_the_first_are_listed_and_the_others_counted(cache):
    get_user = user_of(cache)
    await get_user(1)
    for _ in range(8):
        await cache.invalidate_tags("user:1")
    found = await ask(cache, get_user, "1")
    assert text(found).count("was invalidated") == 5
    assert "and 3 more" in text(found)
    assert len(document(found)["changes"]) == 8


async def test_of_two_partitions_entries_with_one_id_the_event_that_the_cause_names_is_shown(url, client):
    async with Cache(url, partitions=2) as cache:
        get_user = user_of(cache)
        await get_user(1)
        for partition, name in enumerate(("ours", "other")):
            client.xadd(f"events:{partition}", {"id": name, "type": f"explain.{name}"}, id="1795291548359-0")
        await cache.invalidate_tokens({"tag:user:1": by_rule(by_event("ours", "1795291548359-0"), "a rule")})
        found = await ask(cache, get_user, "1")
        assert document(found)["changes"][0]["type"] == "explain.ours"


def test_arguments_that_are_too_long_to_be_kept_are_not_made_into_text(cache):
    made = []

    class Noted(BaseModel):
        @model_serializer
        def noted(self) -> dict[str, int]:
            made.append(self)
            return {}

    @cache.cached()
    async def find(items: list[Noted]) -> int:
        return 1

    find.identity = "shop:find"  # as of one that can be imported
    assert call_text(find, ([Noted()],), {}) is not None
    made.clear()
    assert call_text(find, ([Noted()] * 1001,), {}) is None
    assert made == []


async def test_an_entry_that_is_replaced_between_two_looks_is_explained_as_one(cache):
    """The first look learns the tags of one entry, the second finds another."""
    ones, twos = user_of(cache, tags=["one"]), user_of(cache, tags=["two"])
    await ones(1)
    servers, looks = Servers(cache, None), []
    run = servers.store.run

    async def overtaken(operation, *, bulk=False):
        looks.append(operation)
        if len(looks) == 2:
            await twos.refresh(1)
        return await run(operation, bulk=bulk)

    servers.store.run = overtaken
    try:
        found = await answer(servers, by_key(cache.keys, ones.key(1)), "", None)
    finally:
        del servers.store.run
    assert found.explanation.state is State.FRESH
    assert [now.name for now in found.explanation.tokens] == ["all", "namespace:users", "tag:two"]


class TestHostile:
    """Whoever can write to Redis can make the answer wrong, and cannot make it fail or reach the terminal."""

    @pytest.mark.parametrize("at", ["", "-5", "x", "9" * 17, "9" * 30, "9" * 5000])
    async def test_times_in_the_log(self, cache, client, at):
        get_user = user_of(cache)
        await get_user(1)
        what = {"tokens": {"tag:user:1": "x"}, "entries": [get_user.key(1)], "patterns": ["cache:*"]}
        client.xadd("invalidations", {"prev": "1-1", "at": at, "what": json.dumps(what)})
        assert (await ask(cache, get_user, "1")).explanation.state is State.FRESH
        await cache.invalidate_tags("user:1")
        assert document(await ask(cache, get_user, "1"))["served"] is False

    @pytest.mark.parametrize(
        "token",
        [
            b"a" * 15,
            b"a" * 16,
            b"a" * 16 + b" " + b"9" * 5000 + b" " + b"-" * 16 + b" x",
            b"a" * 16 + b" 9999999999999999 " + b"-" * 16 + b" \x1b[31m[red]\nx\xff",
            b"a" * 16 + b" 1795291548359000 " + b"-" * 16 + b" event:" + b"9" * 30 + b"-0 rule:x",
            b"a" * 16 + b" 1795291548359000 " + b"-" * 16 + b" event:x entry:" + b"9" * 30 + b"-0 rule:x",
        ],
    )
    async def test_tokens(self, cache, client, token):
        get_user = user_of(cache)
        await get_user(1)
        client.set("token:tag:user:1", token)
        await ask(cache, get_user, "1")
        assert await get_user(1) == 1
        found = await ask(cache, get_user, "1")
        assert found.explanation.state is State.FRESH
        assert not any("gone" in line for line in text(found).splitlines())

    @pytest.mark.parametrize("call", ["", "x", "x {", "x " + "[" * 100_000, "x []", 'x {"a":1}', 'x {"a":["any",1]}'])
    def test_texts_of_calls(self, call):
        assert call_shown(call) == ""


def test_a_change_while_a_value_was_being_encoded_and_sent_counts_as_one_since_its_load():
    """The fill comes later than load and its duration say: when the load began, the entry has in `seen_us`."""
    second, header = 1_000_000, (unique(), unique())
    packed = pack_entry(unique(), header, Facts((), "a process"), b"J1", seen_us=10 * second, load_us=2 * second)
    cause = by_method("invalidate_all", "host:1")
    now = Token(unique(), 15 * second, unique(), cause).pack()
    kept = Token(header[1], 0, b"-" * 16, "first use").pack()
    log = Log(tuple(Change("all", at * second, parse(cause)) for at in (15, 11, 9)), begins_us=9 * second)
    entry = packed.assemble((), 20 * second)
    told = decide(Found("k", ("all", "namespace:n"), entry, (now, kept), 1000, 30 * second, log))
    assert [change.at_us // second for change in told.changes] == [11, 15]
    assert told.complete


def test_dates_are_shown_as_they_are_given():
    text = '{"day":["any","T{\\"!\\":[\\"date\\",\\"2026-11-21\\"]}"],"name":["any","J\\"ada\\""]}'
    assert call_shown(f"shop:f {text}") == 'shop:f(day=2026-11-21, name="ada")'


class TestArguments:
    def test_those_that_a_function_gathers_are_taken(self, cache):
        @cache.cached()
        async def many(first: str, *items: int, flag: bool = False, **more: date) -> int:
            return 1

        subject, _ = by_call(many, ["12", "1", "2", "flag=true", "day=2026-11-21"])
        assert subject.name == many.call_of("12", 1, 2, flag=True, day=date(2026, 11, 21)).name

    async def test_a_method_is_asked_about_without_its_instance(self, cache, monkeypatch):
        class Repository:
            @cache.cached(tags=["user:{user_id}"])
            async def get(self, user_id: int) -> int:
                return user_id

            @cache.cached()
            @classmethod
            async def of_class(cls, user_id: int) -> int:
                return user_id

        monkeypatch.setitem(globals(), "Repository", Repository)
        await Repository().get(1)
        await Repository.of_class(1)
        for name in ("get", "of_class"):
            function = cached_function_at(f"{__name__}:Repository.{name}")
            assert (await ask(cache, function, "1")).explanation.state is State.FRESH

    @pytest.mark.parametrize("options", [{"key": "{self.tenant}"}, {"tags": lambda user_id: 1 / user_id}])
    def test_what_cannot_be_named_is_said(self, cache, options):
        class Repository:
            @cache.cached(**options)
            async def get(self, user_id: int) -> int:
                return user_id

        with pytest.raises(ConfigurationError, match=r"get: .*ask by KEY"):
            by_call(vars(Repository)["get"], ["0"])

    def test_deep_json_is_text(self, cache):
        @cache.cached()
        async def find(name: str) -> int:
            return 1

        deep = "[" * 100_000
        assert by_call(find, [deep])[0].name == find.call_of(deep).name


async def test_a_frozen_server_is_an_error_and_no_wait(new_server):
    server = new_server()
    async with Cache(f"redis://127.0.0.1:{server.port}", operation_timeout=0.2) as cache:
        await cache.set("k", 1)
        server._process.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(ask(cache, "cache:default:k"), 5)
        server._process.send_signal(signal.SIGCONT)
