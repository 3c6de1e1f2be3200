"""What concerns the servers as such, and not what they hold: their histories, and their settings."""

import asyncio

from redis.asyncio import Redis
from tidings.cluster_store import ClusterStore
from tidings.store import RedisStore

from .checks import check, report
from .outage import is_outage


async def histories(store: RedisStore | ClusterStore) -> tuple[frozenset[str], bool]:
    """Return the replication ids of the servers that answer, and whether all did; see `continuity`.

    Raises what Redis does when none answers.
    """
    seen: set[str] = set()
    failure: Exception | None = None
    for client in await store.primaries():
        try:
            async with asyncio.timeout(store.timeout):
                seen.add(str((await client.info("replication"))["master_replid"]))
        except Exception as error:
            if not is_outage(error):
                raise
            failure = error
    if failure is not None and not seen:
        raise failure
    return frozenset(seen), failure is None


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
