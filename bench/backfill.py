"""How much faster several processes decode a file than one, and at what cost: the same file, the best of each.

What is measured is the time until all wanted frames have come to somebody who does nothing with them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from prometheus_client import REGISTRY

from stream_sttm.sources.decoding.parallel import MOST
from stream_sttm.sources.video import VideoSource

TIMES = 2  # that each way is tried


@dataclass(frozen=True, slots=True)
class Fill:
    """One rate of frames by one process and by several: seconds, and seconds of CPU time, of the quickest try."""

    fps: float
    decode: str
    processes: int
    frames: int
    alone: tuple[float, float]
    together: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times as fast several are."""
        return self.alone[0] / self.together[0]


def looped(video: Path, path: Path, seconds: float) -> Path:
    """Return the packets of a video again and again, as one file of so many seconds."""
    with av.open(str(video)) as short, av.open(str(path), "w") as long:
        stream = short.streams.video[0]
        packets = [packet for packet in short.demux(stream) if packet.size]
        length = max((packet.pts or 0) + (packet.duration or 0) for packet in packets)
        assert packets[0].time_base is not None
        copy = long.add_stream_from_template(stream)
        for turn in range(round(seconds / float(length * packets[0].time_base))):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts = (packet.pts or 0) + turn * length
                again.dts = (packet.dts or 0) + turn * length
                again.time_base, again.duration = packet.time_base, packet.duration
                again.is_keyframe, again.stream = packet.is_keyframe, copy
                long.mux(again)
    return path


async def compare(path: Path, fps: Sequence[float], count: int) -> list[Fill]:
    """Decode a file for each rate, by one process and by `count`."""
    fills = []
    for rate in fps:
        tries: dict[int, list[tuple[float, float]]] = {1: [], count: []}
        for _ in range(TIMES):
            for processes, spent in tries.items():
                frames, mode, cost = await _decoded(path, rate, processes)
                spent.append(cost)
        fills.append(Fill(rate, mode, count, frames, min(tries[1]), min(tries[count])))
    return fills


async def _decoded(path: Path, fps: float, processes: int) -> tuple[int, str, tuple[float, float]]:
    """Frames, the way of decoding, seconds and CPU seconds of one try."""
    frames, began, before = 0, time.monotonic(), _cpu_seconds()
    async with VideoSource(path.as_uri(), "film", fps, processes=processes) as source:
        async for _ in source.frames():
            frames += 1
        passed, mode = time.monotonic() - began, source.details["video"]["decode"]
    return frames, mode, (passed, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    """Of this process and of its decoders, as they tell it."""
    decoded = REGISTRY.get_sample_value("stream_sttm_decode_cpu_seconds_total", {"stream": "film"})
    return time.process_time() + (decoded or 0.0)


def lines(fills: Sequence[Fill], seconds: float) -> list[str]:
    """For people."""
    return [
        f"back-fill of {seconds:.0f} s of video at {fill.fps:g} fps ({fill.decode}, {fill.frames} frames): one process"
        f" {fill.alone[0]:.2f} s, {fill.processes} processes {fill.together[0]:.2f} s, {fill.ratio:.2f} times as fast"
        f" (CPU {fill.alone[1]:.2f} and {fill.together[1]:.2f} s)"
        for fill in fills
    ]


def usual(cores: int) -> int:
    """How many processes to hold against one."""
    return max(2, min(MOST, cores))
