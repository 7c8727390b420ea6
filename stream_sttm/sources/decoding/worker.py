"""The program of a decoder process: opens FFmpeg, decodes what is due, scales it down and sends it.

Nothing here can hold anybody up. When our side leaves, the process ends. A process that hangs is killed. Its memory is
bounded. What to decode is decided in gop.py; forkserver.py starts the process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceError, SourceUnavailable
from stream_sttm.sources.decoding import protocol
from stream_sttm.sources.decoding.clock import ArrivalClock, FileClock
from stream_sttm.sources.decoding.ffmpeg import mapped, open_container
from stream_sttm.sources.decoding.frame_selection import Astray, FrameSelection, Stamped
from stream_sttm.sources.decoding.mailbox import Mailbox
from stream_sttm.sources.decoding.playout import BURSTS, played
from stream_sttm.sources.decoding.protocol import Request
from stream_sttm.sources.decoding.scene_worker import SceneWorker
from stream_sttm.sources.decoding.segments import ROOM, Part, begun, numbered

SIGN_EVERY = 1.0  # seconds after which there is an answer without a frame: a sign of life
GRACE = 1.0  # seconds to say goodbye to a camera
MEMORY = 2 << 30  # bytes of data a decoder may have
PROMPT = 0.002  # seconds within which a packet comes that had been waiting for us
BACKLOG = 1.0  # seconds of packets from before we were ready that are put in their place at most
_PARSED = ("h264", "hevc")  # of these FFmpeg shows a picture's packet when the next one begins


def run(channel: socket.socket) -> NoReturn:
    """Do what the other side of `channel` asks for, then end this process."""
    with contextlib.suppress(
        BaseException
    ):  # whatever happened, nobody else may run on in this process
        request = protocol.read_request(channel)
        _confine(request.stream)
        mailbox, done = Mailbox(), threading.Event()
        telling = threading.Thread(target=_tell, args=(channel, mailbox, done))
        telling.start()
        work = SceneWorker if request.opening.by == "scene" else Decoder
        work(request, mailbox).run()
        done.set()
        telling.join()
    os._exit(0)


def _tell(channel: socket.socket, mailbox: Mailbox, done: threading.Event) -> None:
    """Answer every question with a message; when the other side is gone, end the process."""
    reported = 0.0
    with contextlib.suppress(OSError):
        while channel.recv(1):
            message, image = mailbox.take(SIGN_EVERY)
            spent = time.process_time()
            message["counts"]["cpu_seconds"] = spent - reported
            reported = spent
            protocol.tell(channel, message, image)
    mailbox.close()
    done.wait(GRACE)
    os._exit(0)


def _confine(stream: str) -> None:
    """Bound this process's memory, offer it first should the machine run out, and name it."""
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, MEMORY)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (most, most))
    for path, text in (("oom_score_adj", "500"), ("comm", f"decode {stream}")):
        with contextlib.suppress(OSError):
            Path("/proc/self", path).write_text(text)


