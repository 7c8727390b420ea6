"""A picture of what the bundled model sees and says: drawn scenes, questions, the truth, and its answers.

    python -m bench.contact_sheet docs/contact-sheet.png

Held-out scenes are watched through the streaming engine as it is shipped; what is printed is what it said, right or
wrong.
"""

from __future__ import annotations

import argparse
import random
import textwrap
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from stream_sttm.engine.engine import Engine
from stream_sttm.models import load_model
from stream_sttm.scene.questions import Asked, balanced
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Answer, Clip, Frame, Question

FPS, WATCHED, SHOWN = (
    2.0,
    30.0,
    (12.0, 6.0, 0.0),
)  # the pictures shown were taken so long before the end
SIDE, GAP, LINE, ROW = 150, 10, 17, 200
INK, FAINT, RIGHT, WRONG = "#1b1f24", "#6a737d", "#1a7f37", "#cf222e"


def answers_at_end(engine: Engine, scene: Scene, questions: int) -> list[tuple[Asked, str]]:
    """Return what the engine answers at the end of watching a scene."""
    stream = f"scene{scene.seed}"
    engine.open(stream, fps=FPS)
    times = [index / FPS for index in range(int(WATCHED * FPS) + 1)]
    for index in range(0, len(times) - 1, 2):
        frames = tuple(Frame(stream, scene.render(t, 192), t, t) for t in times[index : index + 2])
        engine.observe(Clip(stream, index // 2, frames))
        engine.step()
    end = times[-2] if len(times) % 2 else times[-1]
    asked = balanced(scene.questions(0.0, end), questions, random.Random(scene.seed))
    for number, question in enumerate(asked):
        engine.ask(Question(str(number), stream, question.text, time.time(), 60))
    answers: dict[str, str] = {}
    while len(answers) < len(asked):
        for outcome in engine.step():
            assert isinstance(outcome, Answer), outcome
            answers[outcome.question.id] = outcome.text
    engine.close(stream)
    return [(question, answers[str(number)]) for number, question in enumerate(asked)]


def sheet(rows: list[tuple[Scene, list[tuple[Asked, str]]]]) -> Image.Image:
    """One row a scene: a few of its pictures, then question, truth where the answer is wrong, and answer."""
    text_at = GAP + len(SHOWN) * (SIDE + GAP)
    picture = Image.new("RGB", (text_at + 560, GAP + len(rows) * ROW), "white")
    draw = ImageDraw.Draw(picture)
    small, bold = ImageFont.load_default(12), ImageFont.load_default(13)
    for row, (scene, said) in enumerate(rows):
        top = GAP + row * ROW
        for column, before in enumerate(SHOWN):
            shot = Image.fromarray(scene.render(WATCHED - 0.5 - before, SIDE))
            left = GAP + column * (SIDE + GAP)
            picture.paste(shot, (left, top))
            when = "now" if before == 0 else f"{before:.0f} s ago"
            draw.text((left, top + SIDE + 4), f"scene {scene.seed}, {when}", FAINT, small)
        line = top
        for question, answer in said:
            right = answer == question.truth
            draw.text((text_at, line), question.text, INK, bold)
            shown = answer if right else f"{answer}   (truth: {question.truth})"
            for part in textwrap.wrap(shown, 78) or [""]:
                line += LINE
                draw.text((text_at + 14, line), part, RIGHT if right else WRONG, small)
            line += LINE + 3
    return picture


def main() -> None:
    """Draw the sheet and say how many answers on it are right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--first", type=int, default=500, help="seed of the first scene")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--questions", type=int, default=5, help="to each scene")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(load_model("demo"))
    scenes = [Scene(seed) for seed in range(options.first, options.first + options.scenes)]
    rows = [(scene, answers_at_end(engine, scene, options.questions)) for scene in scenes]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).quantize(128).save(options.out, optimize=True)
    said = [answer == question.truth for _, of in rows for question, answer in of]
    print(f"{options.out}: {sum(said)} of {len(said)} answers right")


if __name__ == "__main__":
    main()
