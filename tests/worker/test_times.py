"""Times as people type and read them."""

from datetime import UTC, datetime, timedelta

import pytest
from tidings.errors import ConfigurationError
from tidings_worker.times import age, moment_of, parse_since, parse_until

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MS = 1_795_262_400_000
MOST = 2**64 - 1


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0s", MS),
        ("10m", MS - 600_000),
        ("2h", MS - 7_200_000),
        ("1d", MS - 86_400_000),
        ("1w", MS - 604_800_000),
        ("250ms", MS - 250),
        ("1h30m", MS - 5_400_000),
        ("1.5s", MS - 1500),
        (" 10m ", MS - 600_000),
        ("2026-11-21T10:00Z", MS - 7_200_000),
        ("2026-11-21t10:00:00.250z", MS - 7_200_000 + 250),
        ("2026-11-21T11:00+01:00", MS - 7_200_000),
        ("2026-11-21T10:00", MS - 7_200_000),
        ("2026-11-21", MS - 43_200_000),
        ("1795262400000", MS),
        ("0", 0),
        ("1900-01-01T00:00Z", 0),
        ("99999999w", 0),
        ("9" * 400 + "w", 0),
    ],
)
def test_a_time_is_a_bound_among_ids(text, milliseconds):
    assert parse_since(text, NOW) == f"{milliseconds}-0"
    assert parse_until(text, NOW) == f"{milliseconds}-{MOST}"


def test_an_id_is_a_bound_itself():
    assert parse_since("1795262400000-7", NOW) == parse_until("1795262400000-7", NOW) == "1795262400000-7"
    assert parse_since("007-0", NOW) == "7-0"


@pytest.mark.parametrize(
    "text",
    ["", "10", "600", "m", "10 min", "yesterday", "-5m", "1e3s", "10m!", "5-", "20261121", "1-2-3", "٣m", "12:00", "$"],
)
def test_what_is_no_time_is_refused_with_a_cure(text):
    with pytest.raises(ConfigurationError, match="write how long ago"):
        parse_since(text, NOW)


@pytest.mark.parametrize("text", [f"{2**64}-0", f"0-{2**64}", str(2**64)])
def test_an_id_that_no_stream_has_is_refused(text):
    with pytest.raises(ConfigurationError, match="no stream has"):
        parse_since(text, NOW)


def test_an_id_says_its_time_unless_it_was_made_by_hand():
    assert moment_of(f"{MS}-3") == NOW
    assert moment_of(f"{MOST}-0") is None
    assert moment_of("mine") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (9.96, "9.9 s"),
        (45.9, "45 s"),
        (119.9, "119 s"),
        (300, "5 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (timedelta(days=12).total_seconds(), "12 d"),
    ],
)
def test_an_age_has_the_unit_that_fits(seconds, text):
    assert age(seconds) == text
