"""The HTTP interface over a real uvicorn: every route, every error as one line, live events, token and limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.api.schemas import AnswerShape
from stream_sttm.api.static import PAGE
from stream_sttm.engine.outcomes import Mosaic, Tile, TileKind
from stream_sttm.errors import (
    NoVideoYet,
    QuestionExpired,
    QuestionRejected,
    StreamSTTMError,
    TooManyQuestions,
)
from stream_sttm.types import (
    FREE_TEXT,
    AnswerType,
    Form,
)
from tests.support.answers import make_answer, make_status, until
from tests.support.api_server import Served, line_of, serving

TOKEN = "a-token-of-täsT"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as one:
        yield one


async def test_question_is_answered_as_json(served: Served) -> None:
    response = await served.ask("Wer ist da? 😀", max_new_tokens=5, timeout=3)
    assert response.status_code == 200
    body = response.json()
    assert body["answer"] == "Wer ist da? 😀"
    assert body["stream"] == "door"
    assert set(body) == set(make_answer().as_dict(published_at=0))
    AnswerShape.model_validate(body)
    (asked,) = served.service.asked
    assert (asked.stream, asked.text, asked.form) == ("door", "Wer ist da? 😀", FREE_TEXT)
    assert (asked.max_new_tokens, asked.timeout) == (5, 3)


async def test_timeout_and_length_default_to_the_configuration(served: Served) -> None:
    await served.ask()
    (asked,) = served.service.asked
    assert (asked.max_new_tokens, asked.timeout) == (64, 5)


async def test_answer_is_told_as_it_is_written_where_events_are_accepted(served: Served) -> None:
    body = {"stream": "door", "question": "one two three"}
    headers = {"Accept": "text/event-stream"}
    response = await served.client.post("/api/v1/ask", json=body, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: ")))
        for lines in (block.split("\n") for block in response.text.strip().split("\n\n"))
    ]
    assert [kind for kind, _ in events][-1] == "answer"
    assert len(events) > 2
    assert "".join(told["text"] for kind, told in events if kind == "text") != ""
    assert events[-1][1]["answer"] == "one two three"
    assert served.service.asked[0].is_streamed


async def test_error_of_an_answer_told_as_it_is_written_is_an_event(served: Served) -> None:
    served.service.error = QuestionExpired("no answer within 5 s")
    body = {"stream": "door", "question": "Who?"}
    headers = {"Accept": "text/event-stream"}
    response = await served.client.post("/api/v1/ask", json=body, headers=headers)
    assert response.text == 'event: error\ndata: {"error": "no answer within 5 s"}\n\n'


async def test_several_streams_are_asked_at_once(served: Served) -> None:
    body = {"streams": ["door", "yard", "door"], "question": "Who?"}
    response = await served.client.post("/api/v1/ask", json=body)
    assert [one["stream"] for one in response.json()["answers"]] == ["door", "yard"]


async def test_ask_names_one_stream_or_several(served: Served) -> None:
    for body in ({"question": "Who?"}, {"question": "Who?", "stream": "door", "streams": ["door"]}):
        response = await served.client.post("/api/v1/ask", json=body)
        assert "name one stream, or several as streams" in line_of(response, 422)
    body = {"streams": ["door", "dor"], "question": "Who?"}
    assert "'dor'" in line_of(await served.client.post("/api/v1/ask", json=body), 404)


async def test_form_span_and_conversation_reach_the_service(served: Served) -> None:
    turns = [{"question": "Who?", "answer": "A man."}]
    await served.ask(
        type="choice",
        choices=["open", "shut"],
        window_s=5,
        fresh_frames=2,
        recall="always",
        priority=3,
        turns=turns,
    )
    (asked,) = served.service.asked
    assert asked.form == Form(AnswerType.CHOICE, ("open", "shut"))
    assert (asked.window_s, asked.fresh_frames, asked.priority) == (5, 2, 3)
    assert asked.recall == "always"
    assert asked.turns == (("Who?", "A man."),)


async def test_unknown_stream_is_named_with_the_nearest_one(served: Served) -> None:
    assert line_of(await served.ask(stream="dor"), 404) == (
        "there is no stream 'dor'; did you mean 'door'?"
    )
    assert "'dor'" in line_of(await served.client.get("/api/v1/streams/dor"), 404)
    assert served.service.asked == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"stream": "door", "question": ""}, "question: is empty"),
        ({"stream": "door", "question": " \n\t"}, "question: is empty"),
        ({"stream": "door", "question": "x" * 101}, "has 101 characters; at most 100"),
        ({"stream": "door", "question": "x" * 1_000_000}, "has 1000000 characters; at most 100"),
        ({"stream": "door", "question": "\ud800"}, "question: is no valid Unicode"),
        ({"stream": "door", "question": 7}, "question: Input should be a valid string"),
        ({"stream": "door"}, "question: Field required"),
        ({"question": "Who?"}, "name one stream"),
        ({"stream": "door", "question": "Who?", "max_new_tokens": 0}, "max_new_tokens"),
        ({"stream": "door", "question": "Who?", "max_new_tokens": "5"}, "max_new_tokens"),
        ({"stream": "door", "question": "Who?", "timeout": -1}, "timeout"),
        ({"stream": "door", "question": "Who?", "timeout": float("nan")}, "timeout"),
        ({"stream": "door", "question": "Who?", "timeout": 1e9}, "timeout"),
        ({"stream": "door", "question": "Who?", "tiemout": 1}, "tiemout"),
        ([], "body"),
        (None, "body"),
    ],
)
async def test_question_that_can_not_be_asked_is_refused(
    served: Served, body: object, words: str
) -> None:
    content = json.dumps(body)
    response = await served.client.post(
        "/api/v1/ask", content=content, headers={"Content-Type": "application/json"}
    )
    assert words in line_of(response, 422)
    assert served.service.asked == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00garbage", b"\x00" * 5000, b"[" * 100_000, b'{"stream": 1' * 99],
)
async def test_body_of_garbage_is_refused(served: Served, content: bytes) -> None:
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "x"):
        response = await served.client.post(
            "/api/v1/ask", content=content, headers={"Content-Type": kind}
        )
        line_of(response, 422)


async def test_question_sent_as_a_form_or_as_text_is_refused(served: Served) -> None:
    content = b'{"stream": "door", "question": "Who?"}'  # what another site's page could send
    response = await served.client.post(
        "/api/v1/ask", content=content, headers={"Content-Type": "text/plain"}
    )
    line_of(response, 422)
    assert served.service.asked == []


async def raw(port: int, request: bytes) -> bytes:
    """What the server says to `request`, while the request's sender neither ends it nor hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def test_body_announced_too_large_is_refused_before_it_comes(served: Served) -> None:
    head = b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    said = await raw(served.port, head + b"Content-Length: 1000000000\r\n\r\n{")
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b'{"error":"the request\'s body is larger than 2097152 bytes"}' in said


