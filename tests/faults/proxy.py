"""A TCP proxy with a network's faults: it stops forwarding without closing, or resets connections.

It runs in a thread of its own, so that a test that blocks does not hold up what is behind it.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

#: Close with a reset, and throw away what was not sent.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards from `port` to a port of this machine, as a context manager.

    A *black hole* keeps what it is sent and says nothing, nor that a side has closed; once healed it delivers all of
    it, however late, as a network does. With *resets* every connection ends at once, and so does each new one.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._flowing = asyncio.Event()
        self._resets = False
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def black_hole(self) -> None:
        """Stop forwarding without closing anything."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def reset(self) -> None:
        """Reset what is connected and what connects."""
        self._call(self._reset())

    def heal(self) -> None:
        """Forward again."""
        self._resets = False
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> asyncio.Server:
        self._flowing.set()
        server = await asyncio.start_server(self._connected, "127.0.0.1")
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _stop(self) -> None:
        self._server.close()
        while True:
            await self._reset()
            await asyncio.sleep(0.01)  # connections are accepted and closed in steps of the event loop
            if len(asyncio.all_tasks()) == 1:
                return

    async def _reset(self) -> None:
        self._resets = True
        tasks = list(self._connections)
        for task, writers in list(self._connections.items()):
            for writer in writers:
                _abort(writer)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task, writers = asyncio.current_task(), [writer]
        self._connections[task] = writers
        try:
            if self._resets:
                return
            await self._flowing.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(back)
            await asyncio.gather(self._forward(reader, back), self._forward(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self._connections[task]
            for one in writers:
                _abort(one)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        await self._flowing.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
