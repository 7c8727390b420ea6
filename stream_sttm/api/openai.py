"""The part of OpenAI's HTTP interface that fits: models, and chat completions about a stream.

The stream is named by a content part {"type": "stream", "stream": {"name": "door", "window_s": 60}}, or by the model's
name, "demo/door". A single stream needs no name. Errors have OpenAI's form. Follows
https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError
from starlette.exceptions import HTTPException

from stream_sttm.api import ask
from stream_sttm.api.openai_options import MAX_STOPS, Cut, Stop, refused
from stream_sttm.api.service import Service
from stream_sttm.config.queries import FormSettings
from stream_sttm.config.question_check import MAX_TURNS
from stream_sttm.errors import QuestionRejected, StreamSTTMError
from stream_sttm.types import FREE_TEXT, Answer, AnswerType, Form, Question

_BASE, _HEALTH = "/v1/", "/v1/health/"


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="ignore"
    )  # OpenAI's clients send many fields that are not needed here


class TextPart(_Body):
    """A text."""

    type: Literal["text", "input_text"]
    text: str


class StreamLook(_Body):
    """The stream to ask, and the seconds to look at."""

    name: str
    window_s: float | None = Field(None, gt=0, allow_inf_nan=False)


class StreamPart(_Body):
    """A content part that names the stream to ask."""

    type: Literal["stream"]
    stream: StreamLook


class Message(_Body):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | StreamPart, Discriminator("type")]] = Field(
        max_length=1_000_000
    )

    @property
    def words(self) -> str:
        """Its text parts, joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def looks(self) -> list[StreamLook]:
        """The streams it names."""
        if isinstance(self.content, str):
            return []
        return [part.stream for part in self.content if isinstance(part, StreamPart)]


