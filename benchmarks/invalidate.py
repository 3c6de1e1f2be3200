"""How long it takes to invalidate one tag, with 1 000, 100 000 and 1 000 000 entries under it.

Every timed invalidation makes all N entries wrong: they are entries as `tidings` itself stores them, a read of them is
a hit before and a miss after, and the script ends with an error when that is not so. The base is one SET by redis-py's
asynchronous client in the same round. Bar: at most 3 times a SET at every N, and flat in N.

For contrast, what a cache does that deletes keys: read the tag's key set, or scan, and UNLINK what it finds.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from common import EXIT_FAILED, Samples, Times, fail, rounds, say, server, show, write_json
from pydantic import BaseModel
from redis.asyncio import Redis
from tidings import Cache
from tidings.keys import ALL, namespace_token, tag_token
from tidings.layout import UNIQUE_LENGTH, Facts, pack_entry, unique

T = TypeVar("T")

#: At most this many times a SET.
BAR = 3.0
#: The dearest N may cost this many times the cheapest: wider than the noise, far narrower than the span of N.
FLAT = 1.25

NAMESPACE, TAG, KEY_SET = "catalog", "shop:1", "peer:keys"
#: Timed pairs of SET and invalidation in one round, and entries read before and after one as a check.
PAIRS, CHECKED = 50, 100
#: Commands in one pipeline, and keys in one UNLINK.
CHUNK = 1000
TTL_MS = 3_600_000


class Product(BaseModel):
    """What is cached."""

    number: int
    name: str
    price: float


class Catalog:
    """A cached function, and `size` entries of it under one tag."""

    def __init__(self, cache: Cache, client: Redis, size: int) -> None:
        self.cache, self.client, self.size = cache, client, size
        self.loads = 0
        self._tag_value = b""

        @cache.cached(namespace=NAMESPACE, tags=[TAG])
        async def product(number: int) -> Product:
            self.loads += 1
            return make_product(number)

        self.product = product

    async def fill(self, numbers: Iterable[int], *, key_set: bool = False) -> None:
        """Store entries as a fill would, under the tokens as they are; `key_set` notes their keys as peers do."""
        await self.product(0)  # makes the tokens
        names = (ALL, namespace_token(NAMESPACE), tag_token(TAG))
        values = await self.client.mget(map(self.cache.keys.token, names))
        self._tag_value = values[-1]
        tokens = tuple(value[:UNIQUE_LENGTH] for value in values)
        for chunk in chunks(numbers):
            pipe = self.client.pipeline(transaction=False)
            for number in chunk:
                key = self.product.key(number)
                payload = self.product.codec.encode(make_product(number))
                packed = pack_entry(unique(), tokens, Facts((TAG,), "benchmark"), payload)
                pipe.set(key, packed.assemble((), time.time_ns() // 1000), px=TTL_MS)
                if key_set:
                    pipe.sadd(KEY_SET, key)
            await pipe.execute()

    async def revive(self) -> None:
        """Make every entry fresh again: the tag's token gets back the value that they were stored under."""
        await self.client.set(self.cache.keys.token(tag_token(TAG)), self._tag_value, px=TTL_MS)

    async def check(self) -> None:
        """Read some entries before and after an invalidation: hits, then misses that fill, then hits."""
        numbers = random.sample(range(1, self.size), CHECKED)
        await self._read(numbers, loads=0)
        await self.cache.invalidate_tags(TAG)
        await self._read(numbers, loads=CHECKED)
        await self._read(numbers, loads=0)
        await self.revive()
        await self.fill(numbers)

    async def is_fresh(self, number: int) -> bool:
        """Say whether a read of the entry would be a hit; unlike a read, this leaves the entry as it is."""
        return await self.cache.reader().is_fresh(self.product.request(self.product.uncached, number))

    async def _read(self, numbers: Iterable[int], loads: int) -> None:
        before = self.loads
        for number in numbers:
            if await self.product(number) != make_product(number):
                fail(f"the entry {number} came back changed")
        if self.loads - before != loads:
            fail(f"{self.loads - before} of {CHECKED} reads loaded; {loads} should have")


