"""What is made of the counts that processes have reported, and of the invalidation log beside them."""

import json

import pytest
from tidings_worker.looking.reads import Reads, invalidations, reported


def counted(**amounts):
    found = reported([{f"users:{name.replace('__', ':')}".encode(): b"%d" % n for name, n in amounts.items()}], 60)
    return found.namespaces["users"]


def entry(ms, *, before=b"0-0", **what):
    return b"%d-0" % ms, {b"prev": before, b"what": json.dumps(what).encode()}


def test_windows_are_added_up_by_namespace_and_processes_are_counted_once():
    first = {b"users:hits": b"2", b"orders:hits": b"7", b":host:1:ab": b"9", b":host:2:cd": b"1"}
    second = {b"users:hits": b"3", b"users:misses": b"1", b":host:1:ab": b"12"}
    found = reported([first, {}, second], 400)
    assert {name: dict(reads.counters) for name, reads in found.namespaces.items()} == {
        "users": {"hits": 5, "misses": 1},
        "orders": {"hits": 7},
    }
    assert (found.processes, found.seconds) == (2, 400)
    assert found.total.reads == 13


def test_a_field_that_is_no_report_is_left_out():
    odd = {b"users": b"1", b"users:hits": b"-5", b"users:misses": b"many", b"users:load_us": b"9" * 5000}
    found = reported([{**odd, b"\xff:hits": b"1"}], 60)
    assert list(found.namespaces) == ["�"]


def test_hit_rates_are_those_of_stats_with_stale_values_among_the_hits():
    reads = counted(local_hits=30, hits=30, misses=25, invalidated=15, stale=20, direct=100)
    assert (reads.reads, reads.hit_rate, reads.local_rate) == (100, 0.8, 0.3)


def test_means_are_of_what_was_measured():
    reads = counted(loads=9, load_us=3000, load_us__count=2, hits=64, age_s=30, age_s__count=4)
    assert (reads.load_ms, reads.age_at_hit_s) == (1.5, 7.5)


def test_where_nothing_was_counted_there_are_no_rates():
    reads = Reads()
    assert (reads.hit_rate, reads.local_rate, reads.load_ms, reads.age_at_hit_s, reads.failures) == (None,) * 4 + (0,)


def test_failures_are_those_of_redis_of_loads_and_of_decoding():
    assert counted(errors=1, load_errors=2, undecodable=4, too_large=8).failures == 7


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], (0, True)),
        ([entry(2000, tokens={"tag:a": "", "tag:b": ""}, entries=["k"], patterns=["*"])], (4, True)),
        ([entry(2000, tokens={"all": ""}), entry(500, tokens={"all": ""})], (1, True)),
        ([entry(2000, before=b"900-0", tokens={"all": ""})], (1, True)),
        ([entry(2000, before=b"1500-0", tokens={"all": ""})], (1, False)),
        ([(b"2000-0", {b"what": b"nonsense"}), (b"1800-0", {})], (1, True)),
        ([(b"2000-0", {b"what": b"[" * 100_000, b"prev": b"9" * 5000})], (1, True)),
    ],
    ids=["no log", "one of each", "one is older", "the older are gone", "younger ones are gone", "nonsense", "deep"],
)
def test_invalidations_are_counted_as_far_as_the_log_reaches(entries, expected):
    assert invalidations(entries, 1000) == expected
