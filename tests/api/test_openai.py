"""OpenAI's interface as its official client sees it, and one ask told as it is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from stream_sttm.api.openai_options import Cut
from stream_sttm.errors import QuestionExpired, TooManyQuestions
from stream_sttm.types import AnswerType
from tests.support.api_server import Served, serving

DOOR = {"type": "stream", "stream": {"name": "door", "window_s": 60}}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as one:
        yield one


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0
    ) as one:
        yield one


def user(*content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return {"role": "user", "content": parts}


async def asked(client: openai.AsyncOpenAI, *messages: Any, **more: Any) -> Any:
    return await client.chat.completions.create(
        **{"model": "echo", "messages": list(messages), **more}
    )


async def test_models_are_listed_with_the_streams_they_look_at(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["echo", "echo/door", "echo/yard"]
    assert (await client.models.retrieve("echo/door")).owned_by == "stream-sttm"
    with pytest.raises(openai.NotFoundError, match="there is no stream 'dor'; did you mean 'door'"):
        await client.models.retrieve("echo/dor")


async def test_stream_is_named_by_a_content_part(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    done = await asked(client, user(DOOR, "Who is there?"), max_tokens=4000)
    assert done.choices[0].message.content == "Who is there?"
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.prompt_tokens == 49
    assert done.stream_sttm["stream"] == "door"
    (question,) = served.service.asked
    assert (question.stream, question.window_s, question.max_new_tokens) == ("door", 60, 4000)


async def test_stream_is_named_by_the_model(served: Served, client: openai.AsyncOpenAI) -> None:
    await asked(client, user("Who?"), model="echo/yard")
    assert served.service.asked[0].stream == "yard"


async def test_conversation_goes_on(served: Served, client: openai.AsyncOpenAI) -> None:
    system = {"role": "system", "content": "Be short."}
    said = {"role": "assistant", "content": "A man."}
    await asked(client, system, user(DOOR, "Who is it?"), said, user("What does he hold?"))
    (question,) = served.service.asked
    assert question.turns == (("Be short.\nWho is it?", "A man."),)
    assert question.text == "What does he hold?"


async def test_words_come_as_they_are_written(client: openai.AsyncOpenAI) -> None:
    chunks = [
        chunk async for chunk in await asked(client, user(DOOR, "one two three"), stream=True)
    ]
    words = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(words) == "one two three"
    assert len([one for one in words if one]) > 1
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_response_format_becomes_the_form_of_the_answer(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema}}
    await asked(client, user(DOOR, "How many?"), response_format=wanted)
    await asked(client, user(DOOR, "How many?"), response_format={"type": "json_object"})
    first, second = (question.form for question in served.service.asked)
    assert first.type is second.type is AnswerType.JSON
    assert json.loads(first.json_schema) == schema
    assert second.json_schema == ""


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([user("Who?")], "say which stream is meant"),
        ([user(DOOR, {"type": "stream", "stream": {"name": "yard"}}, "Who?")], "name two streams"),
        ([user(DOOR, "Who?"), {"role": "assistant", "content": "A man."}], "must be the user's"),
        ([{"role": "assistant", "content": "A man."}, user(DOOR, "Who?")], "follows no question"),
        ([user(DOOR)], "question: is empty"),
        ([user(DOOR, "x" * 101)], "has 101 characters; at most 100"),
        ([user({"type": "image_url", "image_url": {"url": "x"}}, "Who?")], "image_url"),
        ([], "at least 1 item"),
    ],
)
async def test_what_can_not_be_asked_is_refused_in_a_line(
    client: openai.AsyncOpenAI, messages: list[Any], line: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=line) as caught:
        await asked(client, *messages)
    assert "\n" not in caught.value.body["message"]


async def test_errors_are_what_the_client_knows(served: Served, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o'; there is 'echo'"):
        await asked(client, user("Who?"), model="gpt-4o")
    served.service.error = TooManyQuestions("256 questions wait already")
    with pytest.raises(openai.RateLimitError, match="256 questions wait"):
        await asked(client, user(DOOR, "Who?"))
    served.service.is_ready = False
    with pytest.raises(openai.InternalServerError, match="not ready: the model is being loaded"):
        await asked(client, user(DOOR, "Who?"))


async def test_error_while_writing_ends_the_stream_with_it(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    served.service.error = QuestionExpired("no answer within 5 s")
    with pytest.raises(openai.APIError, match="no answer within 5 s"):
        async for _ in await asked(client, user(DOOR, "Who?"), stream=True):
            pass


async def test_key_is_the_token(tmp_path: Path) -> None:
    async with serving(tmp_path, token="right") as served:
        url = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="right", max_retries=0) as client:
            assert (await asked(client, user(DOOR, "Who?"))).choices[0].message.content == "Who?"
        async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await asked(client, user(DOOR, "Who?"))


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (" ", "a"),
        (["white", "cross"], "a blue "),
        (["nowhere"], "a blue cross and a white cross"),
        ("and a", "a blue cross "),
        (["a"], ""),
        ("cross", "a blue "),
        ([], "a blue cross and a white cross"),
        (None, "a blue cross and a white cross"),
    ],
)
async def test_answer_ends_before_the_first_stop_whole_or_as_it_is_written(
    client: openai.AsyncOpenAI, stop: Any, text: str
) -> None:
    said = "a blue cross and a white cross"
    done = await asked(client, user(DOOR, said), stop=stop)
    assert done.choices[0].message.content == text
    assert done.choices[0].finish_reason == "stop"
    chunks = [
        chunk async for chunk in await asked(client, user(DOOR, said), stop=stop, stream=True)
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_what_might_begin_a_stop_is_not_told_before_it_is_clear() -> None:
    for stops in (["abc", "xy"], ["c"], ["bcd"], ["zzzz"], ["ab", "abc"]):
        for text in ("ababcabxy", "aaabbbccc", "", "xaby", "abcd"):
            cut, told = Cut(stops), ""
            for index, letter in enumerate(text):
                told += cut.more(letter, is_last=index == len(text) - 1)
            ends = [text.find(stop) for stop in stops if stop in text]
            assert told == text[: min(ends, default=len(text))], (stops, text)


async def test_stops_are_few_and_not_empty(client: openai.AsyncOpenAI) -> None:
    for stop in ("", ["a", ""], ["a", "b", "c", "d", "e"], ["x" * 257]):
        with pytest.raises(openai.UnprocessableEntityError, match="stop"):
            await asked(client, user(DOOR, "Who?"), stop=stop)


@pytest.mark.parametrize(
    ("options", "has_usage"),
    [
        ({"include_usage": True}, True),
        ({}, False),
        ({"include_usage": False}, False),
        (None, False),
    ],
)
async def test_tokens_are_told_in_a_last_chunk_where_that_is_asked(
    client: openai.AsyncOpenAI, options: Any, has_usage: bool
) -> None:
    more = {} if options is None else {"stream_options": options}
    stream = await asked(client, user(DOOR, "one two"), stream=True, **more)
    *chunks, last = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    if has_usage:
        assert last.choices == []
        assert (last.usage.prompt_tokens, last.usage.total_tokens) == (
            49, 49 + last.usage.completion_tokens
        )  # fmt: skip
    else:
        assert last.usage is None
        assert last.choices[0].finish_reason == "stop"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tools", [TOOL]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("logit_bias", {"1": -100}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x", "format": "wav"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("n", 2),
        ("web_search_options", {}),
        ("stream_options", {"include_usage": True}),  # without stream
        ("guided_choice", ["a", "b"]),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_its_name(
    served: Served, client: openai.AsyncOpenAI, key: str, value: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{key}: ") as caught:
        await asked(client, user(DOOR, "Who?"), extra_body={key: value})
    assert caught.value.body == {
        "message": caught.value.body["message"],
        "type": "invalid_request_error",
        "param": key,
        "code": "unsupported_parameter",
    }
    assert "\n" not in caught.value.body["message"]
    assert served.service.asked == []


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 0.5, "top_p": 0.1, "seed": 7, "presence_penalty": 1, "user": "me"},
        {"tools": [], "tool_choice": "none", "logprobs": False, "logit_bias": {}, "n": 1},
        {"tools": None, "functions": None, "n": None, "modalities": ["text"], "audio": None},
        {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "unheard_of": [1]},
        {"tool_choice": "auto", "parallel_tool_calls": True, "reasoning_effort": "low"},
    ],
)
async def test_what_asks_for_nothing_else_is_left_alone(
    client: openai.AsyncOpenAI, body: dict[str, Any]
) -> None:
    done = await asked(client, user(DOOR, "Who?"), extra_body=body)
    assert done.choices[0].message.content == "Who?"


async def test_every_answer_has_a_number_of_its_own(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    done = await asked(client, user(DOOR, "Who?"))
    assert done._request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("echo/dor")
    assert caught.value.request_id not in (None, done._request_id)
    assert "x-request-id" not in (await served.client.get("/v1/health/live")).headers


async def test_paths_that_are_not_there_are_told_in_openais_shape(
    served: Served, client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="echo", input="x")
    assert caught.value.body["type"] == "invalid_request_error"
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ):
        reply = await served.client.request(method, path)
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert reply.headers["x-request-id"]
    assert isinstance((await served.client.get("/v1/health/x")).json()["error"], str)
