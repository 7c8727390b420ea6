"""The reconnect loop: opens a stream's source again and again, and cuts its frames into clips.

A source runs until it ends or breaks. A frame that does not come in time is a stall. Then the source is closed, and
opened again after a pause that grows while nothing works. Of several URLs the best is tried first each time, and the
next at once where it gives no frame. A file runs once. A camera that comes back with another codec or size begins a
new segment. Each stream has its own `run`, and its faults stay there.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol

from stream_sttm import metrics, urls
from stream_sttm.config import source_url
from stream_sttm.config.streams import StreamSettings
from stream_sttm.errors import ConfigError, NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.motion import MotionGate
from stream_sttm.sampling import Sampler
from stream_sttm.sources import Source, open_source
from stream_sttm.sources.decoding.clock import StreamClock
from stream_sttm.types import Clip, Frame, StreamState, StreamStatus
from workers.backoff import USUAL, Backoff, Watchdog
from workers.channel import Channel

logger = logging.getLogger(__name__)

OPEN_LIMIT = 30.0  # seconds for opening, should a source's own timeouts fail
_TROUBLE = (StreamState.STALLED, StreamState.OFFLINE)


class _Stalled(SourceUnavailable):
    """No frame for too long on a connection that is still up."""


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (_Stalled, "stalled"),
    (SourceDenied, "denied"),
    (NotVideo, "not_video"),
    (SourceError, "unavailable"),
)


class Opener(Protocol):
    """Makes the source for a URL: `open_source`, with access rules and publishers filled in."""

    def __call__(
        self, url: str, *, stream: str, fps: float, max_side: int, decode: str, max_pixels: int
    ) -> Source: ...


def clip_channel(capacity: int) -> Channel[Clip]:
    """Make a channel for one stream's clips. The frames of a dropped clip are counted."""
    return Channel(capacity, on_drop=_count_dropped)


def _count_dropped(clip: Clip) -> None:
    metrics.FRAMES_DROPPED.labels(clip.stream, "queue_full").inc(len(clip.frames))


async def run(  # noqa: PLR0913 - the seams of a stream, each named
    name: str,
    settings: StreamSettings,
    *,
    clips: Channel[Clip],
    report: Callable[[StreamStatus], None],
    on_frame: Callable[[Frame], None] = lambda _: None,
    on_still: Callable[[str, float | None], None] = lambda *_: None,
    backoff: Backoff = USUAL,
    opener: Opener = open_source,
) -> None:
    """Read the stream `name` into `clips` until cancelled, or until a file ends.

    `report` is called with each change of state, `on_frame` with every frame, `on_still` with the wall clock since
    which nothing changes. They run in the event loop and must not wait. A live stream never waits for room, a file
    does.
    """
    stream = _Stream(name, settings, clips, report, on_frame, on_still, opener)
    failures = 0
    try:
        stream.change(StreamState.CONNECTING)
        while True:
            error = await stream.follow()
            if error is None:
                stream.change(StreamState.OFFLINE, "end of file")
                return
            failures = 1 if stream.ran_for() >= backoff.settled else failures + 1
            await asyncio.sleep(backoff.pause(failures, error))
            stream.count_reconnect(error)
    finally:
        metrics.STREAM_UP.labels(name).set(0)


