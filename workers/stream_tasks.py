"""One reading task per enabled stream, started, stopped and replaced without touching the others.

A stream's channel outlives its reader. So its memory goes on where only the reading changes. Knows nothing of why a
stream is on or off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from stream_sttm.config.streams import StreamSettings
from stream_sttm.control.diff import reads_alike
from stream_sttm.types import Clip, Frame, StreamStatus
from workers import ingest
from workers.analysis import Analysis
from workers.channel import Channel
from workers.ingest import Opener

_CLIPS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class _Reader:
    """A task that reads a stream, and the settings that it was started with."""

    task: asyncio.Task[None]
    settings: StreamSettings


class StreamTasks:
    """The readers of all streams, as tasks of `group`. All calls are made from the event loop's thread."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        analysis: Analysis,
        *,
        opener: Callable[[StreamSettings], Opener],
        report: Callable[[StreamStatus], None],
        on_frame: Callable[[Frame], None],
        on_still: Callable[[str, float | None], None],
    ) -> None:
        self._group, self._analysis = group, analysis
        self._report, self._on_frame, self._on_still = report, on_frame, on_still
        self._channels: dict[str, Channel[Clip]] = {}
        self._readers: dict[str, _Reader] = {}
        self.opener = opener  # for readers that are yet to begin

    async def follow(
        self, name: str, settings: StreamSettings, *, is_on: bool, anew: bool = False
    ) -> None:
        """Read the stream as `settings` say, or not at all. A reader that already does so goes on, unless `anew`."""
        reader = self._readers.get(name)
        if reader is not None:
            is_alike = reads_alike(reader.settings, settings)
            if is_on and is_alike and not anew:
                return
            await self._stop(name)
        if is_on:
            self._start(name, settings)

    async def forget(self, name: str) -> None:
        """Stop reading the stream and free its memory."""
        await self._stop(name)
        self._channels.pop(name, None)
        await self._analysis.forget(name)

    def _start(self, name: str, settings: StreamSettings) -> None:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = ingest.clip_channel(_CLIPS_AHEAD)
            self._analysis.watch(name, channel)
        reading = ingest.run(
            name,
            settings,
            clips=channel,
            report=self._report,
            on_frame=self._on_frame,
            on_still=self._on_still,
            opener=self.opener(settings),
        )
        task = self._group.create_task(reading, name=f"ingest[{name}]")
        self._readers[name] = _Reader(task, settings)

    async def _stop(self, name: str) -> None:
        reader = self._readers.pop(name, None)
        if reader is not None:
            reader.task.cancel()
            await asyncio.wait([reader.task])
