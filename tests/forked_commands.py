"""Commands run as a user runs them, each in a process forked from one that has done the imports."""

import json
import os
import sys
from types import SimpleNamespace

_FORKS = """
import gc
import json
import os
import sys

import tidings_worker.cli
from typer.main import get_command

group = get_command(tidings_worker.cli.app)
for name in group.list_commands(None):
    group.get_command(None, name)  # which imports it
gc.freeze()  # what is here is not looked through, and so copied, when a child ends

for line in sys.stdin:
    command = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(command["folder"])
        os.environ.update(command["variables"])
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(command["name"] + "." + name, os.O_RDWR | os.O_CREAT), number)
        sys.stdin = open(0)
        sys.argv = ["tidings", *map(os.fsdecode, map(bytes.fromhex, command["arguments"]))]
        tidings_worker.cli.main()
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Forks:
    """Runs commands, each in a process of its own, in the folder of a shell unless told otherwise."""

    def __init__(self, shell):
        self.folder = shell.folder
        self._parent = shell.start_program(sys.executable, "-c", _FORKS)
        self._started = 0

    def new_folder(self, files):
        """Make a folder with these files: their texts by their paths."""
        self._started += 1
        folder = self.folder / f"project{self._started}"
        folder.mkdir()
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder

    def run(self, *arguments, stdin=b"", folder=None, **variables):
        """Run ``tidings`` to its end; give its exit code and what it printed."""
        self._started += 1
        files = self.folder / f".fork{self._started}"
        given, out, err = (files.with_suffix(f".{kind}") for kind in ("in", "out", "err"))
        given.write_bytes(stdin)
        command = {
            "name": str(files),
            "arguments": [os.fsencode(argument).hex() for argument in arguments],
            "variables": variables,
            "folder": str(folder or self.folder),
        }
        code = int(self._parent.ask(json.dumps(command), timeout=60))
        return SimpleNamespace(code=code, out=out.read_text(), err=err.read_text())
