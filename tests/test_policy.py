"""Policies: what they decide for given numbers, and what their options refuse."""

import math
import re
from dataclasses import fields
from datetime import timedelta
from inspect import signature
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tidings.errors import ConfigurationError
from tidings.policy import (
    LONGEST_SECONDS,
    UNKNOWN_AGE_MS,
    Policy,
    expired_may_be_served,
    invalidated_may_be_served,
    lifetime_ms,
    may_cover_error,
    policy,
    refresh_early,
    stale_age_ms,
)

LONGEST_MS = LONGEST_SECONDS * 1000

lengths_ms = st.integers(0, LONGEST_MS)
ttls_ms = st.integers(1, LONGEST_MS)
ages_ms = st.integers(0, UNKNOWN_AGE_MS)
jitters = st.floats(0, 1, exclude_max=True)
randoms = st.floats(0, 1, exclude_max=True)
times_us = st.integers(0, 2**53)
stamps_us = st.none() | times_us

#: a thousand random numbers that leave nothing to chance
EVENLY = [(number + 0.5) / 1000 for number in range(1000)]

STALE = [
    pytest.param(expired_may_be_served, "swr_ms", id="expired"),
    pytest.param(invalidated_may_be_served, "max_staleness_ms", id="invalidated"),
    pytest.param(may_cover_error, "stale_if_error_ms", id="error"),
]


# --- lifetimes


@given(ttl_ms=ttls_ms, jitter=jitters, random=randoms)
def test_a_lifetime_is_within_the_jitter_of_the_ttl(ttl_ms, jitter, random):
    lifetime = lifetime_ms(Policy(ttl_ms=ttl_ms, jitter=jitter), 1, negative=False, random=random)
    assert lifetime >= 1
    assert lifetime == 1 or abs(lifetime - ttl_ms) <= ttl_ms * jitter + 1


@given(ttl_ms=st.integers(100_000, LONGEST_MS), jitter=st.floats(0.1, 1, exclude_max=True))
def test_lifetimes_are_spread_evenly_over_the_jitter(ttl_ms, jitter):
    made = Policy(ttl_ms=ttl_ms, jitter=jitter)
    lifetimes = [lifetime_ms(made, 1, negative=False, random=random) for random in EVENLY]
    width = 2 * ttl_ms * jitter / 10
    tenths = [int((lifetime - ttl_ms * (1 - jitter)) / width) for lifetime in lifetimes]
    assert all(abs(tenths.count(tenth) - 100) <= 2 for tenth in range(10))
    assert sum(lifetimes) / 1000 == pytest.approx(ttl_ms, rel=1e-3)


@given(ttl_ms=ttls_ms, random=randoms)
def test_without_jitter_a_lifetime_is_the_ttl(ttl_ms, random):
    assert lifetime_ms(Policy(ttl_ms=ttl_ms), 1, negative=False, random=random) == ttl_ms


@pytest.mark.parametrize(
    ("made", "negative", "expected"),
    [
        (Policy(), False, 9000),
        (Policy(ttl_word="long"), False, 9000),
        (Policy(ttl_ms=5000), False, 5000),
        (Policy(ttl_ms=5000), True, 5000),
        (Policy(), True, 9000),
        (Policy(ttl_ms=5000, negative_ttl_ms=100), False, 5000),
        (Policy(ttl_ms=5000, negative_ttl_ms=100), True, 100),
        (Policy(negative_ttl_ms=100, jitter=0.5), True, 50),
        (Policy(ttl_ms=1, jitter=0.99), False, 1),
    ],
)
def test_the_ttl_that_holds_is_the_one_for_the_value(made, negative, expected):
    assert lifetime_ms(made, 9000, negative=negative, random=0.0) == expected


# --- early refresh


@given(beta=st.floats(0.1, 10), load_ms=st.floats(1, 60_000), left_ms=st.floats(1, 600_000))
def test_as_many_reads_refresh_early_as_xfetch_says(beta, load_ms, left_ms):
    refreshing = sum(refresh_early(beta, load_ms, left_ms, random) for random in EVENLY)
    assert abs(refreshing / 1000 - math.exp(-left_ms / (beta * load_ms))) <= 0.001


