"""`tidings keys`: every cached function of a module, and which of them could share an entry."""

import json

import pytest
from forked_commands import Forks
from tidings import cached
from tidings_worker.registry import collisions, registration_of

SHOP = """
from tidings import cached, resource


@cached(namespace="prices", ttl=60, key="{shop}:{item}", tags=["shop:{shop}", "item:{item}"], jitter=0.1, early=1)
async def get_price(shop: int, item: int) -> float:
    return 1.0


@cached(namespace="prices", ttl="long", stale_while_revalidate=30, local_ttl=0.5, when=lambda shop: shop > 0)
def get_name(shop: int) -> str:
    return str(shop)


class Repository:
    @cached(tags=lambda name: [f"name:{name}"])
    async def find(self, name: str) -> str:
        return name


item = resource("item", "item_id")


@item.cache_read(suffix="title")
async def get_title(item_id: int) -> str:
    return str(item_id)
"""

CLASH = """
from tidings import cached


def make(offset):
    @cached(namespace="made", key="{number}")
    async def add(number: int) -> int:
        return number + offset
    return add


@cached(namespace="twice")
def same(number: int) -> int:
    return number


routes = {"/same": same, "/1": make(1)}
by_two = make(2)


@cached(namespace="twice")
def same(number: int) -> int:
    return number * 2


@cached(namespace="once")
def replaced(number: int) -> int:
    return number


@cached(namespace="once")
def replaced(number: int) -> int:
    return number * 2
"""

PACKAGE = {
    "shop/__init__.py": "from shop.prices import get_price\n",
    "shop/__main__.py": "raise SystemExit('it ran')\n",
    "shop/prices.py": SHOP,
    "shop/deep/__init__.py": "",
    "shop/deep/more.py": "from tidings import cached\n@cached()\ndef more(x: int) -> int: ...\n",
    "user.py": "from shop.prices import get_price\n",
    "clash.py": CLASH,
    "broken.py": "x = undefined\n",
}


@pytest.fixture(scope="module")
def forks(shell_of_module):
    return Forks(shell_of_module)


@pytest.fixture(scope="module")
def folder(forks):
    return forks.new_folder(PACKAGE)


@pytest.fixture
def keys(forks, folder):
    """Run ``tidings keys``."""
    return lambda *arguments, **variables: forks.run("keys", *arguments, folder=folder, **variables)


def test_every_function_is_told_with_its_key_tags_ttl_and_options(keys):
    ran = keys("shop.prices", "--json")
    assert (ran.code, ran.err) == (0, "")
    functions = {row["function"]: row for row in json.loads(ran.out)["functions"]}
    assert functions["shop.prices:get_price"] == {
        "namespace": "prices",
        "function": "shop.prices:get_price",
        "key": "cache:prices:get_price:{shop}:{item}:{16 hex}",
        "tags": ["shop:{shop}", "item:{item}"],
        "ttl": 60,
        "options": {"jitter": 0.1, "early": 1},
        "async": True,
        "file": "shop/prices.py",
        "line": 5,
    }
    name = functions["shop.prices:get_name"]
    assert (name["ttl"], name["async"], name["key"]) == ("long", False, "cache:prices:get_name:{16 hex}")
    assert name["options"] == {"stale_while_revalidate": 30, "local_ttl": 0.5, "when": "<lambda>"}
    assert functions["shop.prices:Repository.find"]["tags"] == ["callable Repository.<lambda>"]
    assert functions["shop.prices:get_title"]["key"] == "cache:item:get_title:{item_id}:title:{16 hex}"
    assert functions["shop.prices:get_title"]["tags"] == ["item:{item_id}"]


def test_a_package_has_the_functions_of_its_submodules_and_is_not_run(keys):
    ran = keys("shop", "--json")
    functions = [row["function"] for row in json.loads(ran.out)["functions"]]
    assert sorted(functions) == [
        "shop.deep.more:more",
        "shop.prices:Repository.find",
        "shop.prices:get_name",
        "shop.prices:get_price",
        "shop.prices:get_title",
    ]


