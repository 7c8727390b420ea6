"""A camera before which nothing happens, through the whole service: spared, shown, and awake when something does."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from stream_sttm.sources.images import jpeg
from stream_sttm.sources.scene import Scene
from tests.support.service import Service, until

WINDOW = 64  # visual tokens of the bundled model


class Camera(ThreadingHTTPServer):
    """Motion JPEG of an empty drawn scene with its grain, 10 pictures a second; `shows` something where it is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Watching)
        self.shows = threading.Event()
        self.ended = threading.Event()

    def picture(self, number: int) -> bytes:
        """The picture as JPEG."""
        image = Scene(4, script=()).render(number / 10, 240).copy()
        if self.shows.is_set():
            image[100:140, 80:120] = (220, 30, 30)
        return jpeg(np.ascontiguousarray(image))


class Watching(BaseHTTPRequestHandler):
    """One viewer."""

    server: Camera

    def do_GET(self) -> None:
        """Pictures until either side has had enough."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        number = 0
        try:
            while not self.server.ended.wait(0.1):
                body = self.server.picture(number)
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body + b"\r\n")
                number += 1
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def camera() -> Iterator[Camera]:
    """A running camera."""
    with Camera() as running:
        serving = threading.Thread(target=running.serve_forever)
        serving.start()
        try:
            yield running
        finally:
            running.ended.set()
            running.shutdown()
            serving.join()


def tokens(service: Service, work: str) -> float:
    """How many visual tokens were encoded or reused."""
    name = rf'stream_sttm_vision_tokens_total{{stream="cam",work="{work}"}} (\S+)'
    found = re.search(name, service.http.get("/metrics").text)
    assert found
    return float(found[1])


def still_since(service: Service) -> float | None:
    """Since when the API says that nothing changes."""
    since: float | None = service.get("/api/v1/streams/cam")["still_since"]
    return since


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_still_scene_is_spared_until_something_appears(tmp_path: Path, camera: Camera) -> None:
    source = f"http://127.0.0.1:{camera.server_port}/video"
    streams = {"cam": {"source": source, "fps": 4, "max_still": 60}}
    with Service(tmp_path, streams=streams) as service:
        until(lambda: tokens(service, "reused") >= 10 * WINDOW, "windows are spared")
        assert tokens(service, "encoded") < tokens(service, "reused") / 3
        since = until(lambda: still_since(service), "the API says that nothing changes")
        asked = service.ask("cam", "is there a red square?")
        assert asked.is_success, asked.text
        assert asked.json()["window"][1] > since  # time goes on for what is spared

        before = tokens(service, "encoded")
        camera.shows.set()
        until(lambda: tokens(service, "encoded") > before, "what appears is encoded")
        until(lambda: (still_since(service) or 0) > since, "it stands still since then")
        spared = tokens(service, "reused")
        until(lambda: tokens(service, "reused") > spared, "and is spared in turn")
        assert service.stop() == 0
