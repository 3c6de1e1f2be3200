"""What an audit finds, what it never calls stale, and what it costs.

It must find each of 100 stale entries planted among 1 000, in two namespaces: their rows were changed with nobody told.
It must raise no alarm on 10 000 good entries while another process writes: each write commits, waits up to 0.4 s, and
publishes; twenty rows are written all the time; a worker applies the events, and readers fill what was invalidated.
Exit code 1 when it is not so.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis
from common import EXIT_FAILED, fail, say, server, write_json
from rich.console import Console
from rich.table import Table
from tidings import Cache, set_cache
from tidings_worker.verifying.audit import Audit
from tidings_worker.verifying.nines import nines_text, percent, stale_at_most
from tidings_worker.verifying.plan import Plan
from tidings_worker.verifying.reports import Report
from tidings_worker.verifying.verdicts import Outcome

ENTRIES, STALE, GOOD = 1000, 100, 10_000
#: Loads a second: as fast as they go.
_FAST = 1e6
_START_SECONDS = 20


@contextmanager
def worker(url: str) -> Iterator[None]:
    """Run a worker process with the benchmark's rules, from when it has made its group."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    command = [str(Path(sys.executable).with_name("tidings")), "worker", "--quiet", "verify_load:rules"]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, env=clean | {"TIDINGS_URL": url})
    try:
        deadline = time.monotonic() + _START_SECONDS
        with redis.Redis.from_url(url) as client:
            while not (client.exists("events") and client.xinfo_groups("events")):
                if time.monotonic() > deadline or process.poll() is not None:
                    fail("the worker does not start")
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def running(what: Callable[[str, Connection], None], url: str, pages: int, told: list[int]) -> Iterator[None]:
    """Run a process over so many pages; at its end add what it has counted."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=what, args=(url, there))
    process.start()
    there.close()
    here.send(pages)
    try:
        yield
        here.send("over")
        told.append(here.recv())
    finally:
        process.terminate()
        process.join()


async def audited(url: str, plan: Plan, prepare: Any) -> tuple[Report, float]:
    """Prepare, then audit; return the report, and the seconds of this process's CPU, loads included."""
    async with Cache(url) as cache:
        set_cache(cache)
        expected = await prepare(cache)
        before = _cpu_seconds()
        report = await Audit(cache, plan).run()
        took = _cpu_seconds() - before
        set_cache(None)
    if expected is not None and {finding.key for finding in report.stale} != expected:
        fail(f"{len(report.stale)} of {len(expected)} stale entries were found, or others")
    return report, took


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def planted(url: str, entries: int, stale: int) -> tuple[Report, float]:
    """Audit entries of which some are stale; each must be found, and no other."""
    from verify_load import ON_A_PAGE, ROWS, fill, page, price, source  # noqa: PLC0415 it reads the environment

    async def prepare(_cache: Cache) -> set[str]:
        await fill(entries)
        numbers = random.sample(range(entries // 2), stale // 2)
        for number in numbers:
            await source.client.hincrby(ROWS, str(number * ON_A_PAGE), 1)  # type: ignore[misc]
        return {function.key(number) for function in (page, price) for number in numbers}

    return await audited(url, Plan(entries, _FAST, grace=0.1), prepare)


async def good(url: str, entries: int, seconds: float) -> tuple[Report, float, int, int]:
    """Audit good entries again and again while others write and read; return all reports as one, writes and reads."""
    from verify_load import WINDOW, fill, read, write  # noqa: PLC0415

    counted: list[int] = []

    async def nothing(_cache: Cache) -> None:
        return None

    with ExitStack() as stack:
        stack.enter_context(worker(url))
        plan = Plan(entries, _FAST, longest=600, grace=1.25 * WINDOW, settle=60)
        async with Cache(url) as cache:
            set_cache(cache)
            await fill(entries)
        stack.enter_context(running(write, url, entries // 2, counted))
        stack.enter_context(running(read, url, entries // 2, counted))
        until = time.monotonic() + seconds
        total, took = await audited(url, plan, nothing)
        while time.monotonic() < until:
            report, more = await audited(url, plan, nothing)
            _add(total, report)
            took += more
    reads, writes = counted
    return total, took, writes, reads


def _add(total: Report, more: Report) -> None:
    for name, tally in more.namespaces.items():
        total.of(name).outcomes.update(tally.outcomes)
    total.findings += more.findings
    total.sampled += more.sampled
    for name in ("loads", "load_seconds", "commands", "bytes_read", "elapsed_seconds"):
        setattr(total.cost, name, getattr(total.cost, name) + getattr(more.cost, name))


async def measure(entries: int, seconds: float) -> tuple[Any, Any]:
    """Measure both, each on an empty server."""
    with server() as url, redis.Redis.from_url(url) as client:
        os.environ["BENCHMARK_SOURCE"] = f"{url}/1"
        first = await planted(url, ENTRIES, STALE)
        client.flushall()
        return first, await good(url, entries, seconds)


def row(report: Report, took: float) -> dict[str, Any]:
    """Return a row of the table."""
    checked = sum(tally.checked for tally in report.namespaces.values())
    cost, each = report.cost, max(1, report.looked_at)
    return {
        **{outcome.value: report.count(outcome) for outcome in Outcome},
        "checked": checked,
        "at_least": 1 - stale_at_most(len(report.stale), checked),
        "loads": cost.loads,
        "commands_per_entry": cost.commands / each,
        "bytes_per_entry": cost.bytes_read / each,
        "cpu_us_per_entry": took / each * 1e6,
        "elapsed_s": cost.elapsed_seconds,
    }


def main() -> int:
    """Audit, print, and return 0 when all was found and nothing was called stale that is not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--good", type=int, default=GOOD, help="good entries")
    parser.add_argument("--seconds", type=float, default=30, help="audits of them are repeated for so long")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    (found, found_took), (quiet, took, writes, reads) = asyncio.run(measure(options.good, options.seconds))
    rows = {"planted": row(found, found_took), "good, while others write": row(quiet, took)}
    alarms = len(quiet.findings)
    report = {"rows": rows, "planted": len(found.stale), "alarms": alarms, "writes": writes, "reads": reads}
    if options.json:
        write_json(report)
    else:
        _show(rows)
        bound = stale_at_most(alarms, rows["good, while others write"]["checked"])
        say(f"{alarms} alarms; {writes} writes, {reads} reads; at least {percent(bound)}, {nines_text(bound)} nines")
    return EXIT_FAILED if alarms else 0


def _show(rows: dict[str, dict[str, Any]]) -> None:
    table = Table("", *rows, box=None, pad_edge=False)
    for name in next(iter(rows.values())):
        cells = (figures[name] for figures in rows.values())
        table.add_row(name, *(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
