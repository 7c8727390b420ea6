"""The life of a process that draws a scene instead of decoding a video: a picture at each tick that is due."""

from __future__ import annotations

import time

from stream_sttm.scene.world import Scene
from stream_sttm.sources.decoding.gop import Grid
from stream_sttm.sources.decoding.mailbox import Mailbox, Picture
from stream_sttm.sources.decoding.protocol import Request


class SceneWorker:
    """Draws what a request names into `mailbox` until the mailbox is closed."""

    def __init__(self, request: Request, mailbox: Mailbox) -> None:
        options = request.opening.options
        self._scene, self._mailbox = Scene(int(options["seed"])), mailbox
        self._period, self._grid = 1 / float(options["fps"]), Grid(request.fps)
        self._size = min(int(options["size"]), request.max_side)

    def run(self) -> None:
        """Draw in real time. Ticks that are not due, or that drawing is too slow for, are left out."""
        self._mailbox.mark(live=True)
        opened, tick, is_wanted = time.monotonic(), 0, True
        while is_wanted:
            t = tick * self._period
            self._mailbox.count("received")
            if self._grid.take(t):
                started = time.perf_counter()
                image = self._scene.render(t, self._size)
                spent = time.perf_counter() - started
                self._mailbox.put(Picture(image, t, time.time(), spent))
            else:
                self._mailbox.count("sampled_out")
            tick = max(tick + 1, int((time.monotonic() - opened) / self._period))
            pause = opened + tick * self._period - time.monotonic()
            is_wanted = self._mailbox.rest(max(0.0, pause))
