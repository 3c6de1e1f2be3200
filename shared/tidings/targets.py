"""What is to be read: a call, and where everything that belongs to it is in Redis. Pure, but readers remember in it."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .counting import Counts
from .entries import Look, Places
from .errors import ConfigurationError
from .keys import ALL, Keyspace, namespace_token, tag_token
from .layout import MAX_TAGS
from .local import Slot
from .policy import Policy

if TYPE_CHECKING:
    from .described import Described


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to be read: what its entry is called, what it depends on, how long it lives."""

    #: the function or key as messages name it
    label: str
    namespace: str
    #: the entry's key after ``cache:{namespace}:``
    name: str
    tags: tuple[str, ...]
    policy: Policy = field(default_factory=Policy)


@dataclass(slots=True, eq=False)
class Target:
    """A call in one keyspace: the keys of its entry and tokens, in the order of every header."""

    call: Call
    #: the entry's key, then its tokens': everything, namespace, tags
    keys: tuple[str, ...]
    #: the tokens' names, as the invalidation log has them
    names: tuple[str, ...]
    tags: tuple[str, ...]
    places: Places
    counts: Counts
    keyspace: Keyspace
    #: whether nothing but entry and tokens has to be read
    plain: bool = True
    #: whether its values travel on the connection for big ones
    bulk: bool = False
    #: where the value is in the local tier
    slot: Slot | None = None
    #: tags of its last value that came from the result, as far as they are known here
    result_tags: tuple[str, ...] = ()
    #: the call as its entry tells it, see `calls.call_text`; None: nobody has asked yet
    told: str | None = None
    #: the tokens of the last hit, and its entry's bytes before the payload: mostly they are the same next time
    header: tuple[Sequence[bytes | None], bytes] = ((), b"")
    look: Look = field(init=False)

    def __post_init__(self) -> None:
        policy = self.call.policy
        self.look = Look(self.keys, ttl=policy.needs_ttl, time=policy.needs_time)

    @property
    def key(self) -> str:
        """The entry's key."""
        return self.keys[0]

    def know(self, tags: Iterable[str]) -> "tuple[str, ...]":
        """Remember which tags a value has beyond those of its arguments, so that the next read looks at all at once."""
        found = tuple(dict.fromkeys(tag for tag in tags if tag not in self.tags))
        if len(self.tags) + len(found) > MAX_TAGS:  # hostile: a fill would not have been made
            found = ()
        if found != self.result_tags:
            self.result_tags = found
            self.look = replace(self.look, keys=(*self.keys, *self.token_keys(found)))
        return found

    def token_keys(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Return the keys of tags' tokens."""
        return tuple(self.keyspace.token(tag_token(tag)) for tag in tags)


def target(call: Call, keys: Keyspace, counts: Counts) -> Target:
    """Return where everything of a call is. Raises ArgumentError for a bad tag."""
    distinct = tuple(dict.fromkeys(call.tags))
    if len(distinct) > MAX_TAGS:
        raise ConfigurationError(f"{call.label}: {len(distinct)} tags; at most {MAX_TAGS} are possible")
    names = (ALL, namespace_token(call.namespace), *map(tag_token, distinct))
    entry = keys.entry(call.namespace, call.name)
    places = Places(keys.lease(call.namespace, call.name), keys.wakes, keys.log)
    plain = not (call.policy.needs_ttl or call.policy.needs_time)
    # One string for a token wherever it is wanted: a batch of reads then finds it by identity.
    tokens = [sys.intern(keys.token(name)) for name in names]
    return Target(call, (entry, *tokens), names, distinct, places, counts, keys, plain)


@dataclass(frozen=True, slots=True)
class Request:
    """One read: what, how it is loaded, how its value becomes bytes, and which tags its value brings."""

    target: Target
    load: Any
    codec: Any
    result_tags: Any = None
    #: the cached function with the arguments that it is called with; None: it is no cached function's
    call: "tuple[Described[Any, Any], tuple[Any, ...], dict[str, Any]] | None" = None
    #: why it is made: see `layout.Facts`
    how: str = "read"
