"""The circuit breaker: when it opens and closes, what it says of that, and that its probe costs no caller anything."""

import gc
import os
import random
import signal
import socket
import threading
import traceback
import warnings
import weakref
from itertools import islice

import pytest
import structlog
from tidings import Cache
from tidings.breaker import Breaker, delays_seconds, is_answer
from tidings.errors import UnavailableError
from tidings.operations import Append, Ping
from tidings.store import SyncRedisStore

AWAY = UnavailableError("redis://cache: no answer in 2 s")


class Server:
    """What a breaker probes: there or away as the test says; counts who asks, and whether two ever ask at once."""

    def __init__(self):
        self.answers = threading.Event()
        self.probes = 0
        self.threads = set()
        self._asking = threading.Lock()
        self.together = False

    def probe(self):
        if not self._asking.acquire(blocking=False):
            self.together = True
            raise AWAY
        try:
            self.probes += 1
            self.threads.add(threading.current_thread())
            if not self.answers.is_set():
                raise AWAY
        finally:
            self._asking.release()


class Changes(list):
    """What a breaker has said, and a wait for the next."""

    def __init__(self):
        super().__init__()
        self._said = threading.Condition()

    def __call__(self, is_open, reason):
        with self._said:
            self.append((is_open, reason))
            self._said.notify_all()

    @property
    def states(self):
        return ["open" if is_open else "closed" for is_open, _ in self]

    def wait_for(self, *states):
        with self._said:
            assert self._said.wait_for(lambda: self.states == list(states), 10), self


@pytest.fixture
def changes():
    return Changes()


@pytest.fixture
def make(changes):
    """Make breakers that end with the test."""
    made = []

    def breaker(probe, on_change=changes, **options):
        made.append(Breaker(probe, on_change, **options))
        return made[-1]

    yield breaker
    for one in made:
        one.stop()


@pytest.fixture
def store_at():
    """Make blocking stores of which the breaker's probe may ask one."""
    made = []

    def store(url):
        made.append(SyncRedisStore.connect(Cache(url, operation_timeout=0.2).settings))
        return made[-1]

    yield store
    for one in made:
        one.close()


class Sleep:
    """A wait of as long as the test says, whatever the delay; `begun` once the first has begun."""

    def __init__(self, longest_seconds=10.0):
        self.longest_seconds = longest_seconds
        self.begun = threading.Event()
        self.delays = []

    def __call__(self, over, seconds):
        self.delays.append(seconds)
        self.begun.set()
        return over.wait(self.longest_seconds)


def never_asked():
    pytest.fail("nobody should have probed")


def ended(thread):
    thread.join(10)
    return not thread.is_alive()


def test_it_begins_closed_and_asks_nobody(make, changes):
    breaker = make(never_asked)
    breaker.succeeded()
    assert breaker.closed
    assert changes == []


def test_the_first_failure_opens_it_and_says_why(make, changes):
    breaker = make(Server().probe)
    breaker.failed(AWAY)
    assert not breaker.closed
    assert changes == [(True, "redis://cache: no answer in 2 s")]


def test_further_failures_change_nothing(make, changes):
    breaker = make(Server().probe)
    for _ in range(3):
        breaker.failed(AWAY)
    assert changes.states == ["open"]


def test_it_closes_when_the_probe_is_answered_and_says_how_long_it_took(make, changes):
    now = [100.0]
    answers = threading.Event()
    breaker = make(lambda: answers.wait(10), clock=lambda: now[0])
    breaker.failed(AWAY)
    now[0] = 103.5
    answers.set()
    changes.wait_for("open", "closed")
    assert breaker.closed
    assert changes[1] == (False, "a probe was answered after 3.5 s")


def test_it_probes_at_once_without_a_delay(make, changes):
    server = Server()
    server.answers.set()
    sleep = Sleep()
    make(server.probe, wait=sleep).failed(AWAY)
    changes.wait_for("open", "closed")
    assert not sleep.delays
    assert server.probes == 1


def test_an_acknowledged_operation_closes_it_and_ends_the_probe(make, changes):
    server = Server()
    breaker = make(server.probe, wait=Sleep())
    breaker.failed(AWAY)
    thread = breaker._thread
    breaker.succeeded()
    breaker.succeeded()
    assert breaker.closed
    assert changes.states == ["open", "closed"]
    assert changes[1][1].startswith("an operation was acknowledged after ")
    assert ended(thread)


def test_it_opens_again_with_a_new_thread_after_the_last_one_ended(make, changes):
    server = Server()
    server.answers.set()
    breaker = make(server.probe)
    for _ in range(2):
        changes.clear()
        breaker.failed(AWAY)
        thread = breaker._thread
        changes.wait_for("open", "closed")
        assert thread is None or ended(thread)
    assert len(server.threads) == 2


