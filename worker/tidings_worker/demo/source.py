"""The functions of a standard library package, read from its source files without importing it."""

import ast
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from tidings.errors import ConfigurationError

from . import PACKAGES

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, order=True)
class Function:
    """A function or method, by its full module name, its name in the module, and the line of its ``def``."""

    module: str
    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Source:
    """The source of one package: a folder, or one file for a package that is a single module."""

    package: str
    root: Path

    @property
    def files(self) -> list[Path]:
        """Every Python file, in a fixed order."""
        return [self.root] if self.root.is_file() else sorted(self.root.rglob("*.py"))

    def module(self, file: Path) -> str:
        """Return the full name of the module in a file: ``json.decoder``."""
        parts = file.relative_to(self.root.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def functions(self) -> list[Function]:
        """Parse every file. Raises ConfigurationError when there is no function."""
        found = [
            Function(self.module(file), name, node.lineno) for file in self.files for name, node in definitions(file)
        ]
        if not found:
            raise ConfigurationError(f"{self.package} has no functions to index; {_cure()}")
        return found

    def copy_to(self, folder: Path) -> "Source":
        """Copy the files, writable, into a new folder."""
        for file in self.files:
            target = folder / file.relative_to(self.root.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        return Source(self.package, folder / self.root.name)


def find(package: str) -> Source:
    """Return the source of a package of the running Python's standard library; ConfigurationError if it has none."""
    if package not in sys.stdlib_module_names:
        raise ConfigurationError(f"{package!r} is not in Python's standard library; {_cure()}")
    # Looked up in the library's own folder, so that a json.py in the current one does not pass for it.
    spec = PathFinder.find_spec(package, [sysconfig.get_path("stdlib")])
    origin = Path(spec.origin) if spec is not None and spec.origin is not None else None
    if origin is None or origin.suffix != ".py":
        raise ConfigurationError(f"{package} has no Python source here, it is compiled; {_cure()}")
    return Source(package, origin.parent if origin.name == "__init__.py" else origin)


def definitions(file: Path) -> Iterator[tuple[str, AnyFunction]]:
    """Yield functions and methods with their names in the module; what a function defines inside itself is its own."""
    try:
        with tokenize.open(file) as text:
            module = ast.parse(text.read())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} does not parse: {error}; {_cure()}") from None
    yield from _inside(module, "")


def _inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, AnyFunction]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, AnyFunction):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _inside(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _inside(child, prefix)


def _cure() -> str:
    return f"choose others, as in --packages {','.join(PACKAGES)}"
