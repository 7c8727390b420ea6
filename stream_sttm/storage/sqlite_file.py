"""A SQLite file: opened in WAL mode, migrated, created again where it was deleted, each error as one line.

One connection behind a lock, so calls may come from any thread. They block, so an event loop makes them through
`asyncio.to_thread`. A schema grows by appending to its list of migrations. Knows nothing of what the tables hold.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stream_sttm.errors import StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purpose:
    """Words for messages about a file: its name, its setting, and what frees space on a full disk."""

    name: str
    setting: str
    room: str


class SqliteFile:
    """The file `path` (`:memory:` for this run only), opened and migrated at once. Several processes may share it.

    `busy_timeout` is how many seconds a call may wait for another process's lock. Every method raises StoreError.
    """

    def __init__(
        self,
        path: str | Path,
        purpose: Purpose,
        migrations: Sequence[str],
        *,
        busy_timeout: float = 5.0,
    ) -> None:
        self.path = str(path)
        self._purpose, self._migrations = purpose, tuple(migrations)
        self._busy_timeout = busy_timeout
        self._lock = threading.RLock()
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A second call does nothing, any other call after it raises StoreError."""
        with self._lock, self._mapped():
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for reading."""
        with self._lock, self._mapped():
            yield self._db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection in a transaction: all of the `with` body is written, or nothing."""
        with self._lock, self._mapped():
            self._follow()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some errors have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def _open(self) -> None:
        with self._mapped():
            self._db = sqlite3.connect(
                self.path,
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
        """Return device and inode of the file at the path, None where there is none."""
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _follow(self) -> None:
        """Create a new file where this one was deleted. SQLite itself would write on into the deleted one."""
        if self._file is None or self._identity() == self._file:
            return
        self._db.close()
        self._file = (-1, -1)  # none, until opening works
        self._open()
        _log.warning(
            "%s %s: the file was taken away; a new one is begun", self._purpose.name, self.path
        )

    def _migrate(self) -> None:
        """Bring the schema to this version, all steps or none. Several processes may try at once."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > len(self._migrations):
                raise StoreError(
                    f"{self._purpose.name} {self.path}: was written by a newer version of stream-sttm;"
                    f" name another file in {self._purpose.setting} or upgrade"
                )
            for step in self._migrations[version:]:
                for statement in _statements(step):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(self._migrations)}")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn sqlite3's errors into StoreError: what, where, what to do."""
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise StoreError(f"{self._purpose.name} {self.path}: {self._explain(error)}") from error

    def _explain(self, error: Exception) -> str:
        """Return what went wrong and what to do about it, in one line."""
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        folder, setting = Path(self.path).absolute().parent, self._purpose.setting
        if "unable to open" in text:
            if not folder.is_dir():
                return f"the folder {folder} does not exist; create it or change {setting}"
            return f"can't be opened; check that {folder} is writable and the path is a file"
        advice = {
            "readonly": "can't be written; check its permissions",
            "locked": f"is locked by another process; stop that one or change {setting}",
            "full": f"the disk is full; {self._purpose.room}",
            "not a database": f"is no SQLite file; move it away or change {setting}",
            "malformed": "is damaged; move it away, a new one is made at the next start",
            "closed": "is closed",
            "fts5": "this Python's SQLite has no full-text search (FTS5); use another build",
        }
        return next((advice[word] for word in advice if word in text), text)


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script. Semicolons inside a trigger end none."""
    statement = ""
    for part in script.split(";"):
        statement += part
        if not statement.strip():
            statement = ""
        elif sqlite3.complete_statement(f"{statement};"):
            yield statement
            statement = ""
        else:
            statement += ";"
    if statement.strip(" ;\n"):
        yield statement
