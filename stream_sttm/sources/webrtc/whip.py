"""whip: - a WebRTC stream that is pushed: a browser or encoder publishes it (WHIP, RFC 9725), one at a time.

A WhipSource waits until its stream's peer is connected. It ends the peer when it is left, so a publisher that sends no
picture any more makes room for the next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self

from stream_sttm import urls
from stream_sttm.errors import ConfigError, SourceUnavailable
from stream_sttm.sources.webrtc.peer import Publisher
from stream_sttm.sources.webrtc.publishers import Publishers
from stream_sttm.types import Frame


@dataclass
class WhipSource:
    """A stream that somebody publishes. Once entered, a publisher is connected."""

    url: str
    stream: str = "whip"
    fps: float = 2.0
    max_side: int = 640
    publishers: Publishers | None = None
    is_live: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if urls.split(self.url).netloc:
            raise ConfigError("whip: takes no address: it waits for a publisher of the stream")
        self.waits_for = f"waits for a publisher at /api/v1/streams/{self.stream}/whip"
        self._publisher: Publisher | None = None

    @property
    def heard_at(self) -> float:
        """When the newest picture came, monotonic."""
        return self._publisher.latest.heard_at if self._publisher is not None else 0.0

    async def __aenter__(self) -> Self:
        if self.publishers is None or not self.publishers.takes(self.stream):
            raise SourceUnavailable(f"whip: nobody takes publishers of {self.stream!r} here")
        self._publisher = await self.publishers.wait(self.stream)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.publishers is not None and self._publisher is not None:
            await self.publishers.end(self.stream, self._publisher.id)

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the newest frame, each time there is one. Raises SourceUnavailable when the publisher is gone."""
        if self._publisher is None:
            raise RuntimeError("frames() of a source that was not entered")
        async for frame in self._publisher.latest.frames(fps=self.fps, max_side=self.max_side):
            yield frame
