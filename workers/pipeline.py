"""Loading the model, then reading every camera and answering, as the settings in force say at any time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from stream_sttm import __version__, metrics
from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import SourceRules, StreamSettings
from stream_sttm.control.additions import access_of
from stream_sttm.control.switches import Place
from stream_sttm.engine.engine import Engine
from stream_sttm.models import load_model
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
from workers.ingest import Opener
from workers.sink_tasks import SinkTasks
from workers.stream_tasks import StreamTasks

_log = logging.getLogger(__name__)
_SMALL_MODEL = 50_000_000  # parameters under which one CPU thread is fastest


class Front(Protocol):
    """Who shows what is watched, and passes on what comes of it; must not wait."""

    def started(self, analysis: Analysis) -> None:
        """The engine runs."""
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
        """Take since when (wall clock) nothing has changed in a stream's picture."""
        ...

    def show(self, settings: Settings, is_on: Callable[[Place], bool]) -> None:
        """Take the settings and switches in force."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """What watching needs beside the model, and the work itself."""

    settings: Settings
    service: Front
    control: Control
    log: EventLog
    outlets: SinkTasks
    sinks: dict[str, Sink]
    open_sink: Callable[[str], Sink]
    file: ConfigFile | None = None

    async def run(self, thread: ThreadPoolExecutor, publishers: Publishers) -> None:
        """Load the model, then read every camera and answer, until cancelled."""
        settings, service = self.settings, self.service
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(thread, _engine, settings)
        keeping = Checkpoints(
            engine.sessions, settings.state, lambda: self.control.settings.streams, thread=thread
        )
        await loop.run_in_executor(thread, keeping.restore)
        queries = StandingQueries(settings.queries, settings.answering)
        analysis = Analysis(engine, queries, thread=thread, deliver=service.deliver)

        def opener(rules: SourceRules, published: list[str]) -> Callable[[StreamSettings], Opener]:
            publishers.follow(published)
            return lambda stream: partial(
                open_source, access=access_of(stream, rules), publishers=publishers
            )

        async with asyncio.TaskGroup() as group:
            group.create_task(analysis.run({}), name="analysis")
            await analysis.has_begun.wait()
            group.create_task(keeping.run(), name="keeping")
            group.create_task(malloc_trim.stay_small(), name="heap")
            streams = StreamTasks(
                group,
                analysis,
                opener=opener(settings.sources, []),
                report=service.report,
                on_frame=service.keep_newest,
                on_still=service.keep_stillness,
            )
            service.started(analysis)
            # Before the first answer, or that might begin an event which goes on already.
            last = await asyncio.to_thread(self.log.last)
            analysis.tell(queries.resume(last, time.time()))
            await self.control.start(
                Parts(
                    analysis=analysis,
                    queries=queries,
                    streams=streams,
                    outlets=self.outlets,
                    sinks=self.sinks,
                    open_sink=self.open_sink,
                    opener=opener,
                    show=service.show,
                    forget=keeping.forget,
                )
            )
            if self.file is not None:
                every = settings.watch_file
                following = self.file.follow(self.control.reload, every=every)
                group.create_task(following, name="configuration")


def _engine(settings: Settings) -> Engine:
    started = time.perf_counter()
    model = load_model(settings.model, device=settings.device, dtype=settings.dtype)
    if model.device.type == "cpu":
        # Counted per calling thread, and this is the engine's.
        small = model.parameters < _SMALL_MODEL
        torch.set_num_threads(settings.threads or (1 if small else os.cpu_count() or 1))
    engine = Engine(
        model, reducer=settings.reducer, memory=settings.memory, answering=settings.answering
    )
    for name, stream in settings.streams.items():
        engine.open(name, fps=stream.fps, regions=stream.encodes_regions)
    metrics.BUILD_INFO.info({"version": __version__, "model": settings.model})
    _log.info(
        "model %s on %s, ready after %.1f s",
        settings.model,
        model.device,
        time.perf_counter() - started,
    )
    return engine
