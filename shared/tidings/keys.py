"""Every key word in Redis, and how a call becomes a key. Pure.

Entries are ``[{prefix}:][{version}:]cache:{namespace}:{function}:{16 hex}``. Everything else lives beside them under
its own word, so that no invalidation of entries can touch it; it carries the prefix but not the version, because
services of different versions hear the same events.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import BaseModel

from .errors import ArgumentError, ConfigurationError
from .tagged import to_tagged

_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{1,128}\Z")

#: The token that every entry depends on, and the prefixes of the names of the others.
ALL = "all"


def namespace_token(namespace: str) -> str:
    """Return the name of a namespace's token. Raises ConfigurationError for a name that cannot be part of a key."""
    return f"namespace:{check_namespace(namespace)}"


def tag_token(tag: str) -> str:
    """Return the name of a tag's token. Raises ArgumentError for what is no text that Redis can hold, or is empty."""
    return f"tag:{check_text(tag, 'a tag')}"


def check_text(text: str, what: str) -> str:
    """Return the text, or raise ArgumentError when it is empty, not a string, or not Unicode (a lone surrogate)."""
    if not isinstance(text, str):
        raise ArgumentError(f"{what} is a string, not a {type(text).__name__}: {text!r:.100}")
    if not text or (not text.isascii() and not _encodes(text)):
        raise ArgumentError(f"{what} is empty or not Unicode text: {text!r:.100}")
    return text


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_namespace(namespace: str) -> str:
    """Return the namespace, or raise ConfigurationError when it would make keys ambiguous."""
    if not isinstance(namespace, str):
        raise ConfigurationError(f"a namespace is a string, not {namespace!r:.100}")
    if not _NAMESPACE.match(namespace):
        raise ConfigurationError(
            f"the namespace {namespace!r} must be 1 to 128 letters, digits, dots, dashes or underscores"
        )
    return namespace


@dataclass(frozen=True, slots=True)
class EventStream:
    """A stream of events, and beside it the one in which workers say which of them they have applied."""

    events: str
    applied: str


def partition_of(subject: str, partitions: int) -> int:
    """Return which of the partitions a subject's events go to, in every process and every language: CRC-32."""
    return crc32(subject.encode()) % partitions


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The names of everything that one cache keeps in Redis."""

    prefix: str = ""
    version: str = ""

    def _word(self, word: str) -> str:
        return f"{self.prefix}:{word}" if self.prefix else word

    @property
    def entries(self) -> str:
        """What the key of every entry begins with, up to its namespace."""
        version = f"{self.version}:" if self.version else ""
        return self._word(f"{version}cache:")

    def entry(self, namespace: str, name: str) -> str:
        """Return the key of an entry; `name` is ``{function}:{16 hex}`` or the caller's own. Raises ArgumentError."""
        check_text(name, "a key")
        return f"{self.entries}{namespace}:{name}"

    def pattern(self, namespace: str | None, glob: str) -> str:
        """Return the glob of entries' keys in a namespace (None: in every one) whose rest matches `glob`."""
        check_text(glob, "a pattern")
        return f"{self.entries}{'*' if namespace is None else check_namespace(namespace)}:{glob}"

    def token(self, name: str) -> str:
        """Return the key of a token: ``token:all``, ``token:namespace:explorer``, ``token:tag:user:42``."""
        return self._word(f"token:{name}")

    def lease(self, namespace: str, name: str) -> str:
        """Return the key of the lease on loading an entry."""
        version = f"{self.version}:" if self.version else ""
        return self._word(f"lease:{version}{namespace}:{name}")

    @property
    def wakes(self) -> str:
        """The stream in which the end of leases is told to those who wait."""
        return self._word("lease:ended")

    @property
    def log(self) -> str:
        """The invalidation log, a stream."""
        return self._word("invalidations")

    @property
    def events(self) -> str:
        """The stream of domain events that are not partitioned."""
        return self._word("events")

    def stream(self, partition: int | None = None) -> EventStream:
        """Return the names of one partition's streams; None: of the stream that is not partitioned."""
        if partition is None:
            return EventStream(self.events, self._word("events:applied"))
        return EventStream(self._word(f"events:{partition}"), self._word(f"events:applied:{partition}"))

    def streams(self, partitions: int) -> tuple[EventStream, ...]:
        """Return every stream that a worker reads: the plain one, which anybody may write to, and the partitions."""
        return (self.stream(), *(map(self.stream, range(partitions)) if partitions > 1 else ()))

    def stream_of(self, subject: str, partitions: int) -> EventStream:
        """Return where a subject's events go."""
        return self.stream(partition_of(subject, partitions) if partitions > 1 else None)

    @property
    def dead(self) -> str:
        """The dead-letter stream."""
        return self._word("events:dead")

    @property
    def ledger(self) -> str:
        """A hash of what the workers have last seen of the streams and the servers: how they notice a loss."""
        return self._word("events:seen")

    @property
    def counts(self) -> str:
        """A hash of what the workers have done since it was made."""
        return self._word("events:counts")

    @property
    def journal(self) -> str:
        """The stream in which workers tell what each event did, while somebody reads it."""
        return self._word("events:journal")

    @property
    def journal_read(self) -> str:
        """The key that is there while somebody reads the journal."""
        return self._word("events:journal:read")

    def hot(self, namespace: str, window: int) -> str:
        """Return the key of a sorted set: calls of a namespace that were read in one stretch of time, by samples."""
        return self._word(f"hot:{namespace}:{window}")

    def stats(self, window: int) -> str:
        """Return the key of a hash: what all processes have counted of their reads in one stretch of time."""
        return self._word(f"stats:{window}")

    @property
    def failing(self) -> str:
        """A hash of the warms that keep failing, beside the queue of jobs."""
        return self._word("warms:failing")

    @property
    def jobs(self) -> str:
        """The name of the queue of warm jobs; arq fixes its other key words, so the name carries the prefix."""
        return self._word("warms")


