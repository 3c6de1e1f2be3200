"""A TOML file that people write: read, with the line of everything in it, and every problem of it at once."""

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tidings.errors import ConfigurationError

from tidings_worker.importing import nearest
from tidings_worker.places import Place

from .lines import Path as TomlPath
from .lines import Position, positions

_WHERE = re.compile(r" \(at line (\d+), column (\d+)\)$| \(at end of document\)$")


class Problem(NamedTuple):
    """What is wrong in a file, where (line and column from 1), and what to do about it."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


class FileError(ConfigurationError):
    """A file, or several, that cannot be used; `problems` are all that is wrong, in the order of the lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


class TomlFile:
    """A document and its lines; `problem` notes what is wrong, and `check` raises it all.

    Raises FileError for a file that cannot be read, or is no TOML.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._problems: list[Problem] = []
        text = self._text()
        try:
            self.document = tomllib.loads(text)
            self._positions = positions(text)
        except tomllib.TOMLDecodeError as error:
            raise self._not_toml(str(error), text) from None
        except RecursionError:
            raise FileError([Problem(name, 1, 1, "not TOML that can be read: it is nested too deeply")]) from None
        except ValueError as error:  # a number of more digits than Python reads
            raise FileError([Problem(name, 1, 1, f"not TOML that can be read: {error}")]) from None

    def place(self, path: TomlPath) -> Place:
        """Return where a key, or what it holds, stands."""
        return Place(self.name, self._position(path).line)

    def problem(self, path: TomlPath, text: str) -> None:
        """Note what is wrong with a key, a table or an element."""
        self._problems.append(Problem(self.name, *self._position(path), text))

    @property
    def problems(self) -> int:
        """How many have been noted."""
        return len(self._problems)

    def check(self) -> None:
        """Raise FileError for what has been noted, if anything."""
        if self._problems:
            raise FileError(self._problems)

    def keys(self, path: TomlPath, table: Mapping[str, Any], known: Collection[str]) -> None:
        """Note the keys of a table that are not among the known ones."""
        for key in table:
            if key not in known:
                self.problem((*path, key), f"unknown key {key!r}; {nearest(key, known)}")

    def tables(self, key: str) -> list[tuple[TomlPath, dict[str, Any]]]:
        """Return the tables of the list that the document has under a key, each with its path."""
        given = self.document.get(key, [])
        if isinstance(given, list) and all(isinstance(table, dict) for table in given):
            return [((key, index), table) for index, table in enumerate(given)]
        self.problem((key,), f"{key!r} is a list of tables: write [[{key}]] above each of them")
        return []

    def texts(self, path: TomlPath, given: Any) -> list[tuple[TomlPath, str]]:
        """Return the texts of a list, each with its path; what is no text is noted."""
        found = []
        for element, value in self.elements(path, given):
            if isinstance(value, str):
                found.append((element, value))
            else:
                self.problem(element, f"{written(value)} is not a text; write it in quotes")
        return found

    def elements(self, path: TomlPath, given: Any) -> list[tuple[TomlPath, Any]]:
        """Return the elements of a list, each with its path; note what is none."""
        if isinstance(given, list):
            return [((*path, index), value) for index, value in enumerate(given)]
        shown = '"…"' if isinstance(given, dict) else written(given)
        self.problem(path, f"{written(given)} where a list belongs; write {path[-1]} = [{shown}]")
        return []

    def _position(self, path: TomlPath) -> Position:
        while path not in self._positions and path:
            path = path[:-1]
        return self._positions.get(path, Position(1, 1))

    def _text(self) -> str:
        try:
            content = Path(self.name).read_bytes()
        except OSError as error:
            raise FileError([Problem(self.name, 1, 1, f"cannot be read: {error.strerror}")]) from None
        try:
            return content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode()
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            raise FileError([Problem(self.name, line, column, "not UTF-8 text; save the file as UTF-8")]) from None

    def _not_toml(self, said: str, text: str) -> FileError:
        where = _WHERE.search(said)
        lines = text.split("\n")
        line, column = len(lines), len(lines[-1]) + 1
        if where is not None and where[1]:
            line, column = int(where[1]), int(where[2])
        return FileError([Problem(self.name, line, column, f"not TOML: {_WHERE.sub('', said)}")])


def written(value: Any) -> str:
    """Return a value as a TOML file has it, as far as a message needs it."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value:.100}"'
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            return str(value)
