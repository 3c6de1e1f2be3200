"""Decorated functions keep their signatures and wrong options are errors, for those who use ``mypy --strict``."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
USAGE = Path(__file__).with_name("typing_usage.py")


def check(*files: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy with the settings of a strict user, not with this repository's."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--warn-unused-ignores",
        "--config-file=",
        "--no-error-summary",
    ]
    return subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_what_a_service_writes_is_checked_and_its_mistakes_are_errors():
    checked = check(USAGE)
    assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)


def test_a_function_that_lost_its_signature_would_be_noticed(tmp_path):
    """The same file with a decorator of unknown type must fail: its ignores are unused then."""
    lost = tmp_path / "lost.py"
    text = USAGE.read_text(encoding="utf-8")
    erased = text.replace("cached\n", "configure\nfrom typing import Callable\ncached: Callable[..., Any]\n", 1)
    lost.write_text(erased, encoding="utf-8")
    found = check(lost).stdout
    assert found.count("unused-ignore") > 20
