"""What was switched on or off while running, kept apart from the configuration file and over restarts.

The newest word counts: a switch holds until it is thrown again, or until the configuration says the same, which makes
it moot. Blocking, like the store whose file it shares; raises StoreError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from stream_sttm.config import Settings
from stream_sttm.queryconfig import QuerySettings
from stream_sttm.store import AnswerStore

Kind = Literal["stream", "query"]
Switches = Mapping[tuple[str, str], bool]  # by kind and name


class Toggles:
    """The switches in a store's file."""

    def __init__(self, store: AnswerStore) -> None:
        self._store = store

    def load(self, settings: Settings) -> Switches:
        """The switches that differ from `settings`; what the configuration has come to agree with is forgotten."""
        rows = self._store.rows("SELECT kind, name, enabled FROM toggles")
        thrown = {(row["kind"], row["name"]): bool(row["enabled"]) for row in rows}
        configured = {("stream", name): one.enabled for name, one in settings.streams.items()}
        configured |= {("query", name): one.enabled for name, one in settings.queries.items()}
        for (kind, name), enabled in thrown.items():
            if configured.get((kind, name)) == enabled:
                self._store.rows("DELETE FROM toggles WHERE kind = ? AND name = ?", (kind, name))
        return {key: on for key, on in thrown.items() if configured.get(key) == (not on)}

    def throw(self, kind: Kind, name: str, *, enabled: bool) -> None:
        """Keep that a stream or query is switched on or off."""
        self._store.rows(
            "INSERT INTO toggles (kind, name, enabled) VALUES (?, ?, ?)"
            " ON CONFLICT (kind, name) DO UPDATE SET enabled = excluded.enabled",
            (kind, name, int(enabled)),
        )


def effective(settings: Settings, switches: Switches) -> Settings:
    """`settings` as they hold with the switches thrown."""
    streams = {
        name: one.model_copy(update={"enabled": switches.get(("stream", name), one.enabled)})
        for name, one in settings.streams.items()
    }
    queries = {
        name: one.model_copy(update={"enabled": switches.get(("query", name), one.enabled)})
        for name, one in settings.queries.items()
    }
    return settings.model_copy(update={"streams": streams, "queries": queries})


def asked(settings: Settings) -> dict[str, QuerySettings]:
    """The queries of `settings`, each of those of its streams that are enabled."""
    watched = {name for name, stream in settings.streams.items() if stream.enabled}
    return {
        name: query.model_copy(update={"streams": [s for s in query.streams if s in watched]})
        for name, query in settings.queries.items()
    }