async def test_body_that_grows_too_large_is_refused_before_it_ends(served: Served) -> None:
    head = b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    said = await raw(served.port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 33)
    assert said.startswith(b"HTTP/1.1 413 ")


async def test_a_client_that_sends_before_it_listens_still_reads_why_its_body_is_refused(
    served: Served,
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 65_536

    whole = await served.client.post("/api/v1/ask", content=b"x" * 13_000_000)
    line_of(whole, 413)
    line_of(await served.client.post("/api/v1/ask", content=pieces()), 413)


async def test_a_request_that_is_still_coming_when_all_ends_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"POST /api/v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        await served.client.get("/v1/health/live")  # by now it is being read
    said = await reader.read()
    writer.close()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (TooManyQuestions("256 questions wait already"), 429, "1"),
        (QuestionRejected("the question takes 900 tokens; the memory holds 512"), 422, None),
        (NoVideoYet("stream 'door' has shown no frame yet"), 503, "2"),
        (QuestionExpired("no answer within 5 s"), 504, None),
        (StreamSTTMError("first line\nsecond line"), 500, None),
    ],
)
async def test_each_error_of_a_question_has_its_status(
    served: Served, error: StreamSTTMError, status: int, retry_after: str | None
) -> None:
    served.service.error = error
    response = await served.ask()
    assert line_of(response, status) == str(error).replace("\n", " ")
    assert response.headers.get("Retry-After") == retry_after


