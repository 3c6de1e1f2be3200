"""`tidings lint`: every planted fault is named with file and line, and nothing else is."""

import ast
import json
import re
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import pytest
import tidings_worker.demo
from forked_commands import Forks
from pydantic import BaseModel, Field
from tidings import Event
from tidings.templates import parse
from tidings_worker import Invalidate, Rules
from tidings_worker.lint.examples import examples
from tidings_worker.lint.findings import CODES, RuleFacts
from tidings_worker.lint.linting import lint as lint_of
from tidings_worker.lint.rule_code import read as read_rule
from tidings_worker.lint.rule_code import spot_of_rule
from tidings_worker.lint.scopes import Scope
from tidings_worker.lint.shapes import Shape, meet
from tidings_worker.lint.texts import texts, texts_of_function
from tidings_worker.lint.trial import try_out

# Faults, each planted on a line that ends with its code

SERVICE = """
from datetime import date

from pydantic import BaseModel
from tidings import Event, cached, get_cache, publish, resource


class Address(BaseModel):
    city: str


class Ingested(Event, type="ingested"):
    package: str
    as_of: date


class UserMoved(Event, type="user.moved"):
    user_id: int
    address: Address | None = None


class Forgotten(Event, type="user.forgotten"):  # FAULT unruled-event
    user_id: int


class Elsewhere(Event, type="other.team"):  # tidings: ignore[unruled-event]
    user_id: int


def tags_of(team: str, **_: object) -> list[str]:
    return [f"team:{team}", *[f"member:{n}" for n in range(3)]]


@cached(namespace="explorer", tags=["package:{package}"])
async def get_tree(package: str, as_of: date) -> list[str]:
    return [package]


@cached(namespace="teams", tags=tags_of)
async def get_team(team: str) -> str:
    return team


@cached(namespace="stats", result_tags=lambda found: [f"stat:{name}" for name in found])
def get_stats(limit: int = 10) -> list[str]:
    return ["x"] * limit


@cached(ttl=60, tags=["rate:{currency}", "rates"])  # FAULT uninvalidated-reader
async def get_rate(currency: str) -> float:
    return 1.0


# tidings: ignore[unread-tag] is about another line, and about something else
@cached(namespace="days", tags=["day:{day}", "day:{day}"])  # FAULT repeated-tag
async def get_day(day: date) -> str:
    return str(day)


@cached(namespace="profiles")
async def get_profile(user_id: int) -> str:
    return str(user_id)


async def profile_changed(user_id: int) -> None:
    await get_profile.invalidate(user_id)
    await get_cache().invalidate(tags=[f"day:{user_id}"])


class Repository:
    @cached(  # tidings: ignore
        namespace="repository",
    )
    async def find(self, name: str) -> str:
        return name


user = resource("user", "user_id")


@user.cache_read(suffix="name")
async def get_name(user_id: int) -> str:
    return str(user_id)


@user.cache_write(tags=["names"])
async def set_name(user_id: int) -> None: ...


async def session(session_id: str) -> str:
    return await get_cache().get_or_set(session_id, make, namespace="sessions", tags=[f"session:{session_id}"])


async def make() -> str:
    return "made"


async def not_cached(package: str) -> str:
    return package


async def order() -> None:
    await publish(Event.of("order.placed", {}))  # FAULT unruled-event
    await publish(Event.of("order.paid", {}))
"""