def test_an_opening_while_the_last_ones_thread_still_probes_is_taken_over_by_it(make, changes):
    """And an answer to the probe of the opening before does not close it: that probe began before this failure."""
    probing, answer, asked = threading.Event(), threading.Event(), []

    def probe():
        asked.append(threading.current_thread())
        if len(asked) > 1:
            raise AWAY
        probing.set()
        answer.wait(10)

    sleep = Sleep()
    breaker = make(probe, wait=sleep)
    breaker.failed(AWAY)
    assert probing.wait(10)
    breaker.succeeded()
    breaker.failed(AWAY)
    answer.set()
    assert sleep.begun.wait(10)
    assert not breaker.closed
    assert len(asked) == 2
    assert len(set(asked)) == 1
    assert changes.states == ["open", "closed", "open"]


def test_failures_of_many_threads_at_once_are_one_change_and_one_probing_thread(make, changes):
    server = Server()
    breaker = make(server.probe, wait=Sleep())
    start = threading.Barrier(16)

    def fail():
        start.wait()
        breaker.failed(AWAY)

    threads = [threading.Thread(target=fail) for _ in range(16)]
    for thread in threads:
        thread.start()
    assert all(map(ended, threads))
    changes.wait_for("open")
    breaker.succeeded()
    assert len(server.threads) <= 1
    assert changes.states == ["open", "closed"]


