"""The settings of what is kept on disk: answers, outboxes, memories."""

from __future__ import annotations

from pydantic import Field

from stream_sttm.config.streams import Section


class StoreSettings(Section):
    """Where answers are kept."""

    path: str = Field(
        "answers.db",
        min_length=1,
        description="SQLite file, postgresql://user:password@host/database, or ':memory:' for this run only. Beside PostgreSQL, events and switches are kept in events.db.",
    )
    keep_days: float | None = Field(
        None,
        gt=0,
        description="Days after which an answer or event is deleted; null: kept for ever.",
    )
    keep_snapshots: int = Field(
        1000, ge=0, description="Pictures of how events began that are kept, the newest."
    )


class OutboxSettings(Section):
    """The outbox: answers that wait for a sink which can't be reached."""

    path: str | None = Field(
        None,
        min_length=1,
        description="SQLite file; null: beside store.path, '-outbox' to its name, or in memory where there is no such file.",
    )
    capacity: int = Field(
        50_000, ge=1, description="Answers that may wait for one sink; the oldest gives way."
    )
    max_age: float = Field(
        86_400.0, gt=0, description="Seconds after which an answer that waits is given up."
    )


class StateSettings(Section):
    """Memories saved over restarts."""

    dir: str | None = Field(
        None,
        min_length=1,
        description="Folder for the streams' memories, and for what memory.recall keeps; null: each start begins empty.",
    )
    save_every: float = Field(
        60.0, ge=1, description="Seconds between two saves; a crash loses at most so much."
    )
    max_age: float = Field(
        600.0,
        gt=0,
        description="Seconds after which a saved memory is not taken back any more; the past beyond it has an age of its own.",
    )
