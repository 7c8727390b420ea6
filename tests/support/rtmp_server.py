"""A real RTMP server for tests: Debian's FFmpeg, a process for each viewer, which shows a video in a loop in real time.

FFmpeg's server takes one connection in its life, and who only looks whether anybody is there would take it. So a
listener stands before it, which starts FFmpeg for those who have something to say, and carries what is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

FFMPEG = "/usr/bin/ffmpeg"
PATIENCE = 20.0  # seconds for FFmpeg to listen


def why_missing() -> str | None:
    """Why there can be no RTMP server here, or None."""
    return None if shutil.which(FFMPEG) else f"no {FFMPEG} (Debian's package ffmpeg)"


class RtmpCamera:
    """The server on a free port of this machine, in the running event loop."""

    def __init__(self, video: Path) -> None:
        self._video = video
        self._tasks: set[asyncio.Task[None]] = set()
        self.viewers = 0  # that there have been

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        self.url = f"rtmp://127.0.0.1:{self.port}/live/door"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self.cut()

    async def cut(self) -> None:
        """End what every viewer sees."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="rtmp viewer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if said := await reader.read(1 << 16):
                self.viewers += 1
                await self._show(said, reader, writer)
        finally:
            writer.transport.abort()

    async def _show(
        self, said: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Start FFmpeg and let the two talk."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = (
            *(FFMPEG, "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(self._video)),
            *("-c", "copy", "-f", "flv", "-listen", "1", f"rtmp://127.0.0.1:{port}/live/door"),
        )
        # not asyncio's, which leaves a process behind where it is cancelled while it starts one
        process = subprocess.Popen(  # noqa: ASYNC220
            command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            there_reader, there = await _connected(port)
            there.write(said)
            try:
                await asyncio.wait(
                    [
                        asyncio.create_task(_carry(reader, there), name="to server"),
                        asyncio.create_task(_carry(there_reader, writer), name="from server"),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                there.transport.abort()
        finally:
            process.kill()
            process.wait()


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to FFmpeg, as soon as it listens."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.02)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()
