"""Templates: what they render, and every way in which one is found wrong at definition."""

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace
from uuid import UUID

import pytest
from pydantic import TypeAdapter
from tidings.errors import ArgumentError, ConfigurationError, TemplateError
from tidings.templates import parse


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("json", "json"),
        (42, "42"),
        (True, "true"),
        (None, "null"),
        (1.5, "1.5"),
        (Decimal("1.50"), "1.50"),
        (date(2026, 11, 20), "2026-11-20"),
        (datetime(2026, 11, 20, 1, 2, tzinfo=UTC), "2026-11-20T01:02:00Z"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Colour.RED, "red"),
    ],
)
def test_a_value_has_the_text_that_its_json_has(value, text):
    assert parse("tag:{x}", {"x"}, "here").render({"x": value}.__getitem__) == f"tag:{text}"


def test_attributes_and_formats_are_rendered():
    user = SimpleNamespace(team=SimpleNamespace(id=9))
    template = parse("{user.team.id}:{day:%Y-%m}", {"user", "day"}, "here")
    assert template.render({"user": user, "day": date(2026, 11, 20)}.__getitem__) == "9:2026-11"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user:{id}", "names 'id'; there is: user_id"),
        ("user:{}", "no argument's name"),
        ("user:{0}", "no argument's name"),
        ("user:{user_id", "does not parse"),
        ("user:user_id}", "does not parse"),
        ("user:{{user_id}}", "doubled braces"),
        ("user:{user_id!r}", "no argument's name"),
        ("user:{user_id[0]}", "no argument's name"),
        ("", "empty"),
        ("day:{user_id:{user_id}}", "no argument's name"),
    ],
)
def test_a_template_that_would_never_match_is_an_error_that_names_it(text, says):
    with pytest.raises(TemplateError, match="shop:profile, tags") as caught:
        parse(text, {"user_id"}, "shop:profile, tags")
    assert says in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)


def test_a_value_without_a_stable_text_is_refused():
    with pytest.raises(ArgumentError, match=r"cannot use a object; name an attribute"):
        parse("user:{user}", {"user"}, "here").render({"user": object()}.__getitem__)


def test_a_missing_attribute_is_named():
    with pytest.raises(ArgumentError, match="needs 'user'"):
        parse("user:{user.id}", {"user"}, "here").render({"user": "text"}.__getitem__)


def test_a_format_that_does_not_fit_the_value_is_an_argument_error():
    with pytest.raises(ArgumentError, match="cannot format 'day'"):
        parse("{day:%Y-%m}", {"day"}, "here").render({"day": "2026-11-20"}.__getitem__)


def test_an_argument_and_an_events_json_have_one_text():
    at = datetime(2026, 11, 20, tzinfo=UTC)
    template = parse("{at}", {"at"}, "here")
    in_json = TypeAdapter(datetime).dump_python(at, mode="json")
    assert template.render({"at": at}.__getitem__) == template.render({"at": in_json}.__getitem__)
