"""HTTP routes for stored answers: filtered and searched page by page, or exported as a streamed file.

Reading blocks, so it runs in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from stream_sttm.storage import export
from stream_sttm.storage.answers import Store
from stream_sttm.storage.sql_answers import MAX_LIMIT, Wanted
from stream_sttm.types import AnswerType

Filter = Annotated[str | None, Query(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Time = Annotated[float | None, Query(allow_inf_nan=False)]
_SEQ_MAX = 2**63 - 1  # SQLite's largest integer
_AT_ONCE = 200  # lines of an export that one call to a thread reads
_WRITERS = {
    "jsonl": (export.jsonl, "application/x-ndjson"),
    "csv": (export.csv_lines, "text/csv; charset=utf-8"),
}


def _wanted(
    *,
    stream: Filter = None,
    query: Filter = None,
    answer_type: Annotated[AnswerType | None, Query(alias="type")] = None,
    since: Time = None,
    until: Time = None,
    text: Annotated[str | None, Query(min_length=1, max_length=500)] = None,
) -> Wanted:
    return Wanted(stream, query, answer_type, since, until, text)


Search = Annotated[Wanted, Depends(_wanted)]


def routes(store: Store) -> APIRouter:
    """Return the routes over `store`."""
    router = APIRouter(prefix="/api/v1/answers")

    @router.get("")
    async def list_answers(
        wanted: Search,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
        before: Annotated[int | None, Query(ge=0, le=_SEQ_MAX)] = None,
    ) -> dict[str, Any]:
        """List stored answers, newest first. `next` is the `before` of the next page, null at the end.

        `since` and `until` are seconds since the epoch, `text` words that question and answer hold together.
        """
        answers = await asyncio.to_thread(store.find, wanted, limit=limit, before=before)
        return {"answers": answers, "next": answers[-1]["seq"] if len(answers) == limit else None}

    @router.get("/export", response_class=StreamingResponse)
    async def export_answers(
        wanted: Search,
        form: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
    ) -> StreamingResponse:
        """Export all matching answers, oldest first, as JSON Lines or CSV."""
        write, media_type = _WRITERS[form]
        lines = write(store.export(wanted))
        first = await asyncio.to_thread(
            _some, lines
        )  # so that an error of the store becomes the response
        return StreamingResponse(
            _rest(first, lines),
            media_type=media_type,
            headers={
                "Content-Disposition": f'attachment; filename="answers.{form}"',
                "Cache-Control": "no-store",
            },
        )

    return router


def _some(lines: Iterator[str]) -> str:
    return "".join(islice(lines, _AT_ONCE))


async def _rest(first: str, lines: Iterator[str]) -> AsyncIterator[str]:
    part = first
    while part:
        yield part
        part = await asyncio.to_thread(_some, lines)
