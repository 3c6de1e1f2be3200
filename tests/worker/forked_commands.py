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
import tidings_worker.commands.keys
import tidings_worker.commands.simulate
import tidings_worker.commands.verify
import tidings_worker.lint.linting

gc.collect()
gc.freeze()  # what is there now need not be gone through, and so copied, by each child

for line in sys.stdin:
    command = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(command["folder"])
        os.environ.update(command["variables"])
        for number, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(command["name"] + "." + name, os.O_RDWR | os.O_CREAT), number)
        sys.stdin = open(0)
        sys.argv = ["tidings", *command["arguments"]]
        tidings_worker.cli.main()
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Forks:
    """A process that runs commands in folders of its shell's."""

    def __init__(self, shell) -> None:
        self.shell = shell
        self._process = shell.start_program(sys.executable, "-c", _FORKS)
        self._run = 0

    def new_folder(self, files):
        """Make a folder with these files: their texts by their paths."""
        self._run += 1
        folder = self.shell.folder / f"project{self._run}"
        folder.mkdir()
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return folder

    def run(self, folder, *arguments, stdin="", **variables):
        """Run ``tidings`` in a folder to its end; give its exit code and what it printed."""
        self._run += 1
        name = str(self.shell.folder / f"run{self._run}")
        with open(f"{name}.in", "w", encoding="utf-8") as given:  # noqa: PTH123
            given.write(stdin)
        command = {"folder": str(folder), "name": name, "arguments": arguments, "variables": variables}
        code = int(self._process.ask(json.dumps(command), timeout=60))
        texts = []
        for kind in ("out", "err"):
            with open(f"{name}.{kind}", encoding="utf-8") as text:  # noqa: PTH123
                texts.append(text.read())
            os.unlink(f"{name}.{kind}")  # noqa: PTH108
        return SimpleNamespace(code=code, out=texts[0], err=texts[1])
