"""One fault of a question has one text: over HTTP, over MQTT, and where the engine is asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.config.question_check import MAX_TURNS, check
from stream_sttm.config.settings import AnsweringSettings, MemorySettings
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import QuestionRejected
from stream_sttm.models.family import VideoLLM
from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.requests import Requests
from stream_sttm.sinks.mqtt.url import parse
from stream_sttm.types import AnswerType, Form, Question
from tests.support.api_server import line_of, serving
from tests.support.scripted_service import Steered

LIMITS = AnsweringSettings(max_question_chars=100)
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"question": " \n"}, "question: is empty; write what you want to know"),
    ({"question": "x" * 101}, "question: has 101 characters; at most 100 are taken"),
    ({"question": "half \ud800"}, "question: is no valid Unicode; send UTF-8"),
    (
        {"question": "a\0"},
        "question: has the control character U+0000; leave it out",
    ),
    (
        {"type": "choice", "choices": ["\ud800", "b"]},
        "choices: is no valid Unicode; send UTF-8",
    ),
    (
        {"type": "choice", "choices": ["a\x1b", "b"]},
        "choices: has the control character U+001B; leave it out",
    ),
    (
        {"type": "json", "json_schema": {"enum": ["\udc00"]}},
        "json_schema: is no valid Unicode; send UTF-8",
    ),
    (
        {"type": "json", "json_schema": {"properties": {"\0": {}}}},
        "json_schema: has the control character U+0000; leave it out",
    ),
    (
        {"type": "choice", "choices": ["a"]},
        "choices: one is no choice; give two or more",
    ),
    (
        {"type": "text", "choices": ["a", "b"]},
        "choices belong to type choice, which needs two or more of them",
    ),
    ({"type": "choice", "choices": ["a", "A"]}, "choices: two are the same"),
    ({"type": "choice", "choices": ["a", " "]}, "choices: each must have 1 to 200 characters"),
    (
        {"type": "choice", "choices": [f"{number}" for number in range(65)]},
        "choices: List should have at most 64 items after validation, not 65",
    ),
    ({"json_schema": {"type": "object"}}, "json_schema belongs to type json"),
    (
        {"type": "json", "json_schema": {"title": "x" * 20_000}},
        "json_schema: has more than 20000 characters",
    ),
    ({"window_s": 0}, "window_s: Input should be greater than 0"),
    ({"fresh_frames": 5}, "fresh_frames: Input should be less than or equal to 4"),
    ({"priority": 101}, "priority: Input should be less than or equal to 100"),
    ({"max_new_tokens": -1}, "max_new_tokens: Input should be greater than or equal to 1"),
    (
        {"turns": [{"question": "x", "answer": "y"}] * (MAX_TURNS + 1)},
        "turns: List should have at most 32 items after validation, not 33",
    ),
    (
        {"turns": [{"question": "x", "answer": "y" * 100}]},
        "question: has 105 characters; at most 100 are taken",
    ),
    (
        {"turns": [{"question": "x", "answer": "\udc00"}]},
        "question: is no valid Unicode; send UTF-8",
    ),
]


def _question(fields: dict[str, Any]) -> Question:
    schema = fields.get("json_schema")
    return Question(
        id="q",
        stream="door",
        text=fields.get("question", "Who?"),
        asked_at=1000.0,
        max_new_tokens=fields.get("max_new_tokens", 4),
        form=Form(
            AnswerType(fields.get("type", "text")),
            tuple(fields.get("choices", ())),
            "" if schema is None else json.dumps(schema),
        ),
        window_s=fields.get("window_s"),
        fresh_frames=fields.get("fresh_frames"),
        priority=fields.get("priority", 0),
        turns=tuple((turn["question"], turn["answer"]) for turn in fields.get("turns", ())),
    )


async def _over_mqtt(body: dict[str, Any]) -> str:
    """What an asker is told on its error topic."""
    service, replies = Steered(), []
    service.answering = LIMITS

    async def reply(message: Message) -> None:
        replies.append(json.loads(message.payload)["error"])

    endpoint = parse("mqtt://broker/test")
    requests = Requests(endpoint, service, reply=reply, count=lambda _: None)
    async with asyncio.TaskGroup() as group:
        requests.begin(Incoming("test/cam/ask", json.dumps(body).encode()), group)
    assert service.asked == []
    (line,) = replies
    return str(line)


@pytest.mark.parametrize(("fields", "text"), FAULTS, ids=[text[:40] for _, text in FAULTS])
async def test_a_fault_of_a_question_has_one_text_wherever_it_comes_in(
    tiny_model: VideoLLM, tmp_path: Path, fields: dict[str, Any], text: str
) -> None:
    body = {"question": "Who?", **fields}
    async with serving(tmp_path) as served:
        content = json.dumps({"stream": "door", **body})
        headers = {"Content-Type": "application/json"}
        response = await served.client.post("/api/v1/ask", content=content, headers=headers)
    assert line_of(response, 422) == text
    if "turns" not in fields:
        assert await _over_mqtt(body) == text
    engine = Engine(
        tiny_model, memory=MemorySettings(window_tokens=512, horizon=1920), answering=LIMITS
    )
    engine.open("door", fps=2)
    with pytest.raises(QuestionRejected) as refused:
        engine.ask(_question(fields))
    assert str(refused.value) == text


def test_choices_that_are_no_unicode_are_refused() -> None:
    question = _question({"type": "choice", "choices": ["a", "\ud800"]})
    with pytest.raises(QuestionRejected, match="choices: is no valid Unicode"):
        check(question, LIMITS)


@pytest.mark.parametrize("schema", ["", "{", '{"a": ' * 5000])
def test_a_schema_that_can_not_be_read_is_left_to_its_grammar(schema: str) -> None:
    question = Question("q", "door", "Who?", 1000.0, 4, form=Form(AnswerType.JSON, (), schema))
    check(question, LIMITS)


def test_how_long_an_answer_can_be_is_the_engine_s_to_say() -> None:
    check(_question({"max_new_tokens": 5000}), LIMITS)
