"""The worker as a process: how it starts, how it stops, and what it leaves behind however it ends."""

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import redis

#: Every rule and loader says in a file that it has begun, and waits for the file `go` when it is told to.
RULES = """
import asyncio
import time
import urllib.error
import urllib.request
from pathlib import Path

from tidings import cached
from tidings_worker import Invalidate, Rules, Warm

rules = Rules()


def note(name, line):
    with Path(name).open("a") as notes:
        notes.write(f"{line}\\n")


def may_go():
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline and not Path("go").exists():
        yield time.sleep(0.01)


@rules.on("app.changed")
def changed(event):
    note("planned", event.envelope.id)
    if event.model_extra.get("hold"):
        note("held", event.envelope.id)
        for _ in may_go():
            pass
    return Invalidate(tags=[f"user:{event.user_id}"])


@rules.on("app.broken")
def broken(event):
    raise ZeroDivisionError("a bug in a rule")


@cached(namespace="slow")
async def slow(user_id: int) -> int:
    note("loading", user_id)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return user_id


@cached(namespace="slow")
async def slow_thread(user_id: int) -> int:
    note("loading", user_id)
    await asyncio.to_thread(list, may_go())
    return user_id


rules.map("app.slow", warm=[slow])
rules.map("app.slow_thread", warm=[slow_thread])
"""


@pytest.fixture
def folder(shell):
    shell.write("rules.py", RULES)
    return shell.folder


@pytest.fixture
def start(shell, folder, url):
    """Start a worker of the rules above, and wait until it reads."""

    def start(address=url, **settings):
        variables = {f"TIDINGS_WORKER_{name.upper()}": str(value) for name, value in settings.items()}
        variables = {"TIDINGS_WORKER_BLOCK_MS": "100", **variables}
        worker = shell.start("worker", "rules:rules", TIDINGS_URL=address, TIDINGS_OPERATION_TIMEOUT="60", **variables)
        worker.event("worker_started")
        return worker

    return start


def publish(client, event_type, **data):
    return client.xadd("events", {"type": event_type, "data": json.dumps(data)}).decode()


def lines(path: Path):
    return path.read_text().splitlines() if path.exists() else []


def group(client):
    (found,) = client.xinfo_groups("events")
    return found


def test_a_stop_under_load_leaves_nothing_pending_and_nothing_is_handled_twice(client, folder, start, until):
    """500 events wait before there is a worker; it is stopped in its third batch of 50; another one does the rest."""
    ids = [publish(client, "app.changed", user_id=number, hold=number == 120) for number in range(500)]
    worker = start(batch=50)
    until(lambda: lines(folder / "held"), "the event that holds up its batch")
    worker.send(signal.SIGTERM)
    asked = time.monotonic()
    (folder / "go").touch()
    assert worker.wait() == 0
    assert time.monotonic() - asked < 5
    assert group(client)["pending"] == 0
    assert group(client)["lag"] == 350
    assert group(client)["consumers"] == 1  # the group's mark
    assert lines(folder / "planned") == ids[:150]
    assert worker.event("stopping")["reason"] == "SIGTERM"
    assert worker.event("stopped")["exit_code"] == 0

    second = start(batch=50)
    until(lambda: group(client)["lag"] == group(client)["pending"] == 0, "the end of the backlog")
    second.send(signal.SIGINT)
    assert second.wait() == 0
    assert lines(folder / "planned") == ids
    assert client.hget("events:counts", "applied") == b"500"


def test_a_second_signal_does_not_break_the_drain(client, folder, start, until):
    publish(client, "app.slow", user_id=7)
    worker = start()
    until(lambda: lines(folder / "loading"), "the load")
    worker.send(signal.SIGTERM)
    worker.event("stopping")
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGINT)
    (folder / "go").touch()
    assert worker.wait() == 0
    assert worker.event("warmed")["call"] == "rules:slow"
    assert len(client.keys("cache:slow:*")) == 1
    assert client.zcard("warms") == 0


@pytest.mark.parametrize(
    ("event_type", "loads"),
    [("app.slow", 1), ("app.slow_thread", 1), ("app.slow_thread", 40)],
    ids=["coroutine", "thread", "every thread"],  # a loop has 32 at most
)
def test_a_load_that_takes_long_does_not_hold_up_the_stop_and_is_left_for_the_next(
    event_type, loads, client, folder, start, until
):
    for number in range(loads):
        publish(client, event_type, user_id=number)
    worker = start(drain_timeout=0.2, stop_timeout=4, max_warms=40)
    until(lambda: len(lines(folder / "loading")) == loads, "the load")
    asked = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - asked < 5
    assert group(client)["pending"] == 0
    assert client.zcard("warms") == loads
    assert client.keys("arq:in-progress:*") == []


