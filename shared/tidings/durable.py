"""Adding an event that replicas must have before it counts as published: XADD, then WAIT on the same connection.

On the same, because the server waits for what came over the connection that asks. On one of its own, because it blocks
there: the connections that all share would hold up whoever comes behind, for as long as a replica is away.

async or threads: the same commands, sent by the client of either kind. A key that has moved to another node of a
cluster is an error: nothing was added then.
"""

import asyncio
from typing import TYPE_CHECKING, TypeGuard

import redis
from redis.exceptions import RedisError

from .errors import UnavailableError
from .operations import AppendDurably

if TYPE_CHECKING:
    from .hearing import Clients

Added = tuple[str, int]


def is_durable(operation: object) -> TypeGuard[AppendDurably]:
    """Say whether an operation is to be carried out here."""
    return isinstance(operation, AppendDurably)


async def append(clients: "Clients", operation: AppendDurably) -> Added:
    """Carry it out on an event loop; see `AppendDurably.parse`. Raises UnavailableError: it may have been added."""
    clients.close_with_loop()
    client = await clients.client_for(operation.stream)
    pipe = client.pipeline(transaction=False)
    for command in operation.commands:
        pipe.execute_command(*command)
    try:
        async with asyncio.timeout(clients.timeout):
            return operation.parse(await pipe.execute())
    except (TimeoutError, RedisError, OSError) as error:
        raise _unavailable(error) from error


def append_in_thread(client: redis.Redis, operation: AppendDurably) -> Added:
    """Carry it out in a thread, with a client of the server that has the stream."""
    pipe = client.pipeline(transaction=False)
    for command in operation.commands:
        pipe.execute_command(*command)
    try:
        return operation.parse(pipe.execute())
    except (RedisError, OSError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(f"{type(error).__name__}: {error}")
