"""Which clips show nothing new: compared, as means of small blocks, with the newest clip that is to be encoded.

What the camera's noise explains is no change, nor is a small change of all the light (flicker, a cloud); whatever
else differs anywhere is one, and so is a fainter difference where it covers more. Errs to the side of encoding, which
costs time and no truth. Pure numpy, about a millisecond a clip. Knows no model: whether a clip is spared in the end is
decided in engine.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stream_sttm.types import Clip

Blocks = NDArray[np.float32]  # (3, rows, columns), grey levels

BLOCK = 8  # pixels of a block's side
COARSE = 4  # blocks of the side of an area, within which fainter differences count
# Grey levels by which a block's or an area's mean has to differ at least: an encoder alone moves them by 6 and 2.
LEAST = (8.0, 4.0)
SIGMAS = 6.0  # and how many times its noise
MOST_NOISE = 3.0  # grey levels of noise; what is more is taken for a change
LEARNT = 1.1  # factor by which noise is believed to have risen from one frame to the next at most
MOST_LIGHT = 16.0  # grey levels by which the light of the whole picture may differ
GAIN = (0.85, 1.18)  # and its contrast


class StillGate:
    """Judges one stream's clips in order; none is spared for longer than `longest` seconds after an encoded one."""

    def __init__(self, longest: float) -> None:
        self.still_since: float | None = (
            None  # wall clock, by the newest clip; None while something changes
        )
        self._longest = longest
        self._noise = Noise()
        self._newest: Blocks | None = None
        self._shown: Blocks | None = None  # the last frame of the newest clip that is to be encoded
        self._index, self._since = 0, 0.0  # that clip's index and the time of that frame
        self._is_calm = (
            False  # whether nothing moved within it: else what is reused would seem to move on
        )

    def judge(self, clip: Clip) -> Clip:
        """The clip; where it shows the same as an earlier one, with `same_as` set to the index of that."""
        is_calm, is_same = True, self._is_calm
        for number, frame in enumerate(clip.frames):
            picture = blocks(frame.image)
            step = difference(self._newest, picture)
            self._noise.learn(step)
            is_calm &= number == 0 or self._noise.explains(step)
            whole = step if self._newest is self._shown else difference(self._shown, picture)
            is_same = is_same and self._noise.explains(whole)
            self._newest = picture
        self.still_since = (self.still_since or clip.frames[0].captured_at) if is_same else None
        newest = clip.frames[-1].pts
        if is_same and newest - self._since < self._longest:
            return replace(clip, same_as=self._index)
        self._shown, self._index, self._since = self._newest, clip.index, newest
        self._is_calm = is_calm
        return clip

    def restart(self) -> None:
        """Forget what was shown, as after a break."""
        self._newest = self._shown = self.still_since = None
        self._is_calm = False


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
        seen = [float(np.median(np.abs(part))) / 0.6745 for part in step.parts]
        known = self.levels or seen
        self.levels = [min(new, old * LEARNT + 1e-3) for new, old in zip(seen, known, strict=True)]

    def explains(self, found: Difference | None) -> bool:
        """Whether a difference is no more than noise and light."""
        if found is None or found.light > MOST_LIGHT:
            return False
        return all(
            float(np.abs(part).max()) <= max(least, SIGMAS * min(level, MOST_NOISE))
            for part, least, level in zip(found.parts, LEAST, self.levels, strict=True)
        )


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
        return left
    rows, columns = rows // COARSE, columns // COARSE
    whole = left[:, : rows * COARSE, : columns * COARSE]
    means: Blocks = whole.reshape(channels, rows, COARSE, columns, COARSE).mean(axis=(2, 4))
    return means
