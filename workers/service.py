"""The running service as the HTTP interface and the sinks see it: states, pictures, questions, switches, figures.

It shows or passes on what the other parts report, and decides nothing itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stream_sttm import registry
from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings, Settings
from stream_sttm.control.additions import AddedQuery
from stream_sttm.control.switches import Place
from stream_sttm.engine.outcomes import Mosaic
from stream_sttm.errors import NotReady, NoVideoYet, UnknownStream
from stream_sttm.queries.known_answers import KnownAnswers
from stream_sttm.sources.images import jpeg
from stream_sttm.stats import Stats
from stream_sttm.types import Answer, Evidence, Frame, Question, StreamState, StreamStatus
from workers import delivery, ingest
from workers.analysis import Analysis
from workers.channel import Channel
from workers.control import Control

_PICTURES = 16  # frames held for events that begin just now
_STEP_WITHIN = 60.0  # seconds; an engine with work that has not stepped for longer is not ready


class LocalService:
    """Everything that the HTTP interface and the sinks may ask of this process."""

    def __init__(self, settings: Settings, *, is_drawn: bool = False) -> None:
        self._settings = settings
        self._is_drawn = is_drawn  # whether every camera shows a drawn scene, as the demo's
        self._statuses = {
            name: StreamStatus(name, StreamState.CONNECTING, time.time())
            for name in settings.streams
        }
        self._newest: dict[str, Frame] = {}
        self._still_since: dict[str, float | None] = {}
        self._losing: dict[str, tuple[float, str]] = {}  # since when, and why
        self._pictures: OrderedDict[str, Frame] = OrderedDict()  # of events that begin just now
        self._is_on: Callable[[Place], bool] = lambda place: self._configured(place)
        self._analysis: Analysis | None = None
        self._reason = "the model is being loaded"
        self._stats = Stats()
        self._known = KnownAnswers()
        self.control: Control | None = None
        self.outbox: Channel[delivery.Outgoing] = Channel(
            delivery.ANSWERS_AHEAD, on_drop=delivery.count_lost
        )

    @property
    def model(self) -> str:
        """Name of the model that answers."""
        return self._settings.model

    @property
    def model_note(self) -> str | None:
        """What people must know of the model's answers, None where there is nothing."""
        return None if self._is_drawn else self._settings.model_note

    @property
    def answering(self) -> AnsweringSettings:
        """Limits for questions."""
        return self._settings.answering

    @property
    def is_switchable(self) -> bool:
        """Whether streams and queries can be enabled and disabled while the service runs."""
        return self.control is not None

    def streams(self) -> list[StreamStatus]:
        """Return every stream's status, in the order of the configuration."""
        return [self._seen(status) for status in self._statuses.values()]

    def queries(self) -> list[dict[str, Any]]:
        """Return the standing queries as configured, with the streams that each is asked of now."""
        return [
            {
                "name": name,
                **query.model_dump(mode="json"),
                "enabled": any(on := [s for s in query.streams if self._is_on((s, name))]),
                "asked_of": on,
                "added": isinstance(query, AddedQuery),
            }
            for name, query in self._settings.queries.items()
        ]

    def standing(self) -> Mapping[str, QuerySettings]:
        """Return the standing queries by name."""
        return self._settings.queries

    def is_query_enabled(self, query: str, stream: str) -> bool:
        """Return whether a query is asked of a stream now."""
        return stream in self._settings.queries[query].streams and self._is_on((stream, query))

    def newest(self, query: str, stream: str) -> Answer | None:
        """Return the newest announced answer of a query on a stream, None where nobody knows one now."""
        return self._known.newest(stream, query, time.time())

    def stats(self) -> dict[str, Any]:
        """Return the service's metrics as a JSON object."""
        return self._stats.collect(self.streams(), model=self.model)

    def resend(self) -> None:
        """Report every stream's status again."""
        for status in self.streams():
            self.outbox.offer(status)

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        """Switch a stream on or off, over restarts too."""
        await self._controlled().set_stream_enabled(stream, is_enabled)

    async def set_query_enabled(self, query: str, stream: str | None, is_enabled: bool) -> None:
        """Switch a query on or off for one of its streams, or for all, over restarts too."""
        await self._controlled().set_query_enabled(query, stream, is_enabled)

    async def trigger(self, query: str, stream: str | None = None) -> None:
        """Ask a standing query now, whatever its cadence."""
        await self._controlled().trigger(query, stream)

    def sighted(self, payload: bytes) -> None:
        """Take a message of Frigate's topics `events` or `reviews`; garbage is only counted."""
        self._controlled().sighted(payload)

    def _controlled(self) -> Control:
        if self.control is None:
            raise NotReady("the service has not started yet; try again in a moment")
        return self.control

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer a question from a stream's memory. Raises QuestionError or ModelError."""
        stream = question.stream
        if stream not in self._statuses:
            hint = registry.suggest(stream, sorted(self._statuses))
            raise UnknownStream(f"there is no stream {stream!r}{hint}")
        if not self._is_on((stream, "")):
            raise NoVideoYet(f"stream {stream!r} is disabled")
        if self._analysis is None:
            raise NoVideoYet(self._reason)
        limits = self._settings.answering
        timeout = limits.timeout if question.timeout is None else question.timeout
        bounded = replace(
            question,
            max_new_tokens=min(question.max_new_tokens, limits.max_new_tokens),
            timeout=min(timeout, limits.timeout),
        )
        return await self._analysis.ask(bounded, on_text)

    def readiness(self) -> tuple[bool, str]:
        """Return whether questions can be answered, and why not."""
        if self._analysis is None:
            return False, self._reason
        waited = self._analysis.seconds_in_step()
        if waited > _STEP_WITHIN:
            return False, f"the engine has been in one step for {waited:.0f} s"
        for status in self.streams():
            if status.state is StreamState.STALLED and status.stream in self._losing:
                return False, f"stream {status.stream!r}: {status.reason}"
        return True, "ready"

    def snapshot(self, stream: str) -> bytes | None:
        """Return the newest frame as JPEG, None before the first."""
        frame = self._newest.get(stream)
        return jpeg(frame.image) if frame is not None else None

    async def mosaic(self, stream: str) -> Mosaic | None:
        """Return what stands for a stream's newest frame, None before the first."""
        return await self._analysis.mosaic(stream) if self._analysis is not None else None

    def remembered(self, stream: str) -> tuple[bytes, float] | None:
        """Return the newest frame in a stream's memory as JPEG, and its wall clock; None before the first."""
        frame = self._analysis.remembered(stream) if self._analysis is not None else None
        return (jpeg(frame.image), frame.captured_at) if frame is not None else None

    def _seen(self, status: StreamStatus) -> StreamStatus:
        """Return the status with the newest frame's time, and since when nothing has changed.

        A camera that is online although every window of it is lost counts as stalled.
        """
        if status.state is StreamState.ONLINE and status.stream in self._losing:
            since, reason = self._losing[status.stream]
            status = replace(status, state=StreamState.STALLED, since=since, reason=reason)
        frame = self._newest.get(status.stream)
        if frame is None:
            return status
        still = {"still_since": self._still_since.get(status.stream)}
        return replace(status, last_frame_at=frame.captured_at, details={**status.details, **still})

    def keep_newest(self, frame: Frame) -> None:
        """Keep a frame for snapshots."""
        self._newest[frame.stream] = frame

    def keep_stillness(self, stream: str, since: float | None) -> None:
        """Keep the wall clock since which a stream's picture has not changed."""
        self._still_since[stream] = since

    def report(self, status: StreamStatus) -> None:
        """Take a stream's new status and pass it on."""
        self._statuses[status.stream] = status
        self._send_status(status)

    def keep_losses(self, stream: str, why: str) -> None:
        """Take why every window of a stream is lost, and report it as stalled; as it is where `why` is empty."""
        is_news = (stream in self._losing) != bool(why)
        if why:
            since, _ = self._losing.get(stream, (time.time(), ""))
            self._losing[stream] = since, f"every window is lost: {why}"
        else:
            self._losing.pop(stream, None)
        status = self._statuses.get(stream)
        if is_news and status is not None:
            self._send_status(status)

    def _send_status(self, status: StreamStatus) -> None:
        seen = self._seen(status) if status.stream in self._losing else status
        if status.state is StreamState.ONLINE:
            ingest.show_state(status.stream, seen.state)
        self.outbox.offer(seen)

    def deliver(self, item: delivery.Outgoing) -> None:
        """Pass on an answer or event. An event's picture can be had at once, before the store has it."""
        if isinstance(item, Evidence):
            self._pictures[item.event] = item.frame
            if len(self._pictures) > _PICTURES:
                self._pictures.popitem(last=False)
        elif isinstance(item, Answer):
            self._known.take(item, time.time())
        self.outbox.offer(item)

    def event_snapshot(self, event: str) -> bytes | None:
        """Return the picture of an event that began a moment ago, None for an older one. Called from a thread."""
        frame = self._pictures.get(event)
        return jpeg(frame.image) if frame is not None else None

    def show(self, settings: Settings, is_on: Callable[[Place], bool]) -> None:
        """Take other settings and switches, and report the streams that these end."""
        old, self._settings, self._is_on = self._statuses, settings, is_on
        self._known.follow(settings.queries, is_on, time.time())
        self._statuses = {
            name: old.get(name) or StreamStatus(name, StreamState.CONNECTING, time.time())
            for name in settings.streams
        }
        for name in [name for name in old if name not in settings.streams]:
            self._newest.pop(name, None)
            self._still_since.pop(name, None)
            self._report_disabled(name, "removed from the configuration")
            del self._statuses[name]
        for name, status in list(self._statuses.items()):
            if not is_on((name, "")) and status.state is not StreamState.DISABLED:
                by = "while running" if settings.streams[name].enabled else "in the configuration"
                self._report_disabled(name, f"disabled {by}")

    def _report_disabled(self, stream: str, reason: str) -> None:
        self._losing.pop(stream, None)
        ingest.show_state(stream, StreamState.DISABLED)
        self.report(StreamStatus(stream, StreamState.DISABLED, time.time(), reason))

    def _configured(self, place: Place) -> bool:
        stream, query = place
        is_watched = self._settings.streams[stream].enabled
        return is_watched and (not query or self._settings.queries[query].enabled)

    def started(self, analysis: Analysis) -> None:
        """Take note that the engine runs."""
        self._analysis = analysis
