"""Our side of a file that several processes decode: each is asked for the frames of its segments in turn.

The first process says whether the file is worth it. The others join with the first frame, whose time is the origin of
all. Frames decoded ahead wait in the processes, within bounds. Where a segment can't be decoded without what was before
it, a single process reads the file again, up to where we were and on. A process that dies is an error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from typing import Any

from stream_sttm import metrics
from stream_sttm.sources.decoding.gop import Grid
from stream_sttm.sources.decoding.process import DecoderProcess, DecoderReport
from stream_sttm.sources.decoding.protocol import Request, Share, is_news
from stream_sttm.types import Frame

MOST = 4  # processes for one file
SMALL = 4 << 20  # bytes; of smaller files one process decodes all

logger = logging.getLogger(__name__)


def processes(size: int) -> int:
    """How many processes decode a file of so many bytes."""
    return min(MOST, len(os.sched_getaffinity(0))) if size >= SMALL else 1


class ParallelDecoder:
    """Several processes that decode the file of `request`, with the interface of one DecoderProcess."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._members = [DecoderProcess(request)]
        self._turn = 0
        self._grid = Grid(request.fps)  # a segment begins without knowing what was taken before it
        self._last: float | None = None
        self.details: dict[str, Any] = {}

    @property
    def heard_at(self) -> float:
        """When any of them last gave a sign of life, monotonic."""
        return max(member.heard_at for member in self._members)

    async def open(self) -> bool:
        """As of one process."""
        return await self._members[0].open()

    async def frame(self) -> Frame | None:
        """Return the next frame, None at the end. Raises SourceError."""
        while True:
            member = self._members[self._turn % len(self._members)]
            heard = await member.hear()
            self._describe(member)
            if heard is DecoderReport.END:
                return None
            if heard is DecoderReport.ASTRAY or (
                heard is DecoderReport.TURN and self._last is None
            ):
                await self._begin_alone()
            elif heard is DecoderReport.TURN:
                self._turn += 1
            elif isinstance(heard, Frame) and self._is_next(heard):
                if self._last is None:
                    await self._join(member.shares, heard.pts)
                self._last = heard.pts
                # what was decoded ahead did not happen before what is shown before it
                is_shared = len(self._members) > 1
                return replace(heard, captured_at=time.time()) if is_shared else heard

    async def close(self) -> None:
        """End them all, in whatever state."""
        async with asyncio.TaskGroup() as group:
            for member in self._members:
                group.create_task(member.close(), name=f"close[{self._request.stream}]")

    def _is_next(self, frame: Frame) -> bool:
        """Whether a frame is due, and none that we had."""
        if self._last is not None and frame.pts <= self._last:
            return False
        is_due = self._grid.take(frame.pts)
        if not is_due:
            metrics.FRAMES_DROPPED.labels(frame.stream, "sampled_out").inc()
        return is_due

    def _describe(self, member: DecoderProcess) -> None:
        """Take over what a process says of the video, where that is news."""
        video = member.details.get("video")
        if video is not None and is_news(video, self.details.get("video", {})):
            self.details = {"video": video}

    async def _join(self, count: int, origin: float) -> None:
        """Start the others, now that the first frame's time is known."""
        for index in range(1, count):
            share = Share(index, count, origin)
            member = DecoderProcess(replace(self._request, share=share))
            self._members.append(member)
            await member.start()

    async def _begin_alone(self) -> None:
        """Have one process decode the file; frames that were given are not given again."""
        logger.info("%s: is decoded by one process: it can't be cut", self._request.stream)
        await self.close()
        self._members, self._turn = [DecoderProcess(replace(self._request, share=Share()))], 0
        await self._members[0].open()