async def test_question_that_is_never_answered_expires(served: Served) -> None:
    served.service.never_answers = True
    assert line_of(await served.ask(timeout=0.05), 504) == "no answer within 0.05 s"


async def test_question_before_the_model_is_loaded_is_told_to_come_back(served: Served) -> None:
    served.service.is_ready = False
    response = await served.ask()
    assert line_of(response, 503) == "not ready: the model is being loaded"
    assert response.headers["Retry-After"] == "2"


async def test_defect_of_ours_shows_no_trace(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.service.error = RuntimeError("secret detail")
    line = line_of(await served.ask(), 500)
    assert line == "internal error (RuntimeError); the log says more"
    assert "secret detail" in caplog.text


async def test_streams_are_listed_and_shown(served: Served) -> None:
    body = (await served.client.get("/api/v1/streams")).json()
    assert body["model"] == "echo"
    assert [(s["stream"], s["state"]) for s in body["streams"]] == [
        ("door", "online"),
        ("yard", "connecting"),
    ]
    assert (await served.client.get("/api/v1/streams/yard")).json()["reason"] == "no answer"


async def test_snapshot_is_a_jpeg_or_says_that_there_is_none_yet(served: Served) -> None:
    picture = await served.client.get("/api/v1/streams/door/snapshot.jpg")
    assert picture.content == served.service.pictures["door"]
    assert picture.headers["Content-Type"] == "image/jpeg"
    assert picture.headers["Cache-Control"] == "no-store"
    line = line_of(await served.client.get("/api/v1/streams/yard/snapshot.jpg"), 503)
    assert line == "stream 'yard' has shown no frame yet"
    line_of(await served.client.get("/api/v1/streams/no/snapshot.jpg"), 404)


@pytest.mark.parametrize("name", ["..%2f..%2fetc", "a%20b", "-x", "x" * 65, "%F0%9F%98%80", "a.b"])
async def test_name_that_no_stream_can_have_is_refused(served: Served, name: str) -> None:
    assert (await served.client.get(f"/api/v1/streams/{name}")).status_code in (404, 422)
    line_of(await served.client.get("/api/v1/answers", params={"stream": name}), 422)


async def test_queries_are_listed(served: Served) -> None:
    body = (await served.client.get("/api/v1/queries")).json()
    assert body == {"queries": served.service.queries()}


async def test_answers_are_paged_newest_first_and_filtered(served: Served) -> None:
    for number in range(5):
        served.store.add(make_answer(number=number, stream=("door", "yard")[number % 2]))

    async def page(**params: Any) -> tuple[list[str], int | None]:
        body = (await served.client.get("/api/v1/answers", params=params)).json()
        return [answer["id"] for answer in body["answers"]], body["next"]

    ids, follows = await page(limit=3)
    assert ids == ["q4", "q3", "q2"]
    assert await page(limit=3, before=follows) == (["q1", "q0"], None)
    assert await page(stream="yard") == (["q3", "q1"], None)
    assert await page(query="other") == ([], None)


@pytest.mark.parametrize(
    "params",
    [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"before": "-1"}, {"before": str(2**63)}],
)
async def test_page_that_can_not_be_is_refused(served: Served, params: dict[str, str]) -> None:
    line_of(await served.client.get("/api/v1/answers", params=params), 422)


