"""What a server has seen of events: read, never changed."""

from redis.exceptions import ResponseError
from tidings import Cache
from tidings.errors import EventError
from tidings.events import from_fields

from tidings_worker.servers import store_of

from .findings import Served

#: Entries of each stream that are looked at, newest first.
LOOKED_AT = 10_000

_AT_ONCE = 500

_UNRULED = "unruled:"


async def served(cache: Cache) -> Served:
    """Return the types of the newest events in the streams, and those that workers have counted as having no rule.

    Raises Redis's exceptions, and UnavailableError.
    """
    store, keys = store_of(cache), cache.keys
    counts = await (await store.client_for(keys.counts)).hkeys(keys.counts)  # type: ignore[misc]
    names = [name.decode(errors="replace") for name in counts]
    types: set[str] = set()
    for stream in keys.streams(cache.settings.partitions):
        client, last = await store.client_for(stream.events), "+"
        for _ in range(LOOKED_AT // _AT_ONCE):
            try:
                entries = await client.xrevrange(stream.events, last, "-", count=_AT_ONCE)
            except ResponseError:  # another kind of key has that name
                break
            types |= {found for stream_id, fields in entries if (found := _type(stream.events, stream_id, fields))}
            if len(entries) < _AT_ONCE:
                break
            last = f"({entries[-1][0].decode()}"
    return Served(types, {name.removeprefix(_UNRULED) for name in names if name.startswith(_UNRULED)})


def _type(stream: str, stream_id: bytes, fields: dict[bytes, bytes]) -> str | None:
    try:
        return from_fields(stream, stream_id.decode(), fields).type
    except EventError:
        return None
