"""What the invalidation log tells of one entry: when it was made wrong, and by whom. Pure.

The log is the history that there is: bounded in entries, a line for each invalidation, and written anyway, for the
local tiers. So a reader pays nothing for it. What it no longer has, the token says of its last change alone.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidings.causes import Cause, parse
from tidings.globs import glob_to_regex


@dataclass(frozen=True, slots=True)
class Change:
    """One invalidation that concerned an entry."""

    #: the token's name, "entry" where it was named itself, or the pattern that its key matched
    what: str
    #: the server's time in microseconds
    at_us: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Log:
    """A part of the invalidation log, newest first; `complete`: it goes back as far as was asked for."""

    changes: tuple[Change, ...]
    complete: bool


def changes_in(fields: Mapping[bytes, bytes], names: Iterable[str], key: str) -> list[Change]:
    """Return what one entry of the log says of the tokens with these names, and of the entry with this key.

    Bytes that are no log entry say nothing.
    """
    try:
        at_us, what = int(fields[b"at"]), json.loads(fields[b"what"])
        tokens, entries, patterns = what["tokens"], what["entries"], what.get("patterns", [])
        found = [Change(name, at_us, parse(tokens[name])) for name in names if name in tokens]
        why = parse(fields.get(b"why", b"").decode(errors="replace"))
        if key in entries:
            found.append(Change("entry", at_us, why))
        found += [Change(glob, at_us, why) for glob in patterns if _matches(glob, key)]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return []
    return found


def _matches(glob: Any, key: str) -> bool:
    return isinstance(glob, str) and glob_to_regex(glob).fullmatch(key.encode()) is not None


def time_of(fields: Mapping[bytes, bytes]) -> int:
    """Return the server's time of a log entry in microseconds; 0 for bytes that are none."""
    stamp = fields.get(b"at", b"")
    return int(stamp) if stamp.isdigit() else 0


def is_first(fields: Mapping[bytes, bytes]) -> bool:
    """Say whether a log entry is the first that there ever was: it names no predecessor."""
    return fields.get(b"prev") == b"0-0"
