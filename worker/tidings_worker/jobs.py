"""What arq keeps of ours: what a job looks like, and where jobs live.

Jobs are JSON, not arq's default pickle: whoever can write to Redis must not be able to run code here. Nor to end the
worker, as arq's does when it finds in its queue what arq never writes.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import NoneType
from typing import Any

import redis.asyncio
from arq.connections import ArqRedis
from pydantic import SecretStr
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError
from tidings import Settings
from tidings.errors import ConfigurationError, UnavailableError
from tidings.keys import Keyspace
from tidings.servers import async_servers
from tidings.settings import redact

#: The fields of a job as arq names them: function, arguments, keyword arguments, try, time of its making.
_FIELDS: dict[str, type | tuple[type, ...]] = {"f": str, "a": list, "k": dict, "t": (int, NoneType), "et": int}
#: The end of the year 9999 in milliseconds; arq turns a job's time into a datetime.
_LATEST_MS = 253_402_300_799_000


def to_json(job: dict[str, Any]) -> bytes:
    """Serialize a job, or a result with whatever exception it ended with."""
    return json.dumps(job, default=repr).encode()


def from_json(data: bytes) -> dict[str, Any]:
    """Read a job. Raises ValueError for anything but a JSON object with the fields of a job, each of its type."""
    try:
        job = json.loads(data)
    except RecursionError:
        raise ValueError("a job is not nested that deep") from None
    if not isinstance(job, dict):
        raise ValueError("a job is a JSON object")  # noqa: TRY004 it is data that is wrong, not code
    for name, kind in _FIELDS.items():
        if name not in job or not isinstance(job[name], kind):
            raise ValueError(f"a job's {name!r} is missing or of another type")
    if not 0 <= job["et"] <= _LATEST_MS:
        raise ValueError("a job's time is out of range")
    return job


class JobsClient(ArqRedis):
    """arq's client; `aclose` closes its connections too, and the clients of the sentinels that it asks."""

    def __init__(self, pool: ConnectionPool, queue: str, sentinels: tuple[redis.asyncio.Redis, ...]) -> None:
        super().__init__(pool, job_serializer=to_json, job_deserializer=from_json, default_queue_name=queue)
        self._sentinels = sentinels

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close everything that was made for this client, unless told to leave the connections."""
        await super().aclose(close_connection_pool is not False)
        for sentinel in self._sentinels:
            await sentinel.aclose()


def jobs_url(settings: Settings) -> str:
    """Return where jobs live, with its password: ``TIDINGS_JOBS_URL``, else the cache's own server.

    Raises ConfigurationError for a cluster, which arq cannot use, and where there is no server.
    """
    given: SecretStr | None = settings.jobs_url or settings.url
    url = "" if given is None else given.get_secret_value()
    if "+cluster://" in url:
        raise ConfigurationError(
            f"warm jobs cannot live on the cluster {redact(url)}: their keys are in many slots; "
            "set TIDINGS_JOBS_URL to a single server or to sentinels"
        )
    if not url or url.startswith("memory://"):
        raise ConfigurationError("warm jobs need a server: set TIDINGS_URL, or TIDINGS_JOBS_URL for them alone")
    return url


def jobs_pool(settings: Settings) -> JobsClient:
    """Return arq's client for the server of the jobs; it connects at its first command, and is closed by `aclose`.

    Every command has `operation_timeout` seconds and is sent once. Raises ConfigurationError as `jobs_url` does, and
    for a URL that cannot be meant.
    """
    servers = async_servers(settings.model_copy(update={"url": SecretStr(jobs_url(settings))}))
    pool = servers.client.connection_pool
    pool.connection_kwargs["socket_timeout"] = settings.operation_timeout
    queue = Keyspace(settings.prefix, settings.version).jobs
    return JobsClient(pool, queue, servers.sentinels)


@asynccontextmanager
async def jobs_client(settings: Settings) -> AsyncIterator[JobsClient]:
    """Give the client of `jobs_pool`, and close it. What Redis raises becomes an UnavailableError with its address."""
    pool = jobs_pool(settings)
    try:
        yield pool
    except RedisError as error:
        raise UnavailableError(f"{redact(jobs_url(settings))}: {error}") from error
    finally:
        await pool.aclose()
