"""What an invalidation is made of: names of tokens, why (see `causes`), and fresh values for them. Pure."""

from collections.abc import Generator, Iterable, Mapping
from typing import Any

from .causes import by_call
from .errors import ConfigurationError
from .keys import ALL, EventStream, Keyspace, namespace_token, tag_token
from .layout import pack_vacancy, unique
from .operations import Drop, Invalidate, Scan
from .settings import Settings
from .steps import Ask
from .telemetry import process_name


def direct(
    method: str, namespaces: Iterable[str] = (), tags: Iterable[str] = (), *, everything: bool = False
) -> dict[str, str]:
    """Return the tokens that a direct call names, each with the call as its cause.

    Raises ConfigurationError for one string where a list belongs: it would be taken letter by letter.
    """
    for given in (namespaces, tags):
        if isinstance(given, str):
            raise ConfigurationError(f"{method}: {given!r} is one string where a list of them belongs")
    names = [*map(namespace_token, namespaces), *map(tag_token, tags), *([ALL] if everything else [])]
    return dict.fromkeys(names, by_call(method, process_name()))


def invalidation(
    keys: Keyspace,
    settings: Settings,
    causes: Mapping[str, str],
    entries: Iterable[str] = (),
    *,
    events: str = "",
    stream: EventStream | None = None,
    patterns: tuple[str, ...] = (),
    why: str = "",
) -> Invalidate:
    """Return the operation that gives the tokens in `causes` new values and the entries new lineages.

    `why` is the cause of what happens to the entries, or to those that match the patterns. `events` are ids of entries
    of `stream` (None: the plain one) that are applied by this; see `Invalidate`.
    """
    return Invalidate(
        causes,
        tuple(map(keys.token, causes)),
        tuple(unique() for _ in causes),
        {entry: pack_vacancy() for entry in entries},
        keys.log,
        settings.log_length,
        round(settings.token_ttl * 1000),
        round(settings.vacancy_ttl * 1000),
        (stream or keys.stream()).applied,
        events,
        patterns,
        why,
    )


def by_pattern(keys: Keyspace, settings: Settings, glob: str, namespace: str | None) -> Generator[Ask, Any, Invalidate]:
    """Delete every entry whose key matches, then say so in the log; gives what was said. See `fence`, "Patterns".

    The log has the pattern and not the keys: a local tier may hold what Redis has evicted, which no scan finds. It is
    told last, so that whoever looked up an entry before it was deleted here noted a position before this one.
    """
    pattern = keys.pattern(namespace, glob)
    cursor = 0
    while True:
        cursor, found = yield Ask(Scan(pattern, cursor))
        if found:
            yield Ask(Drop(tuple(found)))
        if cursor == 0:
            break
    why = by_call("invalidate_pattern", process_name())
    told = invalidation(keys, settings, {}, patterns=(pattern,), why=why)
    yield Ask(told)
    return told
