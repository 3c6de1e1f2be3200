"""The session that docs/operations.md records is what terminals show today."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "operations.md").read_text()

spec = importlib.util.spec_from_file_location("docs_session", DOCS / "session.py")
session = importlib.util.module_from_spec(spec)
sys.modules["docs_session"] = session  # where its dataclasses look for their module
spec.loader.exec_module(session)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="the session takes place in tmux")
def test_the_recorded_session_is_what_the_terminals_show():
    shown = session.played(PAGE)
    assert session.masked(shown) == session.masked(PAGE), shown


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.5 s ago", "12 s ago"),
        ("in 300 us", "in 1.5 ms"),
        ("1795290476959-0", "1795290482381-3"),
        ("event ffee29a746b944d6ac9afd20ee7760b4", "event 00ee29a746b944d6ac9afd20ee7760b4"),
        ("consumer=shop-1:7005:b318e244 group", "consumer=shop-1:75:00000000 group"),
        ("a line\n   that goes on", "a line that goes on"),
    ],
)
def test_what_differs_each_time_is_no_difference(one, other):
    assert session.masked(one) == session.masked(other)


def test_another_word_is_a_difference():
    assert session.masked("served from the cache") != session.masked("not served")
