"""How the worker says that it is well: the state itself, and over HTTP while others misbehave."""

import asyncio
import http.client
import json
import socket
import threading
import time

import pytest
from structlog.testing import capture_logs
from tidings.errors import ConfigurationError
from tidings_worker.health import STUCK_SECONDS, Health, keep_beating, pages, serving
from tidings_worker.settings import WorkerSettings

PARTS = ("consumer", "events server", "jobs server")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    """A worker that is at work."""
    made = Health(PARTS, clock=clock)
    for part in PARTS:
        made.part(part, ok=True)
    return made


@pytest.fixture
def port(health):
    served = pages(health, lambda accept: (b"metrics 1\n", f"text/plain; asked={accept}"))
    with serving("127.0.0.1", 0, served) as bound:
        yield bound


def ask(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def asked_json(port, path):
    status, body, headers = ask(port, path)
    assert headers["Content-Type"] == "application/json"
    return status, json.loads(body)


def test_a_worker_is_alive_and_not_ready_before_its_parts_have_started(clock):
    made = Health(PARTS, clock=clock)
    report = made.report()
    assert (report.alive, report.ready) == (True, False)
    assert [reason.partition(":")[0] for reason in report.unready] == list(PARTS)


def test_a_worker_whose_parts_are_well_is_ready(health):
    report = health.report()
    assert (report.alive, report.ready, report.ill, report.unready) == (True, True, (), ())


def test_an_outage_makes_it_unready_and_not_ill(health):
    health.part("events server", ok=False, reason="does not answer")
    report = health.report()
    assert (report.alive, report.ready, report.unready) == (True, False, ("events server: does not answer",))
    health.part("events server", ok=True)
    assert health.report().ready


def test_a_part_that_died_is_not_made_well_by_what_it_said_before(health):
    health.died("consumer", "ValueError")
    health.part("consumer", ok=True)
    report = health.report()
    assert (report.alive, report.ready, report.ill) == (False, False, ("consumer: died: ValueError",))


def test_a_stop_makes_it_unready_and_not_ill(health):
    health.stopping()
    report = health.report()
    assert (report.alive, report.ready) == (True, False)


def test_an_event_loop_that_does_not_beat_is_ill_until_it_does(health, clock):
    clock.now += STUCK_SECONDS
    assert health.report().alive
    clock.now += 1
    report = health.report()
    assert (report.alive, report.ready) == (False, False)
    assert report.ill == (f"event loop: has not run for {STUCK_SECONDS + 1:.0f} s",)
    assert health.beat_age == STUCK_SECONDS + 1
    health.beat()
    assert health.report().ready


def test_both_answers_are_200_while_all_is_well(port):
    assert asked_json(port, "/healthz") == (200, {"ok": True, "reasons": []})
    assert asked_json(port, "/readyz") == (200, {"ok": True, "reasons": []})


def test_an_outage_shows_in_readyz_alone(port, health):
    health.part("jobs server", ok=False, reason="does not answer")
    assert asked_json(port, "/healthz")[0] == 200
    assert asked_json(port, "/readyz") == (503, {"ok": False, "reasons": ["jobs server: does not answer"]})


def test_a_stuck_loop_shows_in_both(port, clock):
    clock.now += STUCK_SECONDS + 1
    reasons = [f"event loop: has not run for {STUCK_SECONDS + 1:.0f} s"]
    assert asked_json(port, "/healthz") == (503, {"ok": False, "reasons": reasons})
    assert asked_json(port, "/readyz") == (503, {"ok": False, "reasons": reasons})


async def test_it_answers_while_the_event_loop_is_blocked(port):
    """This is a coroutine, which blocks its event loop with a request."""
    assert asked_json(port, "/healthz")[0] == 200


async def test_a_blocked_event_loop_shows_and_so_does_its_recovery(until, eventually):
    """`until` blocks the event loop, `eventually` lets it run."""
    blocked = Health((), stuck_after=1.0)
    beating = asyncio.create_task(keep_beating(blocked))
    try:
        with serving("127.0.0.1", 0, pages(blocked, lambda _: (b"", ""))) as bound:
            until(lambda: asked_json(bound, "/healthz")[0] == 503, "the loop to be stuck")
            await eventually(lambda: blocked.report().alive, "a beat")
            await asyncio.to_thread(until, lambda: asked_json(bound, "/healthz")[0] == 200, "the recovery")
    finally:
        beating.cancel()


def test_metrics_are_in_the_format_that_was_asked_for(port):
    status, body, headers = ask(port, "/metrics", Accept="application/openmetrics-text")
    assert (status, body) == (200, b"metrics 1\n")
    assert headers["Content-Type"] == "text/plain; asked=application/openmetrics-text"


def test_a_query_changes_nothing(port):
    assert asked_json(port, "/healthz?verbose=1")[0] == 200


@pytest.mark.parametrize("path", ["/", "/health", "/healthz/", "/metrics/x", "/../healthz", "/%68ealthz", "*"])
def test_other_paths_are_not_found(port, path):
    assert ask(port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "EVIL"])
def test_other_methods_are_refused(port, method):
    assert ask(port, "/healthz", method)[0] == 501


