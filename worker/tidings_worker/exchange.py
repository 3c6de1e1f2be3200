"""Several commands in as few exchanges as their keys allow."""

from collections.abc import Sequence
from typing import Any, Protocol

from redis.crc import key_slot
from tidings.cluster_store import ClusterStore
from tidings.hearing import Clients
from tidings.operations import Command


class Store(Clients, Protocol):
    """What a group needs of `RedisStore` or `ClusterStore`."""

    async def transact(self, key: str, commands: Sequence[Command], *, bulk: bool = False) -> list[Any]:
        """Carry out commands as one transaction on the server of a key."""
        ...


class Exchange:
    """Commands for keys that may be on several servers, which are asked one after another, as they were first named.

    On one server they are one transaction. On a cluster those for keys of one slot are, for it permits no more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_cluster = isinstance(store, ClusterStore)
        self._parts: dict[int, tuple[str, list[Command]]] = {}
        #: for each command, in order: its transaction, and its place there
        self._places: list[tuple[int, int]] = []

    def add(self, key: str, *command: str | bytes | int) -> None:
        """Add a command for this key."""
        which = key_slot(key.encode()) if self._is_cluster else 0
        _, commands = self._parts.setdefault(which, (key, []))
        self._places.append((which, len(commands)))
        commands.append(command)

    @property
    def commands(self) -> list[Command]:
        """All of them, for one server."""
        return [self._parts[which][1][place] for which, place in self._places]

    async def execute(self) -> list[Any]:
        """Send everything; return the replies in the order of the commands."""
        # The second connection: a batch of events is big, and invalidations must not wait behind it.
        replies = {
            which: await self._store.transact(key, commands, bulk=True)
            for which, (key, commands) in self._parts.items()
        }
        return [replies[which][place] for which, place in self._places]
