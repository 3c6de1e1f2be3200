"""The service of the demo, as a service would write it: an event, a cached function, and how it loads."""

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from pydantic import BaseModel
from tidings import Event, cached
from tidings.errors import ConfigurationError

from .catalog import Catalog

#: Names the SQLite file for this process and its worker; `catalog` is the only reader.
DATABASE_VARIABLE = "TIDINGS_DEMO_DATABASE"

#: How often this process has loaded each package: by it, the demo tells a hit from a load.
loads: Counter[str] = Counter()


class IngestionCompleted(Event, type="ingestion.completed"):
    """The functions of a package as of a day have been committed, perhaps once more."""

    package: str
    as_of: date


class TreeNode(BaseModel, frozen=True):
    """A module, a class, or a function with the line of its ``def``."""

    name: str
    line: int | None = None
    children: list["TreeNode"] = []


#: What a reader gets: the tree by module and class, and the revision of its source; None: never ingested.
Answer = tuple[list[TreeNode], str | None]


@cached(namespace="explorer", ttl=3600, tags=["package:{package}"])
async def get_function_tree(package: str, as_of: date) -> tuple[list[TreeNode], str | None]:
    """Return a package's functions as a tree, as of a day, with the revision of their source."""
    loads[package] += 1
    return await asyncio.to_thread(read_tree, package, as_of)


def read_tree(package: str, as_of: date) -> Answer:
    """Read the tree from the database, whatever is cached. Blocks."""
    functions, revision = catalog().functions(package, as_of)
    return _nodes(([f.module, *f.name.split(".")], f.line) for f in functions), revision


def catalog() -> Catalog:
    """Return the catalog that the environment names, or raise ConfigurationError."""
    file = os.environ.get(DATABASE_VARIABLE)
    if file is None:
        raise ConfigurationError(f"{DATABASE_VARIABLE} is not set; these rules are for `tidings demo` alone")
    return Catalog(Path(file))


def _nodes(paths: Iterable[tuple[list[str], int]]) -> list[TreeNode]:
    functions: list[TreeNode] = []
    inner: defaultdict[str, list[tuple[list[str], int]]] = defaultdict(list)
    for (name, *rest), line in paths:
        if rest:
            inner[name].append((rest, line))
        else:
            functions.append(TreeNode(name=name, line=line))
    return [*functions, *(TreeNode(name=name, children=_nodes(below)) for name, below in inner.items())]
