"""A dead letter as it is read back: what it says, which are meant, what may be done about it. Pure.

Anybody may have written to the stream of dead letters, so nothing is taken for granted: a field may be missing, come
twice, or be bytes that are no text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tidings.errors import EventError
from tidings.event_ids import as_pair
from tidings.events import from_fields

from tidings_worker.escaping import escaped

#: What the names of the event's own fields begin with; see `handler.dead_letter`.
ORIGINAL = b"original:"


@dataclass(frozen=True)
class Letter:
    """One entry of the dead-letter stream."""

    id: str
    #: why the event was set aside; '' in a letter that does not say
    reason: str
    #: where the event was, and for which group it was set aside
    stream: str
    stream_id: str
    group: str
    deliveries: int | None
    #: the event as it was, as name and value, in their order
    original: tuple[tuple[bytes, bytes], ...]

    @cached_property
    def type(self) -> str:
        """The event's type; '' for one that cannot be read."""
        fields = dict(self.original)
        if plain := fields.get(b"type"):
            return text_of(plain)
        try:
            return from_fields(self.stream, self.stream_id, fields).type
        except EventError:
            return ""

    @property
    def seconds(self) -> float:
        """When it was set aside, in seconds since 1970 by the server's clock."""
        return as_pair(self.id)[0] / 1000

    def obstacle(self, streams: Iterable[str]) -> str | None:
        """Say why it cannot go back to one of these streams; None: it can."""
        if not self.original:
            return "it has no original, so there is nothing to put back"
        if not self.stream:
            return "it does not say which stream its event came from"
        if self.stream not in streams:
            return (
                f"its event came from {escaped(self.stream):.200}, which is no event stream of this prefix; "
                "if it is a partition, set TIDINGS_PARTITIONS"
            )
        return None

    def as_json(self, *, whole: bool = False) -> dict[str, Any]:
        """Return plain JSON types; `whole`: with the original. Bytes that are no text are escaped."""
        found: dict[str, Any] = {
            "id": self.id,
            "type": self.type,
            "reason": self.reason,
            "stream": self.stream,
            "stream_id": self.stream_id,
            "group": self.group,
            "deliveries": self.deliveries,
        }
        if whole:
            found["original"] = {text_of(name): text_of(value) for name, value in self.original}
        return found


def letter_of(stream_id: bytes, flat: Sequence[bytes]) -> Letter:
    """Read an entry of the dead-letter stream, whatever it holds; `flat` are its fields and values by turns."""
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    ours = {name: text_of(value) for name, value in pairs if not name.startswith(ORIGINAL)}
    deliveries = ours.get(b"deliveries", "")
    return Letter(
        stream_id.decode("ascii"),
        ours.get(b"reason", ""),
        ours.get(b"stream", ""),
        ours.get(b"stream_id", ""),
        ours.get(b"group", ""),
        int(deliveries) if deliveries.isascii() and deliveries.isdigit() and len(deliveries) < 20 else None,  # noqa: PLR2004 digits of 2**64
        tuple((name.removeprefix(ORIGINAL), value) for name, value in pairs if name.startswith(ORIGINAL)),
    )


def original_of(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of the event that a dead letter is about."""
    return {name.removeprefix(ORIGINAL): value for name, value in fields.items() if name.startswith(ORIGINAL)}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters are meant: of this type, with this in their reason (in any case), between these ids."""

    type: str | None = None
    reason: str | None = None
    first: str = "-"
    last: str = "+"

    @property
    def by_content(self) -> bool:
        """Whether a letter has to be read to know."""
        return self.type is not None or self.reason is not None

    def has(self, letter: Letter) -> bool:
        """Say whether a letter between the ids is meant."""
        of_type = self.type is None or letter.type == self.type
        return of_type and (self.reason is None or self.reason.casefold() in letter.reason.casefold())


def cure(letter: Letter) -> str:
    """Say what may be done about a letter, as far as that can be told from it."""
    replay = f"tidings dlq replay {letter.id}"
    drop = f"tidings dlq drop {letter.id}"
    if not letter.original:
        return f"no worker wrote this letter, and there is nothing to put back: {drop}"
    try:
        from_fields(letter.stream, letter.stream_id, dict(letter.original))
    except EventError:
        return f"no worker can read this event: correct its publisher, publish what it was to say, then {drop}"
    if letter.reason.startswith("delivered "):
        return f"it may have ended its workers: see their logs of that time, and mend what ended them; then {replay}"
    if "ailed " in letter.reason.partition(" times")[0]:
        return f"a rule raised this: correct the rule, or what it needs, restart the worker; then {replay}"
    if "Error" in letter.reason:
        return f"its data do not fit a rule or an event class: correct that and restart the worker; then {replay}"
    return f"correct what the reason names; then {replay}"


def text_of(value: bytes) -> str:
    """Return bytes as text; what is no UTF-8 in it is escaped with backslashes."""
    return value.decode(errors="backslashreplace")
