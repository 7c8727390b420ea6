"""The motion gate: which blocks of a clip differ from what the last encoded clips showed.

Pictures are compared as means of small blocks. Camera noise is no change, nor is a small change of all the light
(flicker, a cloud). Any other difference is one, and so is a fainter one over a larger area. In doubt it lets the clip
be encoded, which costs time but no accuracy. Pure numpy, one or two milliseconds a frame. Knows no model: the engine
decides what it skips.
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
COARSE = 4  # blocks of an area's side; fainter differences count over an area
# Grey levels by which the mean of a block or an area must differ. A video encoder alone moves them by 6 and 2.
LEAST = (8.0, 4.0)
SIGMAS = 6.0  # and how many times its noise
MOST_NOISE = 3.0  # grey levels of noise; more counts as a change
LEARNT = 1.1  # factor by which the noise estimate may rise from one frame to the next
MOST_LIGHT = 16.0  # grey levels by which the light of the whole picture may differ
GAIN = (0.85, 1.18)  # and its contrast
MOST_CHANGED = 0.5  # share of the picture; where more has changed, all of it is encoded


class MotionGate:
    """Compares one stream's clips in order. At least every `longest` seconds one is encoded as a whole.

    The reference is what has been encoded: of a clip encoded in part, only that part. Parts from several moments tell
    a model less than one whole picture, so once nothing changes any more the whole picture is encoded.
    """

    def __init__(self, longest: float) -> None:
        # wall clock of the first still frame; None while something changes
        self.still_since: float | None = None
        self._longest = longest
        self._noise = Noise()
        self._newest: Blocks | None = None
        # what is encoded, under the light of the newest clip encoded whole
        self._shown: Blocks | None = None
        # where something moved within that clip; reused, it would seem to move on
        self._moving: Where | None = None
        self._index = 0  # of the newest encoded clip
        self._is_whole = False  # whether the reference is that clip alone
        self._since = self._changed_at = (
            0.0  # seconds, of the newest whole one, and of the newest in part
        )

    def judge(self, clip: Clip) -> Clip:
        """Return the clip, marked with the earlier clip that it repeats, wholly or except for some blocks.

        A clip that shows nothing new but must be encoded is marked still, without an earlier clip.
        """
        pictures = [blocks(frame.image) for frame in clip.frames]
        moving = self._moved_within(pictures)
        shown, changed = self._compare(pictures)
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
            # for a model that encodes no parts, the reference is then the clip before
            self._shown, self._moving, self._since = pictures[-1], moving, self._changed_at
            return replace(clip, same_as=known, is_still=True, wants_whole=True)
        assert self._shown is not None
        assert shown is not None
        self._changed_at = newest
        self._shown = np.where(area, shown, self._shown)
        self._moving = area & moving
        return replace(clip, same_as=known, changed=area)

    def restart(self) -> None:
        """Forget the reference, as after a break."""
        self._newest = self._shown = self._moving = self.still_since = None

    def _moved_within(self, pictures: Sequence[Blocks]) -> Where:
        """Mark where a clip's pictures differ from each other, and update the noise estimate."""
        first = difference(self._newest, pictures[0])
        steps = [difference(before, now) for before, now in pairwise(pictures)]
        self._newest = pictures[-1]
        for step in (first, *steps):
            self._noise.learn(step)
        moving = np.zeros(pictures[0].shape[1:], np.bool_)
        for step in steps:
            moving |= self._noise.beyond(step)
        return moving

    def _compare(self, pictures: Sequence[Blocks]) -> tuple[Blocks | None, Where | None]:
        """Return the last picture under the reference's light, and where any differs. None without a reference."""
        if self._shown is None or self._moving is None or self._shown.shape != pictures[0].shape:
            return None, None
        changed = self._moving
        for picture in pictures:
            step = difference(self._shown, picture)
            changed = changed | self._noise.beyond(step)
        assert step is not None
        return self._shown + step.parts[0], changed


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two pictures, by blocks and by areas, and apart from it the difference of their light."""

    parts: tuple[Blocks, Blocks]
    light: float


@dataclass(slots=True)
class Noise:
    """The noise of blocks and areas from frame to frame: the least seen so far, slow to rise."""

    levels: list[float] = field(default_factory=list)

    def learn(self, step: Difference | None) -> None:
        """Update the estimate with the difference of two consecutive pictures."""
        if step is None:
            return
        # a Gaussian's deviation from the median; motion in less than half of the picture does not count
        seen = [
            float(np.median(np.abs(part))) / 0.6745 if part.size else 0.0 for part in step.parts
        ]
        known = self.levels or seen
        self.levels = [min(new, old * LEARNT + 1e-3) for new, old in zip(seen, known, strict=True)]

    def beyond(self, found: Difference | None) -> Where:
        """Return the blocks in which a difference is more than noise and light."""
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
            )  # visible only over an area, so it may reach further
            wide = (coarse | spread(faint)).repeat(COARSE, axis=0).repeat(COARSE, axis=1)
            fine[:rows, :columns] |= wide
        return fine


def spread(changed: Where) -> Where:
    """Return the blocks and their neighbours, because what moves may reach over their edges."""
    rows, columns = changed.shape
    framed = np.pad(changed, 1)
    around = [framed[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    reached: Where = np.any(around, axis=0)
    return reached


def blocks(image: NDArray[np.uint8]) -> Blocks:
    """Return the mean of each block of an (H, W, 3) picture, which is mirrored at its edges to whole blocks."""
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
    """Return how `now` differs from `before` apart from the light, None where they can't be compared.

    The light is one gain and one offset per channel, fitted to the blocks that agree best with an offset alone.
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
    # a uniform picture has no contrast to fit
    gain = np.where(spread > count, common / np.maximum(spread, 1), 1.0).clip(*GAIN)
    fitted = centred * gain.astype(np.float32) + mean_new
    light = float(np.abs(fitted.mean(axis=1) - old.mean(axis=1)).max())
    left = (new - fitted).reshape(now.shape)
    return Difference((left, _areas(left)), light)


def _areas(left: Blocks) -> Blocks:
    """Return the means of areas. Blocks at the far edges that fill no area are left out."""
    channels, rows, columns = left.shape
    if min(rows, columns) < COARSE:
        return left[:, :0, :0]
    rows, columns = rows // COARSE, columns // COARSE
    whole = left[:, : rows * COARSE, : columns * COARSE]
    means: Blocks = whole.reshape(channels, rows, COARSE, columns, COARSE).mean(axis=(2, 4))
    return means
