"""How the worker is, for whoever watches it: ``/healthz``, ``/readyz`` and ``/metrics`` over HTTP.

Served by threads, so that it answers while the event loop is blocked, and says that it is.

- ``/healthz``: 200 unless restarting the process would help: a part of it has died, or its event loop is stuck. An
  outage of Redis is ridden out, and no reason.
- ``/readyz``: 200 while the worker reads events, reaches its servers, and is not stopping.
- Both answer 503 otherwise, and always with JSON: ``{"ok": false, "reasons": ["events server: ..."]}``.

Nothing authenticates who asks; nothing that it says is secret.
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from tidings.errors import ConfigurationError

from .telemetry import log

#: An event loop that has not run for so many seconds is stuck: some code blocks it that should be in a thread.
STUCK_SECONDS = 10.0
_BEAT_SECONDS = 0.5

#: A request is a few hundred bytes, and there is one every few seconds.
_LONGEST_REQUEST = 8 * 1024
_REQUEST_SECONDS = 5.0
_MOST_CONNECTIONS = 32
_LOOK_FOR_STOP_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Report:
    """What `Health` knows at one moment."""

    #: why the process should be started again
    ill: tuple[str, ...]
    #: why it is not at work
    unready: tuple[str, ...]

    @property
    def alive(self) -> bool:
        """Whether the process can go on."""
        return not self.ill

    @property
    def ready(self) -> bool:
        """Whether it is at work."""
        return not (self.ill or self.unready)


class Health:
    """What the parts of a worker say of themselves. Safe under threads.

    The worker is not ready before each of `parts` has said that it is well. `reason`s are shown to anybody: no URLs.
    """

    def __init__(
        self,
        parts: Iterable[str],
        *,
        stuck_after: float = STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._stuck_after = stuck_after
        self._beaten_at = clock()
        self._lock = threading.Lock()
        self._unwell = dict.fromkeys(parts, "has not started yet")
        self._died: dict[str, str] = {}
        self._stopping = False

    def beat(self) -> None:
        """Note that the event loop runs."""
        self._beaten_at = self._clock()

    @property
    def beat_age(self) -> float:
        """Seconds since the event loop last ran."""
        return max(0.0, self._clock() - self._beaten_at)

    def part(self, name: str, *, ok: bool, reason: str = "") -> None:
        """Note that a part is at work or, for now and for this reason, not."""
        with self._lock:
            if ok:
                self._unwell.pop(name, None)
            else:
                self._unwell[name] = reason

    def died(self, name: str, reason: str) -> None:
        """Note that a part has ended and will not come back in this process."""
        with self._lock:
            self._died[name] = reason

    def stopping(self) -> None:
        """Note that the worker takes no new events."""
        self._stopping = True

    def report(self) -> Report:
        """Say how the worker is."""
        with self._lock:
            ill = [f"{name}: died: {reason}" for name, reason in self._died.items()]
            unready = [f"{name}: {reason}" for name, reason in self._unwell.items()]
        if (age := self.beat_age) > self._stuck_after:
            ill.append(f"event loop: has not run for {age:.0f} s")
        if self._stopping:
            unready.append("worker: stopping")
        return Report(tuple(ill), tuple(unready))


async def keep_beating(health: Health) -> None:
    """Beat from the running event loop until this is cancelled."""
    while True:
        health.beat()
        await asyncio.sleep(_BEAT_SECONDS)


#: What a path answers: status, content type, body. Takes the ``Accept`` header.
Page = Callable[[str], tuple[HTTPStatus, str, bytes]]


def pages(health: Health, expose: Callable[[str], tuple[bytes, str]]) -> dict[str, Page]:
    """Return what is served under which path; `expose` is that of `metrics.Metrics`."""

    def alive(_: str) -> tuple[HTTPStatus, str, bytes]:
        report = health.report()
        return _json(report.alive, report.ill)

    def ready(_: str) -> tuple[HTTPStatus, str, bytes]:
        report = health.report()
        return _json(report.ready, (*report.ill, *report.unready))

    def metrics(accept: str) -> tuple[HTTPStatus, str, bytes]:
        body, content_type = expose(accept)
        return HTTPStatus.OK, content_type, body

    return {"/healthz": alive, "/readyz": ready, "/metrics": metrics}


def _json(ok: bool, reasons: tuple[str, ...]) -> tuple[HTTPStatus, str, bytes]:
    body = json.dumps({"ok": ok, "reasons": reasons}).encode() + b"\n"
    return HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body


@contextmanager
def serving(host: str, port: int, served: dict[str, Page]) -> Iterator[int]:
    """Serve these pages within the block; gives the port. Raises ConfigurationError when it cannot be listened at."""
    server = _listen(host, port, served)
    bound: int = server.server_address[1]
    thread = threading.Thread(
        target=server.serve_forever, args=(_LOOK_FOR_STOP_SECONDS,), name="tidings-health", daemon=True
    )
    thread.start()
    log.info("health_listening", host=host, port=bound)
    try:
        yield bound
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listen(host: str, port: int, served: dict[str, Page]) -> "_Server":
    setting = "TIDINGS_WORKER_HTTP_HOST"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        setting = "TIDINGS_WORKER_HTTP_PORT"
        return _Server(family, address, served)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "is no host"
        raise ConfigurationError(f"{setting}: cannot listen at {host!r}, port {port}: {said}") from error


class _Server(ThreadingMixIn, TCPServer):
    """Each connection has a thread, as far as there may be one; nobody waits for these threads."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128  # those that are too many are accepted as well, to be closed

    def __init__(self, family: socket.AddressFamily, address: Any, served: dict[str, Page]) -> None:
        self.address_family = family
        self.served = served
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(address, _Handler)
        self.socket.setblocking(False)  # who connects and goes away again must not leave it waiting for the next one

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close it: who opens many has no claim on memory."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread: its `finally` will not run
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; anything else is a fault of ours."""
        del request, client_address
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("health_failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; the connection ends with it."""

    server: _Server
    server_version = "tidings"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def setup(self) -> None:
        """Take the request whole before it is looked at, so that its time and size are bounded as one."""
        super().setup()
        self.rfile = BytesIO(_head(self.connection))

    def do_GET(self) -> None:
        """Answer with the page."""
        page = self.server.served.get(self.path.partition("?")[0])
        if page is None:
            answer = (HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"/healthz, /readyz, /metrics\n")
        else:
            answer = page(self.headers.get("Accept", ""))
        status, content_type, body = answer
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 http.server fixes the name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 http.server fixes the name
        """Keep requests out of the log: there is one every few seconds."""


def _head(connection: socket.socket) -> bytes:
    """Receive a request up to the end of its headers, of a bounded size and within a bounded time."""
    deadline = time.monotonic() + _REQUEST_SECONDS
    received = b""
    while b"\r\n\r\n" not in received and len(received) < _LONGEST_REQUEST:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(_LONGEST_REQUEST - len(received))
        if not part:
            break
        received += part
    connection.settimeout(_REQUEST_SECONDS)
    return received
