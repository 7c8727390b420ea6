"""Streams and queries added over HTTP: kept over restarts, and merged into the configuration file's settings.

They are stored as they were sent, with `${NAME}` not expanded. The file's own entries win. An addition that no longer
fits is left out and logged, and stays stored until it fits again. What such a source may reach is decided here.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from stream_sttm import urls
from stream_sttm.config import variables, yaml_file
from stream_sttm.config.faults import fault_line
from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import Settings, contradictions
from stream_sttm.config.streams import SourceRules, StreamSettings
from stream_sttm.errors import ConfigError, SourceDenied
from stream_sttm.sources import SOURCES, open_source
from stream_sttm.sources.network.access import Access
from stream_sttm.sources.network.opening import file_path
from stream_sttm.storage.sqlite_file import SqliteFile

Kind = Literal["streams", "queries"]
Place = tuple[Kind, str]
Kept = dict[Kind, dict[str, dict[str, Any]]]  # what was sent, by name
_log = logging.getLogger(__name__)


class AddedStream(StreamSettings):
    """A stream that was added over HTTP."""


class AddedQuery(QuerySettings):
    """A standing query that was added over HTTP."""


class Additions:
    """The additions in `file`, which has the tables of storage/events.py. Calls block and raise StoreError."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self.left_out: tuple[str, ...] = ()  # a line for each addition that is not in force

    def load(self) -> Kept:
        """Return all additions as they were sent, the oldest first."""
        with self._file.reading() as db:
            rows = db.execute("SELECT kind, name, settings FROM added ORDER BY rowid").fetchall()
        kept: Kept = {"streams": {}, "queries": {}}
        for row in rows:
            kept[row["kind"]][row["name"]] = json.loads(row["settings"])
        return kept

    def write(self, changes: Mapping[Place, Mapping[str, Any] | None]) -> None:
        """Store entries, or delete those without settings: all of them, or none."""
        with self._file.writing() as db:
            for (kind, name), settings in changes.items():
                if settings is None:
                    db.execute("DELETE FROM added WHERE kind = ? AND name = ?", (kind, name))
                    continue
                db.execute(
                    "INSERT INTO added (kind, name, settings) VALUES (?, ?, ?)"
                    " ON CONFLICT (kind, name) DO UPDATE SET settings = excluded.settings",
                    (kind, name, json.dumps(settings, allow_nan=False)),
                )

    def over(self, settings: Settings) -> Settings:
        """Return `settings` with the additions. Those that do not fit are logged and left out."""
        merged, faults = laid_over(without_added(settings), self.load())
        for fault in faults:
            if fault not in self.left_out:
                _log.warning("left out of what was added over HTTP: %s", fault)
        self.left_out = tuple(faults)
        return merged


def laid_over(settings: Settings, kept: Kept) -> tuple[Settings, list[str]]:
    """Return `settings` with the additions `kept`, and a line for each that does not fit."""
    streams, queries, faults = dict(settings.streams), dict(settings.queries), list[str]()
    for name, given in kept["streams"].items():
        try:
            _require_free("streams", name, settings.streams)
            streams[name] = stream_of(name, given, settings.sources)
        except (ConfigError, SourceDenied) as error:
            faults.append(str(error))
    longest = settings.answering.max_question_chars
    for name, given in kept["queries"].items():
        try:
            _require_free("queries", name, settings.queries)
            queries[name] = query_of(name, given, streams, longest)
        except ConfigError as error:
            faults.append(str(error))
    return settings.model_copy(update={"streams": streams, "queries": queries}), faults


def without_added(settings: Settings) -> Settings:
    """Return `settings` without additions."""
    own = {
        "streams": {n: s for n, s in settings.streams.items() if not isinstance(s, AddedStream)},
        "queries": {n: q for n, q in settings.queries.items() if not isinstance(q, AddedQuery)},
    }
    return settings.model_copy(update=own)


def access_of(settings: StreamSettings, rules: SourceRules) -> Access:
    """Return what a stream may reach. One added over HTTP reaches no local address that the rules don't name."""
    return strangers(rules) if isinstance(settings, AddedStream) else Access.of(rules)


def strangers(rules: SourceRules) -> Access:
    """Return what a source that was added over HTTP may reach."""
    own = Access.of(rules)
    return own if rules.http_private else own.for_strangers()


def stream_of(name: str, given: Mapping[str, Any], rules: SourceRules) -> AddedStream:
    """Return the stream sent as `given`. Raises ConfigError, or SourceDenied where it may not be reached."""
    path = f"streams.{name}"
    source = filled(f"{path}.source", given.get("source"), rules)
    try:
        stream = AddedStream.model_validate({**given, "source": source})
    except ValidationError as error:
        raise ConfigError(_fault_lines(path, error)) from None
    for url in stream.candidates:
        check_source(f"{path}.source", url, strangers(rules))
    return stream


def filled(path: str, source: Any, rules: SourceRules) -> Any:
    """Return a source with the values of its variables. Raises SourceDenied or ConfigError where one can't be taken."""
    for one in source if isinstance(source, list) else [source]:
        _check_variables(path, one if isinstance(one, str) else "", rules)
    expanded, faults = yaml_file.expand(source, path)
    if faults:
        raise ConfigError("\n".join(faults))
    return expanded


def query_of(
    name: str, given: Mapping[str, Any], streams: Mapping[str, StreamSettings], longest: int
) -> AddedQuery:
    """Return the query sent as `given`. Raises ConfigError."""
    try:
        query = AddedQuery.model_validate(given)
    except ValidationError as error:
        raise ConfigError(_fault_lines(f"queries.{name}", error)) from None
    tree = {"streams": dict.fromkeys(streams), "queries": {name: query.model_dump()}}
    if faults := contradictions(tree, longest):
        raise ConfigError("\n".join(faults))
    return query


def check_source(path: str, url: str, access: Access) -> None:
    """Raise ConfigError or SourceDenied where the URL alone shows that it can't or may not be read."""
    try:
        open_source(url, stream="-", fps=1.0, max_side=640, access=access)
        scheme, shown = urls.split(url).scheme, urls.mask(url)
        if scheme not in SOURCES and access.schemes is None and not access.private:
            # another package's source, which may know nothing of these rules
            raise SourceDenied(f"{shown}: {scheme}:// over HTTP has to be among sources.schemes")
        if scheme == "file":
            _check_file(url, access)
    except SourceDenied as error:
        raise SourceDenied(f"{path}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_file(url: str, access: Access) -> None:
    try:
        access.real_path(url, file_path(url))
    except (ValueError, OSError, RuntimeError) as error:  # a NUL in it, or links in a circle
        raise ConfigError(f"{urls.mask(url)}: no file can be there") from error


def _check_variables(path: str, source: str, rules: SourceRules) -> None:
    """Raise SourceDenied where a source takes a variable that HTTP may not use, which may be a secret."""
    for word in variables.named(source):
        if not any(fnmatch.fnmatchcase(word, pattern) for pattern in rules.http_variables):
            raise SourceDenied(
                f"{path}: ${{{word[:64]}}} is not among sources.http_variables; name it there if it is meant"
            )


def _require_free(kind: Kind, name: str, own: Mapping[str, object]) -> None:
    if name in own:
        raise ConfigError(f"{kind}.{name}: is in the configuration file now, which counts")


def _fault_lines(path: str, error: ValidationError) -> str:
    """Return a line for each fault, without the input."""
    return "\n".join(fault_line(fault, path) for fault in error.errors())
