"""What counts as an outage, what is said about it, and what a consumer does in one."""

import asyncio

import pytest
import redis.exceptions as redis_errors
import structlog
from tidings.errors import EventError, InvalidationError, UnavailableError
from tidings_worker import Rules
from tidings_worker.handler import Outcome
from tidings_worker.outage import Outage, Patience, is_outage


def caused(error, cause):
    error.__cause__ = cause
    return error


OUTAGES = [
    redis_errors.ConnectionError("refused"),
    redis_errors.TimeoutError("late"),
    redis_errors.BusyLoadingError("LOADING"),
    redis_errors.ReadOnlyError("READONLY"),
    redis_errors.OutOfMemoryError("OOM"),
    redis_errors.ResponseError("MISCONF Redis is configured to save"),
    redis_errors.ResponseError("Command # 2 (SET a b) of pipeline caused error: MISCONF Redis is configured to save"),
    redis_errors.ResponseError("NOREPLICAS Not enough good replicas"),
    redis_errors.ClusterDownError("CLUSTERDOWN The cluster is down"),
    ConnectionResetError(),
    TimeoutError(),
    UnavailableError("nobody knows why"),
    caused(InvalidationError("no"), redis_errors.OutOfMemoryError("OOM")),
    caused(InvalidationError("no"), caused(UnavailableError("no"), TimeoutError())),
]

FAULTS = [
    redis_errors.AuthenticationError("WRONGPASS"),
    redis_errors.NoPermissionError("NOPERM"),
    redis_errors.ResponseError("WRONGTYPE Operation against a key"),
    redis_errors.ResponseError("ERR unknown command"),
    redis_errors.DataError("not bytes"),
    caused(InvalidationError("no"), redis_errors.NoPermissionError("NOPERM")),
    EventError("not ours"),
    ZeroDivisionError(),
    None,
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error.__cause__ or error).__name__)
def test_the_state_of_a_server_is_an_outage(error):
    assert is_outage(error)


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_what_somebody_has_to_change_is_none(error):
    assert not is_outage(error)


def test_an_outage_is_said_once_when_it_begins_and_once_when_it_is_over_for_every_part():
    now, told = 100.0, []
    outage = Outage("redis://somewhere", lambda there, _why: told.append(there), lambda: now)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            outage.began("consumer", TimeoutError("late"))
        outage.began("watch", TimeoutError("late"))
        now = 130.0
        outage.ended("consumer")
        assert not outage.over
        outage.ended("watch")
        outage.ended("watch")
    assert outage.over
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("redis_away", "error"),
        ("redis_back", "warning"),
    ]
    assert logs[1]["away_s"] == 30
    assert told == [False, True]


async def test_what_is_no_outage_is_raised_without_waiting():
    outage = Outage("redis://somewhere", lambda _there, _why: None)
    with pytest.raises(ZeroDivisionError):
        await Patience("consumer", outage, asyncio.Event()).wait(ZeroDivisionError())
    assert outage.over


async def test_a_stop_ends_the_waiting():
    stop = asyncio.Event()
    stop.set()
    patience = Patience("consumer", Outage("redis://somewhere", lambda _there, _why: None), stop)
    for _ in range(100):  # which would be minutes
        await patience.wait(TimeoutError())


class Flaky:
    """A handler that is let down by Redis the first times."""

    def __init__(self, times, before=lambda: None):
        self.times = times
        self.batches = []
        self.before = before

    async def handle(self, _group, entries, *, contiguous, ahead):
        assert contiguous
        self.before()
        self.batches.append([entry.stream_id for entry in entries])
        if len(self.batches) <= self.times:
            raise caused(InvalidationError("no"), redis_errors.ConnectionError("away"))
        return Outcome((), incomplete=False)


async def test_a_batch_is_kept_in_hand_and_handled_again_after_an_outage(client, new_parts):
    parts = await new_parts(Rules())
    ids = [client.xadd("events", {"type": "riding.changed"}).decode() for _ in range(3)]
    flaky = parts.consumer._handler = Flaky(2)
    await parts.consumer.apply(await parts.group.read(10, 1), parts.stop, parts.patience())
    assert flaky.batches == [ids, ids, ids]
    assert parts.outage.over


async def test_a_stop_in_an_outage_leaves_the_batch_pending_for_the_next_worker(client, new_parts, pending):
    parts = await new_parts(Rules())
    client.xadd("events", {"type": "riding.changed"})
    parts.consumer._handler = Flaky(1000, parts.stop.set)
    await parts.consumer.apply(await parts.group.read(10, 1), parts.stop, parts.patience())
    assert len(pending()) == 1


async def test_a_group_that_is_gone_is_made_again_and_its_events_are_read_again(client, new_parts, eventually):
    rules = Rules()
    rules.map("riding.changed", tags=["user:{user_id}"])
    parts = await new_parts(rules)
    running = asyncio.create_task(parts.consumer.run(parts.stop, parts.patience()))
    client.xadd("events", {"type": "riding.changed", "data": '{"user_id": 1}'})
    await eventually(lambda: client.exists("token:tag:user:1"))
    client.flushall()
    client.xadd("events", {"type": "riding.changed", "data": '{"user_id": 2}'})
    await eventually(lambda: client.exists("token:tag:user:2"))
    parts.stop.set()
    await running
    assert parts.codes == ["group"]
    assert client.exists("token:all")
