"""Events from end to end: a drawn scene, the bundled model, kept, pictured, posted, and going on over a restart."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stream_sttm.sources.scene import Scene
from tests.support.service import Service, until

SECRET = "a-secret/of#hooks"


class Hook(BaseHTTPRequestHandler):
    """Keeps what is posted with a right signature."""

    posts: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = self.headers["X-Timestamp"].encode() + b"." + body
        right = "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        is_right = hmac.compare_digest(right, self.headers["X-Signature"])
        if is_right:
            self.posts.append(json.loads(body))
        self.send_response(204 if is_right else 403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook's address and what it has got."""
    Hook.posts = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/door", Hook.posts
        server.shutdown()
        thread.join()


@pytest.mark.timeout(240)
def test_an_event_from_its_first_frame_over_a_restart_to_its_end(
    tmp_path: Path, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, posts = hook
    seed = 11
    (subject, *_) = [each.name for each in Scene(seed).objects_at(2.0)]
    ask = {"streams": ["hall"], "ask": f"is there a {subject}?", "every": 1, "type": "yes_no"}
    config = {
        "streams": {"hall": {"source": f"scene://hall?seed={seed}", "fps": 2, "stall_after": 120}},
        "queries": {"there": {**ask, "on_after": 2, "off_after": 1000, "min_confidence": 0.5}},
        "sinks": [f"{url}#send=events&secret={SECRET.replace('/', '%2F').replace('#', '%23')}"],
    }
    with Service(tmp_path, **config) as service:
        (event,) = until(lambda: service.get("/api/v1/events/history")["events"], "an event")
        assert (event["kind"], event["state"], event["ended_at"]) == ("new", True, None)
        assert event["span"][0] < event["span"][1] == event["started_at"]
        assert 0.5 <= event["confidence"] <= 1
        answers = service.get("/api/v1/answers?query=there")["answers"]
        assert event["answer_id"] in {answer["id"] for answer in answers}
        until(
            lambda: service.get(f"/api/v1/events/{event['id']}")["snapshot"], "its picture is kept"
        )
        picture = service.http.get(f"/api/v1/events/{event['id']}/snapshot.jpg").content
        assert Image.open(io.BytesIO(picture)).size[0] >= 64
        until(lambda: posts, "it is posted")
        assert (posts[0]["type"], posts[0]["kind"], posts[0]["id"]) == ("event", "new", event["id"])
        assert service.stop() == 0
    with Service(tmp_path, **config) as service:
        seen = len(service.get("/api/v1/answers?query=there")["answers"])
        path = "/api/v1/answers?query=there"
        until(lambda: len(service.get(path)["answers"]) > seen + 2, "answers go on")
        assert [each["id"] for each in service.get("/api/v1/events/history")["events"]] == [
            event["id"]
        ]
        assert len(posts) == 1  # nothing new
        switch = {"enabled": False, "stream": "hall"}
        assert service.http.put("/api/v1/queries/there/enabled", json=switch).is_success
        until(lambda: len(posts) == 2, "its end is posted")
        assert (posts[1]["kind"], posts[1]["id"], posts[1]["state"]) == ("end", event["id"], None)
        (event,) = until(
            lambda: [e for e in service.get("/api/v1/events/history")["events"] if e["ended_at"]],
            "its end is kept",
        )
        metrics = service.http.get("/metrics").text
        assert SECRET not in metrics + service.log.read_text() + json.dumps(posts)
        assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()
