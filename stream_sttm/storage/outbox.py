"""The outbox table: answers and events that wait for a sink, in SQLite, so that they outlive the process.

Each sink has a queue of its own with rising numbers. The writer bounds it. Calls block and may come from any thread.
Sending, retries and giving up are in workers/outbox.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from stream_sttm.storage.sqlite_file import Purpose, SqliteFile
from stream_sttm.types import (
    Answer,
    AnswerType,
    Event,
    EventKind,
    Form,
    Question,
    Seconds,
    TokenCounts,
)

MIGRATIONS = (
    """
    CREATE TABLE waiting (
        sink TEXT NOT NULL,
        seq INTEGER NOT NULL,
        since REAL NOT NULL,
        kind TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (sink, seq)
    ) WITHOUT ROWID;
    """,
)
_PURPOSE = Purpose("outbox", "outbox.path", "make room or lower outbox.capacity")
_ADD = "INSERT OR IGNORE INTO waiting (sink, seq, since, kind, body) VALUES (?, ?, ?, ?, ?)"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A waiting item, its number, and the wall clock of its arrival. `item` is None where the row can't be read."""

    seq: int
    since: float
    item: Answer | Event | None


class OutboxTable:
    """The waiting items of every sink, in the SQLite file `path`, which is opened and migrated at once.

    Every method raises StoreError where the file can't be used.
    """

    def __init__(self, path: str | Path, *, busy_timeout: float = 5.0) -> None:
        self._file = SqliteFile(path, _PURPOSE, MIGRATIONS, busy_timeout=busy_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A second call does nothing, any other call after it raises StoreError."""
        self._file.close()

    def count(self, sink: str) -> tuple[int, int]:
        """Return how many entries wait for `sink` and the highest number among them, 0 for none."""
        select = "SELECT COUNT(*), COALESCE(MAX(seq), 0) FROM waiting WHERE sink = ?"
        with self._file.reading() as db:
            count, newest = db.execute(select, (sink,)).fetchone()
        return count, newest

    def add(self, sink: str, entries: Sequence[Entry]) -> None:
        """Insert `entries`, all or none. An entry whose number exists already is left as it is."""
        rows = [(sink, entry.seq, entry.since, *_dumped(entry.item)) for entry in entries]
        with self._file.writing() as db:
            db.executemany(_ADD, rows)

    def first(self, sink: str, *, after: int, limit: int) -> list[Entry]:
        """Return the oldest `limit` entries whose number is above `after`."""
        select = "SELECT * FROM waiting WHERE sink = ? AND seq > ? ORDER BY seq LIMIT ?"
        with self._file.reading() as db:
            rows = db.execute(select, (sink, after, limit)).fetchall()
        return [Entry(row["seq"], row["since"], _loaded(row["kind"], row["body"])) for row in rows]

    def remove(self, sink: str, *, through: int) -> None:
        """Delete all entries with numbers up to `through`."""
        with self._file.writing() as db:
            db.execute("DELETE FROM waiting WHERE sink = ? AND seq <= ?", (sink, through))

    def drop(self, sink: str, *, after: int, count: int) -> int:
        """Delete the `count` oldest entries whose number is above `after`. Returns how many were deleted."""
        oldest = "SELECT seq FROM waiting WHERE sink = ? AND seq > ? ORDER BY seq LIMIT ?"
        delete = f"DELETE FROM waiting WHERE sink = ? AND seq IN ({oldest})"
        with self._file.writing() as db:
            return db.execute(delete, (sink, sink, after, count)).rowcount

    def forget(self, *, before: float) -> int:
        """Delete what arrived before the wall clock `before`, for every sink. Returns how many were deleted."""
        with self._file.writing() as db:
            return db.execute("DELETE FROM waiting WHERE since < ?", (before,)).rowcount


def _dumped(item: Answer | Event | None) -> tuple[str, str]:
    assert item is not None
    # ASCII, because a text may hold half of a surrogate pair
    return "answer" if isinstance(item, Answer) else "event", json.dumps(
        asdict(item), allow_nan=False
    )


def _loaded(kind: str, body: str) -> Answer | Event | None:
    try:
        tree = json.loads(body)
        return _answer(tree) if kind == "answer" else _event(tree)
    except (ValueError, TypeError, KeyError):  # another version's, or damaged
        return None


def _answer(tree: dict[str, Any]) -> Answer:
    question = tree["question"]
    form = question["form"]
    form |= {"type": AnswerType(form["type"]), "choices": tuple(form["choices"])}
    turns = tuple((asked, answered) for asked, answered in question.get("turns", ()))
    question |= {"form": _made(Form, form), "turns": turns}
    return _made(
        Answer,
        tree
        | {
            "question": _made(Question, question),
            "span": tuple(tree["span"]),
            "tokens": _made(TokenCounts, tree["tokens"]),
            "seconds": _made(Seconds, tree.get("seconds", {})),
        },
    )


def _event(tree: dict[str, Any]) -> Event:
    return _made(Event, tree | {"kind": EventKind(tree["kind"]), "span": tuple(tree["span"])})


def _made(cls: type[_T], tree: dict[str, Any]) -> _T:
    """Return an instance made from its fields. Fields that this version does not know are left out."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in tree.items() if name in known})
