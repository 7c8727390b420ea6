"""What merging costs in truth: the streaming engine asked about drawn scenes, arm by arm, in one run.

    python -m bench.accuracy [--scenes 12] [--seconds 60] [--first 100]

Every arm watches the same scenes through the same windows of two frames and is asked the same kinds of questions
every three seconds, about the span that its own memory holds just then; only questions with a clear truth count.
`kept` is the share of visual tokens above the merge layer; `majority` what always giving a kind's commonest answer
would score. Twelve scenes give about 1,200 questions, a standard error of 0.8 points. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stream_sttm.config import MemorySettings, ReducerSettings
from stream_sttm.engine.engine import Engine
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.truth import KINDS, Asked
from stream_sttm.types import Answer, Clip, Frame, Observed, Question

FPS, SIDE = 2.0, 192
ASK_EVERY, QUESTIONS, SETTLED = 3.0, 6, 9.0  # seconds, questions at once, seconds before the first


def _merging(at_layer: int, **options: float) -> ReducerSettings:
    return ReducerSettings.model_validate({"at_layer": at_layer, **options})


ARMS: dict[str, tuple[ReducerSettings, MemorySettings]] = {
    "none": (ReducerSettings(name="none", at_layer=0), MemorySettings(fresh_frames=0)),
    "default": (ReducerSettings(), MemorySettings()),
    "fresh_view_1": (ReducerSettings(), MemorySettings(fresh_frames=1)),
    "no_size_bias": (_merging(3, size_bias=0.0), MemorySettings()),
    "layer_2": (_merging(2), MemorySettings()),
    "layer_0": (_merging(0), MemorySettings()),
    "spatial_only": (_merging(3, temporal_threshold=1.0), MemorySettings()),
    "temporal_only": (_merging(3, spatial_threshold=1.0), MemorySettings()),
}


@dataclass(slots=True)
class Score:
    """One arm's answers, by kind of question."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    truths: Counter[tuple[str, str]] = field(default_factory=Counter)
    before: int = 0
    after: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, asked: Asked, answer: str) -> None:
        """Count one answer."""
        self.asked[asked.kind] += 1
        self.right[asked.kind] += answer == asked.truth
        self.truths[asked.kind, asked.truth] += 1

    @property
    def accuracy(self) -> float:
        """Share of all questions answered exactly right."""
        return self.right.total() / max(1, self.asked.total())

    @property
    def error(self) -> float:
        """Standard error of the accuracy, as if questions were independent."""
        share = self.accuracy
        return math.sqrt(share * (1 - share) / max(1, self.asked.total()))

    def majority(self, kind: str) -> float:
        """What a kind's commonest answer alone would score."""
        most = max((n for (k, _), n in self.truths.items() if k == kind), default=0)
        return most / max(1, self.asked[kind])


def watch(engine: Engine, scene: Scene, frames: Sequence[Frame], score: Score) -> None:
    """Show one scene to a fresh stream and ask about it on the way."""
    stream = f"scene{scene.seed}"
    engine.open(stream, fps=FPS)
    next_at = SETTLED
    for index in range(0, len(frames) - 1, 2):
        clip = Clip(stream, index // 2, tuple(frames[index : index + 2]))
        engine.observe(clip)
        for outcome in engine.step():
            assert isinstance(outcome, Observed), outcome
            score.before += outcome.before_merge
            score.after += outcome.after_merge
        if clip.captured_at >= next_at:
            next_at += ASK_EVERY
            _ask(engine, scene, stream, clip.captured_at, score)
    engine.close(stream)


def _ask(engine: Engine, scene: Scene, stream: str, now: float, score: Score) -> None:
    """One round of questions about what the stream's memory holds, answered as one batch."""
    probe = _answers(engine, [Question("probe", stream, KINDS["count"], time.time(), 1)])["probe"]
    questions = scene.questions(*probe.span)
    chosen = random.Random(f"{scene.seed} {now}").sample(questions, min(QUESTIONS, len(questions)))
    if not chosen:
        return
    batch = [
        Question(str(place), stream, asked.text, time.time(), 40)
        for place, asked in enumerate(chosen)
    ]
    started = time.perf_counter()
    answers = _answers(engine, batch)
    score.seconds.append((time.perf_counter() - started) / len(batch))
    for place, asked in enumerate(chosen):
        score.add(asked, answers[str(place)].text)


def _answers(engine: Engine, questions: Sequence[Question]) -> dict[str, Answer]:
    for question in questions:
        engine.ask(question)
    found = {}
    while len(found) < len(questions):
        for outcome in engine.step():
            assert isinstance(outcome, Answer), outcome
            found[outcome.question.id] = outcome
    return found


def run(model: VideoLLM, scenes: Sequence[int], seconds: float) -> dict[str, Score]:
    """Every arm over every scene; the arms take turns scene by scene."""
    engines = {
        name: Engine(model, reducer=reducer, memory=memory)
        for name, (reducer, memory) in ARMS.items()
    }
    scores = {name: Score() for name in ARMS}
    for seed in scenes:
        scene, stream = Scene(seed), f"scene{seed}"
        times = [index / FPS for index in range(int(seconds * FPS))]
        frames = [Frame(stream, scene.render(at, SIDE), at, at) for at in times]
        for name, engine in engines.items():
            watch(engine, scene, frames, scores[name])
    return scores


def main() -> None:
    """Print the table, a line per arm, then the kinds, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=12, help="how many drawn worlds")
    parser.add_argument("--first", type=int, default=100, help="seed of the first")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is watched")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the service does for a model this small
    scenes = range(options.first, options.first + options.scenes)
    scores = run(load_model("demo"), scenes, options.seconds)
    print(
        f"{'arm':15} {'accuracy':>9} {'error':>6} {'kept':>6} {'ms/answer':>9}  "
        + "  ".join(f"{kind:>6}" for kind in KINDS)
    )
    for name, score in scores.items():
        kinds = "  ".join(f"{score.right[kind] / max(1, score.asked[kind]):6.2f}" for kind in KINDS)
        print(
            f"{name:15} {score.accuracy:9.3f} {score.error:6.3f} {score.after / score.before:6.3f} "
            f"{statistics.median(score.seconds) * 1e3:9.1f}  {kinds}"
        )
    base = scores["none"]
    print(f"{'majority':15} {'':33}  " + "  ".join(f"{base.majority(kind):6.2f}" for kind in KINDS))
    print(
        json.dumps(
            {
                "arms": {
                    name: {"accuracy": score.accuracy, "tokens": score.after / score.before}
                    for name, score in scores.items()
                },
                "types": {
                    kind: {
                        "accuracy": base.right[kind] / max(1, base.asked[kind]),
                        "majority": base.majority(kind),
                    }
                    for kind in KINDS
                },
                "questions": base.asked.total(),
            }
        )
    )


if __name__ == "__main__":
    main()
