"""Streams and queries over HTTP against the real service: live, over restarts, and refused where they may not be."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api_server import line_of
from tests.support.service import Service, until

HALL = {"hall": {"source": "scene://hall?seed=1", "fps": 2, "stall_after": 120}}
YARD = {"name": "yard", "source": "scene://yard?seed=2", "fps": 2, "stall_after": 120}
COUNT = {
    "name": "count",
    "streams": ["yard"],
    "ask": "how many objects are there?",
    "every": 1,
    "announce": "always",
}


def send(service: Service, method: str, path: str, **body: Any) -> httpx.Response:
    return service.http.request(method, f"/api/v1/{path}", json=body or None)


@pytest.mark.timeout(300)
def test_stream_added_over_http_is_watched_asked_and_kept_over_a_restart(tmp_path: Path) -> None:
    with Service(tmp_path, streams=HALL, watch_file=None) as service:
        since = service.get("/api/v1/streams/hall")["since"]
        reply = send(service, "POST", "streams", **YARD)
        assert reply.status_code == 201, reply.text
        assert reply.headers["Location"] == "/api/v1/streams/yard"
        assert reply.json()["settings"]["clip_frames"] == 2
        assert send(service, "POST", "streams", **YARD).status_code == 409
        assert send(service, "POST", "queries", **COUNT).status_code == 201
        until(lambda: service.get("/api/v1/answers?query=count")["answers"], "the query answers")
        before = service.get("/api/v1/streams/yard")["since"]
        settings = {key: value for key, value in COUNT.items() if key != "name"}
        assert send(service, "PUT", "queries/count", **{**settings, "every": 2}).is_success
        assert service.get("/api/v1/queries/count")["settings"]["every"] == 2
        until(lambda: service.state("hall") == "online", "the other stream is online")
        assert service.get("/api/v1/streams/yard")["since"] == before  # nobody was restarted
        assert service.get("/api/v1/streams/hall")["since"] >= since
        line = line_of(send(service, "DELETE", "streams/yard"), 409)
        assert "is asked by queries: count" in line
        assert "configuration file" in line_of(send(service, "DELETE", "streams/hall"), 409)
        bad = {"name": "bad", "source": "http://user:hush@127.0.0.1:1/x"}
        line = line_of(send(service, "POST", "streams", **bad), 403)
        assert "http://***@127.0.0.1:1/x" in line
        trial = send(service, "POST", "streams/test", source="scene://trial?seed=3")
        assert trial.json()["ok"], trial.text
        assert service.stop(signal.SIGTERM) == 0

    with Service(tmp_path, streams=HALL, watch_file=None) as service:
        config = service.get("/api/v1/config")
        assert config["added"] == {"streams": ["yard"], "queries": ["count"]}
        until(lambda: service.state("yard") == "online", "the added stream is online again")
        assert send(service, "DELETE", "streams/yard?force=true").status_code == 204
        assert send(service, "DELETE", "streams/yard").status_code == 204
        assert send(service, "DELETE", "queries/count").status_code == 204
        assert service.get("/api/v1/queries")["queries"] == []
        assert send(service, "GET", "streams/yard").status_code == 404
        names = [one["stream"] for one in service.get("/api/v1/streams")["streams"]]
        assert names == ["hall"]
