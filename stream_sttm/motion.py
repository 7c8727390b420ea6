"""What of a clip is new: compared, as means of small blocks, with what the newest clips to be encoded showed.

What the camera's noise explains is no change, nor is a small change of all the light (flicker, a cloud); whatever
else differs anywhere is one, and so is a fainter difference where it covers more. Errs to the side of encoding, which
costs time and no truth. Pure numpy, a millisecond or two a frame. Knows no model: what is spared in the end is decided
in engine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stream_sttm.types import Clip

Blocks = NDArray[np.float32]  # (3, rows, columns), grey levels
Where = NDArray[np.bool_]  # (rows, columns)

BLOCK = 8  # pixels of a block's side
COARSE = 4  # blocks of the side of an area, within which fainter differences count
# Grey levels by which a block's or an area's mean has to differ at least: an encoder alone moves them by 6 and 2.
LEAST = (8.0, 4.0)
SIGMAS = 6.0  # and how many times its noise
MOST_NOISE = 3.0  # grey levels of noise; what is more is taken for a change
LEARNT = 1.1  # factor by which noise is believed to have risen from one frame to the next at most
MOST_LIGHT = 16.0  # grey levels by which the light of the whole picture may differ
GAIN = (0.85, 1.18)  # and its contrast
MOST_CHANGED = 0.5  # share of the picture; where more has changed all is encoded


class MotionGate:
    """Judges one stream's clips in order; one is to be encoded whole every `longest` seconds at least.

    What it holds a clip against is what there are features of: of a clip encoded in part, only that part. Parts of
    several moments tell a model less than one moment as a whole, so once nothing changes any more that is encoded.
    """

    def __init__(self, longest: float) -> None:
        # wall clock, by the newest clip; None while something changes
        self.still_since: float | None = None
        self._longest = longest
        self._noise = Noise()
        self._newest: Blocks | None = None
        # what is encoded, in the light of the newest clip encoded whole
        self._shown: Blocks | None = None
        # where something moved within it: reused, it would seem to move on
        self._moving: Where | None = None
        self._index = 0  # of the newest clip to be encoded
        self._is_whole = False  # whether what is encoded is that one clip
        self._since = self._changed_at = (
            0.0  # seconds, of the newest whole one, and of the newest in part
        )

    def judge(self, clip: Clip) -> Clip:
        """The clip; where it shows the same as an earlier one, wholly or but for some blocks, marked so.

        One that shows nothing new but is to be encoded all the same is still, and the same as none.
        """
        pictures = [blocks(frame.image) for frame in clip.frames]
        moving = self._moved_within(pictures)
        shown, changed = self._held_against(pictures)
        is_still = changed is not None and not changed.any()
        self.still_since = (self.still_since or clip.frames[0].captured_at) if is_still else None
        newest = clip.frames[-1].pts
        is_due = newest - self._since >= self._longest
        if changed is None or is_due or (area := spread(changed)).mean() > MOST_CHANGED:
            self._shown, self._moving, self._is_whole = pictures[-1], moving, True
            self._index, self._since = clip.index, newest
            return replace(clip, is_still=is_still)
        known = self._index
        if is_still and self._is_whole:
            return replace(clip, same_as=known, is_still=True)
        self._index, self._is_whole = clip.index, is_still
        if is_still:
            # where a model is given no parts, what is shown then is the clip before
            self._shown, self._moving, self._since = pictures[-1], moving, self._changed_at
            return replace(clip, same_as=known, is_still=True, wants_whole=True)
        assert self._shown is not None
        assert shown is not None
        self._changed_at = newest
        self._shown = np.where(area, shown, self._shown)
        self._moving = area & moving
        return replace(clip, same_as=known, changed=area)

    def restart(self) -> None:
        """Forget what was shown, as after a break."""
        self._newest = self._shown = self._moving = self.still_since = None

    def _moved_within(self, pictures: Sequence[Blocks]) -> Where:
        """Where a clip's pictures differ among themselves; learns the camera's noise."""
        first = difference(self._newest, pictures[0])
        steps = [difference(before, now) for before, now in pairwise(pictures)]
        self._newest = pictures[-1]
        for step in (first, *steps):
            self._noise.learn(step)
        moving = np.zeros(pictures[0].shape[1:], np.bool_)
        for step in steps:
            moving |= self._noise.beyond(step)
        return moving

    def _held_against(self, pictures: Sequence[Blocks]) -> tuple[Blocks | None, Where | None]:
        """The last picture in the light of what was shown, and where any differs from that; None: nothing is known."""
        if self._shown is None or self._moving is None or self._shown.shape != pictures[0].shape:
            return None, None
        changed = self._moving
        for picture in pictures:
            found = difference(self._shown, picture)
            changed = changed | self._noise.beyond(found)
        assert found is not None
        return self._shown + found.parts[0], changed


@dataclass(frozen=True, slots=True)
class Difference:
    """What is left between two pictures, in blocks and in areas, when the light is taken out; how the light differs."""

    parts: tuple[Blocks, Blocks]
    light: float


@dataclass(slots=True)
class Noise:
    """How much blocks and areas differ from frame to frame where nothing happens: the least seen, slow to rise."""

    levels: list[float] = field(default_factory=list)

    def learn(self, step: Difference | None) -> None:
        """Take in the difference between pictures that follow each other."""
        if step is None:
            return
        # of a Gaussian's deviation; what moves in less than half of the picture does not matter
        seen = [
            float(np.median(np.abs(part))) / 0.6745 if part.size else 0.0 for part in step.parts
        ]
        known = self.levels or seen
        self.levels = [min(new, old * LEARNT + 1e-3) for new, old in zip(seen, known, strict=True)]

    def beyond(self, found: Difference | None) -> Where:
        """In which blocks a difference is more than noise and light."""
        assert found is not None, "pictures of one clip have one size"
        beyond: list[Where] = [
            np.any(np.abs(part) > max(least, SIGMAS * min(level, MOST_NOISE)), axis=0)
            for part, least, level in zip(found.parts, LEAST, self.levels, strict=True)
        ]
        fine, coarse = beyond
        if found.light > MOST_LIGHT:
            fine[:] = True
        if coarse.any():
            rows, columns = (side * COARSE for side in coarse.shape)
            held = fine[:rows, :columns].reshape(-1, COARSE, columns // COARSE, COARSE)
            faint = coarse & ~held.any(
                axis=(1, 3)
            )  # seen only where it fills an area, so it may reach on
            wide = (coarse | spread(faint)).repeat(COARSE, axis=0).repeat(COARSE, axis=1)
            fine[:rows, :columns] |= wide
        return fine


def spread(changed: Where) -> Where:
    """The blocks and those around them: what they show may reach over their edges."""
    rows, columns = changed.shape
    framed = np.pad(changed, 1)
    around = [framed[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    reached: Where = np.any(around, axis=0)
    return reached


def blocks(image: NDArray[np.uint8]) -> Blocks:
    """(H, W, 3) -> the mean of each block; the picture is mirrored at its edge to whole blocks."""
    height, width, _ = image.shape
    over = -height % BLOCK, -width % BLOCK
    if any(over):
        image = np.pad(image, ((0, over[0]), (0, over[1]), (0, 0)), mode="symmetric")
    rows = image[0::BLOCK].astype(
        np.uint16
    )  # strided sums: several times faster than a reshaped mean
    for offset in range(1, BLOCK):
        rows += image[offset::BLOCK]
    sums = rows[:, 0::BLOCK].astype(np.float32)
    for offset in range(1, BLOCK):
        sums += rows[:, offset::BLOCK]
    return np.ascontiguousarray(sums.transpose(2, 0, 1)) / np.float32(BLOCK * BLOCK)


def difference(before: Blocks | None, now: Blocks) -> Difference | None:
    """How `now` differs from `before` in another light; None where they can't be compared.

    The light is one gain and one offset per channel, fitted to those blocks that agree best with a mere offset.
    """
    if before is None or before.shape != now.shape:
        return None
    old, new = before.reshape(3, -1), now.reshape(3, -1)
    step = new - old
    apart = np.abs(step - np.median(step, axis=1, keepdims=True))
    agree = (apart <= np.median(apart, axis=1, keepdims=True) * 2 + 1).astype(np.float32)
    count = agree.sum(axis=1, keepdims=True)
    mean_old = (old * agree).sum(axis=1, keepdims=True) / count
    mean_new = (new * agree).sum(axis=1, keepdims=True) / count
    centred = old - mean_old
    spread = (agree * centred**2).sum(axis=1, keepdims=True)
    common = (agree * centred * (new - mean_new)).sum(axis=1, keepdims=True)
    # a plain picture says nothing of contrast
    gain = np.where(spread > count, common / np.maximum(spread, 1), 1.0).clip(*GAIN)
    fitted = centred * gain.astype(np.float32) + mean_new
    light = float(np.abs(fitted.mean(axis=1) - old.mean(axis=1)).max())
    left = (new - fitted).reshape(now.shape)
    return Difference((left, _areas(left)), light)


def _areas(left: Blocks) -> Blocks:
    """The means of areas; blocks at the far edges that fill none are left to themselves."""
    channels, rows, columns = left.shape
    if min(rows, columns) < COARSE:
        return left[:, :0, :0]
    rows, columns = rows // COARSE, columns // COARSE
    whole = left[:, : rows * COARSE, : columns * COARSE]
    means: Blocks = whole.reshape(channels, rows, COARSE, columns, COARSE).mean(axis=(2, 4))
    return means