RULES = """
import service
from service import Ingested, UserMoved, get_stats, get_tree
from tidings_worker import Invalidate, Rules, Warm

rules = Rules()
PREFIX = "package"


def package_tag(package: str) -> str:
    return f"{PREFIX}:{package}"


def both(event):
    yield Invalidate(tags=[f"packages:{event.package}"])  # FAULT unread-tag


@rules.on(Ingested)
def understood(event):
    tags = [package_tag(event.package)]
    if event.as_of:
        tags.append(f"pakage:{event.package}")  # FAULT unread-tag
    for kind in ("team", "staff"):
        yield Invalidate(tags=[f"{kind}:{event.package}"])  # FAULT unread-tag
    yield Invalidate(
        namespaces=["stats", "statistics"],  # FAULT unread-namespace
        tags=tags,
    )
    yield Warm(get_tree, package=event.package, as_of=event.as_of)
    yield Warm(get_tree, event.package)  # FAULT unbound-warm
    yield Warm(get_tree, event.package, event.as_of, limit=3)  # FAULT unbound-warm
    yield Warm(get_stats, 1, 2)  # FAULT unbound-warm
    yield Warm(get_stats, **{"limit": 1})
    yield Warm(service.not_cached, event.package)  # FAULT unbound-warm
    yield from both(event)


@rules.on(Ingested)
def forgetful(event):
    Invalidate(tags=[f"package:{event.package}"])  # FAULT not-yielded
    if event.nothing:  # FAULT unknown-field
        yield Warm(get_stats)


@rules.on(UserMoved)
def moved(event):
    if event.address is not None and event.address.street:  # FAULT unknown-field
        return None
    if hasattr(event, "later") and event.later:
        return Warm(get_stats)
    return [Invalidate(tags=[f"user:{user_id}" for user_id in (event.user_id,)]), Warm.hot("user")]


@rules.on(UserMoved)
def imported_late(event):
    return Warm(service.Repository.find, "x", "y")  # FAULT unimportable-warm


@rules.on(UserMoved)
def not_a_namespace(event):
    return Invalidate(namespaces=[f"user {event.user_id}"])  # FAULT failing-rule, unread-namespace


names = {True: "session:{}", False: "visit:{}"}


@rules.on("user.moved")  # FAULT unread-tag
def looked_up(event):
    return Invalidate(tags=[names[event.address is None].format(event.user_id)])


rules.map("order.paid", tags=["session:{session_id}", "basket:{session_id}"])  # FAULT unread-tag
rules.map("user.movd", namespaces=["teams"])  # FAULT unpublished-type
rules.map("public.users.updated", namespaces=["teams"])
rules.map("from.afar", namespaces=["teams"])  # tidings: ignore[unpublished-type, unread-tag]
rules.schedule(Warm.hot("explored"), minute=0)  # FAULT unread-namespace
"""

TOML = """
[[rule]]
on = "ingested"
namespaces = ["explorer"]
tags = [
  "package:{package}",
  "module:{package}",  # FAULT unread-tag
]

[[rule]]  # FAULT unpublished-type
on = "order.refunded"
namespaces = ["explorer"]

[[rule]]
on = "order.returned"  # tidings: ignore[unpublished-type]
namespaces = ["explorer"]
"""

FILES = {"service.py": SERVICE, "rules.py": RULES, "more.toml": TOML}


def planted(files):
    """Return what is planted: file, line and code."""
    found = set()
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            codes = re.search(r"# FAULT (.*)", line)
            found |= {(name, number, code) for code in codes[1].split(", ")} if codes else set()
    return found


def named(ran):
    """Return what was found: file, line and code."""
    return {(row["file"], row["line"], row["code"]) for row in json.loads(ran.out)["findings"]}


@pytest.fixture(scope="module")
def forks(shell_of_module):
    return Forks(shell_of_module)


@pytest.fixture
def lint(forks):
    """Run ``tidings lint`` in a folder with these files."""

    def run(files, *arguments, **variables):
        return forks.run("lint", *arguments, folder=forks.new_folder(files), **variables)

    return run


def test_every_planted_fault_is_named_with_file_and_line_and_nothing_else(lint):
    ran = lint(FILES, "rules:rules", "more.toml", "--json")
    assert named(ran) == planted(FILES), ran.err
    assert (ran.code, ran.err) == (1, "")
    assert {code for _, _, code in planted(FILES)} == set(CODES) - {"no-readers"}, "every fault is planted"
    assert [row["message"] for row in json.loads(ran.out)["notes"]] == [
        "'public.users.updated' may be the change of a table, which no code here publishes"
    ]