async def test_store_that_fails_is_one_line(served: Served) -> None:
    served.store.close()
    assert "is closed" in line_of(await served.client.get("/api/v1/answers"), 503)


@asynccontextmanager
async def events(served: Served, **headers: str) -> AsyncIterator[AsyncIterator[str]]:
    async with served.client.stream("GET", "/api/v1/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        assert await anext(lines) == ""
        yield lines


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    """The next event's fields, its data parsed."""
    fields: dict[str, Any] = {}
    async for line in lines:
        if not line:
            break
        key, _, value = line.partition(": ")
        fields[key] = value
    fields["data"] = json.loads(fields["data"])
    return fields


async def test_events_show_answers_and_statuses_as_they_come(served: Served) -> None:
    async with events(served) as lines:
        await until(lambda: bool(served.feed._subscriptions))
        served.feed.publish(make_answer("one\ntwo", number=1), published_at=0.0)
        served.feed.publish(make_status(), published_at=0.0)
        answer, status = await next_event(lines), await next_event(lines)
    assert answer["event"] == answer["data"]["type"] == "answer"
    assert answer["data"]["answer"] == "one\ntwo"
    assert answer["id"] == str(answer["data"]["event"])
    assert (status["event"], status["data"]["state"]) == ("status", "online")


async def test_events_go_on_after_the_last_one_seen(served: Served) -> None:
    for number in range(4):
        served.feed.publish(make_answer(number=number), published_at=0.0)
    async with events(served, **{"Last-Event-ID": "0"}) as lines:
        first = await next_event(lines)
    async with events(served, **{"Last-Event-ID": first["id"]}) as lines:
        assert [(await next_event(lines))["data"]["id"] for _ in range(3)] == ["q1", "q2", "q3"]
    async with events(served, **{"Last-Event-ID": "no number"}) as lines:
        await until(lambda: bool(served.feed._subscriptions))
        served.feed.publish(make_answer(number=9), published_at=0.0)
        assert (await next_event(lines))["data"]["id"] == "q9"


async def test_silence_is_filled_with_comments(tmp_path: Path) -> None:
    async with serving(tmp_path, keepalive=0.02) as served, events(served) as lines:
        assert [await anext(lines) for _ in range(3)] == [": keepalive", "", ": keepalive"]


async def test_reader_that_hangs_up_is_forgotten(served: Served) -> None:
    async with events(served):
        await until(lambda: len(served.feed._subscriptions) == 1)
    await until(lambda: not served.feed._subscriptions)


async def test_events_end_when_the_feed_does(served: Served) -> None:
    async with events(served) as lines:
        served.feed.close()
        assert [line async for line in lines] == []


async def test_metrics_are_in_prometheus_text_format(served: Served) -> None:
    response = await served.client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert "# TYPE stream_sttm_event_to_answer_seconds histogram" in response.text


async def test_health_tells_live_from_ready_from_started(served: Served) -> None:
    async def codes() -> list[int]:
        paths = ("live", "ready", "startup")
        return [(await served.client.get(f"/v1/health/{p}")).status_code for p in paths]

    served.service.is_ready = False
    assert await codes() == [200, 503, 503]
    assert line_of(await served.client.get("/readyz"), 503) == "the model is being loaded"
    served.service.is_ready = True
    assert await codes() == [200, 200, 200]
    served.service.is_ready = False
    assert await codes() == [200, 503, 200]
    assert (await served.client.get("/healthz")).status_code == 200


async def test_token_guards_all_but_page_health_and_schema(tmp_path: Path) -> None:
    guarded = ["/api/v1/streams", "/api/v1/answers", "/api/v1/events", "/metrics", "/nowhere"]
    is_open = [*PAGE, "/openapi.json", "/v1/health/live", "/healthz"]
    async with serving(tmp_path, token=TOKEN) as served:
        for path in guarded:
            response = await served.client.get(path)
            assert "bearer token is needed" in line_of(response, 401)
            assert response.headers["WWW-Authenticate"] == "Bearer"
        line_of(await served.ask(), 401)
        for path in is_open:
            assert (await served.client.get(path)).status_code == 200
        for wrong in ("Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN):
            headers = {"Authorization": wrong.encode()}
            line_of(await served.client.get("/api/v1/streams", headers=headers), 401)
        headers = {"Authorization": f"bearer {TOKEN}".encode()}
        assert (await served.client.get("/api/v1/streams", headers=headers)).status_code == 200
        assert (await served.client.get("/metrics", headers=headers)).status_code == 200


async def test_wrong_path_and_method_are_one_line(served: Served) -> None:
    line_of(await served.client.get("/nowhere"), 404)
    line_of(await served.client.get("/api/v1/ask"), 405)
    line_of(await served.client.get("/docs"), 404)


async def test_schema_names_every_route_of_the_interface(served: Served) -> None:
    paths = (await served.client.get("/openapi.json")).json()["paths"]
    assert {path for path in paths if path.startswith("/api")} == {
        "/api/v1/ask",
        "/api/v1/streams",
        "/api/v1/streams/{name}",
        "/api/v1/streams/{name}/snapshot.jpg",
        "/api/v1/streams/{name}/mosaic",
        "/api/v1/streams/{name}/mosaic.jpg",
        "/api/v1/queries",
        "/api/v1/answers",
        "/api/v1/answers/export",
        "/api/v1/events",
    }
    assert set(paths["/api/v1/ask"]["post"]["responses"]) >= {"200", "404", "413", "422", "429"}


async def test_mosaic_is_told_tile_by_tile_with_the_picture_it_lies_over(served: Served) -> None:
    line_of(await served.client.get("/api/v1/streams/door/mosaic"), 503)
    line_of(await served.client.get("/api/v1/streams/nowhere/mosaic"), 404)
    line_of(await served.client.get("/api/v1/streams/yard/mosaic.jpg"), 503)
    tile = Tile((0, 0, 2, 4), token=7, age_s=1.23456, size=40, kind=TileKind.ABSORBED)
    served.service.mosaics["door"] = Mosaic(2, 4, (tile,), 80, 9, 4.5, 5000.0)
    assert (await served.client.get("/api/v1/streams/door/mosaic")).json() == {
        "rows": 2,
        "columns": 4,
        "tokens": [
            {"box": [0, 0, 2, 4], "token": 7, "age_s": 1.235, "size": 40, "kind": "absorbed"}
        ],
        "before": 80,
        "after": 9,
        "span_s": 4.5,
        "captured_at": 5000.0,
    }
    picture = await served.client.get("/api/v1/streams/door/mosaic.jpg")
    assert picture.headers["Content-Type"] == "image/jpeg"
    assert picture.headers["X-Captured-At"] == "5000.0"


async def test_page_loads_nothing_from_elsewhere(served: Served) -> None:
    page = await served.client.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for path in PAGE:
        text = (await served.client.get(path)).text
        assert text
        assert "http://" not in text.replace("http://www.w3.org/", "")
        assert "https://" not in text
        assert "innerHTML" not in text


async def test_hundred_questions_at_once_are_each_answered(served: Served) -> None:
    answers = await asyncio.gather(*(served.ask(f"Question {n}?") for n in range(100)))
    assert [answer.json()["answer"] for answer in answers] == [f"Question {n}?" for n in range(100)]


async def test_openapi_tells_what_an_answer_looks_like(served: Served) -> None:
    schema = (await served.client.get("/openapi.json")).json()
    told = schema["paths"]["/api/v1/ask"]["post"]["responses"]["200"]["content"]
    assert set(told) == {"application/json", "text/event-stream"}
    answer = schema["components"]["schemas"]["AnswerShape"]["properties"]
    assert set(answer) == set(make_answer().as_dict(published_at=0))
    assert {"fresh", "recalled"} < set(schema["components"]["schemas"]["TokensShape"]["properties"])
