"""How a drawn scene looks: five shapes in seven colours on a plain, striped, blotched or two-part background.

Everything is measured on a canvas of 96 units a side, whatever the size of the picture, and a radius bounds a shape
roughly. Knows nothing of time: what is where, and when, is in scene.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CANVAS = 96.0
REACH = 1.25  # no shape extends further than this many radii from its centre
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.12, 0.70, 0.22),
    "blue": (0.16, 0.28, 0.90),
    "yellow": (0.94, 0.86, 0.14),
    "white": (0.96, 0.96, 0.96),
    "purple": (0.58, 0.18, 0.80),
    "orange": (0.96, 0.52, 0.08),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
GRAIN = 96  # sensor noise is drawn on a grid this fine, so that it survives scaling down

Image = NDArray[np.float32]
Points = NDArray[np.float64]


def coverage(shape: str, radius: float, angle: float) -> Image:
    """Return the share (2n+1, 2n+1) of each pixel that a shape covers, its centre in the middle; `radius` in pixels."""
    reach = int(np.ceil(radius * REACH)) + 2
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    if shape == "circle":
        distance: Image = np.hypot(x, y) - np.float32(radius)
        round_mask: Image = np.clip(0.5 - distance, 0, 1)
        return round_mask
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = (radius * _corners(shape) @ turn).astype(np.float32)
    mask: Image = np.clip(0.5 - _signed_distance(x, y, corners), 0, 1)
    return mask


def _corners(shape: str) -> Points:
    """Return the corners (K, 2) of a shape of radius 1, x to the right and y down."""
    if shape == "square":
        return np.array([(-0.87, -0.87), (0.87, -0.87), (0.87, 0.87), (-0.87, 0.87)])
    if shape == "triangle":
        corners: Points = _on_circle(3, np.full(3, 1.2)) + np.array((0.0, 0.15))
        return corners
    if shape == "star":
        return _on_circle(10, np.tile((1.18, 0.5), 5))
    arm, half = 1.0, 0.34
    quarter = np.array([(half, -arm), (half, -half), (arm, -half)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.array([p @ np.linalg.matrix_power(turn, k) for k in range(4) for p in quarter])


def _on_circle(count: int, radii: Points) -> Points:
    """`count` points around the centre, the first at the top, each at its own distance."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([radii * np.sin(angle), -radii * np.cos(angle)], axis=1)


def _signed_distance(x: Image, y: Image, corners: Image) -> Image:
    """Distance to a polygon's outline, negative inside."""
    nearest = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ay != by:  # even-odd rule: count the edges to the right of each pixel
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    distance: Image = np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)
    return distance


def background(rng: np.random.Generator, size: int) -> Image:
    """Return a wall (size, size, 3) in 0..1: a tinted gradient with stripes, blotches or a horizon."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    slope = rng.uniform(-0.14, 0.14, 2)
    tint = rng.uniform(-0.05, 0.05, 3)
    wall = rng.uniform(0.18, 0.55) + slope[0] * x + slope[1] * y
    pattern = rng.integers(3)
    if pattern == 0:
        angle, waves, phase = rng.uniform((0, 3, 0), (np.pi, 12, 2 * np.pi))
        wall = wall + 0.04 * np.sin(waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    elif pattern == 1:
        cell = np.arange(size) * 8 // size
        wall = wall + (0.05 * rng.standard_normal((8, 8)))[np.ix_(cell, cell)]
    else:
        step = rng.choice((-1, 1)) * rng.uniform(0.05, 0.12)
        wall = wall + np.where(y > rng.uniform(-0.55, 0.55), step, 0)
    tinted: Image = (wall[:, :, None] + tint).astype(np.float32)
    return np.clip(tinted, 0.03, 0.75)


def paint(canvas: Image, mask: Image, colour: Image, centre: tuple[float, float]) -> None:
    """Lay a shape of one colour (3,) over `canvas` (size, size, 3), cut off at its edges; `centre` in pixels."""
    size, reach = canvas.shape[0], mask.shape[0] // 2
    left, top = round(centre[0]) - reach, round(centre[1]) - reach
    x0, x1 = max(left, 0), min(left + 2 * reach + 1, size)
    y0, y1 = max(top, 0), min(top + 2 * reach + 1, size)
    if x0 < x1 and y0 < y1:
        share = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
        region = canvas[y0:y1, x0:x1]
        region += share * (colour - region)


def grain(rng: np.random.Generator, size: int, deviation: float) -> Image:
    """Sensor noise (size, size, 3), as coarse as GRAIN."""
    noise = rng.standard_normal((GRAIN, GRAIN, 3), dtype=np.float32) * np.float32(deviation)
    if size == GRAIN:
        return noise
    cell = np.arange(size) * GRAIN // size
    fine: Image = np.take(np.take(noise, cell, axis=0), cell, axis=1)
    return fine