def test_a_line_for_each_finding_that_editors_understand_and_a_summary_apart(lint):
    ran = lint(FILES, "rules:rules", "more.toml")
    lines = ran.out.splitlines()
    assert all(re.fullmatch(r"(service\.py|rules\.py|more\.toml):\d+: [a-z-]+ .+", line) for line in lines)
    places = [(file, int(number)) for file, number, _ in (line.split(":", 2) for line in lines)]
    assert places == sorted(places)
    assert ran.err == "24 findings in 13 rules, 8 cached functions; 1 cannot be told, see --verbose\n"


def test_a_comment_on_the_line_silences_a_finding(lint):
    files = {name: re.sub(r"# FAULT (.*)", r"# tidings: ignore[\1]", text) for name, text in FILES.items()}
    ran = lint(files, "rules:rules", "more.toml", "--json")
    assert (ran.code, json.loads(ran.out)["findings"]) == (0, [])


def test_an_option_silences_all_findings_of_a_code(lint):
    ran = lint(FILES, "rules:rules", "--ignore", "unread-tag", "--ignore", "unbound-warm", "--json")
    left = {(f, n, code) for f, n, code in planted(FILES) if f != "more.toml"}
    assert named(ran) == {row for row in left if row[2] not in {"unread-tag", "unbound-warm"}}
    ran = lint(FILES, "rules:rules", "--ignore", "unread-tags")
    assert (ran.code, ran.out) == (2, "")
    assert "'unread-tags'" in ran.err
    assert "unread-tag," in ran.err


# A project in which nothing is wrong, written in every way that there is

FINE_SERVICE = """
from functools import wraps
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field
from tidings import Cache, Event, cached, get_cache, resource


class Team(BaseModel):
    name: str


class Base(Event):
    tenant: str = "main"

    @property
    def label(self) -> str:
        return f"tenant:{self.tenant}"


class Changed(Base, type="fine.changed"):
    user_id: int = Field(alias="userId")
    kind: Literal["user", "team"] = "user"
    team: Team | None = None
    teams: list[str] = []


class Untold(Event, type="fine.untold"): ...


def make(kind: str):
    @cached(namespace=f"made-{kind}", tags=[kind + ":{number}"])
    async def load(number: int) -> int:
        return number
    return load


loaders = [make("user"), make("team")]


class Proxy:
    @property
    def __class__(self):
        raise RuntimeError("outside of a request")

    def __getattr__(self, name):
        raise RuntimeError("outside of a request")


request = Proxy()


def asking():
    request.invalidate(request.get_or_set("x", tags=request.tags))
    return request.of("x"), request.cache.set("a", tags=["proxied"])


def late():
    @cached(namespace="late", tags=["late:{x}"])
    def f(x: int) -> int: ...
    return f


def tags_of(tenant, **_):
    found = set()
    found.add(f"tenant:{tenant}")
    if tenant:
        found |= {f"plan:{part}" for part in tenant}
    return sorted(found)


class Repository:
    @cached(namespace="repository", tags=["tenant:{tenant}"])
    async def find(self, tenant: str) -> str: ...

    @cached(namespace="repository", key="{self.name}:{tenant}", tags=tags_of)
    def other(self, tenant: str) -> str: ...

    @cached(namespace="classes", tags=["class:{x}"])
    @classmethod
    async def of_class(cls, x: int) -> str: ...

    @staticmethod
    @cached(namespace="static")
    async def of_nothing(x: int, /, *rest: int, named: int = 1, **more: int) -> str: ...


member = resource("member", "team_id", "user_id")


class Members:
    @member.cache_read(tags=lambda team_id, user_id: [f"team:{team_id}"])
    async def read(self, team_id: int, user_id: int) -> str: ...

    @member.cache_write(tags=["members"])
    async def write(self, team_id: int, user_id: int) -> None: ...


@cached(namespace="written", tags=["members"])
async def all_members() -> list[str]: ...


@cached(namespace="results", result_tags=lambda found: (f"row:{row}" for row in found))
async def rows() -> list[str]: ...


async def many(cache: Cache, keys: list[str]) -> None:
    await cache.get_or_set_many(keys, many, tags=lambda key: [f"key:{key}"], namespace="keys")
    await cache.set("x", 1, tags=["set:x"])
    await cache.invalidate_tags(*[f"direct:{key}" for key in keys])


@cached(namespace="direct", tags=["direct:{x}"])
async def direct(x: int) -> int: ...


def publishing():
    from tidings import Event
    return Event.of("fine.inside", {})


def by_hand(client) -> None:
    client.xadd("events", {"type": "fine.by_hand", "data": "{}"})
"""

