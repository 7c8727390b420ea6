"""Streams and queries that come, change and go over HTTP, on the same road as a configuration that is read anew.

What is wrong with an entry is found before anything is kept; then it is kept, laid over the configuration in force,
and followed. The configuration file's own entries are not touched. All calls are made from the event loop's thread.
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
    """What was added over HTTP, and the only one to change it."""

    def __init__(self, control: Control, additions: Additions, toggles: Switches) -> None:
        self._control, self._additions, self._toggles = control, additions, toggles
        self._turn = asyncio.Lock()

    async def add(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        """Begin an entry; raises NotPossible where there is one, ConfigError or SourceDenied where it can't be."""
        async with self._turn:
            kept = await asyncio.to_thread(self._additions.load)
            if name in kept[kind] or name in self._in_force(kind):
                raise NotPossible(f"there is a {_ONE[kind]} {name!r} already; PUT replaces it")
            if len(kept[kind]) >= MAX_ADDED:
                raise NotPossible(f"{MAX_ADDED} {kind} have been added; delete one first")
            return await self._keep(kind, name, given)

    async def replace(self, kind: Kind, name: str, given: Mapping[str, Any]) -> Changes:
        """Give an entry other settings; raises as `add` does, UnknownStream or UnknownQuery where there is none."""
        async with self._turn:
            self._require_added(kind, name)
            kept = await asyncio.to_thread(self._additions.load)
            if name not in kept[kind]:
                near = registry.suggest(name, sorted(self._in_force(kind)))
                unknown = UnknownStream if kind == "streams" else UnknownQuery
                raise unknown(f"there is no {_ONE[kind]} {name!r}{near}")
            return await self._keep(kind, name, given)

    async def remove(self, kind: Kind, name: str, *, is_forced: bool = False) -> None:
        """End an entry, if there is one; raises NotPossible where it is the file's, or a stream is still asked.

        `is_forced`: a stream's queries that came over HTTP are asked of it no more, ending where it was their only one.
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
        """The settings in force without a credential, what of them was added, and what was left out and why."""
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
        """An entry in force, without a credential; raises UnknownStream or UnknownQuery."""
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
        """The settings with what is kept from now on; called in a thread, when nothing else changes them."""
        self._additions.write(sent)
        for (kind, name), given in sent.items():
            if given is None and kind == "streams":
                self._toggles.forget(stream=name)
            elif given is None:
                self._toggles.forget(query=name)
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
    """Raise ConfigError or SourceDenied where an entry can't be."""
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{kind}.{name}: is no valid Unicode; send UTF-8") from None
    if kind == "streams":
        stream_of(name, given, settings.sources)
    else:
        query_of(name, given, settings.streams, settings.answering.max_question_chars)


def _without(stream: str, kept: Kept) -> dict[Place, Mapping[str, Any] | None]:
    """The queries that name a stream, as they are without it."""
    changed: dict[Place, Mapping[str, Any] | None] = {}
    for name, given in kept["queries"].items():
        if stream in given["streams"]:
            rest = [one for one in given["streams"] if one != stream]
            changed["queries", name] = {**given, "streams": rest} if rest else None
    return changed
