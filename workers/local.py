"""The whole service in one process on one device: ingest, analysis, delivery and gateway under one TaskGroup."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from stream_sttm import __version__, metrics, registry
from stream_sttm.api import whip
from stream_sttm.api.app import create_app
from stream_sttm.config import Settings
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import NoVideoYet, UnknownStream
from stream_sttm.models import load_model
from stream_sttm.queries import StandingQueries
from stream_sttm.sinks import open_sink
from stream_sttm.sinks.feed import Feed
from stream_sttm.sources import open_source
from stream_sttm.sources.access import Access
from stream_sttm.sources.pictures import jpeg
from stream_sttm.store import AnswerStore
from stream_sttm.types import Answer, Clip, Frame, Recall, StreamState, StreamStatus
from workers import delivery, gateway, ingest
from workers.analysis import Analysis
from workers.channel import Channel
from workers.keeping import Keeping

if TYPE_CHECKING:
    from stream_sttm.sources.whip import Publishers

_log = logging.getLogger(__name__)
_CLIPS_AHEAD = 2
_SMALL_MODEL = 50_000_000  # parameters under which one CPU thread is fastest
_ANSWERS_AHEAD = 4096
_STEP_WITHIN = 60.0  # seconds; an engine with work that has not stepped for longer is not ready


class LocalService:
    """What the HTTP interface may ask of the running service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        now = time.time()
        self._statuses = {
            name: StreamStatus(name, StreamState.CONNECTING, now)
            if stream.enabled
            else StreamStatus(name, StreamState.DISABLED, now, "disabled in the configuration")
            for name, stream in settings.streams.items()
        }
        self._newest: dict[str, Frame] = {}
        self._analysis: Analysis | None = None
        self._reason = "the model is being loaded"
        self.outbox: Channel[Answer | StreamStatus] = Channel(_ANSWERS_AHEAD, on_drop=_told_lost)

    @property
    def model(self) -> str:
        """Name of the model that answers."""
        return self._settings.model

    def streams(self) -> list[StreamStatus]:
        """Every stream's status, in the order of the configuration."""
        return [self._seen(status) for status in self._statuses.values()]

    def queries(self) -> list[dict[str, Any]]:
        """The standing queries as configured."""
        return [
            {"name": name, **query.model_dump()} for name, query in self._settings.queries.items()
        ]

    async def ask(
        self,
        stream: str,
        text: str,
        *,
        max_new_tokens: int | None = None,
        timeout: float,
        recall: Recall | None = None,
    ) -> Answer:
        """Answer a question from a stream's memory; raises QuestionError where it can't be."""
        if stream not in self._statuses:
            hint = registry.suggest(stream, sorted(self._statuses))
            raise UnknownStream(f"there is no stream {stream!r}{hint}")
        if not self._settings.streams[stream].enabled:
            raise NoVideoYet(f"stream {stream!r} is disabled in the configuration")
        if self._analysis is None:
            raise NoVideoYet(self._reason)
        limits = self._settings.answering
        return await self._analysis.ask(
            stream,
            text,
            max_new_tokens=min(max_new_tokens or limits.max_new_tokens, limits.max_new_tokens),
            timeout=min(timeout, limits.timeout),
            recall=recall,
        )

    def readiness(self) -> tuple[bool, str]:
        """Whether questions can be answered, and why not."""
        if self._analysis is None:
            return False, self._reason
        waited = self._analysis.seconds_in_step()
        if waited > _STEP_WITHIN:
            return False, f"the engine has been in one step for {waited:.0f} s"
        return True, "ready"

    def snapshot(self, stream: str) -> bytes | None:
        """The newest frame as JPEG, None before the first."""
        frame = self._newest.get(stream)
        return jpeg(frame.image) if frame is not None else None

    def _seen(self, status: StreamStatus) -> StreamStatus:
        """The status with the time of the newest frame, which changes without a change of state."""
        frame = self._newest.get(status.stream)
        return replace(status, last_frame_at=frame.captured_at) if frame is not None else status

    def keep_newest(self, frame: Frame) -> None:
        """Remember a frame for snapshots."""
        self._newest[frame.stream] = frame

    def report(self, status: StreamStatus) -> None:
        """Take a stream's new status and pass it on."""
        self._statuses[status.stream] = status
        self.outbox.offer(status)

    def started(self, analysis: Analysis) -> None:
        """The engine runs."""
        self._analysis = analysis


