"""What one more question costs, and what a confidence is worth.

    python -m bench.asking [--repeat 9] [--worlds 8] [--model FOLDER] [--threads 1]

First part: 8 and 16 questions at once to one memory of 4,096 visual tokens, free text and yes/no, that begin alike
(`is there a ...`), and 8 that do not, in turn in one process; ratios to the one of them that takes longest alone. Once
unmerged, 4,096 in every layer, and once as the service does it: merged, with a fresh view, 4,096 below the merge.
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
from stream_sttm.config.settings import AnsweringSettings, MemorySettings, ReducerSettings
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
    found: dict[str, float] = {}
    for memory, reducer in (
        ("unmerged", ReducerSettings(name="none")),
        ("served", ReducerSettings()),
    ):
        engine = _full(model, reducer)
        for kind, form in (("text", FREE_TEXT), ("yes_no", YES_NO)):
            sets = {f"{count} alike": ALIKE[:count] for count in COUNTS}
            sets["8 mixed"] = MIXED[kind]
            for name, texts in sets.items():
                one, at_once = _timed(engine, form, texts, repeat)
                arm, ratio = f"{memory} {kind} {name}", at_once / one
                print(f"{arm:24} {at_once * 1e3:8.1f} ms, one {one * 1e3:6.1f} ms: {ratio:5.2f}x")
                found[arm] = round(ratio, 3)
    return found


def _full(model: VideoLLM, reducer: ReducerSettings) -> Engine:
    """Return an engine with one stream, that has seen more of a drawn scene than the layers below the merge hold."""
    engine = _engine(model, reducer, MemorySettings(window_tokens=TOKENS))
    scene, step = Scene(seed=3), CLIP_FRAMES / FPS
    for index in range(2 * TOKENS // (CLIP_FRAMES // model.frames_per_token) // CELLS):
        times = [index * step + frame / FPS for frame in range(CLIP_FRAMES)]
        frames = [Frame("cam", scene.render(at, SIDE), at, at) for at in times]
        engine.observe(Clip("cam", index, tuple(frames)))
        engine.step()
    tokens = _answers(engine, FREE_TEXT, ["how many objects are there?"])[0].tokens
    assert reducer.name != "none" or tokens.visual == TOKENS, "the memory is not full"
    print(
        f"{reducer.name}: {tokens.visual} tokens of {tokens.visual_before_merge}, {tokens.fresh} fresh"
    )
    return engine


def _timed(engine: Engine, form: Form, texts: Sequence[str], repeat: int) -> tuple[float, float]:
    """Seconds, middle of so many rounds: the slowest of these questions alone, and all of them together."""
    alone: dict[str, list[float]] = {text: [] for text in texts}
    together = []
    for _ in range(repeat):
        for text, seconds in alone.items():
            seconds.append(_asked(engine, form, [text]))
        together.append(_asked(engine, form, texts))
    return max(statistics.median(seconds) for seconds in alone.values()), statistics.median(
        together
    )


def _asked(engine: Engine, form: Form, texts: Sequence[str]) -> float:
    """Seconds until the last of these questions is answered."""
    started = time.perf_counter()
    _answers(engine, form, texts)
    return time.perf_counter() - started


def _answers(engine: Engine, form: Form, texts: Sequence[str]) -> list[Answer]:
    for place, text in enumerate(texts):
        engine.ask(Question(str(place), "cam", text, time.time(), 32, form=form))
    answers: list[Answer] = []
    while len(answers) < len(texts):
        for answer in engine.step():
            assert isinstance(answer, Answer), answer
            answers.append(answer)
    return answers


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
            rows += _known(engine, part)
    return np.array(rows).reshape(-1, 2)


def _known(engine: Engine, asked: Round) -> list[tuple[float, float]]:
    items = [item for item in asked.items if item.truth in ("yes", "no")]
    rows: list[tuple[float, float]] = []
    for answer in _answers(engine, YES_NO, [item.text for item in items]):
        assert answer.confidence is not None
        is_right = answer.text == items[int(answer.question.id)].truth
        rows.append((answer.confidence, float(is_right)))
    return rows


def _warmed(sure: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Confidences among two options, had the temperature been `factor` times as high."""
    logits = np.log(np.clip(sure, 0.5, 1 - 1e-12)) - np.log1p(-np.clip(sure, 0.5, 1 - 1e-12))
    warmed: NDArray[np.float64] = 1 / (1 + np.exp(-logits / factor))
    return warmed


def _fitted(known: NDArray[np.float64]) -> float:
    """Return the factor on the temperature with the least negative log-likelihood, by trying all from 0.2 to 10."""

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
