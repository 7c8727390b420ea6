"""Sources of frames: one file per transport, found by URL scheme.

A source runs until its stream ends (it returns) or breaks (it raises SourceError). It never reconnects: the one
reconnect loop is in workers/ingest.py. Importing this table imports no decoder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from stream_sttm import registry, urls
from stream_sttm.config import source_url
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.types import Frame

GROUP = "stream_sttm.sources"
SOURCES: dict[str, str] = {
    "rtsp": "stream_sttm.sources.video:VideoSource",
    "rtsps": "stream_sttm.sources.video:VideoSource",
    "http": "stream_sttm.sources.video:VideoSource",
    "https": "stream_sttm.sources.video:VideoSource",
    "rtmp": "stream_sttm.sources.video:VideoSource",
    "rtmps": "stream_sttm.sources.video:VideoSource",
    "srt": "stream_sttm.sources.video:VideoSource",
    "v4l2": "stream_sttm.sources.video:VideoSource",
    "file": "stream_sttm.sources.video:VideoSource",
    "folder": "stream_sttm.sources.folder:FolderSource",  # file:// with a / at its end
    "whep": "stream_sttm.sources.webrtc.whep:WhepSource",
    "wheps": "stream_sttm.sources.webrtc.whep:WhepSource",
    "whip": "stream_sttm.sources.webrtc.whip:WhipSource",
    "scene": "stream_sttm.sources.scene:SceneSource",
}


class Source(AbstractAsyncContextManager["Source"], Protocol):
    """An opened camera. Leaving the context closes it, whatever its state.

    A source that may have to wait for somebody before it can be entered says so in an attribute `waits_for`, a line.
    Where it hears from its camera more often than it yields frames it says so: `heard_at`, monotonic seconds of the
    newest sign of life. Where it knows more of the video it has `details`, fit for a stream's status.
    """

    is_live: bool

    def frames(self) -> AsyncIterator[Frame]:
        """Frames in order; ends at the end of a file, raises SourceError when the stream breaks."""
        ...


def open_source(url: str, *, stream: str, fps: float, max_side: int, **further: Any) -> Source:
    """Return the source for `url`. It connects when it is entered.

    `fps` is what the consumer will sample, a hint that lets a source skip decoding or conversion; frames may come
    faster. `max_side` bounds the longer side of an image in pixels; larger pictures are scaled down at the source.
    `further` options (`access`, `publishers`, `decode`, `max_pixels`) are for those sources that have them. Raises
    ConfigError for an unknown scheme or option or a missing extra, SourceDenied where `access` does not allow the URL.
    """
    url = source_url.plain(url)
    parts = urls.split(url)
    source_url.options(url)
    kind = "folder" if parts.scheme == "file" and parts.path.endswith("/") else parts.scheme
    cls = registry.find(SOURCES, GROUP, kind, kind="source scheme")
    access: Access = further.get("access", EVERYTHING)
    access.check(url)
    own = {key: further[key] for key in further.keys() & registry.options_of(cls)}
    source: Source = registry.build(
        cls,
        {"url": url, "stream": stream, "fps": fps, "max_side": max_side} | own,
        kind=f"source {parts.scheme}://",
    )
    return source
