"""What the worker's benchmark publishes, the rules it goes through, and a stream filled with it.

Three types in equal parts, as `publish` writes them: 8 fields, some 300 bytes an entry. Forty users, shops and packages
each, so that a batch of 500 comes to some 120 tokens. This module is also what `tidings worker` is given.
"""

import random
from collections.abc import Iterator
from datetime import date, timedelta

import tidings
from common import fail
from redis.asyncio import Redis
from redis.typing import EncodableT
from tidings import Event
from tidings.events import to_fields
from tidings_worker import Invalidate, Rules

#: Of users, shops and packages each.
THINGS = 40
#: XADDs in one pipeline.
CHUNK = 1000
SOURCE = "/benchmark/service"
_FIRST_DAY = date(2026, 1, 1)


class UserUpdated(Event, type="benchmark.user.updated"):
    """For a rule of one template."""

    user_id: int
    tenant: str
    changed: date


class PricesChanged(Event, type="benchmark.prices.changed"):
    """For a rule of two templates."""

    shop: int
    currency: str
    valid_from: date
    rows: int


class PackageIngested(Event, type="benchmark.package.ingested"):
    """For a rule that is a generator."""

    package: str
    version: str
    as_of: date
    complete: bool


@tidings.cached(namespace="pages", tags=["user:{user_id}"])
async def user_page(user_id: int) -> str:
    """Load what is warmed."""
    return f"the page of user {user_id}"


rules = Rules()
rules.map(UserUpdated, tags=["user:{user_id}"])
rules.map(PricesChanged, tags=["shop:{shop}"], namespaces=["prices"])


@rules.on(PackageIngested)
def ingested(event: PackageIngested) -> Iterator[Invalidate]:
    """Invalidate what was computed of the package."""
    yield Invalidate(namespaces=["stats"], tags=[f"package:{event.package}"])


def events(count: int, seed: int) -> Iterator[tuple[Event, str]]:
    """Yield events with their subjects, no two with the same data except by chance; the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        thing, day = chance.randrange(THINGS), _FIRST_DAY + timedelta(chance.randrange(365))
        kind = chance.randrange(3)
        if kind == 0:
            tenant = f"tenant-{chance.randrange(10_000)}"
            yield UserUpdated(user_id=thing, tenant=tenant, changed=day), f"user:{thing}"
        elif kind == 1:
            rows = chance.randrange(100_000)
            yield PricesChanged(shop=thing, currency="EUR", valid_from=day, rows=rows), f"shop:{thing}"
        else:
            version = f"{chance.randrange(10)}.{chance.randrange(100)}.{chance.randrange(100)}"
            package = PackageIngested(package=f"package-{thing}", version=version, as_of=day, complete=thing % 2 == 0)
            yield package, f"package:{thing}"


def stream_fields(count: int, seed: int) -> list[dict[EncodableT, EncodableT]]:
    """Return the events as entries of a stream."""
    return [{**to_fields(event, source=SOURCE, subject=subject)} for event, subject in events(count, seed)]


async def fill(client: Redis, stream: str, entries: list[dict[EncodableT, EncodableT]]) -> None:
    """Add all entries to a stream."""
    for first in range(0, len(entries), CHUNK):
        pipe = client.pipeline(transaction=False)
        for fields in entries[first : first + CHUNK]:
            pipe.xadd(stream, fields)
        await pipe.execute()


async def unacknowledged(client: Redis, stream: str, group: str) -> int:
    """Return how many entries a group has not acknowledged: not read yet, or pending."""
    (found,) = [one for one in await client.xinfo_groups(stream) if one["name"] == group.encode()]
    if found["lag"] is None:
        fail(f"the server does not know how much of {stream} {group} has not read")
    return int(found["pending"]) + int(found["lag"])
