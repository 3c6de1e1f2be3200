"""The row about an outage: the server is frozen (SIGSTOP), so that it neither answers nor refuses.

Everybody has the same deadline for Redis. The first call may take it and the load; how much a call costs on top of the
load when many have failed is measured with a load of nothing, beside calling that directly.
"""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from functools import wraps
from typing import Any

import peers
import redis
from common import rounds, server
from payloads import TENANT
from peers import Decorator
from rows import OURS, Outcome, Row, Run

DEADLINE, LOAD = 0.1, 0.02
#: What an event loop's timers may be late by.
SLACK = 0.01
#: Seconds on top of the load, when the breaker is open.
OVERHEAD = 50e-6
#: Calls that open a breaker, one after the other, at most; then calls that are timed.
OPENING, TIMED = 20, 200
#: A call that takes longer hangs; and for calls that each wait, a sample must do.
HANGS, PATIENCE = 5.0, 2.0


@contextmanager
def freezable() -> Iterator[tuple[str, Callable[[], None]]]:
    """Run a server and give its URL and what freezes it; it is thawed before it is stopped."""
    with server() as url:
        with redis.Redis.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        try:
            yield url, lambda: os.kill(pid, signal.SIGSTOP)
        finally:
            os.kill(pid, signal.SIGCONT)


async def slow(number: int, tenant: str = TENANT) -> int:  # noqa: ARG001
    """Take as long as a query."""
    await asyncio.sleep(LOAD)
    return number


async def instant(number: int, tenant: str = TENANT) -> int:  # noqa: ARG001
    """Take no time."""
    return number


def variants(url: str) -> dict[str, Any]:
    """Return those that take a deadline."""
    return {
        OURS: peers.tidings(url, deadline=DEADLINE),
        "cashews": peers.cashews(url, socket_timeout=DEADLINE),
        "aiocache": peers.aiocache_redis(url, timeout=DEADLINE),
        "fastapi-cache2": peers.fastapi_cache2(url, socket_timeout=DEADLINE),
        "dogpile.cache": peers.dogpile(url, socket_timeout=DEADLINE),
    }


async def one(column: str) -> dict[str, float | str]:
    """Measure one of them against a server of its own."""
    with freezable() as (url, freeze):
        async with AsyncExitStack() as stack:
            variant = variants(url)[column]
            if isinstance(variant, AbstractContextManager):
                decorate = in_thread(stack.enter_context(variant))
            else:
                decorate = await stack.enter_async_context(variant)
            cached_slow, cached_instant = decorate(slow), decorate(instant)
            for number in range(2):
                await asyncio.gather(cached_slow(number), cached_instant(number))
            await asyncio.sleep(0.1)  # fills are done
            freeze()
            try:
                first = await timed(cached_slow, 1)
                return {"first": first, "overhead": await overhead(cached_instant)}
            except TimeoutError:
                return {"error": "hangs"}
            except Exception as error:  # noqa: BLE001 that it raises, whatever it is, is what is to be told
                return {"error": f"raises {type(error).__name__}"}


def in_thread(decorate: Decorator) -> Decorator:
    """Let a decorator of plain functions take coroutine functions, and await it in a thread."""

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def plain(number: int, tenant: str = TENANT) -> Any:
            return asyncio.run(function(number, tenant))

        cached = decorate(plain)
        return lambda number: asyncio.to_thread(cached, number)

    return decorator


async def timed(call: Callable[[int], Awaitable[Any]], number: int) -> float:
    """Return the seconds that a call takes; raises TimeoutError when it hangs."""
    started = time.perf_counter()
    async with asyncio.timeout(HANGS):
        await call(number)
    return time.perf_counter() - started


async def overhead(cached: Callable[[int], Awaitable[Any]]) -> float:
    """Return the seconds that a call takes on top of the load, by the median."""
    until = time.monotonic() + PATIENCE
    for number in range(OPENING):
        if time.monotonic() < until:
            await timed(cached, number)
    until = time.monotonic() + PATIENCE
    with_cache, without = [], []
    for number in range(TIMED):
        if time.monotonic() < until:
            with_cache.append(await timed(cached, number))
            without.append(await timed(instant, number))
    return statistics.median(with_cache) - statistics.median(without)


def measure(run: Run) -> Outcome:
    """Measure all, a round at a time."""
    figures: dict[str, list[dict[str, float | str]]] = {}
    for counts in rounds(min(run.rounds, 3), "outage"):
        if not counts:
            continue  # each has a fresh server anyway
        for column in variants("redis://unused:1"):
            figures.setdefault(column, []).append(run.run(one(column)))
    cells, medians = {}, {}
    for column, many in figures.items():
        errors = [got["error"] for got in many if "error" in got]
        if errors:
            medians[column], cells[column] = {"error": errors[0]}, str(errors[0])
            continue
        first, extra = (statistics.median(got[name] for got in many) for name in ("first", "overhead"))  # type: ignore[type-var]
        medians[column] = {"first": first, "overhead": extra}
        cells[column] = f"{float(first) * 1000:.0f} ms, {_brief(float(extra))}"
    ours: dict[str, Any] = medians[OURS]
    met = "error" not in ours and ours["first"] <= DEADLINE + LOAD + SLACK and ours["overhead"] <= OVERHEAD
    return Outcome(cells, met, {"medians": medians, "deadline": DEADLINE, "load": LOAD})


def _brief(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 0.001 else f"{seconds * 1e3:.0f} ms"


ROW = Row(
    "outage",
    "Redis frozen: first call, then on top of the load",
    f"{(DEADLINE + LOAD) * 1000:.0f} ms, {OVERHEAD * 1e6:.0f} us",
    measure,
)
