"""The fence, without I/O: what bytes and tokens mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidings.fence import Ticket, Verdict, hit, judge, uniques
from tidings.layout import NO_TOKEN, Facts, Token, born_of, facts_of, pack_entry, pack_vacancy, unique

FACTS = Facts(("user:1",), "host:1")


def new_token(made_us=1, before=NO_TOKEN, cause="why"):
    return Token(unique(), made_us, before, cause).pack()


def tokens(count=3):
    return [new_token() for _ in range(count)]


def entry_under(current, lineage=b"L" * 16, payload=b"Jtrue", filled_us=7, **times):
    packed = pack_entry(lineage, tuple(token[:16] for token in current), FACTS, payload, **times)
    return packed.assemble((), filled_us)


def test_an_entry_is_fresh_under_the_tokens_it_was_loaded_under():
    current = tokens()
    seen = judge("k", entry_under(current), current)
    assert (seen.verdict, seen.payload) == (Verdict.FRESH, b"Jtrue")


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_one_new_token_makes_it_invalid(changed):
    current = tokens()
    entry = entry_under(current)
    current[changed] = new_token()
    seen = judge("k", entry, current)
    assert seen.verdict is Verdict.INVALIDATED
    assert not hit(entry, uniques(current))
    assert seen.ticket == Ticket("k", b"L" * 16, tuple(token[:16] for token in current))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_token_equals_nothing_and_has_to_be_made_before_a_load(lost):
    current = tokens()
    entry = entry_under(current)
    current[lost] = None
    seen = judge("k", entry, current)
    assert (seen.verdict, seen.ticket, seen.missing) == (Verdict.INVALIDATED, None, (lost,))
    assert not hit(entry, uniques(current))


def test_a_token_of_hostile_bytes_counts_as_missing():
    assert judge("k", None, [b"short", new_token()]).missing == (0,)


def test_other_tags_than_the_entry_was_filled_with_make_it_invalid():
    current = tokens()
    entry = entry_under(current)
    assert judge("k", entry, current[:2]).verdict is Verdict.INVALIDATED
    assert judge("k", entry, [*current, new_token()]).verdict is Verdict.INVALIDATED
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
    assert not hit(entry, uniques(current))
    facts_of(entry)


@given(st.data())
def test_a_truncated_entry_is_never_served_whole(data):
    current = tokens()
    entry = entry_under(current)
    cut = entry[: data.draw(st.integers(0, len(entry) - 1))]
    assert judge("k", cut, current).payload != b"Jtrue"
    assert cut[hit(cut, uniques(current)) or len(cut) :] != b"Jtrue"
    facts_of(cut)


@given(
    st.lists(st.sampled_from([b"A" * 16, b"B" * 16, b"C" * 16]), min_size=1, max_size=4),
    st.lists(st.sampled_from([b"A" * 16, b"B" * 16, b"C" * 16, b"short"]) | st.none(), min_size=1, max_size=4),
    st.sampled_from([0, 5]),
)
def test_the_fast_way_to_a_hit_decides_as_the_slow_one(header, current, grace_ms):
    entry = pack_entry(b"L" * 16, tuple(header), FACTS, b"Jtrue", grace_ms=grace_ms).assemble((), 1)
    seen = judge("k", entry, current)
    start = hit(entry, uniques(current))
    assert (start > 0) == (seen.verdict is Verdict.FRESH)
    assert not start or entry[start:] == seen.payload


def test_a_value_beyond_its_ttl_is_expired_and_not_fresh():
    current = tokens()
    entry = entry_under(current, grace_ms=1000)
    assert judge("k", entry, current, left_ms=1001).verdict is Verdict.FRESH
    assert judge("k", entry, current, left_ms=1000).verdict is Verdict.EXPIRED
    assert judge("k", entry, current).verdict is Verdict.EXPIRED, "who has not asked cannot call it fresh"
    assert not hit(entry, uniques(current))


def test_an_entry_says_when_it_came_to_be():
    born = born_of(entry_under(tokens(), filled_us=9, seen_us=4, load_us=3, grace_ms=2))
    assert (born.seen_us, born.filled_us, born.load_us, born.grace_ms) == (4, 9, 3, 2)


def test_the_first_of_several_changes_says_since_when_a_value_is_wrong():
    old = tokens()
    current = [old[0], new_token(70, old[1][:16]), new_token(50, old[2][:16])]
    assert judge("k", entry_under(old), current).superseded_us == 50


@pytest.mark.parametrize("before", [NO_TOKEN, b"X" * 16])
def test_a_token_that_changed_more_than_once_does_not_say_when_first(before):
    old = tokens()
    current = [old[0], old[1], new_token(50, before)]
    assert judge("k", entry_under(old), current).superseded_us is None


def test_a_token_is_read_back():
    token = Token(unique(), 1_700_000_000_000_000, unique(), "event:é rule:a b")
    assert Token.unpack(token.pack()) == token
    assert Token.unpack(b"hostile") is None
