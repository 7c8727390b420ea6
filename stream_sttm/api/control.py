"""HTTP routes that change the running service: trigger queries, switch streams and queries, reload the configuration.

Works on the protocol `Control`. Its errors become responses in app.py, except ConfigError, whose response lists every
fault.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, Path, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from stream_sttm.control.diff import Changes
from stream_sttm.errors import ConfigError

Name = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Control(Protocol):
    """What changes the running service. Raises ControlError, UnknownStream, QuestionRejected or StoreError."""

    async def trigger(self, query: str, stream: str | None = None) -> list[str]:
        """Ask a query now. Returns the streams that it is asked of."""
        ...

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        """Enable or disable a stream."""
        ...

    async def set_query_enabled(self, query: str, stream: str | None, is_enabled: bool) -> None:
        """Enable or disable a query on one of its streams, or on all."""
        ...

    async def reload(self) -> Changes:
        """Reload the configuration. Raises ConfigError, and then nothing is changed."""
        ...


class Trigger(BaseModel):
    """The stream of which a query is asked now."""

    model_config = ConfigDict(strict=True, extra="forbid")
    stream: str | None = Field(None, description="One of the query's streams; null: all of them.")


class StreamSwitch(BaseModel):
    """On or off."""

    model_config = ConfigDict(strict=True, extra="forbid")
    enabled: bool


class QuerySwitch(StreamSwitch):
    """On or off, on a stream or all."""

    stream: str | None = Field(None, description="One of the query's streams; null: all of them.")


def routes(control: Control) -> APIRouter:
    """Return the routes over `control`."""
    router = APIRouter(prefix="/api/v1")

    @router.post("/queries/{name}/trigger", status_code=202)
    async def trigger(
        name: Name, asked: Annotated[Trigger | None, Body()] = None
    ) -> dict[str, Any]:
        """Ask a standing query now, whatever its interval. The answer is delivered like its others."""
        streams = await control.trigger(name, asked.stream if asked is not None else None)
        return {"query": name, "streams": streams}

    @router.put("/queries/{name}/enabled")
    @router.post("/queries/{name}/enabled", include_in_schema=False)
    async def switch_query(name: Name, switch: QuerySwitch) -> dict[str, Any]:
        """Enable or disable a query. Holds over restarts."""
        await control.set_query_enabled(name, switch.stream, switch.enabled)
        return {"query": name, "stream": switch.stream, "enabled": switch.enabled}

    @router.put("/streams/{name}/enabled")
    @router.post("/streams/{name}/enabled", include_in_schema=False)
    async def switch_stream(name: Name, switch: StreamSwitch) -> dict[str, Any]:
        """Enable or disable a stream. Holds over restarts."""
        await control.set_stream_enabled(name, switch.enabled)
        return {"stream": name, "enabled": switch.enabled}

    @router.post("/config/reload", response_model=None)
    async def reload() -> Response:
        """Reload the configuration file and apply what changed. With a fault in it, nothing changes."""
        try:
            changes = await control.reload()
        except ConfigError as error:
            return faulty(error, "the configuration stays as it was")
        return JSONResponse(changes.as_dict())

    return router


def faulty(error: ConfigError, outcome: str) -> Response:
    """Return the response to a faulty configuration: every fault, in one line and as a list."""
    faults = [line.encode(errors="replace").decode() for line in str(error).splitlines()]
    return JSONResponse({"error": f"{outcome}: {'; '.join(faults)}", "faults": faults}, 422)
