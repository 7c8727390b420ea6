"""whep:// and wheps:// - a WebRTC stream that is pulled: an SDP offer by HTTP POST, then RTP, DELETE at the end.

The URL is spelt as MediaMTX does (whep://host:8889/door/whep); user and password become Basic, `?token=` a Bearer
header. Only video is offered for. The track is always drained, whatever the consumer does; a frame nobody took is
replaced by the next. No STUN or TURN server is asked: the camera's side must be reachable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlunsplit

import httpx
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError
from av import VideoFrame
from numpy.typing import NDArray

from stream_sttm import metrics, urls
from stream_sttm.errors import NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.sources.pictures import Pace, rgb
from stream_sttm.types import Frame

SDP = "application/sdp"
SIGNALLING_TIMEOUT = 8.0  # seconds for an offer and its answer
MAX_SDP = 256 * 1024  # bytes of an answer
CONNECT_TIMEOUT = 10.0  # seconds from the answer to a connected peer
GOODBYE_TIMEOUT = 1.0  # seconds for the DELETE at the end, which is a courtesy
# what aiortc raises for a description it can't read or use; its parser has no error type of its own
BAD_SDP = (
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)


@dataclass
class WhepSource:
    """A peer that receives one video track; entered, it is connected."""

    url: str
    stream: str = "whep"
    fps: float = 2.0
    max_side: int = 640
    is_live: bool = field(default=True, init=False)
    heard_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._shown = urls.mask(self.url)
        self._newest: tuple[VideoFrame, float, float] | None = None
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._broken: SourceError | None = None
        self._open_until_left = AsyncExitStack()
        self._pace = Pace(self.fps)
        self._opened = 0.0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            endpoint, headers, auth = _endpoint(self.url)
            client = httpx.AsyncClient(headers=headers, auth=auth, timeout=SIGNALLING_TIMEOUT)
            await stack.enter_async_context(client)
            peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
            stack.push_async_callback(peer.close)
            peer.add_listener("connectionstatechange", self._changed.set)
            video = peer.addTransceiver("video", direction="recvonly")
            describing = asyncio.create_task(_describe(peer), name=f"offer[{self.stream}]")
            stack.push_async_callback(asyncio.wait, [describing])
            offer = await asyncio.shield(
                describing
            )  # cancelled half-way, it would lose its sockets
            answer, location = await self._post(client, endpoint, offer)
            if location is not None:
                stack.push_async_callback(_delete, client, location)
            await self._connect(peer, answer)
            self._opened = time.monotonic()
            # not in a TaskGroup, which would wrap whatever is raised while the source is open
            drain = asyncio.create_task(
                self._drain(video.receiver.track), name=f"drain[{self.stream}]"
            )
            stack.push_async_callback(asyncio.wait, [drain])
            stack.callback(drain.cancel)
            self._open_until_left = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open_until_left.__aexit__(kind, error, trace)

    async def frames(self) -> AsyncIterator[Frame]:
        """The newest frame, each time there is one; raises SourceUnavailable when the other side is gone."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._newest is None:
                raise self._broken or SourceUnavailable(f"{self._shown}: the stream ended")
            (picture, received, captured_at), self._newest = self._newest, None
            image = await asyncio.to_thread(self._image, picture)
            yield Frame(self.stream, image, received - self._opened, captured_at)
            if self._broken is not None:
                self._arrived.set()

    async def _post(
        self, client: httpx.AsyncClient, endpoint: str, offer: str
    ) -> tuple[str, httpx.URL | None]:
        """The other side's SDP answer to our offer, and what to DELETE at the end."""
        headers = {"Content-Type": SDP, "Accept": SDP}
        try:
            async with (
                asyncio.timeout(SIGNALLING_TIMEOUT),
                client.stream("POST", endpoint, content=offer, headers=headers) as answer,
            ):
                self._check(answer.status_code)
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > MAX_SDP:
                        break
                location = _resource(answer)
        except TimeoutError:
            raise self._unavailable(f"no answer within {SIGNALLING_TIMEOUT:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unavailable(f"no answer: {str(error) or type(error).__name__}") from error
        if not body.startswith(b"v=0") or len(body) > MAX_SDP:
            raise NotVideo(f"{self._shown}: answers without SDP: is it a WHEP address?")
        return body.decode(errors="replace"), location

    def _check(self, status: int) -> None:
        if status in (401, 403):
            raise SourceDenied(f"{self._shown}: HTTP {status}: check user, password or token")
        if status == 404:
            raise self._unavailable("HTTP 404: no such stream there, or nobody sends it now")
        if status >= 400:
            raise self._unavailable(f"HTTP {status}")
        if not 200 <= status < 300:
            raise NotVideo(f"{self._shown}: answers HTTP {status}: is it a WHEP address?")

    async def _connect(self, peer: RTCPeerConnection, sdp: str) -> None:
        try:
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
        """Take every frame as it comes, keep the newest that is due, until the track ends."""
        while True:
            try:
                picture = cast(VideoFrame, await track.recv())
            except MediaStreamError:
                self._broken = self._unavailable("the other side ended the stream")
                self._arrived.set()
                return
            metrics.FRAMES_RECEIVED.labels(self.stream).inc()
            self.heard_at = now = time.monotonic()
            if not self._pace.wants(now):
                metrics.FRAMES_DROPPED.labels(self.stream, "sampled_out").inc()
                continue
            if self._newest is not None:
                metrics.FRAMES_DROPPED.labels(self.stream, "superseded").inc()
            self._newest = (picture, now, time.time())
            self._arrived.set()

    def _image(self, picture: VideoFrame) -> NDArray[np.uint8]:
        with metrics.stage("decode"):
            return rgb(picture, self.max_side)

    def _unavailable(self, what: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self._shown}: {urls.scrub(what, self.url)}")


async def _describe(peer: RTCPeerConnection) -> str:
    """Our offer, with all addresses at which we can be reached."""
    await peer.setLocalDescription(await peer.createOffer())
    return str(peer.localDescription.sdp)


def _endpoint(url: str) -> tuple[str, httpx.Headers, httpx.Auth | None]:
    """The HTTP address behind a whep:// URL, free of secrets, and the headers and auth that carry them."""
    parts = urls.split(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    token = next((value for key, value in pairs if key == "token"), None)
    query = urlencode([(key, value) for key, value in pairs if key != "token"])
    host = parts.netloc.rpartition("@")[2]
    scheme = "https" if parts.scheme == "wheps" else "http"
    auth = None
    if parts.username is not None:
        auth = httpx.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
    headers = httpx.Headers()
    if token is not None:
        headers = httpx.Headers({b"Authorization": b"Bearer " + token.encode()})
    return urlunsplit((scheme, host, parts.path, query, "")), headers, auth


def _resource(answer: httpx.Response) -> httpx.URL | None:
    """What to DELETE at the end; never another host than the one that answered, for it is sent our credentials."""
    location = answer.headers.get("location")
    resource = answer.url.join(location) if location else None
    return resource if resource is not None and resource.host == answer.url.host else None


async def _delete(client: httpx.AsyncClient, resource: httpx.URL) -> None:
    try:
        await client.delete(resource, timeout=GOODBYE_TIMEOUT)
    except httpx.HTTPError:
        return  # the other side will notice by itself that nobody listens
