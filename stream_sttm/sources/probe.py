"""Opens a source for a few seconds to find out what its video is like.

Knows nothing of streams. The source is closed again whatever comes of it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from stream_sttm import urls
from stream_sttm.config import source_url
from stream_sttm.errors import ConfigError, SourceError, SourceUnavailable
from stream_sttm.sources import Source, open_source
from stream_sttm.sources.images import jpeg
from stream_sttm.sources.network.access import Access
from stream_sttm.types import Frame

NAME = "(test)"  # in metrics; no stream can have it
_FPS = 2.0
_MAX_SIDE = 640


@dataclass
class ProbeResult:
    """What was found out so far; `video` is as in a stream's status, None where the source does not know it."""

    began: float
    opened_in: float | None = None
    first: Frame | None = None
    frames: int = 0
    video: dict[str, Any] | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is nothing more to wait for."""
        if self.first is None:
            return False
        return self.video is None or self.video.get("keyframe_interval") is not None


async def probe(url: str, access: Access, *, seconds: float) -> dict[str, Any]:
    """Open a source for `seconds` at most and return what its video is like. Raises ConfigError or SourceError."""
    if source_url.plain(url).startswith("whip:"):
        raise ConfigError(
            "whip: waits for a publisher, so there is nothing to try; add it as a stream"
        )
    source = open_source(url, stream=NAME, fps=_FPS, max_side=_MAX_SIDE, access=access, processes=1)
    seen = ProbeResult(time.monotonic())
    try:
        async with asyncio.timeout(seconds):
            await _look(source, seen)
    except TimeoutError:
        if seen.first is None:
            raise SourceUnavailable(f"{urls.mask(url)}: no picture within {seconds:g} s") from None
    except SourceError:
        if seen.first is None:  # what was seen before it broke is an answer
            raise
    if seen.first is None:
        raise SourceUnavailable(f"{urls.mask(url)}: ended without a picture")
    picture = await asyncio.to_thread(jpeg, seen.first.image)
    height, width = seen.first.image.shape[:2]
    video = {
        "codec": None,
        "width": width,
        "height": height,
        "fps": None,
        "keyframe_interval": None,
    }
    described = seen.video or {}
    return {
        **{key: described.get(key) if key in described else other for key, other in video.items()},
        "is_live": source.is_live,
        "frames": seen.frames,
        "opened_in": None if seen.opened_in is None else round(seen.opened_in, 3),
        "jpeg_bytes": len(picture),
    }


async def _look(source: Source, seen: ProbeResult) -> None:
    async with source:
        seen.opened_in = time.monotonic() - seen.began
        async with aclosing(source.frames()) as frames:  # type: ignore[type-var]
            async for frame in frames:
                seen.first = seen.first or frame
                seen.frames += 1
                seen.video = getattr(source, "details", {}).get("video")
                if seen.is_known:
                    return
