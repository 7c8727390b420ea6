"""Facts about the real service under a thousand questions at once and bodies that are none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.support.service import Service, until

ASK = "/api/v1/ask"
SCENES = {
    name: {"source": f"scene://{name}?seed={seed}", "fps": 2} for seed, name in enumerate("ab")
}
QUESTION = {"stream": "a", "question": "how many objects are there?", "timeout": 60}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("flood"), streams=SCENES) as service:
        for stream in SCENES:
            until(lambda name=stream: service.state(name) == "online", f"{stream} is online")
            until(lambda name=stream: service.ask(name, "anything?").status_code == 200, "answers")
        yield service


async def test_a_thousand_questions_at_once_are_each_answered_or_told_when_to_come_back(
    service: Service,
) -> None:
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(
        base_url=service.http.base_url, timeout=100, limits=limits
    ) as client:
        sent = [client.post(ASK, json={**QUESTION, "stream": "ab"[n % 2]}) for n in range(1000)]
        replies = await asyncio.gather(*sent)
    told = Counter(reply.status_code for reply in replies)
    assert set(told) <= {200, 429}, told
    assert told[200] >= 256  # as many as may wait
    assert all(reply.headers["Retry-After"] for reply in replies if reply.status_code == 429)
    assert all("\n" not in reply.json()["error"] for reply in replies if reply.status_code == 429)
    assert len({reply.json()["id"] for reply in replies if reply.status_code == 200}) == told[200]
    assert [service.state(stream) for stream in SCENES] == ["online", "online"]
    assert service.ask("a", "how many objects are there?").status_code == 200


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b'{"stream": "a", "question": "' + b"x" * 1_000_000 + b'"}', {413, 422}),
        (b'{"stream": "a", "question": "\xff\xfe?"}', {400, 422}),
        (b'{"stream": "a", "question": "\\ud800?"}', {200, 400, 422}),
        (b"[" * 100_000, {400, 413, 422}),
        (b'{"stream": "a", "question": "?", "timeout": 1e999}', {400, 422}),
        (b"", {400, 422}),
    ],
    ids=["a megabyte", "no utf-8", "half a character", "nested", "no number", "nothing"],
)
def test_a_body_that_is_no_question_is_told_so_in_one_line(
    service: Service, body: bytes, statuses: set[int]
) -> None:
    reply = service.http.post(ASK, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in statuses, reply.text[:300]
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert error
        assert "\n" not in error
        assert len(error) < 500
    assert "Traceback" not in service.log.read_text()


def test_a_schema_that_nothing_can_follow_is_refused(service: Service) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "nothing"}}, "required": ["a"]}
    for wrong in (schema, {"$ref": "http://example.com/x"}, {"type": "string", "pattern": "("}):
        asked = {**QUESTION, "type": "json", "json_schema": wrong}
        reply = service.http.post(ASK, json=asked)
        assert reply.status_code == 422, reply.text[:300]
        assert "json_schema" in reply.json()["error"]
