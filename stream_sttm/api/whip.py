"""WHIP (RFC 9725): a browser or encoder publishes a stream whose source is `whip:`. SDP offer in, 201 and answer out.

Trickle ICE is not supported (405): the offer must hold all candidates. The token is checked before, as for every route
under /api. Who may publish, and how often, is decided in sources/webrtc/publishers.py.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import APIRouter, Path, Request, Response
from starlette.exceptions import HTTPException

from stream_sttm.api.middleware import ErrorBody
from stream_sttm.errors import NotAnOffer

SDP = "application/sdp"
MAX_OFFER = 64 * 1024  # bytes
# what a page of another origin has to read of a response to publish, to end its session and to wait
EXPOSED = ("Location", "ETag", "Link", "Accept-Post", "Retry-After", "Allow", "WWW-Authenticate")

Name = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Session = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$")]


class Publishing(Protocol):
    """What accepts publishers."""

    def takes(self, stream: str) -> bool:
        """Return whether the stream is one that is published to the service."""
        ...

    async def publish(self, stream: str, offer: str) -> tuple[str, str]:
        """Accept an offer. Returns the session's id and the SDP answer. Raises PublishError."""
        ...

    async def end(self, stream: str, session: str) -> bool:
        """End a session. Returns whether there was one."""
        ...


def routes(publishing: Publishing) -> APIRouter:
    """Return the routes of WHIP."""
    router = APIRouter(
        prefix="/api/v1/streams/{name}/whip",
        responses={code: {"model": ErrorBody} for code in (400, 405, 415)},
    )

    @router.post("", status_code=201, response_class=Response)
    async def publish(name: Name, request: Request) -> Response:
        """Publish the stream with an SDP offer. The response is the SDP answer."""
        taken = _taking(publishing, name)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != SDP:
            raise HTTPException(415, f"the body must be {SDP}", {"Accept-Post": SDP})
        session, answer = await taken.publish(name, await _offer(request))
        location = f"/api/v1/streams/{name}/whip/{session}"
        return Response(answer, 201, {"Location": location}, SDP)

    @router.options("", status_code=204, response_class=Response)
    async def options(name: Name) -> Response:
        """Show what may be posted."""
        _taking(publishing, name)
        return Response(status_code=204, headers={"Accept-Post": SDP, "Allow": "POST, OPTIONS"})

    @router.delete("/{session}", response_class=Response)
    async def end(name: Name, session: Session) -> Response:
        """End the session."""
        if not await _taking(publishing, name).end(name, session):
            raise HTTPException(404, "there is no such session; it may have ended by itself")
        return Response(status_code=200)

    @router.patch("/{session}", response_class=Response)
    async def patch(name: Name, session: Session) -> Response:
        """Refuse: trickle ICE and ICE restarts are not supported."""
        line = "trickle ICE is not spoken here: send all candidates within the offer"
        raise HTTPException(405, line, {"Allow": "DELETE"})

    return router


def _taking(publishing: Publishing, name: str) -> Publishing:
    if not publishing.takes(name):
        raise HTTPException(
            404, f"there is no stream {name!r} to publish: its source would be 'whip:'"
        )
    return publishing


async def _offer(request: Request) -> str:
    """Read the body as text, up to MAX_OFFER. Raises NotAnOffer where it is not UTF-8."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_OFFER:
            raise HTTPException(413, f"the SDP offer is larger than {MAX_OFFER} bytes")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise NotAnOffer("the SDP offer is not UTF-8") from None
