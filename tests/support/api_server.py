"""The HTTP interface on a real port, over a service whose answers are the questions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream_sttm.api.app import create_app
from stream_sttm.api.feed import Feed
from stream_sttm.config.http import HttpSettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.outcomes import Mosaic
from stream_sttm.storage.answers import AnswerStore
from stream_sttm.types import Answer, Question, StreamState, StreamStatus
from tests.support.answers import make_answer, make_status
from workers import gateway


class EchoService:
    """A service whose answers are the questions, until it is told to fail."""

    model = "echo"
    answering = AnsweringSettings(max_question_chars=100, timeout=5)

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.error: Exception | None = None
        self.never_answers = False
        self.is_ready = True
        self.pictures = {"door": b"\xff\xd8picture\xff\xd9"}
        self.mosaics: dict[str, Mosaic] = {}

    def streams(self) -> list[StreamStatus]:
        return [make_status("door"), make_status("yard", StreamState.CONNECTING, "no answer")]

    def queries(self) -> list[dict[str, Any]]:
        return [{"name": "look", "streams": ["door"], "ask": "Who?", "every": 2.0}]

    model_note = None

    def readiness(self) -> tuple[bool, str]:
        return self.is_ready, "" if self.is_ready else "the model is being loaded"

    def snapshot(self, stream: str) -> bytes | None:
        return self.pictures.get(stream)

    def remembered(self, stream: str) -> tuple[bytes, float] | None:
        return (self.pictures[stream], 5000.0) if stream in self.pictures else None

    async def mosaic(self, stream: str) -> Mosaic | None:
        return self.mosaics.get(stream)

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> Answer:
        self.asked.append(question)
        if self.never_answers:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        words = question.text.split(" ")
        for count in range(1, len(words)):
            if on_text is not None:
                on_text(" ".join(words[:count]))
                await asyncio.sleep(0)
        return replace(make_answer(question.text, stream=question.stream), question=question)


class Served:
    """A running interface, what lies behind it, and a client for it."""

    def __init__(self, folder: Path, *, http: HttpSettings, keepalive: float) -> None:
        self.service = EchoService()
        self.store = AnswerStore(folder / "answers.db")
        self.feed = Feed(history=8)
        self.app = create_app(
            self.service,
            store=self.store,
            feed=self.feed,
            http=http,
            keepalive=keepalive,
        )
        self.client: httpx.AsyncClient
        self.port = 0

    async def ask(self, question: object = "Who?", **more: Any) -> httpx.Response:
        body = {"stream": "door", "question": question, **more}
        return await self.client.post("/api/v1/ask", json=body)


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    token: str | None = None,
    keepalive: float = 15.0,
    http: HttpSettings | None = None,
) -> AsyncIterator[Served]:
    http = http or HttpSettings.model_validate({"token": token})
    served = Served(folder, http=http, keepalive=keepalive)
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work = gateway.run(
        served.app, "127.0.0.1", 0, ready=bound.set_result, closing=served.feed.close
    )
    task = asyncio.create_task(work)
    try:
        served.port = await bound
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{served.port}", timeout=20, trust_env=False
        ) as served.client:
            yield served
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        served.store.close()


def line_of(response: httpx.Response, status: int) -> str:
    """Return the error line of a response, which must be the whole of its JSON."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    assert "Traceback" not in body["error"]
    return str(body["error"])
