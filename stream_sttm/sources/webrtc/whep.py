"""whep:// and wheps:// - a WebRTC stream that is pulled: an SDP offer by HTTP POST, then RTP, DELETE at the end.

The URL is spelt as MediaMTX does (whep://host:8889/door/whep) or leads to go2rtc's API
(whep://host:1984/api/webrtc?src=door). User and password become Basic, `?token=` a Bearer header. The offer is for
video alone. The track is always drained, whatever the consumer does: a newer frame replaces one that nobody took. No
STUN or TURN server is asked, so the camera's side must be reachable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from stream_sttm import urls
from stream_sttm.config import source_url
from stream_sttm.errors import NotVideo, SourceUnavailable
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.webrtc.codecs import unmet
from stream_sttm.sources.webrtc.loss import withhold_damage
from stream_sttm.sources.webrtc.signalling import Answer, Signalling
from stream_sttm.sources.webrtc.track import LatestPicture
from stream_sttm.types import Frame

CONNECT_TIMEOUT = 10.0  # seconds from the answer to a connected peer
# what aiortc raises for a description it can't read or use; its parser has no error type of its own
BAD_SDP = (
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    StopIteration,
    RuntimeError,  # what a coroutine makes of a StopIteration
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)


@dataclass
class WhepSource:
    """A peer that receives one video track. Once entered, it is connected."""

    url: str
    stream: str = "whep"
    fps: float = 2.0
    max_side: int = 640
    access: Access = EVERYTHING
    is_live: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self._bare, options = source_url.options(self.url)
        self._shown = urls.mask(self._bare)
        self._verify = options.get("verify") != "false"
        self._changed = asyncio.Event()
        self._open_until_left = AsyncExitStack()
        self._latest = LatestPicture(self.stream)

    @property
    def heard_at(self) -> float:
        """When the newest picture came, monotonic."""
        return self._latest.heard_at

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            signalling = Signalling(self._bare, self.access, verify=self._verify)
            await stack.enter_async_context(signalling.client)
            peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
            stack.push_async_callback(peer.close)
            peer.add_listener("connectionstatechange", self._changed.set)
            video = peer.addTransceiver("video", direction="recvonly")
            withhold_damage(video.receiver, self._latest.count_damaged)
            describing = asyncio.create_task(_describe(peer), name=f"offer[{self.stream}]")
            stack.push_async_callback(asyncio.wait, [describing])
            offer = await asyncio.shield(
                describing
            )  # cancelled half-way, it would lose its sockets
            answer = await signalling.post(offer)
            if answer.session is not None:
                stack.push_async_callback(signalling.delete, answer.session)
            await self._connect(peer, self._allowed(answer))
            # not in a TaskGroup, which would wrap whatever is raised while the source is open
            drain = asyncio.create_task(
                self._drain(video.receiver.track), name=f"drain[{self.stream}]"
            )
            stack.push_async_callback(asyncio.wait, [drain])
            stack.callback(drain.cancel)
            self._open_until_left = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open_until_left.aclose()

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the newest frame, each time there is one. Raises SourceUnavailable when the other side is gone."""
        async for frame in self._latest.frames(fps=self.fps, max_side=self.max_side):
            yield frame

    def _allowed(self, answer: Answer) -> str:
        """Return the SDP answer without the candidates that may not be reached."""
        if not self.access.limits_hosts:
            return answer.sdp
        lines = [
            line
            for line in answer.sdp.splitlines()
            if not line.startswith("a=candidate:")
            or self.access.allows_address(answer.host, (line.split() + [""] * 5)[4])
        ]
        return "\r\n".join([*lines, ""])

    async def _connect(self, peer: RTCPeerConnection, sdp: str) -> None:
        try:
            if why := unmet(sdp):
                raise NotVideo(f"{self._shown}: the SDP answer can't be used: {why}")
            await peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        except BAD_SDP as error:
            raise NotVideo(f"{self._shown}: the SDP answer can't be used: {error}") from error
        if peer.getTransceivers()[0].currentDirection not in ("recvonly", "sendrecv"):
            raise NotVideo(f"{self._shown}: the other side sends no video")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                while peer.connectionState != "connected":
                    if peer.connectionState in ("failed", "closed"):
                        raise self._unavailable("no media path: is its UDP reachable from here?")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise self._unavailable(f"no media path within {CONNECT_TIMEOUT:g} s") from None

    async def _drain(self, track: MediaStreamTrack) -> None:
        await self._latest.drain(track)
        self._latest.end(self._unavailable("the other side ended the stream"))

    def _unavailable(self, what: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self._shown}: {urls.scrub(what, self._bare)}")


async def _describe(peer: RTCPeerConnection) -> str:
    """Return our offer, with all addresses at which we can be reached."""
    await peer.setLocalDescription(await peer.createOffer())
    return str(peer.localDescription.sdp)
