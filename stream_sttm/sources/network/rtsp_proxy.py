"""A TCP proxy between FFmpeg and an RTSP camera where hosts are limited: FFmpeg would follow a redirect anywhere.

It takes one connection on the loopback address and forwards it to the checked address, over TLS where the URL says so.
It closes as soon as the camera answers with a redirect. Video passes unchanged. It knows nothing else of RTSP.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import Self

CHUNK = 64 * 1024
CONNECT_TIMEOUT = 5.0  # seconds
_LONGEST = 8192  # bytes of a status line that FFmpeg would still read
# as FFmpeg reads it, which drops every \r and takes much for a number
_REDIRECT = re.compile(rb"RTSP/\S{0,%d}\s+\+?0*3\d\d(?!\d)" % _LONGEST)


@dataclass
class RtspProxy:
    """A proxy to one camera. Once entered, FFmpeg connects to `port`. `has_refused` tells of a redirect."""

    address: str
    port_there: int
    tls: ssl.SSLContext | None
    host: str
    port: int = 0
    has_refused: bool = False

    def __post_init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tasks:  # FFmpeg has connected already
            writer.transport.abort()
            return
        self._server.close()
        task = asyncio.create_task(self._forward(reader, writer), name=f"proxy[{self.port}]")
        self._tasks.add(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                there_reader, there = await asyncio.open_connection(
                    self.address,
                    self.port_there,
                    ssl=self.tls,
                    server_hostname=self.host if self.tls is not None else None,
                )
            ends.append(there)
            async with asyncio.TaskGroup() as group:
                copies = (
                    group.create_task(_copy(reader, there), name="to camera"),
                    group.create_task(self._watch(there_reader, writer), name="from camera"),
                )
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
                for copy in copies:
                    copy.cancel()
        except* OSError:
            pass  # FFmpeg finds its connection closed, and says so
        finally:
            for end in ends:
                end.transport.abort()

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy what the camera sends, until it redirects."""
        tail = b""
        while part := await reader.read(CHUNK):
            tail += part.replace(b"\r", b"")
            if b"RTSP/" in tail and _REDIRECT.search(tail):
                self.has_refused = True
                return
            tail = tail[-(_LONGEST + 64) :]
            writer.write(part)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(CHUNK):
        writer.write(part)
        await writer.drain()
