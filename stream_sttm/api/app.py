"""The HTTP interface: ask, streams, queries, answers, live events, metrics, health, and the page.

Knows the service only by `Service`, so it runs without an engine. Blocking work runs in threads. Every error is
{"error": "one line"}, never a traceback. Tokens and limits are checked in middleware.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from stream_sttm import __version__
from stream_sttm.api import answers, ask, openai, static, websocket, whip
from stream_sttm.api import sse as events
from stream_sttm.api.auth import Tokens
from stream_sttm.api.feed import Feed
from stream_sttm.api.methods import Heads, allowed
from stream_sttm.api.middleware import ErrorBody, Guard, Numbered, refusal
from stream_sttm.api.service import Service
from stream_sttm.config.faults import fault_line
from stream_sttm.config.http import HttpSettings
from stream_sttm.config.question_check import MAX_FAULTS
from stream_sttm.errors import (
    AlreadyPublished,
    AnswerFailed,
    AnswerUnfinished,
    ConfigError,
    ModelError,
    NotAnOffer,
    NotPossible,
    NotReady,
    NoVideoYet,
    PublishError,
    QuestionExpired,
    QuestionRejected,
    SourceDenied,
    Stopping,
    StoreError,
    StreamSTTMError,
    TooManyOffers,
    TooManyQuestions,
    TooManyReaders,
    TooManyTests,
    UnknownEvent,
    UnknownQuery,
    UnknownStream,
)
from stream_sttm.storage.answers import Store

_STATUS: dict[type[StreamSTTMError], int] = {  # the first match counts
    UnknownStream: 404,
    UnknownQuery: 404,
    UnknownEvent: 404,
    NotPossible: 409,
    NotReady: 503,
    NotAnOffer: 400,
    AlreadyPublished: 409,
    TooManyOffers: 429,
    PublishError: 503,
    TooManyQuestions: 429,
    TooManyTests: 429,
    TooManyReaders: 429,
    QuestionRejected: 422,
    AnswerUnfinished: 422,
    AnswerFailed: 503,
    NoVideoYet: 503,
    Stopping: 503,
    QuestionExpired: 504,
    StoreError: 503,
    ModelError: 503,
    SourceDenied: 403,
    ConfigError: 422,
    StreamSTTMError: 500,
}
_RETRY_AFTER = {429: "1", 503: "2"}  # seconds

Name = Annotated[str, InPath(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Filter = Annotated[str | None, Query(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


def create_app(
    service: Service,
    *,
    store: Store,
    feed: Feed,
    http: HttpSettings | None = None,
    keepalive: float = 15.0,
) -> FastAPI:
    """Return the application over `service`. Where `http` has tokens, all but page and health need one.

    Its live events end when `feed` is closed, which the caller does as the first step of shutting down.
    """
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorBody} for code in (401, 403, 404, 409, 413, 422, 429, 503, 504)
    }
    app = FastAPI(
        title="stream-sttm", version=__version__, docs_url=None, redoc_url=None, responses=errors
    )
    http = http or HttpSettings()
    app.add_middleware(Heads)
    app.add_middleware(Guard, tokens=Tokens(http), cors=http.cors)
    app.add_middleware(Numbered, concerns=openai.is_ours)
    if http.cors:  # outermost, because preflight requests carry no token
        app.add_middleware(
            CORSMiddleware,
            allow_origins=http.cors,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=whip.EXPOSED,
        )
    app.add_exception_handler(StreamSTTMError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_defect)
    app.include_router(ask.routes(service))
    app.include_router(openai.routes(service))
    _add_streams(app, service)
    app.include_router(answers.routes(store))
    app.include_router(websocket.routes(feed))
    _add_events(app, feed, keepalive)
    _add_health(app, service)
    _add_page(app)
    return app


def _add_streams(app: FastAPI, service: Service) -> None:
    @app.get("/api/v1/streams")
    async def list_streams(request: Request) -> dict[str, Any]:
        """List every stream with its state."""
        streams = [
            status.as_dict() for status in service.streams() if ask.may_see(request, status.stream)
        ]
        return {"model": service.model, "model_note": service.model_note, "streams": streams}

    @app.get("/api/v1/streams/{name}")
    async def show_stream(name: Name) -> dict[str, Any]:
        """Show a stream's state."""
        return ask.status_of(service, name).as_dict()

    @app.get("/api/v1/streams/{name}/snapshot.jpg", response_class=Response)
    async def show_snapshot(name: Name) -> Response:
        """Show a stream's newest picture."""
        ask.status_of(service, name)
        picture = await asyncio.to_thread(service.snapshot, name)
        if picture is None:
            raise NoVideoYet(f"stream {name!r} has shown no frame yet")
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.get("/api/v1/streams/{name}/mosaic")
    async def show_mosaic(name: Name) -> dict[str, Any]:
        """Show the merged tokens of a stream's newest remembered picture as tiles, in cells."""
        ask.status_of(service, name)
        mosaic = await service.mosaic(name)
        if mosaic is None:
            raise NoVideoYet(f"stream {name!r} has nothing in its memory yet")
        return mosaic.as_dict()

    @app.get("/api/v1/streams/{name}/mosaic.jpg", response_class=Response)
    async def show_remembered(name: Name) -> Response:
        """Show the picture under the mosaic. `X-Captured-At` is its wall clock."""
        ask.status_of(service, name)
        picture = await asyncio.to_thread(service.remembered, name)
        if picture is None:
            raise NoVideoYet(f"stream {name!r} has nothing in its memory yet")
        headers = {"Cache-Control": "no-store", "X-Captured-At": repr(picture[1])}
        return Response(picture[0], media_type="image/jpeg", headers=headers)

    @app.get("/api/v1/queries")
    async def list_queries() -> dict[str, Any]:
        """List every standing query."""
        return {"queries": service.queries()}


