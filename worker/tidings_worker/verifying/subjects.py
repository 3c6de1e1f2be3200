"""Which call an entry is the result of, and how a reader of that call looks at it.

Anybody who can write to Redis can write an entry, so nothing that it says is believed: its call must be one of a cached
function of a module that is loaded here (nothing is imported for it), and that call must make this entry's very key,
which names namespace, function and arguments. Only then is the function called, with what any reader of the entry would
call it with. Where a namespace is encrypted, calls are sealed, each for its key.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tidings import Cache
from tidings.calls import decode_call, split_call
from tidings.counting import Counts
from tidings.described import Described
from tidings.entries import Look
from tidings.errors import ConfigurationError, DecodeError
from tidings.layout import ENTRY_KINDS, LINEAGE_START, VACANT, Facts, facts_of
from tidings.sealing import Sealer
from tidings.targets import Request, target

from tidings_worker.calls import NotLoadedError, load_of, resolve

from .verdicts import Outcome

#: Why entries cannot be audited, to be read behind their number.
NO_CALL = "without a call"
FOREIGN = "no entry of this version"
SEALED = "with a call that cannot be unsealed"
NOT_LOADED = "of a function that is not loaded here"
NOT_CACHED = "of what is no cached function"
OTHER_CALL = "with a call that is not its own"


@dataclass(frozen=True, slots=True)
class Subject:
    """An entry to be checked: the call that it is the result of."""

    key: str
    namespace: str
    function: Described[Any, Any]
    #: the function's name and the arguments' text
    call: str
    facts: Facts
    #: how readers look at it, with counters of its own: an audit is no read
    request: Request
    load: Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that is not checked, and why."""

    outcome: Outcome
    reason: str = ""


def identify(key: str, head: bytes | None, cache: Cache, sealer: Sealer) -> Subject | Skipped:
    """Find out what an entry is the result of, given its bytes as far as its facts; None: they are no string.

    Raises what the service's own code raises (templates, callables, validators), and ConfigurationError for a return
    annotation that is none.
    """
    if head is None:
        return Skipped(Outcome.NOT_AUDITABLE, FOREIGN)
    if head[:LINEAGE_START] == VACANT or not head:
        return Skipped(Outcome.NOT_SERVED)
    facts = facts_of(head)
    if head[:LINEAGE_START] not in ENTRY_KINDS or facts is None:
        return Skipped(Outcome.NOT_AUDITABLE, FOREIGN)
    if not facts.call:
        return Skipped(Outcome.NOT_AUDITABLE, NO_CALL)
    try:
        namespace = key.removeprefix(cache.keys.entries).partition(":")[0]
        call = sealer.unseal_call(facts.call, namespace, key)
    except DecodeError:
        return Skipped(Outcome.NOT_AUDITABLE, SEALED)
    return _called(key, namespace, facts, call, cache)


def _called(key: str, namespace: str, facts: Facts, call: str, cache: Cache) -> Subject | Skipped:
    try:
        function, args, kwargs = _understood(call, namespace)
    except NotLoadedError:
        return Skipped(Outcome.NOT_AUDITABLE, NOT_LOADED)
    except ConfigurationError:
        return Skipped(Outcome.NOT_AUDITABLE, NOT_CACHED)
    except DecodeError:
        return Skipped(Outcome.NOT_AUDITABLE, OTHER_CALL)
    wanted = function.call_of(*args, **kwargs)
    if cache.key_of(wanted) != key:
        return Skipped(Outcome.NOT_AUDITABLE, OTHER_CALL)
    if not function.applies(args, kwargs):
        return Skipped(Outcome.NOT_SERVED)
    own = target(wanted, cache.keys, Counts())
    own.look = Look(own.keys, ttl=True, time=True)
    load = load_of(function, args, kwargs)
    request = Request(own, load, function.codec, function.options.result_tags)
    return Subject(key, namespace, function, call, facts, request, load)


def _understood(call: str, namespace: str) -> tuple[Described[Any, Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function and its arguments. Raises NotLoadedError, ConfigurationError and DecodeError."""
    identity, arguments = split_call(call)
    function = resolve(identity)
    if function.options.namespace != namespace:
        raise DecodeError("a function of another namespace")
    return function, *decode_call(function, arguments)
