"""What a page in a browser of this machine can do: nothing by a name of its own, nothing from another origin."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_sttm.api.origins import is_loopback, refusal
from stream_sttm.config.http import HttpSettings
from tests.support.api_server import Served, line_of, serving

OURS = ["localhost", "LocalHost:8080", "127.0.0.1", "127.8.9.1:1", "[::1]", "[::1]:8080"]
FOREIGN = [
    *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("192.168.1.2", "0.0.0.0", "[::]", "[fe80::1]", "", "127.1", "2130706433", "x.localhost"),
    *("127.0.0.1@evil.example", "evil.example/127.0.0.1", "localhost:8080:1", "[::1"),
]
CHANGING = [
    ("POST", "/api/v1/ask"),
    ("POST", "/v1/chat/completions"),
    ("PUT", "/api/v1/streams/door/enabled"),
    ("DELETE", "/api/v1/streams/door"),
    ("PATCH", "/api/v1/streams/door/whip/1"),
    ("POST", "/nowhere"),
]
BODY = {"stream": "door", "question": "Who?"}


def told(host: str, origin: str | None, method: str = "POST", *cors: str) -> str | None:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    return refusal(headers, method, cors, is_open=True)


@pytest.mark.parametrize("host", OURS)
def test_a_name_of_this_machine_alone_is_answered(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_another_name_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "origin", "is_welcome"),
    [
        ("localhost:8080", "http://localhost:8080", True),
        ("localhost", "http://localhost", True),
        ("localhost:80", "http://localhost", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:8080", None, True),
        ("localhost:8080", "https://home.example", True),  # named in http.cors
        ("localhost:8080", "http://home.example", False),
        ("localhost:8080", "http://localhost:3000", False),
        ("localhost:8080", "http://localhost", False),
        ("localhost:8080", "http://127.0.0.1:8080", False),
        ("localhost:8080", "null", False),
        ("localhost:8080", "", True),  # as a program may send it; no browser does
        ("localhost:8080", "file://localhost:8080", False),
        ("localhost:8080", "http://evil.example/localhost:8080", False),
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    host: str, origin: str | None, is_welcome: bool
) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "CONNECT", "PROPFIND"):
        assert (told(host, origin, method, "https://home.example") is None) is is_welcome
    for method in ("GET", "HEAD", "OPTIONS"):
        assert told(host, origin, method) is None


async def test_a_name_that_was_pointed_here_gets_nothing_at_all_without_a_token(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served:
        for path in ("/", "/api/v1/streams", "/metrics", "/v1/health/live", "/openapi.json"):
            for host in ("evil.example", f"evil.example:{served.port}"):
                line = line_of(await served.client.get(path, headers={"Host": host}), 403)
                assert f"host {host!r} is not answered without a token" in line
            for host in ("localhost", f"[::1]:{served.port}"):
                assert (await served.client.get(path, headers={"Host": host})).is_success
        with pytest.raises(InvalidStatus) as caught:
            await opened(served, {}, name="evil.example")
        assert caught.value.response.status_code == 403


async def test_behind_a_token_any_name_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, token="main") as served:
        headers = {"Host": "cams.example", "Authorization": "Bearer main"}
        assert (await served.client.get("/api/v1/streams", headers=headers)).is_success
        page = {**headers, "Origin": "https://cams.example"}
        assert (await served.client.post("/api/v1/ask", json=BODY, headers=page)).is_success


@pytest.mark.parametrize("token", [None, "main"])
async def test_a_foreign_page_is_refused_in_a_line_before_anything_is_done(
    tmp_path: Path, token: str | None
) -> None:
    async with serving(tmp_path, token=token) as served:
        given = {"Authorization": f"Bearer {token}"} if token else {}
        for method, path in CHANGING:
            headers = {**given, "Origin": "https://evil.example"}
            reply = await served.client.request(method, path, json=BODY, headers=headers)
            line = line_of(reply, 403)
            assert line == "origin 'https://evil.example' may not call; name it in http.cors"
        assert served.service.asked == []
        with pytest.raises(InvalidStatus) as caught:
            await opened(served, {**given, "Origin": "https://evil.example"})
        assert caught.value.response.status_code == 403


async def test_an_origin_that_is_named_may_call(tmp_path: Path) -> None:
    http = HttpSettings.model_validate({"cors": ["https://home.example"]})
    async with serving(tmp_path, http=http) as served:
        page = {"Origin": "https://home.example"}
        reply: httpx.Response = await served.client.post("/api/v1/ask", json=BODY, headers=page)
        assert reply.is_success
        assert reply.headers["Access-Control-Allow-Origin"] == "https://home.example"
        await opened(served, page)


async def opened(served: Served, headers: dict[str, str], name: str = "127.0.0.1") -> None:
    url = f"ws://{name}:{served.port}/api/v1/ws"
    async with connect(
        url, host="127.0.0.1", additional_headers=headers, proxy=None, open_timeout=30
    ):
        pass
