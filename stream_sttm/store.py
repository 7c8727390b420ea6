"""Answers in SQLite: written once each, read back newest first, deleted when too old.

One connection behind a lock, so calls may come from any thread; they block, so an event loop makes them through
`asyncio.to_thread`. The schema grows by appending to `MIGRATIONS`. Knows nothing of queries, sinks or HTTP.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from stream_sttm.errors import StoreError
from stream_sttm.types import Answer

_log = logging.getLogger(__name__)
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
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        stream TEXT NOT NULL,
        query TEXT NOT NULL,
        started_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        ended_at REAL,
        state TEXT NOT NULL,
        confidence REAL,
        answer_id TEXT NOT NULL,
        span TEXT NOT NULL,
        escalated INTEGER NOT NULL,
        event_to_answer_ms REAL NOT NULL
    );
    CREATE INDEX events_by_stream ON events (stream, query, seq);
    CREATE INDEX events_by_query ON events (query, seq);
    CREATE INDEX events_by_age ON events (updated_at);
    CREATE TABLE snapshots (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        event TEXT NOT NULL UNIQUE,
        jpeg BLOB NOT NULL
    );
    CREATE TABLE toggles (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        enabled INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    );
    """,
)
_COLUMNS = (
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
    "model",
)
_JSON = ("structured", "window", "tokens")  # columns that hold JSON
_ADD = (
    f"INSERT INTO answers ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{c}' for c in _COLUMNS)})"
    " ON CONFLICT (id) DO NOTHING"
)
_PRUNE = "DELETE FROM answers WHERE seq IN (SELECT seq FROM answers WHERE answered_at < ? LIMIT ?)"
_PRUNED_AT_ONCE = 1000  # rows; so that a long prune lets writers through in between
MAX_LIMIT = 1000


class AnswerStore:
    """The answers kept in the SQLite file `path` (`:memory:` for this run only); opened and migrated at once.

    `busy_timeout` is how many seconds a call may wait for another process's lock. Every method raises StoreError.
    """

    def __init__(self, path: str | Path, *, busy_timeout: float = 5.0) -> None:
        self._path = str(path)
        self._busy_timeout = busy_timeout
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        with self._mapped():
            self._db = sqlite3.connect(
                self._path,
                timeout=self._busy_timeout,
                check_same_thread=False,
                isolation_level=None,
            )
        try:
            with self._mapped():
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._migrate()
        except StoreError:
            self._db.close()
            raise
        self._file = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        """What tells the file at the path from any other; None where there is none."""
        try:
            found = Path(self._path).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _follow(self) -> None:
        """Begin a new file where somebody took this one away; SQLite itself would go on writing to nowhere."""
        if self._file is None or self._identity() == self._file:
            return
        self._db.close()
        self._file = (-1, -1)  # none, until opening works
        self._open()
        _log.warning("store %s: the file was taken away; a new one is begun", self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing, any other call after it raises StoreError."""
        with self._lock, self._mapped():
            self._db.close()

    def add(self, answer: Answer, *, published_at: float | None = None) -> bool:
        """Keep `answer`; False where one of its id is kept already."""
        row = answer.as_dict(published_at=time.time() if published_at is None else published_at)
        row |= {name: json.dumps(row[name]) for name in _JSON}
        with self._lock, self._mapped():
            self._follow()
            return self._db.execute(_ADD, row).rowcount == 1

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """The newest answers first, as `Answer.as_dict` with `seq`; `before` is the `seq` to go on from."""
        wanted = {"stream = ?": stream, "query = ?": query, "seq < ?": before}
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        select = f"SELECT seq, {', '.join(_COLUMNS)} FROM answers{where} ORDER BY seq DESC LIMIT ?"
        values = [*given.values(), max(0, min(limit, MAX_LIMIT))]
        with self._lock, self._mapped():
            rows = self._db.execute(select, values).fetchall()
        return [_answer(row) for row in rows]

    def prune(self, *, older_than: float) -> int:
        """Delete what was answered before the wall clock `older_than`; the number of answers deleted."""
        deleted = 0
        while True:
            with self._lock, self._mapped():
                count = self._db.execute(_PRUNE, (older_than, _PRUNED_AT_ONCE)).rowcount
            deleted += count
            if count < _PRUNED_AT_ONCE:
                return deleted

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """What one statement over the tables beside the answers gives; for who keeps those in this file."""
        with self._lock, self._mapped():
            self._follow()
            return [dict(row) for row in self._db.execute(statement, values)]

    def _migrate(self) -> None:
        """Bring the schema to this version, all steps or none; several processes may try at once."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"store {self._path}: was written by a newer version of stream-sttm;"
                    " name another file in store.path or upgrade"
                )
            for step in MIGRATIONS[version:]:
                for statement in filter(str.strip, step.split(";")):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        except BaseException:
            if self._db.in_transaction:  # some errors have rolled back already
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn what sqlite3 raises into StoreError: what, where, what to do."""
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise StoreError(f"store {self._path}: {_explain(error, self._path)}") from error


def _explain(error: Exception, path: str) -> str:
    """What went wrong and what to do about it, in one line."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    folder = Path(path).absolute().parent
    if "unable to open" in text:
        if not folder.is_dir():
            return f"the folder {folder} does not exist; create it or change store.path"
        return f"can't be opened; check that {folder} is writable and the path is a file"
    advice = {
        "readonly": "can't be written; check its permissions",
        "locked": "is locked by another process; stop that one or change store.path",
        "full": "the disk is full; make room or set store.keep_days",
        "not a database": "is no SQLite file; move it away or change store.path",
        "malformed": "is damaged; move it away, a new one is made at the next start",
        "closed": "is closed",
    }
    return next((advice[word] for word in advice if word in text), text)


def _answer(row: sqlite3.Row) -> dict[str, Any]:
    answer = dict(row)
    answer["news"] = bool(answer["news"])
    return answer | {name: json.loads(answer[name]) for name in _JSON}
