"""Routes that change what runs and show what was told of events: what they pass on, and each refusal in one line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stream_sttm.api.app import create_app
from stream_sttm.api.control import routes as control_routes
from stream_sttm.api.events import routes as event_routes
from stream_sttm.api.feed import Feed
from stream_sttm.control.diff import Changes, Named
from stream_sttm.errors import ConfigError, NotPossible, NotReady, StoreError, StreamSTTMError
from stream_sttm.errors import UnknownQuery as NoQuery
from stream_sttm.storage.answers import AnswerStore
from stream_sttm.storage.events import EventLog
from stream_sttm.types import EventKind
from tests.support.answers import make_event
from tests.support.api_server import EchoService

ID = "0123456789abcdef" * 2


class Noting:
    """A control that notes what it is told, until it is told to refuse."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.error: StreamSTTMError | None = None

    def _note(self, *what: Any) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(what)

    async def trigger(self, query: str, stream: str | None = None) -> list[str]:
        self._note("trigger", query, stream)
        return ["door"]

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        self._note(stream, is_enabled)

    async def set_query_enabled(self, query: str, stream: str | None, is_enabled: bool) -> None:
        self._note(query, stream, is_enabled)

    async def reload(self) -> Changes:
        self._note("reload")
        return Changes(Named(("new",)), Named(), Named(), False, False, False, ("model",))


class Served:
    """The application, called without a network between."""

    def __init__(self, folder: Path) -> None:
        self.control, self.store = Noting(), AnswerStore(folder / "answers.db")
        self.log, self.newest = EventLog(self.store.file), dict[str, bytes]()
        self.app: FastAPI = create_app(EchoService(), store=self.store, feed=Feed())
        self.app.include_router(control_routes(self.control))
        self.app.include_router(event_routes(self.log, self.newest.get))
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost/api/v1/")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    one = Served(tmp_path)
    async with one.client:
        yield one
    one.store.close()


async def test_what_is_asked_for_is_passed_on(served: Served) -> None:
    for method, path, body, status in (
        ("POST", "queries/look/trigger", None, 202),
        ("POST", "queries/look/trigger", {}, 202),
        ("POST", "queries/look/trigger", {"stream": "door"}, 202),
        ("PUT", "queries/look/enabled", {"enabled": False}, 200),
        ("POST", "queries/look/enabled", {"enabled": True, "stream": "door"}, 200),
        ("PUT", "streams/door/enabled", {"enabled": False}, 200),
        ("POST", "streams/door/enabled", {"enabled": True}, 200),
    ):
        reply = await served.client.request(method, path, json=body)
        assert reply.status_code == status, (path, reply.text)
    assert served.control.told == [
        ("trigger", "look", None),
        ("trigger", "look", None),
        ("trigger", "look", "door"),
        ("look", None, False),
        ("look", "door", True),
        ("door", False),
        ("door", True),
    ]


async def test_a_reload_says_what_it_changed(served: Served) -> None:
    reply = await served.client.post("config/reload")
    assert reply.json()["streams"]["added"] == ["new"]
    assert reply.json()["needs_restart"] == ["model"]


async def test_a_configuration_with_faults_lists_them_all(served: Served) -> None:
    served.control.error = ConfigError("a.yaml: one\na.yaml: two")
    reply = await served.client.post("config/reload")
    assert reply.status_code == 422
    assert reply.json()["faults"] == ["a.yaml: one", "a.yaml: two"]
    assert "one; a.yaml: two" in reply.json()["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NoQuery("there is no query"), 404),
        (NotPossible("not now"), 409),
        (NotReady("the model is being loaded"), 503),
        (StoreError("the disk is full"), 503),
    ],
)
async def test_a_refusal_is_one_line(served: Served, error: StreamSTTMError, status: int) -> None:
    served.control.error = error
    for path, body in (
        ("queries/look/trigger", {}),
        ("queries/look/enabled", {"enabled": True}),
        ("streams/door/enabled", {"enabled": True}),
        ("config/reload", None),
    ):
        reply = await served.client.post(path, json=body)
        assert (reply.status_code, reply.json()) == (status, {"error": str(error)})


async def test_kept_events_are_listed_shown_and_pictured(served: Served) -> None:
    event = replace(make_event(), id=ID)
    served.log.add(event, published_at=event.updated_at)
    served.log.add(replace(event, kind=EventKind.END), published_at=event.updated_at)
    served.log.add_snapshot(ID, b"kept")
    listed = (await served.client.get("events/history?stream=cam&limit=1")).json()
    assert [(each["id"], each["kind"]) for each in listed["events"]] == [(ID, "end")]
    assert listed["next"] == 1
    assert (await served.client.get("events/history?before=1")).json()["events"] == []
    shown = (await served.client.get(f"events/{ID}")).json()
    assert shown == listed["events"][0]
    picture = await served.client.get(f"http://localhost{shown['snapshot']}")
    assert (picture.content, picture.headers["content-type"]) == (b"kept", "image/jpeg")


async def test_a_picture_is_there_before_the_store_has_it(served: Served) -> None:
    served.newest[ID] = b"new"
    assert (await served.client.get(f"events/{ID}/snapshot.jpg")).content == b"new"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"events/{ID}", 404),
        (f"events/{ID}/snapshot.jpg", 404),
        ("events/../../etc", 404),
        ("events/XYZ", 422),
        ("events/history?limit=0", 422),
        ("events/history?before=99999999999999999999", 422),
        ("events/history?stream=a%00b", 422),
    ],
)
async def test_what_is_not_there_is_told_in_a_line(served: Served, path: str, status: int) -> None:
    reply = await served.client.get(path)
    assert reply.status_code == status
    assert "\n" not in reply.json()["error"]


async def test_the_interface_describes_itself_without_a_warning(served: Served) -> None:
    paths = served.app.openapi()["paths"]
    assert {"/api/v1/config/reload", "/api/v1/events/{event}", "/api/v1/events/history"} <= set(
        paths
    )
    assert set(paths["/api/v1/queries/{name}/enabled"]) == {"put"}