@given(
    beta=st.floats(0, 100),
    load_ms=st.floats(0, 600_000),
    left_ms=st.floats(0, 600_000, exclude_min=True),
    random=st.floats(0, 1, exclude_min=True),
    more=st.floats(1, 10),
)
def test_less_time_left_or_a_longer_load_never_makes_an_early_refresh_less_likely(beta, load_ms, left_ms, random, more):
    assume(refresh_early(beta, load_ms, left_ms, random))
    assert refresh_early(beta, load_ms, left_ms / more, random)
    assert refresh_early(beta, load_ms * more, left_ms, random)
    assert refresh_early(beta * more, load_ms, left_ms, random)


@given(load_ms=st.floats(0, 600_000), left_ms=st.floats(0.001, 600_000), random=st.floats(0, 1, exclude_min=True))
def test_nothing_is_refreshed_early_with_beta_0_or_a_load_that_takes_no_time(load_ms, left_ms, random):
    assert not refresh_early(0.0, load_ms, left_ms, random)
    assert not refresh_early(1.0, 0.0, left_ms, random)


def test_the_unluckiest_read_does_not_refresh_early():
    assert not refresh_early(1.0, 1000.0, 0.001, 1.0)


# --- stale values


@pytest.mark.parametrize(("allowed", "option"), STALE)
@given(limits_ms=st.tuples(lengths_ms, lengths_ms), some_ages_ms=st.tuples(ages_ms, ages_ms))
def test_what_is_staler_is_never_more_allowed(allowed, option, limits_ms, some_ages_ms):
    narrow, wide = (Policy(**{option: limit_ms}) for limit_ms in sorted(limits_ms))
    younger_ms, older_ms = sorted(some_ages_ms)
    if allowed(narrow, older_ms):
        assert allowed(narrow, younger_ms)
        assert allowed(wide, older_ms)


@pytest.mark.parametrize(("allowed", "option"), STALE)
def test_a_stale_value_may_be_served_until_its_limit_is_reached(allowed, option):
    made = Policy(**{option: 1000})
    assert [allowed(made, age_ms) for age_ms in (0, 999, 1000, UNKNOWN_AGE_MS)] == [True, True, False, False]


@pytest.mark.parametrize(("allowed", "option"), STALE)
@given(age_ms=ages_ms)
@example(age_ms=0)
def test_no_option_allows_for_another_kind_of_staleness(allowed, option, age_ms):
    others = {name: LONGEST_MS for name in ("swr_ms", "max_staleness_ms", "stale_if_error_ms") if name != option}
    assert not allowed(Policy(**others), age_ms)


@pytest.mark.parametrize(("allowed", "option"), STALE)
@given(limit_ms=lengths_ms)
@example(limit_ms=LONGEST_MS)
def test_an_unknown_age_is_allowed_by_no_limit(allowed, option, limit_ms):
    assert not allowed(Policy(**{option: limit_ms}), UNKNOWN_AGE_MS)


# --- the age of an invalidated value


@given(now_us=times_us, seen_us=stamps_us, loaded_after_us=st.integers(0, 10**9), wrong_after_us=st.integers(0, 10**9))
def test_an_age_is_never_less_than_the_truth(now_us, seen_us, loaded_after_us, wrong_after_us):
    """Whatever is known: the value was seen to be missing, then loaded, then invalidated."""
    truth_us = None if seen_us is None else seen_us + loaded_after_us + wrong_after_us
    assume(truth_us is None or truth_us <= now_us)
    for superseded_us in {None, truth_us}:
        age_ms = stale_age_ms(now_us, seen_us, superseded_us)
        assert truth_us is None or age_ms * 1000 >= now_us - truth_us
        assert age_ms >= 0


@given(now_us=times_us, seen_us=times_us, superseded_us=times_us)
def test_an_invalidation_known_exactly_gives_the_age_to_the_millisecond(now_us, seen_us, superseded_us):
    seen_us, superseded_us, now_us = sorted((now_us, seen_us, superseded_us))
    age_us = stale_age_ms(now_us, seen_us, superseded_us) * 1000
    assert now_us - superseded_us <= age_us < now_us - superseded_us + 1000
    assert stale_age_ms(now_us, None, superseded_us) * 1000 == age_us


