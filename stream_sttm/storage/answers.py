"""Answers in SQLite: written once each, read back newest first, searched, exported, deleted when too old.

Calls may come from any thread; they block, so an event loop makes them through `asyncio.to_thread`. The schema grows
by appending to `MIGRATIONS`. store_postgres.py keeps the same promises for a fleet. Knows nothing of queries or HTTP.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

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
_ADD = (
    f"INSERT INTO answers ({_LISTED}) VALUES ({', '.join(f':{c}' for c in COLUMNS)})"
    " ON CONFLICT (id) DO NOTHING"
)
_PRUNE = "DELETE FROM answers WHERE seq IN (SELECT seq FROM answers WHERE answered_at < ? LIMIT ?)"
_CLAUSES = {  # what narrows a search, by the field of Wanted or the cursor that asks for it
    "stream": "stream = ?",
    "query": "query = ?",
    "answer_type": "answer_type = ?",
    "since": "answered_at >= ?",
    "until": "answered_at < ?",
    "text": "seq IN (SELECT rowid FROM answers_text WHERE answers_text MATCH ?)",
    "before": "seq < ?",
    "after": "seq > ?",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which answers are looked for; None is no limit. `since` is in, `until` out, both wall clock of the answer.

    `text`: words that question and answer hold together, in any order and either case.
    """

    stream: str | None = None
    query: str | None = None
    answer_type: AnswerType | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None


ALL = Wanted()


class Store(AbstractContextManager["Store"], Protocol):
    """Where answers are kept; every method blocks, may be called from any thread, and raises StoreError."""

    def add(self, answer: Answer, *, published_at: float | None = None) -> bool:
        """Keep `answer`; False where one of its id is kept already."""
        ...

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """The newest answers of a stream, a query or both; see `find`."""
        ...

    def find(
        self, wanted: Wanted, *, limit: int = 50, before: int | None = None
    ) -> list[dict[str, Any]]:
        """The newest first, as `Answer.as_dict` with `seq`; `before` is the `seq` to go on from."""
        ...

    def export(self, wanted: Wanted = ALL) -> Iterator[dict[str, Any]]:
        """All of them, oldest first, a page at a time; what is added meanwhile comes too, nothing twice."""
        ...

    def prune(self, *, older_than: float) -> int:
        """Delete what was answered before the wall clock `older_than`; the number of answers deleted."""
        ...

    def close(self) -> None:
        """Let go of it; a second call does nothing, any other call after it raises StoreError."""
        ...


class AnswerStore:
    """The answers kept in the SQLite file `path` (`:memory:` for this run only); opened and migrated at once.

    `busy_timeout` is how many seconds a call may wait for another process's lock. Every method raises StoreError.
    """

    def __init__(self, path: str | Path, *, busy_timeout: float = 5.0) -> None:
        self._file = SqliteFile(path, _PURPOSE, MIGRATIONS, busy_timeout=busy_timeout)

    @property
    def file(self) -> SqliteFile:
        """The file itself, for the tables beside the answers."""
        return self._file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing, any other call after it raises StoreError."""
        self._file.close()

    def add(self, answer: Answer, *, published_at: float | None = None) -> bool:
        """Keep `answer`; False where one of its id is kept already."""
        row = row_of(answer, published_at)
        with self._file.writing() as db:
            return db.execute(_ADD, row).rowcount == 1

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """The newest answers of a stream, a query or both; see `find`."""
        return self.find(Wanted(stream=stream, query=query), limit=limit, before=before)

    def find(
        self, wanted: Wanted, *, limit: int = 50, before: int | None = None
    ) -> list[dict[str, Any]]:
        """The newest first, as `Answer.as_dict` with `seq`; `before` is the `seq` to go on from."""
        return self._select(wanted, "DESC", limit=limit, before=before)

    def export(self, wanted: Wanted = ALL) -> Iterator[dict[str, Any]]:
        """All of them, oldest first, a page at a time; what is added meanwhile comes too, nothing twice."""
        return pages(lambda after: self._select(wanted, "ASC", limit=MAX_LIMIT, after=after))

    def prune(self, *, older_than: float) -> int:
        """Delete what was answered before the wall clock `older_than`; the number of answers deleted."""
        deleted = 0
        while True:
            with self._file.writing() as db:
                count = db.execute(_PRUNE, (older_than, PRUNED_AT_ONCE)).rowcount
            deleted += count
            if count < PRUNED_AT_ONCE:
                return deleted

    def _select(
        self, wanted: Wanted, order: str, *, limit: int, **cursor: int | None
    ) -> list[dict[str, Any]]:
        asked = asked_for(wanted, cursor)
        if "text" in asked:
            asked["text"] = _match(asked["text"])
        where = " AND ".join(_CLAUSES[name] for name in asked) or "TRUE"
        select = f"SELECT seq, {_LISTED} FROM answers WHERE {where} ORDER BY seq {order} LIMIT ?"
        with self._file.reading() as db:
            rows = db.execute(select, [*asked.values(), max(0, min(limit, MAX_LIMIT))]).fetchall()
        return [_answer(row) for row in rows]


def row_of(answer: Answer, published_at: float | None) -> dict[str, Any]:
    """An answer as the columns of a table."""
    row = answer.as_dict(published_at=time.time() if published_at is None else published_at)
    return {name: row[name] for name in COLUMNS} | {
        name: json.dumps(row[name]) for name in JSON_COLUMNS
    }


def asked_for(wanted: Wanted, cursor: dict[str, int | None]) -> dict[str, Any]:
    """What a search is narrowed by: field or cursor, and its value."""
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


def pages(read: Callable[[int], list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Row after row of what `read(after)` gives, page after page until one is empty."""
    after = 0
    while rows := read(after):
        yield from rows
        after = rows[-1]["seq"]


def _match(text: str) -> str:
    """The words of `text` as FTS5 understands them: each a string of its own, so no character is an operator."""
    words = text.replace("\0", " ").encode(errors="replace").decode().split()
    return " ".join('"' + word.replace('"', '""') + '"' for word in words) or '""'


def _answer(row: sqlite3.Row) -> dict[str, Any]:
    answer = dict(row)
    answer["news"] = bool(answer["news"])
    return answer | {name: json.loads(answer[name]) for name in JSON_COLUMNS}
