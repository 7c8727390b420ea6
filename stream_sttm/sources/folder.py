"""file:///folder/ - the videos of a folder, in order of name, as one stream.

A file whose name is not that of a video is left out. A video that can't be read is skipped and logged. Files that come
after the folder was opened are not seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceError, SourceUnavailable
from stream_sttm.sources.decoding.protocol import MAX_PIXELS
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.network.opening import file_path
from stream_sttm.sources.video import VideoSource
from stream_sttm.types import Frame

SUFFIXES = frozenset(
    f".{word}"
    for word in "mp4 m4v mov mkv webm avi mpg mpeg ts mts m2ts flv wmv 3gp ogv h264 h265 hevc mjpeg".split()  # noqa: SIM905 - one line
)

logger = logging.getLogger(__name__)


@dataclass
class FolderSource:
    """A folder of videos. Entering it reads the list of its files."""

    url: str
    stream: str = "folder"
    fps: float = 2.0
    max_side: int = 640
    decode: str = "auto"
    max_pixels: int = MAX_PIXELS
    access: Access = EVERYTHING
    processes: int = 0  # for each video, as of VideoSource
    is_live: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._folder, self._shown = file_path(self.url), urls.mask(self.url)
        self._videos: list[Path] = []
        self._shown_now = AsyncExitStack()  # the video whose frames are given
        self._video: VideoSource | None = None

    @property
    def details(self) -> dict[str, Any]:
        """What the video is like whose frames are given."""
        return self._video.details if self._video is not None else {}

    async def __aenter__(self) -> Self:
        self._videos = await asyncio.to_thread(self._found)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._shown_now.aclose()

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the frames of all videos on one clock. Raises SourceError where none of them can be read."""
        start, last, step = 0.0, 0.0, 0.0
        failure: SourceError | None = None
        has_shown = False
        for path in self._videos:
            try:
                async for frame in self._frames_of(path):
                    has_shown = True
                    if (at := start + frame.pts) > last:
                        step, last = at - last, at
                    yield replace(frame, pts=at)
            except SourceError as error:
                logger.warning("%s: skipped: %s", self.stream, error)
                failure = error
            start = last + step if has_shown else 0.0
        if failure is not None and not has_shown:
            raise failure

    async def _frames_of(self, path: Path) -> AsyncIterator[Frame]:
        source = self._video = VideoSource(
            f"file://{quote(str(path))}",
            stream=self.stream,
            fps=self.fps,
            max_side=self.max_side,
            decode=self.decode,
            max_pixels=self.max_pixels,
            access=self.access,
            processes=self.processes,
        )
        await self._shown_now.aclose()
        await self._shown_now.enter_async_context(source)
        async for frame in source.frames():
            yield frame

    def _found(self) -> list[Path]:
        folder = self.access.real_path(self.url, self._folder)
        try:
            videos = sorted(
                path
                for path in folder.iterdir()
                if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            )
        except FileNotFoundError:
            raise SourceUnavailable(f"{self._shown}: there is no such folder") from None
        except OSError as error:
            raise SourceUnavailable(f"{self._shown}: can't be read: {error.strerror}") from error
        if not videos:
            raise NotVideo(f"{self._shown}: there is no video in this folder")
        return videos
