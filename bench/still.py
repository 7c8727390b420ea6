"""What a still scene costs, and what sparing it costs in truth: streams with and without the change gate.

    python -m bench.still                            drawn worlds, and scenes in which nothing happens
    python -m bench.still --video FILE               and how much of a film the gate spares
    python -m bench.still --max-still 5,10,30        for several limits at once

Every arm sees the same windows and answers the same questions about the same seconds, merged by the service's own
reducer in a memory that evicts as the service's does. `still_10` is spared windows in which nothing changes, for 10 s
at most; `regions_10` has of the others only that encoded which does. Intervals draw whole worlds anew. Last line: JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from bench.accuracy import FIRST, drawn
from bench.arms import Arm, ground
from bench.exam import CLIP_FRAMES, STREAM, DrawnStream
from bench.film import Film
from bench.process_pool import crew, model_of
from bench.score import score, table
from bench.watching import PATIENT, Sheet, ask, finished
from stream_sttm.config.settings import MemorySettings, ReducerSettings
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import StreamSTTMError
from stream_sttm.models.family import VideoLLM
from stream_sttm.motion import MotionGate
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Clip, Frame

STILL_SECONDS, STILL_SIDE = 60, 480
NONE = "none"  # the arm that encodes every window, which the others are held against
Picture = NDArray[Any]  # (H, W, 3) uint8


@dataclass(frozen=True, slots=True)
class Gated:
    """An arm: for how long a window may be spared, and whether parts of one are encoded alone."""

    longest: float
    regions: bool


@dataclass(frozen=True, slots=True)
class Exam:
    """A world to watch, with a memory of its own length, by every arm."""

    stream: DrawnStream
    memory: MemorySettings
    arms: dict[str, Gated]


@dataclass(slots=True)
class Cost:
    """What an arm did: windows spared, visual tokens encoded and reused, CPU seconds spent on windows."""

    windows: int = 0
    spared: int = 0
    encoded: float = 0.0
    reused: float = 0.0
    seconds: float = 0.0

    def add(self, other: Cost) -> None:
        """Count another world's."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(frozen=True, slots=True)
class Watched:
    """One world's answer sheets, and what each arm did."""

    sheets: list[Sheet]
    costs: dict[str, Cost]


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns 2 with one line on stderr where that can't be done."""
    options = _options(words)
    try:
        report: dict[str, Any] = {"spared": _shares(options)}
        if options.worlds:
            report |= _worlds(options)
    except StreamSTTMError as error:
        print(f"bench.still: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.still",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--video", type=Path, help="a film to show the gate")
    parser.add_argument("--max-still", type=_limits, default="10", dest="limits", help="seconds")
    parser.add_argument("--worlds", type=int, default=24, help="drawn worlds; 0: none")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of questions per world")
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first world")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second")
    parser.add_argument("--side", type=int, default=192, help="pixels of a drawn picture's side")
    parser.add_argument("--model", default="demo", help="demo, a folder or a hub id")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    return parser.parse_args(words)


