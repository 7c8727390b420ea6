"""Sample frames at a fixed rate without drift, and group them into clips.

Pure: time is each frame's `pts`, nothing waits. Frames are due at the points of a grid that starts with the first
frame. Points missed in a gap are skipped. Knows nothing of where frames come from.
"""

from __future__ import annotations

from math import floor

from stream_sttm.metrics import FRAMES_DROPPED
from stream_sttm.types import Clip, Frame

EARLY = 0.1  # share of the period by which a frame may come early and still count as due


class Sampler:
    """Turns one stream's frames, given in order of `pts`, into clips of `clip_frames` frames at `fps`."""

    def __init__(self, fps: float, clip_frames: int) -> None:
        self._fps = fps
        self._clip_frames = clip_frames
        self._origin: float | None = None
        self._due = 0  # the next point of the grid
        self._frames: list[Frame] = []
        self._clips = 0

    def add(self, frame: Frame) -> Clip | None:
        """Sample or skip the next frame. Returns the clip that it completes, if any."""
        if self._origin is None:
            self._origin = frame.pts
        reached = floor((frame.pts - self._origin) * self._fps + EARLY)
        if reached < self._due:
            FRAMES_DROPPED.labels(frame.stream, "sampled_out").inc()
            return None
        self._due = reached + 1
        # Frames of one clip are encoded as one block, so a camera that changes its size begins a new one.
        is_resized = bool(self._frames) and self._frames[-1].image.shape != frame.image.shape
        shorter = self.flush() if is_resized else None
        self._frames.append(frame)
        return self.flush() if len(self._frames) == self._clip_frames else shorter

    def restart(self) -> Clip | None:
        """Begin a new grid with the next frame, as after a break. Returns what `flush` does."""
        self._origin, self._due = None, 0
        return self.flush()

    def flush(self) -> Clip | None:
        """Return the frames since the last clip as a shorter clip, at a stream's end or a break. None without any."""
        if not self._frames:
            return None
        frames, self._frames = tuple(self._frames), []
        clip = Clip(frames[0].stream, self._clips, frames)
        self._clips += 1
        return clip
