"""Which lines of `tidings tail` somebody wants. Pure."""

import re
from collections.abc import Iterable

from tidings.globs import glob_to_regex

from .lines import Line, Outcome


class Wanted:
    """Decides by globs, as Redis has them: in each list one must match, and an empty list asks for nothing.

    What invalidates everything invalidates every tag and every namespace.
    """

    def __init__(
        self,
        *,
        types: Iterable[str] = (),
        subjects: Iterable[str] = (),
        tags: Iterable[str] = (),
        namespaces: Iterable[str] = (),
        outcomes: Iterable[Outcome] = (),
    ) -> None:
        self._types = _compiled(types)
        self._subjects = _compiled(subjects)
        self._tags = _compiled(tags)
        self._namespaces = _compiled(namespaces)
        self._outcomes = frozenset(outcomes)

    def wants(self, line: Line) -> bool:
        """Say whether to show a line."""
        return (
            (not self._outcomes or line.outcome in self._outcomes)
            and (not self._types or _any(self._types, [line.type]))
            and (not self._subjects or _any(self._subjects, [line.subject]))
            and (not self._tags or line.everything or _any(self._tags, line.tags))
            and (not self._namespaces or line.everything or _any(self._namespaces, _namespaces(line)))
        )


def _compiled(globs: Iterable[str]) -> list[re.Pattern[bytes]]:
    return [glob_to_regex(glob) for glob in globs]


def _any(patterns: Iterable[re.Pattern[bytes]], texts: Iterable[str | None]) -> bool:
    encoded = [text.encode(errors="replace") for text in texts if text is not None]
    return any(pattern.fullmatch(text) for pattern in patterns for text in encoded)


def _namespaces(line: Line) -> list[str]:
    """Return the namespaces of what was invalidated, and of entries that were, or are to be warmed."""
    warmed = [name.partition(":")[0] for name in line.warms]
    entries = [key.partition("cache:")[2].partition(":")[0] for key in (*line.entries, *line.patterns)]
    return [*line.namespaces, *warmed, *entries]
