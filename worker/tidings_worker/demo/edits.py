"""Real edits to a copy of a package: each round adds a function, renames another and removes a third."""

import re
import tokenize
from pathlib import Path

from .source import AnyFunction, Source, definitions


def edit(source: Source, number: int) -> list[str]:
    """Edit the files of a copy and say what changed, one line an edit: ``~ json.decoder.py_scanstring -> …``.

    Another `number` makes other edits; the added function is never there twice.
    """
    everything = [(file, name, node) for file in source.files for name, node in definitions(file)]
    found = [item for item in everything if not item[1].endswith("__")] or everything
    position = number * 7 % len(found)  # another function each round, and the removed one half a package away
    file, name, node = found[position]
    changes = [f"~ {source.module(file)}.{name} -> {_rename(file, node, number)}"]
    if len(found) > 1:  # the first edit moves no lines, so the second finds its function where it was
        other_file, other_name, other = found[(position + len(found) // 2) % len(found)]
        changes.append(f"- {source.module(other_file)}.{other_name}")
        _remove(other_file, other)
    added = f"added_in_round_{number}"
    with source.files[0].open("a") as text:
        text.write(f"\n\ndef {added}():\n    return {number}\n")
    return [f"+ {source.module(source.files[0])}.{added}", *changes]


def _rename(file: Path, node: AnyFunction, number: int) -> str:
    lines, encoding = _read(file)
    name = f"{node.name}_{number}"
    line = lines[node.lineno - 1]
    lines[node.lineno - 1] = re.sub(rf"\bdef(\s+){re.escape(node.name)}\b", rf"def\g<1>{name}", line, count=1)
    _write(file, lines, encoding)
    return name


def _remove(file: Path, node: AnyFunction) -> None:
    """Put ``pass`` in its place: it may be all that its class holds."""
    lines, encoding = _read(file)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines[first - 1 : node.end_lineno] = [" " * node.col_offset + "pass"]
    _write(file, lines, encoding)


def _read(file: Path) -> tuple[list[str], str]:
    """Return lines as the parser counts them: a form feed, which `splitlines` would split at, ends none."""
    with tokenize.open(file) as text:
        return text.read().split("\n"), text.encoding


def _write(file: Path, lines: list[str], encoding: str) -> None:
    file.write_text("\n".join(lines), encoding=encoding)