FINE_RULES = """
from functools import partial, wraps

import service
from service import Changed, Repository, Untold
from tidings_worker import Invalidate, Rules, Warm
import tidings_worker as worker

rules = Rules()
TAGS = ("row:{}", "key:{}")


@rules.on(Changed)
def every_way(event):
    yield Invalidate(tags=[event.label, f"{event.kind}:{event.user_id}", f"plan:{event.tenant[0]}"])
    yield worker.Invalidate(tags=[tag.format(event.user_id) for tag in TAGS])
    if event.team:
        yield Invalidate(tags=(f"team:{event.team.name}", *(f"team:{name}" for name in event.teams)))
    if event.envelope is not None and event.envelope.subject:
        yield Invalidate(namespaces=["late", event.model_dump()["kind"] and "results"])
    arguments = {"named": 2}
    yield Warm(Repository.of_nothing, event.user_id, 1, 2, **arguments, other=3)
    yield Warm(service.all_members)


class Maker:
    def rule(self, event):
        return [Invalidate(tags=[f"class:{event.user_id}"])]

    def __call__(self, event):
        yield Invalidate(namespaces=["direct"])


def with_more(more, event):
    return Invalidate(tags=[f"{more}:{event.user_id}"])


def logged(rule):
    @wraps(rule)
    def inner(event):
        return rule(event)
    return inner


@rules.on("fine.changed")
@logged
def decorated(event):
    yield Invalidate(namespaces=["static"])


def made(kind):
    def rule(event):
        yield Invalidate(tags=[f"{kind}:{event.user_id}"])
    return rule


def for_rows(event):
    return {Invalidate(tags={"set:x"})}


@rules.on(Changed)
@rules.on(Untold)
def of_both(event):
    if event.event_type == "fine.changed" and event.user_id:
        return Invalidate(namespaces=["made-user"])


@rules.on(Changed)
@rules.on("fine.by_hand")
def of_either(event):
    if isinstance(event, Changed):
        return Invalidate(namespaces=["made-user"])
    return Invalidate(tags=[f"user:{event.number}"])


rules.on(Changed)(Maker().rule)
rules.on(Changed)(Maker())
rules.on(Changed)(partial(with_more, "late"))
for kind in ("user", "team"):
    rules.on(Changed)(made(kind))
rules.on(Untold)(lambda _: None); rules.on("fine.inside")(lambda event: Invalidate(namespaces=["repository"]))
rules.on("fine.by_hand")(lambda event: [*for_rows(event), Warm.hot("keys")])
rules.schedule(Warm.hot("results"), minute=0)
"""


def test_nothing_is_found_in_a_project_in_which_nothing_is_wrong(lint):
    ran = lint({"service.py": FINE_SERVICE, "rules.py": FINE_RULES}, "rules:rules", "--verbose")
    assert (ran.code, ran.out) == (0, ""), ran.out
    assert ran.err == "no findings in 14 rules, 10 cached functions\n"


# The demo, and a broken copy of it

DEMO = Path(tidings_worker.demo.__file__).parent

BREAKS = {
    "unread-tag": ("rules.py", 'f"package:{event.package}"', 'f"packages:{event.package}"'),
    "unbound-warm": ("rules.py", "package=event.package, as_of=event.as_of)", "package=event.package)"),
    "unruled-event": ("service.py", "class TreeNode", 'class Gone(Event, type="gone"): ...\n\n\nclass TreeNode'),
    "not-yielded": ("rules.py", "yield Invalidate(", "Invalidate("),
    "unknown-field": ("rules.py", "as_of=event.as_of", "as_of=event.day"),
    "uninvalidated-reader": ("service.py", "{package}", "{package}:{as_of}"),
}


