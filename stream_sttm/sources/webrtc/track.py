"""A WebRTC video track, drained as long as it lives, whatever its consumer does: a peer queues unread frames.

The newest picture that may be sampled is kept. The next replaces it where nobody took it. Shared by the sources that
receive WebRTC. This module knows nothing of signalling.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import cast

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame
from numpy.typing import NDArray

from stream_sttm import metrics
from stream_sttm.errors import SourceError
from stream_sttm.sources.images import Pace, rgb
from stream_sttm.types import Frame

MAX_BEHIND = (
    10.0  # seconds that decoding may be late; a peer keeps without limit what is not decoded yet
)


class DecodingDelay:
    """How far a track's decoding is behind its arrival, from the pictures' own times."""

    def __init__(self) -> None:
        self._least: float | None = None
        self._last = 0.0

    def measure(self, media: float, now: float) -> float:
        """Return the delay in seconds of the picture with time `media` that comes at `now`.

        A jump of either clock restarts the measurement.
        """
        lag = now - media
        if self._least is None or abs(lag - self._last) > MAX_BEHIND / 2:
            self._least = lag
        self._last, self._least = lag, min(self._least, lag)
        return lag - self._least


class LatestPicture:
    """The newest picture of one track, for one consumer. `heard_at` is monotonic, of the newest that came."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._newest: tuple[VideoFrame, float, float] | None = None
        self._arrived = asyncio.Event()
        self._broken: SourceError | None = None
        self._pace: Pace | None = None
        self._opened = time.monotonic()
        self.heard_at = 0.0

    async def drain(self, track: MediaStreamTrack) -> None:
        """Receive every frame and keep the newest that is due. Returns when the track ends or decoding is too slow."""
        delay = DecodingDelay()
        while True:
            try:
                picture = cast(VideoFrame, await track.recv())
            except MediaStreamError:
                return
            metrics.FRAMES_RECEIVED.labels(self._stream).inc()
            if picture.is_corrupt:
                self.count_damaged()
                continue
            self.heard_at = now = time.monotonic()
            if picture.time is not None and delay.measure(picture.time, now) > MAX_BEHIND:
                metrics.FRAMES_DROPPED.labels(self._stream, "too_late").inc()
                return
            if self._pace is not None and not self._pace.wants(now):
                metrics.FRAMES_DROPPED.labels(self._stream, "sampled_out").inc()
                continue
            if self._newest is not None:
                metrics.FRAMES_DROPPED.labels(self._stream, "superseded").inc()
            self._newest = (picture, now, time.time())
            self._arrived.set()

    def count_damaged(self) -> None:
        """Count a frame that is left out because it is damaged, or rests on one that is."""
        metrics.FRAMES_DROPPED.labels(self._stream, "corrupt").inc()

    def end(self, error: SourceError) -> None:
        """End the pictures. `error` says why, and is raised to the consumer."""
        self._broken = error
        self._arrived.set()

    async def frames(self, *, fps: float, max_side: int) -> AsyncIterator[Frame]:
        """Yield the newest frame, each time there is one. Raises the error that it was ended with."""
        self._pace = Pace(fps)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._newest is not None:
                (picture, received, captured_at), self._newest = self._newest, None
                image = await asyncio.to_thread(_image, picture, max_side)
                yield Frame(self._stream, image, received - self._opened, captured_at)
            if self._broken is not None:
                self._arrived.set()
                if self._newest is None:
                    raise self._broken


def _image(picture: VideoFrame, max_side: int) -> NDArray[np.uint8]:
    with metrics.stage("decode"):
        return rgb(picture, max_side)
