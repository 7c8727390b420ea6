"""The switches: what was enabled or disabled while running, kept over restarts beside the configuration file.

A switch holds until it is thrown again, or until the configuration says the same. Calls block and raise StoreError.
"""

from __future__ import annotations

from collections.abc import Mapping

from stream_sttm.config.settings import Settings
from stream_sttm.storage.sqlite_file import SqliteFile

Place = tuple[str, str]  # a stream and a query; "" as the query means the stream itself


class Switches:
    """The switches in `file`, which has the tables of storage/events.py."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def load(self, settings: Settings) -> dict[Place, bool]:
        """Return the switches that differ from `settings`. Deletes those that the configuration agrees with."""
        configured = places(settings)
        with self._file.writing() as db:
            rows = db.execute("SELECT stream, query, is_on FROM switches").fetchall()
            thrown = {(row["stream"], row["query"]): bool(row["is_on"]) for row in rows}
            agreed = [place for place, is_on in thrown.items() if configured.get(place) == is_on]
            db.executemany("DELETE FROM switches WHERE stream = ? AND query = ?", agreed)
        return {place: on for place, on in thrown.items() if configured.get(place) == (not on)}

    def throw(self, switches: Mapping[Place, bool]) -> None:
        """Store that streams or queries are switched on or off."""
        rows = [(stream, query, int(is_on)) for (stream, query), is_on in switches.items()]
        with self._file.writing() as db:
            db.executemany(
                "INSERT INTO switches (stream, query, is_on) VALUES (?, ?, ?)"
                " ON CONFLICT (stream, query) DO UPDATE SET is_on = excluded.is_on",
                rows,
            )

    def forget(self, *, stream: str = "", query: str = "") -> None:
        """Delete the switches of a stream and its queries, or of a query."""
        with self._file.writing() as db:
            if stream:
                db.execute("DELETE FROM switches WHERE stream = ?", (stream,))
            if query:
                db.execute("DELETE FROM switches WHERE query = ?", (query,))


def places(settings: Settings) -> dict[Place, bool]:
    """Return whether the configuration enables each stream, and each query on each of its streams."""
    streams = {(name, ""): stream.enabled for name, stream in settings.streams.items()}
    queries = {
        (stream, name): query.enabled
        for name, query in settings.queries.items()
        for stream in query.streams
    }
    return streams | queries
