"""The database of the demo: which functions each package has, by day of ingestion, in SQLite.

async or threads: threads. SQLite blocks, so a coroutine calls this through `asyncio.to_thread`; each call has its own
connection, since those belong to one thread, and the file in WAL mode lets readers of two processes go on during a
write.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from .source import Function

_SCHEMA = """
pragma journal_mode = wal;
create table ingestion (
    package text, as_of text, revision text not null, primary key (package, as_of)
);
create table function (
    package text, as_of text, module text, name text, line integer, primary key (package, as_of, module, name, line)
) without rowid;
"""


class Catalog:
    """Ingested packages in one SQLite file, which `create` makes."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def create(self) -> None:
        """Make the file and its tables."""
        with self._transaction() as database:
            database.executescript(_SCHEMA)

    def ingest(self, package: str, as_of: date, functions: Sequence[Function]) -> str:
        """Replace what is known of a package on a day, in one transaction; return the new revision.

        A revision is 6 hex digits that depend on the functions alone.
        """
        rows = [(f.module, f.name, f.line) for f in functions]
        revision = hashlib.sha256(repr(rows).encode()).hexdigest()[:6]
        where = (package, as_of.isoformat())
        with self._transaction() as database:
            database.execute("begin immediate")
            database.execute("delete from function where package = ? and as_of = ?", where)
            database.executemany("insert into function values (?, ?, ?, ?, ?)", [(*where, *row) for row in rows])
            database.execute("insert or replace into ingestion values (?, ?, ?)", (*where, revision))
        return revision

    def functions(self, package: str, as_of: date) -> tuple[list[Function], str | None]:
        """Return the package's functions as ingested on the day or last before it, and the revision; else [], None."""
        with self._transaction() as database:
            database.execute("begin")  # both queries see one snapshot
            ingestion = database.execute(
                "select as_of, revision from ingestion where package = ? and as_of <= ? order by as_of desc limit 1",
                (package, as_of.isoformat()),
            ).fetchone()
            if ingestion is None:
                return [], None
            day, revision = ingestion
            rows = database.execute(
                "select module, name, line from function where package = ? and as_of = ? order by module, line",
                (package, day),
            )
            return [Function(*row) for row in rows], revision

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Give a connection; what is done on it is committed on leaving, or undone by an exception."""
        database = sqlite3.connect(self._file, isolation_level=None)
        try:
            with database:
                yield database
        finally:
            database.close()