@given(seen_us=times_us, superseded_us=stamps_us, ages_us=st.lists(st.integers(0, 10**12), min_size=2))
def test_an_age_grows_with_time(seen_us, superseded_us, ages_us):
    begin_us = max(seen_us, superseded_us or 0)
    grown = [stale_age_ms(begin_us + age_us, seen_us, superseded_us) for age_us in sorted(ages_us)]
    assert all(earlier <= later for earlier, later in pairwise(grown))


@pytest.mark.parametrize(
    ("seen_us", "superseded_us", "expected"),
    [
        (4_000_000, 9_000_000, 1000),
        (4_000_000, 9_999_999, 1),
        (4_000_000, 10_000_000, 0),
        (4_000_000, None, 6000),
        (None, None, UNKNOWN_AGE_MS),
        (10_000_001, None, UNKNOWN_AGE_MS),
        (4_000_000, 10_000_001, UNKNOWN_AGE_MS),
        (10_000_001, 9_000_000, UNKNOWN_AGE_MS),
    ],
)
def test_the_age_of_an_invalidated_value_after_ten_seconds(seen_us, superseded_us, expected):
    assert stale_age_ms(10_000_000, seen_us, superseded_us) == expected


# --- what a read has to ask for


@given(swr_ms=lengths_ms, stale_if_error_ms=lengths_ms)
def test_a_value_outlives_its_ttl_by_the_longer_of_what_is_allowed(swr_ms, stale_if_error_ms):
    made = Policy(swr_ms=swr_ms, stale_if_error_ms=stale_if_error_ms, max_staleness_ms=LONGEST_MS)
    assert made.grace_ms == max(swr_ms, stale_if_error_ms)


@pytest.mark.parametrize(
    ("options", "needs_ttl", "needs_time"),
    [
        ({}, False, False),
        ({"ttl": 60, "jitter": 0.5, "negative_ttl": 1}, False, False),
        ({"early": 1.0}, True, False),
        ({"stale_while_revalidate": 1}, True, False),
        ({"stale_if_error": 1}, True, True),
        ({"max_staleness": 1}, False, True),
        ({"local_ttl": 1}, True, False),
    ],
)
def test_a_read_asks_for_no_more_than_its_policy_needs(options, needs_ttl, needs_time):
    made = policy(where="here", **options)
    assert (made.needs_ttl, made.needs_time) == (needs_ttl, needs_time)


# --- what users write


def test_without_options_nothing_is_on():
    assert policy(where="here") == Policy()


def test_seconds_become_milliseconds_whether_numbers_or_timedelta():
    made = policy(
        where="here",
        ttl=timedelta(minutes=1),
        jitter=0.1,
        early=1,
        stale_while_revalidate=2,
        stale_if_error=timedelta(hours=1),
        max_staleness=0.25,
        negative_ttl=1.5,
        local_ttl=timedelta(milliseconds=7),
        timeout=timedelta(milliseconds=500),
    )
    assert made == Policy(
        ttl_ms=60_000,
        jitter=0.1,
        early=1.0,
        swr_ms=2000,
        stale_if_error_ms=3_600_000,
        max_staleness_ms=250,
        negative_ttl_ms=1500,
        local_ttl_ms=7,
        timeout=0.5,
    )


def test_a_duration_of_less_than_a_millisecond_is_not_taken_for_off():
    made = policy(where="here", ttl=1e-9, stale_if_error=1e-9, timeout=1e-9)
    assert (made.ttl_ms, made.stale_if_error_ms, made.timeout) == (1, 1, 0.001)


@pytest.mark.parametrize("word", ["short", "default", "long"])
def test_a_ttl_may_be_a_word_that_the_settings_explain(word):
    made = policy(where="here", ttl=word)
    assert (made.ttl_ms, made.ttl_word) == (None, word)


NO_DURATIONS = [
    -1,
    -0.001,
    float("nan"),
    float("inf"),
    -math.inf,
    10**400,
    LONGEST_SECONDS + 1,
    True,
    "60",
    b"60",
    [60],
]
NO_DURATIONS += [timedelta(-1), timedelta.max, None]


