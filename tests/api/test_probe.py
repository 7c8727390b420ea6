"""A source that is tried out: what is told of its video, in one line why there is none, and how many at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stream_sttm.api.app import create_app
from stream_sttm.api.feed import Feed
from stream_sttm.api.probe import routes
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.storage.answers import AnswerStore
from tests.support.answers import until
from tests.support.api_server import EchoService, line_of
from tests.support.http_server import write_playlist


@asynccontextmanager
async def trying(access: Access = EVERYTHING) -> AsyncIterator[httpx.AsyncClient]:
    with AnswerStore(":memory:") as store:
        app: FastAPI = create_app(EchoService(), store=store, feed=Feed())
        app.include_router(routes(lambda: access))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def told(client: httpx.AsyncClient, source: str, **more: Any) -> httpx.Response:
    return await client.post("/api/v1/streams/test", json={"source": source, **more})


async def test_video_is_described(tmp_path: Path) -> None:
    playlist = write_playlist(tmp_path)
    async with trying() as client:
        body = (await told(client, f"file://{playlist}", seconds=20)).json()
        assert body["ok"], body
        assert (body["codec"], body["width"], body["height"]) == ("h264", 96, 96)
        assert body["keyframe_interval"] == pytest.approx(1.0)
        assert body["fps"] == pytest.approx(10, rel=0.1)
        assert body["jpeg_bytes"] > 500
        body = (await told(client, "scene://x?size=64", seconds=20)).json()
        assert (body["ok"], body["codec"], body["frames"]) == (True, None, 1)


async def test_why_there_is_no_video_is_told_without_a_credential(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video" * 99)
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, trying() as client:
        for source, word in (
            (f"file://{tmp_path}/no.mp4", "not a video"),
            (f"file://{tmp_path}/nowhere.mp4", "no.*file"),
            (f"rtsp://user:hush@127.0.0.1:{port}/x", r"\*\*\*@127"),
        ):
            body = (await told(client, source, seconds=0.5)).json()
            assert not body["ok"]
            assert "hush" not in body["error"]
            assert "\n" not in body["error"]
            assert re.search(word, body["error"]), body["error"]


async def test_what_may_not_be_reached_or_tried_is_refused() -> None:
    async with trying(EVERYTHING.for_strangers()) as client:
        for source in ("rtsp://127.0.0.1/x", "file:///etc/passwd", "http://[::1]/"):
            line_of(await told(client, source), 403)
        for source in ("nosuch://x", "whip:", "rtsp://h:x/", "exec:ls"):
            line_of(await told(client, source), 422)
        line_of(await told(client, "scene://x", seconds=100), 422)


async def test_few_are_tried_at_once() -> None:
    held: list[asyncio.StreamWriter] = []
    listening = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    url = f"rtsp://127.0.0.1:{listening.sockets[0].getsockname()[1]}/x"
    async with listening, trying() as client, asyncio.TaskGroup() as group:
        first = [group.create_task(told(client, url, seconds=3)) for _ in range(2)]
        await until(lambda: len(held) == 2)
        refused = await told(client, url)
        assert "2 sources are being tried" in line_of(refused, 429)
        assert refused.headers["Retry-After"] == "1"
        for reply in first:
            assert not (await reply).json()["ok"]
        for writer in held:
            writer.close()


async def test_variables_are_filled_in_as_a_new_streams_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_SIZE", "64")
    monkeypatch.setenv("CAMERA_URL", "scene://x?size=64")
    monkeypatch.setenv("SECRET", "hidden")
    (tmp_path / "secret").write_text("hidden")
    async with trying() as client:
        for source in ("scene://x?size=${CAMERA_SIZE}", "${CAMERA_URL}"):
            body = (await told(client, source, seconds=20)).json()
            assert (body["ok"], body["frames"]) == (True, 1), body
        for source in ("scene://${SECRET}", f"scene://${{file:{tmp_path}/secret}}"):
            line = line_of(await told(client, source), 403)
            assert "is not among sources.http_variables" in line
            assert "hidden" not in line
        line = line_of(await told(client, "scene://${CAMERA_NOT_SET}"), 422)
        assert "the environment has no variable 'CAMERA_NOT_SET'" in line
