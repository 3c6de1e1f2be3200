"""The programs of a cluster, one command at a time: whatever comes between two commands, no stale value is served."""

from random import Random

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tidings.cluster import Cluster, NodeError
from tidings.cluster_operations import MOST_NOTICES, program
from tidings.cluster_programs import Around, To, together
from tidings.cluster_routing import exchange
from tidings.cluster_slots import Address
from tidings.entries import Fill, Look, Open, Places, Results
from tidings.errors import UnavailableError
from tidings.fence import Verdict, judge
from tidings.layout import Facts, pack_entry, pack_vacancy, unique
from tidings.operations import Append, Batch, Drop, Invalidate, Ping
from tidings.scripts import Script
from tidings.settings import GivenSettings

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

    def run(self, operation, choose=None):
        """Carry an operation out, a command at each step; the commands of one exchange in any order."""
        steps, replies = program(operation, AROUND), None
        while True:
            try:
                wanted = list(enumerate(steps.send(replies)))
            except StopIteration as done:
                return done.value
            replies = [None] * len(wanted)
            while wanted:
                index, to = wanted.pop(choose(len(wanted)) if choose else 0)
                yield
                replies[index] = self.do(to.command)

    def reader(self, choose):
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

    def looker(self, choose):
        yield
        acknowledged = self.acknowledged
        looked = yield from self.run(Look((ENTRY, STATIC, RESULT)), choose)
        seen = judge(ENTRY, looked.entry, looked.tokens)
        if seen.verdict is Verdict.FRESH:
            assert int(seen.payload) >= acknowledged, "a value from before an acknowledged invalidation is served"


def loses(key):
    def lose(world, _):
        yield
        world.client.unlink(key)

    return lose


