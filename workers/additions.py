"""Adds, replaces and deletes streams and queries over HTTP.

An entry is checked before it is kept. Then it is merged into the configuration in force and applied like a reload.
Entries of the configuration file are not touched. All calls are made from the event loop's thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from stream_sttm import registry
from stream_sttm.config.settings import Settings
from stream_sttm.control import masked
from stream_sttm.control.additions import (
    AddedQuery,
    AddedStream,
    Additions,
    Kept,
    Kind,
    Place,
    query_of,
    stream_of,
)
from stream_sttm.control.diff import Changes
from stream_sttm.control.switches import Switches
from stream_sttm.errors import ConfigError, NotPossible, UnknownQuery, UnknownStream
from workers.control import Control

MAX_ADDED = 1000  # of a kind
_ONE = {"streams": "stream", "queries": "query"}
Sent = Mapping[Place, Mapping[str, Any] | None]


class LiveAdditions:
    """The streams and queries added over HTTP. Only this class changes them."""

    def __init__(self, control: Control, additions: Additions, switches: Switches) -> None:
        self._control, self._additions, self._switches = control, additions, switches
        self._turn = asyncio.Lock()

    async def add(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        """Add an entry. Raises NotPossible where the name is taken, ConfigError or SourceDenied for bad settings."""
        async with self._turn:
            kept = await asyncio.to_thread(self._additions.load)
            if name in kept[kind] or name in self._in_force(kind):
                raise NotPossible(f"there is a {_ONE[kind]} {name!r} already; PUT replaces it")
            if len(kept[kind]) >= MAX_ADDED:
                raise NotPossible(f"{MAX_ADDED} {kind} have been added; delete one first")
            return await self._keep(kind, name, given)

    async def replace(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        """Replace an entry's settings. Raises as `add` does, and UnknownStream or UnknownQuery where there is none."""
        async with self._turn:
            self._require_added(kind, name)
            kept = await asyncio.to_thread(self._additions.load)
            if name not in kept[kind]:
                near = registry.suggest(name, sorted(self._in_force(kind)))
                unknown = UnknownStream if kind == "streams" else UnknownQuery
                raise unknown(f"there is no {_ONE[kind]} {name!r}{near}")
            return await self._keep(kind, name, given)

    async def remove(self, kind: Kind, name: str, *, is_forced: bool = False) -> None:
        """Delete an entry, if there is one.

        Raises NotPossible where it belongs to the configuration file, or where queries still name the stream. With
        `is_forced` the stream is taken out of these queries. A query that is left without a stream is deleted.
        """
        async with self._turn:
            self._require_added(kind, name)
            kept = await asyncio.to_thread(self._additions.load)
            if name not in kept[kind]:
                return
            sent: dict[Place, Mapping[str, Any] | None] = {(kind, name): None}
            if kind == "streams":
                sent |= _without(name, kept)
            if len(sent) > 1 and not is_forced:
                asked = ", ".join(query for which, query in sent if which == "queries")
                raise NotPossible(
                    f"stream {name!r} is asked by queries: {asked}; delete those first, or add ?force=true"
                )
            await self._control.reload(lambda: self._written(sent))

    def effective(self) -> dict[str, Any]:
        """Return the settings in force without credentials, what was added, and what was left out and why."""
        settings = self._control.settings
        return {
            "settings": masked.shown(settings),
            "added": {
                "streams": [n for n, s in settings.streams.items() if isinstance(s, AddedStream)],
                "queries": [n for n, q in settings.queries.items() if isinstance(q, AddedQuery)],
            },
            "left_out": list(self._additions.left_out),
        }

    def shown(self, kind: Kind, name: str) -> dict[str, Any]:
        """Return an entry in force without credentials. Raises UnknownStream or UnknownQuery."""
        if name not in self._in_force(kind):
            near = registry.suggest(name, sorted(self._in_force(kind)))
            unknown = UnknownStream if kind == "streams" else UnknownQuery
            raise unknown(f"there is no {_ONE[kind]} {name!r}{near}")
        if kind == "streams":
            return masked.shown_stream(self._control.settings.streams[name])
        return self._control.settings.queries[name].model_dump(mode="json")

    async def _keep(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        await asyncio.to_thread(_check, kind, name, given, self._control.settings)
        return await self._control.reload(lambda: self._written({(kind, name): given}))

    def _written(self, sent: Sent) -> Settings:
        """Keep the entries and return the settings that follow. Runs in a thread while nothing else changes them."""
        self._additions.write(sent)
        for (kind, name), given in sent.items():
            if given is None and kind == "streams":
                self._switches.forget(stream=name)
            elif given is None:
                self._switches.forget(query=name)
        return self._additions.over(self._control.settings)

    def _in_force(self, kind: Kind) -> Mapping[str, object]:
        settings = self._control.settings
        return settings.streams if kind == "streams" else settings.queries

    def _require_added(self, kind: Kind, name: str) -> None:
        there = self._in_force(kind).get(name)
        if there is not None and not isinstance(there, AddedStream | AddedQuery):
            raise NotPossible(
                f"{_ONE[kind]} {name!r} is in the configuration file: change it there, or switch it off with"
                f" PUT /api/v1/{kind}/{name}/enabled"
            )


def _check(kind: Kind, name: str, given: Mapping[str, Any], settings: Settings) -> None:
    """Raise ConfigError or SourceDenied where an entry is not valid."""
    try:
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{kind}.{name}: is no valid Unicode; send UTF-8") from None
    if kind == "streams":
        stream_of(name, given, settings.sources)
    else:
        query_of(name, given, settings.streams, settings.answering.max_question_chars)


def _without(stream: str, kept: Kept) -> dict[Place, Mapping[str, Any] | None]:
    """Return the queries that name a stream, as they are without it."""
    changed: dict[Place, Mapping[str, Any] | None] = {}
    for name, given in kept["queries"].items():
        if stream in given["streams"]:
            rest = [one for one in given["streams"] if one != stream]
            changed["queries", name] = {**given, "streams": rest} if rest else None
    return changed
