"""Events in the store, as last told, with a picture of how each began; both bounded.

Blocking, like the store whose file it shares; calls may come from any thread and raise StoreError.
"""

from __future__ import annotations

import json
from typing import Any

from stream_sttm.errors import UnknownEvent
from stream_sttm.store import MAX_LIMIT, AnswerStore
from stream_sttm.types import Event, EventKind

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
_LAST = "events.seq IN (SELECT MAX(seq) FROM events GROUP BY stream, query)"


class EventLog:
    """The events and the newest `keep_snapshots` pictures in a store's file."""

    def __init__(self, store: AnswerStore, *, keep_snapshots: int = 1000) -> None:
        self._store, self._keep_snapshots = store, keep_snapshots

    def add(self, event: Event, *, published_at: float) -> None:
        """Keep `event` as it is told now, in place of what was told of it before."""
        told = event.as_dict(published_at=published_at)
        told |= {name: json.dumps(told[name]) for name in ("state", "span")}
        self._store.rows(_ADD, [told[name] for name in _COLUMNS])

    def add_snapshot(self, event: str, jpeg: bytes) -> None:
        """Keep the picture with which an event began; the oldest ones go where there are too many."""
        self._store.rows(
            "INSERT INTO snapshots (event, jpeg) VALUES (?, ?) ON CONFLICT (event) DO NOTHING",
            (event, jpeg),
        )
        self._store.rows(
            "DELETE FROM snapshots WHERE seq <= (SELECT MAX(seq) FROM snapshots) - ?",
            (self._keep_snapshots,),
        )

    def recent(
        self,
        *,
        stream: str | None = None,
        query: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """The newest events first, as `Event.as_dict` with `seq`; `before` is the `seq` to go on from."""
        wanted = {"stream = ?": stream, "query = ?": query, "events.seq < ?": before}
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        rows = self._store.rows(
            f"{_SELECT}{where} ORDER BY events.seq DESC LIMIT ?",
            [*given.values(), max(0, min(limit, MAX_LIMIT))],
        )
        return [_shown(row) for row in rows]

    def event(self, event: str) -> dict[str, Any]:
        """One event as in `recent`; raises UnknownEvent."""
        rows = self._store.rows(f"{_SELECT} WHERE id = ?", (event,))
        if not rows:
            raise UnknownEvent(f"there is no event {event!r}; it may have been too old to keep")
        return _shown(rows[0])

    def snapshot(self, event: str) -> bytes:
        """The picture with which an event began, as JPEG; raises UnknownEvent where none is kept."""
        rows = self._store.rows("SELECT jpeg FROM snapshots WHERE event = ?", (event,))
        if not rows:
            raise UnknownEvent(f"no picture of an event {event!r} is kept")
        return bytes(rows[0]["jpeg"])

    def last(self) -> list[Event]:
        """Each query's last event on each stream, for the bookkeeping to go on from after a restart."""
        return [_event(row) for row in self._store.rows(f"{_SELECT} WHERE {_LAST}")]

    def prune(self, *, older_than: float) -> None:
        """Delete what was over before the wall clock `older_than`, and the pictures of it."""
        over = "updated_at < ? AND ended_at IS NOT NULL"
        self._store.rows(f"DELETE FROM events WHERE {over}", (older_than,))
        self._store.rows("DELETE FROM snapshots WHERE event NOT IN (SELECT id FROM events)")


def _event(row: dict[str, Any]) -> Event:
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


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    told = _event(row).as_dict(published_at=0.0)
    return {
        "seq": row["seq"],
        **told,
        "event_to_answer_ms": row["event_to_answer_ms"],
    }
