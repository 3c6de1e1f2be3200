"""The worker under half of its most, for ten minutes: memory stays flat, and lag bounded, or this says so.

A worker process and a server of our own. First a backlog says how many events a second the worker can do; then events
come at half that rate, evenly, and every five seconds is looked at what the processes hold and how far the worker is
behind. Memory counts from when all that is bounded is full: after the first tenth of the time, and not before the
invalidation log has its length, which is by far the largest.

Exit code 1 when memory grows, when the worker falls behind, or when it warns of anything but the server's settings.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import EXIT_FAILED, fail, quantile, say, server, write_json
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tidings import Cache, Settings
from tidings.keys import Keyspace
from worker_load import fill, stream_fields, unacknowledged

BACKLOG, PREPARED, TICK, LOOK_SECONDS = 50_000, 20_000, 0.05, 5.0
#: Memory at the end may be this many times what it was when all was full; and this many seconds of lag.
MOST_GROWTH, MOST_LAG_SECONDS = 1.1, 1.0
LOG_LENGTH = Settings().log_length


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    at: float
    worker_mib: float
    server_mib: float
    entries: int
    #: entries of the invalidation log
    log: int
    #: events not acknowledged, and the seconds since the oldest of them was published
    behind: int
    age: float


@contextmanager
def worker(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker; what it logs goes to a file in the folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    command = [str(Path(sys.executable).with_name("tidings")), "worker", "--quiet", "worker_load:rules"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=Path(__file__).parent, env=clean | {"TIDINGS_URL": url}, stderr=log, stdout=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def warnings(folder: Path) -> list[dict[str, Any]]:
    """Return what the worker warned of, but for settings of a server that is made for this run."""
    logged = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    return [line for line in logged if line["event"] != "server_setting"]


async def most(client: Redis, keys: Any, group: str) -> float:
    """Return how many events a second the worker does when all of them are there."""
    deadline = time.monotonic() + 20
    while not await client.exists(keys.events):
        if time.monotonic() > deadline:
            fail("the worker does not read")
        await asyncio.sleep(0.05)
    rates = []
    for seed in range(3):
        await fill(client, keys.events, stream_fields(BACKLOG, seed))
        left, started = await unacknowledged(client, keys.events, group), time.perf_counter()
        while await unacknowledged(client, keys.events, group):  # noqa: ASYNC110 the condition is the server's
            await asyncio.sleep(0.01)
        rates.append(left / (time.perf_counter() - started))
    return sorted(rates)[1]


async def publish(client: Redis, stream: str, rate: float, seconds: float) -> None:
    """Add entries at a rate, evenly."""
    prepared = itertools.cycle(stream_fields(PREPARED, 0))
    started, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        if due := int(elapsed * rate) - sent:
            await fill(client, stream, list(itertools.islice(prepared, due)))
            sent += due
        await asyncio.sleep(TICK)


def resident(pid: int) -> float:
    """Return the MiB of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def look(client: Redis, keys: Keyspace, group: str, pid: int, at: float) -> Look:
    """Look at the processes and at the stream."""
    memory = (await client.info("memory"))["used_memory"] / 2**20
    stream, log = keys.events, keys.log
    behind = await unacknowledged(client, stream, group)
    (found,) = [one for one in await client.xinfo_groups(stream) if one["name"] == group.encode()]
    oldest: Any = await client.xrange(stream, b"(" + found["last-delivered-id"], "+", 1)
    seconds, rest = await client.time()
    age = seconds + rest / 1e6 - int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else 0.0
    logged = await client.xlen(log)
    return Look(at, resident(pid), memory, await client.xlen(stream), logged, behind, max(0.0, age))


async def soak(url: str, process: subprocess.Popen[bytes], seconds: float) -> tuple[float, float, list[Look]]:
    """Return the worker's most, the rate that it was held to, and what was seen."""
    looks: list[Look] = []
    async with Redis.from_url(url) as client, Cache(url) as cache:
        keys, group = cache.keys, cache.settings.group
        top = await most(client, keys, group)
        publishing = asyncio.create_task(publish(client, keys.events, top / 2, seconds))
        started = time.monotonic()
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("soak", total=seconds)
            while not publishing.done():
                await asyncio.wait({publishing}, timeout=LOOK_SECONDS)
                if process.poll() is not None:
                    fail(f"the worker ended with {process.returncode}")
                looks.append(await look(client, keys, group, process.pid, time.monotonic() - started))
                progress.update(task, completed=looks[-1].at)
        await publishing
    return top, top / 2, looks


def verdict(looks: list[Look], warned: list[dict[str, Any]]) -> dict[str, Any]:
    """Say what the looks come to."""
    full = next((at for at, one in enumerate(looks) if one.log >= LOG_LENGTH), len(looks))
    if full > len(looks) // 2:
        fail("the invalidation log does not fill: soak for longer")
    counted = looks[max(full, len(looks) // 10) :]
    tenth = max(1, len(counted) // 9)

    def growth(values: list[float]) -> float:
        return quantile(values[-tenth:], 0.5) / quantile(values[:tenth], 0.5)

    worker_growth = growth([one.worker_mib for one in counted])
    server_growth = growth([one.server_mib for one in counted])
    ages = [one.age for one in counted]
    return {
        "worker_growth": worker_growth,
        "server_growth": server_growth,
        "lag_p50_s": quantile(ages, 0.5),
        "lag_most_s": max(ages),
        "behind_most": max(one.behind for one in counted),
        "warnings": len(warned),
        "met": max(worker_growth, server_growth) <= MOST_GROWTH and max(ages) <= MOST_LAG_SECONDS and not warned,
    }


def show(looks: list[Look], report: dict[str, Any]) -> None:
    """Print ten of the looks, and what they come to."""
    table = Table(box=None, pad_edge=False)
    for heading in ("at s", "worker MiB", "server MiB", "entries", "log", "not acknowledged", "oldest s"):
        table.add_column(heading, justify="right")
    for one in looks[:: max(1, len(looks) // 10)]:
        table.add_row(
            f"{one.at:.0f}",
            f"{one.worker_mib:.1f}",
            f"{one.server_mib:.1f}",
            f"{one.entries}",
            f"{one.log}",
            f"{one.behind}",
            f"{one.age:.3f}",
        )
    Console(highlight=False).print(table)
    say(f"at most {report['most']:,.0f} events/s, held to {report['rate']:,.0f} for {report['seconds']:.0f} s")
    say(f"memory at the end against when all was full: worker {report['worker_growth']:.3f}, server")
    say(f"{report['server_growth']:.3f}; lag p50 {report['lag_p50_s']:.3f} s, at most {report['lag_most_s']:.3f} s;")
    say(f"warnings: {report['warnings']}; {'met' if report['met'] else 'NOT met'}")


def main() -> int:
    """Soak, print, and return 0 when memory stayed flat and lag bounded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    with server() as url, TemporaryDirectory() as name, worker(url, Path(name)) as process:
        top, rate, looks = asyncio.run(soak(url, process, options.seconds))
        report = {"most": top, "rate": rate, "seconds": options.seconds, **verdict(looks, warnings(Path(name)))}
    if options.json:
        write_json({**report, "looks": [asdict(one) for one in looks]})
    else:
        show(looks, report)
    return 0 if report["met"] else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