def test_the_demo_has_nothing_wrong(lint):
    ran = lint({}, "tidings_worker.demo.rules:rules", "--module", "tidings_worker.demo", "--verbose")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "no findings in 1 rule, 1 cached function\n"


@pytest.mark.parametrize(
    ("planted", "following"),
    [
        (["unread-tag", "unbound-warm", "unruled-event"], {"uninvalidated-reader"}),
        (["not-yielded", "unknown-field", "uninvalidated-reader"], set()),
    ],
    ids=["one", "other"],
)
def test_a_broken_copy_of_the_demo_is_told_by_file_and_line(planted, following, lint):
    names = ("__init__.py", "rules.py", "service.py", "catalog.py", "source.py")
    files = {f"broken/{name}": (DEMO / name).read_text() for name in names}
    expected = set()
    for code in planted:
        name, old, new = BREAKS[code]
        text = files[f"broken/{name}"]
        assert text.count(old) == 1
        expected.add((f"broken/{name}", text[: text.index(old)].count("\n") + 1, code))
        files[f"broken/{name}"] = text.replace(old, new)
    ran = lint(files, "broken.rules:rules", "--json")
    assert expected <= named(ran)
    assert {code for _, _, code in named(ran)} == {*planted, *following}
    assert ran.code == 1


# What is looked at

READ = "def read(id: int) -> int: ...\n"
EMPTY = "from tidings_worker import Rules\nrules = Rules()\n"


