"""The streaming engine under examination: every arm sees the same windows and is asked the same rounds.

The arms take turns window by window, so that each window is drawn or decoded once, and its pictures go through the
vision tower once for all arms; everything behind it each arm does for itself. Knows no scores.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench.arms import Arm
from bench.exam import STREAM, Footage, Item, Round
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.outcomes import Lost, Observed, Outcome, Unanswered
from stream_sttm.errors import StreamSTTMError
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Answer, Clip, Question

PATIENT = AnsweringSettings(timeout=1e9, max_batch=64, max_waiting=64, max_question_chars=100_000)


class SharedVision:
    """A model that puts a window's pictures through its vision tower once, however many engines ask for them."""

    def __init__(self, model: VideoLLM) -> None:
        self._model = model
        self._key = b""
        self._features: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def preprocess(self, frames: Tensor) -> Tensor:
        """Return the frames as they are; `encode` may not need them any more."""
        return frames

    def encode(self, frames: Tensor) -> Tensor:
        """Return the features of these frames, computed unless they are the last ones again."""
        key = hashlib.blake2b(frames.cpu().contiguous().numpy().data, digest_size=16).digest()
        if self._features is None or key != self._key:
            self._key = key
            self._features = self._model.encode(self._model.preprocess(frames))
        return self._features


@dataclass(frozen=True, slots=True)
class Sheet:
    """One arm's answers to one round: visual tokens that a question saw, seconds per answer, what was right."""

    arm: str
    clip: str
    at: float
    visual: int
    seconds: float
    items: tuple[Item, ...]
    right: tuple[bool, ...]


def watch(model: VideoLLM, arms: Sequence[Arm], footage: Footage) -> list[Sheet]:
    """Show one piece of footage to every arm; raises StreamSTTMError where an arm fails."""
    shared: Any = SharedVision(model)
    engines = [
        (arm, Engine(shared, reducer=arm.reducer, memory=arm.memory, answering=PATIENT))
        for arm in arms
    ]
    for _, engine in engines:
        engine.open(STREAM, fps=footage.fps)
    sheets = []
    for part in footage.script():
        for arm, engine in engines:
            if isinstance(part, Clip):
                engine.observe(part)
                finished(engine.step())
            elif part.items:
                sheets.append(ask(engine, arm, footage.name, part))
    return sheets


def ask(engine: Engine, arm: Arm, clip: str, asked: Round) -> Sheet:
    """One arm's answers to a round, which must come."""
    started = time.perf_counter()
    for place, item in enumerate(asked.items):
        engine.ask(Question(str(place), STREAM, item.text, time.time(), item.longest))
    answers: dict[str, Answer] = {}
    while len(answers) < len(asked.items):
        for outcome in finished(engine.step()):
            if isinstance(outcome, Answer):
                answers[outcome.question.id] = outcome
    seconds = (time.perf_counter() - started) / len(asked.items)
    one = answers["0"]
    if (
        arm.name == "none" and asked.span is not None
    ):  # what the truth is about, the memory must hold
        assert max(abs(a - b) for a, b in zip(one.span, asked.span, strict=True)) < 1e-3, one.span
    return Sheet(
        arm=arm.name,
        clip=clip,
        at=asked.at,
        visual=round(sum(each.tokens.visual for each in answers.values()) / len(answers)),
        seconds=seconds,
        items=asked.items,
        right=tuple(
            item.is_right(answers[str(place)].text) for place, item in enumerate(asked.items)
        ),
    )


def finished(outcomes: Sequence[Outcome]) -> Sequence[Answer | Observed]:
    """Return the outcomes, none of which may be a failure."""
    good: list[Answer | Observed] = []
    for outcome in outcomes:
        if isinstance(outcome, Lost | Unanswered):
            raise StreamSTTMError(str(outcome.error)) from outcome.error
        if isinstance(outcome, Answer | Observed):
            good.append(outcome)
    return good
