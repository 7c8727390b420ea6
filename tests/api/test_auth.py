"""Who may call what, how often, and about which streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from stream_sttm.api.auth import Caller, Tokens, needed, new_token
from stream_sttm.config.http import HttpSettings, Scope
from tests.support.api_server import Served, line_of, serving


def settings(*tokens: tuple[str, str, dict[str, Any]], **more: Any) -> HttpSettings:
    told = [{"name": name, "hash": hashed, **rest} for name, hashed, rest in tokens]
    return HttpSettings.model_validate({"tokens": told, **more})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def asked(served: Served, token: str, stream: str = "door") -> httpx.Response:
    body = {"stream": stream, "question": "Who?"}
    return await served.client.post("/api/v1/ask", json=body, headers=bearer(token))


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/v1/streams", Scope.READ),
        ("GET", "/metrics", Scope.READ),
        ("POST", "/api/v1/ask", Scope.ASK),
        ("POST", "/v1/chat/completions", Scope.ASK),
        ("POST", "/api/v1/streams/door/whip", Scope.PUBLISH),
        ("DELETE", "/api/v1/streams/door/whip/1", Scope.PUBLISH),
        ("POST", "/api/v1/config/reload", Scope.ADMIN),
        ("PUT", "/api/v1/streams/door/enabled", Scope.ADMIN),
        ("POST", "/api/v1/queries/look/trigger", Scope.ADMIN),
    ],
)
def test_scope_that_a_request_needs(method: str, path: str, scope: Scope) -> None:
    assert needed(method, path) is scope


async def test_token_allows_what_its_scopes_say(tmp_path: Path) -> None:
    (reader, one), (asker, two) = new_token(), new_token()
    http = settings(
        ("reader", one, {"scopes": ["read"]}), ("asker", two, {"scopes": ["ask"]}), token="main"
    )
    async with serving(tmp_path, http=http) as served:
        assert (await served.client.get("/api/v1/streams", headers=bearer(reader))).is_success
        assert "token 'reader' lacks the scope 'ask'" in line_of(await asked(served, reader), 403)
        assert (await asked(served, asker)).is_success
        response = await served.client.get("/api/v1/streams", headers=bearer(asker))
        assert "token 'asker' lacks the scope 'read'" in line_of(response, 403)
        assert (await asked(served, "main")).is_success
        assert "bearer token is needed" in line_of(await asked(served, reader[:-1]), 401)
        assert (await served.client.get("/healthz")).is_success


async def test_token_for_one_stream_sees_no_other(tmp_path: Path) -> None:
    token, hashed = new_token()
    http = settings(("kitchen", hashed, {"streams": ["door"]}))
    async with serving(tmp_path, http=http) as served:
        assert (await asked(served, token)).is_success
        assert "not for stream 'yard'" in line_of(await asked(served, token, "yard"), 403)

        async def got(path: str) -> httpx.Response:
            return await served.client.get(path, headers=bearer(token))

        listed = (await got("/api/v1/streams")).json()["streams"]
        assert [one["stream"] for one in listed] == ["door"]
        models = (await got("/v1/models")).json()["data"]
        assert [one["id"] for one in models] == ["echo", "echo/door"]
        assert (await got("/api/v1/streams/door")).is_success
        assert (await got("/api/v1/answers?stream=door")).is_success
        for path in (
            "/api/v1/streams/yard",
            "/api/v1/streams/yard/snapshot.jpg",
            "/api/v1/answers",
            "/api/v1/answers?stream=yard",
            "/api/v1/answers?stream=door&stream=yard",
            "/api/v1/events",
            "/api/v1/queries",
            "/v1/models/echo/yard",
            "/metrics",
        ):
            line_of(await got(path), 403)


def test_rate_refills_with_time() -> None:
    now = [0.0]
    caller = Caller("x", frozenset([Scope.READ]), None, rate=2.0, clock=lambda: now[0])
    assert [caller.take() for _ in range(4)] == [0.0] * 4
    assert caller.take() == pytest.approx(0.5)
    now[0] = 0.5
    assert caller.take() == 0.0
    assert caller.take() == pytest.approx(0.5)


async def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path) -> None:
    token, hashed = new_token()
    http = settings(("busy", hashed, {"rate": 0.1}), token="main")
    async with serving(tmp_path, http=http) as served:
        answers = [await asked(served, token) for _ in range(3)]
        line = line_of(answers[-1], 429)
        assert "token 'busy' has had more than 0.1 requests a second" in line
        assert int(answers[-1].headers["Retry-After"]) >= 9
        assert (await asked(served, "main")).is_success


async def test_other_origins_may_call_only_where_they_are_named(tmp_path: Path) -> None:
    asking = {
        "Origin": "https://home.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    async with serving(tmp_path, token="main") as served:
        response = await served.client.options("/api/v1/ask", headers=asking)
        assert "access-control-allow-origin" not in response.headers
    http = HttpSettings.model_validate({"token": "main", "cors": ["https://home.example"]})
    async with serving(tmp_path, http=http) as served:
        response = await served.client.options("/api/v1/ask", headers=asking)
        assert response.headers["access-control-allow-origin"] == "https://home.example"
        read = await served.client.get(
            "/api/v1/streams", headers={"Origin": "https://home.example"}
        )
        shown = {name.strip() for name in read.headers["access-control-expose-headers"].split(",")}
        assert {"Location", "ETag", "Link", "Accept-Post", "Retry-After"} <= shown  # RFC 9725
        refused = await served.client.options(
            "/api/v1/ask", headers=asking | {"Origin": "http://x"}
        )
        assert "access-control-allow-origin" not in refused.headers


def test_secret_is_nowhere_but_with_its_holder() -> None:
    token, hashed = new_token()
    http = settings(("kitchen", hashed, {}))
    assert token not in repr(http) + str(http.model_dump())
    assert Tokens(http).caller(f"Bearer {token}".encode()) is not None
    assert Tokens(http).caller(f"Basic {token}".encode()) is None
    assert Tokens(http).caller(hashed.encode()) is None


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"host": "0.0.0.0"}, "reachable from outside"),
        ({"tokens": [{"name": "x", "hash": "secret"}]}, "must be sha256:"),
        ({"tokens": [{"name": "a b", "hash": new_token()[1]}]}, "pattern"),
        ({"tokens": [{"name": "x", "hash": new_token()[1], "scopes": ["root"]}]}, "'read', 'ask'"),
        ({"tokens": [{"name": "x", "hash": new_token()[1]}] * 2}, "two have the same name"),
        ({"cors": ["*"]}, "must be an origin"),
        ({"rate": 0}, "greater than 0"),
    ],
)
def test_what_can_not_be_is_told_in_a_line(told: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        HttpSettings.model_validate(told)


@pytest.mark.parametrize(
    ("token", "priority", "may"),
    [
        ({}, 0, True),
        ({}, -5, True),
        ({}, 1, False),
        ({}, 100, False),
        ({"max_priority": 10}, 10, True),
        ({"max_priority": 10}, 11, False),
        ({"scopes": ["admin"]}, 100, True),
    ],
)
async def test_priority_needs_a_token_that_may(
    tmp_path: Path, token: dict[str, Any], priority: int, may: bool
) -> None:
    secret, hashed = new_token()
    async with serving(tmp_path, http=settings(("x", hashed, token))) as served:
        for named in ({"stream": "door"}, {"streams": ["door", "yard"]}):
            body = {**named, "question": "Who?", "priority": priority}
            reply = await served.client.post("/api/v1/ask", json=body, headers=bearer(secret))
            if may:
                assert reply.is_success
                assert "caller" not in reply.text
            else:
                most = token.get("max_priority", 0)
                line = f"priority: token 'x' may ask with {most} at most"
                assert line_of(reply, 403) == line
        if may:
            assert {question.caller for question in served.service.asked} == {"x"}
        else:
            assert served.service.asked == []


async def test_without_tokens_everybody_may_have_priority(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        assert (await served.ask(priority=100)).is_success
        assert served.service.asked[0].caller is None
