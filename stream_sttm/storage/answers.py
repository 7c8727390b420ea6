"""Answers in a SQL table: added once each, read newest first, searched, exported, deleted when too old.

`SqlAnswers` has what SQLite and PostgreSQL share. `AnswerStore` is the SQLite one, postgres.py has the other. Calls may
come from any thread and block, so an event loop makes them through `asyncio.to_thread`. A schema grows by appending
to `MIGRATIONS`. Knows nothing of queries or HTTP.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from stream_sttm.storage import events
from stream_sttm.storage.sqlite_file import Purpose, SqliteFile
from stream_sttm.types import Answer, AnswerType

MIGRATIONS = (
    """
    CREATE TABLE answers (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        stream TEXT NOT NULL,
        query TEXT,
        question TEXT NOT NULL,
        answer TEXT NOT NULL,
        news INTEGER NOT NULL,
        frame_time REAL NOT NULL,
        window TEXT NOT NULL,
        asked_at REAL NOT NULL,
        answered_at REAL NOT NULL,
        event_to_answer_ms REAL NOT NULL,
        tokens TEXT NOT NULL,
        model TEXT NOT NULL
    );
    CREATE INDEX answers_by_stream ON answers (stream, query, seq);
    CREATE INDEX answers_by_query ON answers (query, seq);
    CREATE INDEX answers_by_age ON answers (answered_at);
    """,
    """
    ALTER TABLE answers ADD COLUMN answer_type TEXT NOT NULL DEFAULT 'text';
    ALTER TABLE answers ADD COLUMN structured TEXT NOT NULL DEFAULT 'null';
    ALTER TABLE answers ADD COLUMN confidence REAL;
    """,
    """
    CREATE VIRTUAL TABLE answers_text USING fts5 (
        question, answer, content = 'answers', content_rowid = 'seq'
    );
    INSERT INTO answers_text (answers_text) VALUES ('rebuild');
    CREATE TRIGGER answers_text_added AFTER INSERT ON answers BEGIN
        INSERT INTO answers_text (rowid, question, answer)
        VALUES (new.seq, new.question, new.answer);
    END;
    CREATE TRIGGER answers_text_deleted AFTER DELETE ON answers BEGIN
        INSERT INTO answers_text (answers_text, rowid, question, answer)
        VALUES ('delete', old.seq, old.question, old.answer);
    END;
    """,
    events.SCHEMA,
    events.ADDED,
    """
    ALTER TABLE answers ADD COLUMN seconds TEXT NOT NULL DEFAULT '{"fresh": 0.0, "recall": 0.0}';
    """,
)
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
_PURPOSE = Purpose("store", "store.path", "make room or set store.keep_days")
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
    """Which answers to look for; None sets no limit.

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


class Store(AbstractContextManager["Store"], Protocol):
    """Where answers are kept. Every method blocks, may be called from any thread, and raises StoreError."""

    def add(self, answer: Answer, *, published_at: float | None = None) -> bool:
        """Keep `answer`. Returns False where one with its id is kept already."""
        ...

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the newest answers of a stream, a query or both, as `find` does."""
        ...

    def find(
        self, wanted: Wanted, *, limit: int = 50, before: int | None = None
    ) -> list[dict[str, Any]]:
        """Return answers, newest first, as `Answer.as_dict` with `seq`. `before` is the last page's lowest `seq`."""
        ...

    def export(self, wanted: Wanted = ALL) -> Iterator[dict[str, Any]]:
        """Yield all answers, oldest first, reading a page at a time."""
        ...

    def prune(self, *, older_than: float) -> int:
        """Delete answers given before the wall clock `older_than`. Returns how many were deleted."""
        ...

    def close(self) -> None:
        """Close the store. A second call does nothing, any other call after it raises StoreError."""
        ...


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


class AnswerStore(SqlAnswers):
    """The answers in the SQLite file `path` (`:memory:` for this run only), opened and migrated at once.

    `busy_timeout` is how many seconds a call may wait for another process's lock. Every method raises StoreError.
    """

    PARAMETER, NAMED = "?", ":{}"
    TEXT_SEARCH = "seq IN (SELECT rowid FROM answers_text WHERE answers_text MATCH {})"

    def __init__(self, path: str | Path, *, busy_timeout: float = 5.0) -> None:
        self._file = SqliteFile(path, _PURPOSE, MIGRATIONS, busy_timeout=busy_timeout)

    @property
    def file(self) -> SqliteFile:
        """The file itself, for the tables beside the answers."""
        return self._file

    def close(self) -> None:
        """Close the file. A second call does nothing, any other call after it raises StoreError."""
        self._file.close()

    def _read(self, statement: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        with self._file.reading() as db:
            return [dict(row) for row in db.execute(statement, values).fetchall()]

    def _write(self, statement: str, values: Sequence[Any] | dict[str, Any]) -> int:
        with self._file.writing() as db:
            return db.execute(statement, values).rowcount

    def _search_text(self, text: str) -> str:
        """Return the words of `text` for FTS5: each a quoted string, so that no character is an operator."""
        words = text.replace("\0", " ").encode(errors="replace").decode().split()
        return " ".join('"' + word.replace('"', '""') + '"' for word in words) or '""'


def _row(answer: Answer, published_at: float | None) -> dict[str, Any]:
    """Return an answer as the columns of the table."""
    row = answer.as_dict(published_at=time.time() if published_at is None else published_at)
    return {name: row[name] for name in COLUMNS} | {
        name: json.dumps(row[name]) for name in JSON_COLUMNS
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