def test_modules_that_rules_do_not_import_are_named(lint):
    files = {
        "rules.py": f"{EMPTY}rules.map('user.updated', tags=['user:{{id}}'])\n",
        "service/__init__.py": "",
        "service/__main__.py": "raise SystemExit('run')\n",
        "service/inner/__init__.py": f"from tidings import cached\n@cached(tags=['user:{{id}}'])\n{READ}",
        "service/publishing.py": "from tidings import Event\nEvent.of('user.updated', {})\n",
    }
    alone = lint(files, "rules:rules", "--json")
    assert named(alone) == {("rules.py", 1, "no-readers"), ("rules.py", 3, "unpublished-type")}
    ran = lint(files, "rules:rules", "--module", "service")
    assert (ran.code, ran.out, ran.err) == (0, "", "no findings in 1 rule, 1 cached function\n")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere:rules"], "nowhere"),
        (["rules"], "MODULE:RULES"),
        (["rules:rules", "--module", "nowhere"], "nowhere"),
        (["missing.toml"], "missing.toml"),
    ],
    ids=["module", "name", "other module", "file"],
)
def test_rules_that_cannot_be_loaded_are_one_message(lint, arguments, word):
    ran = lint({"rules.py": EMPTY}, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert word in ran.err
    assert "Traceback" not in ran.err


def test_a_server_knows_types_that_the_code_does_not_name(lint, url, client):
    client.xadd("events", {"type": "lint.foreign"})
    client.xadd("events", {"no": "event"})
    client.hset("events:counts", mapping={"unruled:lint.nobody": 3, "unruled:lint.foreign": 1, "unruled": 4})
    files = {"rules.py": f"{EMPTY}rules.map('lint.foreign', namespaces=['x'])\n"}
    ran = lint(files, "rules:rules", "--server", "--json", "--ignore", "no-readers", TIDINGS_URL=url)
    (found,) = json.loads(ran.out)["findings"]
    assert (found["file"], found["line"], found["code"]) == ("rules.py", 1, "unruled-event")
    assert "'lint.nobody'" in found["message"]


def test_of_the_readme_only_what_it_leaves_out_is_found(lint):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    beside, rules = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    column = beside.index("# ingest.py")
    files = {
        "explorer.py": "\n".join(line[:column].rstrip() for line in beside.splitlines()),
        "ingest.py": "\n".join(line[column:] for line in beside.splitlines()),
        "rules.py": rules,
    }
    ran = lint(files, "rules:rules", "--json")
    expected = {"unread-namespace": "'stats'", "unread-tag": "'user:{}'", "unpublished-type": "'user.updated'"}
    found = {row["code"]: row["message"] for row in json.loads(ran.out)["findings"]}
    assert found.keys() == expected.keys()
    assert all(word in found[code] for code, word in expected.items())


def test_its_page_has_every_code_and_an_example_in_which_nothing_is_wrong(lint):
    page = (Path(__file__).parents[2] / "docs" / "lint.md").read_text()
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", page, re.MULTILINE)) == CODES
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ran = lint({"rules.py": example}, "rules:rules")
    assert (ran.code, ran.out) == (0, "")
    ran = lint({"rules.py": example.replace("# tidings: ignore", "#")}, "rules:rules", "--json")
    assert {code for _, _, code in named(ran)} == {"unpublished-type"}


# Shapes


def shape(text):
    return Shape.of_template(parse(text, None, "a test"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("user:{a}", "user:{b}", True),
        ("user:{a}", "users:{b}", False),
        ("user:{a}", "user:42", True),
        ("user:{a}", "user:42:profile", True),  # the name itself: an id may have colons
        ("user:{a}", "user:{b}:profile", False),
        ("{kind}:{id}", "user:{b}", True),
        ("{tag}", "user:{b}:profile", True),
        ("v{a}", "v1", True),
        ("v{a}", "w1", False),
        ("user:{a}-{b}", "user:{c}", True),
        ("{a}:x", "y:{b}", True),
        ("{a}:x", "{b}:y", False),
        ("all", "all", True),
        ("all", "al", False),
    ],
)
def test_shapes_meet_when_some_name_has_both(one, other, expected):
    assert meet(shape(one), shape(other)) is expected
    assert meet(shape(other), shape(one)) is expected


def test_an_empty_name_has_a_shape_too():
    assert meet(Shape.of([""]), Shape.of([""]))
    assert not meet(Shape.of([""]), shape("user:{a}"))


def test_shapes_of_many_holes_are_compared_in_no_time():
    assert not meet(shape("{a}" * 40 + "x"), shape("{b}" * 40 + "y"))


# What code says

WORDS = ["a", "b"]
KIND = "user"


class Kind(Enum):
    USER = "user"


def user_tag(user_id: int) -> str:
    return f"user:{user_id}"


def more_tags(event):
    yield user_tag(event.id)
    yield from [f"team:{event.team}"]


READABLE = {
    '["all"]': ["all"],
    '(f"user:{event.id}",)': ["user:{}"],
    '["user:" + str(event.id), "user:%s" % event.id, "user:{}".format(event.id)]': ["user:{}"] * 3,
    '["{0}:{id:>3}".format(1, id=2)]': ["{}:{}"],
    '[":".join(("user", str(event.id)))]': ["user:{}"],
    '[f"{KIND}:{event.id}"]': ["user:{}"],
    '[f"user:{event.id:03d}"]': ["user:{}"],
    "[user_tag(event.id)]": ["user:{}"],
    '[f"a:{i}" for i in event.ids]': ["a:{}"],
    'sorted({f"a:{i}" for i in event.ids})': ["a:{}"],
    '[f"{kind}:{event.id}" for kind in ("user", "team")]': ["user:{}", "team:{}"],
    '["a"] + [f"b:{event.id}"]': ["a", "b:{}"],
    '["a", *more_tags(event)]': ["a", "user:{}", "team:{}"],
    '["a"] if event.id else ["b", "c" if event.id else "d"]': ["a", "b", "c", "d"],
    "WORDS": ["a", "b"],
    "more_tags(event)": ["user:{}", "team:{}"],
}

UNREADABLE = ["event.tags", "[event.tag]", 'json.loads("[]")', "[*event.tags]", "list(event.tags)", "[str(event.id)]"]


def read(code):
    node = ast.parse(f"lambda event: {code}", mode="eval").body
    return texts(node.body, Scope(globals(), node))


@pytest.mark.parametrize("code", READABLE)
def test_tags_are_read_from_code(code):
    found = read(code)
    assert [str(text.shape) for text in found.found] == READABLE[code]
    assert found.complete


@pytest.mark.parametrize("code", UNREADABLE)
def test_code_that_does_not_say_its_tags_is_known_to_have_others(code):
    assert not read(code).complete


def test_what_can_be_read_of_code_is_known_beside_what_cannot():
    found = read('["a", event.tag, f"b:{event.id}"]')
    assert ([str(text.shape) for text in found.found], found.complete) == (["a", "b:{}"], False)


def by_names(event):
    found = ["first"]
    last = "last" if event.id else "end"
    found.append(f"user:{event.id}")
    found += ["more"]
    if event.team:
        found.extend(f"team:{team}" for team in event.teams)
    return [*found, last]


def by_a_loop(event):
    for kind, team in event.pairs:
        yield f"{kind}:{team}"
    for word in ["x", "y"]:  # noqa: UP028 read as it stands
        yield word


def of_itself(event):
    return of_itself(event)


def test_local_names_are_followed():
    found = texts_of_function(by_names)
    assert {str(text.shape) for text in found.found} == {"first", "user:{}", "more", "team:{}", "last", "end"}
    assert found.complete


def test_loops_over_literals_are_followed_and_others_are_holes():
    found = texts_of_function(by_a_loop)
    assert {str(text.shape) for text in found.found} == {"{}:{}", "x", "y"}
    assert found.complete


class Tags:
    @classmethod
    def of(cls, event):
        return [cls.team(event)]

    @staticmethod
    def team(event):
        return f"team:{event.team}"

    @classmethod
    def user(cls, event):
        return f"user:{event.id}"


def test_helpers_in_a_class_are_followed():
    found = read("[Tags.user(event), Tags.team(event)]")
    assert ([str(text.shape) for text in found.found], found.complete) == (["user:{}", "team:{}"], True)


def endless(event):
    while True:
        yield Invalidate(tags=[f"user:{event.number}"])


class Asked(Event, type="lint.asked"):
    number: int


def test_a_rule_that_never_ends_is_found_and_holds_nothing_up(monkeypatch):
    monkeypatch.setattr("tidings_worker.lint.trial.LONGEST", 0.05)
    rules = Rules()
    rules.on(Asked)(endless)
    (found,) = [one for one in lint_of(rules, []).found if one.code == "failing-rule"]
    assert "does not end within 0.05 s" in found.message
    first = endless.__code__.co_firstlineno
    assert found.spot.place.line in range(first, first + 3)


class ByKind:
    def __call__(self, event):
        return Invalidate(tags=[f"kind:{event.number}"])


def test_a_tag_that_is_known_by_example_may_be_any_of_its_kind():
    rules = Rules()
    rules.on(Asked)(ByKind())
    registered = rules.registered[0]
    facts = RuleFacts(registered, spot_of_rule(registered), read_rule(registered), try_out(registered))
    assert [str(text.shape) for text in facts.tags] == ["kind:{}"]


def test_a_function_that_calls_itself_ends():
    assert not texts_of_function(of_itself).complete


# Example events


class Plan(Enum):
    FREE = 1
    PAID = 2


class Inner(BaseModel):
    word: Literal["a", "b"]


class Everything(Event, type="lint.everything"):
    number: Annotated[int, Field(gt=500)]
    text: Annotated[str, Field(pattern=r"^\d+$")]
    flag: bool
    maybe: str | None = None
    plan: Plan
    inner: Inner
    days: list[date]
    at: datetime
    by_name: dict[str, int]
    pair: tuple[int, str]
    uuid: UUID


class Impossible(Event, type="lint.impossible"):
    text: Annotated[str, Field(pattern="^only this$")]


def test_examples_have_every_member_both_booleans_and_none():
    made = examples(Everything)
    assert {event.plan for event in made} == set(Plan)
    assert {event.flag for event in made} == {True, False}
    assert {event.inner.word for event in made} == {"a", "b"}
    assert {event.maybe is None for event in made} == {True, False}
    assert {bool(event.days) for event in made} == {True, False}
    assert len(made) < 60


def test_a_class_whose_values_cannot_be_thought_of_has_no_examples():
    assert examples(Impossible) == []
