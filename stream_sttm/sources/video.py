"""rtsp(s):// http(s):// rtmp(s):// srt:// v4l2:// file:// - everything FFmpeg reads, decoded in a process of its own.

A live stream is shown as it is now: a frame that nobody took in time is replaced by the next, and counted. A file
waits for its consumer, ends by returning, and is decoded by several processes in turn (decoding/parallel.py). Only what
is due is decoded and converted. Knows nothing of reconnecting. How a URL is opened is in network/opening.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from stream_sttm import urls
from stream_sttm.config import source_url
from stream_sttm.errors import SourceDenied, SourceError
from stream_sttm.sources.decoding.parallel import ParallelDecoder, processes
from stream_sttm.sources.decoding.process import DecoderProcess
from stream_sttm.sources.decoding.protocol import MAX_PIXELS, Limits, Request, Share
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.network.opening import Opening, check_spelling, prepare
from stream_sttm.sources.network.preflight import login_obstacle
from stream_sttm.sources.network.rtsp_proxy import RtspProxy
from stream_sttm.types import Frame


@dataclass
class VideoSource:
    """A camera or file that FFmpeg reads. Once entered it is open, and its video stream is found.

    `processes` decode a file, if it can be cut; 0: as many as suit it and this machine.
    """

    url: str
    stream: str = "video"
    fps: float = 2.0
    max_side: int = 640
    decode: str = "auto"
    max_pixels: int = MAX_PIXELS
    access: Access = EVERYTHING
    processes: int = 0
    limits: Limits = field(default_factory=Limits)
    is_live: bool = field(default=True, init=False)
    # segments of a live playlist that were given out, for the next source of this URL not to give them again
    shown: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_spelling(self.url)
        self.is_live = urls.split(self.url).scheme != "file"
        self._process: DecoderProcess | ParallelDecoder | None = None
        self._proxy: RtspProxy | None = None

    @property
    def heard_at(self) -> float:
        """When the stream last gave a sign of life, monotonic."""
        return self._process.heard_at if self._process is not None else 0.0

    @property
    def details(self) -> dict[str, Any]:
        """What the video is like and what of it is decoded."""
        return self._process.details if self._process is not None else {}

    async def __aenter__(self) -> Self:
        try:
            opening, self._proxy = await prepare(self.url, self.access)
            request = self._request(replace(opening, shown=self.shown))
            is_shared = request.share.count > 1
            self._process = ParallelDecoder(request) if is_shared else DecoderProcess(request)
            self.is_live = await self._process.open()
        except SourceError as error:
            await self._close()
            raise await self._explained(error) from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames in order; ends with a file's end, raises SourceError where the stream breaks."""
        if self._process is None:
            raise RuntimeError("frames() of a source that was not entered")
        try:
            while (frame := await self._process.frame()) is not None:
                self.shown = getattr(self._process, "shown", [])
                yield frame
        except SourceError as error:
            raise self._meant(error) from error

    def _request(self, opening: Opening) -> Request:
        count = (self.processes or processes(opening.size)) if opening.size else 1
        return Request(
            url=self.url,
            opening=opening,
            stream=self.stream,
            fps=self.fps,
            max_side=self.max_side,
            decode=self.decode,
            max_pixels=self.max_pixels,
            limits=self.limits,
            share=Share(0, count),
        )

    async def _explained(self, error: SourceError) -> SourceError:
        """Return why opening has failed: a login that FFmpeg can't do is no wrong password."""
        bare, options = source_url.options(self.url)
        parts = urls.split(bare)
        if (
            isinstance(error, SourceDenied)
            and parts.scheme.startswith("rtsp")
            and parts.username is not None
        ):
            verify = options.get("verify") != "false"
            if why := await login_obstacle(bare, self.access, verify=verify):
                return SourceDenied(f"{urls.mask(bare)}: access denied: {why}")
        return self._meant(error)

    def _meant(self, error: SourceError) -> SourceError:
        """Return the error, or the proxy's refusal where that is behind it."""
        if self._proxy is None or not self._proxy.has_refused:
            return error
        shown = urls.mask(self.url)
        return SourceDenied(f"{shown}: it redirects, which is not followed where hosts are limited")

    async def _close(self) -> None:
        """Close the process first, then the proxy through which it still says goodbye."""
        try:
            if self._process is not None:
                await self._process.close()
        finally:
            if self._proxy is not None:
                await self._proxy.__aexit__(None, None, None)
