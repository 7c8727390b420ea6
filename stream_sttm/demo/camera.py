"""The demo's camera: a drawn scene sent over the network as a real WebRTC peer (WHEP), so that ingest is not spared.

`async with open_camera(scene) as camera` serves it inside the running event loop; `camera.url` is what to put into a
configuration, and `camera.scene_time(wall_clock)` tells which moment of the scene a frame showed. Each viewer gets a
track of its own. Knows nothing of the service it feeds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hmac
import json
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from fractions import Fraction

import uvicorn
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from av import VideoFrame
from fastapi import FastAPI, Request, Response

from stream_sttm.sources.scene import Scene
from stream_sttm.sources.webrtc.whep import BAD_SDP

CLOCK = 90_000  # ticks per second of RTP video
SDP = "application/sdp"


class Camera:
    """A scene that runs since `epoch` (wall clock), shown to any number of WebRTC viewers.

    `password`, where given, is what a viewer must send, as a bearer token or as the password of any user.
    """

    def __init__(
        self, scene: Scene, *, fps: float = 10.0, size: int = 480, password: str | None = None
    ) -> None:
        self.scene, self.fps, self.size = scene, fps, size
        self.epoch = time.time()
        self.url = ""
        self._password = password
        self._viewers: dict[str, RTCPeerConnection] = {}
        self.app = FastAPI(title="demo camera", openapi_url=None)
        self.app.add_api_route("/whep", self._offered, methods=["POST"])
        self.app.add_api_route("/whep/{viewer}", self._ended, methods=["DELETE"])

    @property
    def viewers(self) -> int:
        """How many are watching."""
        return len(self._viewers)

    def scene_time(self, wall_clock: float) -> float:
        """Return the scene's own time at a wall-clock time."""
        return wall_clock - self.epoch

    async def close(self) -> None:
        """Hang up on every viewer."""
        for viewer in list(self._viewers):
            await self._hang_up(viewer)

    async def _offered(self, request: Request) -> Response:
        if not self._is_allowed(request.headers.get("authorization", "")):
            return Response("wrong or no password", 401, {"WWW-Authenticate": "Bearer"})
        viewer = uuid.uuid4().hex
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peer.add_listener("connectionstatechange", lambda: self._changed(viewer))
        try:
            offer = RTCSessionDescription((await request.body()).decode(), "offer")
            peer.addTrack(_SceneTrack(self))
            await peer.setRemoteDescription(offer)
            await peer.setLocalDescription(await peer.createAnswer())
        except BAD_SDP as error:
            await peer.close()
            return Response(f"not an SDP offer for video: {error}", 400)
        self._viewers[viewer] = (
            peer  # not before: closed while it describes itself, a peer leaks its sockets
        )
        headers = {"Location": f"/whep/{viewer}"}
        return Response(peer.localDescription.sdp, 201, headers, SDP)

    async def _ended(self, viewer: str) -> Response:
        if viewer not in self._viewers:
            return Response("no such viewer", 404)
        await self._hang_up(viewer)
        return Response(status_code=200)

    async def _changed(self, viewer: str) -> None:
        peer = self._viewers.get(viewer)
        if peer is not None and peer.connectionState in ("failed", "closed"):
            await self._hang_up(viewer)

    async def _hang_up(self, viewer: str) -> None:
        peer = self._viewers.pop(viewer, None)
        if peer is not None:
            await peer.close()

    def _is_allowed(self, authorization: str) -> bool:
        if self._password is None:
            return True
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(given.encode(), self._password.encode())


class _SceneTrack(MediaStreamTrack):
    """The scene as it is now, at the camera's rate; late frames are left out, not sent late."""

    kind = "video"

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self._camera = camera
        self._tick = -1

    async def recv(self) -> VideoFrame:
        camera = self._camera
        now = camera.scene_time(time.time())
        self._tick = max(self._tick + 1, int(now * camera.fps))
        shown_at = self._tick / camera.fps
        await asyncio.sleep(shown_at - now)
        return await asyncio.to_thread(self._picture, shown_at)

    def _picture(self, shown_at: float) -> VideoFrame:
        image = self._camera.scene.render(shown_at, self._camera.size)
        frame = VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = round(shown_at * CLOCK), Fraction(1, CLOCK)
        return frame


@asynccontextmanager
async def open_camera(
    scene: Scene,
    *,
    port: int = 0,
    fps: float = 10.0,
    size: int = 480,
    password: str | None = None,
) -> AsyncIterator[Camera]:
    """Open a camera on the loopback interface. It listens once entered; port 0 takes a free one."""
    camera = Camera(scene, fps=fps, size=size, password=password)
    with socket.create_server(("127.0.0.1", port)) as listener:
        camera.url = f"whep://127.0.0.1:{listener.getsockname()[1]}/whep"
        server = _Server(uvicorn.Config(camera.app, log_config=None, lifespan="off"))
        # not in a TaskGroup, which would wrap whatever is raised while the camera is open
        serving = asyncio.create_task(server.serve([listener]), name="demo camera")
        try:
            yield camera
        finally:
            server.should_exit = True
            await serving
            await camera.close()


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's event loop: signals are theirs."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(seed: int, port: int) -> None:
    """Show a scene until standard input ends, which it does with the process that started this one."""
    async with open_camera(Scene(seed), port=port) as camera:
        print(json.dumps({"url": camera.url, "epoch": camera.epoch}), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


def main() -> None:
    """`python -m stream_sttm.demo.camera`: print the URL and the epoch as JSON, then serve."""
    parser = argparse.ArgumentParser(description="A drawn camera, watched by WHEP.")
    parser.add_argument("--seed", type=int, default=7, help="which drawn world")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.seed, options.port))


if __name__ == "__main__":
    main()
