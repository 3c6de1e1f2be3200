"""What a function that writes has to do besides: invalidate what it has made wrong, then warm what is read next.

A write that is done and not invalidated is the one failure that a cache must not hide. Whatever can be found out before
it is found out before; from the commit on, nothing that happens to the caller keeps the invalidation from being sent.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from .described import Described, listed_tags
from .errors import ConfigurationError, InvalidationError, WriteNotInvalidatedError
from .functions import CachedFunction, CachedSyncFunction
from .invalidation import direct
from .signature import Signature
from .targets import Request
from .telemetry import log
from .templates import Template

if TYPE_CHECKING:
    from .cache import Cache

#: Parameters that gather arguments, and so have no value of their own to share.
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Warm:
    """A cached function that is loaded again after a write, and what it takes from it."""

    reader: Described[..., Any]
    shared: frozenset[str]
    defaults: Mapping[str, Any]

    def request(self, given: Mapping[str, Any], *, blocking: bool) -> Request | None:
        """Return what to load, given the write's arguments; None for a call that `when` sends past the cache."""
        reader, signature = self.reader, self.reader.signature
        values = {**self.defaults, **{name: given[name] for name in self.shared}}
        args, kwargs = signature.spread(values)
        if signature.is_method:
            args = (values[signature.names[0]], *args)
        if not reader.applies(args, kwargs):
            return None
        load = partial(reader.uncached, *args, **kwargs)
        in_thread = not blocking and isinstance(reader, CachedSyncFunction)
        request = reader.request(partial(asyncio.to_thread, load) if in_thread else load, *args, **kwargs)
        return replace(request, how="warm")


@dataclass(frozen=True, slots=True)
class Due:
    """What one call of a write has to do once it has written."""

    cache: "Cache"
    given: Mapping[str, Any]
    tags: tuple[str, ...]
    causes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Write:
    """A function that writes, and what follows from that."""

    name: str
    signature: Signature
    tags: tuple[Template, ...] | Callable[..., Iterable[str]]
    warms: tuple[Warm, ...]
    cache: "Callable[[], Cache]"

    def due(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Due:
        """Bind and render before the write: what could not be invalidated must not be written.

        An argument without a stable text, a callable that raises, a default cache that cannot be made: found after the
        write, each would leave the old value in the cache until its ttl, with nobody able to name it.
        """
        bound = self.signature.bind(*args, **kwargs)
        given = dict(zip(self.signature.names, bound, strict=True))
        if callable(self.tags):
            tags = listed_tags("tags", self.tags(**self.signature.arguments(bound)), self.name)
        else:
            tags = tuple(template.render(given.__getitem__) for template in self.tags)
        return Due(self.cache(), given, tags, direct(self.name, tags=tags))

    def for_a_loop(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return the function with what it has to do."""

        @wraps(function)
        async def write(*args: Any, **kwargs: Any) -> Any:
            due = self.due(args, kwargs)
            try:
                result = await function(*args, **kwargs)
            except asyncio.CancelledError:  # perhaps after the commit, while a session was being closed
                await self._invalidate(due, None, cancelled=True)
                raise
            await self._invalidate(due, result)
            for warm in self.warms:
                try:
                    if (request := warm.request(due.given, blocking=False)) is not None:
                        await warm.reader.cache.reader().ensure(request)
                except Exception as error:  # noqa: BLE001 whatever a load raises
                    self._not_warm(due, warm, error)
            return result

        return write

    def for_threads(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with what it has to do."""

        @wraps(function)
        def write(*args: Any, **kwargs: Any) -> Any:
            due = self.due(args, kwargs)
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                if not isinstance(error, Exception):  # interrupted, perhaps after the commit
                    self._invalidate_in_thread(due, None, cancelled=True)
                raise
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise ConfigurationError(f"{self.name}: it returned an awaitable, so it had not written; use async def")
            self._invalidate_in_thread(due, result)
            for warm in self.warms:
                try:
                    if (request := warm.request(due.given, blocking=True)) is not None:
                        warm.reader.cache.sync.reader.ensure(request)
                except Exception as error:  # noqa: BLE001
                    self._not_warm(due, warm, error)
            return result

        return write

    async def _invalidate(self, due: Due, result: Any, *, cancelled: bool = False) -> None:
        """Invalidate, whatever happens to the caller meanwhile; its cancellation is raised when that is done.

        1. The write has committed; the INVALIDATE is on its way.   2. The caller is cancelled: a client hung up.
        3. Without a task of its own the command dies with the caller, and nobody repeats it: the cache keeps the old
        row. A caller that waits, rather than leaving the task behind, is what keeps the event loop of a program that
        ends running until the server has answered; that end cancels the task as well, so it is begun once more.
        """
        task = asyncio.create_task(due.cache.invalidate_tokens(due.causes))
        interrupted: asyncio.CancelledError | None = None
        while not task.done() or task.cancelled():
            if task.cancelled():
                task = asyncio.create_task(due.cache.invalidate_tokens(due.causes))
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                interrupted = error
        try:
            task.result()
        except InvalidationError as error:
            self._not_invalidated(due, result, error, unheard=cancelled or interrupted is not None)
        if interrupted is not None:
            raise interrupted

    def _invalidate_in_thread(self, due: Due, result: Any, *, cancelled: bool = False) -> None:
        try:
            due.cache.sync.invalidate_tokens(due.causes)
        except InvalidationError as error:
            self._not_invalidated(due, result, error, unheard=cancelled)

    def _not_invalidated(self, due: Due, result: Any, error: InvalidationError, *, unheard: bool) -> None:
        if unheard:  # something else is raised to the caller
            log.error("write_not_invalidated", function=self.name, tags=due.tags, error=str(error))
            return
        raise WriteNotInvalidatedError(
            f"{self.name} has written, but that {', '.join(due.tags)} is invalidated is not acknowledged: {error}; "
            "repeat it with invalidate_tags(*error.tags); what the write returned is error.result",
            result,
            due.tags,
        ) from error

    def _not_warm(self, due: Due, warm: Warm, error: Exception) -> None:
        reader = warm.reader
        due.cache.telemetry.of(reader.options.namespace, reader.identity).warm_errors += 1
        log.error("warm_failed", function=reader.identity, after=self.name, exc_info=error)


def warmed(reader: Any, write: Callable[..., Any], where: str, *, blocking: bool) -> Warm:
    """Return how a reader is warmed after a write. Raises ConfigurationError when it cannot be."""
    if not isinstance(reader, CachedFunction | CachedSyncFunction):
        raise ConfigurationError(f"{where}: warm takes cached functions, as `cached` returns them, not {reader!r}")
    if blocking and isinstance(reader, CachedFunction):
        raise ConfigurationError(
            f"{where}: a plain function has no event loop to load {reader.identity} on; warm it by an event and a rule"
        )
    given = {p.name for p in inspect.signature(write).parameters.values() if p.kind not in VARIADIC}
    wanted = inspect.signature(reader.uncached).parameters.values()
    named = [parameter for parameter in wanted if parameter.kind not in VARIADIC]
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigurationError(
            f"{where}: to warm {reader.identity} it needs the argument {', '.join(map(repr, missing))}; add it to the "
            "write, or give the reader a default"
        )
    empty: dict[str, Any] = {p.name: () if p.kind is p.VAR_POSITIONAL else {} for p in wanted if p.kind in VARIADIC}
    defaults = {parameter.name: parameter.default for parameter in named} | empty
    return Warm(reader, frozenset(given & {parameter.name for parameter in named}), defaults)