def module_of(thing: Any) -> str:
    """Return the module that other processes import a function or class from.

    A script's functions live in ``__main__`` there, in ``__mp_main__`` in its child processes, and under the script's
    name in the worker: the same function must have the same keys in all of them.
    """
    module: str = thing.__module__
    if module not in {"__main__", "__mp_main__"}:
        return module
    namespace = getattr(thing, "__globals__", None) or vars(sys.modules[module])
    spec = namespace.get("__spec__")
    if spec is not None and spec.name not in {"__main__", "__mp_main__"}:
        return str(spec.name)
    file = namespace.get("__file__")
    return Path(file).stem if file else module


def qualified(thing: Any) -> str:
    """Return ``module:qualname``, the name under which other processes can import a function or class."""
    return f"{module_of(thing)}:{thing.__qualname__}"


def canonical_json(values: tuple[Any, ...]) -> str:
    """Return one text for equal arguments of equal types, whatever process asks.

    Raises ArgumentError for types that have no canonical form: they would give every call its own key.
    """
    tagged = [to_tagged(value, _canonical_object, canonical=True) for value in values]
    return json.dumps(tagged, sort_keys=True, separators=(",", ":"))


def digest(identity: str, canonical: str) -> str:
    """Return 16 hex digits of the SHA-256 of a function's identity and its canonical arguments."""
    return sha256(f"{identity}{canonical}".encode()).hexdigest()[:16]


#: How to take a value of a subclass as its base has it, past whatever the subclass overrides.
_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (tuple, tuple),
    (list, list),
    (dict, dict),
)


def _canonical_object(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, type):
        content: Any = None
    elif isinstance(value, Enum):
        content = value.value
    elif isinstance(value, BaseModel):
        content = {name: getattr(value, name) for name in kind.model_fields} | (value.model_extra or {})
    elif is_dataclass(value):
        content = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        content = next((plain(value) for base, plain in _BASES if isinstance(value, base)), None)
    if content is None:
        raise ArgumentError(
            f"a {kind.__module__}.{kind.__qualname__} has no canonical form, so it cannot be part of a key; "
            'leave it out with a key template over the others, as in key="{user_id}"'
        )
    tagged = to_tagged(content, _canonical_object, canonical=True)
    return {"!": [f"{kind.__module__}.{kind.__qualname__}", tagged]}
