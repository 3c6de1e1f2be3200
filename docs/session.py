"""Play the session of a page in real terminals, and write what they show into the page.

    uv run python docs/session.py              # docs/operations.md anew
    uv run python docs/session.py --check      # exit 1 if it would show something else

The page is the script. In a fresh folder, from the top of the page to its end:

- a code block below ``<!-- file: NAME -->`` is written to that file;
- a block below ``<!-- terminal: NAME -->`` is typed into that terminal, one of tmux with 80 columns: its first line,
  behind ``$ ``. What the terminal shows until its next prompt is the rest of the block. A command that stays is waited
  for with ``<!-- terminal: NAME, until: TEXT -->``, and a block that does not begin with ``$ `` has what came since.

Ids that a command names are those of the run before; they are replaced by those that stand in their places now.
"""

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).with_name("operations.md")

#: Where the session takes place, as the page has it, and on what machine.
FOLDER, HOST = "/srv/shop", "shop-1"

_COLUMNS, _ROWS = 80, 60
_PATIENCE_SECONDS = 30.0
_PROMPT = "$ "

_BLOCK = re.compile(r"<!-- (file|terminal): ([^,]*?)(?:, until: (.*?))? -->\n```(\w*)\n(.*?)```", re.DOTALL)
_STREAM_ID = re.compile(r"\b\d{13}-\d+\b")


@dataclass(frozen=True)
class Tmux:
    """A tmux server of its own, in an environment of its own."""

    socket: Path
    environment: dict[str, str]

    def run(self, *command: str | Path) -> str | None:
        """Return what a command of tmux prints; None when it fails, as for a terminal that is gone."""
        whole = ["tmux", "-f", os.devnull, "-S", self.socket, *command]
        ran = subprocess.run(whole, env=self.environment, capture_output=True, text=True, check=False)
        return ran.stdout if ran.returncode == 0 else None


@dataclass
class Terminal:
    """One terminal, with a shell in it."""

    tmux: Tmux
    name: str
    #: lines of it that were recorded
    seen: int = 0

    def type(self, line: str) -> None:
        """Type a line, and Enter."""
        self.tmux.run("send-keys", "-t", self.name, "-l", line)
        self.tmux.run("send-keys", "-t", self.name, "Enter")

    def lines(self) -> list[str] | None:
        """Return everything that it has shown, without the empty rest of the screen; None: it is gone."""
        text = self.tmux.run("capture-pane", "-p", "-t", self.name, "-S", "-")
        return None if text is None else [line.rstrip() for line in text.rstrip().splitlines()]

    def record(self, until: str | None) -> list[str]:
        """Wait for a text among what is new, or for the next prompt; return what is new without that prompt."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            lines = self.lines() or []
            new = lines[self.seen :]
            if until is not None and _squeezed(until) in _squeezed("".join(new)):
                self.seen = len(lines)
                return new
            if until is None and len(new) > 1 and new[-1] == _PROMPT.rstrip():
                self.seen = len(lines) - 1
                return new[:-1]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: no {until or 'prompt'!r} in {new}")
            time.sleep(0.05)

    def end(self) -> None:
        """Interrupt what runs, and wait for the prompt, or for the shell's end where the command has replaced it."""
        self.tmux.run("send-keys", "-t", self.name, "C-c")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (lines := self.lines()) and not lines[-1].endswith(_PROMPT.rstrip()) and time.monotonic() < deadline:
            time.sleep(0.05)


@dataclass
class Session:
    """Terminals in one folder. Use it as `session()` gives it."""

    tmux: Tmux
    folder: Path
    terminals: dict[str, Terminal] = field(default_factory=dict)

    def terminal(self, name: str) -> Terminal:
        """Return a terminal, opened when it is first asked for."""
        if name not in self.terminals:
            shell = f"env PS1={shlex.quote(_PROMPT)} bash --norc --noprofile"
            size = ["-x", str(_COLUMNS), "-y", str(_ROWS)]
            self.tmux.run("new-session", "-d", "-s", name, *size, "-c", self.folder, shell)
            self.terminals[name] = Terminal(self.tmux, name)
            while self.terminals[name].lines() != [_PROMPT.rstrip()]:
                time.sleep(0.02)
        return self.terminals[name]


@contextmanager
def session() -> Iterator[Session]:
    """Open a session in a fresh folder; at the end interrupt what runs in it, and wait until it has ended."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TIDINGS", "REDIS", "TMUX"))}
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        tmux = Tmux(Path(folder, ".tmux"), variables)
        opened = Session(tmux, Path(folder))
        try:
            yield opened
        finally:
            for terminal in opened.terminals.values():
                terminal.end()
            tmux.run("kill-server")


def played(page: str) -> str:
    """Return the page with what its session shows now."""
    before = _distinct(_STREAM_ID.findall(page))
    parts: list[str] = []
    end = 0
    with session() as opened:
        for block in _BLOCK.finditer(page):
            parts.append(page[end : block.start(5)])
            kind, name, until, _, text = block.groups()
            if kind == "file":
                (opened.folder / name).write_text(text)
                parts.append(text)
            else:
                now = _distinct(_STREAM_ID.findall("".join(parts)))
                parts.append(_shown(opened, name, until, text, dict(zip(before, now, strict=False))))
            end = block.end(5)
    return "".join(parts) + page[end:]


def _shown(opened: Session, name: str, until: str | None, text: str, ids: dict[str, str]) -> str:
    """Type a block's command, if it has one, and return what the block has to show."""
    terminal = opened.terminal(name)
    if text.startswith(_PROMPT):
        command = text.splitlines()[0].removeprefix(_PROMPT)
        terminal.type(_STREAM_ID.sub(lambda found: ids.get(found[0], found[0]), command))
    lines = terminal.record(until)
    shown = "\n".join(lines).replace(str(opened.folder), FOLDER).replace(socket.gethostname(), HOST)
    return shown + "\n"


def _distinct(ids: list[str]) -> list[str]:
    return list(dict.fromkeys(ids))


def masked(page: str) -> str:
    """Return a page without what is different each time: ids, times, durations, ports, and where lines break."""
    text = re.sub(rf"({HOST}:)\d+:[0-9a-f]{{8}}", r"\1ID", _squeezed(page))  # a worker's name
    text = re.sub(r"[0-9a-f]{16,}", "ID", text)
    text = re.sub(r"\d+(\.\d+)?", "#", text)
    return re.sub(r"#(?:ms|us|s|min)", "#t", text)


def _squeezed(text: str) -> str:
    """Return a text without white space: where a line breaks depends on the length of what stands in it."""
    return "".join(text.split())


def main() -> None:
    """Play the session; write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Play the session of docs/operations.md.")
    parser.add_argument("--check", action="store_true", help="exit 1 if the page would show something else")
    arguments = parser.parse_args()
    if shutil.which("tmux") is None:
        sys.exit("the session needs tmux")
    page = PAGE.read_text()
    new = played(page)
    if not arguments.check:
        PAGE.write_text(new)
    elif masked(new) != masked(page):
        sys.exit("docs/operations.md shows something else now: uv run python docs/session.py")


if __name__ == "__main__":
    main()
