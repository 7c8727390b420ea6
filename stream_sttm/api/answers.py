"""Kept answers over HTTP: filtered and searched page by page, or all of them as a file that is written as it is read.

Reading blocks, so it goes to threads.
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
_AT_ONCE = 200  # answers of an export between two hops to a thread
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


Asked = Annotated[Wanted, Depends(_wanted)]


def routes(store: Store) -> APIRouter:
    """The routes over `store`."""
    router = APIRouter(prefix="/api/v1/answers")

    @router.get("")
    async def list_answers(
        wanted: Asked,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
        before: Annotated[int | None, Query(ge=0, le=_SEQ_MAX)] = None,
    ) -> dict[str, Any]:
        """Kept answers, newest first; `next` is the `before` of the page that follows, null at the end.

        `since` and `until` are seconds since the epoch, `text` words that question and answer hold together.
        """
        answers = await asyncio.to_thread(store.find, wanted, limit=limit, before=before)
        return {"answers": answers, "next": answers[-1]["seq"] if len(answers) == limit else None}

    @router.get("/export", response_class=StreamingResponse)
    async def export_answers(
        wanted: Asked,
        form: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
    ) -> StreamingResponse:
        """All kept answers that are wanted, oldest first, as JSON Lines or CSV."""
        write, media_type = _WRITERS[form]
        lines = write(store.export(wanted))
        first = await asyncio.to_thread(_some, lines)  # so that a store that fails is told as such
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
