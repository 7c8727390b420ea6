"""A stream's time from its packets' timestamps and their arrival: never going back, free of network jitter.

A camera's clock wraps (32 bits at 90 kHz: every 13.26 h), jumps, drifts and sometimes stands still; the network only
ever delays. So a packet is placed where the quickest of the last half minute would have arrived, and a clock that
disagrees with reality is followed from anew. A file's time is kept as it is. Over all of a stream's connections there
is one clock again. Pure, but for the last, which reads how long a break was.
"""

from __future__ import annotations

import time

LEAST_STEP = 1e-4  # seconds between two packets, whatever their clock says
LEAST_GAP = 1e-3  # seconds between two frames, whatever their source's clock says
JUMP = 2.0  # seconds by which a camera's clock may disagree with ours before it has jumped
REORDERED = (
    1.0  # seconds by which pictures that are shown late may be behind those sent before them
)
MOST_DELAY = 10.0  # seconds; later than this nothing arrives that is worth its old time
HALF_WINDOW = 15.0  # seconds after which half of what is known about delays is forgotten
WRAPS = (32, 33)  # bits: RTP, MPEG-TS


class ArrivalClock:
    """Maps timestamps of live packets to stream seconds; `tick` is one unit of the timestamps in seconds."""

    def __init__(self, tick: float) -> None:
        self._wraps = [2.0**bits * tick for bits in WRAPS]
        self._turned = 0.0  # what wraps have taken from the camera's clock so far
        self._seen: tuple[float, float] | None = None  # media and arrival time of the packet before
        self._least: tuple[float, float] | None = (
            None  # of (arrival - media): this half and the last
        )
        self._half_began = 0.0
        self.first: float | None = None  # arrival of the first packet
        self._last = -LEAST_STEP

    def stamp(self, media: float | None, arrived: float) -> float:
        """Seconds since the first packet at which a packet of time `media` that came at `arrived` was sent.

        Increasing, and never later than `arrived`, both counted from the first packet.
        """
        if self.first is None:
            self.first = arrived
        at = arrived if media is None else self._undelayed(media, arrived)
        self._last = max(self._last + LEAST_STEP, at - self.first)
        return self._last

    def _undelayed(self, media: float, arrived: float) -> float:
        media = self._continued(media, arrived)
        offset = arrived - media
        if self._least is None:
            self._least, self._half_began = (offset, offset), arrived
        if arrived - self._half_began > HALF_WINDOW:
            self._least, self._half_began = (offset, self._least[0]), arrived
        self._least = (min(self._least[0], offset), self._least[1])
        if arrived - media - min(self._least) > MOST_DELAY:
            self._least = (offset, offset)
        return media + min(self._least)

    def _continued(self, media: float, arrived: float) -> float:
        """`media` with wraps undone; where it has jumped, what is known of delays is forgotten."""
        media += self._turned
        if self._seen is not None:
            before, then = self._seen
            latest = before + arrived - then + JUMP
            for wrap in self._wraps:
                if media < before - REORDERED <= media + wrap <= latest:
                    self._turned += wrap
                    media += wrap
            if not before - REORDERED <= media <= latest:
                self._least = None
        self._seen = (media, arrived)
        return media


class FileClock:
    """Maps a file's timestamps to seconds since its first packet. A step back (files joined together) is left out."""

    def __init__(self, rate: float) -> None:
        self._step, self._shift = 1 / (rate or 25.0), 0.0
        self._newest: float | None = None

    def stamp(self, media: float | None) -> float:
        """Return the time of the next packet in the file's order; `media` is its own time, if it has one."""
        if self._newest is None:
            self._shift, self._newest = -(media or 0.0), 0.0
            return 0.0
        at = self._newest + self._step if media is None else media + self._shift
        if at < self._newest - REORDERED:
            self._shift += self._newest + self._step - at
            at = self._newest + self._step
        self._newest = max(self._newest, at)
        return at


class StreamClock:
    """One clock over all connections of a stream. It never goes back, and gaps are as long as they were."""

    def __init__(self) -> None:
        self._shift = 0.0
        self._last: tuple[float, float] | None = (
            None  # stream time, and monotonic time it was stamped
        )
        self._is_new = False

    def restart(self) -> None:
        """Expect the next frame from a new connection, whose clock starts again."""
        self._is_new = self._last is not None

    def stamp(self, pts: float) -> float:
        """Return the stream's time of a frame that comes now; `pts` is its time on its connection."""
        now = time.monotonic()
        if self._last is not None:
            last, at = self._last
            if self._is_new:
                self._shift = last + (now - at) - pts
            if pts + self._shift <= last:
                self._shift = last + LEAST_GAP - pts
        self._is_new = False
        self._last = (pts + self._shift, now)
        return self._last[0]
