"""HTTP routes that add, replace and delete streams and queries, and show the configuration without credentials.

Works on the protocol `Entries`. Its errors become responses in app.py, except ConfigError, whose response lists every
fault.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field
from starlette.exceptions import HTTPException

from stream_sttm.api import ask
from stream_sttm.api.control import Name, faulty
from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.streams import StreamSettings
from stream_sttm.control.diff import Changes
from stream_sttm.errors import ConfigError

Kind = Literal["streams", "queries"]
_NAME = Field(
    pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$",
    description="What it is called; part of topics and URLs.",
    examples=["door"],
)


class Entries(Protocol):
    """What stores additions. Its methods raise what those of control.Control do, SourceDenied, and ConfigError."""

    async def add(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        """Add an entry. Raises NotPossible where one of this name exists."""
        ...

    async def replace(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        """Replace an entry's settings. Raises UnknownStream or UnknownQuery where there is none."""
        ...

    async def remove(self, kind: Kind, name: str, *, is_forced: bool = False) -> None:
        """Remove an entry, if it exists. Raises NotPossible where it is the configuration file's or in use."""
        ...

    def shown(self, kind: Kind, name: str) -> dict[str, Any]:
        """Return an entry in force, without credentials."""
        ...

    def effective(self) -> dict[str, Any]:
        """Return the configuration in force, without credentials."""
        ...


class StreamBody(StreamSettings):
    """A stream's settings. `source` may take a variable's value by ${NAME}."""

    model_config = ConfigDict(strict=True)


class NewStream(StreamBody):
    """A stream to add."""

    name: str = _NAME


class QueryBody(QuerySettings):
    """A standing question's settings."""

    model_config = ConfigDict(strict=True)


class NewQuery(QueryBody):
    """A standing question to add."""

    name: str = _NAME


def routes(entries: Entries) -> APIRouter:
    """Return the routes over `entries`."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/config")
    async def show_config() -> dict[str, Any]:
        """Show the settings in force, credentials as ***, what was added here, and what was left out and why."""
        return entries.effective()

    _add_streams(router, entries)
    _add_queries(router, entries)
    return router


def _add_streams(router: APIRouter, entries: Entries) -> None:
    @router.post("/streams", status_code=201, response_model=None)
    async def add_stream(sent: NewStream, request: Request) -> Response:
        """Add a stream. It is kept over restarts, beside the configuration file."""
        _require_sight(request, sent.name)
        change = entries.add("streams", sent.name, _given(sent))
        return await _answer(entries, "streams", sent.name, change, status=201)

    @router.put("/streams/{name}", response_model=None)
    async def replace_stream(name: Name, sent: StreamBody) -> Response:
        """Replace the settings of a stream that was added here."""
        change = entries.replace("streams", name, _given(sent))
        return await _answer(entries, "streams", name, change)

    @router.delete("/streams/{name}", status_code=204)
    async def remove_stream(
        name: Name,
        force: Annotated[
            bool, Query(description="Whether queries that name it are changed too.")
        ] = False,
    ) -> None:
        """Remove a stream that was added here. Succeeds where there is none."""
        await entries.remove("streams", name, is_forced=force)


def _add_queries(router: APIRouter, entries: Entries) -> None:
    @router.post("/queries", status_code=201, response_model=None)
    async def add_query(sent: NewQuery) -> Response:
        """Add a standing question. It is kept over restarts, beside the configuration file."""
        change = entries.add("queries", sent.name, _given(sent))
        return await _answer(entries, "queries", sent.name, change, status=201)

    @router.get("/queries/{name}")
    async def show_query(name: Name) -> dict[str, Any]:
        """Show a standing question's settings."""
        return {"name": name, "settings": entries.shown("queries", name)}

    @router.put("/queries/{name}", response_model=None)
    async def replace_query(name: Name, sent: QueryBody) -> Response:
        """Replace the settings of a standing question that was added here."""
        change = entries.replace("queries", name, _given(sent))
        return await _answer(entries, "queries", name, change)

    @router.delete("/queries/{name}", status_code=204)
    async def remove_query(name: Name) -> None:
        """Remove a standing question that was added here. Succeeds where there is none."""
        await entries.remove("queries", name)


def _given(sent: StreamSettings | QuerySettings) -> dict[str, Any]:
    """Return what was sent, without defaults, because a later version may have others."""
    return sent.model_dump(mode="json", exclude_unset=True, exclude={"name"})


def _require_sight(request: Request, stream: str) -> None:
    if not ask.may_see(request, stream):
        raise HTTPException(403, f"the token is not for stream {stream!r}")


async def _answer(
    entries: Entries, kind: Kind, name: str, change: Awaitable[Changes], status: int = 200
) -> Response:
    """Respond with the entry as it is now, or with every fault of it."""
    try:
        waiting = (await change).waiting
    except ConfigError as error:
        return faulty(error, "nothing is changed")
    body = {"name": name, "settings": entries.shown(kind, name), "needs_restart": list(waiting)}
    headers = {"Location": f"/api/v1/{kind}/{name}"} if status == 201 else None
    return JSONResponse(body, status, headers)
