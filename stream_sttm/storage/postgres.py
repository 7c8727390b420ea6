"""Answers in PostgreSQL, for several services that keep theirs in one place; the promises are those of store.py.

psycopg, not an ORM: what differs between the two databases is the text search, which no layer above SQL has in common.
One connection behind a lock, made anew where the server was gone. Numbers rise with each answer, but of two services
that write at once the lower one may show later, so an export that runs meanwhile can miss it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row

from stream_sttm import urls
from stream_sttm.errors import StoreError
from stream_sttm.storage.answers import (
    ALL,
    COLUMNS,
    JSON_COLUMNS,
    MAX_LIMIT,
    PRUNED_AT_ONCE,
    Wanted,
    asked_for,
    pages,
    row_of,
)
from stream_sttm.types import Answer

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
_MIGRATING = 0x5354544D  # the advisory lock of whoever brings the schema up to date
_LISTED = ", ".join(f'"{column}"' for column in COLUMNS)
_ADD = (
    f"INSERT INTO answers ({_LISTED}) VALUES ({', '.join(f'%({c})s' for c in COLUMNS)})"
    " ON CONFLICT (id) DO NOTHING"
)
_PRUNE = (
    "DELETE FROM answers WHERE seq IN (SELECT seq FROM answers WHERE answered_at < %s LIMIT %s)"
)
_CLAUSES = {
    "stream": "stream = %s",
    "query": "query = %s",
    "answer_type": "answer_type = %s",
    "since": "answered_at >= %s",
    "until": "answered_at < %s",
    "text": "words @@ plainto_tsquery('simple', %s)",
    "before": "seq < %s",
    "after": "seq > %s",
}


class PostgresStore:
    """The answers kept in the database `url`; connected to and migrated at once.

    `timeout` is how many seconds connecting and each statement may take. Every method raises StoreError.
    """

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; a second call does nothing, any other call after it raises StoreError."""
        with self._lock:
            self._is_closed = True
            if self._db is not None:
                self._db.close()

    def add(self, answer: Answer, *, published_at: float | None = None) -> bool:
        """Keep `answer`; False where one of its id is kept already. The character NUL is kept as U+FFFD."""
        row = {name: _text(value) for name, value in row_of(answer, published_at).items()}
        with self._using() as db:
            return bool(db.execute(_ADD, row).rowcount)

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
        """All of them, oldest first, a page at a time."""
        return pages(lambda after: self._select(wanted, "ASC", limit=MAX_LIMIT, after=after))

    def prune(self, *, older_than: float) -> int:
        """Delete what was answered before the wall clock `older_than`; the number of answers deleted."""
        deleted = 0
        while True:
            with self._using() as db:
                count: int = db.execute(_PRUNE, (older_than, PRUNED_AT_ONCE)).rowcount
            deleted += count
            if count < PRUNED_AT_ONCE:
                return deleted

    def _select(
        self, wanted: Wanted, order: str, *, limit: int, **cursor: int | None
    ) -> list[dict[str, Any]]:
        asked = {name: _text(value) for name, value in asked_for(wanted, cursor).items()}
        if "text" in asked:
            asked["text"] = asked["text"].encode(errors="replace").decode()
        where = " AND ".join(_CLAUSES[name] for name in asked) or "TRUE"
        select = f"SELECT seq, {_LISTED} FROM answers WHERE {where} ORDER BY seq {order} LIMIT %s"
        with self._using() as db:
            values = [*asked.values(), max(0, min(limit, MAX_LIMIT))]
            rows = db.execute(select, values).fetchall()  # type: ignore[arg-type,unused-ignore]
        return [row | {name: json.loads(row[name]) for name in JSON_COLUMNS} for row in rows]

    @contextmanager
    def _using(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        """The connection, a new one where the last has gone; what psycopg raises becomes StoreError."""
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
        """Whether the server is still there; one that was started anew has forgotten the connection."""
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
    """Bring the schema to this version, all steps or none; several services may try at once."""
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
    """PostgreSQL has no place for the character NUL."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _explain(error: Exception, url: str) -> str:
    """What went wrong and what to do about it, in one line without secrets."""
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
