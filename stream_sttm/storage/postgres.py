"""Answers in PostgreSQL, so that several services can share one store. It behaves as the SQLite one in answers.py.

psycopg, not an ORM: the two databases differ in text search, and no layer above SQL covers both. One connection behind
a lock, opened again where the server was gone. Numbers rise with each answer. When two services write at once, the
lower number may become visible later, so an export that runs meanwhile can miss it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from stream_sttm import urls
from stream_sttm.errors import StoreError
from stream_sttm.storage.sql_answers import SqlAnswers

MIGRATIONS = (
    """
    CREATE TABLE answers (
        seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        stream TEXT NOT NULL,
        query TEXT,
        question TEXT NOT NULL,
        answer TEXT NOT NULL,
        answer_type TEXT NOT NULL,
        structured TEXT NOT NULL,
        confidence DOUBLE PRECISION,
        news BOOLEAN NOT NULL,
        frame_time DOUBLE PRECISION NOT NULL,
        "window" TEXT NOT NULL,
        asked_at DOUBLE PRECISION NOT NULL,
        answered_at DOUBLE PRECISION NOT NULL,
        event_to_answer_ms DOUBLE PRECISION NOT NULL,
        tokens TEXT NOT NULL,
        model TEXT NOT NULL,
        words TSVECTOR GENERATED ALWAYS AS (to_tsvector('simple', question || ' ' || answer)) STORED
    );
    CREATE INDEX answers_by_stream ON answers (stream, query, seq);
    CREATE INDEX answers_by_query ON answers (query, seq);
    CREATE INDEX answers_by_age ON answers (answered_at);
    CREATE INDEX answers_by_word ON answers USING GIN (words);
    """,
    """
    ALTER TABLE answers ADD COLUMN seconds TEXT NOT NULL DEFAULT '{"fresh": 0.0, "recall": 0.0}';
    """,
)
_MIGRATING = 0x5354544D  # the advisory lock that a migration holds


class PostgresStore(SqlAnswers):
    """The answers in the database `url`, connected to and migrated at once. The character NUL is kept as U+FFFD.

    `timeout` is how many seconds connecting and each statement may take. Every method raises StoreError.
    """

    PARAMETER, NAMED = "%s", "%({})s"
    TEXT_SEARCH = "words @@ plainto_tsquery('simple', {})"

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        self._url, self._timeout = url, timeout
        self._lock = threading.Lock()
        self._is_closed = False
        self._db: psycopg.Connection[dict[str, Any]] | None = None
        try:
            with self._using() as db:
                _migrate(db, urls.mask(url))
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection. A second call does nothing, any other call after it raises StoreError."""
        with self._lock:
            self._is_closed = True
            if self._db is not None:
                self._db.close()

    def _read(self, statement: str, values: Sequence[Any]) -> list[dict[str, Any]]:
        with self._using() as db:
            given = [_text(value) for value in values]
            return db.execute(statement, given).fetchall()  # type: ignore[arg-type,unused-ignore]

    def _write(self, statement: str, values: Sequence[Any] | dict[str, Any]) -> int:
        given = (
            {name: _text(value) for name, value in values.items()}
            if isinstance(values, dict)
            else values
        )
        with self._using() as db:
            count: int = db.execute(statement, given).rowcount  # type: ignore[arg-type,unused-ignore]
            return count

    def _search_text(self, text: str) -> str:
        return text.encode(errors="replace").decode()

    @contextmanager
    def _using(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """Give the connection, or a new one where it was lost. Turns psycopg's errors into StoreError."""
        with self._lock:
            if self._is_closed:
                raise StoreError(f"store {urls.mask(self._url)}: is closed")
            try:
                if self._db is None or self._db.broken or not self._is_alive(self._db):
                    self._db = self._connect()
                yield self._db
            except (psycopg.Error, UnicodeEncodeError) as error:
                why = _explain(error, self._url)
                raise StoreError(f"store {urls.mask(self._url)}: {why}") from error

    def _is_alive(self, db: psycopg.Connection[dict[str, Any]]) -> bool:
        """Whether the server still knows the connection, which a restarted one does not."""
        try:
            db.execute("SELECT 1")
        except psycopg.OperationalError:
            db.close()
            return False
        return True

    def _connect(self) -> psycopg.Connection[dict[str, Any]]:
        wait = max(2, round(self._timeout))  # libpq takes whole seconds, 2 at least
        db = psycopg.connect(self._url, autocommit=True, connect_timeout=wait, row_factory=dict_row)
        db.execute(f"SET statement_timeout = {round(self._timeout * 1000)}")
        return db


def _migrate(db: psycopg.Connection[dict[str, Any]], name: str) -> None:
    """Bring the schema to this version, all steps or none. Several services may try at once."""
    with db.transaction():
        db.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
        db.execute("CREATE TABLE IF NOT EXISTS stream_sttm_schema (version INTEGER NOT NULL)")
        row = db.execute("SELECT version FROM stream_sttm_schema").fetchone()
        version = row["version"] if row else 0
        if version > len(MIGRATIONS):
            raise StoreError(
                f"store {name}: was written by a newer version of stream-sttm;"
                " name another database in store.path or upgrade"
            )
        for step in MIGRATIONS[version:]:
            for statement in filter(str.strip, step.split(";")):
                db.execute(statement)  # type: ignore[arg-type,unused-ignore]
        if not row:
            db.execute("INSERT INTO stream_sttm_schema VALUES (%s)", (len(MIGRATIONS),))
        db.execute("UPDATE stream_sttm_schema SET version = %s", (len(MIGRATIONS),))


def _text(value: Any) -> Any:
    """Replace the character NUL, which PostgreSQL can't store."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _explain(error: Exception, url: str) -> str:
    """Return what went wrong and what to do about it, in one line without secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    advice = {
        "password authentication failed": "user or password refused; check store.path",
        "does not exist": "no such user, database or table; create it, or check store.path",
        "permission denied": "the user may not do this; grant it the database",
        "statement timeout": "the server did not answer in time",
        "Connection refused": "can't connect: nobody listens there; check store.path",
        "timeout expired": "can't connect: no answer; check host, port and firewall",
        "No space left": "the server's disk is full; make room or set store.keep_days",
    }
    return next((advice[word] for word in advice if word in text), urls.scrub(text, url)[:300])