def make_product(number: int) -> Product:
    """Return the value of one entry."""
    return Product(number=number, name=f"product {number}", price=number / 100)


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items, CHUNK at a time."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    """Return the milliseconds that one awaited call takes."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1000


async def one_round(catalog: Catalog) -> Times:
    """Time SETs and invalidations in turn, each invalidation of entries that are all fresh."""
    variants = {
        "SET": lambda: catalog.client.set("benchmark:set", b"sixteen bytes ok"),
        "invalidate_tags": lambda: catalog.cache.invalidate_tags(TAG),
    }
    times: Times = {name: [] for name in variants}
    for _ in range(PAIRS):
        await catalog.revive()
        number = random.randrange(1, catalog.size)
        if not await catalog.is_fresh(number):
            fail(f"the entry {number} was no hit before its invalidation")
        for name in random.sample(list(variants), len(variants)):
            times[name].append(await timed(variants[name]))
        if await catalog.is_fresh(number):
            fail(f"the entry {number} was a hit after its invalidation")
    return times


async def one_round_of_peers(catalog: Catalog) -> Times:
    """Time deleting all keys in either way, each after storing them anew, beside SETs."""
    client = catalog.client
    times: Times = {
        "SET": [await timed(lambda: client.set("benchmark:set", b"sixteen bytes ok")) for _ in range(PAIRS)]
    }
    for name, delete in {"SMEMBERS + UNLINK": unlink_members, "SCAN + UNLINK": unlink_scanned}.items():
        await catalog.fill(range(catalog.size), key_set=True)
        times[name] = [await timed(partial(delete, client))]
        if await client.exists(catalog.product.key(0), catalog.product.key(catalog.size - 1)):
            fail(f"{name} left keys behind")
    return times


async def unlink_members(client: Redis) -> None:
    """Delete the keys that the tag's key set names."""
    for keys in chunks(await client.smembers(KEY_SET)):
        await client.unlink(*keys)
    await client.unlink(KEY_SET)


async def unlink_scanned(client: Redis) -> None:
    """Delete the keys that a scan finds."""
    cursor: int | None = None
    while cursor != 0:
        cursor, keys = await client.scan(cursor or 0, match=f"cache:{NAMESPACE}:*", count=CHUNK)
        if keys:
            await client.unlink(*keys)


async def measure(size: int, count: int, peer_count: int) -> Samples:
    """Measure one N, on a server of its own."""
    samples = Samples("SET")
    with server() as url:
        async with Redis.from_url(url) as client, Cache(url) as cache:
            catalog = Catalog(cache, client, size)
            await catalog.fill(range(size))
            await catalog.check()
            for counts in rounds(count, f"{size} entries"):
                times = await one_round(catalog)
                if counts:
                    samples.by_round.append(times)
            for counts in rounds(peer_count, f"{size} entries, deleting keys") if peer_count else ():
                times = await one_round_of_peers(catalog)
                if counts:
                    samples.by_round.append(times)
    return samples


def main() -> int:
    """Measure, print, and return 0 when the bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="entries per tag")
    parser.add_argument("--rounds", type=int, default=10, help=f"rounds of {PAIRS} pairs; one more warms up")
    parser.add_argument("--peer-rounds", type=int, default=3, help="rounds of deleting keys; 0: none")
    parser.add_argument(
        "--peer-limit", type=int, default=100_000, help="no deleting of keys with more entries than this"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    found = {
        size: asyncio.run(measure(size, options.rounds, options.peer_rounds if size <= options.peer_limit else 0))
        for size in options.sizes
    }
    ratios = {size: samples.summary("invalidate_tags")["ratio"] for size, samples in found.items()}
    spread = max(ratios.values()) / min(ratios.values())
    met = max(ratios.values()) <= BAR and spread <= FLAT
    if options.json:
        write_json({"sizes": {n: samples.as_json() for n, samples in found.items()}, "spread": spread, "met": met})
    else:
        for size, samples in found.items():
            show(f"{size:,} entries under one tag".replace(",", " "), samples)
        say(f"at most {max(ratios.values()):.2f} times a SET (bar {BAR:g}); over N within {spread:.2f} (bar {FLAT:g})")
        say("met" if met else "NOT met")
    return 0 if met else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
