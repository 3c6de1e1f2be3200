"""The regular expression of a glob against the server that defines it."""

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidings.globs import glob_to_regex

#: Few letters, so that patterns match; every character that means something; some of two, three and four bytes.
LETTERS = "abc-^]\\é€😀"
KEYS = st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=8, unique=True)
PATTERNS = st.text(LETTERS + "***??[[", max_size=8) | st.text(max_size=4)


@pytest.fixture(scope="module")
def scratch(server):
    """A database of the server that holds nothing but what one example puts there."""
    with redis.Redis(port=server.port, db=1) as made:
        yield made


def mixes(pattern):
    """Whether a range could be from an ASCII to another byte, which depends on the server's processor."""
    return "[" in pattern and "-" in pattern and not pattern.isascii()


@settings(max_examples=400, deadline=None)
@given(pattern=PATTERNS, keys=KEYS)
@example(pattern="[a-", keys=["a", "-", "b"])
@example(pattern="[a-]c", keys=["b", "bc", "ac", "a", "c"])
@example(pattern="[^", keys=["a", "ab"])
@example(pattern="[", keys=["[", "a"])
@example(pattern="[]a", keys=["]", "a", "]a"])
@example(pattern="[^]a", keys=["^", "a", "^a", "ba"])
@example(pattern="[c-a]", keys=["a", "b", "c", "-"])
@example(pattern="[\\]a]", keys=["]", "a", "\\"])
@example(pattern="[a\\", keys=["a", "\\"])
@example(pattern="a\\", keys=["a\\", "a"])
@example(pattern="\\*", keys=["*", "a"])
@example(pattern="a***b*", keys=["ab", "acb", "abc", "a"])
@example(pattern="?", keys=["é", "a"])
@example(pattern="*a*b", keys=["cacbab", "ab", "ba"])
def test_a_glob_matches_what_the_server_matches(scratch, pattern, keys):
    scratch.flushdb()
    scratch.mset(dict.fromkeys(keys, ""))
    regex = glob_to_regex(pattern)
    ours = {key for key in (key.encode() for key in keys) if regex.fullmatch(key)}
    theirs = set(scratch.keys(pattern))
    assert set(scratch.scan_iter(match=pattern, count=100)) == theirs
    if mixes(pattern):
        assert ours >= theirs
    else:
        assert ours == theirs


@pytest.mark.parametrize("pattern", ["[a-é]", "[^a-é]"])
def test_a_range_that_depends_on_the_processor_matches_every_byte(pattern):
    assert all(glob_to_regex(pattern).fullmatch(bytes([byte])) for byte in range(256))


def test_a_pattern_of_many_stars_takes_no_longer_than_its_text():
    """It would run for years if every way of placing the stars were tried."""
    assert not glob_to_regex("*a" * 200 + "*b").fullmatch(b"a" * 5000)
