"""Gives out packets that come in bursts at the pace of their own clock: a playlist names seconds of video at a time.

Without it a viewer would get many frames every few seconds and none in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from av.packet import Packet

BURSTS = ("hls",)  # FFmpeg's names of the formats that come so
MOST = 15.0  # seconds that a packet is held at most; a clock that jumps farther starts anew


def played(
    packets: Iterable[Packet[Any]],
    pause: Callable[[float], bool],
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Packet[Any]]:
    """Each packet when its time has come; `pause(seconds)` waits and tells whether anybody still does."""
    origin: float | None = None
    for packet in packets:
        at = packet.dts if packet.dts is not None else packet.pts
        if at is not None and packet.time_base is not None:
            media = float(at * packet.time_base)
            early = media + origin - now() if origin is not None else 0.0
            if origin is None or abs(early) > MOST:
                origin = now() - media
            elif early > 0 and not pause(early):
                return
        yield packet
