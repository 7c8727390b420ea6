"""A TCP proxy for trouble on the way: it passes, stalls, throttles, cuts and refuses, as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

PART = 4096  # bytes passed on at once


class Proxy:
    """Stands before `port` of this machine on a port of its own, in the running event loop."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._behind = port
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._half_open: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._rate: float | None = None

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Take connections, on the same port as before."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Cut what there is and take no new connection."""
        if self._listener is not None:
            self._listener.close()
        await self.cut()

    async def cut(self) -> None:
        """End all connections at once."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drop_towards_us(self) -> Callable[[], None]:
        """Break the clients' ends of all connections; the other ends stay open and silent, as after a power cut.

        Returns what closes them.
        """
        held = list(self._pairs)
        for client, server in held:
            self._half_open.add(server)
            client.transport.abort()
        self._pairs.clear()

        def close() -> None:
            for _, server in held:
                server.transport.abort()

        return close

    def stall(self) -> None:
        """Pass nothing on any more; connections stay up, new ones are taken."""
        self._flows.clear()

    def flow(self) -> None:
        """Undo `stall`."""
        self._flows.set()

    def throttle(self, rate: float | None) -> None:
        """Pass so many bytes a second on; None is as many as come."""
        self._rate = rate

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer), name="proxied")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.transport.abort()
            return
        self._pairs.append((writer, ours))
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(self._pass(reader, ours), name="in"),
                    asyncio.create_task(self._pass(theirs, writer), name="out"),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for end in {writer, ours} - self._half_open:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(PART):
                await self._flows.wait()
                if self._rate is not None:
                    await asyncio.sleep(len(part) / self._rate)
                writer.write(part)
                await writer.drain()
