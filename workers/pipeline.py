"""The pipeline: load the model, read every camera, answer, and follow the settings in force."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import SourceRules, StreamSettings
from stream_sttm.control.additions import access_of
from stream_sttm.control.switches import Place
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.sinks import Sink
from stream_sttm.sources import open_source
from stream_sttm.sources.webrtc.publishers import Publishers
from stream_sttm.storage.events import EventLog
from stream_sttm.types import Answer, Event, Evidence, Frame, StreamStatus
from workers import malloc_trim
from workers.analysis import Analysis
from workers.checkpoints import Checkpoints
from workers.config_watch import ConfigFile
from workers.control import Control, Parts
from workers.engine_host import EngineHost
from workers.ingest import Opener
from workers.sink_tasks import SinkTasks
from workers.stream_tasks import StreamTasks


class PipelineObserver(Protocol):
    """Shows the state of the pipeline and passes on what it produces. Its methods must not wait."""

    def started(self, analysis: Analysis) -> None:
        """Take note that the engine runs."""
        ...

    def deliver(self, item: Answer | Event | Evidence) -> None:
        """Pass on an answer or event."""
        ...

    def report(self, status: StreamStatus) -> None:
        """Take a stream's new status."""
        ...

    def keep_newest(self, frame: Frame) -> None:
        """Take a stream's newest frame."""
        ...

    def keep_stillness(self, stream: str, since: float | None) -> None:
        """Take the wall clock since which a stream's picture has not changed, None where it changes."""
        ...

    def keep_losses(self, stream: str, why: str) -> None:
        """Take why every window of a stream is lost, an empty reason where that is over."""
        ...

    def show(self, settings: Settings, is_on: Callable[[Place], bool]) -> None:
        """Take the settings and switches in force."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """Everything that reading and answering needs beside the model."""

    settings: Settings
    service: PipelineObserver
    control: Control
    log: EventLog
    sink_tasks: SinkTasks
    sinks: dict[str, Sink]
    open_sink: Callable[[str], Sink]
    file: ConfigFile | None = None

    async def run(self, thread: ThreadPoolExecutor, publishers: Publishers) -> None:
        """Load the model, then read every camera and answer, until cancelled."""
        host = await EngineHost.start(self.settings, thread)
        try:
            await self._run(host, publishers)
        finally:
            host.end()

    async def _run(self, host: EngineHost, publishers: Publishers) -> None:
        settings, service = self.settings, self.service
        checkpoints = Checkpoints(host, settings.state, lambda: self.control.settings.streams)
        await checkpoints.restore()
        queries = StandingQueries(settings.queries, settings.answering)
        analysis = Analysis(host, queries, deliver=service.deliver, on_losing=service.keep_losses)

        def opener(rules: SourceRules, published: list[str]) -> Callable[[StreamSettings], Opener]:
            publishers.follow(published)
            return lambda stream: partial(
                open_source, access=access_of(stream, rules), publishers=publishers
            )

        async with asyncio.TaskGroup() as group:
            group.create_task(analysis.run({}), name="analysis")
            await analysis.has_begun.wait()
            group.create_task(checkpoints.run(), name="checkpoints")
            group.create_task(malloc_trim.trim_regularly(), name="malloc_trim")
            streams = StreamTasks(
                group,
                analysis,
                opener=opener(settings.sources, []),
                report=service.report,
                on_frame=service.keep_newest,
                on_still=service.keep_stillness,
            )
            service.started(analysis)
            # Before the first answer: it might begin an event that already goes on.
            last = await asyncio.to_thread(self.log.last)
            analysis.publish(queries.resume(last, time.time()))
            await self.control.start(
                Parts(
                    host=host,
                    analysis=analysis,
                    queries=queries,
                    streams=streams,
                    sink_tasks=self.sink_tasks,
                    sinks=self.sinks,
                    open_sink=self.open_sink,
                    opener=opener,
                    show=service.show,
                    forget=checkpoints.forget,
                )
            )
            if self.file is not None:
                every = settings.watch_file
                following = self.file.follow(self.control.reload, every=every)
                group.create_task(following, name="configuration")
