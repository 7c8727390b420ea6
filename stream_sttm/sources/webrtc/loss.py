"""After loss: frames that rest on a lost one are withheld until the next keyframe, which the sender is asked for.

aiortc asks once (PLI, RFC 4585) and decodes on, so each later frame shows the damage. Its jitter buffer is where frames
are whole and not yet decoded, so it is replaced by one that looks for keyframes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket

ASK_EVERY = 1.0  # seconds between two requests for a keyframe
MOST_WITHHELD = 10.0  # seconds; an encoder that refreshes its pictures in stripes sends no keyframe
_BUFFER = "_RTCRtpReceiver__jitter_buffer"  # where aiortc keeps it
_NAL = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
_VP8_START = b"\x9d\x01\x2a"  # RFC 6386, 9.1
_H264_IDR = 5


def withhold_damage(receiver: RTCRtpReceiver, dropped: Callable[[], None]) -> None:
    """Make a receiver decode nothing after a loss until a keyframe. `dropped` is called for each frame left out."""
    capacity = getattr(receiver, _BUFFER).capacity
    setattr(receiver, _BUFFER, KeyframeBuffer(capacity, dropped))


def is_keyframe(data: bytes) -> bool:
    """Return whether an encoded frame, VP8 or H.264 in Annex B, begins anew."""
    if data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return any(found[1][0] & 0x1F == _H264_IDR for found in _NAL.finditer(data))
    return data[3:6] == _VP8_START and not data[0] & 1


class KeyframeBuffer(JitterBuffer):
    """A video jitter buffer that gives nothing between a loss and the next keyframe, nor before the first."""

    def __init__(
        self,
        capacity: int,
        dropped: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(capacity=capacity, is_video=True)
        self._dropped, self._now = dropped, now
        self._waits_since: float | None = now()
        self._asked = float("-inf")
        self._may_be_cut = False  # the frame after a loss may lack its beginning

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """Take a packet. Returns whether to ask for a keyframe, and a frame to decode, if one is whole."""
        has_lost, frame = super().add(packet)
        now = self._now()
        if has_lost:
            self._waits_since, self._may_be_cut = self._waits_since or now, True
        if self._waits_since is None:
            return False, frame
        if frame is not None:
            is_start = not self._may_be_cut and is_keyframe(frame.data)
            self._may_be_cut = False
            if is_start or now - self._waits_since > MOST_WITHHELD:
                self._waits_since = None
                return False, frame
            self._dropped()
        asks = now - self._asked >= ASK_EVERY
        self._asked = now if asks else self._asked
        return asks, None
