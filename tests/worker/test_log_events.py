"""The table of log events is part of the interface: it has what the code emits, at the level that it says."""

import re
from pathlib import Path

import tidings_worker.telemetry

PACKAGE = Path(tidings_worker.__file__).parent
EMITTED = re.compile(r'log\.(info|warning|error)\(\s*"(\w+)"')
ROW = re.compile(r"^\| ``(\w+)`` \| (\w+) \|", re.MULTILINE)


def test_every_log_event_of_the_worker_is_in_the_table_with_its_level():
    sources = [path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts]
    emitted = {name: level for path in sources for level, name in EMITTED.findall(path.read_text())}
    described = dict(ROW.findall(tidings_worker.telemetry.__doc__))
    assert described == emitted
