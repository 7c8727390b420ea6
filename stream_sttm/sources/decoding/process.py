"""Our side of one decoder process: starts it, asks it for frames, and ends it whatever its state.

Its counts go into the metrics here, its errors are raised here. Requests and replies pass through protocol.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from enum import StrEnum
from typing import Any

from stream_sttm import metrics, urls
from stream_sttm.errors import NotVideo, SourceDenied, SourceUnavailable
from stream_sttm.sources.decoding import protocol
from stream_sttm.sources.decoding.forkserver import ForkServer
from stream_sttm.sources.decoding.gop import Mode
from stream_sttm.sources.decoding.protocol import Request
from stream_sttm.types import Frame

OPEN_MARGIN = 3.0  # seconds beyond FFmpeg's own limits until a process that opens is given up
START = 60.0  # seconds that a process gets to begin, which is our machine's affair and no camera's; and a file to open
GRACE = 1.5  # seconds that a process gets to say goodbye to its camera
_FORKS = ForkServer()  # nothing runs before the first stream that needs it
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (SourceUnavailable, SourceDenied, NotVideo)
}

logger = logging.getLogger(__name__)


class DecoderReport(StrEnum):
    """What a process reports instead of a frame."""

    END = "end"  # of the file, or of what is to be decoded of it
    TURN = "turn"  # its segment is over, the next is another's
    ASTRAY = "astray"  # a segment does not stand by itself


class DecoderProcess:
    """A process that decodes what `request` names; `heard_at` and `details` as in the Source protocol."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._channel: socket.socket | None = None
        self._serial = 0
        self.heard_at = 0.0
        self.details: dict[str, Any] = {}
        self.shares = 1  # into how many the file is divided
        self.shown: list[
            Any
        ] = []  # segments of a live playlist that it was given, as in network/hls.py

    async def open(self) -> bool:
        """Start it and wait until its video is found; whether that is live. Raises SourceError.

        The time that a camera gets counts from the process's first word: a busy machine may be long in starting it.
        """
        is_file = urls.split(self._request.url).scheme == "file"
        limit = START if is_file else 2 * self._request.limits.open + OPEN_MARGIN
        late = f"its decoder has not begun within {START:g} s: this machine has too much to do"
        try:
            await self.start()
            async with asyncio.timeout(START):
                message = (await self._ask())[0]
            late = (
                "answers, but sends no video in time" if not is_file else "takes too long to open"
            )
            async with asyncio.timeout(limit):
                while "live" not in message:
                    message = (await self._ask())[0]
        except TimeoutError:
            raise SourceUnavailable(self._line(late)) from None
        except EOFError:
            raise self._dead() from None
        self.shares = message.get("shares", 1)
        return bool(message["live"])

    async def start(self) -> None:
        """Start it, without waiting for anything that it does."""
        self._channel, self._serial = _FORKS.fork()
        try:
            await protocol.request(self._channel, self._request)
        except OSError:
            raise self._dead() from None

    async def frame(self) -> Frame | None:
        """Return the newest frame, or a file's next, when there is one; None at the end. Raises SourceError."""
        heard = await self.hear()
        return heard if isinstance(heard, Frame) else None

    async def hear(self) -> Frame | DecoderReport:
        """Return the next frame or message, where messages matter too."""
        while True:
            try:
                message, image = await self._ask()
            except EOFError:
                raise self._dead() from None
            if image is not None:
                header = message["frame"]
                metrics.STAGE_DURATION.labels("decode").observe(header["spent"])
                return Frame(self._request.stream, image, header["pts"], header["captured_at"])
            for said in DecoderReport:
                if message.get(said):
                    return said

    async def close(self) -> None:
        """End it: politely if it listens, in any case soon."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        try:
            channel.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(GRACE):
                while await asyncio.get_running_loop().sock_recv(channel, 1 << 16):
                    pass
        except (TimeoutError, OSError):
            logger.info("%s: its decoder did not end by itself", self._request.stream)
        finally:
            _FORKS.kill(self._serial)
            channel.close()
            self._show_mode(None)

    async def _ask(self) -> tuple[protocol.Message, protocol.Image | None]:
        """Return the next message, its counts and details taken in. Raises EOFError, or the error it reports."""
        if self._channel is None:
            raise RuntimeError("a decoder was asked for frames that is not open")
        try:
            message, image = await protocol.ask(self._channel)
        except OSError:
            raise EOFError from None
        self._count(message["counts"])
        if video := message.get("video"):
            self.details = {"video": video}
            self._show_mode(video["decode"])
        self.shown = message.get("shown", self.shown)
        if kind := message.get("error"):
            raise _ERRORS.get(kind, RuntimeError)(message["text"])
        return message, image

    def _count(self, counts: dict[str, Any]) -> None:
        stream = self._request.stream
        metrics.DECODE_CPU.labels(stream).inc(counts.pop("cpu_seconds", 0.0))
        if received := counts.pop("received", 0):
            self.heard_at = time.monotonic()
            metrics.FRAMES_RECEIVED.labels(stream).inc(received)
        for reason, times in counts.items():
            metrics.FRAMES_DROPPED.labels(stream, reason).inc(times)

    def _show_mode(self, mode: str | None) -> None:
        for each in Mode:
            metrics.DECODE_MODE.labels(self._request.stream, each.value).set(each.value == mode)

    def _dead(self) -> SourceUnavailable:
        return SourceUnavailable(
            self._line("its decoder died: it crashed, or was killed for want of memory")
        )

    def _line(self, what: str) -> str:
        return f"{urls.mask(self._request.url)}: {what}"
