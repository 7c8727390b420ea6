"""Conversion of decoded pictures to RGB images, scaled down, and hardly more often than they are sampled.

Shared by the sources that decode. The sampler decides which frames are used. A Pace only leaves out those that no
sampler of that rate could want.
"""

from __future__ import annotations

import io
from math import floor

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray
from PIL import Image

EARLY = 0.25  # share of the sampling period by which a frame may be early and still be wanted


class Pace:
    """Decides from their times in seconds which frames a sampler of `fps` may want."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._origin: float | None = None
        self._due = 0  # the next point of the grid on which frames are due

    def wants(self, t: float) -> bool:
        """Whether the frame at time `t` is near or past the next one due; times never go back."""
        if self._origin is None:
            self._origin = t
        passed = (t - self._origin) * self._fps
        if passed + EARLY < self._due:
            return False
        self._due = max(self._due, floor(passed) + 1)
        return True


def rgb(picture: VideoFrame, max_side: int) -> NDArray[np.uint8]:
    """Return the picture as (H, W, 3) RGB, scaled down where its longer side exceeds `max_side` pixels."""
    scale = min(1.0, max_side / max(picture.width, picture.height))
    image = picture.to_ndarray(
        format="rgb24",
        width=max(1, round(picture.width * scale)),
        height=max(1, round(picture.height * scale)),
        interpolation="AREA",
    )
    return np.asarray(image, np.uint8)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Return an (H, W, 3) RGB picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
