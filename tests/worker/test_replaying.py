"""A stretch of an event stream run again, on a real server: what it does, and what it leaves alone."""

import asyncio

import pytest
from tidings import Cache, Event, cached
from tidings.errors import UnavailableError
from tidings_worker import Invalidate, Rules, Warm
from tidings_worker.replaying import Meant, Replay
from tidings_worker.servers import store_of
from tidings_worker.stretches import PAGE, stretch_of


class Moved(Event, type="replay.moved"):
    number: int


@cached(namespace="replayed")
async def load(number: int) -> int:
    return number


def the_rules():
    rules = Rules()

    @rules.on(Moved)
    def moved(event):
        yield Invalidate(tags=[f"replay:{event.number}"])
        yield Warm(load, event.number)

    @rules.on("replay.broken")
    def broken(_):
        yield Invalidate(namespaces=["replayed"])
        raise ZeroDivisionError

    return rules


class Warmer:
    """Takes warms; `handed` has what it got, `tokens` those that there were by then."""

    def __init__(self, client):
        self.client = client
        self.handed = []
        self.tokens = []

    async def hand_off(self, warms, _hot, *, carriers):
        self.tokens = self.client.keys("token:*")
        self.handed += [warm.arguments for warm in warms]


@pytest.fixture
def publish(client):
    def add(count=1, *, start=0, event_type="replay.moved", **more):
        return [
            client.xadd("events", {"type": event_type, "data": f'{{"number": {number}}}', **more}).decode()
            for number in range(start, start + count)
        ]

    return add


@pytest.fixture
async def run(cache):
    """Run the events since an id again; give what was told, and the summary."""

    async def again(since="0-0", until=None, *, warmer=None, dry=False, meant=Meant(), stretch=None):  # noqa: B008
        told = []
        store = store_of(cache)
        stretch = stretch or await stretch_of(store, "events", since, until)
        replay = Replay(cache, store, the_rules(), warmer, dry=dry, seen=told.append)
        async for _ in replay.run(stretch, meant):
            pass
        return told, replay.summary, stretch

    return again


@pytest.fixture
def tokens(client):
    return lambda: sorted(key.decode().removeprefix("token:") for key in client.keys("token:*"))


async def test_what_an_event_makes_wrong_is_invalidated_and_then_warmed_and_it_is_the_cause(run, publish, client):
    (stream_id,) = publish(start=7)
    warmer = Warmer(client)
    _, summary, _ = await run(warmer=warmer)
    assert summary.applied == 1
    assert (warmer.handed, warmer.tokens) == (['{"number":["any","J7"]}'], [b"token:tag:replay:7"])
    token = client.get("token:tag:replay:7").decode()
    assert f"event:{stream_id}" in token
    assert "moved" in token.partition("rule:")[2]


async def test_a_dry_run_tells_and_does_nothing(run, publish, client, tokens):
    publish(2)
    publish(event_type="replay.nobodys", subject="thing:1")
    warmer = Warmer(client)
    told, summary, _ = await run(dry=True, warmer=warmer)
    assert [(effect.tokens, effect.ruled) for effect in told] == [
        (("tag:replay:0",), True),
        (("tag:replay:1",), True),
        ((), False),
    ]
    assert told[0].warms == (f'Warm({load.identity}, {{"number":["any","J0"]}})',)
    assert (dict(summary.tokens), dict(summary.unruled)) == (
        {"tag:replay:0": 1, "tag:replay:1": 1},
        {"replay.nobodys": 1},
    )
    assert (tokens(), warmer.handed) == ([], [])


async def test_only_the_events_that_are_meant_are_run(run, publish, tokens):
    first, second, third = publish(3)
    publish(start=3, subject="thing:3")
    publish(event_type="replay.broken")
    assert (await run(second, third, dry=True))[1].applied == 2
    assert (await run(second, second))[1].applied == 1
    assert tokens() == ["tag:replay:1"]
    await run(meant=Meant(subject="thing:3"))
    assert tokens() == ["tag:replay:1", "tag:replay:3"]
    _, summary, _ = await run(first, meant=Meant(types=frozenset({"replay.broken"})))
    assert (summary.read, summary.applied, summary.problems) == (5, 0, 1)


