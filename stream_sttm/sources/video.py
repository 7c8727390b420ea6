"""rtsp:// rtsps:// http(s):// file:// - everything FFmpeg reads, decoded in a thread of its own.

A live stream is shown as it is now: a frame that nobody took in time is replaced by the next, and counted. A file
waits for its consumer and ends by returning. Only frames that may be sampled are converted to RGB. Knows nothing of
reconnecting; FFmpeg itself is in decoder.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from stream_sttm import urls
from stream_sttm.errors import ConfigError, NotVideo, SourceUnavailable
from stream_sttm.sources.decoder import Decoder
from stream_sttm.sources.greeting import greet
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
    is_live: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._path = _path(self.url)
        self.is_live = self._path is None
        self._decoder: Decoder | None = None

    async def __aenter__(self) -> Self:
        if self._path is not None:
            await asyncio.to_thread(_check_file, self.url, self._path)
        else:
            await greet(self.url)
        address = self.url if self._path is None else str(self._path)
        self._decoder = Decoder(
            self.url, address, stream=self.stream, fps=self.fps, max_side=self.max_side
        )
        self._decoder.start()
        try:
            self.is_live = await self._decoder.opened
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
        while (frame := await self._decoder.mailbox.take()) is not None:
            yield frame

    async def _close(self) -> None:
        if self._decoder is None:
            return
        decoder, self._decoder = self._decoder, None
        decoder.mailbox.close()
        await asyncio.to_thread(decoder.join, GRACE)
        if decoder.is_alive():
            logger.info("%s: still waiting for %s to time out", self.stream, urls.mask(self.url))


def _path(url: str) -> Path | None:
    """The file behind a file:// URL, None for any other scheme."""
    parts = urls.split(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigError(
            f"{urls.mask(url)}: a file is named by its full path: file:///folder/name.mp4"
        )
    return Path(unquote(parts.path))


def _check_file(url: str, path: Path) -> None:
    """Find what FFmpeg would name less clearly, and pipes and devices, which it would wait for without end."""
    shown = urls.mask(url)
    try:
        if not path.exists():
            raise SourceUnavailable(f"{shown}: there is no such file")
        if path.is_dir():
            raise NotVideo(f"{shown}: is a folder: name one video file in it")
        if not path.is_file():
            raise NotVideo(f"{shown}: is not a regular file")
        if path.stat().st_size == 0:
            raise NotVideo(f"{shown}: the file is empty")
    except OSError as error:
        raise SourceUnavailable(f"{shown}: can't be read: {error.strerror}") from error
