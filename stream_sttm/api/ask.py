"""The HTTP route that asks one stream or several, with the answer as JSON or streamed as server-sent events.

Knows the service only by `Service`. Faults are raised as StreamSTTMError, which app.py turns into a status and a line.
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

MAX_STREAMS = 64  # in one request
EVENT_STREAM = "text/event-stream"
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Turn(Section):
    """An earlier question and its answer."""

    question: str
    answer: str


class AskRequest(AskSettings):
    """A question about the memory of a stream, or of several."""

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
        """Return the question for one stream."""
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
    """Return the route that asks."""
    router = APIRouter()

    @router.post("/api/v1/ask", response_model=None, responses=ANSWERED)
    async def ask(
        asked: AskRequest, request: Request, accept: Annotated[str, Header()] = ""
    ) -> Response:
        """Ask the memory of a stream, or of several, now.

        With `Accept: text/event-stream` the answer of one stream is streamed while it is written: events `text` with
        the new part, then `answer` or `error`. Of several streams each is answered or refused by itself.
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
            events = _events(service, questions[0])
            return StreamingResponse(events, media_type=EVENT_STREAM, headers=UNBUFFERED)
        if asked.streams is None:
            answer = await answered(service, questions[0])
            return JSONResponse(answer.as_dict(published_at=time.time()))
        return JSONResponse({"answers": await _all(service, questions)})

    return router


def caller_of(request: Request) -> str | None:
    """Return the name of the token that calls, None where none is needed."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return None if caller is None else caller.name


def may_see(request: Request, stream: str) -> bool:
    """Return whether the caller's token is valid for a stream."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller is None or caller.may_see(stream)


def check(service: Service, questions: Sequence[Question], request: Request) -> None:
    """Raise where one of the questions can't be asked, by this caller or at all, or the service is not ready."""
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
    """Return the answer. Raises QuestionError where there is none in time."""
    try:
        async with asyncio.timeout(question.timeout):
            return await service.ask(question)
    except TimeoutError as error:
        raise QuestionExpired(f"no answer within {question.timeout:g} s") from error


async def _all(service: Service, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Return each question's answer or error, in order."""

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
    return f"event: {kind}\ndata: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"


async def written(service: Service, question: Question) -> AsyncIterator[tuple[str, Answer | None]]:
    """Yield the new part of an answer while it is written, and at the end the rest together with the answer.

    A slow reader gets more at a time, and nothing queues up. Raises QuestionError where there is no answer.
    """
    so_far, sent, more = "", 0, asyncio.Event()

    def on_text(text: str) -> None:
        nonlocal so_far
        so_far = text
        more.set()

    asking = asyncio.create_task(service.ask(question, on_text), name=f"ask[{question.stream}]")
    asking.add_done_callback(lambda _: more.set())
    try:
        while True:
            await more.wait()
            more.clear()
            if asking.done():
                break
            if len(so_far) > sent:
                yield so_far[sent:], None
                sent = len(so_far)
        answer = await asking
        yield answer.text[sent:], answer
    finally:
        asking.cancel()


def status_of(service: Service, name: str) -> StreamStatus:
    """Return a stream's status. Raises UnknownStream."""
    streams = {status.stream: status for status in service.streams()}
    if name not in streams:
        near = registry.suggest(name[:64], sorted(streams))
        raise UnknownStream(f"there is no stream {name[:64]!r}{near}")
    return streams[name]
