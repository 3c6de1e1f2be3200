"""The periodic look at the servers: what gauges show, and whether the servers answer."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from redis.asyncio import Redis
from tidings.hearing import Clients

from .health import Health
from .metrics import Look, Metrics, StreamState
from .outage import is_outage, pause

T = TypeVar("T")

#: The parts of a worker's `Health` that are its servers: of cache and events, and of warms.
SERVERS = ("events server", "jobs server")

#: One stream and its group at one instant. Keys: stream. Arguments: group.
_LOOK = """
local now = redis.call('TIME')
local state = {now[1] * 1000 + math.floor(now[2] / 1000), redis.call('XLEN', KEYS[1])}
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups.err and {} or groups) do
  local facts = {}
  for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
  if facts['name'] == ARGV[1] then
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
    local unread = redis.pcall('XRANGE', KEYS[1], '(' .. facts['last-delivered-id'], '+', 'COUNT', 1)
    state[3] = pending[1]
    state[4] = facts['lag'] or false
    state[5] = pending[2] or false
    state[6] = unread[1] and unread[1][1] or false
  end
end
return state
"""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at, and through which clients."""

    group: str
    streams: Sequence[str]
    #: the dead-letter stream
    dead: str
    #: of the servers of the streams
    clients: Clients
    #: the queue of warms
    jobs: str
    jobs_client: Redis


class Observer:
    """Looks at the servers and says what it saw to `metrics`, and to `health` as the parts in `SERVERS`.

    `timeout`: seconds that each look has.
    """

    def __init__(self, watched: Watched, metrics: Metrics, health: Health, *, timeout: float) -> None:
        self._watched = watched
        self._metrics = metrics
        self._health = health
        self._timeout = timeout

    async def run(self, stop: asyncio.Event, interval: float) -> None:
        """Look until the stop, every `interval` seconds. Raises what Redis raises unless that is an outage."""
        while not stop.is_set():
            await self.look()
            await pause(interval, stop)

    async def look(self) -> None:
        """Look once. Raises what Redis raises unless that is an outage."""
        queued = await self._ask("jobs", self._watched.jobs_client.zcard(self._watched.jobs))
        seen = await self._ask("events", self._streams())
        if seen is not None:
            streams, dead_letters = seen
            self._metrics.observe(Look(streams, dead_letters, queued))

    async def _streams(self) -> tuple[dict[str, StreamState], int]:
        watched = self._watched
        client_for = watched.clients.client_for
        states = {s: await stream_state(await client_for(s), s, watched.group) for s in watched.streams}
        return states, await (await client_for(watched.dead)).xlen(watched.dead)

    async def _ask(self, server: Literal["events", "jobs"], question: Awaitable[T]) -> T | None:
        """Put a question to a server, and note whether it answers; None: it does not."""
        answer: T | None = None
        reason = ""
        try:
            async with asyncio.timeout(self._timeout):
                answer = await question
        except Exception as error:
            if not is_outage(error):
                raise
            reason = f"does not answer: {type(error).__name__}"  # and not what it says, which may be an address
        self._health.part(f"{server} server", ok=not reason, reason=reason)
        self._metrics.redis(server, up=not reason)
        return answer


async def stream_state(client: Redis, stream: str, group: str) -> StreamState:
    """Look at one stream; without the group, or the stream, nothing of it is known. Raises what Redis raises."""
    reply: Awaitable[Any] = client.eval(_LOOK, 1, stream, group)  # type: ignore[assignment]
    now_ms, entries, *of_group = await reply
    if not of_group:
        return StreamState(entries, None, 0, None, None)
    pending, lag, oldest_pending, oldest_unread = of_group
    return StreamState(entries, lag, pending, _age(now_ms, oldest_pending), _age(now_ms, oldest_unread))


def _age(now_ms: int, stream_id: bytes | None) -> float:
    """Return the seconds since an entry was added, as its id has it; 0 for none, and for an id that is ahead."""
    return 0.0 if stream_id is None else max(0, now_ms - int(stream_id.partition(b"-")[0])) / 1000