class NamedSchema(_Body):
    """A schema as OpenAI wraps it."""

    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(_Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None


class StreamOptions(_Body):
    """What else is sent while an answer is written."""

    include_usage: bool = False


class ChatRequest(_Body):
    """A conversation about a stream. `seed`, `temperature` and the like are ignored: decoding is greedy."""

    model_config = ConfigDict(extra="allow")  # so that what would change the answer can be refused
    model: str
    messages: list[Message] = Field(min_length=1, max_length=2 * MAX_TURNS + 1)
    stream: bool = False
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat = ResponseFormat()
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The words before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def is_ours(path: str) -> bool:
    """Whether a path is one under which OpenAI's clients look."""
    return path.startswith(_BASE) and not path.startswith(_HEALTH)


def routes(service: Service) -> APIRouter:
    """Return the routes `/v1/models` and `/v1/chat/completions`."""
    router = APIRouter(prefix="/v1", responses=_ERRORS)

    @router.get("/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """List the model, and the model with each stream."""
        seen = [one for one in service.streams() if ask.may_see(request, one.stream)]
        names = [service.model, *(f"{service.model}/{one.stream}" for one in seen)]
        return {"object": "list", "data": [_model(name) for name in names]}

    @router.get("/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        """Show one of the models."""
        if name != service.model:
            _stream_of(service, name)
        return _model(name)

    @router.post("/chat/completions", response_model=None)
    async def complete(asked: ChatRequest, request: Request) -> Response:
        """Ask a stream in the form of a chat."""
        sent = asked.model_extra or {}
        if (fault := refused(sent) or _misplaced(asked)) is not None:
            return JSONResponse(error_body(400, fault[1], param=fault[0]), 400)
        question = replace(_question(service, asked), caller=ask.caller_of(request))
        ask.check(service, [question], request)
        if asked.stream:
            chunks = _chunks(service, question, asked)
            return StreamingResponse(chunks, media_type=ask.EVENT_STREAM, headers=ask.UNBUFFERED)
        return JSONResponse(_completion(await ask.answered(service, question), asked))

    return router


class Fault(BaseModel):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class FaultBody(BaseModel):
    """The body of an error. Where the token is refused, it is one line."""

    error: Fault | str


_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": FaultBody} for code in (400, 401, 403, 404, 409, 413, 422, 429, 503, 504)
}


def error_body(status: int, line: str, *, param: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = None if param is None else "unsupported_parameter"
    return {"error": {"message": line, "type": kind, "param": param, "code": code}}


def _misplaced(asked: ChatRequest) -> tuple[str, str] | None:
    if asked.stream_options is None or asked.stream:
        return None
    return "stream_options", "stream_options: goes with stream true alone"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "stream-sttm"}


def _question(service: Service, asked: ChatRequest) -> Question:
    look = _look(service, asked)
    turns, text = _conversation(asked.messages)
    most = asked.max_completion_tokens or asked.max_tokens or service.answering.max_new_tokens
    return Question(
        id=uuid4().hex,
        stream=look.name,
        text=text,
        asked_at=time.time(),
        max_new_tokens=most,
        timeout=service.answering.timeout,
        form=_form(asked.response_format),
        window_s=look.window_s,
        turns=turns,
        is_streamed=asked.stream,
    )


def _look(service: Service, asked: ChatRequest) -> StreamLook:
    """Return the stream that is asked. Raises QuestionRejected where it is unclear."""
    named = [look for message in asked.messages for look in message.looks]
    if named:
        if len({look.name for look in named}) > 1:
            raise QuestionRejected("messages: name two streams; ask one at a time")
        return named[-1]
    if asked.model != service.model:
        return StreamLook(name=_stream_of(service, asked.model), window_s=None)
    streams = service.streams()
    if len(streams) == 1:
        return StreamLook(name=streams[0].stream, window_s=None)
    raise QuestionRejected(
        'messages: say which stream is meant, by a content part {"type": "stream", "stream": {"name": "..."}} '
        f"or as model {service.model + '/NAME'!r}"
    )


def _stream_of(service: Service, model: str) -> str:
    base, _, stream = model.rpartition("/")
    if base != service.model:
        raise HTTPException(404, f"there is no model {model[:200]!r}; there is {service.model!r}")
    ask.status_of(service, stream)
    return stream


def _conversation(messages: list[Message]) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the turns of question and answer, and the last question. System messages go before the first one."""
    turns: list[tuple[str, str]] = []
    texts: list[str] = []
    for message in messages:
        if message.role != "assistant":
            texts.append(message.words)
        elif texts:
            turns.append(("\n".join(texts), message.words))
            texts = []
        else:
            raise QuestionRejected("messages: an answer of the assistant follows no question")
    if not texts:
        raise QuestionRejected("messages: the last one must be the user's")
    return tuple(turns), "\n".join(texts)


def _form(wanted: ResponseFormat) -> Form:
    if wanted.type == "text":
        return FREE_TEXT
    schema = None
    if wanted.type == "json_schema":
        schema = wanted.json_schema.json_schema if wanted.json_schema is not None else None
        if schema is None:
            raise QuestionRejected("response_format.json_schema.schema: is missing")
    try:
        return FormSettings(type=AnswerType.JSON, json_schema=schema).form
    except ValidationError as error:
        raise QuestionRejected(f"response_format: {error.errors()[0]['msg']}") from error


def _completion(answer: Answer, asked: ChatRequest) -> dict[str, Any]:
    cut = Cut(asked.stops)
    message = {
        "role": "assistant", "content": cut.more(answer.text, is_last=True), "refusal": None
    }  # fmt: skip
    end = _end(answer, cut)
    choice = {"index": 0, "message": message, "finish_reason": end, "logprobs": None}
    body = _head(answer.question.id, asked.model, "chat.completion")
    extra = answer.as_dict(published_at=time.time())
    return {**body, "choices": [choice], "usage": _usage(answer), "stream_sttm": extra}


async def _chunks(service: Service, question: Question, asked: ChatRequest) -> AsyncIterator[str]:
    wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
    usage: dict[str, Any] = {"usage": None} if wants_usage else {}
    head = {**_head(question.id, asked.model, "chat.completion.chunk"), **usage}
    cut = Cut(asked.stops)

    def chunk(delta: dict[str, str], end: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": end, "logprobs": None}
        return _data({**head, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    try:
        async for text, answer in ask.written(service, question):
            if told := cut.more(text, is_last=answer is not None):
                yield chunk({"content": told})
            if answer is not None:
                yield chunk({}, _end(answer, cut))
                if wants_usage:
                    yield _data({**head, "choices": [], "usage": _usage(answer)})
    except StreamSTTMError as error:
        yield _data(error_body(500, " ".join(str(error).split())))
    yield "data: [DONE]\n\n"


def _end(answer: Answer, cut: Cut) -> str:
    is_cut = answer.question.form == FREE_TEXT and (
        answer.tokens.answer >= answer.question.max_new_tokens
    )
    return "length" if is_cut and not cut.has_ended else "stop"


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, allow_nan=False)}\n\n"


def _head(number: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{number}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answer: Answer) -> dict[str, int]:
    tokens = answer.tokens
    read = tokens.visual + tokens.question
    return {
        "prompt_tokens": read,
        "completion_tokens": tokens.answer,
        "total_tokens": read + tokens.answer,
    }