async def run(settings: Settings, *, ready: Callable[[int], None] | None = None) -> None:
    """Serve `settings` until cancelled; `ready` is told the HTTP port once it listens.

    Raises ConfigError or ModelError where the service can't start; afterwards streams, sinks and the store may fail
    and recover without ending it.
    """
    service = LocalService(settings)
    feed = Feed()
    store = AnswerStore(settings.store.path)
    token = settings.http.token.get_secret_value() if settings.http.token else None
    app = create_app(service, store=store, feed=feed, answering=settings.answering, token=token)
    publishers = _publishers(settings)
    app.include_router(whip.routes(publishers))
    limits = delivery.Limits(
        keep_answers=settings.store.keep_days * 86_400 if settings.store.keep_days else None
    )
    sinks = [open_sink(url) for url in settings.sinks]
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    try:
        async with publishers or nullcontext(), asyncio.TaskGroup() as group:
            group.create_task(
                gateway.run(
                    app, settings.http.host, settings.http.port, ready=ready, closing=feed.close
                ),
                name="gateway",
            )
            group.create_task(
                delivery.run(service.outbox, store=store, sinks=sinks, feed=feed, limits=limits),
                name="delivery",
            )
            group.create_task(_watch(settings, service, thread, publishers), name="watch")
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(store.close)


def _publishers(settings: Settings) -> Publishers | None:
    """Who takes publishers for the streams that wait for one, if there are any; needs the extra `webrtc`."""
    pushed = [name for name, each in settings.streams.items() if each.enabled and each.is_pushed]
    if not pushed:
        return None
    from stream_sttm.sources.whip import Publishers

    return Publishers(pushed)


async def _watch(
    settings: Settings,
    service: LocalService,
    thread: ThreadPoolExecutor,
    publishers: Publishers | None,
) -> None:
    """Load the model, then read every camera and answer."""
    loop = asyncio.get_running_loop()
    engine = await loop.run_in_executor(thread, _engine, settings)
    enabled = {name: stream for name, stream in settings.streams.items() if stream.enabled}
    keeping = Keeping(engine, settings.state, enabled, thread=thread)
    await loop.run_in_executor(thread, keeping.restore)
    queries = StandingQueries(settings.queries, settings.answering)
    analysis = Analysis(engine, queries, thread=thread, deliver=service.outbox.offer)
    service.started(analysis)
    clips: dict[str, Channel[Clip]] = {name: ingest.clip_channel(_CLIPS_AHEAD) for name in enabled}
    for status in service.streams():
        if status.stream not in enabled:
            ingest.show_state(status.stream, status.state)
            service.report(status)
    opener = partial(open_source, access=Access.of(settings.sources), publishers=publishers)
    async with asyncio.TaskGroup() as group:
        group.create_task(analysis.run(clips), name="analysis")
        group.create_task(keeping.run(), name="keeping")
        for name, stream in enabled.items():
            group.create_task(
                ingest.run(
                    name,
                    stream,
                    clips=clips[name],
                    report=service.report,
                    on_frame=service.keep_newest,
                    opener=opener,
                ),
                name=f"ingest[{name}]",
            )


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
        engine.open(name, fps=stream.fps)
    metrics.BUILD_INFO.info({"version": __version__, "model": settings.model})
    _log.info(
        "model %s on %s, ready after %.1f s",
        settings.model,
        model.device,
        time.perf_counter() - started,
    )
    return engine


def _told_lost(item: Answer | StreamStatus) -> None:
    """An answer that had to make room is lost to store and sinks, so it is counted and told."""
    if isinstance(item, Answer):
        metrics.STORE_ERRORS.inc()
        _log.error(
            "stream %s: an answer was lost, delivery is %d behind",
            item.question.stream,
            _ANSWERS_AHEAD,
        )
