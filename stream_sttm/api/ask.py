"""Asking over HTTP: one stream or several, the answer whole as JSON or told as it is written (server-sent events).

Knows the service only by `Service`. What is wrong with a request is raised as an error of ours, which app.py turns into
a status and a line.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from stream_sttm import registry
from stream_sttm.api.auth import Caller
from stream_sttm.api.schemas import ANSWERED
from stream_sttm.api.service import Service
from stream_sttm.config import question_check
from stream_sttm.config.queries import AskSettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.config.streams import Section
from stream_sttm.errors import QuestionExpired, QuestionRejected, StreamSTTMError, UnknownStream
from stream_sttm.types import Answer, Question, StreamStatus

MAX_STREAMS = 64  # asked at once
EVENT_STREAM = "text/event-stream"
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Turn(Section):
    """What was asked and answered before."""

    question: str
    answer: str


class AskRequest(AskSettings):
    """A question to the memory of a stream, or of several."""

    model_config = ConfigDict(strict=True)
    stream: str | None = Field(None, description="Name of a stream.", examples=["door"])
    streams: list[str] | None = Field(
        None, min_length=1, max_length=MAX_STREAMS, description="Names of several, instead."
    )
    question: str = Field(description="The question, in words.", examples=["Is someone there?"])
    turns: list[Turn] = Field(
        [],
        max_length=question_check.MAX_TURNS,
        description="The conversation that it follows up, oldest turn first.",
    )
    timeout: float | None = Field(
        None, gt=0, le=300, allow_inf_nan=False, description="Seconds to wait for the answer."
    )

    @model_validator(mode="after")
    def _is_asked_of_something(self) -> AskRequest:
        if (self.stream is None) == (self.streams is None):
            raise ValueError("name one stream, or several as streams")
        return self

    def of(
        self,
        stream: str,
        answering: AnsweringSettings,
        *,
        caller: str | None,
        is_streamed: bool,
    ) -> Question:
        """The question to one stream."""
        return Question(
            id=uuid4().hex,
            stream=stream,
            text=self.question,
            asked_at=time.time(),
            max_new_tokens=self.max_new_tokens or answering.max_new_tokens,
            timeout=self.timeout or answering.timeout,
            form=self.form,
            window_s=self.window_s,
            fresh_frames=self.fresh_frames,
            recall=self.recall,
            priority=self.priority,
            turns=tuple((turn.question, turn.answer) for turn in self.turns),
            is_streamed=is_streamed,
            caller=caller,
        )


def routes(service: Service) -> APIRouter:
    """The route that asks."""
    router = APIRouter()

    @router.post("/api/v1/ask", response_model=None, responses=ANSWERED)
    async def ask(
        asked: AskRequest, request: Request, accept: Annotated[str, Header()] = ""
    ) -> Response:
        """Ask the memory of a stream, or of several, now.

        With `Accept: text/event-stream` the answer to one stream is told as it is written: events `text` with what is
        new, then `answer` or `error`. Of several streams each is answered or refused by itself.
        """
        is_streamed = EVENT_STREAM in accept
        if is_streamed and asked.streams is not None:
            raise QuestionRejected("streams: only one stream's answer can be told as it is written")
        names = list(dict.fromkeys(asked.streams or [asked.stream or ""]))
        limits = service.answering
        caller = caller_of(request)
        questions = [
            asked.of(name, limits, caller=caller, is_streamed=is_streamed) for name in names
        ]
        check(service, questions, request)
        if is_streamed:
            told = _events(service, questions[0])
            return StreamingResponse(told, media_type=EVENT_STREAM, headers=UNBUFFERED)
        if asked.streams is None:
            answer = await answered(service, questions[0])
            return JSONResponse(answer.as_dict(published_at=time.time()))
        return JSONResponse({"answers": await _all(service, questions)})

    return router


def caller_of(request: Request) -> str | None:
    """The name of the token that calls, None where none is needed."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return None if caller is None else caller.name


def may_see(request: Request, stream: str) -> bool:
    """Whether whoever calls may know of a stream."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller is None or caller.may_see(stream)


def check(service: Service, questions: Sequence[Question], request: Request) -> None:
    """Raise where one of the questions can't be asked, by whoever calls, or nothing can be answered yet."""
    caller: Caller | None = getattr(request.state, "caller", None)
    for question in questions:
        if caller is not None and not caller.may_rank(question.priority):
            raise HTTPException(
                403, f"priority: token {caller.name!r} may ask with {caller.max_priority} at most"
            )
        if not may_see(request, question.stream):
            raise HTTPException(403, f"the token is not for stream {question.stream[:64]!r}")
        question_check.check(question, service.answering)
        status_of(service, question.stream)
    is_ready, reason = service.readiness()
    if not is_ready:
        raise HTTPException(503, f"not ready: {reason}")


async def answered(service: Service, question: Question) -> Answer:
    """The answer; raises QuestionError where there is none in time."""
    try:
        async with asyncio.timeout(question.timeout):
            return await service.ask(question)
    except TimeoutError as error:
        raise QuestionExpired(f"no answer within {question.timeout:g} s") from error


async def _all(service: Service, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Each question's answer or error, in their order."""

    async def one(question: Question) -> dict[str, Any]:
        try:
            answer = await answered(service, question)
        except StreamSTTMError as error:
            return {"stream": question.stream, "error": " ".join(str(error).split())}
        return answer.as_dict(published_at=time.time())

    return await asyncio.gather(*(one(question) for question in questions))


async def _events(service: Service, question: Question) -> AsyncIterator[str]:
    try:
        async for text, answer in written(service, question):
            if answer is None:
                yield _event("text", {"text": text})
            else:
                yield _event("answer", answer.as_dict(published_at=time.time()))
    except StreamSTTMError as error:
        yield _event("error", {"error": " ".join(str(error).split())})


def _event(kind: str, content: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


async def written(service: Service, question: Question) -> AsyncIterator[tuple[str, Answer | None]]:
    """What is new of an answer while it is written, and what is missing at the end together with the answer.

    A slow reader gets more at a time; nothing queues up. Raises QuestionError where there is no answer.
    """
    so_far, told, more = "", 0, asyncio.Event()

    def hear(text: str) -> None:
        nonlocal so_far
        so_far = text
        more.set()

    asking = asyncio.create_task(service.ask(question, hear), name=f"ask[{question.stream}]")
    asking.add_done_callback(lambda _: more.set())
    try:
        while True:
            await more.wait()
            more.clear()
            if asking.done():
                break
            if len(so_far) > told:
                yield so_far[told:], None
                told = len(so_far)
        answer = await asking
        yield answer.text[told:], answer
    finally:
        asking.cancel()


def status_of(service: Service, name: str) -> StreamStatus:
    """A stream's status; raises UnknownStream."""
    streams = {status.stream: status for status in service.streams()}
    if name not in streams:
        near = registry.suggest(name[:64], sorted(streams))
        raise UnknownStream(f"there is no stream {name[:64]!r}{near}")
    return streams[name]
