"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tidings
from tidings.cached import CachedOptions
from tidings_worker import Warm
from tidings_worker.settings import WorkerSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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
    names = {path.stem for path in (*ROOT.glob("shared/tidings/*.py"), *ROOT.glob("worker/tidings_worker/*.py"))}
    assert module in names | {"publish", "events"}


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_the_code_on_every_page_of_the_documentation_runs(page, tmp_path):
    """Block after block, as one program, without a warning."""
    program = tmp_path / "page.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)))
    ran = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_documentation_names_every_option():
    options = set(CachedOptions.__annotations__)
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs/reading.md").read_text()))
    assert options - named == {"local_shared"}, "which is named with its value"


def test_the_settings_of_the_worker_are_all_on_its_page():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs" / "worker.md").read_text(), re.MULTILINE)
    fields = WorkerSettings.model_fields.items()
    expected = [(n.upper(), "" if f.default is None else str(f.default), f.description) for n, f in fields]
    assert rows == expected
