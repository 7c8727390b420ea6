"""Kept answers over HTTP: every filter, the search, and all of them as a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.types import AnswerType, Form
from tests.support.answers import make_answer
from tests.support.api_server import Served, line_of, serving


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as one:
        for number, said in enumerate(["a red bus", "no", "a blue bus", "yes"]):
            answer = make_answer(said, number=number, stream=("door", "yard")[number % 2])
            form = Form(AnswerType.YES_NO if number % 2 else AnswerType.TEXT)
            question = replace(answer.question, form=form)
            one.store.add(replace(answer, question=question, answered_at=100.0 + number))
        yield one


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["q3", "q2", "q1", "q0"]),
        ({"type": "yes_no"}, ["q3", "q1"]),
        ({"text": "BUS blue"}, ["q2"]),
        ({"text": '"bus" OR NEAR('}, []),
        ({"since": 101, "until": 103}, ["q2", "q1"]),
        ({"text": "bus", "stream": "door", "limit": 1}, ["q2"]),
        ({"before": 2}, ["q0"]),
    ],
)
async def test_answers_are_narrowed(
    served: Served, asked: dict[str, Any], expected: list[str]
) -> None:
    reply = await served.client.get("/api/v1/answers", params=asked)
    assert [answer["id"] for answer in reply.json()["answers"]] == expected


@pytest.mark.parametrize(
    "asked", [{"type": "no"}, {"since": "nan"}, {"until": "x"}, {"text": ""}, {"format": "xml"}]
)
async def test_filter_that_can_not_be_is_refused(served: Served, asked: dict[str, str]) -> None:
    line_of(await served.client.get("/api/v1/answers/export", params=asked), 422)


async def test_all_answers_come_as_lines_or_table(served: Served) -> None:
    for number in range(4, 1300):  # more than a page of the store
        served.store.add(make_answer(number=number))
    reply = await served.client.get("/api/v1/answers/export")
    assert reply.headers["Content-Disposition"] == 'attachment; filename="answers.jsonl"'
    ids = [json.loads(line)["id"] for line in reply.text.splitlines()]
    assert ids == [f"q{number}" for number in range(1300)]
    reply = await served.client.get("/api/v1/answers/export?format=csv&text=bus")
    assert reply.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert [row["answer"] for row in rows] == ["a red bus", "a blue bus"]
    reply = await served.client.get("/api/v1/answers/export?query=none")
    assert (reply.status_code, reply.text) == (200, "")


async def test_store_that_fails_is_told_before_the_file_begins(served: Served) -> None:
    served.store.close()
    assert "is closed" in line_of(await served.client.get("/api/v1/answers/export"), 503)
