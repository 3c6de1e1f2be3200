"""The exception tree. The worker decides by these types what to retry and what to set aside, never by message.

TidingsError
├── ConfigurationError            wrong at definition or start: the message names file, name and cure
│   ├── TemplateError             a key or tag template that cannot be rendered
│   └── DuplicateEventTypeError   two event classes with one type
├── PermanentError                trying again cannot help
│   ├── ArgumentError             an argument that cannot be part of a key, a tag or a warm
│   ├── EncodeError               a value that would not come back as it was
│   ├── DecodeError               bytes that are not a value of the expected type (on a read: a miss)
│   ├── EventError                data that is no valid event
│   │   └── IgnoredEventError     ... and need not be: a tombstone, a heartbeat
│   └── DeadLetteredError         the event was set aside: its receipt cannot be applied any more
└── TransientError                trying again may help
    ├── UnavailableError          Redis did not answer, or refused for now
    │   ├── InvalidationError     the invalidation may or may not have happened: repeat it
    │   │   └── WriteNotInvalidatedError  ... of what a function decorated with cache_write has written
    │   └── PublishError          the event may or may not have been written: publish it again
    └── NotAppliedError           (also a TimeoutError) the event is not known to be applied yet
"""

from typing import Any


class TidingsError(Exception):
    """Base of everything that tidings raises on purpose."""


class ConfigurationError(TidingsError):
    """Code or settings are wrong; raised at definition or start, naming what to change."""


class TemplateError(ConfigurationError):
    """A key or tag template names something that is not there."""


class DuplicateEventTypeError(ConfigurationError):
    """Two event classes claim the same type."""


class PermanentError(TidingsError):
    """The same input will fail the same way however often it is tried."""


class ArgumentError(PermanentError):
    """An argument has no canonical form, so no key, tag or warm can be made of it."""


class EncodeError(PermanentError):
    """A value would not come back from the cache as it went in; names its type and place."""


class DecodeError(PermanentError):
    """Bytes that are not a value of the expected type."""


class EventError(PermanentError):
    """Data that does not make a valid event; nothing was written."""


class IgnoredEventError(EventError):
    """An entry that says nothing of what changed, like a tombstone: to be acknowledged, and no dead letter.

    `kind` is one of few words, for counting: ``tombstone``, ``snapshot_read``, ``heartbeat``, ``transaction``,
    ``schema_change`` or ``message``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"nothing that a rule is for: {kind}")
        self.kind = kind


class DeadLetteredError(PermanentError):
    """The worker set the event aside in the dead-letter stream; the message carries its reason."""


class TransientError(TidingsError):
    """The same call may succeed later."""


class UnavailableError(TransientError):
    """Redis could not be reached, did not answer in time, or refused the command for now."""


class InvalidationError(UnavailableError):
    """The invalidation is not acknowledged: it may or may not have happened. Repeating it is safe."""


class WriteNotInvalidatedError(InvalidationError):
    """A `cache_write` function HAS written; that its tags are invalidated is not acknowledged. Do not write again.

    `result` is what the function returned; ``await invalidate_tags(*error.tags)`` repeats the invalidation.
    """

    def __init__(self, message: str, result: Any = None, tags: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.result = result
        self.tags = tags


class PublishError(UnavailableError):
    """The event is not acknowledged: it may or may not be in the stream. Publishing it again is safe."""


class NotAppliedError(TransientError, TimeoutError):
    """The event was not known to be applied within the timeout; it is still in the stream."""
