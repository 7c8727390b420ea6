"""Events in the store's SQLite file, in their newest version, with a picture of how each began. Both are bounded.

Calls block, may come from any thread, and raise StoreError.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from stream_sttm.errors import UnknownEvent
from stream_sttm.storage.sqlite_file import SqliteFile
from stream_sttm.types import Event, EventKind

SCHEMA = """
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
    CREATE TABLE switches (
        stream TEXT NOT NULL,
        query TEXT NOT NULL,
        is_on INTEGER NOT NULL,
        PRIMARY KEY (stream, query)
    );
"""  # a migration of the file that it shares
ADDED = """
    CREATE TABLE added (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        settings TEXT NOT NULL,
        PRIMARY KEY (kind, name)
    );
"""  # another migration: what was added over HTTP
MAX_LIMIT = 1000
_COLUMNS = (
    "id",
    "kind",
    "stream",
    "query",
    "started_at",
    "updated_at",
    "ended_at",
    "state",
    "confidence",
    "answer_id",
    "span",
    "escalated",
    "event_to_answer_ms",
)
_NEWER = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name != "id")
_ADD = (
    f"INSERT INTO events ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
    f" ON CONFLICT (id) DO UPDATE SET {_NEWER}"
)
_SELECT = (
    f"SELECT events.seq, {', '.join(_COLUMNS)}, snapshots.event IS NOT NULL AS has_snapshot"
    " FROM events LEFT JOIN snapshots ON snapshots.event = events.id"
)
_DROP_OLDEST = "DELETE FROM snapshots WHERE seq <= (SELECT MAX(seq) FROM snapshots) - ?"
_DROP_ORPHANS = (  # except the newest, whose event may be written next
    "DELETE FROM snapshots WHERE event NOT IN (SELECT id FROM events)"
    " AND seq < (SELECT MAX(seq) FROM snapshots)"
)
_LAST = "events.seq IN (SELECT MAX(seq) FROM events GROUP BY stream, query)"


class EventLog:
    """The events and the newest `keep_snapshots` pictures in `file`, which has the tables of SCHEMA."""

    def __init__(self, file: SqliteFile, *, keep_snapshots: int = 1000) -> None:
        self._file, self._keep_snapshots = file, keep_snapshots

    def add(self, event: Event, *, published_at: float) -> None:
        """Keep `event` in place of its earlier version."""
        row = event.as_dict(published_at=published_at)
        row |= {name: json.dumps(row[name], allow_nan=False) for name in ("state", "span")}
        with self._file.writing() as db:
            db.execute(_ADD, [row[name] for name in _COLUMNS])

    def add_snapshot(self, event: str, jpeg: bytes) -> None:
        """Keep the picture with which an event began. Deletes the oldest pictures where there are too many."""
        with self._file.writing() as db:
            db.execute("INSERT OR IGNORE INTO snapshots (event, jpeg) VALUES (?, ?)", (event, jpeg))
            db.execute(_DROP_OLDEST, (self._keep_snapshots,))

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return events, newest first, as `Event.as_dict` with `seq`. `before` is the last page's lowest `seq`."""
        wanted = {"stream = ?": stream, "query = ?": query, "events.seq < ?": before}
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        rows = self._read(
            f"{_SELECT}{where} ORDER BY events.seq DESC LIMIT ?",
            [*given.values(), max(0, min(limit, MAX_LIMIT))],
        )
        return [_shown(row) for row in rows]

    def event(self, event: str) -> dict[str, Any]:
        """Return one event as `recent` does. Raises UnknownEvent."""
        rows = self._read(f"{_SELECT} WHERE id = ?", (event,))
        if not rows:
            raise UnknownEvent(f"there is no event {event!r}; it may have been too old to keep")
        return _shown(rows[0])

    def snapshot(self, event: str) -> bytes:
        """Return the picture with which an event began, as JPEG. Raises UnknownEvent where none is kept."""
        rows = self._read("SELECT jpeg FROM snapshots WHERE event = ?", (event,))
        if not rows:
            raise UnknownEvent(f"no picture of an event {event!r} is kept")
        return bytes(rows[0]["jpeg"])

    def last(self) -> list[Event]:
        """Return each query's last event on each stream, from which to go on after a restart."""
        return [_event(row) for row in self._read(f"{_SELECT} WHERE {_LAST}")]

    def prune(self, *, older_than: float) -> None:
        """Delete events that ended before the wall clock `older_than`, and their pictures."""
        with self._file.writing() as db:
            db.execute(
                "DELETE FROM events WHERE updated_at < ? AND ended_at IS NOT NULL", (older_than,)
            )
            db.execute(_DROP_ORPHANS)

    def _read(self, select: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._file.reading() as db:
            return db.execute(select, values).fetchall()


def _event(row: sqlite3.Row) -> Event:
    start, end = json.loads(row["span"])
    return Event(
        id=row["id"],
        kind=EventKind(row["kind"]),
        stream=row["stream"],
        query=row["query"],
        started_at=row["started_at"],
        updated_at=row["updated_at"],
        ended_at=row["ended_at"],
        state=json.loads(row["state"]),
        confidence=row["confidence"],
        answer_id=row["answer_id"],
        span=(start, end),
        escalated=bool(row["escalated"]),
        has_snapshot=bool(row["has_snapshot"]),
    )


def _shown(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        **_event(row).as_dict(published_at=0.0),
        "event_to_answer_ms": row["event_to_answer_ms"],
    }
