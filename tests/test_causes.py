"""A cause is one line that says why; what was written is what is read, whatever an event's id is."""

from hypothesis import given
from hypothesis import strategies as st
from tidings.causes import Kind, by_call, by_event, by_loss, by_rule, parse

RULE = "shop.rules.changed (rules.py:12)"


def test_an_events_cause_names_the_event_its_entry_and_the_rule():
    cause = parse(by_rule(by_event("5f0c", "17-3"), RULE))
    assert (cause.kind, cause.event_id, cause.stream_id, cause.rule) == (Kind.EVENT, "5f0c", "17-3", RULE)


def test_an_event_without_an_id_of_its_own_is_named_once():
    text = by_rule(by_event("17-3", "17-3"), RULE)
    assert text == f"event:17-3 rule:{RULE}"
    assert parse(text).stream_id == "17-3"


@given(st.text(), st.text())
def test_no_id_or_rule_makes_a_cause_say_something_else(event_id, rule):
    cause = parse(by_rule(by_event(event_id, "17-3"), rule))
    assert (cause.kind, cause.stream_id, cause.rule) == (Kind.EVENT, "17-3", rule)


@given(st.text())
def test_any_text_can_be_taken_apart(text):
    assert parse(text).text == text


def test_calls_losses_and_first_uses_are_told_apart():
    call = parse(by_call("shop:price.invalidate", "host:1"))
    assert (call.kind, call.method, call.process) == (Kind.CALL, "shop:price.invalidate", "host:1")
    loss = parse(by_loss(["group", "trimmed"], "app:events"))
    assert (loss.kind, loss.codes, loss.stream) == (Kind.LOST, ("group", "trimmed"), "app:events")
    assert parse(by_loss(["history"], "")).codes == ("history",)
    assert parse("first use").kind is Kind.FIRST_USE
    assert parse("anything").kind is Kind.UNKNOWN
