"""Whether a camera's packet sizes tell of a change before the next sampled picture would: why the change gate has none.

A look is asked for between two samples where a packet is larger than the running median of its kind by so many
deviations (of the median, robust). It is worth something where the picture then really differs from the last sample, by
the gate's own measure. Run: python -m bench.sizes --video FILE
"""

from __future__ import annotations

import argparse
import io
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from stream_sttm.motion import Blocks, Noise, blocks, difference
from stream_sttm.sources.scene import Scene

FPS, SIDE, GOP = 10, 192, 20
KNOWN, LEAST_KNOWN = 60, 8  # packets of a kind that are remembered, and from which on it is judged
FLOOR = 0.05  # share of the median that a deviation is taken for at least
UNSETTLED = 4  # samples until the camera's noise is known


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture as the gate sees it, when, and its packet's size and kind."""

    t: float
    picture: Blocks
    size: int
    kind: str


@dataclass(slots=True)
class Found:
    """Over all intervals between samples: what changed, which looks were asked for, seconds that they would win."""

    changed: int = 0
    still: int = 0
    looks: int = 0
    right: int = 0
    wrong: int = 0  # looks in intervals that end as they began
    could_win: float = 0.0  # by looking at every picture
    won: float = 0.0


def camera(seconds: float, grain: float) -> io.BytesIO:
    """Return a drawn world through a camera's H.264, with noise of `grain` grey levels and a flickering lamp."""
    file, rng, scene = io.BytesIO(), np.random.default_rng(0), Scene(7)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", GOP
        tuned: dict[str, object] = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "crf": "24",
            "sc_threshold": "0",
        }
        stream.options, stream.codec_context.thread_count = tuned, 1
        for place in range(round(seconds * FPS)):
            image: NDArray[Any] = scene.render(place / FPS, SIDE)
            if grain:
                light = 1 + 0.04 * np.sin(37 * place / FPS)
                image = np.clip(image * light + rng.normal(0, grain, image.shape), 0, 255)
            picture = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    file.seek(0)
    return file


def shown(source: str | io.BytesIO) -> Iterator[Shown]:
    """Every picture of a video."""
    sizes: dict[int | None, int] = {}
    with av.open(source, "r") as container:
        for packet in container.demux(video=0):
            if packet.size:
                sizes[packet.pts] = packet.size
            for picture in packet.decode():
                seen, size = (
                    blocks(np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)),
                    sizes[picture.pts],
                )
                yield Shown(float(picture.time or 0.0), seen, size, str(picture.pict_type))


def large(pictures: Sequence[Shown], deviations: float) -> list[bool]:
    """Which packets are larger than is usual for their kind."""
    known: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=KNOWN))
    found = []
    for one in pictures:
        before = np.array(known[one.kind])
        is_large = False
        if len(before) >= LEAST_KNOWN:
            median = float(np.median(before))
            spread = max(1.4826 * float(np.median(np.abs(before - median))), FLOOR * median)
            is_large = one.size > median + deviations * spread
        found.append(is_large)
        known[one.kind].append(one.size)
    return found


def judge(pictures: Sequence[Shown], every: float, deviations: float) -> Found:
    """Hold the packets' word against the pictures, sampled every so many seconds."""
    step = round(every / (pictures[1].t - pictures[0].t))
    asked, found, noise = large(pictures, deviations), Found(), Noise()
    samples = range(0, len(pictures) - step, step)
    for number, start in enumerate(samples):
        noise.learn(
            difference(pictures[max(0, start - step)].picture, pictures[start].picture)
            if start
            else None
        )
        if number < UNSETTLED:
            continue
        differs = _against(pictures, start, noise)
        end = start + step
        looks = [place for place in range(start + 1, end) if asked[place]]
        found.looks += bool(looks)
        if not differs(end):
            found.still += 1
            found.wrong += bool(looks)
            continue
        found.changed += 1
        first = next(place for place in range(start + 1, end + 1) if differs(place))
        found.could_win += pictures[end].t - pictures[first].t
        if (hit := next((place for place in looks if differs(place)), None)) is not None:
            found.right += 1
            found.won += pictures[end].t - pictures[hit].t
    return found


def _against(pictures: Sequence[Shown], start: int, noise: Noise) -> Callable[[int], bool]:
    """Whether a later picture differs from that at `start`."""
    return lambda place: bool(
        noise.beyond(difference(pictures[start].picture, pictures[place].picture)).any()
    )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="bench.sizes", description=__doc__)
    parser.add_argument("--video", type=Path, help="a film besides the drawn worlds")
    parser.add_argument("--seconds", type=float, default=120.0, help="of drawn worlds")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    options = parser.parse_args()
    sources: dict[str, str | io.BytesIO] = {
        "drawn": camera(options.seconds, 0.0),
        "drawn, noisy": camera(options.seconds, 6.0),
    }
    if options.video is not None:
        sources[options.video.name] = str(options.video)
    for name, source in sources.items():
        pictures = list(shown(source))
        for deviations in (2.0, 3.0, 6.0):
            found = judge(pictures, options.every, deviations)
            each = max(1, found.changed)
            print(
                f"{name}, {deviations:g} deviations: {found.looks} looks, {found.right} right, {found.wrong} in"
                f" {found.still} still intervals; of {found.could_win / each:.2f} s that a change could be seen"
                f" sooner ({found.changed} of them) {found.won / each:.2f} s won"
            )


if __name__ == "__main__":
    main()
