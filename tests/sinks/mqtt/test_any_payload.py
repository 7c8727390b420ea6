"""Whatever a message holds and whatever handling it raises, its sender gets one line, and nothing else ends."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.requests import Requests
from stream_sttm.sinks.mqtt.url import parse
from stream_sttm.types import Answer, Question
from tests.support.scripted_service import Steered

_PARTS = [
    *(
        b"{",
        b"}",
        b'"question": ',
        b'"x"',
        b'"\\ud800"',
        b'"\\u0000"',
        b", ",
        b'"id": ',
        b"[",
        b"]",
    ),
    *(b'"type": "choice"', b'"choices": ', b'"type": "json"', b'"json_schema": ', b"1e999", b"NaN"),
    *(b"\xff", b"\x00", "日".encode(), b"\n", b'"priority": ', b"-5", b"9" * 5000, b"[" * 500),
]


async def _replies(
    service: Steered, payloads: list[bytes], topic: str = "test/cam/ask"
) -> list[str]:
    told: list[str] = []

    async def reply(message: Message) -> None:
        told.append(json.loads(message.payload)["error"])

    endpoint = parse("mqtt://127.0.0.1:1883/test")
    requests = Requests(endpoint, service, reply=reply, count=lambda _: None)
    for payload in payloads:
        async with asyncio.TaskGroup() as group:
            requests.begin(Incoming(topic, payload), group)
    return told


async def test_no_payload_ends_otherwise_than_in_a_question_or_a_line() -> None:
    chance, service = random.Random(7), Steered()
    payloads = [b"".join(chance.choices(_PARTS, k=chance.randrange(9))) for _ in range(500)]
    told = await _replies(service, payloads)
    assert len(told) + len(service.asked) == len(payloads)
    assert all(line and "\n" not in line for line in told)
    for question in service.asked:
        question.text.encode()
        assert "\0" not in question.text


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            r'{"question": "x", "type": "choice", "choices": ["\ud800", "b"]}',
            "choices: is no valid Unicode; send UTF-8",
        ),
        (
            r'{"question": "x", "type": "json", "json_schema": {"title": "\udc00"}}',
            "json_schema: is no valid Unicode; send UTF-8",
        ),
        (r'{"question": "\ud83d"}', "question: is no valid Unicode; send UTF-8"),
        ("a\0b", "question: has the control character U+0000; leave it out"),
    ],
)
async def test_the_field_with_the_fault_is_named(body: str, line: str) -> None:
    assert await _replies(Steered(), [body.encode()]) == [line]


async def test_an_error_that_nobody_foresaw_ends_its_message_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Steered):
        async def ask(self, question: Question) -> Answer:
            if question.text == "bad":
                raise TypeError("two\nlines")
            return await super().ask(question)

    service = Failing()
    told = await _replies(service, [b"bad", b"good"])
    assert told == ["could not be handled; the log says why"]
    assert [question.text for question in service.asked] == ["good"]
    assert "Traceback" not in caplog.text