def _add_events(app: FastAPI, feed: Feed, keepalive: float) -> None:
    @app.get("/api/v1/events", response_class=StreamingResponse)
    async def stream_events(
        stream: Filter = None,
        last_event_id: Annotated[str | None, Header(max_length=64)] = None,
    ) -> StreamingResponse:
        """Stream answers, events and statuses as server-sent events, after `Last-Event-ID` where still known."""
        feed.require_room()
        is_number = last_event_id is not None and last_event_id.isdecimal()
        after = int(last_event_id or 0) if is_number else None
        return StreamingResponse(
            events.lines(feed, after=after, keepalive=keepalive, stream=stream),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def _add_health(app: FastAPI, service: Service) -> None:
    has_started = False

    @app.get("/healthz", include_in_schema=False)
    @app.get("/v1/health/live")
    async def live() -> dict[str, str]:
        """Report that the process answers. Depends on nothing else."""
        return {"status": "live"}

    @app.get("/readyz", include_in_schema=False)
    @app.get("/v1/health/ready", response_model=None)
    async def ready() -> Response:
        """Report whether questions can be answered now."""
        nonlocal has_started
        is_ready, reason = service.readiness()
        has_started = has_started or is_ready
        return JSONResponse({"status": "ready"}) if is_ready else refusal(503, reason)

    @app.get("/v1/health/startup", response_model=None)
    async def startup() -> Response:
        """Report whether questions could be answered at any time since the start."""
        answer = await ready()
        return JSONResponse({"status": "started"}) if has_started else answer

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """Show every metric in Prometheus' text format."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    def add(path: str, file: Path) -> None:
        content, media_type = file.read_bytes(), static.media_type(file)

        async def show() -> Response:
            return Response(content, media_type=media_type, headers=static.HEADERS)

        app.add_api_route(path, show, include_in_schema=False, response_model=None)

    for path, file in static.PAGE.items():
        add(path, file)


def _refused(request: Request, status: int, line: str, headers: Mapping[str, str]) -> Response:
    """Return an error in its path's JSON form, with `Retry-After` where that helps."""
    wait = _RETRY_AFTER.get(status)
    headers = {**headers, **({"Retry-After": wait} if wait else {})}
    if openai.is_ours(request.url.path):
        return JSONResponse(openai.error_body(status, " ".join(line.split())), status, headers)
    return refusal(status, line, headers)


async def _on_error(request: Request, error: Exception) -> Response:
    status = next(code for kind, code in _STATUS.items() if isinstance(error, kind))
    return _refused(request, status, str(error), {})


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _refused(
        request, 422, "; ".join(_fault(item) for item in error.errors()[:MAX_FAULTS]), {}
    )


def _fault(error: dict[str, Any]) -> str:
    """Return one of pydantic's errors as a line. A field of the body is named alone, as the sender knows it."""
    if error["type"] == "json_invalid":
        return f"body: is not JSON: {error['ctx']['error']}"
    place, *field = error["loc"]
    is_in_body = place == "body" and (field or error["type"] == "value_error")
    return fault_line({**error, "loc": field} if is_in_body else error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # the framework's status for a body that can't be parsed
        return _refused(request, 422, "body: can't be read; send JSON in UTF-8", {})
    headers = dict(error.headers or {})
    if error.status_code == 405 and error.detail == HTTPStatus(405).phrase:  # no route's own word
        headers["Allow"] = allowed(request.app.router.routes, request.scope)
    return _refused(request, error.status_code, str(error.detail), headers)


async def _on_defect(request: Request, error: Exception) -> Response:
    """Respond to a bug: the log has the traceback, the caller gets one line."""
    line = f"internal error ({type(error).__name__}); the log says more"
    return _refused(request, 500, line, {})
