"""HTTP routes for stored events: a list, newest first, single events, and the picture with which each began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from stream_sttm.storage.events import MAX_LIMIT, EventLog

Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Filter = Annotated[str | None, Query(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
_SEQ_MAX = 2**63 - 1  # SQLite's largest integer


def routes(log: EventLog, newest: Callable[[str], bytes | None] = lambda _: None) -> APIRouter:
    """Return the routes over `log`. `newest`, called in a thread, returns the picture of an event not yet stored."""
    router = APIRouter(prefix="/api/v1/events")

    @router.get("/history")
    async def list_events(
        stream: Filter = None,
        query: Filter = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
        before: Annotated[int | None, Query(ge=0, le=_SEQ_MAX)] = None,
    ) -> dict[str, Any]:
        """List stored events, newest first. `next` is the `before` of the next page, null at the end."""
        events = await asyncio.to_thread(
            log.recent, stream=stream, query=query, limit=limit, before=before
        )
        return {"events": events, "next": events[-1]["seq"] if len(events) == limit else None}

    @router.get("/{event}")
    async def show_event(event: Id) -> dict[str, Any]:
        """Show an event in its newest version."""
        return await asyncio.to_thread(log.event, event)

    @router.get("/{event}/snapshot.jpg", response_class=Response)
    async def show_snapshot(event: Id) -> Response:
        """Show the picture with which the event began."""
        picture = await asyncio.to_thread(newest, event)
        if picture is None:
            picture = await asyncio.to_thread(log.snapshot, event)
        return Response(
            picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"}
        )

    return router
