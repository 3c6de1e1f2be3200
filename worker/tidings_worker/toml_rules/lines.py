"""Where the keys and values of a TOML document stand, which `tomllib` does not tell. Pure.

Of a document that `tomllib` has read, so that nothing needs to be checked here: what is between the brackets, the
equals signs and the commas is found by its tokens, and the values themselves are `tomllib`'s. (tomlkit keeps what is
around values and not where they are; what it writes again is not the document when tables of two kinds take turns.)
"""

import re
import tomllib
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

#: Keys and indexes from the document's root to a value, as one looks it up in what `tomllib` returns.
Path = tuple[str | int, ...]


class Position(NamedTuple):
    """Line and column, both counted from 1."""

    line: int
    column: int


_TOKEN = re.compile(
    r'''
      (?P<space> [ \t]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<string> """ (?:\\.|[^\\])*? """"{0,2} | \'\'\' .*? \'\'\'\'{0,2} | " (?:\\.|[^"\\])* " | ' [^']* ' )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<word> [^\s\[\]{}=,."'\#]+ )
    ''',
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


def positions(text: str) -> dict[Path, Position]:
    """Return where each key of a valid document stands first, each table of a list, and each element of an array."""
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    found: dict[Path, Position] = {}
    line = 0
    for path, offset in sorted(_Scanner(text).found.items(), key=lambda item: item[1]):
        while line + 1 < len(lines) and lines[line + 1] <= offset:
            line += 1
        found[path] = Position(line + 1, offset - lines[line] + 1)
    return found


class _Scanner:
    """Goes through a document once; `found` are the offsets."""

    def __init__(self, text: str) -> None:
        self.found: dict[Path, int] = {}
        #: how many tables each list of tables has so far
        self._tables: dict[Path, int] = {}
        self._tokens = _tokens(text)
        self._next = next(self._tokens)
        self._document()

    def _document(self) -> None:
        table: Path = ()
        while self._next.kind != "end":
            if self._next.kind == "newline":
                self._take()
            elif self._next.text == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        """Read ``[a.b]`` or ``[[a.b]]``; return the path of the table that begins."""
        offset = self._take().offset
        is_list = self._next.text == "["
        if is_list:
            self._take()
        path: Path = ()
        *above, last = self._key()
        for name, _ in above:
            path = self._entered((*path, name), offset)
        path = (*path, last[0])
        for _ in range(1 + is_list):
            self._take()
        if not is_list:
            self.found.setdefault(path, offset)
            return path
        self.found.setdefault(path, offset)
        index = self._tables.get(path, 0)
        self._tables[path] = index + 1
        self.found[*path, index] = offset
        return (*path, index)

    def _entered(self, path: Path, offset: int) -> Path:
        """Return where a header's part leads: of a list of tables, to the one that was begun last."""
        self.found.setdefault(path, offset)
        return (*path, self._tables[path] - 1) if path in self._tables else path

    def _key(self) -> list[tuple[str, int]]:
        """Read ``a."b c".d``; return the names with their offsets."""
        parts = []
        while True:
            token = self._take()
            parts.append((_name(token), token.offset))
            if self._next.text != ".":
                return parts
            self._take()

    def _pair(self, table: Path) -> None:
        path = table
        for name, offset in self._key():
            path = (*path, name)
            self.found.setdefault(path, offset)
        self._take()  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._next.text == "[":
            self._array(path)
        elif self._next.text == "{":
            self._inline_table(path)
        else:
            while self._next.kind in {"word", "string"} or self._next.text == ".":
                self._take()

    def _array(self, path: Path) -> None:
        self._take()
        for index in count():
            self._skip_newlines()
            if self._next.text == "]":
                break
            self.found[*path, index] = self._next.offset
            self._value((*path, index))
            self._skip_newlines()
            if self._next.text == ",":
                self._take()
        self._take()

    def _inline_table(self, path: Path) -> None:
        self._take()
        while self._next.text != "}":
            self._skip_newlines()  # which TOML 1.1 permits
            if self._next.text == ",":
                self._take()
            elif self._next.text != "}":
                self._pair(path)
        self._take()

    def _skip_newlines(self) -> None:
        while self._next.kind == "newline":
            self._take()

    def _take(self) -> _Token:
        taken, self._next = self._next, next(self._tokens)
        return taken


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        if match.lastgroup and match.lastgroup != "space":
            yield _Token(match.lastgroup, match.group(), match.start())
    while True:
        yield _Token("end", "", len(text))


def _name(token: _Token) -> str:
    """Return the name that a key's part writes."""
    if token.kind != "string":
        return token.text
    name: str = tomllib.loads(f"it = {token.text}")["it"]
    return name
