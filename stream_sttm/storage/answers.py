"""The answer store, and the one in SQLite: answers are added once each, searched, exported, deleted when too old.

Calls may come from any thread and block, so an event loop makes them through `asyncio.to_thread`. The schema grows by
appending to `MIGRATIONS`. postgres.py has the store in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from stream_sttm.storage import events
from stream_sttm.storage.sql_answers import ALL, SqlAnswers, Wanted
from stream_sttm.storage.sqlite_file import Purpose, SqliteFile
from stream_sttm.types import Answer

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
_PURPOSE = Purpose("store", "store.path", "make room or set store.keep_days")


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