ACTORS = {
    "reader": lambda world, choose: world.reader(choose),
    "looker": lambda world, choose: world.looker(choose),
    "writes result": lambda world, choose: world.writer(choose, ["result"]),
    "writes static": lambda world, choose: world.writer(choose, ["static"]),
    "writes entry": lambda world, choose: world.writer(choose, ["entry"]),
    "writes both": lambda world, choose: world.writer(choose, ["static", "result"]),
    "loses result": loses(RESULT),
    "loses static": loses(STATIC),
    "loses log": loses("log"),
    "loses entry": loses(ENTRY),
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


def to_the_end(steps):
    for _ in steps:
        pass


@pytest.fixture
def world(module_client):
    return World(module_client)


@pytest.fixture
def loaded(world):
    """A reader that has read the row, and not begun to fill."""
    reader = world.reader(None)
    for _ in range(1000):
        next(reader)
        if reader.gi_frame.f_locals.get("row") is not None:
            return reader
    raise AssertionError


def advance_until(steps, condition):
    while not condition():
        next(steps)


def test_a_token_that_has_changed_although_nothing_is_logged_yet_refuses_the_fill(world, loaded):
    """The invalidation has touched the token before the fill read it, and is acknowledged after the fill."""
    writer = world.writer(None, ["result"])
    advance_until(writer, lambda: world.client.exists(RESULT))
    to_the_end(loaded)
    to_the_end(writer)
    assert world.stored == 0
    to_the_end(world.looker(None))


def test_a_token_that_changes_after_the_fill_has_read_it_makes_the_entry_wrong(world, loaded):
    writer = world.writer(None, ["result"])
    advance_until(loaded, lambda: world.client.exists(RESULT))
    to_the_end(writer)
    to_the_end(loaded)
    to_the_end(world.looker(None))


@pytest.mark.parametrize("lost", [RESULT, "log"])
def test_what_was_lost_after_an_invalidation_during_the_load_does_not_hide_it(world, loaded, lost):
    to_the_end(world.writer(None, ["result"]))
    world.client.unlink(lost)
    to_the_end(loaded)
    assert world.stored == 0


def test_a_log_begun_anew_under_the_same_id_is_not_taken_for_the_old_one(world, loaded):
    """Ids are milliseconds: what was lost within one may have had the notice."""
    ((identifier, fields),) = world.client.xrange("log")
    world.client.unlink("log")
    world.client.xadd("log", {**fields, b"at": str(int(fields[b"at"]) + 1)}, id=identifier)
    to_the_end(loaded)
    assert world.stored == 0


def test_a_fill_that_would_have_to_look_through_too_much_of_the_log_is_refused(world, loaded):
    with world.client.pipeline(transaction=False) as pipe:
        for _ in range(MOST_NOTICES):
            pipe.xadd("log", {"what": "{}"})
        pipe.execute()
    to_the_end(loaded)
    assert world.stored == 0


def test_invalidations_of_other_tags_do_not_refuse_a_fill(world, loaded):
    told = Invalidate({"t": "why"}, ("token:t",), (unique(),), {}, "log", 100, 60_000, 60_000, "applied")
    to_the_end(world.run(told))
    to_the_end(loaded)
    assert world.stored == 1


def test_tokens_come_before_the_log_and_the_log_before_the_word_to_receipts():
    told = Invalidate(
        {"all": "why"}, (STATIC,), (unique(),), {ENTRY: pack_vacancy()}, "log", 100, 60_000, 60_000, "applied", "1-1"
    )
    steps = program(told, AROUND)
    rounds = [next(steps), *map(steps.send, ([b"0" * 16], [None, 1], [b"0" * 16]))]
    assert [[to.where for to in sent] for sent in rounds] == [["log"], [STATIC, ENTRY], ["log"], ["applied"]]


def test_nothing_is_logged_when_a_token_could_not_be_changed():
    told = Invalidate({"all": "why"}, (STATIC,), (unique(),), {}, "log", 100, 60_000, 60_000, "applied", "1-1")
    steps = together([program(told, AROUND)])
    next(steps)
    steps.send([b"0" * 16])
    with pytest.raises(UnavailableError, match="away"):
        steps.send([UnavailableError("away")])


def test_what_fails_beside_others_lets_them_end_and_is_raised_then():
    steps = together([program(Batch((Drop(("a",)), Drop(("b", "c")))), AROUND)])
    assert next(steps) == [To(key, ("UNLINK", key)) for key in "abc"]
    with pytest.raises(UnavailableError, match="first"):
        steps.send([1, UnavailableError("first"), UnavailableError("second")])


# Redirections


@pytest.fixture
def cluster():
    made = Cluster(GivenSettings(url="redis+cluster://127.0.0.1:1,127.0.0.1:2"))
    made.slots.learn([[0, 8191, [b"h", 1, b"id1"]], [8192, 16383, [b"h", 2, b"id2"]]], Address("h", 1))
    yield made
    made.stop()


ONE, TWO, THREE = Address("h", 1), Address("h", 2), Address("h", 3)
#: served by the first node
KEY = "b"


def asked(exchange, answers=None):
    try:
        return exchange.send(answers)
    except StopIteration as done:
        return done.value


MOVED = [
    redis.ResponseError("MOVED 3300 h:3"),
    redis.exceptions.MovedError("3300 h:3"),
    redis.ResponseError("MOVED 3300 :3"),
]
ASK = [redis.ResponseError("ASK 3300 h:3"), redis.exceptions.AskError("3300 h:3")]


@pytest.mark.parametrize("error", MOVED, ids=["as text", "as type", "without a host"])
def test_a_key_that_has_moved_is_asked_for_where_it_is_and_from_then_on_there(cluster, error):
    sending = exchange(cluster, [To(KEY, ("GET", KEY))], set())
    assert asked(sending) == {ONE: [("GET", KEY)]}
    assert asked(sending, {ONE: [error]}) == {THREE: [("GET", KEY)]}
    assert asked(sending, {THREE: [b"v"]}) == [b"v"]
    assert asked(exchange(cluster, [To(KEY, ("GET", KEY))], set())) == {THREE: [("GET", KEY)]}
    assert cluster._stale


@pytest.mark.parametrize("error", ASK, ids=["as text", "as type"])
def test_a_key_whose_slot_is_moving_is_asked_for_at_the_other_node_this_once(cluster, error):
    sending = exchange(cluster, [To(KEY, ("GET", KEY)), To("a", ("GET", "a"))], set())
    assert asked(sending) == {ONE: [("GET", KEY)], TWO: [("GET", "a")]}
    assert asked(sending, {ONE: [error], TWO: [b"a"]}) == {THREE: [("ASKING",), ("GET", KEY)]}
    assert asked(sending, {THREE: [b"OK", b"v"]}) == [b"v", b"a"]
    assert asked(exchange(cluster, [To(KEY, ("GET", KEY))], set())) == {ONE: [("GET", KEY)]}


def test_nodes_that_refer_to_each_other_are_not_asked_for_ever(cluster):
    sending = exchange(cluster, [To(KEY, ("GET", KEY))], set())
    replies = asked(sending)
    for _ in range(20):
        if isinstance(replies, list):
            break
        (address,) = replies
        other = THREE if address == ONE else ONE
        replies = asked(sending, {address: [redis.ResponseError(f"MOVED 3300 {other}")]})
    (error,) = replies
    assert isinstance(error, UnavailableError)


def test_what_may_have_been_done_is_not_sent_again(cluster):
    """A lost connection says nothing about the event: it may be in the stream."""
    (command,) = Append(KEY, {"type": "x"}).commands
    sending = exchange(cluster, [To(KEY, command)], set(), insist=True)
    assert list(asked(sending)) == [ONE]
    lost = cluster.failed(ONE, redis.ConnectionError("lost"))
    assert asked(sending, {ONE: lost}) == [lost]


def test_a_script_that_a_node_does_not_know_is_sent_there_in_full(cluster):
    script, known = Script.of("return 1"), set()
    wanted = [To(KEY, (script, 1, KEY))]
    first = exchange(cluster, wanted, known)
    assert asked(first) == {ONE: [("EVAL", script.text, 1, KEY)]}
    asked(first, {ONE: [1]})
    again = exchange(cluster, wanted, known)
    assert asked(again) == {ONE: [("EVALSHA", script.digest, 1, KEY)]}
    assert asked(again, {ONE: [redis.exceptions.NoScriptError()]}) == {ONE: [("EVAL", script.text, 1, KEY)]}
    assert asked(again, {ONE: [1]}) == [1]


def test_a_node_that_is_away_is_not_asked_by_reads_and_is_by_what_must_not_be_lost(cluster):
    cluster.failed(ONE, redis.ConnectionError("refused"))
    (error,) = asked(exchange(cluster, [To(KEY, ("GET", KEY))], set()))
    assert isinstance(error, NodeError)
    assert "h:1" in str(error)
    assert asked(exchange(cluster, [To("a", ("GET", "a"))], set())) == {TWO: [("GET", "a")]}
    insisting = exchange(cluster, [To(KEY, ("GET", KEY))], set(), insist=True)
    assert asked(insisting) == {ONE: [("GET", KEY)]}
    asked(insisting, {ONE: [b"v"]})
    assert not cluster.is_away(ONE)


def test_an_answer_that_refuses_is_no_absence(cluster):
    sending = exchange(cluster, [To(KEY, ("GET", KEY))], set())
    asked(sending)
    (error,) = asked(sending, {ONE: [redis.exceptions.OutOfMemoryError("used up")]})
    assert isinstance(error, UnavailableError)
    assert not cluster.is_away(ONE)


def test_a_ping_asks_every_primary():
    assert list(next(program(Ping(), AROUND))) == [To(address, ("PING",)) for address in AROUND.primaries]
