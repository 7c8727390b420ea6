"""Which storage a configuration names: the answer store, the file beside it, and the outbox table.

A missing optional package is a ConfigError, a file or database that can't be used a StoreError.
"""

from __future__ import annotations

import logging
from pathlib import Path

from stream_sttm.config.settings import Settings
from stream_sttm.errors import ConfigError, StoreError
from stream_sttm.storage.answers import AnswerStore, Store
from stream_sttm.storage.outbox import OutboxTable
from stream_sttm.storage.sqlite_file import SqliteFile

_log = logging.getLogger(__name__)


def open_store(path: str) -> Store:
    """Open the answer store that `path` names: a SQLite file or a PostgreSQL database.

    Raises StoreError where it can't be used, and ConfigError where psycopg is missing.
    """
    if not path.startswith(("postgresql://", "postgres://")):
        return AnswerStore(path)
    try:
        from stream_sttm.storage.postgres import PostgresStore
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"store.path: postgresql:// needs the package {error.name!r}: pip install 'stream-sttm[postgres]'"
        ) from error
    return PostgresStore(path)


def events_file(store: Store) -> SqliteFile:
    """Return the file for events and switches: the answers' own, or events.db beside PostgreSQL."""
    return store.file if isinstance(store, AnswerStore) else AnswerStore("events.db").file


def open_outbox(settings: Settings) -> OutboxTable | None:
    """Open the table of what waits for a sink.

    Returns None where no file is configured. Logs the error and returns None where the file can't be used.
    """
    path = settings.outbox.path
    if path is None and settings.store.path != ":memory:" and "://" not in settings.store.path:
        store = Path(settings.store.path)
        path = str(store.with_name(f"{store.stem}-outbox{store.suffix}"))
    if path is None:
        return None
    try:
        return OutboxTable(path)
    except StoreError as error:
        _log.error("answers that can't be delivered wait in memory alone: %s", error)
        return None
