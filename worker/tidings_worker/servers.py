"""What concerns the servers as such, and not what they hold: their histories, and their settings."""

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis
from tidings import Cache
from tidings.cluster_store import ClusterStore
from tidings.errors import ConfigurationError, UnavailableError
from tidings.hearing import Clients
from tidings.store import RedisStore

from .checks import check, report
from .outage import is_outage

T = TypeVar("T")


def store_of(cache: Cache) -> RedisStore | ClusterStore:
    """Return the store of this event loop, whose clients the worker's own commands go through."""
    store = cache.reader().store
    if not isinstance(store, RedisStore | ClusterStore):
        raise ConfigurationError("a worker needs Redis: the default cache is in memory; set TIDINGS_URL")
    return store


async def timely(store: Clients, reply: Awaitable[T], where: str = "Redis") -> T:
    """Wait for a client's reply as long as an operation may take. Raises UnavailableError, and what Redis raises."""
    try:
        async with asyncio.timeout(store.timeout):
            return await reply
    except TimeoutError as error:
        raise UnavailableError(f"{where}: no answer in {store.timeout:g} s") from error


async def histories(store: RedisStore | ClusterStore) -> tuple[frozenset[str], bool]:
    """Return the names of the histories of the servers that answer, and whether all did; see `continuity`.

    Raises UnavailableError, or what Redis does, when none answers.
    """
    if isinstance(store, RedisStore):
        return frozenset({await store.run(_History())}), True
    seen: set[str] = set()
    failure: Exception | None = None
    for client in await store.primaries():
        try:
            async with asyncio.timeout(store.timeout):
                pipe = client.pipeline(transaction=False)
                pipe.info("server")
                pipe.info("replication")
                server, replication = await pipe.execute()
                seen.add(_history({**server, **replication}))
        except Exception as error:
            if not is_outage(error):
                raise
            failure = error
    if failure is not None and not seen:
        raise failure
    return frozenset(seen), failure is None


class _History:
    """Ask the server at the other end of the store's own connection, over which invalidations go, for its history.

    Not one that a client has connected to: while sentinels relieve a primary it goes on for seconds, and whoever
    connects is led to its successor, whose history is new.

        1. worker      asks a client, newly connected, and sees the new history
        2. worker      invalidates everything, at the old primary, and keeps what it has seen
        3. sentinels   make the old primary a replica of the new one: what it was told is gone
        4. worker      is connected to the new primary, and sees what it has seen already
    """

    commands = (("INFO", "server"), ("INFO", "replication"))

    def parse(self, replies: Sequence[Any]) -> str:
        told = b"\n".join(map(bytes, replies)).decode(errors="replace")
        return _history(dict(re.findall(r"^(\w+):(\w+)", told, re.MULTILINE)))


def _history(told: Mapping[str, Any]) -> str:
    """Return the name of a server's history: another one when it was started anew, or has taken over from another.

    Its replication id alone will not do: that changes too when it gets its first replica, and nothing is lost then. A
    server that was promoted still names the history that it had followed.
    """
    followed = str(told.get("master_replid2", "")).strip("0")
    return f"{told['run_id']}:{told['master_replid']}" if followed else str(told["run_id"])


async def check_settings(store: RedisStore | ClusterStore, where: str, jobs: Redis, jobs_where: str) -> None:
    """Say in the log what is wrong with the servers' settings; `where` and `jobs_where` name them, without secrets.

    Raises what Redis does.
    """
    one = where == jobs_where
    for client in await store.primaries():
        async with asyncio.timeout(store.timeout):
            report(where, await check(client, jobs=one))
    if not one:
        report(jobs_where, await check(jobs, events=False))
