"""The scope that each route needs, over the routing table itself, whatever a stream or query is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.routing import compile_path

from stream_sttm.api import additions, control, events, probe, whip
from stream_sttm.api.app import create_app
from stream_sttm.api.auth import OPEN_PATHS, Caller, needed
from stream_sttm.api.feed import Feed
from stream_sttm.config.http import Scope
from stream_sttm.storage.answers import AnswerStore
from tests.support.api_server import EchoService

NAMES = [
    *("door", "whip", "whip2", "whip-cam", "WHIP", "enabled", "trigger", "streams", "queries"),
    *("test", "ws", "ask", "config", "reload", "snapshot", "mosaic", "v1", "api", "events"),
]
OTHERS = {  # all but: GET needs read, the rest admin
    ("POST", "/api/v1/ask"): Scope.ASK,
    ("POST", "/v1/chat/completions"): Scope.ASK,
    ("POST", "/api/v1/streams/{name}/whip"): Scope.PUBLISH,
    ("OPTIONS", "/api/v1/streams/{name}/whip"): Scope.PUBLISH,
    ("DELETE", "/api/v1/streams/{name}/whip/{session}"): Scope.PUBLISH,
    ("PATCH", "/api/v1/streams/{name}/whip/{session}"): Scope.PUBLISH,
    ("GET", "/api/v1/config"): Scope.ADMIN,
}
READING = ("GET", "HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The whole application, with every route that the service has."""
    nobody = cast("Any", None)  # no route is called
    folder: Path = tmp_path_factory.mktemp("scopes")
    with AnswerStore(folder / "answers.db") as store:
        made = create_app(EchoService(), store=store, feed=Feed())
        for routes in (whip, control, additions, probe, events):
            made.include_router(routes.routes(nobody))
        yield made


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every route, as OpenAPI tells them."""
    paths = app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def expected(method: str, template: str) -> Scope:
    usual = Scope.READ if method in READING else Scope.ADMIN
    return OTHERS.get((method, template), usual)


def paths_of(template: str) -> Iterator[str]:
    for name in NAMES:
        filled = template.replace("{name}", name).replace("{name:path}", f"demo/{name}")
        yield filled.replace("{session}", name).replace("{event}", "0" * 32)


def fitting(app: FastAPI, method: str, path: str) -> set[str]:
    """The routes to which a request may go: two may fit, such as the stream `test` and trying a source."""
    routes = [route for kind, route in routes_of(app) if kind == method]
    return {route for route in routes if compile_path(route)[0].match(path)}


def test_every_route_needs_its_scope_whatever_a_stream_is_called(app: FastAPI) -> None:
    for method, route in routes_of(app):
        for path in paths_of(route):
            scopes = {expected(method, one) for one in fitting(app, method, path)}
            assert scopes == {needed(method, path)}, (method, path)
    assert set(OTHERS) <= set(routes_of(app))
    assert len(routes_of(app)) > 30


@pytest.mark.parametrize("name", NAMES)
def test_publishing_rules_no_stream_but_by_whip(name: str) -> None:
    publisher = Caller("x", frozenset([Scope.PUBLISH]), None, rate=50.0)
    stream = f"/api/v1/streams/{name}"
    for method, path in (
        *(("PUT", stream), ("DELETE", stream), ("GET", stream), ("PUT", f"{stream}/enabled")),
        *(("POST", "/api/v1/streams"), ("GET", f"{stream}/snapshot.jpg")),
        *(("PUT", f"/api/v1/queries/{name}"), ("POST", f"/api/v1/queries/{name}/trigger")),
    ):
        assert "lacks the scope" in (publisher.refusal(method, path, "") or ""), (method, path)
    assert publisher.refusal("POST", f"{stream}/whip", "") is None
    assert publisher.refusal("DELETE", f"{stream}/whip/{name}", "") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_token_for_one_stream_is_held_to_it_whatever_it_is_called(name: str) -> None:
    kept = Caller("x", frozenset([Scope.ADMIN]), frozenset([name]), rate=50.0)
    assert kept.refusal("GET", f"/api/v1/streams/{name}/mosaic.jpg", "") is None
    assert kept.refusal("POST", f"/api/v1/streams/{name}/whip", "") is None
    for path in ("/api/v1/streams/yard", f"/api/v1/streams/yard/{name}", "/api/v1/streams/"):
        assert kept.refusal("GET", path, f"stream={name}") is not None
    assert kept.refusal("GET", f"/api/v1/queries/{name}", f"stream={name}") is not None


def test_what_needs_no_token_is_only_read(app: FastAPI) -> None:
    for method, route in routes_of(app):
        if route in OPEN_PATHS:
            assert method == "GET", route
    assert not any(path.startswith("/api/") for path in OPEN_PATHS)