def test_a_table_by_namespace_fits_a_narrow_terminal(shell, folder):
    shell.folder = folder
    ran = shell.run("keys", "shop", COLUMNS="80")
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.startswith("cache:")] == [
        "cache:default:",
        "cache:item:",
        "cache:prices:",
    ]
    assert "stale_while_revalidate=30" in ran.out
    assert "shop/prices.py:5" in ran.out


def test_markdown_has_a_section_for_each_namespace(keys):
    ran = keys("shop.prices", "--format", "markdown")
    row = (
        "| `async def get_price`, `shop/prices.py:5` | `get_price:{shop}:{item}:{16 hex}` | "
        "`shop:{shop}`, `item:{item}` | `ttl=60`, `jitter=0.1`, `early=1` |"
    )
    assert row in ran.out.splitlines()
    assert [line for line in ran.out.splitlines() if line.startswith("#")] == ["## default", "## item", "## prices"]


def test_functions_that_could_share_an_entry_are_an_error_that_names_both(keys):
    """Two closures, and a function that a table still has when its name goes to another; not one that is gone."""
    ran = keys("clash", "--json")
    assert ran.code == 1
    found = {one["key"]: [row["line"] for row in one["functions"]] for one in json.loads(ran.out)["collisions"]}
    assert found == {"cache:made:add:{number}:{16 hex}": [6, 6], "cache:twice:same:{16 hex}": [12, 21]}
    made, twice = ran.err.splitlines()
    assert made.startswith("tidings: clash.py:6 and clash.py:6: functions named clash:make.<locals>.add would share")
    assert twice.startswith("tidings: clash.py:12 and clash.py:21: functions named clash:same would share")


def test_two_forms_at_once_are_refused(keys):
    ran = keys("shop", "--json", "--format", "markdown")
    assert (ran.code, ran.out) == (2, "")
    assert "--format markdown" in ran.err


def test_a_module_that_defines_none_says_so(keys):
    ran = keys("user")
    assert (ran.code, ran.out, ran.err) == (0, "", "no cached function is defined in user\n")


@pytest.mark.parametrize(("module", "word"), [("nowhere", "nowhere"), ("broken", "broken.py, line 1")])
def test_a_module_that_does_not_import_is_one_message(keys, module, word):
    ran = keys(module)
    assert (ran.code, ran.out) == (2, "")
    assert word in ran.err
    assert "Traceback" not in ran.err


# What makes two functions meet


def decorated_again(function, **options):
    return cached(**options)(function)


def load(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ({}, {}, True),
        ({"tags": ["a:{number}"]}, {"ttl": 5}, True),
        ({"namespace": "a"}, {"namespace": "b"}, False),
        ({"key": "{number}"}, {}, False),
        ({"key": "{number}"}, {"key": "{number}:x"}, False),
        ({"key": "{number}"}, {"key": "{number}"}, True),
    ],
    ids=["alike", "other tags", "other namespaces", "one template", "two templates", "same template"],
)
def test_functions_meet_when_namespace_name_and_template_are_the_same(one, other, meet):
    """And then a call of either has the same key, as keys themselves show."""
    first, second = decorated_again(load, **one), decorated_again(load, **other)
    assert bool(collisions([first, second])) is meet
    assert (first.call_of(1).name == second.call_of(1).name and one.get("namespace") == other.get("namespace")) is meet


@pytest.mark.parametrize(
    "options",
    [{}, {"key": "{number}"}, {"key": "n-{number}", "namespace": "shapes"}],
    ids=["hash", "template", "namespace"],
)
def test_the_shape_of_a_key_is_that_of_the_keys_of_calls(options):
    function = decorated_again(load, **options)
    shape = registration_of(function).key
    call = function.call_of(7)
    digest = call.name.rpartition(":")[2]
    assert shape.replace("{number}", "7").replace("{16 hex}", digest) == f"cache:{call.namespace}:{call.name}"
