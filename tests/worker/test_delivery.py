"""When a failed event is tried again, and when it is set aside."""

from hypothesis import given
from hypothesis import strategies as st
from tidings.publisher import covers
from tidings_worker.delivery import Retries, RetryPolicy, ranges


def test_each_delay_is_twice_the_one_before_up_to_the_longest():
    policy = RetryPolicy(max_deliveries=9, first_delay=1, longest_delay=10)
    assert [policy.delay(number) for number in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_a_delay_stays_a_number_however_often_an_event_was_delivered():
    assert RetryPolicy().delay(10**9) == 60


def test_the_last_delivery_is_the_one_that_the_policy_names():
    policy = RetryPolicy(max_deliveries=3)
    assert [policy.is_last(number) for number in (1, 2, 3, 4)] == [False, False, True, True]


def test_retries_come_when_they_are_due_soonest_first():
    retries = Retries()
    retries.add("1-0", 1, due=20.0)
    retries.add("2-0", 3, due=10.0)
    retries.add("3-0", 2, due=30.0)
    assert retries.take(now=9.9, limit=10) == {}
    assert list(retries.take(now=20.0, limit=10).items()) == [("2-0", 3), ("1-0", 1)]
    assert retries.ids == ["3-0"]


def test_no_more_retries_are_taken_than_are_wanted():
    retries = Retries()
    for number in range(5):
        retries.add(f"{number}-0", 1, due=0.0)
    assert len(retries.take(now=1.0, limit=2)) == 2
    assert len(retries) == 3


def test_an_event_waits_once_however_often_it_is_added():
    retries = Retries()
    retries.add("1-0", 1, due=0.0)
    retries.add("1-0", 1, due=0.0)
    assert len(retries.take(now=0.0, limit=10)) == 1
    assert retries.take(now=1.0, limit=10) == {}


def test_retries_beyond_the_limit_are_left_to_be_claimed():
    retries = Retries(limit=2)
    for number in range(3):
        retries.add(f"{number}-0", 1, due=0.0)
    assert retries.ids == ["0-0", "1-0"] or sorted(retries.ids) == ["0-0", "1-0"]
    assert "2-0" not in retries


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_claimed_ids_are_told_one_by_one_and_read_ones_in_runs_and_both_cover_just_those_that_are_left(entries):
    """Ids that were not delivered lie between those that were: only a contiguous read may cover what it skips."""
    delivered = [f"{number}-0" for number, (mine, _) in enumerate(entries) if mine]
    out = [f"{number}-0" for number, (mine, out) in enumerate(entries) if mine and out]
    told = ranges(delivered, out, contiguous=False)
    everything = [f"{number}-0" for number in range(len(entries))]
    assert [i for i in everything if covers(told, i)] == [i for i in delivered if i not in out]
