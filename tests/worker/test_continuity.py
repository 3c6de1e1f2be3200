"""What one look at a stream says against the one before: pure. What servers really do is in `test_watch`."""

import pytest
from tidings_worker.continuity import Histories, Position, carried_on, deficit, losses

START = Position(mark="m", added=100, length=100, read=40, first="1-0", last="100-0", deleted="0-0", delivered="40-0")


def look(**changes):
    return START.model_copy(update=changes)


def codes(before, now):
    return [loss.code for loss in losses(before, now)]


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (look(mark=""), "group"),
        (look(mark="another"), "group"),
        (look(added=5, length=5, last="105-0", read=0, delivered="0-0"), "stream"),
        (look(last="99-0"), "stream"),
        (look(length=50, first="51-0"), "trimmed"),
        (look(length=0, first="0-0"), "trimmed"),
        (look(length=50, first="51-0", read=90, delivered="100-0"), "trimmed"),
        (look(deleted="70-0"), "deleted"),
        (look(read=None), "position"),
        (look(length=70, first="31-0", oldest_pending="20-0"), "pending"),
        (look(length=60, first="41-0", read=100, delivered="100-0", oldest_pending="39-0"), "pending"),
    ],
    ids=[
        "the group is gone",
        "another group",
        "another stream",
        "ids went back",
        "trimmed beyond the group",
        "trimmed to nothing",
        "trimmed, and then read to the end",
        "an unread entry deleted",
        "the position set by hand",
        "pending entries trimmed",
        "pending entries trimmed, and then read to the end",
    ],
)
def test_a_loss_is_seen(now, code):
    assert codes(START, now) == [code]


@pytest.mark.parametrize(
    "now",
    [
        START,
        look(added=150, length=150, last="150-0", read=90, delivered="90-0"),
        look(read=100, delivered="100-0"),
        look(length=60, first="41-0"),
        look(deleted="30-0", length=99),
        look(oldest_pending="20-0"),
        look(length=81, first="20-0", oldest_pending="20-0"),
    ],
    ids=[
        "nothing happened",
        "more events, some read",
        "read to the end",
        "trimmed up to the group",
        "a read entry deleted",
        "entries pending",
        "trimmed up to the oldest pending",
    ],
)
def test_what_goes_well_is_no_loss(now):
    assert codes(START, now) == []


def test_what_was_dealt_with_is_not_said_again():
    trimmed = look(length=50, first="51-0")
    known = carried_on(START, trimmed)
    assert known.deficit == 10
    assert codes(known, trimmed) == []
    later = known.model_copy(update={"read": 90, "delivered": "100-0", "length": 50})
    assert codes(known, later) == []
    assert codes(
        carried_on(known, later), look(**later.model_dump() | {"added": 120, "last": "120-0", "length": 0})
    ) == ["trimmed"]


def test_pending_entries_without_data_are_said_once_and_again_when_there_are_more():
    before = look(length=70, first="31-0", oldest_pending="20-0")
    assert codes(before, before) == []
    assert codes(before, look(length=65, first="36-0", oldest_pending="20-0")) == ["pending"]


def test_a_deficit_that_cannot_be_counted_now_is_the_one_that_was_known():
    assert deficit(look(first="31-0", length=70)) is None
    assert carried_on(look(deficit=3), look(first="31-0", length=70)).deficit == 3


def test_a_group_that_no_worker_made_may_have_skipped_anything():
    assert codes(None, look(mark="")) == ["group"]


def test_a_group_that_is_seen_for_the_first_time_is_held_against_its_own_counters():
    assert codes(None, START) == []
    assert codes(None, look(length=50, first="51-0")) == ["trimmed"]


def test_a_server_with_another_history_may_have_lost_writes():
    known = Histories(frozenset({"a", "b"}))
    assert known.losses(frozenset({"a"})) == []
    assert [loss.code for loss in known.losses(frozenset({"a", "c"}))] == ["history"]
    assert known.carried_on(frozenset({"a", "c"}), complete=False).known == {"a", "b", "c"}
    assert known.carried_on(frozenset({"a", "c"}), complete=True).known == {"a", "c"}


def test_the_first_histories_seen_are_taken_for_granted():
    assert Histories(frozenset()).losses(frozenset({"a"})) == []
