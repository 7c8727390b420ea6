"""Decides which packets must be decoded so that frames come at the wanted rate.

A keyframe decodes by itself, and most cameras send one every second or two. Where keyframes come as often as frames
are wanted, nothing else is decoded. Else pictures that no other refers to are left out if enough remain, and so is the
end of a group of pictures (GOP) in which nothing more is due. The mode is chosen from the packets seen, again at each
keyframe. Pure: time is passed in. Knows no codec.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from math import floor

EARLY = 0.0999  # share of the period by which a frame may come early: the sampler's, less what rounding may take
SLACK = 0.1  # share of the sampling period by which keyframes may be rarer than frames are wanted
OVERDUE = 1.5  # sampling periods without a keyframe after which it is not waited for any longer
UNREFERENCED = 4.0  # packets per wanted frame from which non-reference pictures may go: at most 3 of 4 are such
NEARLY = 0.98  # share of a GOP after which its successor is near enough to be counted on
REST = 30.0  # seconds for which a decoder that was too slow takes keyframes alone


class Mode(StrEnum):
    """What is decoded of a stream."""

    KEYFRAMES = "keyframes"
    REFERENCES = "references"
    FULL = "full"


class Gop:
    """How often packets and keyframes come; `t` of a stream, in seconds."""

    def __init__(self) -> None:
        self.newest: float | None = None  # time of the newest keyframe
        self.rate: float | None = None  # packets per second, of the newest whole GOP
        self._intervals: deque[float] = deque(maxlen=3)
        self._packets = 0

    def add(self, t: float, *, is_key: bool) -> None:
        """Note a packet."""
        self._packets += 1
        if not is_key:
            return
        if self.newest is not None and t > self.newest:
            self._intervals.append(t - self.newest)
            self.rate = self._packets / (t - self.newest)
        self.newest, self._packets = t, 0

    @property
    def interval(self) -> float | None:
        """The longest of the last three times between keyframes; None before there was one."""
        return max(self._intervals, default=None)


class Policy:
    """What to decode of one stream that is sampled at `fps`; `asked` is a mode's name, or auto."""

    def __init__(self, asked: str, fps: float) -> None:
        self.gop = Gop()
        self._asked = None if asked == "auto" else Mode(asked)
        self.mode = self._asked or Mode.FULL
        self._period = 1 / fps
        self._rests_until = float("-inf")

    def add(self, t: float, *, is_key: bool) -> None:
        """Note a packet; a keyframe may change the mode."""
        self.gop.add(t, is_key=is_key)
        if is_key:
            self.mode = self._chosen(t)

    def waits(self, t: float, due: float) -> bool:
        """Whether a packet that is no keyframe may wait undecoded, as the next picture is due at `due`.

        When the answer turns to no, all that waited since the last keyframe has to be decoded.
        """
        if self._asked is not None or t < self._rests_until:
            return self.mode is Mode.KEYFRAMES
        newest, interval = self.gop.newest, self.gop.interval
        if newest is None or interval is None:
            return False
        if self.mode is Mode.KEYFRAMES:
            if t - newest <= OVERDUE * self._period:
                return True
            self.mode = self._without_keyframes()
        return t < due and due >= newest + NEARLY * interval

    def relieve(self, t: float) -> None:
        """Decode only keyframes for a while, because the decoder can't keep up."""
        self.mode, self._rests_until = Mode.KEYFRAMES, t + REST

    def _chosen(self, t: float) -> Mode:
        if t < self._rests_until:
            return Mode.KEYFRAMES
        if self._asked is not None:
            return self._asked
        interval = self.gop.interval
        if interval is not None and interval <= (1 + SLACK) * self._period:
            return Mode.KEYFRAMES
        return self._without_keyframes()

    def _without_keyframes(self) -> Mode:
        is_dense = (self.gop.rate or 0.0) * self._period >= UNREFERENCED
        return Mode.REFERENCES if is_dense else Mode.FULL


class Grid:
    """The times at which a stream sampled at `fps` wants a frame, counted from its first; the sampler's own rule.

    A hair stricter than the sampler (sampling.py), so that no frame is converted which it would leave.
    """

    def __init__(self, fps: float, origin: float | None = None) -> None:
        self._fps = fps
        self._origin = origin
        self._next = 0

    def begin(self, t: float) -> None:
        """Go on at `t` without knowing what was taken before, as if nothing of that point's period was."""
        if self._origin is not None:
            self._next = self._reached(t, self._origin)

    @property
    def due(self) -> float:
        """When the next frame is due."""
        return float("-inf") if self._origin is None else self._origin + self._next / self._fps

    def wants(self, t: float) -> bool:
        """Whether a frame at `t` would be taken."""
        return self._origin is None or self._reached(t, self._origin) >= self._next

    def take(self, t: float) -> bool:
        """Whether the frame at `t`, not before the last, is wanted; if so the next is due a period on."""
        if not self.wants(t):
            return False
        self._origin = t if self._origin is None else self._origin
        self._next = self._reached(t, self._origin) + 1
        return True

    def _reached(self, t: float, origin: float) -> int:
        return floor((t - origin) * self._fps + EARLY)
