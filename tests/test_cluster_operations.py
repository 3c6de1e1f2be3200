"""The programs of a cluster, one command at a time: whatever comes between two commands, no stale value is served."""

from random import Random

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tidings.cluster_operations import MOST_NOTICES, Around, To, program, together
from tidings.cluster_slots import Address
from tidings.entries import Fill, Lease, Look, Open, Places, Put, Results
from tidings.fence import Verdict, judge
from tidings.layout import Facts, pack_entry, pack_vacancy, unique
from tidings.operations import Append, Batch, Drop, Invalidate, Ping
from tidings.scripts import Script

ENTRY, STATIC, RESULT = "cache:default:f:1", "token:all", "token:tag:result"
PLACES = Places("lease:default:f:1", "lease:ended", "log")
AROUND = Around("log", (Address("a", 1), Address("b", 2)))


class World:
    """A row, the promises made about it, and one server that carries out single commands of whoever is next."""

    def __init__(self, client):
        self.client = client
        client.flushall()
        self.row = 0
        self.acknowledged = 0
        self.stored = 0

    def do(self, command):
        head, *rest = command
        if isinstance(head, Script):
            return self.client.eval(head.text, *rest)
        if head == "TIME":
            return self.client.time()
        if head in {"XRANGE", "MGET", "XADD"}:
            reply = self.client.execute_command(head, *rest)
            if head == "XRANGE":  # as the server has it, before redis-py makes a mapping of it
                return [[i, [part for pair in fields.items() for part in pair]] for i, fields in reply]
            return reply
        return self.client.execute_command(head, *rest)

    def run(self, operation, choose=lambda n: 0):
        """Carry an operation out, a command at each step; the commands of one exchange in any order."""
        steps, replies = program(operation, AROUND), None
        while True:
            try:
                wanted = list(enumerate(steps.send(replies)))
            except StopIteration as done:
                return done.value
            replies = [None] * len(wanted)
            while wanted:
                index, to = wanted.pop(choose(len(wanted)))
                yield
                replies[index] = self.do(to.command)

    def reader(self, choose, *, slow=False):
        opening = Open((ENTRY, STATIC), PLACES, pack_vacancy(), 60_000, 60_000, log=True)
        opened = yield from self.run(opening, choose)
        ticket = judge(ENTRY, opened.head, opened.tokens).ticket
        yield
        row = self.row
        yield
        if ticket is None:
            return
        packed = pack_entry(ticket.lineage, ticket.tokens, Facts((), "test"), str(row).encode())
        results = Results((RESULT,), opened.logged, opened.logged_at)
        fill = Fill((ENTRY, STATIC), PLACES, ticket.lineage, packed, 60_000, 60_000, results=results)
        self.stored += yield from self.run(fill, choose)

    def writer(self, choose, names):
        yield
        self.row += 1
        row = self.row
        keys = tuple({"static": STATIC, "result": RESULT}[name] for name in names if name != "entry")
        entries = {ENTRY: pack_vacancy()} if "entry" in names else {}
        uniques = tuple(unique() for _ in keys)
        told = Invalidate(dict.fromkeys(keys, "why"), keys, uniques, entries, "log", 100, 60_000, 60_000, "applied")
        yield from self.run(told, choose)
        self.acknowledged = max(self.acknowledged, row)

    def loss(self, key):
        yield
        self.client.unlink(key)

    def looker(self, choose):
        yield
        acknowledged = self.acknowledged
        looked = yield from self.run(Look((ENTRY, STATIC, RESULT)), choose)
        seen = judge(ENTRY, looked.entry, looked.tokens)
        if seen.verdict is Verdict.FRESH:
            assert int(seen.payload) >= acknowledged, "a value from before an acknowledged invalidation is served"


ACTORS = {
    "reader": lambda world, choose: world.reader(choose),
    "looker": lambda world, choose: world.looker(choose),
    "writes result": lambda world, choose: world.writer(choose, ["result"]),
    "writes static": lambda world, choose: world.writer(choose, ["static"]),
    "writes entry": lambda world, choose: world.writer(choose, ["entry"]),
    "writes both": lambda world, choose: world.writer(choose, ["static", "result"]),
    "loses result": lambda world, choose: world.loss(RESULT),
    "loses static": lambda world, choose: world.loss(STATIC),
    "loses log": lambda world, choose: world.loss("log"),
    "loses entry": lambda world, choose: world.loss(ENTRY),
}


@pytest.fixture(scope="module")
def module_client(server):
    with redis.Redis(port=server.port) as made:
        yield made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    actors=st.lists(st.sampled_from(sorted(ACTORS)), min_size=1, max_size=5),
    turns=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), max_size=12),
    order=st.integers(0, 1 << 32),
)
def test_whatever_comes_between_two_commands_no_stale_value_is_served(module_client, actors, turns, order):
    """Each turn is an actor and how many commands it gets; `order` is that of commands that go out together."""
    world, chance = World(module_client), Random(order)
    running = [ACTORS[name](world, chance.randrange) for name in ["reader", *actors]]
    for who, commands in [*turns, *((0, 1000) for _ in running)]:
        if not running:
            break
        actor = running[who % len(running)]
        if any(next(actor, "over") == "over" for _ in range(commands)):
            running.remove(actor)
    for _ in world.looker(chance.randrange):
        pass
