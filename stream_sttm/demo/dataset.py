"""What the bundled model is taught from: short looks at drawn scenes, questions with answers, and labels per token.

A look is a handful of frame pairs out of up to four minutes, without gaps or with long ones, so that few frames teach
long memories. Pictures come as cameras give them: straight, scaled down, or through a real video codec. Every batch
is a function of the run's seed and its number alone, so a run can be taken up again anywhere.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_sttm.demo.architecture import GRID, PER_SECOND, SIDE, SPAN, Batch
from stream_sttm.demo.tokenizer import ASSISTANT, UNKNOWN, VISION_END, reworded, unanswerable
from stream_sttm.models.preprocess import HALF, normalize, patchify, resize
from stream_sttm.scene.drawing import CANVAS, COLOURS, SHAPES
from stream_sttm.scene.questions import Asked, balanced, questions
from stream_sttm.scene.timeline import CHAPTER, DIRECTIONS, LEAD, Thing
from stream_sttm.scene.truth import NAMES, Truth, Watch
from stream_sttm.sources.scene import Scene

TEACHING = range(1_000_000, 2_000_000)  # seeds of scenes to learn from; all others are held out
WATCHED = range(2_000_000, 2_100_000)  # of scenes to watch the progress on
LONGEST = 240.0  # seconds a look may span
SCENES, LASTS = 6, 12  # so many scenes at a time, each for so many batches: drawing one up costs
STRANGE = 0.04  # share of questions that have no answer
NOTHING = -100
# Labels per visual token, with their number of classes: what is here, what moves how, what left from here and
# was last seen here, whether that was the last to leave, whether this was the last to come, row and column. The name is
# shape and colour at once: without it a memory of many things finds a blue one and a star, but not the blue star.
LABELS = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "row": GRID,
    "column": GRID,
    "motion": len(DIRECTIONS) + 2,
    "left_shape": len(SHAPES) + 1,
    "left_colour": len(COLOURS) + 1,
    "left_last": 2,
    "came_last": 2,
    "name": len(NAMES) + 1,
    "left_name": len(NAMES) + 1,
}


@dataclass(frozen=True, slots=True)
class Look:
    """One clip: `slots` are the numbers of its frame pairs, `fps` the pace within and between them."""

    scene: Scene
    start: float
    fps: float
    slots: tuple[int, ...]

    @property
    def moments(self) -> tuple[float, ...]:
        """When its frames were taken."""
        return tuple(
            self.start + (SPAN * slot + i) / self.fps for slot in self.slots for i in range(SPAN)
        )

    @property
    def truth(self) -> Truth:
        """What is true at its end."""
        moments = self.moments
        return self.scene.seen(Watch(moments, moments[-SPAN]))


def look(scene: Scene, rng: random.Random, frames: int) -> Look:
    """Return a look at `frames` frame pairs of a scene's first chapter."""
    fps = rng.choices((2.0, 1.0, 4.0), (0.7, 0.15, 0.15))[0]
    pair = SPAN / fps
    gaps = [1] * (frames - 1)
    if rng.random() < 0.65:
        usual = rng.choice((2, 4, 8, 16))
        gaps = [1 if rng.random() < 0.4 else 1 + int(rng.expovariate(1 / usual)) for _ in gaps]
    while sum(gaps) * pair > LONGEST:
        gaps = [max(1, gap // 2) for gap in gaps]
    slots = (0, *np.cumsum(gaps).tolist())
    latest = CHAPTER - LEAD - 15 - (slots[-1] + 1) * pair
    return Look(scene, rng.uniform(0, latest), fps, slots)


def pictures(seen: Look, rng: random.Random) -> Tensor:
    """Its frames (F, 3, SIDE, SIDE) uint8, as some camera and its network would deliver them."""
    way = rng.random()
    size = SIDE if way < 0.65 else rng.choice((160, 192, 240))
    shots = [seen.scene.render(t, size) for t in seen.moments]
    if way > 0.85:
        shots = through_codec(shots, rng.choice((23, 28, 32, 36)))
    frames = torch.from_numpy(np.stack(shots)).permute(0, 3, 1, 2)
    return resize(frames, SIDE, SIDE)


def through_codec(shots: Sequence[NDArray[np.uint8]], quality: int) -> list[NDArray[np.uint8]]:
    """Return the same pictures after H.264 at a constant rate factor of `quality`."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=2)
        stream.height, stream.width = shots[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "ultrafast", "threads": "1"}
        for shot in shots:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shot, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        return [
            np.asarray(shot.to_ndarray(format="rgb24"), np.uint8)
            for shot in container.decode(video=0)
        ]


def patches(frames: Tensor) -> Tensor:
    """Frames (F, 3, SIDE, SIDE) -> (F / SPAN, GRID * GRID, P), as the model's family makes them."""
    flat, _ = patchify(normalize(frames, HALF), patch=SIDE // GRID, merge=1, span=SPAN)
    return flat.reshape(-1, GRID * GRID, flat.shape[-1])


def labels(seen: Look, truth: Truth) -> dict[str, NDArray[np.int64]]:
    """Return what each visual token (T, GRID * GRID) should know, see LABELS."""
    frames = len(seen.slots)
    found = {name: np.zeros((frames, GRID * GRID), np.int64) for name in LABELS}
    rows = np.repeat(np.arange(GRID), GRID)
    found["row"][:], found["column"][:] = rows, np.tile(np.arange(GRID), GRID)
    moments = np.reshape(seen.moments, (frames, SPAN))
    where = [_cells(sight.thing, moments) for sight in truth.seen]
    codes = [_codes(sight.thing) for sight in truth.seen]
    occupied = np.any(where, axis=0) if where else np.zeros((frames, GRID * GRID), bool)
    came, gone = _last_events(where)
    for number, (covers, coded) in enumerate(zip(where, codes, strict=True)):
        for name, code in coded.items():
            found[name][covers] = code
        found["came_last"][covers & (came == number)[:, None]] = 1
    order = sorted(range(len(where)), key=lambda i: truth.seen[i].last)
    for number in order:
        present = np.flatnonzero(where[number].any(1))
        if not len(present):
            continue
        trace = where[number][present[-1]][None] & ~occupied
        trace[: present[-1] + 1] = False
        for name in ("shape", "colour", "name"):
            found[f"left_{name}"][trace] = codes[number][name]
        found["left_last"][trace] = 0
        found["left_last"][trace & (gone == number)[:, None]] = 1
    return found


def _last_events(where: Sequence[NDArray[np.bool_]]) -> tuple[NDArray[np.int64], ...]:
    """Per frame, the number of the thing that came last (after the first frame), and that left last; -1 for none."""
    frames = where[0].shape[0] if where else 0
    came, gone = np.full(frames, -1), np.full(frames, -1)
    for number, covers in enumerate(where):
        present = np.flatnonzero(covers.any(1))
        if not len(present):
            continue
        for events, at in ((came, present[0]), (gone, present[-1] + 1)):
            if 0 < at < frames:
                later = np.arange(frames) >= at
                newer = [_event(where, other, events is came) <= at for other in range(len(where))]
                replaces = np.array([events[f] < 0 or newer[events[f]] for f in range(frames)])
                events[later & replaces] = number
    return came, gone


def _event(where: Sequence[NDArray[np.bool_]], number: int, coming: bool) -> int:
    present = np.flatnonzero(where[number].any(1))
    if not len(present):
        return -1
    return int(present[0]) if coming else int(present[-1]) + 1


def _cells(thing: Thing, moments: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the cells (T, GRID * GRID) that a thing covers a good part of, in the middle of each pair."""
    cell = CANVAS / GRID
    centres = (np.arange(GRID) + 0.5) * cell
    covers = np.zeros((len(moments), GRID * GRID), bool)
    for frame, times in enumerate(moments):
        if not all(thing.arrives <= t < thing.leaves for t in times):
            continue
        x, y = thing.centre(float(times.mean()))
        near = np.hypot(centres[None, :] - x, centres[:, None] - y) < thing.radius + 0.1 * cell
        covers[frame] = near.ravel()
    return covers


def _codes(thing: Thing) -> dict[str, int]:
    """Return the classes of its labels."""
    return {
        "shape": SHAPES.index(thing.shape) + 1,
        "colour": list(COLOURS).index(thing.colour) + 1,
        "name": NAMES.index(thing.name) + 1,
        "motion": 1 if thing.direction is None else 2 + list(DIRECTIONS).index(thing.direction),
    }


class Dataset:
    """Batches without end: number `index` of a run with `seed` is always the same."""

    def __init__(self, tokenizer: Any, seed: int, scenes: range = TEACHING) -> None:
        self._tokenizer, self._seed, self._scenes = tokenizer, seed, scenes
        self._opening, self._closing = (
            tokenizer.convert_tokens_to_ids(of) for of in ([VISION_END], [ASSISTANT])
        )
        self._end: int = tokenizer.eos_token_id

    def batch(self, index: int, *, clips: int, frames: int, asked: int) -> Batch:
        """`clips` looks of `frames` frame pairs, each with about `asked` questions (none: labels alone)."""
        rng = random.Random(f"{self._seed} {index}")
        term = f"{self._seed} {index // LASTS}"
        seeds = [random.Random(f"{term} {i}").choice(self._scenes) for i in range(SCENES)]
        looks = [look(Scene(rng.choice(seeds)), rng, frames) for _ in range(clips)]
        truths = [seen.truth for seen in looks]
        rounds = [
            self._round(seen, truth, asked, rng) for seen, truth in zip(looks, truths, strict=True)
        ]
        self.asked = rounds
        return collate(
            looks,
            [patches(pictures(seen, rng)) for seen in looks],
            [labels(seen, truth) for seen, truth in zip(looks, truths, strict=True)],
            [[self.ids(question) for question in of] for of in rounds],
            random.Random(f"{term} offset {index}"),
        )

    def _round(self, seen: Look, truth: Truth, count: int, rng: random.Random) -> list[Asked]:
        if not count:
            return []
        found = questions(truth, rng)
        if len(seen.slots) == 1:  # one moment shows no past
            still = ("list", "count", "describe", "exist", "alarm", "colour", "where")
            found = [q for q in found if q.kind in still and " moving " not in q.truth]
        chosen = balanced(found, count, rng)
        return [
            Asked(unanswerable(rng), UNKNOWN, "strange")
            if rng.random() < STRANGE
            else q._replace(text=reworded(q.text, rng))
            for q in chosen
        ]

    def ids(self, question: Asked) -> tuple[list[int], list[int]]:
        """Token ids of all that is asked, and of the answer with its end."""
        tell = self._tokenizer
        asked = tell(question.text.strip(), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        answer_ids = tell(question.truth, add_special_tokens=False)["input_ids"]
        return [*self._opening, *asked, *self._closing], [*answer_ids, self._end]


def collate(
    looks: Sequence[Look],
    pixels: Sequence[Tensor],
    taught: Sequence[dict[str, NDArray[np.int64]]],
    rounds: Sequence[Sequence[tuple[list[int], list[int]]]],
    rng: random.Random,
) -> Batch:
    """Clips and their questions as one batch; some clips begin late on the time axis, as a rolling memory's do."""
    longest = max(1, *(sum(len(q) + len(answer_ids) for q, answer_ids in of) for of in rounds))
    shape = (len(looks), longest)
    text, owner = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    offset, goals = torch.zeros(shape, dtype=torch.long), torch.full(shape, NOTHING)
    weights = torch.zeros(shape)
    for row, of in enumerate(rounds):
        at = 0
        for number, (question, answer_ids) in enumerate(of):
            ids = torch.tensor([*question, *answer_ids])
            here = slice(at, at + len(ids))
            text[row, here], owner[row, here] = ids, number
            offset[row, here] = torch.arange(len(ids))
            first = at + len(question) - 1
            goals[row, first : first + len(answer_ids)] = torch.tensor(answer_ids)
            weights[row, first : first + len(answer_ids)] = len(answer_ids) ** -0.5
            at += len(ids)
    step = [PER_SECOND * SPAN / seen.fps for seen in looks]
    times = torch.tensor(
        [[int(slot * s) for slot in seen.slots] for seen, s in zip(looks, step, strict=True)]
    )
    begin = torch.maximum(times[:, -1] + 1, torch.tensor(GRID))
    late = torch.tensor([rng.randrange(300) if rng.random() < 0.4 else 0 for _ in looks])
    return Batch(
        patches=torch.cat(list(pixels)),
        times=times + late[:, None],
        begin=begin + late,
        text=text,
        owner=owner,
        offset=offset,
        goals=goals,
        weights=weights,
        labels={name: torch.from_numpy(np.stack([of[name] for of in taught])) for name in LABELS},
    )
