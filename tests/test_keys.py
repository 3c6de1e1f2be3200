"""Keys: one for every way to write a call, another for every other call."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tidings.errors import ArgumentError, ConfigurationError
from tidings.keys import Keyspace, canonical_json, check_namespace
from tidings.signature import Signature, memorable


async def search(text: str, /, page: int = 1, *words: str, exact: bool = False, **filters: str) -> list[str]: ...


def name_of(*args, **kwargs):
    signature = Signature(search)
    return signature.entry_name(signature.bind(*args, **kwargs))


def test_positional_keyword_and_defaulted_calls_are_one_key():
    assert name_of("a") == name_of("a", 1) == name_of("a", page=1) == name_of("a", exact=False)
    assert name_of("a", colour="red", size="9") == name_of("a", size="9", colour="red")


def test_different_calls_have_different_keys():
    calls = [name_of("a"), name_of("b"), name_of("a", 2), name_of("a", 1, "w"), name_of("a", exact=True)]
    calls += [name_of("a", colour="red"), name_of("a", colour="blue"), name_of("a", 1, "red")]
    assert len(set(calls)) == len(calls)


def test_a_call_that_does_not_bind_raises_the_functions_own_type_error():
    with pytest.raises(TypeError, match=r"search\(\) missing 1 required positional argument: 'text'"):
        name_of()


def test_the_key_is_made_of_prefix_version_namespace_function_and_sixteen_hex_digits():
    key = Keyspace("shop", "v2").entry("explorer", name_of("a"))
    start, _, digest = key.rpartition(":")
    assert start == "shop:v2:cache:explorer:search"
    assert len(digest) == 16
    assert int(digest, 16) >= 0


def test_everything_but_entries_carries_the_prefix_and_no_version():
    keys = Keyspace("shop", "v2")
    assert keys.token("tag:user:1") == "shop:token:tag:user:1"
    assert (keys.log, keys.events, keys.dead) == ("shop:invalidations", "shop:events", "shop:events:dead")


def test_self_is_left_out_of_the_key():
    class Repository:
        async def get(self, user_id: int) -> int: ...

    signature = Signature(Repository.get)
    assert signature.entry_name(signature.bind(Repository(), 1)) == signature.entry_name(
        signature.bind(Repository(), user_id=1)
    )
    assert signature.function_word == "Repository.get"


class Point(BaseModel):
    x: int


@dataclass
class Size:
    x: int


def test_arguments_that_are_equal_but_of_other_types_have_different_keys():
    values = [1, 1.0, True, "1", Decimal(1), b"1", [1], (1,), {1}, frozenset({1}), {"x": 1}, Point(x=1), Size(x=1)]
    values += [None, date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01", UUID(int=1), {1: 1}]
    assert len({canonical_json((value,)) for value in values}) == len(values)


def test_dicts_and_sets_that_are_equal_have_one_key():
    assert canonical_json(({"a": 1, "b": [2]},)) == canonical_json(({"b": [2], "a": 1},))
    assert canonical_json(({"a", "b", "c"},)) == canonical_json(({"c", "b", "a"},))


def test_a_plain_dict_cannot_pass_for_a_tagged_value():
    assert canonical_json(({"!": ["date", "2026-01-01"]},)) != canonical_json((date(2026, 1, 1),))


def test_an_argument_without_a_canonical_form_is_refused_by_name_with_the_cure():
    async def load(session: object, user_id: int) -> int: ...

    signature = Signature(load)
    with pytest.raises(ArgumentError, match=r"the argument 'session': a builtins\.object has no canonical form.*key="):
        signature.entry_name(signature.bind(object(), 1))


def test_keys_are_the_same_in_another_process():
    program = (
        "from tidings.keys import canonical_json; from datetime import date\n"
        "print(canonical_json(({'b', 'a', 'c'}, date(2026, 1, 1), {'x': (1, None)})))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert said == {canonical_json(({"c", "b", "a"}, date(2026, 1, 1), {"x": (1, None)}))}


@pytest.mark.parametrize("namespace", ["", "a:b", "a b", "{a}", "a*", "x" * 129, "é"])
def test_a_namespace_that_would_make_keys_ambiguous_is_refused(namespace):
    with pytest.raises(ConfigurationError):
        check_namespace(namespace)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def typed(value):
    """Return a form in which equality means equal values of equal types."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (type(value), [typed(item) for item in value])
    return (type(value), repr(value))


@given(json_like, json_like)
def test_canonical_texts_are_equal_exactly_when_the_values_are(a, b):
    assert (canonical_json((a,)) == canonical_json((b,))) == (typed(a) == typed(b))


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Celsius(float): ...


class Kelvin(float): ...


class Masked(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "***"


class Open(BaseModel, extra="allow"):
    x: int


def test_what_looks_alike_and_is_not_has_keys_of_its_own():
    values = [1, Colour.RED, Level.LOW, Celsius(20), Kelvin(20), 20.0, Masked("alice"), Masked("bob"), "alice"]
    values += [Open(x=1, tenant="A"), Open(x=1, tenant="B")]
    assert len({canonical_json((value,)) for value in values}) == len(values)


def test_a_class_is_no_argument_for_a_key():
    with pytest.raises(ArgumentError):
        canonical_json((Size,))


def test_equal_dicts_with_other_keys_than_strings_have_one_key():
    assert canonical_json(({1: "a", 2: "b"},)) == canonical_json(({2: "b", 1: "a"},))


def test_a_script_its_child_processes_and_its_importers_agree_on_keys(tmp_path):
    """`python app.py`, a spawned child of it, `python -m app`, and another program that imports app."""
    (tmp_path / "app.py").write_text(
        "import multiprocessing, sys\n"
        "from tidings.keys import qualified\n"
        "def f(): ...\n"
        "def say(): print(qualified(f), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    say()\n"
        "    child = multiprocessing.get_context('spawn').Process(target=say)\n"
        "    child.start(); child.join()\n"
    )
    said = set()
    for arguments in (["app.py"], ["-m", "app"], ["-c", "import app; app.say()"]):
        run = subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        said.update(run.stdout.split())
    assert said == {"app:f"}


def test_long_texts_are_not_remembered():
    def identity(*values):
        return (*values, *map(type, values))

    assert memorable(identity("x" * 256, b"x" * 256, 1))
    assert not memorable(identity(1, "x" * 257))
    assert not memorable(identity(b"x" * 257, None))
