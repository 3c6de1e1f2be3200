"""The XREADGROUP loop: reads batches of new events and gives them to the handler, one at a time.

Delivery is at least once. What the handler raises ends the loop, with the batch still pending: nothing is acknowledged
that was not applied. The worker's other half of delivery, `reclaimer` (retries by exception type, claims of what a dead
consumer left, lost-event detection, trimming), is not written yet: pending entries wait, in the open, for it.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from tidings.publisher import entries_of
from tidings.telemetry import process_name

from .handler import Entry


class Consumer:
    """Reads one stream for one group under a name of its own.

    `client` is used for blocking reads alone, so that nothing else waits behind them.
    """

    def __init__(self, client: Redis, stream: str, group: str, *, batch: int, block_ms: int) -> None:
        self.name = f"{process_name()}:{secrets.token_hex(4)}"
        self._client = client
        self._stream = stream
        self._group = group
        self._batch = batch
        self._block_ms = block_ms

    async def create_group(self) -> None:
        """Make the group, and the stream if need be. It starts at 0: what came before the first worker counts too."""
        try:
            await self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def run(self, handle: Callable[[Sequence[Entry]], Awaitable[None]], stop: asyncio.Event) -> None:
        """Read and handle until `stop` is set; then finish the batch in hand and return.

        A blocked read is never cancelled: what the server delivers to a read that nobody awaits any more stays pending
        for good. It returns by itself, within the block time.
        """
        while not stop.is_set():
            entries = await self._read()
            if entries:
                await handle(entries)

    async def leave(self) -> None:
        """Remove this consumer from the group if nothing is pending for it: with it, its pending list would go."""
        consumers = await self._client.xinfo_consumers(self._stream, self._group)
        mine = next((c for c in consumers if c["name"] == self.name.encode()), None)
        if mine is not None and mine["pending"] == 0:
            await self._client.xgroup_delconsumer(self._stream, self._group, self.name)

    async def _read(self) -> list[Entry]:
        reply: Any = await self._client.xreadgroup(
            self._group, self.name, {self._stream: ">"}, count=self._batch, block=self._block_ms
        )
        return [(stream_id.decode("ascii"), fields) for stream_id, fields in entries_of(reply)]
