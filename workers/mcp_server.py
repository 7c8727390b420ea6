"""Tools for language models: the Model Context Protocol (MCP) over standard input and output.

Knows the service only by its HTTP interface, so it runs wherever that can be reached. Importing this needs the extra
`mcp`. Nothing but the protocol may be written to standard output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from stream_sttm import __version__
from stream_sttm.types import AnswerType

_PATIENCE = 330.0  # seconds; a question may take 300
_WHAT = (
    "Cameras that are watched without pause by a model that remembers the last minutes of each. Ask in words what a"
    " camera shows or has shown; list_streams says which there are."
)
Stream = Annotated[str, Field(description="Name of a camera, as list_streams gives it.")]
Limit = Annotated[int, Field(ge=1, le=200, description="How many at most, the newest first.")]


def server(url: str, token: str | None) -> MCPServer[Any]:
    """Build the tools over the service at `url`."""
    service = _Service(url, token)
    tools = MCPServer("stream-sttm", instructions=_WHAT, version=__version__, log_level="ERROR")

    @tools.tool()
    async def list_streams() -> dict[str, Any]:
        """List the cameras that can be asked, each with its state: online, connecting, stalled, offline or disabled."""
        return await service.get("/api/v1/streams")

    @tools.tool()
    async def ask(
        stream: Stream,
        question: Annotated[str, Field(description="The question, in words.")],
        answer_type: Annotated[AnswerType, Field(description="What it answers.")] = AnswerType.TEXT,
        choices: Annotated[
            list[str] | None, Field(description="What a choice chooses from.")
        ] = None,
        window_s: Annotated[
            float | None, Field(gt=0, description="Only the last so many seconds of video.")
        ] = None,
    ) -> dict[str, Any]:
        """Ask a camera's memory a question now: the answer, how certain it is, and which span of video it rests on."""
        body: dict[str, Any] = {"stream": stream, "question": question, "type": answer_type.value}
        body |= {"choices": choices} if choices else {}
        body |= {"window_s": window_s} if window_s is not None else {}
        return await service.send("POST", "/api/v1/ask", json=body)

    @tools.tool()
    async def recent_events(stream: Stream | None = None, limit: Limit = 20) -> dict[str, Any]:
        """List the newest events of standing questions: when each began and ended, and what was answered."""
        path = "/api/v1/events/history"
        asked = {"limit": str(limit)} | ({"stream": stream} if stream else {})
        return await service.get(path, asked)

    return tools


class _Service:
    """The service's HTTP interface. Refusals become ToolError with one line."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {b"authorization": f"Bearer {token}".encode()} if token else {}

    async def get(self, path: str, asked: Mapping[str, str] | None = None) -> dict[str, Any]:
        query = "&".join(f"{key}={quote(value, safe='')}" for key, value in (asked or {}).items())
        return await self.send("GET", f"{path}?{query}" if query else path)

    async def send(self, method: str, path: str, json: Any = None) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(timeout=_PATIENCE, headers=self._headers) as client:
                reply = await client.request(method, f"{self._url}{path}", json=json)
            body: dict[str, Any] = reply.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ToolError(f"the service does not answer: {reason}") from error
        if reply.is_error:
            raise ToolError(str(body.get("error", reply.reason_phrase)))
        return body