@pytest.mark.parametrize("value", NO_DURATIONS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("option", ["stale_while_revalidate", "stale_if_error", "max_staleness", "local_ttl"])
def test_what_is_no_duration_is_refused_with_what_was_given_and_what_is_wanted(option, value):
    expected = f"app:find: {option} must be a number of seconds or a timedelta, from 0 to ten years, not {value!r}"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(expected)}$"):
        policy(where="app:find", **{option: value})


@pytest.mark.parametrize("value", [*NO_DURATIONS[:-1], 0, 0.0, timedelta(0)], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("option", ["ttl", "negative_ttl", "timeout"])
def test_a_ttl_or_timeout_is_positive(option, value):
    with pytest.raises(ConfigurationError) as refusal:
        policy(where="app:find", stale_if_error=1, **{option: value})
    text = str(refusal.value)
    assert text.startswith(f"app:find: {option} must be a positive number of seconds or a timedelta, up to ten years")
    assert text.endswith(f", not {value!r}")
    assert "\n" not in text


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, math.nan, True, "0.1", None, timedelta(0)], ids=repr)
def test_jitter_is_a_fraction_below_1(value):
    with pytest.raises(ConfigurationError, match="jitter must be a fraction from 0 to below 1, not "):
        policy(where="app:find", jitter=value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, 10**400, True, "1", None, timedelta(1)], ids=lambda _: "")
def test_early_is_a_finite_number(value):
    with pytest.raises(ConfigurationError, match="early must be a finite number of at least 0, not "):
        policy(where="app:find", early=value)


def test_a_word_is_no_other_options_value():
    with pytest.raises(ConfigurationError, match="negative_ttl must be"):
        policy(where="app:find", negative_ttl="short")


def test_all_problems_of_a_call_are_listed():
    with pytest.raises(ConfigurationError) as refusal:
        policy(where="app:find", ttl="forever", jitter=2, max_staleness=-1, local_ttl=5, timeout=1)
    where, *problems = str(refusal.value).splitlines()
    assert where == "app:find:"
    assert [problem.split()[0] for problem in problems] == ["ttl", "jitter", "max_staleness", "timeout=1"]
    assert '"short", "default" or "long", not \'forever\'' in problems[0]


def test_a_timeout_needs_something_to_serve_when_the_time_is_up():
    with pytest.raises(ConfigurationError, match=r"app:find: timeout=2 needs stale_if_error"):
        policy(where="app:find", timeout=2, stale_while_revalidate=60, max_staleness=60)
    assert policy(where="app:find", timeout=2, stale_if_error=60).timeout == 2


def test_a_local_ttl_is_not_longer_than_the_ttl():
    with pytest.raises(ConfigurationError, match="local_ttl must not be longer than ttl: 61 is more than 60"):
        policy(where="app:find", ttl=60, local_ttl=61)
    assert policy(where="app:find", ttl=60, local_ttl=60).local_ttl_ms == 60_000
    assert policy(where="app:find", local_ttl=61).local_ttl_ms == 61_000
    assert policy(where="app:find", ttl="short", local_ttl=61).local_ttl_ms == 61_000


def test_a_wrong_option_is_not_said_to_contradict_another():
    with pytest.raises(ConfigurationError) as refusal:
        policy(where="app:find", timeout=2, stale_if_error=-1)
    assert "needs" not in str(refusal.value)


OPTIONS = [name for name in signature(policy).parameters if name != "where"]
anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.timedeltas()


@given(options=st.fixed_dictionaries({}, optional=dict.fromkeys(OPTIONS, anything)))
def test_whatever_is_written_is_either_refused_or_makes_a_policy_that_can_decide(options):
    try:
        made = policy(where="here", **options)
    except ConfigurationError:
        return
    for field in fields(made):
        value = getattr(made, field.name)
        assert value is None or value in {"short", "default", "long"} or 0 <= value <= max(LONGEST_MS, made.early)
    assert lifetime_ms(made, 60_000, negative=True, random=0.5) >= 1
    assert refresh_early(made.early, 10.0, 1000.0, 0.5) in {True, False}
