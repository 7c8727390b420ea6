"""rtsp(s):// http(s):// rtmp(s):// srt:// v4l2:// file:// - everything FFmpeg reads, decoded in a thread of its own.

A live stream is shown as it is now: a frame that nobody took in time is replaced by the next, and counted. A file
waits for its consumer and ends by returning. Only frames that may be sampled are converted to RGB. Knows nothing of
reconnecting; how a URL is opened is in opening.py, FFmpeg itself in decoder.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from stream_sttm import urls
from stream_sttm.errors import SourceDenied, SourceError
from stream_sttm.sources.access import EVERYTHING, Access
from stream_sttm.sources.decoder import Decoder
from stream_sttm.sources.gate import Gate
from stream_sttm.sources.opening import check_spelling, prepare
from stream_sttm.types import Frame

GRACE = 1.0  # seconds that leaving waits for the decoder's thread to end

logger = logging.getLogger(__name__)


@dataclass
class VideoSource:
    """A camera or file that FFmpeg reads; entered, it is open and its video stream found."""

    url: str
    stream: str = "video"
    fps: float = 2.0
    max_side: int = 640
    access: Access = EVERYTHING
    is_live: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        check_spelling(self.url)
        self.is_live = urls.split(self.url).scheme != "file"
        self._decoder: Decoder | None = None
        self._gate: Gate | None = None

    async def __aenter__(self) -> Self:
        try:
            opening, self._gate = await prepare(self.url, self.access)
            self._decoder = Decoder(
                self.url, opening, stream=self.stream, fps=self.fps, max_side=self.max_side
            )
            self._decoder.start()
            self.is_live = await self._decoder.opened
        except SourceError as error:
            await self._close()
            raise self._meant(error) from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames in order; ends with a file's end, raises SourceError where the stream breaks."""
        if self._decoder is None:
            raise RuntimeError("frames() of a source that was not entered")
        try:
            while (frame := await self._decoder.mailbox.take()) is not None:
                yield frame
        except SourceError as error:
            raise self._meant(error) from error

    def _meant(self, error: SourceError) -> SourceError:
        """The error, or what is behind it where the gate was shut."""
        if self._gate is None or not self._gate.has_refused:
            return error
        shown = urls.mask(self.url)
        return SourceDenied(f"{shown}: it redirects, which is not followed where hosts are limited")

    async def _close(self) -> None:
        if self._gate is not None:
            await self._gate.__aexit__(None, None, None)
        if self._decoder is None:
            return
        decoder, self._decoder = self._decoder, None
        decoder.mailbox.close()
        await asyncio.to_thread(decoder.join, GRACE)
        if decoder.is_alive():
            logger.info("%s: still waiting for %s to time out", self.stream, urls.mask(self.url))
