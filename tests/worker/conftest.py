"""The parts of a worker, on a real server, put together without a process."""

import asyncio
from dataclasses import dataclass, field

import pytest
from tidings import Settings
from tidings.store import RedisStore
from tidings_worker.consumer import Consumer
from tidings_worker.delivery import Retries, RetryPolicy
from tidings_worker.groups import MARK, Group
from tidings_worker.handler import Handler
from tidings_worker.ledger import Ledger
from tidings_worker.outage import Outage, Patience
from tidings_worker.reclaimer import Reclaimer, Upkeep
from tidings_worker.watch import Watch


class NoWarms:
    """Where warms go when a test is not about them."""

    async def hand_off(self, _warms, _hot, *, carriers):
        pass


@dataclass
class Parts:
    """What one worker has for one stream; `losses` are those that it made up for, `histories` what its server shows."""

    group: Group
    handler: Handler
    watch: Watch
    consumer: Consumer
    reclaimer: Reclaimer
    outage: Outage
    losses: list = field(default_factory=list)
    histories: set = field(default_factory=set)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def patience(self) -> Patience:
        return Patience("a part", self.outage, self.stop)

    async def apply(self, count):
        """Read and apply so many entries. A read that began with an acknowledgement may have ended before they came."""
        while count > 0:
            found = await self.group.read(100, 20)
            await self.consumer.apply(found, self.stop, self.patience())
            count -= len(found)

    @property
    def codes(self):
        return [loss.code for loss in self.losses]


@pytest.fixture
async def new_parts(url, cache):
    """Make the parts of a worker of its own name; what it reads is read, and handled, when the test says so."""
    stores, everything = [], []

    async def make(rules, *, warmer=None, policy=None, upkeep=None, address=url, clock=None, batch=500, checked=True):
        store = RedisStore.connect(Settings(url=address))
        stores.append(store)
        name = f"worker:{len(stores)}"
        group = Group(store, cache.keys.stream(), "tidings", name)
        policy = policy or RetryPolicy(first_delay=0.001)
        losses, histories = [], {"first"}

        async def see():
            return frozenset(histories), True

        watch = Watch(cache, [group], Ledger(store, cache.keys.ledger), see, losses.append)
        if checked:
            await watch.check()
        handler = Handler(cache, rules, warmer or NoWarms(), policy)
        timing = {} if clock is None else {"clock": clock}
        consumer = Consumer(group, handler, watch, Retries(), policy, batch=batch, block_ms=20, **timing)
        reclaimer = Reclaimer(consumer, handler, watch, policy, upkeep or Upkeep(claim_idle=0.001), **timing)
        outage = Outage("the test's", lambda _there, _why: None)
        parts = Parts(group, handler, watch, consumer, reclaimer, outage, losses, histories)
        everything.append(parts)
        return parts

    yield make
    for parts in everything:
        parts.stop.set()
        await parts.group.aclose()
    for store in stores:
        await store.aclose()


@pytest.fixture
def consumers(client):
    """Return the names of the group's consumers, without its mark."""

    def names():
        found = [row["name"].decode() for row in client.xinfo_consumers("events", "tidings")]
        return [name for name in found if not name.startswith(MARK)]

    return names


@pytest.fixture
def pending(client):
    """Return how many entries are pending, and how often each has been delivered."""

    def deliveries():
        rows = client.xpending_range("events", "tidings", "-", "+", 1000)
        return {row["message_id"].decode(): row["times_delivered"] for row in rows}

    return deliveries
