"""What SQLite and PostgreSQL share in keeping answers: columns, searches, paging, export, pruning.

`SqlAnswers` builds the statements, and a subclass runs them. Knows nothing of queries or HTTP.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from stream_sttm.types import Answer, AnswerType

COLUMNS = (
    "id",
    "stream",
    "query",
    "question",
    "answer",
    "answer_type",
    "structured",
    "confidence",
    "news",
    "frame_time",
    "window",
    "asked_at",
    "answered_at",
    "event_to_answer_ms",
    "tokens",
    "seconds",
    "model",
)
JSON_COLUMNS = ("structured", "window", "tokens", "seconds")
MAX_LIMIT = 1000
PRUNED_AT_ONCE = 1000  # rows; so that a long prune lets writers through in between
_LISTED = ", ".join(f'"{column}"' for column in COLUMNS)
_CLAUSES = {  # what narrows a search, by the field of Wanted or the cursor; {} is the placeholder
    "stream": "stream = {}",
    "query": "query = {}",
    "answer_type": "answer_type = {}",
    "since": "answered_at >= {}",
    "until": "answered_at < {}",
    "before": "seq < {}",
    "after": "seq > {}",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which answers to look for. None sets no limit.

    `since` (inclusive) and `until` (exclusive) are the wall clock of the answer. `text`: words that question and answer
    hold together, in any order, in upper or lower case.
    """

    stream: str | None = None
    query: str | None = None
    answer_type: AnswerType | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None


ALL = Wanted()


class SqlAnswers(ABC):
    """Paging, search, export and pruning of the SQL table `answers`. A subclass runs the statements."""

    PARAMETER: ClassVar[str]  # a placeholder of a statement
    NAMED: ClassVar[str]  # the same by name, {}
    TEXT_SEARCH: ClassVar[str]  # the condition that question and answer hold the words of {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the store. A second call does nothing, any other call after it raises StoreError."""

    def add(self, answer: Answer, *, published_at: float | None = None) -> bool:
        """Keep `answer`. Returns False where one with its id is kept already."""
        values = ", ".join(self.NAMED.format(column) for column in COLUMNS)
        insert = f"INSERT INTO answers ({_LISTED}) VALUES ({values}) ON CONFLICT (id) DO NOTHING"
        return self._write(insert, _row(answer, published_at)) == 1

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the newest answers of a stream, a query or both, as `find` does."""
        return self.find(Wanted(stream=stream, query=query), limit=limit, before=before)

    def find(
        self, wanted: Wanted, *, limit: int = 50, before: int | None = None
    ) -> list[dict[str, Any]]:
        """Return answers, newest first, as `Answer.as_dict` with `seq`. `before` is the last page's lowest `seq`."""
        return self._select(wanted, "DESC", limit=limit, before=before)

    def export(self, wanted: Wanted = ALL) -> Iterator[dict[str, Any]]:
        """Yield all answers, oldest first, reading a page at a time. Answers added meanwhile come too, none twice."""
        after = 0
        while rows := self._select(wanted, "ASC", limit=MAX_LIMIT, after=after):
            yield from rows
            after = rows[-1]["seq"]

    def prune(self, *, older_than: float) -> int:
        """Delete answers given before the wall clock `older_than`. Returns how many were deleted."""
        mark = self.PARAMETER
        oldest = f"SELECT seq FROM answers WHERE answered_at < {mark} LIMIT {mark}"
        deleted = 0
        while True:
            count = self._write(
                f"DELETE FROM answers WHERE seq IN ({oldest})", (older_than, PRUNED_AT_ONCE)
            )
            deleted += count
            if count < PRUNED_AT_ONCE:
                return deleted

    def _select(
        self, wanted: Wanted, order: str, *, limit: int, **cursor: int | None
    ) -> list[dict[str, Any]]:
        given = _given(wanted, cursor)
        if "text" in given:
            given["text"] = self._search_text(given["text"])
        clauses = _CLAUSES | {"text": self.TEXT_SEARCH}
        where = " AND ".join(clauses[name].format(self.PARAMETER) for name in given) or "TRUE"
        statement = (
            f"SELECT seq, {_LISTED} FROM answers WHERE {where}"
            f" ORDER BY seq {order} LIMIT {self.PARAMETER}"
        )
        rows = self._read(statement, [*given.values(), max(0, min(limit, MAX_LIMIT))])
        return [_answer(row) for row in rows]

    @abstractmethod
    def _read(self, statement: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        """Run a SELECT. Returns its rows as columns and values."""

    @abstractmethod
    def _write(self, statement: str, values: Sequence[Any] | dict[str, Any]) -> int:
        """Run an INSERT or DELETE in a transaction of its own. Returns the number of rows it changed."""

    @abstractmethod
    def _search_text(self, text: str) -> str:
        """Return the words of `text` as the database's text search takes them."""


def _row(answer: Answer, published_at: float | None) -> dict[str, Any]:
    """Return an answer as the columns of the table."""
    row = answer.as_dict(published_at=time.time() if published_at is None else published_at)
    return {name: row[name] for name in COLUMNS} | {
        name: json.dumps(row[name], allow_nan=False) for name in JSON_COLUMNS
    }


def _given(wanted: Wanted, cursor: dict[str, int | None]) -> dict[str, Any]:
    """Return the fields of `wanted` and of `cursor` that narrow a search, with their values."""
    fields = {
        "stream": wanted.stream,
        "query": wanted.query,
        "answer_type": None if wanted.answer_type is None else wanted.answer_type.value,
        "since": wanted.since,
        "until": wanted.until,
        "text": wanted.text,
        **cursor,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as `Answer.as_dict` with `seq`."""
    decoded = {name: json.loads(row[name]) for name in JSON_COLUMNS}
    return row | {"news": bool(row["news"])} | decoded
