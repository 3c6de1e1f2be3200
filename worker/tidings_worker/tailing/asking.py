"""Asks a consumer group about events of which nobody has told."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from tidings.event_ids import Id, as_pair

#: Pending entries in one reply.
_PAGE = 1000


async def why_not_yet(client: Redis, stream: str, name: str, ids: Sequence[str]) -> dict[str, str]:
    """Return for each event why the group of this name has not dealt with it; nothing where it has.

    The group is asked how far it has read before it is asked what is pending: an event is pending from the moment it is
    read, so that one that is not has been acknowledged. Raises what Redis does.
    """
    group = await _group(client, stream, name)
    if group is None:
        return dict.fromkeys(ids, f"no worker of the group {name!r} has read the stream yet")
    pairs = {one: as_pair(one) for one in ids}
    read = as_pair(group["last-delivered-id"].decode())
    pending = await _pending(client, stream, name, min(pairs.values()), min(max(pairs.values()), read))
    return {
        one: "no worker has read it yet" if pair > read else _in_hand(pending.get(pair)) for one, pair in pairs.items()
    }


async def _group(client: Redis, stream: str, name: str) -> Any:
    try:
        groups = await client.xinfo_groups(stream)
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return None
    return next((group for group in groups if group["name"] == name.encode()), None)


async def _pending(client: Redis, stream: str, group: str, first: Id, last: Id) -> dict[Id, int]:
    """Return how often each of the pending entries from one id to another has been delivered."""
    found: dict[Id, int] = {}
    start = "{}-{}".format(*first)
    while True:
        page = await client.xpending_range(stream, group, start, "{}-{}".format(*last), _PAGE)
        for row in page:
            found[as_pair(row["message_id"].decode())] = row["times_delivered"]
        if len(page) < _PAGE:
            return found
        start = f"({page[-1]['message_id'].decode()}"


def _in_hand(deliveries: int | None) -> str:
    if deliveries is None:
        return ""
    times = "" if deliveries == 1 else f", delivered {deliveries} times"
    return f"a worker has it and has not acknowledged it{times}"