def test_head_is_the_same_without_the_body(port):
    status, body, headers = ask(port, "/healthz", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(ask(port, "/healthz")[1])


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"\x00\xff\xfe" * 100 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 50_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda value: ascii(value[:24]),
)
def test_what_is_no_request_ends_the_connection_and_nothing_else(port, request_bytes):
    with capture_logs() as logs, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except OSError:
            pass  # it is refused before all of it was sent
    assert asked_json(port, "/healthz")[0] == 200
    assert logs == []


def test_clients_that_say_nothing_hold_up_nobody(port):
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    try:
        assert asked_json(port, "/healthz")[0] == 200
    finally:
        for connection in silent:
            connection.close()


def test_more_clients_than_there_may_be_are_sent_away_until_some_have_gone(port, until, monkeypatch):
    monkeypatch.setattr("tidings_worker.health._REQUEST_SECONDS", 60)
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for connection in silent:
        connection.setblocking(False)
    until(lambda: sum(map(was_closed, silent)) == 100 - 32, "the end of those that are too many")
    for connection in silent:
        connection.close()
    until(lambda: answers(port), "an answer")


def was_closed(connection):
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def answers(port):
    try:
        return asked_json(port, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_client_that_says_nothing_does_not_hold_up_the_end(health):
    with serving("127.0.0.1", 0, pages(health, lambda _: (b"", ""))) as bound:
        silent = socket.create_connection(("127.0.0.1", bound))
    with silent, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", bound))


def test_a_request_in_small_pieces_is_read(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for piece in (b"GET /hea", b"lthz HTTP/1.1\r", b"\nHost: x\r\n", b"\r\n"):
            connection.sendall(piece)
        assert b" 200 OK" in connection.recv(65_536)


def test_a_request_that_takes_too_long_is_ended(health, monkeypatch):
    monkeypatch.setattr("tidings_worker.health._REQUEST_SECONDS", 0.05)
    with (
        serving("127.0.0.1", 0, pages(health, lambda _: (b"", ""))) as bound,
        socket.create_connection(("127.0.0.1", bound), timeout=10) as connection,
    ):
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert connection.recv(1) == b""


def test_a_page_that_fails_is_logged_and_the_next_is_served(health, until):
    def fail(_):
        raise ValueError("a fault")

    with capture_logs() as logs, serving("127.0.0.1", 0, pages(health, fail)) as bound:
        with pytest.raises(http.client.HTTPException):
            ask(bound, "/metrics")
        assert asked_json(bound, "/healthz")[0] == 200
        until(lambda: any(entry["event"] == "health_failed" for entry in logs), "the log event")


def test_the_port_that_was_picked_is_logged(health):
    with capture_logs() as logs, serving("127.0.0.1", 0, pages(health, lambda _: (b"", ""))) as bound:
        assert bound > 0
    assert logs == [{"event": "health_listening", "log_level": "info", "host": "127.0.0.1", "port": bound}]


def test_a_port_that_is_taken_names_the_setting(port, health):
    with (
        pytest.raises(ConfigurationError, match=rf"TIDINGS_WORKER_HTTP_PORT: .*{port}: Address already in use"),
        serving("127.0.0.1", port, pages(health, lambda _: (b"", ""))),
    ):
        pass


@pytest.mark.parametrize("host", ["no such host", "256.256.256.256", "a" * 70, "\x00"], ids=ascii)
def test_a_host_that_is_none_names_the_setting(health, host):
    with (
        pytest.raises(ConfigurationError, match="TIDINGS_WORKER_HTTP_HOST"),
        serving(host, 0, pages(health, lambda _: (b"", ""))),
    ):
        pass


def test_the_newer_internet_protocol_is_served_too(health):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving("::1", 0, pages(health, lambda _: (b"", ""))) as bound:
        connection = http.client.HTTPConnection("::1", bound, timeout=10)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()


def test_nothing_is_left_when_it_has_ended(health):
    with serving("127.0.0.1", 0, pages(health, lambda _: (b"", ""))) as bound:
        ask(bound, "/healthz")
    assert "tidings-health" not in {thread.name for thread in threading.enumerate()}


def test_the_same_port_can_be_listened_at_again_at_once(health):
    served = pages(health, lambda _: (b"", ""))
    with serving("127.0.0.1", 0, served) as bound:
        ask(bound, "/healthz")
    with serving("127.0.0.1", bound, served):
        assert ask(bound, "/healthz")[0] == 200


def test_no_port_is_no_server_and_one_out_of_range_is_refused_by_name(monkeypatch):
    assert WorkerSettings.load().http_port is None
    monkeypatch.setenv("TIDINGS_WORKER_HTTP_PORT", "0")
    assert WorkerSettings.load().http_port == 0
    monkeypatch.setenv("TIDINGS_WORKER_HTTP_PORT", "65536")
    with pytest.raises(ConfigurationError, match=r"TIDINGS_WORKER_HTTP_PORT: .*less than or equal to 65535"):
        WorkerSettings.load()


def test_the_default_clock_does_not_go_back():
    made = Health(())
    assert made.report().ready
    assert 0 <= made.beat_age <= time.monotonic()
