"""whip: - a WebRTC stream that is pushed: a browser or encoder offers it (WHIP, RFC 9725), at most one at a time.

`Publishers` takes the offers that came over HTTP and keeps the peers; a WhipSource waits for its stream's peer to be
connected and ends it when it is left, so a publisher that sends no picture any more makes room for the next. Audio is
declined. No STUN or TURN server is asked. Knows nothing of HTTP: api/whip.py speaks it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.sdp import SessionDescription

from stream_sttm import urls
from stream_sttm.errors import (
    AlreadyPublished,
    ConfigError,
    NotAnOffer,
    PublishError,
    SourceUnavailable,
    TooManyOffers,
)
from stream_sttm.sources.track import Tap
from stream_sttm.sources.webrtc import BAD_SDP, CONNECT_TIMEOUT
from stream_sttm.types import Frame

MAX_MEDIA = 8  # m-lines of an offer
MAX_CANDIDATES = 64
OFFERS, PER = 20, 10.0  # offers for one stream that are looked at, in so many seconds

logger = logging.getLogger(__name__)


class Publisher:
    """One peer that publishes a stream; `task` runs as long as it is there."""

    def __init__(self, stream: str) -> None:
        self.id = secrets.token_urlsafe(16)
        self.tap = Tap(stream)
        self.task: asyncio.Task[None] | None = None
        self._stream = stream
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._changed = asyncio.Event()
        self._peer.add_listener("connectionstatechange", self._changed.set)
        self._track: MediaStreamTrack | None = None

    async def answer(self, offer: str) -> str:
        """Our SDP answer, which takes one video and declines the rest; raises NotAnOffer."""
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            for transceiver in self._peer.getTransceivers():
                self._take_or_decline(transceiver)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except BAD_SDP as error:
            raise NotAnOffer(f"the SDP offer can't be used: {error}") from error
        if self._track is None:
            raise NotAnOffer("the SDP offer sends no video")
        return str(self._peer.localDescription.sdp)

    async def run(self, connected: asyncio.Event) -> None:
        """Drain the video from connection to end; sets `connected` when pictures may come."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._until("connected")
        except TimeoutError:
            return
        connected.set()
        assert self._track is not None
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(self.tap.drain(self._track), name=f"drain[{self._stream}]")
            gone = group.create_task(self._until("gone"), name=f"gone[{self._stream}]")
            await asyncio.wait((draining, gone), return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            gone.cancel()

    async def close(self) -> None:
        """Hang up; never raises."""
        self.tap.end(SourceUnavailable(f"{self._stream}: its publisher is gone"))
        try:
            await self._peer.close()
        except Exception:
            logger.exception("whip[%s]: unexpected, while hanging up", self._stream)

    async def _until(self, wanted: str) -> None:
        """Wait for the peer to be in that state; raises TimeoutError where it has failed before."""
        while True:
            state = self._peer.connectionState
            if state == wanted or (wanted == "gone" and state in ("failed", "closed")):
                return
            if state in ("failed", "closed"):
                raise TimeoutError
            self._changed.clear()
            await self._changed.wait()

    def _take_or_decline(self, transceiver: RTCRtpTransceiver) -> None:
        track = transceiver.receiver.track  # only where the other side offers to send
        if transceiver.kind == "video" and self._track is None and track is not None:
            self._track = track
            transceiver.direction = "recvonly"
        else:
            transceiver.direction = "inactive"


@dataclass
class _Door:
    """The place of one stream's publisher, and when offers came."""

    publisher: Publisher | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    offers: deque[float] = field(default_factory=lambda: deque(maxlen=OFFERS))


class Publishers:
    """Who publishes which of `streams`; entered, it takes offers, left, it hangs up on all."""

    def __init__(self, streams: Iterable[str]) -> None:
        self._doors: dict[str, _Door] = {}
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self.follow(streams)

    async def __aenter__(self) -> Self:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *error: object) -> None:
        for door in self._doors.values():
            if door.publisher is not None and door.publisher.task is not None:
                door.publisher.task.cancel()
        await self._stack.aclose()

    def follow(self, streams: Iterable[str]) -> None:
        """Take publishers of these streams alone from now on; who publishes another is left to its source to end."""
        self._streams = frozenset(streams)
        for stream in self._streams:
            self._doors.setdefault(stream, _Door())

    def takes(self, stream: str) -> bool:
        """Whether the stream is one that is published to us."""
        return stream in self._streams

    async def publish(self, stream: str, offer: str) -> tuple[str, str]:
        """Take an offer; the session's id and our SDP answer. Raises PublishError."""
        door, now = self._doors[stream], time.monotonic()
        if len(door.offers) == OFFERS and now - door.offers[0] < PER:
            raise TooManyOffers(f"more than {OFFERS} offers in {PER:g} s for stream {stream!r}")
        door.offers.append(now)
        if door.publisher is not None:
            raise AlreadyPublished(f"stream {stream!r} has a publisher; end its session first")
        offer = _usable(offer)
        publisher = door.publisher = Publisher(stream)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = self._serve(door, publisher, offer, answer)
        publisher.task = self._group.create_task(serving, name=f"whip[{stream}]")
        return publisher.id, await asyncio.shield(answer)

    async def _serve(
        self, door: _Door, publisher: Publisher, offer: str, answer: asyncio.Future[str]
    ) -> None:
        """A publisher's life, from its offer to its end."""
        describing = asyncio.create_task(publisher.answer(offer), name="answer")
        try:
            # cancelled half-way, or closed meanwhile, it would lose its sockets
            answer.set_result(await asyncio.shield(describing))
            await publisher.run(door.connected)
        except NotAnOffer as error:
            answer.set_exception(error)
        except Exception as error:
            logger.exception("whip: unexpected")
            if not answer.done():
                answer.set_exception(PublishError(f"unexpected {type(error).__name__}"))
        finally:
            await asyncio.wait([describing])
            door.connected.clear()
            door.publisher = None
            answer.cancel()
            await publisher.close()

    async def end(self, stream: str, session: str) -> bool:
        """End a session, if it is the one that publishes."""
        publisher = self._doors[stream].publisher
        if publisher is None or not secrets.compare_digest(publisher.id, session):
            return False
        if publisher.task is not None:
            publisher.task.cancel()
            await asyncio.wait([publisher.task])
        return True

    async def wait(self, stream: str) -> Publisher:
        """The stream's publisher, as soon as one is connected."""
        door = self._doors[stream]
        while True:
            await door.connected.wait()
            if door.publisher is not None:
                return door.publisher


