"""The ids of stream entries: their order, ranges of them, and the text that names an event to other processes. Pure."""

import re
from collections.abc import Iterable
from typing import Any

from .errors import ArgumentError
from .keys import EventStream, Keyspace

Id = tuple[int, int]
Range = tuple[Id, Id]

_REFERENCE = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,20})-([0-9]{1,20})", re.ASCII)


def reference(stream: EventStream, keys: Keyspace, stream_id: str) -> str:
    """Return the text that names an event to another process: ``{stream id}``, or ``{partition}:{stream id}``."""
    partition = stream.events[len(keys.events) + 1 :]
    return f"{partition}:{stream_id}" if partition else stream_id


def referred(text: object, keys: Keyspace, partitions: int) -> tuple[EventStream, str]:
    """Return the stream and the id that a reference names. Raises ArgumentError for what is none of this cache's."""
    found = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ArgumentError(f"not the reference of an event: {text!r:.60}; it is what a receipt's `reference` gives")
    partition, *parts = found.groups()
    if any(int(part) >= 1 << 64 for part in parts):
        raise ArgumentError(f"not the reference of an event: {text!r:.60}; no stream has ids so large")
    if partition is not None and (int(partition) >= partitions or partitions == 1):
        raise ArgumentError(f"the event {text!r} is in the partition {partition}; this cache has {partitions}")
    stream = keys.stream(None if partition is None else int(partition))
    return stream, "{}-{}".format(*map(int, parts))


def entries_of(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the entries of one stream from an XREAD's reply, which the newer protocol gives as a mapping."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [entry for page in next(iter(reply.values())) for entry in page]
    return list(reply[0][1])


def as_pair(stream_id: str) -> Id:
    """Return a stream id as numbers that order as the stream does."""
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def covers(ranges: str, stream_id: str) -> bool:
    """Say whether a stream id is among ``"5-0..5-9 7-1"``: ranges and single ids, separated by spaces."""
    return among(as_pair(stream_id), parsed_ranges(ranges))


def parsed_ranges(ranges: str) -> list[Range]:
    """Return the ranges of such a text, each with its first and last id. Raises ValueError."""
    parts = (part.partition("..") for part in ranges.split())
    return [(as_pair(first), as_pair(last or first)) for first, _, last in parts]


def ranges_of(told: bytes | None) -> list[Range]:
    """Return what a word names. One that cannot be read names nothing: asking finds out what it was to tell."""
    try:
        return parsed_ranges((told or b"").decode("ascii"))
    except ValueError:
        return []


def among(identifier: Id, ranges: Iterable[Range]) -> bool:
    """Say whether one of the ranges has this id."""
    return any(first <= identifier <= last for first, last in ranges)
