"""The live feed by WebSocket: what is told, to whom, and how it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stream_sttm.api.auth import new_token
from stream_sttm.config.http import HttpSettings
from tests.support.answers import make_answer, make_status, until
from tests.support.api_server import Served, line_of, serving

PLAIN: dict[str, Any] = {"proxy": None, "open_timeout": 30}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as one:
        yield one


def at(served: Served, query: str = "") -> str:
    return f"ws://127.0.0.1:{served.port}/api/v1/ws{query}"


async def heard(socket: ClientConnection) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(await socket.recv())
    return told


async def end_of(socket: ClientConnection) -> tuple[int, str]:
    """How the service closed, whatever it told before."""
    with suppress(ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code or 0, socket.close_reason or ""


async def test_answers_and_statuses_are_told_as_they_come(served: Served) -> None:
    async with connect(at(served), **PLAIN) as socket:
        await until(lambda: bool(served.feed._subscriptions))
        served.feed.publish(make_answer("one", number=1), published_at=0.0)
        served.feed.publish(make_status(), published_at=0.0)
        answer, status = await heard(socket), await heard(socket)
        await socket.send("whatever")
    assert (answer["type"], answer["answer"]) == ("answer", "one")
    assert (status["type"], status["state"]) == ("status", "online")
    await until(lambda: not served.feed._subscriptions)


async def test_reader_goes_on_where_it_was_on_its_stream(served: Served) -> None:
    for number in range(4):
        stream = ("door", "yard")[number % 2]
        served.feed.publish(make_answer(number=number, stream=stream), published_at=0.0)
    async with connect(at(served, "?after=0&stream=yard"), **PLAIN) as socket:
        first = await heard(socket)
    assert first["id"] == "q1"
    async with connect(at(served, f"?after={first['event']}&stream=yard"), **PLAIN) as socket:
        assert (await heard(socket))["id"] == "q3"


async def test_reader_that_is_too_slow_is_told_so_and_left(served: Served) -> None:
    async with connect(at(served), **PLAIN) as socket:
        await until(lambda: bool(served.feed._subscriptions))
        for number in range(300):  # at once, which no reader can follow
            served.feed.publish(make_answer(number=number), published_at=0.0)
        code, reason = await end_of(socket)
    assert code == 1013
    assert reason.startswith("read too slowly: 44 events lost")


async def test_end_of_the_service_is_told(served: Served) -> None:
    async with connect(at(served), **PLAIN) as socket:
        await until(lambda: bool(served.feed._subscriptions))
        served.feed.close()
        assert await end_of(socket) == (1012, "the service is stopping")


async def status_of_refusal(url: str, **headers: str) -> int:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, additional_headers=headers, **PLAIN):
            pass
    return refused.value.response.status_code


async def test_token_is_needed_and_looked_at(tmp_path: Path) -> None:
    reader, hashed = new_token()
    told = {"token": "main", "tokens": [{"name": "r", "hash": hashed, "streams": ["door"]}]}
    http = HttpSettings.model_validate(told)
    async with serving(tmp_path, http=http) as served:
        url, mine = at(served), at(served, "?stream=door")
        assert await status_of_refusal(url, Authorization="Bearer no") == 401
        assert await status_of_refusal(url, Authorization=f"Bearer {reader}") == 403
        assert await status_of_refusal(mine + "&after=x", Authorization="Bearer main") == 403
        for query, header, message in (
            ("", {"Authorization": "Bearer main"}, None),
            ("?stream=door", {"Authorization": f"Bearer {reader}"}, None),
            ("?stream=door", {}, json.dumps({"token": reader})),
        ):
            async with connect(at(served, query), additional_headers=header, **PLAIN) as socket:
                if message is not None:
                    await socket.send(message)
                await until(lambda: bool(served.feed._subscriptions))
                served.feed.publish(make_answer("hi", stream="door"), published_at=0.0)
                assert (await heard(socket))["answer"] == "hi"
            await until(lambda: not served.feed._subscriptions)
        for message in ("", "[1]", "{", '{"token": 7}', '{"token": "no"}', "[" * 20_000):
            async with connect(mine, **PLAIN) as socket:
                await socket.send(message)
                code, reason = await end_of(socket)
            assert (code, "bearer token is needed" in reason) == (1008, True)
        async with connect(at(served, "?stream=yard"), **PLAIN) as socket:
            await socket.send(json.dumps({"token": reader}))
            assert await end_of(socket) == (1008, "token 'r' is not for stream 'yard'")
        assert not served.feed._subscriptions


async def test_page_of_another_origin_is_let_in_only_where_it_is_named(tmp_path: Path) -> None:
    http = HttpSettings(cors=["https://home.example"])
    async with serving(tmp_path, http=http) as served:
        assert await status_of_refusal(at(served), Origin="https://evil.example") == 403
        assert await status_of_refusal(at(served), Origin="null") == 403
        for origin in ("https://home.example", f"http://127.0.0.1:{served.port}"):
            async with connect(at(served), additional_headers={"Origin": origin}, **PLAIN):
                await until(lambda: bool(served.feed._subscriptions))
            await until(lambda: not served.feed._subscriptions)


async def test_path_without_a_websocket_is_refused(served: Served) -> None:
    assert await status_of_refusal(f"ws://127.0.0.1:{served.port}/api/v1/events") == 403


async def test_one_reader_too_many_is_refused_in_a_line_whichever_way_it_reads(
    served: Served,
) -> None:
    served.feed._most = 1
    async with connect(at(served), **PLAIN) as first:
        await until(lambda: bool(served.feed._subscriptions))
        async with connect(at(served), **PLAIN) as second:
            assert await end_of(second) == (
                1013, "1 read the live events already; try again in a moment"
            )  # fmt: skip
        refused = await served.client.get("/api/v1/events")
        assert "1 read the live events already" in line_of(refused, 429)
        assert refused.headers["Retry-After"] == "1"
        served.feed.publish(make_answer("one"), published_at=0.0)
        assert (await heard(first))["answer"] == "one"
