"""PyAV in a thread: opens what FFmpeg can open, decodes its first video stream, fills a mailbox.

FFmpeg can't be interrupted from outside. So reads are cut into short slices where they can be resumed (RTSP) and
limited by a timeout elsewhere; whatever it hangs in, the thread ends by itself soon after its mailbox was closed.
Its errors leave this file as ours, in one line without secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stream_sttm import metrics, urls
from stream_sttm.errors import NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.sources.mailbox import Mailbox
from stream_sttm.sources.opening import Opening
from stream_sttm.sources.pictures import Pace, rgb
from stream_sttm.sources.playout import BURSTS, played
from stream_sttm.types import Frame

OPEN_TIMEOUT = 8.0  # seconds for each of connecting and finding the streams
SLICE = 1.5  # seconds an RTSP read waits before it is resumed: longer than the pause between two frames of any camera
# in normal use, for FFmpeg loses what it has read of a packet when it is interrupted within one
SILENCE = 10.0  # seconds without a packet after which a connection counts as dead
MAX_CORRUPT = 300  # packets in a row that can't be decoded until it is no video
_LIVE = {"flags": "low_delay", "fpsprobesize": "0", "analyzeduration": "3000000"}
_RTSP = {"timeout": f"{SILENCE * 1e6:.0f}"}
_HTTP = {"rw_timeout": f"{SILENCE * 1e6:.0f}"}
_DENIED = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
_NOT_VIDEO = (av.error.InvalidDataError, av.error.LookupError, av.error.PatchWelcomeError)


class Decoder(threading.Thread):
    """Decodes what `opening` opens into `mailbox` until its end, an error, or the mailbox is closed.

    `opened` is settled in the event loop: whether the stream is live, or why it can't be opened.
    """

    def __init__(
        self, url: str, opening: Opening, *, stream: str, fps: float, max_side: int
    ) -> None:
        super().__init__(name=f"decode[{stream}]", daemon=True)
        self._url, self._opening, self._stream = url, opening, stream
        self._max_side, self._pace = max_side, Pace(fps)
        scheme = urls.split(url).scheme
        self._is_file, self._is_rtsp = scheme == "file", scheme.startswith("rtsp")
        self._is_live = not self._is_file
        self._open_until = float("inf")
        self._loop = asyncio.get_running_loop()
        self.mailbox = Mailbox(waits=self._is_file)
        self.opened: asyncio.Future[bool] = self._loop.create_future()

    def run(self) -> None:
        """The thread's life; never raises."""
        failure: Exception | None = None
        try:
            with self._open() as container:
                self._settle(container)
                self._decode(container)
        except av.error.FFmpegError as error:
            failure = self._mapped(error)
        except Exception as error:  # noqa: BLE001 - a thread has no other way to tell its consumer
            failure = error
        self._tell(failure or SourceUnavailable(self._line("closed while it was being opened")))
        self.mailbox.end(failure)

    def _open(self) -> AbstractContextManager[InputContainer]:
        if self._is_file:
            return self._opening.open({}, None)
        self._open_until = time.monotonic() + OPEN_TIMEOUT
        return self._opening.open(
            _LIVE | (_RTSP if self._is_rtsp else _HTTP),
            (OPEN_TIMEOUT, SLICE if self._is_rtsp else SILENCE),
        )

    def _settle(self, container: InputContainer) -> None:
        """Find out whether it is live: over HTTP, what knows its length is a file."""
        if not container.streams.video:
            raise NotVideo(self._line("has no video stream"))
        self._is_live = self._is_rtsp or (not self._is_file and container.duration is None)
        self.mailbox.waits = not self._is_live
        self._tell(self._is_live)

    def _decode(self, container: InputContainer) -> None:
        video = container.streams.video[0]
        video.thread_type = "NONE" if self._is_live else "AUTO"  # threads would hold frames back
        clock, corrupt = _FileClock(video), 0
        opened = time.monotonic()
        packets = self._packets(container, video)
        if self._is_live and container.format.name in BURSTS:
            packets = played(packets, self.mailbox.rest)
        for packet in packets:
            received, captured_at = time.monotonic() - opened, time.time()
            started = time.perf_counter()
            try:
                pictures = packet.decode()
            except av.error.InvalidDataError as error:
                corrupt += 1
                metrics.FRAMES_DROPPED.labels(self._stream, "corrupt").inc()
                if corrupt > MAX_CORRUPT:
                    raise NotVideo(self._line("nothing of it can be decoded")) from error
                continue
            for picture in pictures:
                corrupt = 0
                pts = received if self._is_live else clock.seconds(picture.time)
                self._deliver(picture, pts, captured_at, started)
                started = time.perf_counter()

    def _packets(self, container: InputContainer, video: VideoStream) -> Iterator[Packet[Any]]:
        """Packets until the end or until nobody wants them; reads that were cut short are resumed."""
        heard = time.monotonic()
        while True:
            try:
                for packet in container.demux(video):
                    if self.mailbox.is_closed:
                        return
                    heard = time.monotonic()
                    yield packet
            except av.error.ExitError as error:
                if self.mailbox.is_closed:
                    return
                silent = time.monotonic() - heard
                if not self._is_rtsp or silent > SILENCE:
                    raise SourceUnavailable(self._line(f"no data for {silent:.0f} s")) from error
                continue
            if self._is_live:
                raise SourceUnavailable(self._line("the other side ended the stream"))
            return

    def _deliver(self, picture: VideoFrame, pts: float, captured_at: float, started: float) -> None:
        metrics.FRAMES_RECEIVED.labels(self._stream).inc()
        if not self._pace.wants(pts):
            metrics.FRAMES_DROPPED.labels(self._stream, "sampled_out").inc()
            return
        image = rgb(picture, self._max_side)
        metrics.STAGE_DURATION.labels("decode").observe(time.perf_counter() - started)
        at = captured_at if self._is_live else time.time()
        if self.mailbox.put(Frame(self._stream, image, pts, at)):
            metrics.FRAMES_DROPPED.labels(self._stream, "superseded").inc()

    def _tell(self, outcome: bool | Exception) -> None:
        """Settle `opened`, the first time this is called."""

        def settle() -> None:
            if self.opened.done():
                return
            if isinstance(outcome, Exception):
                self.opened.set_exception(outcome)
            else:
                self.opened.set_result(outcome)

        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who would listen
            self._loop.call_soon_threadsafe(settle)

    def _mapped(self, error: av.error.FFmpegError) -> SourceError:
        """FFmpeg's error as one of ours."""
        why = urls.scrub(error.strerror or type(error).__name__, self._url)
        if isinstance(error, _DENIED):
            return SourceDenied(self._line(f"access denied ({why}): check user and password"))
        if isinstance(error, av.error.ProtocolNotFoundError):
            scheme = urls.split(self._url).scheme
            return SourceUnavailable(
                self._line(
                    f"the FFmpeg in this PyAV knows no {scheme}://: use rtsp:// or build PyAV with it"
                )
            )
        if isinstance(error, av.error.HTTPNotFoundError):
            return SourceUnavailable(self._line("no such stream there (404): check the path"))
        late = not self.opened.done() and time.monotonic() >= self._open_until
        if late or isinstance(error, av.error.ExitError | av.error.TimeoutError):
            return SourceUnavailable(self._line("answers, but sends no video in time"))
        if isinstance(error, _NOT_VIDEO):  # also what an interrupted RTSP handshake looks like
            return NotVideo(self._line(f"not a video that can be read: {why}"))
        return SourceUnavailable(self._line(why))

    def _line(self, what: str) -> str:
        return f"{urls.mask(self._url)}: {what}"


class _FileClock:
    """Seconds since a file's first frame, never going back even where the file's own time does."""

    def __init__(self, video: VideoStream) -> None:
        rate = float(video.average_rate or 0) or 25.0
        self._step, self._shift = 1 / rate, 0.0
        self._last: float | None = None

    def seconds(self, at: float | None) -> float:
        """The time of the next frame, whose own time is `at`, if it has one."""
        if self._last is None:
            self._shift, self._last = -(at or 0.0), 0.0
            return 0.0
        t = self._last + self._step if at is None else at + self._shift
        if t <= self._last:
            self._shift += self._last + self._step - t
            t = self._last + self._step
        self._last = t
        return t
