"""What the workers of a group have last seen of the streams and the servers: a hash in Redis."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any

from pydantic import BaseModel, ValidationError
from redis.asyncio import Redis
from tidings.hearing import Clients

from .continuity import Position


class _Kept(BaseModel, frozen=True):
    """What is kept in Redis of the last looks: one JSON string in a hash, under the stream's name."""

    position: Position


_HISTORIES, _MADE_UP = "histories", "histories:made_up"


#: Keeps what was seen of a stream, unless somebody has seen more: a worker that was suspended in the middle of a look
#: would set the others back. Keys: hash. Arguments: stream, what was seen, and of that mark, entries added and read.
_KEEP = """
local kept = redis.call('HGET', KEYS[1], ARGV[1])
local known, found = pcall(cjson.decode, kept or '')
local position = known and type(found) == 'table' and found['position']
if type(position) == 'table' and position['mark'] == ARGV[3] then
  local added, read = tonumber(position['added']) or 0, tonumber(position['read']) or 0
  if added > tonumber(ARGV[4]) or (added == tonumber(ARGV[4]) and read > tonumber(ARGV[5])) then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


class Ledger:
    """What the workers of a group have last seen, a hash in Redis. What cannot be read is as if it were not there."""

    def __init__(self, clients: Clients, key: str) -> None:
        self._clients = clients
        self._key = key

    async def position(self, stream: str) -> Position | None:
        """Return what was last seen of a stream."""
        text = await self._get(stream)
        try:
            return None if text is None else _Kept.model_validate_json(text).position
        except ValidationError:
            return None

    async def histories(self) -> frozenset[str]:
        """Return the histories that were last seen."""
        text = await self._get(_HISTORIES)
        return frozenset((text or b"").decode(errors="replace").split())

    async def keep(self, stream: str, position: Position) -> None:
        """Keep what was seen of a stream, unless more has been seen already."""
        seen = (position.mark, str(position.added), str(position.read or 0))
        text = _Kept(position=position).model_dump_json()
        await self._ask(lambda client: client.eval(_KEEP, 1, self._key, stream, text, *seen))

    async def keep_histories(self, seen: frozenset[str]) -> None:
        """Keep the histories that were seen."""
        await self._set(_HISTORIES, " ".join(sorted(seen)))

    async def forget_histories(self) -> None:
        """Let whoever comes next take the servers as it finds them."""
        await self._set(_HISTORIES, "")

    async def note_made_up(self) -> None:
        """Keep that a change of histories has been made up for, now."""
        await self._set(_MADE_UP, str(await self._now()))

    async def made_up_ago(self) -> float:
        """Return the seconds since that was noted, by the server's clock."""
        text = await self._get(_MADE_UP)
        try:
            return await self._now() - float(text or b"-inf")
        except ValueError:
            return inf

    async def _now(self) -> float:
        seconds, micros = await self._ask(lambda client: client.time())
        return float(seconds) + float(micros) / 1_000_000

    async def _get(self, name: str) -> bytes | None:
        found: bytes | None = await self._ask(lambda client: client.hget(self._key, name))
        return found

    async def _set(self, name: str, text: str) -> None:
        await self._ask(lambda client: client.hset(self._key, name, text))

    async def _ask(self, question: Callable[[Redis], Any]) -> Any:
        client = await self._clients.client_for(self._key)
        async with asyncio.timeout(self._clients.timeout):
            return await question(client)
