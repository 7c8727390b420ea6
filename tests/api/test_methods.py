"""HEAD and Allow of every resource, over a real port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from stream_sttm.api import additions, control, events, probe, whip
from tests.support.api_server import Served, serving

READ = "GET, HEAD"
ALLOW = {
    "/": READ,
    "/metrics": READ,
    "/healthz": READ,
    "/v1/health/live": READ,
    "/v1/models": READ,
    "/v1/chat/completions": "POST",
    "/api/v1/ask": "POST",
    "/api/v1/config": READ,
    "/api/v1/config/reload": "POST",
    "/api/v1/events/history": READ,
    "/api/v1/queries": "GET, HEAD, POST",
    "/api/v1/queries/look": "DELETE, GET, HEAD, PUT",
    "/api/v1/queries/look/enabled": "POST, PUT",
    "/api/v1/queries/look/trigger": "POST",
    "/api/v1/streams": "GET, HEAD, POST",
    "/api/v1/streams/door": "DELETE, GET, HEAD, PUT",
    "/api/v1/streams/test": "DELETE, GET, HEAD, POST, PUT",
    "/api/v1/streams/door/enabled": "POST, PUT",
    "/api/v1/streams/door/snapshot.jpg": READ,
    "/api/v1/streams/door/whip": "OPTIONS, POST",
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as one:
        nobody = cast("Any", None)  # no route that needs it is called
        for routes in (whip, control, additions, probe, events):
            one.app.include_router(routes.routes(nobody))
        yield one


async def test_allow_lists_all_methods_of_a_resource(served: Served) -> None:
    for path, methods in ALLOW.items():
        for method in ("TRACE", "PROPFIND"):
            reply = await served.client.request(method, path)
            assert (reply.status_code, reply.headers["Allow"]) == (405, methods), path


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/page.css", "/metrics", "/openapi.json", "/healthz", "/readyz", "/v1/models"),
        *("/v1/health/live", "/v1/health/ready", "/v1/health/startup", "/v1/models/echo/door"),
        *("/api/v1/streams", "/api/v1/streams/door", "/api/v1/streams/door/snapshot.jpg"),
        *("/api/v1/queries", "/api/v1/answers", "/api/v1/answers/export"),
        *("/api/v1/streams/nowhere", "/nowhere", "/api/v1/answers?limit=0"),
    ],
)
async def test_head_tells_what_get_does_without_the_body(served: Served, path: str) -> None:
    got, headed = await served.client.get(path), await served.client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    assert headed.headers["Content-Type"] == got.headers["Content-Type"]
    assert ("Content-Length" in headed.headers) == ("Content-Length" in got.headers)


async def test_head_of_what_never_ends_does_and_leaves_no_reader(served: Served) -> None:
    for _ in range(3):
        reply = await served.client.head("/api/v1/events")
        assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert not served.feed._subscriptions


async def test_head_of_what_is_only_posted_is_refused(served: Served) -> None:
    reply = await served.client.head("/api/v1/ask")
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")
