"""Decodes the frames that are due: as few packets as gop.py allows, and only sampled pictures are converted.

Packets that may not be needed are held undecoded until the next keyframe. Where a picture is due before that, they are
decoded all at once. What was left out, damaged or lost is counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceUnavailable
from stream_sttm.sources.decoding.clock import LEAST_STEP
from stream_sttm.sources.decoding.gop import Grid, Mode, Policy
from stream_sttm.sources.decoding.mailbox import Mailbox, Picture
from stream_sttm.sources.decoding.protocol import Image, Request, is_news

MOST_HELD = 16 << 20  # bytes of packets that wait for a keyframe
MOST_FRUITLESS = 300  # packets in a row that give no picture until it is no video
MOST_REORDERED = 64  # packets that a decoder may hold back
FULL_LOAD = 0.9  # share of one core from which a live stream's decoder is too slow
LOAD_OVER = 2.0  # seconds over which that is measured


@dataclass(slots=True)
class Stamped:
    """A packet with the stream's time at which it was sent, and its wall clock where the stream is live."""

    packet: Packet[Any]
    t: float
    captured_at: float | None = None
    segment: int = 0  # of a file, see segments.py
    is_ours: bool = True  # whether its picture is for this process to give
    is_decoded: bool = False
    is_out: bool = False  # whether its picture has come out of the decoder


class Astray(Exception):  # noqa: N818 - no error: the file is decoded by one process instead
    """A segment can't be decoded without what comes before it."""


