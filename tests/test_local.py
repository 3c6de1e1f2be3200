"""The in-process tier: what it serves, what it refuses, what it drops, and what it lets go of first."""

import os
import random
import threading
import time
from collections import OrderedDict
from itertools import accumulate, chain, count, pairwise
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tidings.local import LocalTier, Slot, clock

TOKENS = ("all", "namespace:n", "tag:a")
KEY = "cache:n:f:1"


class Clock:
    """Stands still until told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock_in_hand():
    return Clock()


@pytest.fixture
def tier(clock_in_hand):
    made = LocalTier(100, 10_000, clock_in_hand)
    made.alive(inf)
    return made


def put(tier, *, key=KEY, tokens=TOKENS, noted=None, value="old", payload=b"J1", ttl=60):
    return tier.put(key, tokens, tier.note() if noted is None else noted, value, payload, ttl=ttl)


def hit(tier, slot):
    """A hit as the decorator has it."""
    value = slot.value
    if (now := tier.clock()) < slot.expires and now < tier.alive_until:
        slot.visited = True
        return value
    return None


# What is served


def test_what_is_put_is_served(tier):
    slot = put(tier)
    assert tier.get(KEY) is slot
    assert (slot.shared, slot.value, slot.payload, hit(tier, slot)) == (True, "old", b"J1", "old")


def test_a_value_that_could_be_changed_is_not_kept_itself(tier):
    slot = put(tier, value=["old"])
    assert (slot.shared, slot.value, slot.payload) == (False, None, b"J1")


def test_a_value_ends_with_its_ttl(tier, clock_in_hand):
    slot = put(tier, ttl=5)
    clock_in_hand.now += 5
    assert tier.get(KEY) is None
    assert hit(tier, slot) is None


def test_a_value_without_ttl_is_not_put(tier):
    assert put(tier, ttl=0) is None


def test_what_is_put_again_replaces_the_slot(tier):
    former, latter = put(tier), put(tier, value="new")
    assert (tier.get(KEY), hit(tier, former), hit(tier, latter)) == (latter, None, "new")
    assert (len(tier), tier.evictions) == (1, 0)


def test_until_the_tail_is_alive_nothing_is_noted_or_served(clock_in_hand):
    tier = LocalTier(100, 10_000, clock_in_hand)
    assert tier.note() is None
    put(tier, noted=0)
    assert tier.get(KEY) is None


def test_nothing_is_served_after_the_bound(tier, clock_in_hand):
    slot = put(tier)
    tier.alive(clock_in_hand.now + 1)
    assert hit(tier, slot) == "old"
    clock_in_hand.now += 1
    assert (tier.note(), tier.get(KEY), hit(tier, slot)) == (None, None, None)


def test_the_clock_does_not_stop_while_the_machine_is_suspended():
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no such clock")
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clock() <= time.clock_gettime(time.CLOCK_BOOTTIME)


# Invalidations

INVALIDATIONS = {
    "everything": (["all"], [], []),
    "namespace": (["namespace:n"], [], []),
    "tag": (["tag:b", "tag:a"], [], []),
    "entry": ([], [KEY], []),
    "pattern": ([], [], ["cache:n:*"]),
}


@pytest.fixture(params=INVALIDATIONS.values(), ids=INVALIDATIONS)
def what(request):
    return request.param


def test_what_is_invalidated_is_dropped_and_its_memory_with_it(tier, what):
    slot = put(tier)
    tier.applied(*what)
    assert (tier.get(KEY), hit(tier, slot), len(tier), tier.bytes) == (None, None, 0, 0)
    assert (slot.expires, slot.value, slot.payload) == (0.0, None, b"")


def test_a_value_noted_before_an_invalidation_is_refused_after_it(tier, what):
    """The race: the reader notes and reads, the tail applies, the reader puts."""
    noted = tier.note()
    tier.applied(*what)
    assert put(tier, noted=noted) is None


def test_a_value_noted_after_an_invalidation_is_kept(tier, what):
    tier.applied(*what)
    assert put(tier) is not None


def test_an_invalidation_concerns_no_others(tier):
    slot, noted = put(tier), tier.note()
    tier.applied(["namespace:m", "tag:b"], ["cache:n:f:12"], ["cache:m:*", "cache:n:f:?1"])
    assert tier.get(KEY) is slot
    assert put(tier, noted=noted) is not None


def test_one_tag_of_many_entries_drops_those_alone(tier):
    slots = [put(tier, key=f"k{i}", tokens=("all", f"tag:{i % 3}")) for i in range(30)]
    tier.applied(["tag:1"], [])
    assert [i for i, slot in enumerate(slots) if hit(tier, slot) is None] == list(range(1, 30, 3))
    assert len(tier) == 20


def test_a_note_from_further_back_than_is_remembered_is_refused(tier):
    early = tier.note()
    for number in range(20_000):
        tier.applied([f"tag:other:{number}"], [])
        if number == 15_000:
            late = tier.note()
    assert put(tier, noted=early) is None
    assert put(tier, noted=late) is not None


def test_a_note_from_before_more_patterns_than_are_remembered_is_refused(tier):
    early = tier.note()
    for number in range(100):
        tier.applied([], [], [f"cache:m:{number}"])
        if number == 80:
            late = tier.note()
    assert put(tier, noted=early) is None
    assert put(tier, noted=late) is not None


# Losing the tail


def test_a_bypassed_tier_keeps_its_values(tier):
    slot = put(tier)
    tier.bypass()
    assert (tier.note(), tier.get(KEY), hit(tier, slot)) == (None, None, None)
    tier.alive(inf)
    assert hit(tier, slot) == "old"


def test_a_lost_tail_drops_everything(tier):
    slot = put(tier)
    tier.lost()
    tier.alive(inf)
    assert (tier.get(KEY), hit(tier, slot), len(tier), tier.bytes) == (None, None, 0, 0)


def test_a_value_noted_before_the_tail_was_lost_is_refused(tier):
    noted = tier.note()
    tier.lost()
    tier.alive(inf)
    assert put(tier, noted=noted) is None
    assert put(tier) is not None


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_begins_empty_even_when_the_lock_was_held(tier):
    slot = put(tier)
    with tier._lock:
        child = os.fork()
        if child == 0:
            empty = (tier.note(), tier.get(KEY), hit(tier, slot), len(tier)) == (None, None, None, 0)
            tier.alive(inf)
            os._exit(not (empty and put(tier) is not None))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hit(tier, slot) == "old"


# Bounds


def test_entries_are_bounded(tier):
    for number in range(150):
        put(tier, key=str(number))
    assert (len(tier), tier.evictions) == (100, 50)


def test_bytes_are_bounded(tier):
    for number in range(150):
        put(tier, key=f"{number:03}", payload=b"x" * 497)
        assert tier.bytes <= 10_000
    assert (len(tier), tier.bytes, tier.evictions) == (20, 10_000, 130)


def test_a_value_larger_than_the_tier_is_refused_and_displaces_nobody(tier):
    put(tier)
    assert put(tier, key="large", payload=b"x" * 10_001) is None
    assert len(tier) == 1


def test_an_evicted_slot_is_served_to_nobody(tier):
    first = put(tier, key="first")
    for number in range(100):
        put(tier, key=str(number))
    assert (hit(tier, first), first.value, tier.get("first")) == (None, None, None)


def test_what_was_read_outlives_what_was_not(tier):
    slots = [put(tier, key=str(number)) for number in range(100)]
    for slot in slots[::2]:
        hit(tier, slot)
    for number in range(50):
        put(tier, key=f"new {number}")
    assert [hit(tier, slot) is not None for slot in slots] == [True, False] * 50


def test_what_has_expired_leaves_although_it_was_read(tier, clock_in_hand):
    short = [put(tier, key=str(number), ttl=5) for number in range(10)]
    for slot in short:
        hit(tier, slot)
    lasting = [put(tier, key=f"lasting {number}") for number in range(90)]
    clock_in_hand.now += 5
    for number in range(10):
        put(tier, key=f"new {number}")
    assert all(hit(tier, slot) for slot in lasting)


def hits_of_ours(trace, size):
    tier, hits = LocalTier(size, 1 << 30, Clock()), 0
    tier.alive(inf)
    for key in trace:
        if tier.get(key) is not None:
            hits += 1
        else:
            put(tier, key=key, payload=b"")
    return hits / len(trace)


def hits_of_lru(trace, size):
    kept, hits = OrderedDict(), 0
    for key in trace:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
        else:
            kept[key] = None
            if len(kept) > size:
                kept.popitem(last=False)
    return hits / len(trace)


def zipf(length, keys=10_000):
    weights = list(accumulate(1 / rank for rank in range(1, keys + 1)))
    return random.Random(1).choices([str(key) for key in range(keys)], cum_weights=weights, k=length)


@pytest.mark.parametrize(("size", "at_least"), [(100, 0.10), (1000, 0.04)])
def test_more_of_a_zipf_trace_is_hit_than_by_lru(size, at_least):
    trace = zipf(50_000)
    assert hits_of_ours(trace, size) >= hits_of_lru(trace, size) + at_least


@pytest.mark.parametrize(("size", "at_least"), [(100, 0.15), (1000, 0.10)])
def test_a_scan_pollutes_less_than_with_lru(size, at_least):
    """Every other read is of a key that is never read again."""
    numbers = count()
    trace = list(chain.from_iterable((key, f"once {next(numbers)}") for key in zipf(50_000)))
    assert hits_of_ours(trace, size) * 2 >= hits_of_lru(trace, size) * 2 + at_least


# Threads, and everything together


def test_a_drop_never_leaves_a_slot_that_looks_good_without_its_value():
    """Hits take no lock: one that came between two steps of the drop would be served None."""

    class Watched(Slot):
        __slots__ = ()

        def __setattr__(self, name, value):
            before = getattr(self, "expires", 0.0)
            super().__setattr__(name, value)
            assert name not in {"value", "payload"} or value or not before

    slot = Watched(KEY, (KEY,), b"J1", 0.0)
    slot.value, slot.expires = "old", 60.0
    slot.release()
    assert (slot.expires, slot.value, slot.payload) == (0.0, None, b"")


def test_threads_leave_the_books_in_order():
    tier = LocalTier(20, 10_000)
    tier.alive(inf)

    def work(seed):
        chance = random.Random(seed)
        for _ in range(3000):
            key = str(chance.randrange(40))
            if chance.random() < 0.2:
                tier.applied([f"tag:{chance.randrange(5)}"], [])
            elif tier.get(key) is None:
                put(tier, key=key, tokens=("all", f"tag:{chance.randrange(5)}"))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_books(tier)


def check_books(tier):
    """The dict, the index, the queue and the sums tell the same."""
    queue, slot = [], tier._oldest
    while slot is not None:
        queue.append(slot)
        slot = slot.newer
    assert all(newer.older is older for older, newer in pairwise(queue))
    assert (tier._newest, tier._oldest) == ((queue[-1], queue[0]) if queue else (None, None))
    assert tier._hand is None or tier._hand in queue
    assert {slot.key: slot for slot in queue} == tier._slots
    assert {slot for slots in tier._index.values() for slot in slots} == set(queue)
    assert tier.bytes == sum(slot.size for slot in queue) <= tier._max_bytes
    assert len(tier) == len(queue) <= tier._max_entries


NAMES = [f"tag:{letter}" for letter in "abc"]
KEYS = [f"k{number}" for number in range(4)]


class Interleavings(RuleBasedStateMachine):
    """Random interleavings against the promise: nothing is served that was invalidated after it was noted."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.tier = LocalTier(3, 40, self.clock)
        self.tier.alive(inf)
        self.log = []
        self.notes = []
        self.slots = []

    @rule(key=st.sampled_from(KEYS), tags=st.sets(st.sampled_from(NAMES)))
    def begin(self, key, tags):
        if (noted := self.tier.note()) is not None:
            self.notes.append((key, frozenset(tags), noted, len(self.log)))

    @rule(data=st.data(), size=st.integers(0, 50), ttl=st.integers(0, 20))
    def finish(self, data, size, ttl):
        if self.notes:
            key, tags, noted, seen = data.draw(st.sampled_from(self.notes))
            slot = self.tier.put(key, ("all", *tags), noted, "v", b"x" * size, ttl=ttl)
            overtaken = any(concerns(entry, key, tags) for entry in self.log[seen:])
            assert slot is None or not overtaken
            if slot is not None:
                self.slots.append((slot, key, tags, seen, self.clock.now + ttl))

    @rule(names=st.sets(st.sampled_from(NAMES)), keys=st.sets(st.sampled_from(KEYS)))
    def invalidate(self, names, keys):
        self.log.append((names, keys))
        self.tier.applied(names, keys)

    @rule(pattern=st.sampled_from(["k[01]", "k?", "k3", "x*"]))
    def invalidate_pattern(self, pattern):
        matched = {"k[01]": KEYS[:2], "k?": KEYS, "k3": KEYS[3:], "x*": []}[pattern]
        self.log.append(((), matched))
        self.tier.applied((), (), (pattern,))

    @rule(tail=st.booleans())
    def lose(self, tail):
        self.log.append((("all",), ()))
        if tail:
            self.tier.lost()
        else:
            self.tier.applied(["all"], ())

    @rule()
    def bypass(self):
        self.tier.bypass()

    @rule(seconds=st.integers(1, 10))
    def revive(self, seconds):
        self.tier.alive(self.clock.now + seconds)

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(data=st.data())
    def read(self, data):
        if self.slots:
            hit(self.tier, data.draw(st.sampled_from(self.slots))[0])

    @invariant()
    def nothing_invalidated_or_expired_is_served(self):
        for slot, key, tags, seen, expires in self.slots:
            if hit_without_mark(self.tier, slot) is not None:
                assert self.clock.now < min(expires, self.tier.alive_until)
                assert not any(concerns(entry, key, tags) for entry in self.log[seen:])

    @invariant()
    def the_books_are_in_order(self):
        check_books(self.tier)


def concerns(entry, key, tags):
    names, keys = entry
    return "all" in names or key in keys or not tags.isdisjoint(names)


def hit_without_mark(tier, slot):
    value, now = slot.value, tier.clock()
    return value if now < slot.expires and now < tier.alive_until else None


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
