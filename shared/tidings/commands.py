"""What a cache is asked to do beside reading its functions, sans I/O: one for coroutines and for threads.

`Cache` and `SyncCache` say what each of these promises.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from .bulk import peek_many, read_many
from .cached import held_tags
from .causes import by_call
from .entries import Look
from .errors import ArgumentError, InvalidationError, PublishError, UnavailableError
from .events import Event, to_fields
from .invalidation import by_pattern, invalidation
from .keys import ALL, EventStream, check_namespace
from .naming import Many, codec_of, named, untyped
from .operations import Append, AppendDurably, Batch, Ping
from .policy import Seconds, TtlWord
from .reading import Reading
from .seen import NOTHING, AwayError
from .shared import Shared
from .steps import Ask, Invoke, Steps
from .targets import Call, Request
from .telemetry import process_name
from .tracing import tracing


class Commands:
    """The commands of one driver of a cache."""

    def __init__(self, shared: Shared, reading: Reading) -> None:
        self._shared = shared
        self._reading = reading

    def named(
        self,
        key: str,
        namespace: str,
        func: Callable[[], Any] | None = None,
        ttl: Seconds | TtlWord | None = None,
        tags: Iterable[str] = (),
    ) -> Request:
        """Return the request for an entry that the caller names; its values are `func`'s, or JSON types."""
        where = f"{'set' if func is None else 'get_or_set'}({key!r:.100})"
        codec = untyped.naming(where) if func is None else codec_of(func, where)
        return Request(self._shared.target(named(key, namespace, ttl, tags)), func, codec)

    def set_many(
        self, values: Mapping[str, Any], namespace: str, ttl: Seconds | TtlWord | None, tags: Iterable[str]
    ) -> Steps[None]:
        """Store values under their keys; at once UnavailableError while Redis is known to be away.

        Not so what invalidates, which is tried even then: a value that is not set is a miss, one that is not
        invalidated is wrong.
        """
        given = held_tags(tags)
        requests = [self.named(key, namespace, None, ttl, given) for key in values]
        if requests and not self._shared.breaker.closed:
            raise UnavailableError(
                f"{self._shared.telemetry.server}: Redis is away; nothing is stored until it is back"
            )
        if requests:
            yield from self._reading.filling.put(requests, list(values.values()))

    def get_many(self, keys: Iterable[str], namespace: str, default: Any) -> Steps[dict[str, Any]]:
        """Return values by key."""
        many = Many.of(keys)
        requests = [self.named(key, namespace) for key in many.keys]
        if requests and self._shared.asks:
            try:
                return many.named((yield from peek_many(self._reading, requests, default)))
            except AwayError:
                pass
        self._shared.count_unapplied(requests)
        return dict.fromkeys(many.keys, default)

    def get_or_set_many(
        self,
        keys: Iterable[str],
        func: Callable[[list[str]], Any],
        *,
        namespace: str,
        ttl: Seconds | TtlWord | None,
        tags: Iterable[str] | Callable[[str], Iterable[str]],
    ) -> Steps[dict[str, Any]]:
        """Return values by key, loading what is missing."""
        many = Many.of(keys)
        requests = many.requests(self._shared.target, func, namespace=namespace, ttl=ttl, tags=tags)

        def load(indices: Sequence[int]) -> Steps[Mapping[int, Any]]:
            loaded = yield Invoke(partial(func, [many.keys[index] for index in indices]))
            return many.indexed(loaded, indices, func)

        if requests and self._shared.asks:
            return many.named((yield from read_many(self._reading, requests, load)))
        if not self._shared.count_unapplied(requests):
            for request in requests:
                request.target.counts.direct += 1
        if not requests:
            return {}
        with requests[0].target.counts.loading():
            loaded = yield from load(range(len(requests)))
        return many.named([loaded.get(index, NOTHING) for index in range(len(requests))])

    def delete(self, key: str, namespace: str) -> Steps[bool]:
        """Invalidate a named entry; say whether there was a value."""
        entry = self._shared.keys.entry(check_namespace(namespace), key)
        return bool((yield from self._invalidate({}, [entry], why=by_call("delete", process_name()))))

    def invalidate_call(self, call: Call) -> Steps[None]:
        """Invalidate one cached function's entry."""
        entry = self._shared.keys.entry(call.namespace, call.name)
        yield from self._invalidate({}, [entry], why=by_call(f"{call.label}.invalidate", process_name()))

    def invalidate(
        self, causes: Mapping[str, str], *, events: str = "", stream: EventStream | None = None
    ) -> Steps[None]:
        """Invalidate by token names, each with its cause; `events` of `stream` are applied by it."""
        if causes or events:
            yield from self._invalidate(causes, [], events=events, stream=stream)

    def invalidate_pattern(self, glob: str, namespace: str | None) -> Steps[None]:
        """Invalidate by pattern."""
        shared = self._shared
        told = invalidation(shared.keys, shared.settings, {}, patterns=(shared.keys.pattern(namespace, glob),))
        try:
            yield from by_pattern(shared.keys, shared.settings, glob, namespace)
        except UnavailableError as error:
            raise InvalidationError(str(error)) from error
        finally:  # as below
            shared.invalidated(told)

    def publish(self, event: Event, subject: str | None, replicas: int) -> Steps[tuple[EventStream, str, str]]:
        """Add an event to its subject's stream; return which that is, and the ids of its entry and its own."""
        if replicas < 0:
            raise ArgumentError(f"replicas is a number of servers, not {replicas}")
        settings = self._shared.settings
        fields = to_fields(event, source=settings.source, subject=subject)
        stream = self._shared.keys.stream_of(subject or fields["id"], settings.partitions)
        try:
            with tracing().publishing(fields["type"], fields["id"], stream.events) as carrier:
                fields |= carrier
                if replicas == 0:
                    stream_id, acknowledged = (yield Ask(Append(stream.events, fields))), 0
                else:
                    wait_ms = round(settings.operation_timeout * 1000 / 2)  # the rest is for the answer to arrive
                    stream_id, acknowledged = yield Ask(AppendDurably(stream.events, fields, replicas, wait_ms))
        except UnavailableError as error:
            raise PublishError(str(error)) from error
        if acknowledged < replicas:
            raise PublishError(
                f"the event {fields['id']} is in the stream {stream.events} as {stream_id}, but {acknowledged} of "
                f"{replicas} replicas have said that they have it: a failover may lose it"
            )
        return stream, stream_id, fields["id"]

    def health(self) -> Steps[dict[str, Any]]:
        """Say how the server and the local tier are."""
        started = time.perf_counter()
        try:
            # What every read reads, as well: a server may answer a PING and permit nothing else.
            yield Ask(Batch((Ping(), Look((self._shared.keys.token(ALL),)))))
        except UnavailableError as error:
            return {"ok": False, **self._shared.health(), "reads": "direct", "error": str(error)}
        latency_ms = round((time.perf_counter() - started) * 1000, 3)
        return {"ok": True, **self._shared.health(), "latency_ms": latency_ms}

    def _invalidate(
        self,
        causes: Mapping[str, str],
        entries: Iterable[str],
        *,
        events: str = "",
        stream: EventStream | None = None,
        why: str = "",
    ) -> Steps[int]:
        shared = self._shared
        operation = invalidation(shared.keys, shared.settings, causes, entries, events=events, stream=stream, why=why)
        try:
            live: int = yield Ask(operation)
        except UnavailableError as error:
            raise InvalidationError(str(error)) from error
        finally:  # whether it happened or not: what is held here may be wrong from now on
            shared.invalidated(operation)
        return live