async def test_what_fails_is_named_and_the_rest_is_done(run, publish, client, tokens):
    unreadable = client.xadd("events", {"data": b"\xff"}).decode()
    (broken,) = publish(event_type="replay.broken")
    misfit = client.xadd("events", {"type": "replay.moved", "data": "{}"}).decode()
    publish()
    _, summary, _ = await run()
    assert [(stream_id, problem.partition(":")[0]) for _, stream_id, problem in summary.failed] == [
        (unreadable, "EventError"),
        (broken, "a rule failed"),
        (misfit, "EventError"),
    ]
    assert "ZeroDivisionError" in summary.failed[1][2]
    assert (summary.applied, summary.problems) == (1, 3)
    assert tokens() == ["namespace:replayed", "tag:replay:0"]


async def test_a_stretch_ends_where_the_stream_did_when_it_began(run, cache, publish):
    publish(2)
    stretch = await stretch_of(store_of(cache), "events", "0-0")
    publish(2, start=2)
    assert (await run(stretch=stretch))[1].read == 2


async def test_of_a_long_stretch_every_event_is_run_once(run, publish):
    ids = publish(2 * PAGE + 1)
    told, summary, stretch = await run(dry=True)
    assert [effect.stream_id for effect in told] == ids
    assert (summary.read, stretch.missing) == (len(ids), None)


async def test_it_is_said_that_a_stretch_may_not_be_whole(run, publish, client):
    ids = publish(10)
    assert (await run(ids[0]))[2].missing is None
    assert (await run("0-0"))[2].missing is None
    client.xtrim("events", minid=ids[4], approximate=False)
    assert ids[4] in (await run(ids[3]))[2].missing
    assert (await run(ids[4]))[2].missing is None
    assert (await run(ids[9]))[2].missing is None
    assert (await run(f"{2**60}-0"))[2].missing is None
    client.xtrim("events", maxlen=0, approximate=False)
    assert "nothing is left" in (await run(ids[9]))[2].missing


async def test_it_is_said_that_events_were_removed_while_the_stretch_was_read(cache, publish, client):
    ids = publish(2 * PAGE)
    store = store_of(cache)
    stretch = await stretch_of(store, "events", "0-0")
    pages = stretch.pages(store)
    assert len(await anext(pages)) == PAGE
    client.xtrim("events", minid=ids[PAGE + 5], approximate=False)
    assert len(await anext(pages)) == PAGE - 5
    assert "while it was read" in stretch.missing


async def test_a_stream_that_is_not_there_has_an_empty_stretch(run):
    _, summary, stretch = await run()
    assert (summary.read, stretch.exists, stretch.missing) == (0, False, None)


async def test_groups_and_their_loss_detection_see_nothing_of_it(run, publish, new_parts, client, pending):
    parts = await new_parts(the_rules())
    publish(2)
    entries = await parts.group.read(2, 1)
    before = (client.xinfo_groups("events"), pending(), client.xlen("events"))
    await run()
    assert (client.xinfo_groups("events"), pending(), client.xlen("events")) == before
    assert not client.exists("events:dead", "events:applied", "events:counts")
    await parts.watch.check()
    await parts.consumer.apply(entries, parts.stop, parts.patience())
    await parts.watch.check()
    assert (parts.codes, pending()) == ([], {})


async def test_when_the_server_goes_away_it_says_how_far_it_was(publish, cache, new_server):
    ids = publish(PAGE + 1)
    gone = new_server()
    async with Cache(f"redis://127.0.0.1:{gone.port}", operation_timeout=0.5) as away:
        store = store_of(cache)
        stretch = await stretch_of(store, "events", "0-0")
        replay = Replay(away, store, the_rules(), None, dry=False)
        running = replay.run(stretch, Meant())
        assert await anext(running) == PAGE
        gone.terminate()
        with pytest.raises(UnavailableError, match=f"up to {ids[PAGE - 1]}"):
            await anext(running)
    assert replay.summary.read == PAGE


async def test_others_go_on_while_a_stretch_is_run(run, publish):
    """Each page is followed by an exchange with the server, so that the event loop is never held up for long."""
    publish(2 * PAGE)
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    await run(dry=True)
    beside.cancel()
    assert turns > 2
