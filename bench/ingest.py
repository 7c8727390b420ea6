"""What cameras cost before any model sees them, and that nothing stays behind when they come and go.

Real RTSP over TCP from a GStreamer server in a process of its own, whose CPU time is not counted; counted is that of
this process and its decoders. Full decoding of all cameras would not fit on two cores, so it runs with fewer and is
compared per camera. So are cameras read through the gate that stands before them where hosts are limited, and a file by
one process and by several. Run: python -m bench.ingest; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.backfill import Fill, compare, lines, looped, usual
from bench.processes import Usage, usage
from stream_sttm.config.streams import StreamSettings
from stream_sttm.sources import open_source
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Clip, StreamState, StreamStatus
from tests.support.rtsp_server import RtspCamera, why_missing, write_video
from tests.support.tcp_proxy import Proxy
from workers import ingest
from workers.channel import Channel

PATIENCE = 60.0  # seconds for cameras to come online, go, and processes to end
LIMITED = Access(hosts=("127.0.0.1",))  # as with any `sources.hosts`, RTSP goes through the gate
SETTLING = 3.0  # seconds after which the way of decoding has been chosen


@dataclass(frozen=True, slots=True)
class Arm:
    """What one way of watching cost: share of a core, sampled frames per camera and second."""

    name: str
    cameras: int
    cores: float
    frames_per_second: float
    modes: dict[str, int]
    memory: int

    @property
    def per_camera(self) -> float:
        """Share of a core."""
        return self.cores / self.cameras


class Watched:
    """Cameras that are being watched, and what they last said."""

    def __init__(self) -> None:
        self.statuses: dict[str, StreamStatus] = {}
        self.frames = 0

    def report(self, status: StreamStatus) -> None:
        """Take a status."""
        self.statuses[status.stream] = status

    def online(self) -> int:
        """How many cameras are online."""
        return sum(status.state is StreamState.ONLINE for status in self.statuses.values())

    def modes(self) -> dict[str, int]:
        """How many cameras are decoded which way."""
        details = (status.details.get("video", {}) for status in self.statuses.values())
        return dict(Counter(str(video.get("decode")) for video in details))

    async def take(self, clips: Channel[Clip]) -> None:
        """Count what comes, as an engine would take it."""
        while True:
            clip = await clips.receive()
            self.frames += len(clip.frames)


def picture(t: float, height: int) -> NDArray[np.uint8]:
    """Return a drawn scene with its grain, 16:9."""
    square = Scene(7).render(t, height)
    return np.concatenate([square, square[:, : height * 7 // 9]], axis=1)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something to come true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE:g} s: {what}")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(
    urls: list[str], *, fps: float, decode: str, access: Access = EVERYTHING
) -> AsyncIterator[Watched]:
    """Watch cameras as the service does, but for the model."""
    watched, opener = Watched(), partial(open_source, access=access)
    async with asyncio.TaskGroup() as group:
        tasks = []
        for index, url in enumerate(urls):
            clips = ingest.clip_channel(2)
            settings = StreamSettings.model_validate({"source": url, "fps": fps, "decode": decode})
            tasks.append(group.create_task(watched.take(clips), name=f"take[{index}]"))
            run = ingest.run(
                f"camera{index}", settings, clips=clips, report=watched.report, opener=opener
            )
            tasks.append(group.create_task(run, name=f"ingest[{index}]"))
        try:
            yield watched
        finally:
            for task in tasks:
                task.cancel()


async def measure(
    camera: RtspCamera, cameras: int, name: str, seconds: float, access: Access = EVERYTHING
) -> Arm:
    """CPU time of watching so many cameras at one frame a second for so long."""
    server, decode = [camera.process.pid], "full" if name == "full" else "auto"
    urls = camera.urls[:cameras]
    async with watching(urls, fps=1.0, decode=decode, access=access) as watched:
        await until(lambda: watched.online() == cameras, f"{cameras} cameras are online")
        await asyncio.sleep(SETTLING)
        frames, began, before = watched.frames, time.monotonic(), usage(without=server)
        await asyncio.sleep(seconds)
        after, passed = usage(without=server), time.monotonic() - began
        return Arm(
            name=name,
            cameras=cameras,
            cores=(after.cpu_seconds - before.cpu_seconds) / passed,
            frames_per_second=(watched.frames - frames) / cameras / passed,
            modes=watched.modes(),
            memory=after.memory,
        )


async def cycles(camera: RtspCamera, count: int) -> tuple[Usage, Usage]:
    """Add a camera, kill it, revive it, delete it, again and again; what is in use after the first ten and the last."""
    async with Proxy(camera.port) as proxy:
        url = camera.url.replace(str(camera.port), str(proxy.port))
        first = None
        for index in range(count):
            async with watching([url], fps=1.0, decode="auto") as watched:
                await until(lambda w=watched: w.online() == 1, "the camera is added")  # type: ignore[misc]
                await proxy.refuse()
                await until(lambda w=watched: w.online() == 0, "its death is noticed")  # type: ignore[misc]
                await proxy.listen()
                await until(lambda w=watched: w.online() == 1, "it is back")  # type: ignore[misc]
            if index == min(count, 10) - 1:
                first = await _settled(camera)
        assert first is not None
        return first, await _settled(camera)


async def _settled(camera: RtspCamera) -> Usage:
    """Return what is in use once everything that was stopped has ended."""

    def now() -> Usage:
        gc.collect()
        return usage(without=[camera.process.pid])

    await until(lambda: now().processes <= 2, "all decoders have ended")
    return now()


def table(arms: list[Arm]) -> tuple[list[str], dict[str, Any]]:
    """Print and return what watching cost."""
    shown = [f"{'arm':10}{'cameras':>8}{'cores':>8}{'% of a core each':>18}{'frames/s':>10}  modes"]
    shown += [
        f"{arm.name:10}{arm.cameras:8}{arm.cores:8.3f}{100 * arm.per_camera:18.2f}"
        f"{arm.frames_per_second:10.2f}  {arm.modes}, {arm.memory / 2**20:.0f} MiB"
        for arm in arms
    ]
    results: dict[str, Any] = {"arms": [asdict(arm) for arm in arms]}
    cost = {arm.name: arm.per_camera for arm in arms}
    if "full" in cost and "auto" in cost:
        results["full_to_chosen"] = round(cost["full"] / cost["auto"], 2)
        shown.append(f"full decode : chosen mode = {results['full_to_chosen']} : 1, per camera")
    if "gated" in cost:
        results["gate"] = round(cost["gated"] - cost["direct"], 5)
        shown.append(f"the gate takes {100 * results['gate']:.2f} % of a core per camera")
    return shown, results


def ended(ends: tuple[Usage, Usage], count: int) -> tuple[list[str], dict[str, Any]]:
    """Return what cameras that came and went have left behind."""
    shown = [f"{count} cycles of add, kill, revive, delete: after the first ten, at the end"]
    for name, unit in (("processes", 1), ("threads", 1), ("files", 1), ("memory", 2**20)):
        first, last = (getattr(end, name) / unit for end in ends)
        shown.append(f"  {name:10}{first:8.0f}{last:8.0f}{' MiB' if unit > 1 else ''}")
    return shown, {"cycles": count, "after_ten": asdict(ends[0]), "after_all": asdict(ends[1])}


async def run(options: argparse.Namespace) -> tuple[str, Any]:
    """All that was asked for."""
    ways = (
        ("auto", options.cameras, EVERYTHING),
        ("full", options.full, EVERYTHING),
        ("direct", options.gated, EVERYTHING),
        ("gated", options.gated, LIMITED),
    )
    mounts = max(cameras for _, cameras, _ in ways)
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(
            Path(folder, "camera.mp4"),
            picture,
            fps=15,
            size=options.height,
            keyframe_every=15,
            preset="veryfast",
            crf="24",
            sc_threshold="0",
        )
        parts = []
        with RtspCamera(video, mounts=max(1, mounts)) as camera:
            if options.seconds:
                parts.append(
                    table(
                        [
                            await measure(camera, cameras, name, options.seconds, access)
                            for name, cameras, access in ways
                            if cameras
                        ]
                    )
                )
            if options.cycles:
                parts.append(ended(await cycles(camera, options.cycles), options.cycles))
        if options.film:
            parts.append(await filled(video, Path(folder, "film.mp4"), options.film))
    shown = [line for lines, _ in parts for line in lines]
    return "\n".join(shown), {key: value for _, results in parts for key, value in results.items()}


async def filled(video: Path, film: Path, seconds: float) -> tuple[list[str], dict[str, Any]]:
    """Return a file by one process and by several: keyframes alone, and every picture."""
    looped(video, film, seconds)
    fills: list[Fill] = await compare(film, (1.0, 15.0), usual(len(os.sched_getaffinity(0))))
    results = [asdict(fill) | {"ratio": round(fill.ratio, 2)} for fill in fills]
    return lines(fills, seconds), {"backfill": results}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=32)
    parser.add_argument("--full", type=int, default=4, help="cameras that are decoded in full")
    parser.add_argument("--gated", type=int, default=4, help="cameras read through the gate")
    parser.add_argument("--film", type=float, default=60.0, help="seconds of a file; 0: none")
    parser.add_argument("--seconds", type=float, default=20.0, help="measured per arm")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--cycles", type=int, default=100)
    options = parser.parse_args()
    if (why := why_missing()) is not None:
        raise SystemExit(f"no RTSP server: {why}")
    text, results = asyncio.run(run(options))
    print(text)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
