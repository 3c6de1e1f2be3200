"""The fence, without I/O: what bytes and tokens mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidings.fence import Facts, Ticket, Verdict, facts_of, judge, pack_entry, pack_vacancy, token_value, unique

FACTS = Facts(("user:1",), 1.5, "host:1")


def tokens(count=3):
    return [token_value("why") for _ in range(count)]


def entry_under(current, lineage=b"L" * 16, payload=b"Jtrue"):
    return pack_entry(Ticket("k", lineage, tuple(token[:16] for token in current)), FACTS, payload)


def test_an_entry_is_fresh_under_the_tokens_it_was_loaded_under():
    current = tokens()
    seen = judge("k", entry_under(current), current)
    assert (seen.verdict, seen.payload) == (Verdict.FRESH, b"Jtrue")


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_one_new_token_makes_it_invalid(changed):
    current = tokens()
    entry = entry_under(current)
    current[changed] = token_value("an event")
    seen = judge("k", entry, current)
    assert (seen.verdict, seen.payload) == (Verdict.INVALIDATED, None)
    assert seen.ticket == Ticket("k", b"L" * 16, tuple(token[:16] for token in current))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_token_equals_nothing_and_has_to_be_made_before_a_load(lost):
    current = tokens()
    entry = entry_under(current)
    current[lost] = None
    seen = judge("k", entry, current)
    assert (seen.verdict, seen.payload, seen.ticket, seen.missing) == (Verdict.INVALIDATED, None, None, (lost,))


def test_a_token_of_hostile_bytes_counts_as_missing():
    assert judge("k", None, [b"short", token_value("")]).missing == (0,)


def test_other_tags_than_the_entry_was_filled_with_make_it_invalid():
    current = tokens()
    entry = entry_under(current)
    assert judge("k", entry, current[:2]).verdict is Verdict.INVALIDATED
    assert judge("k", entry, [*current, token_value("")]).verdict is Verdict.INVALIDATED
    assert judge("k", entry, current[::-1]).verdict is Verdict.INVALIDATED


def test_nothing_there_gives_no_ticket_so_that_no_load_begins_against_nothing():
    seen = judge("k", None, tokens())
    assert (seen.verdict, seen.ticket, seen.missing) == (Verdict.ABSENT, None, ())


def test_a_vacancy_gives_its_lineage():
    vacancy = pack_vacancy()
    seen = judge("k", vacancy, tokens())
    assert seen.verdict is Verdict.VACANT
    assert seen.ticket is not None
    assert seen.ticket.lineage == vacancy[2:18]


def test_loads_under_other_tokens_or_another_lineage_are_other_loads():
    current = tokens()
    before = judge("k", pack_vacancy(), current).ticket
    assert before != judge("k", pack_vacancy(), current).ticket
    vacancy = pack_vacancy()
    assert judge("k", vacancy, current).ticket != judge("k", vacancy, tokens()).ticket


def test_facts_are_read_back_from_an_entry_valid_or_not():
    assert facts_of(entry_under(tokens())) == FACTS
    assert facts_of(pack_vacancy()) is None
    assert facts_of(None) is None


def test_unique_values_do_not_repeat():
    assert len({unique() for _ in range(10_000)}) == 10_000


@given(st.binary(max_size=120), st.lists(st.none() | st.binary(max_size=40), max_size=4))
def test_no_bytes_whatsoever_are_fresh_by_accident_or_raise(entry, current):
    assert judge("k", entry, current).verdict is not Verdict.FRESH
    facts_of(entry)


@given(st.data())
def test_a_truncated_entry_is_never_served_whole(data):
    current = tokens()
    entry = entry_under(current)
    cut = entry[: data.draw(st.integers(0, len(entry) - 1))]
    seen = judge("k", cut, current)
    assert seen.payload != b"Jtrue"
    facts_of(cut)