def test_an_exception_in_a_rule_is_tried_again_and_then_set_aside_and_the_worker_goes_on(client, start, until):
    bad = publish(client, "app.broken")
    publish(client, "app.changed", user_id=7)
    worker = start(retry_delay=0.01, max_deliveries=3)
    until(lambda: client.xlen("events:dead"), "the dead letter")
    ((_, letter),) = client.xrange("events:dead")
    assert letter[b"stream_id"] == bad.encode()
    assert b"a bug in a rule" in letter[b"reason"]
    assert [failed["deliveries"] for failed in worker.events("event_failed")] == [1, 2]
    assert "a bug in a rule" in worker.events("event_failed")[0]["exception"]
    assert client.exists("token:tag:user:7")
    assert group(client)["pending"] == 0
    assert worker.code is None


def test_a_consumer_that_dies_ends_the_warm_jobs_too(client, folder, start, until):
    publish(client, "app.slow", user_id=7)
    worker = start(drain_timeout=0.2)
    until(lambda: lines(folder / "loading"), "the load")
    client.delete("events")
    client.set("events", "not a stream")
    worker.event("stopping")
    (folder / "go").touch()
    assert worker.wait() == 1
    failed = {failed["part"] for failed in worker.events("part_failed")}
    assert "consumer of events" in failed
    assert "warm jobs" not in failed


def test_warm_jobs_that_die_end_the_consumer_too(client, start):
    worker = start()
    client.set("warms", "not a queue")
    assert worker.wait() == 1
    assert "warm jobs" in {failed["part"] for failed in worker.events("part_failed")}
    publish(client, "app.changed", user_id=7)
    assert group(client)["pending"] == 0
    assert group(client)["lag"] == 1


def test_a_frozen_server_does_not_hold_up_the_stop(start, new_server):
    server = new_server()
    worker = start(f"redis://127.0.0.1:{server.port}", stop_timeout=1)
    server._process.send_signal(signal.SIGSTOP)
    asked = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 70
    assert time.monotonic() - asked < 5


def test_a_server_that_goes_away_is_waited_for_and_a_stop_meanwhile_is_a_good_one(start, new_server):
    server = new_server()
    worker = start(f"redis://127.0.0.1:{server.port}")
    server._process.kill()
    worker.event("redis_away")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert len(worker.events("redis_away")) == 1


def test_a_stop_while_the_rules_are_imported_leaves_no_server_behind(shell, until):
    shell.write("rules.py", "from pathlib import Path\nPath('importing').touch()\n" + RULES + "list(may_go())\n")
    worker = shell.start("worker", "rules:rules")
    until((shell.folder / "importing").exists, "the import")
    address = (shell.folder / ".tidings" / "env").read_text().strip().partition("=")[2]
    worker.send(signal.SIGTERM)
    worker.wait()
    with redis.Redis.from_url(address) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def ask(port, path):
    """Return the status and the text that a worker answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_worker_says_how_it_is_and_counts_what_it_does(client, start, until):
    worker = start(http_port=0)
    port = worker.event("health_listening")["port"]
    until(lambda: ask(port, "/readyz")[0] == 200, "a worker that is ready")
    assert ask(port, "/healthz")[0] == 200
    publish(client, "app.changed", user_id=7)
    applied = 'tidings_events_applied_total{type="app.changed"} 1.0'
    until(lambda: applied in ask(port, "/metrics")[1], "the count")
    metrics = ask(port, "/metrics")[1]
    assert 'tidings_invalidation_delay_seconds_count{type="app.changed"} 1.0' in metrics
    assert 'tidings_redis_up{server="events"} 1.0' in metrics


def test_a_worker_whose_server_is_away_is_alive_and_not_ready(start, new_server, until):
    server = new_server()
    worker = start(f"redis://127.0.0.1:{server.port}", http_port=0)
    port = worker.event("health_listening")["port"]
    until(lambda: ask(port, "/readyz")[0] == 200, "a worker that is ready")
    server._process.kill()
    until(lambda: ask(port, "/readyz")[0] == 503, "a worker that is not ready")
    assert ask(port, "/healthz")[0] == 200
    assert "127.0.0.1" not in ask(port, "/readyz")[1]


def test_a_port_that_is_taken_is_said_at_the_start(shell, folder, url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        worker = shell.run("worker", "rules:rules", TIDINGS_URL=url, TIDINGS_WORKER_HTTP_PORT=port)
    assert worker.code != 0
    assert "TIDINGS_WORKER_HTTP_PORT" in worker.err


def test_warms_are_counted_by_what_became_of_them(client, folder, start, until):
    (folder / "go").touch()
    worker = start(http_port=0)
    port = worker.event("health_listening")["port"]
    publish(client, "app.slow", user_id=7)
    until(lambda: 'tidings_warm_tries_total{outcome="warmed"} 1.0' in ask(port, "/metrics")[1], "the count")


def test_a_server_that_ends_and_starts_with_its_worker_has_lost_nothing(shell, until):
    """Twice in a folder without a server configured: the second start is no sign of a loss."""
    shell.write("rules.py", RULES)
    for _ in range(2):
        worker = shell.start("worker", "rules:rules")
        worker.event("worker_started")
        published = shell.run("publish", "app.changed", "--data", '{"user_id": 7}', "--wait", "5")
        assert published.code == 0
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert worker.events("events_lost") == []