@dataclass
class WhipSource:
    """A stream that somebody publishes; entered, a publisher is connected."""

    url: str
    stream: str = "whip"
    fps: float = 2.0
    max_side: int = 640
    publishers: Publishers | None = None
    is_live: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if urls.split(self.url).netloc:
            raise ConfigError("whip: takes no address: it waits for a publisher of the stream")
        self.waits_for = f"waits for a publisher at /api/v1/streams/{self.stream}/whip"
        self._publisher: Publisher | None = None

    @property
    def heard_at(self) -> float:
        """When the newest picture came, monotonic."""
        return self._publisher.tap.heard_at if self._publisher is not None else 0.0

    async def __aenter__(self) -> Self:
        if self.publishers is None or not self.publishers.takes(self.stream):
            raise SourceUnavailable(f"whip: nobody takes publishers of {self.stream!r} here")
        self._publisher = await self.publishers.wait(self.stream)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.publishers is not None and self._publisher is not None:
            await self.publishers.end(self.stream, self._publisher.id)

    async def frames(self) -> AsyncIterator[Frame]:
        """The newest frame, each time there is one; raises SourceUnavailable when the publisher is gone."""
        if self._publisher is None:
            raise RuntimeError("frames() of a source that was not entered")
        async for frame in self._publisher.tap.frames(fps=self.fps, max_side=self.max_side):
            yield frame


def _usable(offer: str) -> str:
    """The offer without the addresses that only its sender's network knows by name; raises NotAnOffer."""
    lines = offer.splitlines()
    candidates = [line for line in lines if line.startswith("a=candidate:")]
    if len(candidates) > MAX_CANDIDATES:
        raise NotAnOffer(f"the SDP offer has more than {MAX_CANDIDATES} candidates")
    hidden = {line for line in candidates if ".local" in line}
    text = "\r\n".join([line for line in lines if line not in hidden] + [""])
    try:
        parsed = SessionDescription.parse(text)
    except BAD_SDP as error:
        raise NotAnOffer(f"not an SDP offer: {type(error).__name__} {error}") from error
    kinds = [one.kind for one in parsed.media]
    mids = [one.rtp.muxId for one in parsed.media]
    grouped = {mid for group in parsed.group for mid in group.items}
    if len(set(mids)) < len(mids) or not grouped <= set(mids):
        raise NotAnOffer("not an SDP offer: its groups and media don't fit each other")
    if "video" not in kinds:
        raise NotAnOffer("the SDP offer has no video")
    if len(kinds) > MAX_MEDIA:
        raise NotAnOffer(f"the SDP offer has more than {MAX_MEDIA} media")
    return text