class FrameSelection:
    """Takes one stream's packets and puts the pictures that are due into `mailbox`."""

    def __init__(
        self,
        request: Request,
        video: VideoStream,
        mailbox: Mailbox,
        *,
        is_live: bool,
        is_part: bool = False,
    ) -> None:
        self._request, self._mailbox, self._is_live = request, mailbox, is_live
        self._is_part = is_part  # of a file, of which other processes decode the rest
        self._context = video.codec_context
        self._policy = Policy(request.decode, request.fps)
        self._grid = Grid(request.fps, request.share.origin)
        self._awaited: Stamped | None = None  # the keyframe whose picture has to be the next
        # packets since the newest keyframe that the decoder lacks; None: there is nothing to start from
        self._chain: list[Stamped] | None = None
        self._reordered: dict[int | None, Stamped] = {}
        self._reformatter = VideoReformatter()  # keeps FFmpeg's scaler between pictures
        self._held = 0  # bytes in the chain, about
        self._fruitless = 0
        self._last = -LEAST_STEP
        self._size = (self._context.width, self._context.height)
        self._told: dict[str, Any] = {}
        self._started = 0.0
        self._load_since, self._busy = time.monotonic(), 0.0

    @property
    def is_done(self) -> bool:
        """Whether no picture is to come from the decoder before the next keyframe's."""
        return bool(self._chain) or self._policy.mode is Mode.KEYFRAMES

    def note(self, item: Stamped) -> None:
        """Note a packet that another process decodes."""
        self._policy.add(item.t, is_key=item.packet.is_keyframe)

    def add(self, item: Stamped, *, begins: bool = False) -> None:
        """Take the next packet, which may begin a segment. Raises Astray, or SourceError where none can be decoded."""
        self._mailbox.count("received")
        is_key = item.packet.is_keyframe
        self._policy.add(item.t, is_key=is_key)
        if begins:
            self._grid.begin(item.t)
            self._awaited = None if self._policy.mode is Mode.KEYFRAMES else item
        if is_key:
            self._keyframe(item)
            self._describe()
        elif self._chain is None:
            self._mailbox.count("not_decoded")
            since = item.t - (self._policy.gop.newest or 0.0)
            if since > self._request.limits.keyframe:
                raise SourceUnavailable(
                    self._line(
                        f"no keyframe in {since:.0f} s: set the camera's keyframe interval to a second or two"
                    )
                )
        else:
            self._chain.append(item)
            if not self._policy.waits(item.t, self._grid.due):
                chain, self._chain, self._held = self._chain, [], 0
                self._decode(chain)
            elif (held := self._held + item.packet.size) > MOST_HELD:
                self._drop_chain()
                self._chain = None
            else:
                self._held = held

    def finish(self) -> None:
        """End a file: deliver what the decoder still holds."""
        self._drop_chain()
        self._drain()
        self._forget(0)
        self._check_start()

    def leave(self, tail: Sequence[Stamped]) -> None:
        """End a segment. Pictures of `tail`, which follows it, may still belong to it. Raises Astray."""
        if not self.is_done:
            if tail:
                self._decode(tail)
            self._drain()
        self._drop_chain()
        self._restart()
        self._check_start()

    def _drain(self) -> None:
        """Deliver what the decoder still holds."""
        self._started = time.perf_counter()
        self._deliver(self._context.decode(None), None)

    def _check_start(self) -> None:
        """Raise Astray where the segment's first picture has never come."""
        if self._awaited is not None:
            raise Astray

    def _keyframe(self, item: Stamped) -> None:
        """Start from here: whatever waited is not needed any more."""
        if self._drop_chain():
            self._restart()
        is_alone = self._policy.mode is Mode.KEYFRAMES
        if is_alone and not self._grid.wants(item.t):
            self._chain = [item]
            return
        self._chain = []
        self._decode([item])
        if is_alone and not item.is_out:
            # It would come with the next packets, which shall not be decoded; with them it may have to be once more.
            self._deliver(self._context.decode(None), item)
            self._restart()
            self._chain = [item]

    def _restart(self) -> None:
        """Let the decoder forget what came before a keyframe."""
        self._context.flush_buffers()
        self._forget(0)

    def _forget(self, most: int) -> None:
        """Give up on all but `most` of the packets whose pictures have not come: they were skipped."""
        while len(self._reordered) > most:
            skipped = self._reordered.pop(next(iter(self._reordered)))
            self._mailbox.count("not_decoded", int(skipped.is_ours))

    def _drop_chain(self) -> bool:
        """Forget the packets that wait; whether there were any that the decoder misses."""
        chain, self._chain, self._held = self._chain or [], [], 0
        self._mailbox.count("not_decoded", sum(not held.is_decoded for held in chain))
        return bool(chain)

    def _decode(self, items: Sequence[Stamped]) -> None:
        """Decode packets in their order."""
        is_sparing = self._policy.mode is Mode.REFERENCES
        self._context.skip_frame = "NONREF" if is_sparing else "DEFAULT"
        for item in items:
            self._started, busy = time.perf_counter(), time.thread_time()
            item.is_decoded = True
            if item.packet.pts is not None:
                self._reordered[item.packet.pts] = item
                self._forget(MOST_REORDERED)
            self._fruitless += 1
            try:
                pictures = item.packet.decode()
            except av.error.FFmpegError as error:
                self._reordered.pop(item.packet.pts, None)
                self._damaged(error)
                continue
            self._deliver(pictures, item)
            self._busy += time.thread_time() - busy
        self._relieve(items[-1].t)
        if self._fruitless > MOST_FRUITLESS:
            raise NotVideo(self._line("nothing of it can be decoded"))

    def _damaged(self, error: av.error.FFmpegError) -> None:
        if isinstance(error, MemoryError):
            raise error
        self._mailbox.count("corrupt")
        if not self._context.width:  # FFmpeg has refused the size
            raise NotVideo(
                self._line(
                    f"its pictures have no size, or more than the {self._request.max_pixels} pixels of max_pixels"
                )
            ) from error

    def _deliver(self, pictures: Sequence[VideoFrame], item: Stamped | None) -> None:
        """Convert and hand over what is due of pictures that came out with `item`."""
        for picture in pictures:
            own = self._reordered.pop(picture.pts, item) if picture.pts is not None else item
            if own is not None:
                own.is_out = True
            if not self._is_due_here(picture, own):
                continue
            if picture.is_corrupt:
                self._mailbox.count("corrupt")
                continue
            self._fruitless = 0
            self._size = (picture.width, picture.height)
            t = max(self._last + LEAST_STEP, own.t if own is not None else 0.0)
            if not self._grid.take(t):
                self._mailbox.count("sampled_out")
                continue
            self._last = t
            captured_at = own.captured_at if own is not None else None
            image = self._shrunk(picture)
            spent = time.perf_counter() - self._started
            self._mailbox.put(Picture(image, t, captured_at or time.time(), spent))
            self._started = time.perf_counter()

    def _is_due_here(self, picture: VideoFrame, own: Stamped | None) -> bool:
        """Whether a picture is for this process to give; raises Astray where it can't be told, or is no clean start."""
        if not self._is_part:
            return own is None or own.is_ours
        if own is None or own.packet.pts != picture.pts:
            raise Astray
        if not own.is_ours:
            return False
        if self._awaited is not None and (own is not self._awaited or picture.is_corrupt):
            raise Astray
        self._awaited = None
        return True

    def _shrunk(self, picture: VideoFrame) -> Image:
        """(H, W, 3) RGB, no larger than asked for."""
        scale = min(1.0, self._request.max_side / max(picture.width, picture.height))
        shrunk = self._reformatter.reformat(
            picture,
            width=max(1, round(picture.width * scale)),
            height=max(1, round(picture.height * scale)),
            format="rgb24",
            interpolation="AREA",
        )
        return np.asarray(shrunk.to_ndarray(), np.uint8)

    def _relieve(self, t: float) -> None:
        """Take keyframes alone for a while where decoding a live stream takes all of a core."""
        passed = time.monotonic() - self._load_since
        if passed < LOAD_OVER:
            return
        if self._is_live and self._busy > FULL_LOAD * passed:
            self._policy.relieve(t)
        self._load_since, self._busy = time.monotonic(), 0.0

    def _describe(self) -> None:
        """Tell what the video is like, where that has changed."""
        gop = self._policy.gop
        now: dict[str, Any] = {
            "codec": self._context.name,
            "width": self._size[0],
            "height": self._size[1],
            "decode": self._policy.mode.value,
            "fps": gop.rate and round(gop.rate, 1),
            "keyframe_interval": gop.interval and round(gop.interval, 2),
        }
        if is_news(now, self._told):
            self._told = now
            self._mailbox.note(video=now)

    def _line(self, what: str) -> str:
        return f"{urls.mask(self._request.url)}: {what}"
