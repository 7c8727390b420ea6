"""What the rolling memory is worth: answering from it against re-encoding, and its size over 10,000 windows.

    python -m bench.memory [--seconds 60] [--windows 10000] [--repeat 5]

Arms run in turn in one process on the bundled model and a drawn scene at 2 frames a second. `answer` asks a memory
that has seen the stream; `re-encode` sends the same seconds of frames through tower and decoder for the question, as
a service without a memory must; `re-encode prepared` is spared the scaling of the pictures. The long run feeds
synthetic features straight into a stream's memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor

from stream_sttm.config import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine import attention
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.plan import plan_for
from stream_sttm.engine.session import StreamSession
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import build_reducer
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Answer, Clip, Frame, Question

FPS, CLIP_FRAMES, SIDE = 2.0, 2, 480
QUESTION = "what objects are there?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the service does for a model this small
    model = load_model("demo")
    result = {
        "answering": answering(model, arguments.seconds, arguments.repeat),
        "long_run": long_run(model, arguments.windows),
    }
    print(json.dumps(result))


def answering(model: VideoLLM, seconds: int, repeat: int) -> dict[str, float]:
    """Seconds to answer one question, from memory and by re-encoding, in turn."""
    scene = Scene(seed=3)
    times = [index / FPS for index in range(int(seconds * FPS))]
    frames = [Frame("cam", scene.render(at, SIDE), at, at) for at in times]
    remembering = _engine(model, ReducerSettings(), MemorySettings())
    _feed(remembering, frames)
    small = [replace(frame, image=scene.render(frame.pts, 96)) for frame in frames]
    arms: dict[str, list[float]] = {"answer": [], "re_encode": [], "re_encode_prepared": []}
    for _ in range(repeat):
        started = time.perf_counter()
        _ask(remembering)
        arms["answer"].append(time.perf_counter() - started)
        for arm, pictures in (("re_encode", frames), ("re_encode_prepared", small)):
            started = time.perf_counter()
            # Everything, nothing merged or forgotten: what the question would need without a memory.
            forgetful = _engine(
                model,
                ReducerSettings(name="none", at_layer=0),
                MemorySettings(window_tokens=len(pictures) * 36, horizon=model.context - 256),
            )
            _feed(forgetful, pictures, clip_frames=32)
            _ask(forgetful)
            arms[arm].append(time.perf_counter() - started)
    middle = {name: statistics.median(samples) for name, samples in arms.items()}
    print(f"after {seconds} s of stream")
    for name, value in middle.items():
        print(f"{name:20} {value * 1e3:8.1f} ms {value / middle['answer']:8.1f}x")
    ratios = {f"ratio_{name}": value / middle["answer"] for name, value in middle.items()}
    return {**{f"{name}_s": value for name, value in middle.items()}, **ratios}


def long_run(model: VideoLLM, windows: int) -> dict[str, float]:
    """Bytes of the process and of the cache, and seconds per window, early and late in a long stream."""
    attention.register()
    model.use_attention(attention.NAME)
    plan = plan_for(model, ReducerSettings(), MemorySettings(window_tokens=512))
    options = {"spatial_threshold": 0.8, "temporal_threshold": 0.8}
    session = StreamSession(
        model, build_reducer("sttm_streaming", options), replace(plan), stream="cam", fps=FPS
    )
    width, generator = model.text.config.hidden_size, torch.Generator().manual_seed(0)
    scene = torch.randn(6, 6, width, generator=generator)
    early, late, resident = [], [], {}
    with torch.inference_mode():
        for index in range(windows):
            window = _window(scene, generator)
            started = time.perf_counter()
            session.append(window, [index * 1.0, index + 0.5])
            session.view()
            spent = time.perf_counter() - started
            if windows // 10 <= index < windows // 5:
                early.append(spent)
            elif index >= windows - windows // 10:
                late.append(spent)
            if index in (windows // 10, windows - 1):
                resident[index] = _resident_bytes()
    first, last = resident.values()
    ratio = statistics.median(late) / statistics.median(early)
    print(
        f"{windows} windows: resident {first / 1e6:.1f} MB after a tenth, {last / 1e6:.1f} MB at the end, "
        f"cache {session.cache.nbytes / 1e6:.2f} MB, window time late/early {ratio:.3f}"
    )
    return {
        "windows": windows,
        "resident_growth_bytes_per_window": (last - first) / (windows * 0.9),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cache_bytes": session.cache.nbytes,
        "window_time_ratio": ratio,
    }


def _window(scene: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(CLIP_FRAMES, *scene.shape, generator=generator)
    window = scene + 0.05 * noise
    window[:, 2, 3] = noise[:, 2, 3]
    return window


def _engine(model: VideoLLM, reducer: ReducerSettings, memory: MemorySettings) -> Engine:
    engine = Engine(model, reducer=reducer, memory=memory, answering=AnsweringSettings())
    engine.open("cam", fps=FPS)
    return engine


def _feed(engine: Engine, frames: list[Frame], clip_frames: int = CLIP_FRAMES) -> None:
    for index, start in enumerate(range(0, len(frames), clip_frames)):
        engine.observe(Clip("cam", index, tuple(frames[start : start + clip_frames])))
        engine.step()


def _ask(engine: Engine) -> Answer:
    engine.ask(Question("q", "cam", QUESTION, time.time(), 32))
    while True:
        for outcome in engine.step():
            if isinstance(outcome, Answer):
                return outcome


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
