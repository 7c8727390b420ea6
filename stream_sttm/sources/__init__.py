"""Where frames come from: one file per transport, found by URL scheme.

A source runs until its stream ends (it returns) or breaks (it raises SourceError). It never reconnects; the one
reconnect loop is in workers/ingest.py. Importing this table imports no decoder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from stream_sttm import registry, urls
from stream_sttm.types import Frame

GROUP = "stream_sttm.sources"
SOURCES: dict[str, str] = {
    "rtsp": "stream_sttm.sources.video:VideoSource",
    "rtsps": "stream_sttm.sources.video:VideoSource",
    "http": "stream_sttm.sources.video:VideoSource",
    "https": "stream_sttm.sources.video:VideoSource",
    "file": "stream_sttm.sources.video:VideoSource",
    "whep": "stream_sttm.sources.webrtc:WhepSource",
    "wheps": "stream_sttm.sources.webrtc:WhepSource",
    "scene": "stream_sttm.sources.scene:SceneSource",
}


class Source(AbstractAsyncContextManager["Source"], Protocol):
    """An opened camera; leaving the context closes it whatever state it is in.

    Where it hears from its camera more often than it yields frames it says so: `heard_at`, monotonic seconds of the
    newest sign of life. Where it knows more of the video it has `details`, fit for a stream's status.
    """

    is_live: bool

    def frames(self) -> AsyncIterator[Frame]:
        """Frames in order; ends at the end of a file, raises SourceError when the stream breaks."""
        ...


def open_source(url: str, *, stream: str, fps: float, max_side: int, **further: Any) -> Source:
    """The source for `url`, not yet connected: entering it connects.

    `fps` is what the consumer will sample, a hint that lets a source skip decoding or conversion; frames may come
    faster. `max_side` bounds the longer side of an image in pixels; larger pictures are scaled down at the source.
    `further` options (`decode`, `max_pixels`) are for those sources that have them.
    Raises ConfigError for an unknown scheme or a missing extra.
    """
    scheme = urls.split(url).scheme
    cls = registry.find(SOURCES, GROUP, scheme, kind="source scheme")
    own = {key: further[key] for key in further.keys() & registry.options_of(cls)}
    source: Source = registry.build(
        cls,
        {"url": url, "stream": stream, "fps": fps, "max_side": max_side} | own,
        kind=f"source {scheme}://",
    )
    return source
