"""The WebRTC peer that publishes a stream: its connection, its video track, and the check of its SDP offer.

Audio is declined. No STUN or TURN server is asked. Who may publish is known in publishers.py.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.sdp import SessionDescription

from stream_sttm.errors import NotAnOffer, SourceUnavailable
from stream_sttm.sources.webrtc.codecs import unmet
from stream_sttm.sources.webrtc.loss import withhold_damage
from stream_sttm.sources.webrtc.track import LatestPicture
from stream_sttm.sources.webrtc.whep import BAD_SDP, CONNECT_TIMEOUT

MAX_MEDIA = 8  # m-lines of an offer
MAX_CANDIDATES = 64

logger = logging.getLogger(__name__)


class Publisher:
    """One peer that publishes a stream. `task` runs as long as it is connected."""

    def __init__(self, stream: str) -> None:
        self.id = secrets.token_urlsafe(16)
        self.latest = LatestPicture(stream)
        self.task: asyncio.Task[None] | None = None
        self._stream = stream
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._changed = asyncio.Event()
        self._peer.add_listener("connectionstatechange", self._changed.set)
        self._track: MediaStreamTrack | None = None

    async def answer(self, offer: str) -> str:
        """Return our SDP answer, which takes one video and declines the rest. Raises NotAnOffer."""
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
        """Drain the video from connection to end. Sets `connected` when frames may come."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._until("connected")
        except TimeoutError:
            return
        connected.set()
        assert self._track is not None
        async with asyncio.TaskGroup() as group:
            draining = group.create_task(
                self.latest.drain(self._track), name=f"drain[{self._stream}]"
            )
            gone = group.create_task(self._until("gone"), name=f"gone[{self._stream}]")
            await asyncio.wait((draining, gone), return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            gone.cancel()

    async def close(self) -> None:
        """Close the connection. Never raises."""
        self.latest.end(SourceUnavailable(f"{self._stream}: its publisher is gone"))
        try:
            await self._peer.close()
        except Exception:
            logger.exception("whip[%s]: unexpected, while hanging up", self._stream)

    async def _until(self, wanted: str) -> None:
        """Wait until the peer is in that state. Raises TimeoutError where it fails before."""
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
            withhold_damage(transceiver.receiver, self.latest.count_damaged)
            transceiver.direction = "recvonly"
        else:
            transceiver.direction = "inactive"


def usable(offer: str) -> str:
    """Return the offer without candidates that only its sender's network can resolve (mDNS). Raises NotAnOffer."""
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
    if why := unmet(text):
        raise NotAnOffer(f"the SDP offer can't be met: {why}")
    return text
