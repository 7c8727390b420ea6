"""rtsp:// rtsps:// http(s):// file:// - everything FFmpeg reads, decoded in a process of its own.

A live stream is shown as it is now: a frame that nobody took in time is replaced by the next, and counted. A file
waits for its consumer and ends by returning. Only what is due is decoded and converted. Knows nothing of reconnecting;
FFmpeg itself is in decoder.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from stream_sttm import urls
from stream_sttm.errors import ConfigError, NotVideo, SourceUnavailable
from stream_sttm.sources.greeting import greet
from stream_sttm.sources.process import DecoderProcess
from stream_sttm.sources.wire import MAX_PIXELS, Limits, Request
from stream_sttm.types import Frame


@dataclass
class VideoSource:
    """A camera or file that FFmpeg reads; entered, it is open and its video stream found."""

    url: str
    stream: str = "video"
    fps: float = 2.0
    max_side: int = 640
    decode: str = "auto"
    max_pixels: int = MAX_PIXELS
    limits: Limits = field(default_factory=Limits)
    is_live: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._path = _path(self.url)
        self.is_live = self._path is None
        self._process: DecoderProcess | None = None

    @property
    def heard_at(self) -> float:
        """When the stream last gave a sign of life, monotonic."""
        return self._process.heard_at if self._process is not None else 0.0

    @property
    def details(self) -> dict[str, Any]:
        """What the video is like and what of it is decoded."""
        return self._process.details if self._process is not None else {}

    async def __aenter__(self) -> Self:
        if self._path is not None:
            await asyncio.to_thread(_check_file, self.url, self._path)
        else:
            await greet(self.url)
        self._process = DecoderProcess(
            Request(
                url=self.url,
                address=self.url if self._path is None else str(self._path),
                stream=self.stream,
                fps=self.fps,
                max_side=self.max_side,
                decode=self.decode,
                max_pixels=self.max_pixels,
                limits=self.limits,
            )
        )
        try:
            self.is_live = await self._process.open()
        except BaseException:
            await self._process.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            await self._process.close()

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames in order; ends with a file's end, raises SourceError where the stream breaks."""
        if self._process is None:
            raise RuntimeError("frames() of a source that was not entered")
        while (frame := await self._process.frame()) is not None:
            yield frame


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
