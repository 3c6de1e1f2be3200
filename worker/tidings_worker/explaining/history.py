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

from tidings_worker.times import moment_of


@dataclass(frozen=True, slots=True)
class Change:
    """One invalidation that concerned an entry."""

    #: the token's name, "entry" where it was named itself, or the pattern that its key matched
    what: str
    #: the server's time in microseconds
    at_us: int
    cause: Cause


#: The end of the year 9999: somebody may have written anything into the log, and what comes next is stamped behind it.
_LATEST_US = 253_402_300_799_000_000


def change_at(what: str, at_us: int, cause: Cause) -> Change:
    """Return a change, at a time that can be told."""
    return Change(what, min(at_us, _LATEST_US), cause)


@dataclass(frozen=True, slots=True)
class Log:
    """What the invalidation log has of one entry, newest first."""

    changes: tuple[Change, ...]
    #: the server's time to which it goes back; 0: to the first invalidation that there was, None: it is empty
    begins_us: int | None

    def reaches(self, time_us: int) -> bool:
        """Say whether all that was invalidated since a time is in it."""
        return self.begins_us is not None and self.begins_us <= time_us


def changes_in(fields: Mapping[bytes, bytes], names: Iterable[str], key: str) -> list[Change]:
    """Return what one entry of the log says of the tokens with these names, and of the entry with this key.

    Bytes that are no log entry say nothing.
    """
    try:
        at_us, what = time_of(fields), json.loads(fields[b"what"])
        tokens, entries, patterns = what["tokens"], what["entries"], what.get("patterns", [])
        found = [change_at(name, at_us, parse(tokens[name])) for name in names if name in tokens]
        why = parse(fields.get(b"why", b"").decode(errors="replace"))
        if key in entries:
            found.append(change_at("entry", at_us, why))
        found += [change_at(glob, at_us, why) for glob in patterns if _matches(glob, key)]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return []
    return found if at_us else []


def _matches(glob: Any, key: str) -> bool:
    return isinstance(glob, str) and glob_to_regex(glob).fullmatch(key.encode()) is not None


def time_of(fields: Mapping[bytes, bytes]) -> int:
    """Return the server's time of a log entry in microseconds; 0 for bytes that are none."""
    try:
        return max(0, int(fields.get(b"at", b"")))
    except ValueError:
        return 0


def is_first(fields: Mapping[bytes, bytes]) -> bool:
    """Say whether a log entry is the first that there ever was: it names no predecessor."""
    return fields.get(b"prev") == b"0-0"


def latency(change: Change) -> float | None:
    """Return the milliseconds from an event's arrival in the stream to its invalidation; None where it is unknown.

    Both are times of the server: of one, or on a cluster of two.
    """
    published = moment_of(change.cause.stream_id)
    return None if published is None else max(0.0, change.at_us / 1000 - published.timestamp() * 1000)
