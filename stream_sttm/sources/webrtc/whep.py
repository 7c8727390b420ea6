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
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import parse_qsl, unquote, urlencode, urlunsplit

import httpx
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from stream_sttm import urls
from stream_sttm.config import source_url
from stream_sttm.errors import NotVideo, SourceDenied, SourceUnavailable
from stream_sttm.sources.network import tls
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.webrtc.track import LatestPicture
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
            client, endpoint = await self._signalling()
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
            if self.access.limits_hosts:
                answer = self._allowed(answer)
            if location is not None:
                stack.push_async_callback(_delete, client, location)
            await self._connect(peer, answer)
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

    async def _signalling(self) -> tuple[httpx.AsyncClient, Endpoint]:
        """Return an HTTP client with our credentials, and the endpoint at the checked address."""
        endpoint = _endpoint(self._bare)
        if self.access.limits_hosts:
            port = endpoint.url.port or (443 if endpoint.url.scheme == "https" else 80)
            address, *_ = await self.access.resolve(self._bare, port)
            endpoint = endpoint.at(address)
        client = httpx.AsyncClient(
            headers=endpoint.headers,
            auth=endpoint.auth,
            timeout=SIGNALLING_TIMEOUT,
            verify=tls.context(verify=self._verify),
            trust_env=False,
        )
        return client, endpoint

    def _allowed(self, sdp: str) -> str:
        """Return the SDP answer without the candidates that may not be reached."""
        host = str(urls.split(self._bare).hostname)
        lines = [
            line
            for line in sdp.splitlines()
            if not line.startswith("a=candidate:")
            or self.access.allows_address(host, (line.split() + [""] * 5)[4])
        ]
        return "\r\n".join([*lines, ""])

    async def _post(
        self, client: httpx.AsyncClient, endpoint: Endpoint, offer: str
    ) -> tuple[str, Endpoint | None]:
        """Send our offer. Returns the SDP answer, and what to DELETE at the end. Raises SourceError."""
        headers = {"Content-Type": SDP, "Accept": SDP}
        try:
            async with (
                asyncio.timeout(SIGNALLING_TIMEOUT),
                client.stream(
                    "POST",
                    endpoint.url,
                    content=offer,
                    headers=headers,
                    extensions=endpoint.extensions,
                ) as answer,
            ):
                self._check(answer.status_code)
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > MAX_SDP:
                        break
                location = _resource(answer, endpoint)
        except TimeoutError:
            raise self._unavailable(f"no answer within {SIGNALLING_TIMEOUT:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = tls.explained(error) or f"no answer: {str(error) or type(error).__name__}"
            raise self._unavailable(why) from error
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
        await self._latest.drain(track)
        self._latest.end(self._unavailable("the other side ended the stream"))

    def _unavailable(self, what: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self._shown}: {urls.scrub(what, self._bare)}")


async def _describe(peer: RTCPeerConnection) -> str:
    """Return our offer, with all addresses at which we can be reached."""
    await peer.setLocalDescription(await peer.createOffer())
    return str(peer.localDescription.sdp)


@dataclass(frozen=True)
class Endpoint:
    """An HTTP address without secrets, and the headers, auth and extensions of requests to it."""

    url: httpx.URL
    headers: httpx.Headers
    auth: httpx.Auth | None
    extensions: dict[str, str]

    def at(self, address: str) -> Endpoint:
        """Return the endpoint with `address` as host, requested under its own name."""
        headers = self.headers.copy()
        headers["Host"] = self.url.netloc.decode("ascii")
        extensions = {"sni_hostname": self.url.host}
        url = self.url.copy_with(host=address)
        return replace(self, url=url, headers=headers, extensions=extensions)


def _endpoint(url: str) -> Endpoint:
    """Return the endpoint that a whep:// URL means."""
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
    address = httpx.URL(urlunsplit((scheme, host, parts.path, query, "")))
    return Endpoint(address, headers, auth, {})


def _resource(answer: httpx.Response, endpoint: Endpoint) -> Endpoint | None:
    """Return what to DELETE at the end. Never on another host than answered: the request carries our credentials."""
    location = answer.headers.get("location")
    if not location:
        return None
    target = httpx.URL(location)
    name = endpoint.extensions.get("sni_hostname", endpoint.url.host)
    if target.is_absolute_url and target.host != name:
        return None
    own = answer.url.join(location)
    return replace(endpoint, url=own.copy_with(host=endpoint.url.host))


async def _delete(client: httpx.AsyncClient, resource: Endpoint) -> None:
    try:
        await client.delete(resource.url, timeout=GOODBYE_TIMEOUT, extensions=resource.extensions)
    except httpx.HTTPError:
        return  # the other side will notice by itself that nobody listens
