"""The HTTP route that probes a source before it becomes a stream. Few at a time, under the rules for HTTP sources."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

from stream_sttm.api.auth import Caller
from stream_sttm.config import source_url
from stream_sttm.config.streams import SourceRules
from stream_sttm.control.additions import check_source, filled
from stream_sttm.errors import ConfigError, SourceError, TooManyTests
from stream_sttm.sources.network.access import Access
from stream_sttm.sources.probe import probe

AT_ONCE = 2
MAX_SECONDS = 20.0


def _source(value: object) -> object:
    if isinstance(value, str):
        try:
            return source_url.plain(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return value


class ProbeRequest(BaseModel):
    """The source to probe, and for how long."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
    source: Annotated[str, BeforeValidator(_source)] = Field(
        min_length=1, max_length=4096, description="One URL, as of a stream's source."
    )
    seconds: float = Field(
        10.0, gt=0, le=MAX_SECONDS, allow_inf_nan=False, description="Most seconds it may take."
    )


class ProbeResult(BaseModel):
    """The video's properties, null where unknown, or in one line why there is none."""

    ok: bool
    error: str | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    keyframe_interval: float | None = Field(None, description="Seconds between keyframes.")
    is_live: bool | None = None
    frames: int = Field(0, description="Pictures that were looked at.")
    opened_in: float | None = Field(None, description="Seconds until it was open.")
    jpeg_bytes: int | None = Field(
        None, description="Size of a picture as it would be shown, at most 640 pixels wide."
    )


def routes(
    access: Callable[[], Access], rules: Callable[[], SourceRules] = SourceRules
) -> APIRouter:
    """Return the route that probes a source. `access` and `rules` return what holds now."""
    router = APIRouter()
    running = 0

    @router.post("/api/v1/streams/test")
    async def try_source(body: ProbeRequest, request: Request) -> ProbeResult:
        """Open a source for a few seconds. Returns codec, size, rate, keyframe interval, or why it can't be read."""
        nonlocal running
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is not None and caller.streams is not None:
            raise HTTPException(403, f"token {caller.name!r} is limited to some streams")
        reach = access()
        source = await asyncio.to_thread(_allowed, body.source, rules(), reach)
        if running >= AT_ONCE:
            raise TooManyTests(f"{AT_ONCE} sources are being tried; try again in a moment")
        running += 1
        try:
            return ProbeResult(ok=True, **await probe(source, reach, seconds=body.seconds))
        except SourceError as error:
            return ProbeResult(ok=False, error=" ".join(str(error).split()))
        finally:
            running -= 1

    return router


def _allowed(source: str, rules: SourceRules, access: Access) -> str:
    """Return the source with its variables filled in. Raises ConfigError or SourceDenied, as for a new stream."""
    url = source_url.plain(filled("source", source, rules))
    check_source("source", url, access)
    return url
