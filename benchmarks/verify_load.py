"""What the audit's benchmark caches, writes and reads. This module is also what `tidings worker` is given.

The source is a hash in the server's database 1: a version for each row, counted up by each commit. A page is some 1 000
bytes, made of the versions of five rows; a price is of the first of them, and loaded in a thread.
"""

import asyncio
import os
import random
from multiprocessing.connection import Connection

import redis
import redis.asyncio
from pydantic import BaseModel
from tidings import Cache, Event, cached, set_cache
from tidings_worker import Rules

#: Seconds between a commit and its publishing, at most.
WINDOW = 0.4
#: Writers of one row each, which write it all the time; writers of any row; readers.
HOT, WRITERS, READERS = 20, 10, 4

ROWS, ON_A_PAGE = "rows", 5
_FILLING = "x" * 900


class RowChanged(Event, type="benchmark.row.changed"):
    """A row has another version."""

    row: int


rules = Rules()
rules.map(RowChanged, tags=["row:{row}"])


class Line(BaseModel):
    """A part of a page."""

    row: int
    version: int
    text: str = ""


class Source:
    """The database, from one process: it connects at its first command."""

    def __init__(self) -> None:
        url = os.environ.get("BENCHMARK_SOURCE", "redis://")
        self.sync = redis.Redis.from_url(url, decode_responses=True)
        self.client = redis.asyncio.Redis.from_url(url, decode_responses=True, max_connections=1000)


source = Source()


@cached(namespace="pages", ttl=3600, result_tags=lambda lines: [f"row:{line.row}" for line in lines])
async def page(number: int) -> list[Line]:
    """Load the rows of a page, whose tags are known only then."""
    rows = range(number * ON_A_PAGE, (number + 1) * ON_A_PAGE)
    found = await source.client.hmget(ROWS, [str(row) for row in rows])  # type: ignore[misc]
    lines = [Line(row=row, version=int(version or 0)) for row, version in zip(rows, found, strict=True)]
    lines[0].text = _FILLING
    return lines


@cached(namespace="prices", ttl=3600, tags=lambda number: [f"row:{number * ON_A_PAGE}"])
def price(number: int) -> float:
    """Load the first row of a page, in a thread."""
    return int(source.sync.hget(ROWS, str(number * ON_A_PAGE)) or 0) + 0.5  # type: ignore[arg-type]


async def fill(entries: int) -> None:
    """Fill half as many entries of each kind."""
    for first in range(0, entries // 2, 100):
        numbers = range(first, min(first + 100, entries // 2))
        await asyncio.gather(*map(page, numbers), *(asyncio.to_thread(price, number) for number in numbers))


def write(url: str, pipe: Connection) -> None:
    """Commit and publish, each within the window, and tell how often when that is asked for."""
    asyncio.run(_write(url, pipe))


async def _write(url: str, pipe: Connection) -> None:
    pages, written = pipe.recv(), 0

    async def keep_writing(which: range) -> None:
        nonlocal written
        while True:
            row = random.choice(which)
            await source.client.hincrby(ROWS, str(row), 1)  # type: ignore[misc]
            await asyncio.sleep(random.uniform(0, WINDOW))
            await cache.publish(RowChanged(row=row))
            written += 1

    async with Cache(url) as cache:
        hot = [range(number * ON_A_PAGE, number * ON_A_PAGE + 1) for number in range(HOT)]
        every = range(pages * ON_A_PAGE)
        tasks = [asyncio.create_task(keep_writing(which)) for which in (*hot, *[every] * WRITERS)]
        await _until_asked(pipe, tasks)
    pipe.send(written)


def read(url: str, pipe: Connection) -> None:
    """Read pages and prices, and so fill what was invalidated, until told to end."""
    asyncio.run(_read(url, pipe))


async def _read(url: str, pipe: Connection) -> None:
    pages, count = pipe.recv(), 0

    async def keep_reading() -> None:
        nonlocal count
        while True:
            number = random.choice([random.randrange(HOT), random.randrange(pages)])
            await page(number)
            await asyncio.to_thread(price, number)
            count += 2

    async with Cache(url) as cache:
        set_cache(cache)
        await _until_asked(pipe, [asyncio.create_task(keep_reading()) for _ in range(READERS)])
    pipe.send(count)


async def _until_asked(pipe: Connection, tasks: list[asyncio.Task[None]]) -> None:
    """Let the tasks run until the other side says that it is over. Raises what one of them did."""
    asked = asyncio.create_task(asyncio.to_thread(pipe.recv))
    await asyncio.wait([asked, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