class _Stream:
    """One stream over all of its connections."""

    def __init__(  # noqa: PLR0913 - the seams of a stream, as given to `run`
        self,
        name: str,
        settings: StreamSettings,
        clips: Channel[Clip],
        report: Callable[[StreamStatus], None],
        on_frame: Callable[[Frame], None],
        on_still: Callable[[str, float | None], None],
        opener: Opener,
    ) -> None:
        self._name, self._settings, self._opener = name, settings, opener
        self._clips, self._report = clips, report
        self._on_frame, self._on_still = on_frame, on_still
        self._url = settings.candidates[0]
        self._better: list[str] = []  # what is wrong with the URLs before this one
        self._sampler = Sampler(settings.fps, settings.clip_frames)
        self._gate = MotionGate(settings.max_still)
        self._status = StreamStatus(name, StreamState.DISABLED, time.time())
        self._clock = StreamClock()
        self._is_live = True
        self._reconnects = 0
        self._video: dict[str, Any] = {}  # what the source has found out of it
        self._kind: tuple[Any, ...] | None = None  # codec and size of the segment
        self._segment = 1
        self._online_at: float | None = None  # monotonic, of this connection's first frame
        self._last_frame_at: float | None = None
        self._shown: dict[str, Any] = {}  # what each URL has shown, where its source remembers that

    def change(self, state: StreamState, reason: str = "") -> None:
        """Change the state, and report it where it is new."""
        old = self._status
        if (old.state, old.reason) == (state, reason):
            return
        since = old.since if old.state == state else time.time()
        show_state(self._name, state)
        level = logging.WARNING if state in _TROUBLE else logging.INFO
        logger.log(level, "ingest[%s]: %s%s", self._name, state, f": {reason}" if reason else "")
        self._send_status(replace(old, state=state, reason=reason, since=since))

    def _send_status(self, status: StreamStatus) -> None:
        is_online = status.state is StreamState.ONLINE
        self._status = replace(
            status,
            reconnects=self._reconnects,
            last_frame_at=self._last_frame_at,
            details=(_url_details(self._url) if is_online else {}) | self._video,
        )
        self._report(self._status)

    def count_reconnect(self, error: Exception) -> None:
        """Count a reconnection by its reason."""
        self._reconnects += 1
        reason = next((word for kind, word in _REASONS if isinstance(error, kind)), "error")
        metrics.STREAM_RECONNECTS.labels(self._name, reason).inc()

    def ran_for(self) -> float:
        """Return the seconds for which the last connection has given frames."""
        return 0.0 if self._online_at is None else time.monotonic() - self._online_at

    async def follow(self) -> Exception | None:
        """Try the URLs until one has given frames and ended. Returns why it broke, None at the end of a file."""
        self._better = []
        errors = []
        for url in self._settings.candidates:
            if url != self._url:
                self._url, self._video = url, {}
            self._online_at = None
            self._clock.restart()
            error, state, reason = await self._once()
            if (rest := self._sampler.restart()) is not None:  # a clip never spans a break
                await self._hand_over(rest)
            self._restart_gate()
            if error is None:
                return None
            errors.append(error)
            if self._online_at is not None:
                break
            self._better.append(reason)
        self.change(state, reason if self._online_at is not None else "; ".join(self._better))
        return next((one for one in errors if isinstance(one, SourceDenied)), errors[-1])

    async def _once(self) -> tuple[Exception | None, StreamState, str]:
        """Run one connection to its end. Returns why it broke, the state that follows, and the reason as text."""
        try:
            await self._connection()
        except _Stalled as error:
            return error, StreamState.STALLED, str(error)
        except (SourceError, ConfigError) as error:
            return error, StreamState.OFFLINE, str(error)
        except Exception as error:  # noqa: BLE001 - the one supervised shell: a stream may not end another's task
            trace = urls.scrub(traceback.format_exc(), self._url)
            logger.error("ingest[%s]: unexpected, will try again\n%s", self._name, trace)
            reason = f"unexpected {type(error).__name__}, see the log"
            return error, StreamState.OFFLINE, reason
        return None, StreamState.OFFLINE, ""

    async def _connection(self) -> None:
        settings = self._settings
        source = self._opener(
            self._url,
            stream=self._name,
            fps=settings.fps,
            max_side=settings.max_side,
            decode=settings.decode,
            max_pixels=settings.max_pixels,
        )
        if hasattr(source, "shown"):  # what the connection before has shown is not shown again
            source.shown = self._shown.get(self._url, source.shown)
        patience: float | None = OPEN_LIMIT
        if waits_for := getattr(source, "waits_for", ""):  # somebody else, who may never come
            patience = None
            self.change(StreamState.OFFLINE, waits_for)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(patience):
                    await stack.enter_async_context(source)
            except TimeoutError:
                shown = urls.mask(self._url)
                raise SourceUnavailable(f"{shown}: did not open in {OPEN_LIMIT:g} s") from None
            self._is_live = source.is_live
            frames = source.frames()
            while (frame := await self._next(frames, source)) is not None:
                await self._notice(getattr(source, "details", {}))
                await self._take(frame)
                self._shown[self._url] = getattr(source, "shown", None)

    async def _next(self, frames: AsyncIterator[Frame], source: Source) -> Frame | None:
        """Return the next frame, None after a file's last. Raises where a live source shows no sign of life in time."""
        if not self._is_live:
            return await anext(frames, None)
        patience, asked = self._settings.stall_after, time.monotonic()
        try:
            async with asyncio.timeout(None) as limit:
                watchdog = Watchdog(
                    limit, patience, lambda: max(asked, getattr(source, "heard_at", 0.0))
                )
                try:
                    return await anext(frames, None)
                finally:
                    watchdog.rest()
        except TimeoutError:
            stalled = _Stalled(f"{urls.mask(self._url)}: no frame for {patience:g} s")
            if self._online_at is not None:
                self.change(StreamState.STALLED, str(stalled))  # closing may take a while
            raise stalled from None

    async def _notice(self, details: dict[str, Any]) -> None:
        """Report what the source has newly found out about its video. Another codec or size begins a new segment."""
        video = details.get("video")
        if video is None or video == self._video.get("video"):
            return
        kind = (video.get("codec"), video.get("width"), video.get("height"))
        is_other = self._kind not in (None, kind)
        if is_other:
            logger.info("ingest[%s]: the camera sends %s %dx%d now", self._name, *kind)
            if (rest := self._sampler.flush()) is not None:
                await self._hand_over(rest)
            self._restart_gate()
            self._segment += 1
        self._kind, self._video = kind, {**details, "segment": self._segment}
        if self._status.state is StreamState.ONLINE:  # else it is about to be told
            self._send_status(self._status)

    async def _take(self, frame: Frame) -> None:
        """Pass one frame to metrics, snapshot and sampler."""
        self._last_frame_at = frame.captured_at
        metrics.STREAM_LAST_FRAME.labels(self._name).set(frame.captured_at)
        if self._online_at is None:
            self._online_at = time.monotonic()
            better = "; ".join(self._better)
            self.change(StreamState.ONLINE, better and f"a fallback runs: {better}")
        frame = replace(frame, pts=self._clock.stamp(frame.pts))
        self._on_frame(frame)
        if (clip := self._sampler.add(frame)) is not None:
            await self._hand_over(clip)

    def _restart_gate(self) -> None:
        """Restart the motion gate: frames from before a break say nothing about those after it."""
        self._gate.restart()
        self._on_still(self._name, None)

    async def _hand_over(self, clip: Clip) -> None:
        if self._settings.max_still:
            clip = await asyncio.to_thread(self._gate.judge, clip)
            self._on_still(self._name, self._gate.still_since)
        if self._is_live:
            self._clips.offer(clip)
        else:
            await self._clips.send(clip)
        metrics.QUEUE_DEPTH.labels(f"clips[{self._name}]").set(len(self._clips))


def show_state(stream: str, state: StreamState) -> None:
    """Set the metrics of a stream's state."""
    metrics.STREAM_UP.labels(stream).set(state is StreamState.ONLINE)
    for each in StreamState:
        metrics.STREAM_STATE.labels(stream, each.value).set(each is state)


def _url_details(url: str) -> dict[str, Any]:
    """Return the details to report about the URL in use."""
    _, options = source_url.options(url)
    unverified = {"tls": "not verified"} if options.get("verify") == "false" else {}
    return {"source": urls.mask(url), **unverified}
