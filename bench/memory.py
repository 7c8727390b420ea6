"""What the rolling memory is worth: answering from it against re-encoding.

    python -m bench.memory [--seconds 60] [--repeat 5]

Arms run in turn in one process on the bundled model and a drawn scene at 2 frames a second. `answer` asks a memory
that has seen the stream; `re-encode` sends the same seconds of frames through tower and decoder for the question, as
a service without a memory must; `re-encode prepared` is spared the scaling of the pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from stream_sttm.config.settings import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine.engine import Engine
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Answer, Clip, Frame, Question

FPS, CLIP_FRAMES, SIDE = 2.0, 2, 480
QUESTION = "what objects are there?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the service does for a model this small
    model = load_model("demo")
    print(json.dumps({"answering": answering(model, arguments.seconds, arguments.repeat)}))


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


if __name__ == "__main__":
    main()
