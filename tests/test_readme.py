"""What the README shows works as it stands there."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tidings
from tidings_worker import Warm

README = (Path(__file__).parent.parent / "README.md").read_text()
SIDE_BY_SIDE, RULES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SECOND_COLUMN = SIDE_BY_SIDE.index("# ingest.py")


def test_it_stays_short():
    assert len(README.splitlines()) < 120


@pytest.fixture
def modules(tmp_path, monkeypatch):
    lines = SIDE_BY_SIDE.splitlines()
    (tmp_path / "explorer.py").write_text("\n".join(line[:SECOND_COLUMN].rstrip() for line in lines))
    (tmp_path / "ingest.py").write_text("\n".join(line[SECOND_COLUMN:] for line in lines))
    (tmp_path / "rules.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("explorer", "ingest", "rules"):
        sys.modules.pop(name, None)


async def test_its_code_imports_and_its_rules_do_what_they_say(modules):
    explorer, ingest, rules = map(import_module, ("explorer", "ingest", "rules"))
    rules.rules.check()
    event = ingest.IngestionCompleted(package="json", as_of="2026-11-20")
    plan = rules.rules.simulate(event)
    assert (plan.namespaces, plan.tags) == ({"stats"}, {"package:json"})
    assert plan.warms == (Warm(explorer.get_function_tree, "json", event.as_of),)
    assert rules.rules.simulate(tidings.Event.of("user.updated", {"user_id": 42})).tags == {"user:42"}


@pytest.mark.parametrize("module", re.findall(r"`(\w+)`", README.partition("## The life")[2].partition("## What")[0]))
def test_the_modules_that_it_names_are_there(module):
    root = Path(__file__).parent.parent
    names = {path.stem for path in (*root.glob("shared/tidings/*.py"), *root.glob("worker/tidings_worker/*.py"))}
    assert module in names | {"publish", "events"}