class Decoder:
    """Decodes what a request names into `mailbox` until its end, an error, or the mailbox is closed."""

    def __init__(self, request: Request, mailbox: Mailbox) -> None:
        self._request, self._mailbox = request, mailbox
        scheme = urls.split(request.url).scheme
        self._is_file, self._is_rtsp = scheme == "file", scheme.startswith("rtsp")
        self._is_http = scheme in ("http", "https")

    def run(self) -> None:
        """From opening to the end; never raises."""
        started, is_open = time.monotonic(), False
        outcome: dict[str, Any] = {"end": True}
        try:
            noted = self._mailbox.note
            with open_container(self._request, lambda shown: noted(shown=shown)) as container:
                is_open = True
                self._decode(container)
        except av.error.FFmpegError as error:
            waited = time.monotonic() - started
            outcome = _told(mapped(error, self._request, is_open=is_open, waited=waited))
        except SourceError as error:
            outcome = _told(error)
        except Astray:
            outcome = {"astray": True}
        except MemoryError:
            outcome = _told(SourceUnavailable(self._line("decoding it takes too much memory")))
        except Exception as error:  # noqa: BLE001 - a process has no other way to tell its consumer
            why = urls.scrub(f"{type(error).__name__}: {error}", self._request.url)
            outcome = {"error": "Exception", "text": self._line(why.replace("\n", " "))}
        self._mailbox.end(outcome)

    def _decode(self, container: InputContainer) -> None:
        # over HTTP, what knows its length is a file; an RTMP server may tell one that means nothing
        is_live = not (self._is_file or (self._is_http and container.duration))
        video = self._video(container, is_live=is_live)
        self._mailbox.waits = not is_live
        if not is_live and self._request.share.count > 1:
            self._decode_in_turns(self._stored(container, video), video)
            return
        packets = self._live(container, video) if is_live else self._stored(container, video)
        self._decode_all(packets, video, is_live=is_live)

    def _decode_all(
        self, packets: Iterable[Stamped], video: VideoStream, *, is_live: bool = False
    ) -> None:
        self._mailbox.mark(live=is_live)  # alone: who waits for it takes no picture yet
        selection = FrameSelection(self._request, video, self._mailbox, is_live=is_live)
        for packet in packets:
            if self._mailbox.is_closed:
                return
            selection.add(packet)
        if is_live:
            raise SourceUnavailable(self._line("the other side ended the stream"))
        selection.finish()

    def _decode_in_turns(self, packets: Iterator[Stamped], video: VideoStream) -> None:
        """Decode our share of a file; all of it where its segments would not fit into the mailbox."""
        request, mailbox = self._request, self._mailbox
        packets = numbered(packets, request)
        if not request.share.index:
            packets, is_worth = begun(packets, request, video.codec_context)
            if not is_worth:
                self._decode_all(packets, video)
                return
        mailbox.room = ROOM
        mailbox.mark(live=False, shares=request.share.count)
        video.codec_context.thread_count = max(1, _cores() // request.share.count)
        selection = FrameSelection(request, video, mailbox, is_live=False, is_part=True)
        part = Part(request.share, selection, mailbox)
        for packet in packets:
            if mailbox.is_closed:
                return
            part.add(packet)
        part.finish()

    def _video(self, container: InputContainer, *, is_live: bool) -> VideoStream:
        """Return the stream to decode, with its decoder set up."""
        if not container.streams.video:
            raise NotVideo(self._line("has no video stream"))
        video, most = container.streams.video[0], self._request.max_pixels
        context = video.codec_context
        if context is None:
            raise NotVideo(self._line("its video is of a kind that can't be decoded here"))
        if context.width * context.height > most:
            raise NotVideo(
                self._line(
                    f"pictures of {context.width}x{context.height} have more than the {most} pixels that max_pixels"
                    " allows"
                )
            )
        context.thread_type = "NONE" if is_live else "AUTO"  # threads hold frames back
        context.options = {"max_pixels": str(most)}
        return video

    def _stored(self, container: InputContainer, video: VideoStream) -> Iterator[Stamped]:
        """Yield a file's packets with their own times, without a last one that is cut off."""
        clock = FileClock(float(video.average_rate or 0))
        packets = (packet for packet in container.demux(video) if packet.size)
        last = next(packets, None)
        for packet in packets:
            if last is not None:
                yield Stamped(last, clock.stamp(_media(last)))
            last = packet
        if last is None:
            return
        if last.is_corrupt:  # it would take others with it that FFmpeg decodes in parallel
            self._mailbox.count("corrupt", int(not self._request.share.index))
        else:
            yield Stamped(last, clock.stamp(_media(last)))

    def _live(self, container: InputContainer, video: VideoStream) -> Iterator[Stamped]:
        """Yield a camera's packets with the times at which they were sent, as nearly as can be known."""
        clock = ArrivalClock(float(video.time_base or 0))
        is_late = self._is_rtsp and video.codec_context.name in _PARSED
        packets: Iterable[Packet[Any]] = container.demux(video)
        if container.format.name in BURSTS:
            packets = played(packets, self._mailbox.rest)
        for packet, arrived in _arriving(packets, is_late=is_late):
            t = clock.stamp(_media(packet), arrived)
            behind = time.monotonic() - (clock.first or 0.0) - t
            yield Stamped(packet, t, time.time() - behind)

    def _line(self, what: str) -> str:
        return f"{urls.mask(self._request.url)}: {what}"


def _arriving(
    packets: Iterable[Packet[Any]], *, is_late: bool
) -> Iterator[tuple[Packet[Any], float]]:
    """Yield a camera's packets with their arrival (monotonic). Packets from before we were ready are dated back.

    `is_late`: each is shown to us only when the next begins, so it came when the one before was shown.
    """
    began = asked = shown = time.monotonic()
    backlog: list[Packet[Any]] | None = []
    for packet in packets:
        if not packet.size:
            return
        now = time.monotonic()
        arrived, shown = shown if is_late else now, now
        if backlog is None:
            yield packet, arrived
        else:
            backlog.append(packet)
            if now - asked > PROMPT or now - began > BACKLOG:
                yield from _placed(backlog, arrived)
                backlog = None
        asked = time.monotonic()


def _placed(backlog: list[Packet[Any]], arrived: float) -> list[tuple[Packet[Any], float]]:
    """Packets of which the last came at `arrived`, with when they came by their own clock."""
    placed: list[tuple[Packet[Any], float]] = []
    later, step = _media(backlog[-1]), 0.0
    for packet in reversed(backlog):
        media = _media(packet)
        if packet is not backlog[-1]:
            if media is not None and later is not None:
                step = min(max(0.0, later - media), BACKLOG)
            arrived -= (
                step  # the first has often no time: as long before the next as that before its next
            )
        later = media
        placed.append((packet, arrived))
    return placed[::-1]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _media(packet: Packet[Any]) -> float | None:
    """Return a packet's own time in seconds, None where it has none."""
    ticks = packet.pts if packet.pts is not None else packet.dts
    return None if ticks is None or packet.time_base is None else float(ticks * packet.time_base)


def _told(error: SourceError) -> dict[str, Any]:
    return {"error": type(error).__name__, "text": str(error)}
