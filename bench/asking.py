"""What one more question costs, and what a confidence is worth.

    python -m bench.asking [--repeat 9] [--worlds 8] [--model FOLDER] [--threads 1]

First part: 8 and 16 questions at once to one memory of 4,096 visual tokens, free text and yes/no, that begin alike
(`is there a ...`), and 8 that do not, in turn in one process; ratios to the one of them that takes longest alone.
Second part: yes/no questions with a known answer about drawn worlds, half of them to fit the temperature, the other
half to measure: how often right, mean confidence, expected calibration error over ten bins of equal count
(https://arxiv.org/abs/1706.04599), before and after. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bench.exam import CLIP_FRAMES, DrawnStream, Round
from stream_sttm.config import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine.engine import Engine
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.sources.scene import Scene
from stream_sttm.types import FREE_TEXT, Answer, AnswerType, Clip, Form, Frame, Question

FPS, SIDE, TOKENS = 2.0, 192, 4096
CELLS = 64  # of a token frame of the bundled model
COUNTS = (8, 16)
YES_NO = Form(AnswerType.YES_NO)
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "star", "triangle")
ALIKE = tuple(f"is there a {colour} {shape}?" for shape in SHAPES for colour in COLOURS)
# no two begin alike
MIXED = {
    "text": (
        "is there a red circle?", "how many objects are there?", "what colour is the square?",
        "where is the star?", "which way does the circle move?", "what appeared last?",
        "list the objects.", "describe the scene.",
    ),
    "yes_no": (
        "is there a red circle?", "are there any objects?", "was there a star?",
        "do you see a triangle?", "has the blue square left?", "did anything move?",
        "can you see a green star?", "does the circle move?",
    ),
}  # fmt: skip
FIRST, REACH, EVERY = 6_000_000, 60.0, 12.0  # seed of the first world; seconds
BINS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of questions per world")
    parser.add_argument("--model", default="demo")
    parser.add_argument(
        "--threads", type=int, default=1, help="the service's own for a small model"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    report: dict[str, object] = {"asking": cost(model, arguments.repeat)}
    report["confidence"] = worth(model, arguments.worlds, arguments.rounds)
    print(json.dumps(report))


# what one more question costs


def cost(model: VideoLLM, repeat: int) -> dict[str, float]:
    """Seconds until the last answer, by kind and number of questions, as ratios to the slowest of them alone."""
    engine = _engine(model, ReducerSettings(name="none"), MemorySettings(window_tokens=TOKENS))
    scene, step = Scene(seed=3), CLIP_FRAMES / FPS
    windows = TOKENS // (CLIP_FRAMES // model.frames_per_token) // CELLS
    for index in range(windows):
        times = [index * step + frame / FPS for frame in range(CLIP_FRAMES)]
        frames = [Frame("cam", scene.render(at, SIDE), at, at) for at in times]
        engine.observe(Clip("cam", index, tuple(frames)))
        engine.step()
    found: dict[str, float] = {}
    for kind, form in (("text", FREE_TEXT), ("yes_no", YES_NO)):
        sets = {f"{count} alike": ALIKE[:count] for count in COUNTS}
        sets["8 mixed"] = MIXED[kind]
        for name, texts in sets.items():
            alone: dict[str, list[float]] = {text: [] for text in texts}
            together = []
            for _ in range(repeat):
                for text, seconds in alone.items():
                    seconds.append(_asked(engine, form, [text]))
                together.append(_asked(engine, form, texts))
            one = max(statistics.median(seconds) for seconds in alone.values())
            at_once = statistics.median(together)
            print(
                f"{kind:7} {name:>8} {at_once * 1e3:8.1f} ms, one {one * 1e3:6.1f} ms: {at_once / one:5.2f}x"
            )
            found[f"{kind} {name}"] = round(at_once / one, 3)
    return found


def _asked(engine: Engine, form: Form, texts: Sequence[str]) -> float:
    """Seconds until the last of these questions is answered from the whole memory."""
    started = time.perf_counter()
    for place, text in enumerate(texts):
        engine.ask(Question(str(place), "cam", text, time.time(), 32, form=form))
    left = len(texts)
    while left:
        for answer in engine.step():
            assert isinstance(answer, Answer), answer
            assert answer.tokens.visual == TOKENS, "the memory is not full"
            left -= 1
    return time.perf_counter() - started


# what a confidence is worth


def worth(model: VideoLLM, worlds: int, rounds: int) -> dict[str, float]:
    """How often right and how sure, before and after the temperature that fits the other half of the worlds."""
    known = [_sheet(model, FIRST + place, rounds) for place in range(worlds)]
    fit, held_out = (np.concatenate(known[part::2]) for part in (0, 1))
    set_to = model.tuned.temperature
    temperature = set_to * _fitted(fit)
    sure, right = held_out[:, 0], held_out[:, 1]
    then = _warmed(sure, temperature / set_to)
    print(
        f"{len(right)} yes/no questions: {100 * right.mean():.1f} % right, mean confidence {100 * sure.mean():.1f} %, "
        f"expected calibration error {100 * _error(sure, right):.2f} points at temperature {set_to:g}, "
        f"{100 * _error(then, right):.2f} at {temperature:.2f}, which fits the other {len(fit)} best"
    )
    return {
        "questions": len(right),
        "right": round(float(right.mean()), 4),
        "error": round(_error(sure, right), 4),
        "temperature": round(temperature, 3),
        "error_then": round(_error(then, right), 4),
    }


def _sheet(model: VideoLLM, seed: int, rounds: int) -> NDArray[np.float64]:
    """(N, 2) of one world: confidence, and whether the answer was right."""
    engine = _engine(model, ReducerSettings(), MemorySettings())
    stream = DrawnStream(seed, 0.0, FPS, REACH, REACH - 1.0, EVERY, rounds, SIDE)
    rows: list[tuple[float, float]] = []
    for part in stream.script():
        if isinstance(part, Clip):
            engine.observe(Clip("cam", part.index, part.frames))
            engine.step()
        else:
            rows += _answers(engine, part)
    return np.array(rows).reshape(-1, 2)


def _answers(engine: Engine, asked: Round) -> list[tuple[float, float]]:
    items = {str(place): item for place, item in enumerate(asked.items)}
    items = {place: item for place, item in items.items() if item.truth in ("yes", "no")}
    for place, item in items.items():
        engine.ask(Question(place, "cam", item.text, time.time(), 8, form=YES_NO))
    rows: list[tuple[float, float]] = []
    while len(rows) < len(items):
        for answer in engine.step():
            assert isinstance(answer, Answer), answer
            assert answer.confidence is not None
            is_right = answer.text == items[answer.question.id].truth
            rows.append((answer.confidence, float(is_right)))
    return rows


def _warmed(sure: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Confidences among two options, had the temperature been `factor` times as high."""
    logits = np.log(np.clip(sure, 0.5, 1 - 1e-12)) - np.log1p(-np.clip(sure, 0.5, 1 - 1e-12))
    warmed: NDArray[np.float64] = 1 / (1 + np.exp(-logits / factor))
    return warmed


def _fitted(known: NDArray[np.float64]) -> float:
    """The factor on the temperature with the least negative log-likelihood, by trying all from 0.2 to 10."""

    def loss(factor: float) -> float:
        sure = np.clip(_warmed(known[:, 0], factor), 1e-9, 1 - 1e-9)
        likely: NDArray[np.float64] = np.where(known[:, 1] > 0, np.log(sure), np.log1p(-sure))
        return -float(likely.mean())

    factors: list[float] = np.geomspace(0.2, 10, 400).tolist()
    return min(factors, key=loss)


def _error(sure: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Mean distance of confidence and accuracy over bins of equal count."""
    order: Sequence[NDArray[np.int64]] = np.array_split(np.argsort(sure, kind="stable"), BINS)
    gaps = [abs(sure[part].mean() - right[part].mean()) * len(part) for part in order if len(part)]
    return float(sum(gaps) / len(sure))


def _engine(model: VideoLLM, reducer: ReducerSettings, memory: MemorySettings) -> Engine:
    answering = AnsweringSettings(timeout=1e6)
    engine = Engine(model, reducer=reducer, memory=memory, answering=answering)
    engine.open("cam", fps=FPS)
    return engine


if __name__ == "__main__":
    main()