def _limits(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


# what is spared


def _shares(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the share of windows that the gate spares, by what is shown."""
    fps = options.fps
    times = [place / fps for place in range(round(STILL_SECONDS * fps))]
    shown: dict[str, Callable[[], Iterator[Clip]]] = {
        "still, drawn grain and light": lambda: _clips(_empty(options.first, times), fps),
        "still, noise and flicker": lambda: _clips(_harsh(options.first, times), fps),
        "still, noise, through H.264": lambda: _clips(_sent(_harsh(options.first, times)), fps),
    }
    if options.video is not None:
        shown[options.video.name] = Film(options.video, fps, ()).clips
    found: dict[str, dict[str, float]] = {}
    for name, clips in shown.items():
        gates = {f"{longest:g}": MotionGate(longest) for longest in options.limits}
        spared, area, windows = dict.fromkeys(gates, 0), dict.fromkeys(gates, 0.0), 0
        for clip in clips():
            windows += 1
            for longest, gate in gates.items():
                verdict = gate.judge(clip)
                is_part = verdict.changed is not None
                spared[longest] += verdict.same_as is not None and not is_part
                if verdict.same_as is None or is_part or verdict.wants_whole:
                    part = verdict.changed
                    area[longest] += 1.0 if part is None else float(part.mean())
        for longest in gates:
            shares = spared[longest] / windows, area[longest] / windows
            found.setdefault(name, {})[f"still_{longest}"] = round(shares[0], 4)
            found[name][f"regions_{longest}"] = round(1 - shares[1], 4)
            print(
                f"{name}: nothing new in {100 * shares[0]:.1f} % of {windows} windows, in"
                f" {100 * (1 - shares[1]):.1f} % of the picture (max_still {longest} s)"
            )
    return found


def _empty(seed: int, times: Sequence[float]) -> Iterator[Picture]:
    """Return a drawn scene in which nothing happens."""
    scene = Scene(seed, script=())
    return (scene.render(t, STILL_SIDE) for t in times)


def _harsh(seed: int, times: Sequence[float]) -> Iterator[Picture]:
    """Return the same before a bad camera (a deviation of 6 grey levels) under a bad lamp (4 % up and down)."""
    drawn_noise = np.random.default_rng(0)
    for t, picture in zip(times, _empty(seed, times), strict=True):
        noisy = picture * (1 + 0.04 * np.sin(37 * t)) + drawn_noise.normal(0, 6, picture.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def _sent(pictures: Iterable[Picture]) -> list[Picture]:
    """Return the pictures after a camera's usual encoder."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = STILL_SIDE
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 2
        stream.options = {"preset": "veryfast", "crf": "28"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as sent:
        return [frame.to_ndarray(format="rgb24") for frame in sent.decode(video=0)]


def _clips(pictures: Iterable[Picture], fps: float) -> Iterator[Clip]:
    frames: list[Frame] = []
    for place, picture in enumerate(pictures):
        frames.append(Frame(STREAM, picture, place / fps, place / fps))
        if len(frames) == CLIP_FRAMES:
            yield Clip(STREAM, place // CLIP_FRAMES, tuple(frames))
            frames = []


# what it costs in truth


def _worlds(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy with and without the gate on drawn worlds."""
    model = model_of(options.model)
    floor = ground(model, options.fps, (options.side, options.side), None)
    memory = MemorySettings(window_tokens=floor.frames * floor.cells, horizon=floor.horizon)
    arms = {NONE: Gated(0.0, regions=False)}
    for longest in options.limits:
        arms[f"still_{longest:g}"] = Gated(longest, regions=False)
        arms[f"regions_{longest:g}"] = Gated(longest, regions=True)
    shown = drawn(options, floor, options.first, options.worlds)
    with crew(options.model, options.jobs) as workers:
        watched = workers.do("worlds", _watch, [Exam(stream, memory, arms) for stream in shown])
    result = score([sheet for one in watched for sheet in one.sheets])
    print(table(result))
    figures: dict[str, dict[str, float]] = {}
    for arm in arms:
        cost = Cost()
        for one in watched:
            cost.add(one.costs[arm])
        figures[arm] = {
            "windows_spared": round(cost.spared / cost.windows, 4),
            "vision_spared": round(cost.reused / (cost.encoded + cost.reused), 4),
            "seconds": round(cost.seconds, 2),
        }
        ratio = cost.seconds / figures[NONE]["seconds"]
        print(
            f"{arm}: {100 * figures[arm]['windows_spared']:.1f} % of windows and"
            f" {100 * figures[arm]['vision_spared']:.1f} % of the vision tower's tokens spared;"
            f" windows took {ratio:.2f} times the CPU"
        )
    print(f"{result.questions} questions about {result.clips} worlds; model {model.name}")
    scores = {name: own.as_dict() | figures[name] for name, own in result.scores.items()}
    return {"arms": scores, "questions": result.questions}


def _watch(model: VideoLLM, exam: Exam) -> Watched:
    """One world, window by window for each arm in turn."""
    engines, gates = {}, {arm: MotionGate(gated.longest) for arm, gated in exam.arms.items()}
    for arm, gated in exam.arms.items():
        engines[arm] = Engine(
            model, reducer=ReducerSettings(), memory=exam.memory, answering=PATIENT
        )
        engines[arm].open(STREAM, fps=exam.stream.fps, regions=gated.regions)
    watched = Watched([], {arm: Cost() for arm in exam.arms})
    for part in exam.stream.script():
        for arm, engine in engines.items():
            if isinstance(part, Clip):
                watched.costs[arm].add(_shown(engine, None if arm == NONE else gates[arm], part))
            elif part.items:
                of = Arm(arm, ReducerSettings(), exam.memory)
                asked = replace(part, span=None)  # a memory that evicts by shares ends a bit sooner
                watched.sheets.append(ask(engine, of, exam.stream.name, asked))
    return watched


def _shown(engine: Engine, gate: MotionGate | None, clip: Clip) -> Cost:
    """Return what one window cost."""
    before, started = _vision(), time.process_time()
    if gate is not None:
        clip = gate.judge(clip)
    engine.observe(clip)
    finished(engine.step())
    seconds = time.process_time() - started
    encoded, reused = (now - then for now, then in zip(_vision(), before, strict=True))
    return Cost(1, int(not encoded), encoded, reused, seconds)


def _vision() -> tuple[float, ...]:
    """Visual tokens encoded and reused so far, as the service counts them."""
    work = ({"stream": STREAM, "work": word} for word in ("encoded", "reused"))
    name = "stream_sttm_vision_tokens_total"
    return tuple(REGISTRY.get_sample_value(name, labels) or 0.0 for labels in work)


if __name__ == "__main__":
    sys.exit(main())