def test_changes_are_said_in_turn_and_probes_do_not_overlap_whatever_threads_report(make, changes):
    server = Server()
    server.answers.set()
    breaker = make(server.probe)

    def report(seed):
        draw = random.Random(seed)
        for _ in range(200):
            breaker.failed(AWAY) if draw.random() < 0.5 else breaker.succeeded()

    threads = [threading.Thread(target=report, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    assert all(map(ended, threads))
    breaker.succeeded()
    with changes._said:
        assert changes._said.wait_for(lambda: len(changes) % 2 == 0, 10)
    assert changes.states == ["open", "closed"] * (len(changes) // 2)
    assert not server.together


def test_a_change_that_happens_while_one_is_said_is_said_after_it(make):
    said, telling, go_on = [], threading.Event(), threading.Event()

    def slow(is_open, reason):
        if is_open:
            telling.set()
            go_on.wait(10)
        said.append(is_open)

    breaker = make(Server().probe, slow, wait=Sleep())
    reader = threading.Thread(target=breaker.failed, args=(AWAY,))
    reader.start()
    assert telling.wait(10)
    breaker.succeeded()  # does not wait for the listener: it holds no lock
    assert breaker.closed
    assert said == []
    go_on.set()
    assert ended(reader)
    assert said == [True, False]


def test_a_listener_may_use_the_breaker(make):
    said = []

    def listener(is_open, reason):
        said.append(is_open)
        breaker.succeeded()

    breaker = make(Server().probe, listener, wait=Sleep())
    breaker.failed(AWAY)
    assert said == [True, False]


def test_a_listener_that_raises_fails_nobody_and_is_logged(make):
    def listener(is_open, reason):
        raise LookupError(reason)

    server = Server()
    server.answers.set()
    breaker = make(server.probe, listener, wait=Sleep())
    with structlog.testing.capture_logs() as logs:
        breaker.failed(AWAY)
        thread = breaker._thread
        assert thread is None or ended(thread)
    assert breaker.closed
    assert [entry["event"] for entry in logs] == ["breaker_listener_failed"] * 2


def test_the_delays_double_up_to_two_seconds():
    assert list(islice(delays_seconds(lambda: 1.0), 8)) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_up_to_half_of_a_delay_is_left_to_chance():
    assert list(islice(delays_seconds(lambda: 0.0), 3)) == [0.025, 0.05, 0.1]


def test_it_probes_on_with_these_delays_until_there_is_an_answer(make, changes):
    waited, server = [], Server()

    def wait(over, seconds):
        waited.append(seconds)
        if len(waited) == 7:
            server.answers.set()
        return over.is_set()

    make(server.probe, wait=wait, random=lambda: 1.0).failed(AWAY)
    changes.wait_for("open", "closed")
    assert waited == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert server.probes == 8


def test_each_opening_begins_with_the_first_delay(make, changes):
    sleep = Sleep()
    breaker = make(Server().probe, wait=sleep, random=lambda: 1.0)
    for _ in range(3):
        sleep.begun.clear()
        breaker.failed(AWAY)
        assert sleep.begun.wait(10)
        breaker.succeeded()
    assert sleep.delays == [0.05] * 3


def test_a_probe_that_raises_what_it_should_not_is_logged_and_goes_on(make, changes):
    outcomes = iter([LookupError("no such thing"), None])

    def probe():
        if error := next(outcomes):
            raise error

    with structlog.testing.capture_logs() as logs:
        make(probe, wait=Sleep(0)).failed(AWAY)
        changes.wait_for("open", "closed")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("breaker_probe_failed", "error")]
    assert isinstance(logs[0]["exc_info"], LookupError)


def test_a_thread_that_ends_all_the_same_leaves_the_breaker_closed(make, changes, monkeypatch):
    ends = []
    monkeypatch.setattr(threading, "excepthook", ends.append)
    threads = []

    def probe():
        threads.append(threading.current_thread())
        raise SystemExit

    breaker = make(probe)
    for count in (1, 2):
        breaker.failed(AWAY)
        changes.wait_for(*["open", "closed"] * count)
        assert ended(threads[-1])
        assert breaker.closed
    assert [end.exc_type for end in ends] == [SystemExit] * 2


def test_it_stays_closed_when_no_thread_can_be_started(make, changes, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    breaker = make(never_asked)
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
        patch.setattr(threading.Thread, "start", refuse)
        breaker.failed(AWAY)
    assert breaker.closed
    assert changes == []
    assert [entry["event"] for entry in logs] == ["breaker_thread_not_started"]


def test_stop_ends_the_thread_that_sleeps_between_probes(make, changes):
    sleep = Sleep(60)
    breaker = make(Server().probe, wait=sleep)
    breaker.failed(AWAY)
    assert sleep.begun.wait(10)
    thread = breaker._thread
    breaker.stop()
    assert ended(thread)
    assert changes.states == ["open"]


def test_a_stopped_breaker_changes_no_more(make, changes):
    probing, answer = threading.Event(), threading.Event()
    breaker = make(lambda: probing.set() or answer.wait(10))
    breaker.failed(AWAY)
    assert probing.wait(10)
    thread = breaker._thread
    breaker.stop()
    answer.set()
    assert ended(thread)
    breaker.succeeded()
    assert changes.states == ["open"]


def test_a_stopped_breaker_is_closed_and_opens_again_at_the_next_failure(make, changes):
    server = Server()
    breaker = make(server.probe, wait=Sleep(60))
    breaker.failed(AWAY)
    breaker.stop()
    assert breaker.closed
    breaker.failed(AWAY)
    assert not breaker.closed
    assert changes.states == ["open", "open"]


def in_a_forked_child(check):
    """Run a check in a child that ends by itself, and return whether it held."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        code = 1
        try:
            check()
            code = 0
        except BaseException:  # noqa: BLE001 nothing may get out of the child and into pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def test_a_child_forked_while_open_begins_closed_and_can_open_and_close(make, changes):
    server = Server()
    breaker = make(server.probe, wait=Sleep())
    breaker.failed(AWAY)

    def check():
        assert breaker.closed
        assert changes.states == ["open"]
        server.answers.set()
        server._asking = threading.Lock()
        breaker.failed(AWAY)
        changes.wait_for("open", "open", "closed")
        assert breaker.closed

    assert in_a_forked_child(check)
    assert not breaker.closed


def test_a_child_forked_while_another_thread_held_the_lock_is_not_held_up(make, changes):
    breaker = make(lambda: None)
    held, release = threading.Event(), threading.Event()

    def hold():
        with breaker._lock:
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)

    def check():
        breaker.failed(AWAY)
        changes.wait_for("open", "closed")

    try:
        assert in_a_forked_child(check)
    finally:
        release.set()
        assert ended(holder)


def test_a_breaker_that_nobody_holds_is_not_kept_for_forks():
    breaker = weakref.ref(Breaker(never_asked, Changes()))
    gc.collect()
    assert breaker() is None


def test_a_frozen_server_opens_it_until_the_server_goes_on(make, changes, new_server, store_at):
    server = new_server()
    store = store_at(f"redis://127.0.0.1:{server.port}")
    sleep = Sleep(0.05)
    breaker = make(lambda: store.run(Ping()), wait=sleep)
    store.run(Ping())
    server._process.send_signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError) as failure:
        store.run(Ping())
    breaker.failed(failure.value)
    assert sleep.begun.wait(10)  # it has probed in vain, within its deadline
    assert not breaker.closed
    server._process.send_signal(signal.SIGCONT)
    changes.wait_for("open", "closed")
    assert breaker.closed


def test_a_port_where_nobody_listens_keeps_it_open(make, changes, store_at):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        store = store_at(f"redis://127.0.0.1:{reserved.getsockname()[1]}")
        failures = threading.Semaphore(0)

        def wait(over, seconds):
            failures.release()
            return over.wait(0.001)

        breaker = make(lambda: store.run(Ping()), wait=wait)
        with pytest.raises(UnavailableError) as failure:
            store.run(Ping())
        breaker.failed(failure.value)
        for _ in range(3):
            assert failures.acquire(timeout=10)
        assert not breaker.closed
        assert changes.states == ["open"]


def test_an_error_reply_is_an_answer_and_opens_nothing(make, changes, client, url, store_at):
    client.set("events", "not a stream")
    breaker = make(never_asked)
    with pytest.raises(UnavailableError) as failure:
        store_at(url).run(Append("events", {"type": "a.b"}))
    breaker.failed(failure.value)
    assert breaker.closed
    assert changes == []


def test_a_server_that_refuses_the_probe_is_there(make, changes, client, url, store_at):
    client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "+get")
    store = store_at(url.replace("redis://", "redis://reader:any@"))
    with pytest.raises(UnavailableError) as refusal:
        store.run(Ping())
    assert is_answer(refusal.value)
    make(lambda: store.run(Ping())).failed(AWAY)
    changes.wait_for("open", "closed")
    client.execute_command("ACL", "DELUSER", "reader")
