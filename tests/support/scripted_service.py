"""A service as its sinks see it: streams and queries that a test sets, questions that wait at a gate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.errors import NotPossible, UnknownStream
from stream_sttm.stats import Stats
from stream_sttm.types import Answer, Question, StreamState, StreamStatus
from tests.support.answers import make_answer, make_status

QUERIES: dict[str, dict[str, Any]] = {
    "person": {"type": "yes_no", "ask": "Is someone there?"},
    "colour": {"type": "choice", "choices": ["red", "light blue"], "ask": "Which colour?"},
    "count": {"type": "number", "ask": "How many?"},
    "scene": {"ask": "What is there?"},
    "facts": {"type": "json", "ask": "Tell all."},
}


class Steered:
    """Commands that are written down; a stream `cam` and a stream `door-2` with a query of each type."""

    def __init__(self, *, is_switchable: bool = True) -> None:
        self.model = "demo"
        self.answering = AnsweringSettings()
        self.is_switchable = is_switchable
        self.states = {"cam": StreamState.ONLINE, "door-2": StreamState.ONLINE}
        self.queries = {
            name: QuerySettings.model_validate({"streams": ["cam", "door-2"], **query})
            for name, query in QUERIES.items()
        }
        self.answers: dict[tuple[str, str], Answer] = {}  # by stream and query, known now
        self.paused: set[tuple[str, str]] = set()
        self.asked: list[Question] = []
        self.triggered: list[tuple[str, str]] = []
        self.resent = 0
        self.sightings: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._stats = Stats()

    def streams(self) -> list[StreamStatus]:
        return [make_status(name, state) for name, state in self.states.items()]

    def standing(self) -> Mapping[str, QuerySettings]:
        return self.queries

    def is_query_enabled(self, query: str, stream: str) -> bool:
        return (stream, query) not in self.paused

    def newest(self, query: str, stream: str) -> Answer | None:
        return self.answers.get((stream, query))

    def known(self, answer: Answer) -> Answer:
        self.answers[answer.question.stream, answer.question.query or ""] = answer
        return answer

    def stats(self) -> dict[str, Any]:
        return self._stats.collect(self.streams(), model=self.model)

    def snapshot(self, stream: str) -> bytes | None:
        return b"a picture of " + stream.encode() if stream == "cam" else None

    def resend(self) -> None:
        self.resent += 1

    async def ask(self, question: Question) -> Answer:
        if question.stream not in self.states:
            raise UnknownStream(f"there is no stream {question.stream!r}")
        self.asked.append(question)
        await self.gate.wait()
        return replace(make_answer("two"), question=question)

    def sighted(self, payload: bytes) -> None:
        self.sightings.append(payload)

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        if stream not in self.states:
            raise NotPossible(f"there is no stream {stream!r}")
        self.states[stream] = StreamState.ONLINE if is_enabled else StreamState.DISABLED

    async def set_query_enabled(self, query: str, stream: str, is_enabled: bool) -> None:
        (self.paused.discard if is_enabled else self.paused.add)((stream, query))

    async def trigger(self, query: str, stream: str) -> None:
        self.triggered.append((query, stream))
