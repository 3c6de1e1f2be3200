"""Which modules are the project's: those that hold the rules and readers, and not the libraries under them."""

import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .importing import imported

_LIBRARIES = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
_OURS = frozenset({"tidings", "tidings_worker"})


def with_submodules(module: ModuleType) -> Iterator[ModuleType]:
    """Import and yield a module, and what is in its folder if it is a package; a ``__main__`` would run, and is not."""
    yield module
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        if not found.name.endswith(".__main__"):
            yield imported(found.name)


def modules_of(roots: Iterable[str]) -> list[ModuleType]:
    """Return the loaded modules that are the project's, by name.

    Not those of the standard library, nor installed ones, nor tidings' own, unless they are in the package of a root.
    """
    packages = {_package(root) for root in roots}
    loaded: list[tuple[str, Any]] = list(sys.modules.items())  # and what stands in for modules
    real = {name: module for name, module in loaded if issubclass(type(module), ModuleType)}
    return [real[name] for name in sorted(real) if _is_the_projects(name, real[name], packages)]


def _package(root: str) -> str:
    """Return the package by which a root's siblings are known: the outermost, except for what is inside of tidings."""
    first = root.partition(".")[0]
    return root.rpartition(".")[0] or root if first in _OURS else first


def _is_the_projects(name: str, module: ModuleType, packages: set[str]) -> bool:
    if name != module.__name__ or not isinstance(file := vars(module).get("__file__"), str) or not file.endswith(".py"):
        return False
    if any(f"{name}.".startswith(f"{package}.") for package in packages):
        return True
    return name.partition(".")[0] not in _OURS and _LIBRARIES.isdisjoint(Path(file).parents)
