"""Changes while the service runs: switches, triggers and the configuration.

All changes take one road. Settings and switches say what is to be, and every part follows. A part that already is as
it should be stays untouched. A configuration with a fault changes nothing. Knows nothing of HTTP, MQTT or files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from stream_sttm import metrics, registry
from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import SourceRules, StreamSettings
from stream_sttm.control import diff
from stream_sttm.control.diff import Changes
from stream_sttm.control.switches import Place, Switches, places
from stream_sttm.errors import (
    ConfigError,
    NotASighting,
    NotPossible,
    NotReady,
    QuestionRejected,
    UnknownQuery,
    UnknownStream,
)
from stream_sttm.queries import frigate
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.sinks import Sink
from workers.analysis import Analysis
from workers.engine_host import EngineHost
from workers.ingest import Opener
from workers.sink_tasks import SinkTasks
from workers.stream_tasks import StreamTasks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that follow the settings."""

    host: EngineHost
    analysis: Analysis
    queries: StandingQueries
    streams: StreamTasks
    sink_tasks: SinkTasks
    sinks: dict[str, Sink]  # by URL
    open_sink: Callable[[str], Sink]
    opener: Callable[
        [SourceRules, list[str]], Callable[[StreamSettings], Opener]
    ]  # by rules and the streams that are published, then by stream
    show: Callable[[Settings, Callable[[Place], bool]], None]  # to the HTTP interface and the sinks
    forget: Callable[[str], Awaitable[None]]  # deletes what was saved of a stream


class Control:
    """The settings in force and the switches over them. All calls are made from the event loop's thread."""

    def __init__(
        self, settings: Settings, switches: Switches, load: Callable[[], Settings] | None = None
    ) -> None:
        self.settings = settings
        self._stored, self._load = switches, load
        self._switches = switches.load(settings)
        self._parts: Parts | None = None
        self._turn = asyncio.Lock()
        metrics.CONFIG_CURRENT.set(1)

    def is_on(self, place: Place) -> bool:
        """Return whether a stream (query "") is watched, or a query is asked of it, as configured and switched."""
        stream, query = place
        if not query:
            return self._switches.get(place, self.settings.streams[stream].enabled)
        is_asked = self._switches.get(place, self.settings.queries[query].enabled)
        return is_asked and self.is_on((stream, ""))

    async def start(self, parts: Parts) -> None:
        """Have every part follow the settings for the first time."""
        async with self._turn:
            self._parts = parts
            metrics.begin_engine()
            await self._follow(parts, self.settings)

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        """Switch a stream on or off, over restarts too. Raises UnknownStream, NotReady or StoreError."""
        self._known_stream(stream)
        await self._throw({(stream, ""): is_enabled})

    async def set_query_enabled(self, query: str, stream: str | None, is_enabled: bool) -> None:
        """Switch a query on or off for one of its streams, or for all; like `set_stream_enabled`."""
        await self._throw(dict.fromkeys(self._asked_of(query, stream), is_enabled))

    async def trigger(self, query: str, stream: str | None = None) -> list[str]:
        """Ask a query now, whatever its cadence. Returns the streams that it is asked of, at least one."""
        parts, asked_of = self._ready(), self._asked_of(query, stream)
        settings = self.settings.queries[query]
        if "manual" not in settings.on_event:
            raise NotPossible(f"query {query!r} has no 'manual' in its on_event")
        if settings.schedule is not None and not settings.schedule.is_open(time.time()):
            raise NotPossible(f"query {query!r} is not asked at this hour")
        on = [place[0] for place in asked_of if self.is_on(place)]
        if not on:
            raise NotPossible(f"query {query!r} is disabled, or its stream is")
        for each in on:
            self._call(parts, "manual", each, query)
        return on

    def sighted(self, payload: bytes) -> None:
        """Take a message of Frigate's topics `events` or `reviews`. Garbage is counted and logged, never raised."""
        try:
            sighting = frigate.sighting(payload)
        except NotASighting as error:
            metrics.TRIGGERS.labels("frigate", "garbage").inc()
            _log.warning("%s", error)
            return
        if sighting is None or self._parts is None:
            return
        heard = [
            (name, query)
            for name, stream in self.settings.streams.items()
            if (stream.frigate or name) == sighting.camera
            for query, asked in self.settings.queries.items()
            if name in asked.streams
            and sighting.calls_for(asked.on_event)
            and self.is_on((name, query))
        ]
        for name, query in heard:
            self._call(self._parts, "frigate", name, query)
        if not heard:
            metrics.TRIGGERS.labels("frigate", "unheard").inc()

    async def reload(self, load: Callable[[], Settings] | None = None) -> Changes:
        """Read the configuration again, from its file or from `load`, and follow it. `load` is called in a thread.

        Raises ConfigError with every fault; nothing is changed then.
        """
        parts, load = self._ready(), load or self._load
        if load is None:
            raise NotPossible("this service was started without a configuration file")
        async with self._turn:
            try:
                new = await asyncio.to_thread(load)
                change = diff.between(self.settings, new)
                opened = {url: parts.open_sink(url) for url in new.sinks if url not in parts.sinks}
            except ConfigError as error:
                metrics.RELOADS.labels("refused").inc()
                metrics.CONFIG_CURRENT.set(0)
                for line in str(error).splitlines():
                    _log.error("the configuration stays as it was: %s", line)
                raise
            metrics.RELOADS.labels("applied" if change else "unchanged").inc()
            metrics.CONFIG_CURRENT.set(1)
            _log.info("configuration: %s", change.summary())
            new = diff.taken_over(self.settings, new)
            self._switches = await asyncio.to_thread(self._stored.load, new)
            await self._follow(parts, new)
            await _exchange(parts, new.sinks, opened)
        return change

    async def _throw(self, switches: dict[Place, bool]) -> None:
        parts = self._ready()
        async with self._turn:
            await asyncio.to_thread(self._stored.throw, switches)
            self._switches = await asyncio.to_thread(self._stored.load, self.settings)
            await self._follow(parts, self.settings)

    async def _follow(self, parts: Parts, new: Settings) -> None:
        """Make `new` the settings in force and have every part follow them."""
        old, self.settings = self.settings, new
        for name in new.streams:
            metrics.begin_stream(name)
        if old.log_level != new.log_level:
            logging.getLogger().setLevel(new.log_level.upper())
        pushed = [name for name, one in new.streams.items() if one.is_pushed]
        parts.streams.opener = parts.opener(
            new.sources, [name for name in pushed if self.is_on((name, ""))]
        )
        if old.answering != new.answering:
            parts.queries.answering = new.answering
            await parts.host.limit(new.answering)
        rules_differ = old.sources != new.sources
        for name, stream in new.streams.items():
            was = old.streams.get(name)
            if was != stream:
                is_anew = was is not None and not diff.keeps_memory(was, stream)
                parts.analysis.settle(await parts.host.open(name, stream, anew=is_anew))
        async with asyncio.TaskGroup() as group:  # one that takes its time to close delays no other
            for name in (name for name in old.streams if name not in new.streams):
                group.create_task(_forgotten(parts, name), name=f"forget[{name}]")
            for name, stream in new.streams.items():
                is_on = self.is_on((name, ""))
                follows = parts.streams.follow(name, stream, is_on=is_on, anew=rules_differ)
                group.create_task(follows, name=f"follow[{name}]")
        parts.show(new, self.is_on)  # now that what is off reports nothing any more
        ends = parts.queries.change(
            new.queries, time.time(), is_on=lambda stream, query: self.is_on((stream, query))
        )
        parts.analysis.publish(ends)
        _forget_metrics(old, new)

    def _call(self, parts: Parts, source: str, stream: str, query: str) -> None:
        result = "asked" if parts.analysis.call(stream, query) else "waiting"
        metrics.TRIGGERS.labels(source, result).inc()

    def _ready(self) -> Parts:
        if self._parts is None:
            raise NotReady("the model is being loaded; try again in a moment")
        return self._parts

    def _known_stream(self, stream: str) -> None:
        if stream not in self.settings.streams:
            near = registry.suggest(stream, sorted(self.settings.streams))
            raise UnknownStream(f"there is no stream {stream!r}{near}")

    def _asked_of(self, query: str, stream: str | None) -> list[Place]:
        """Return the places of a query, or only the one on `stream`."""
        if query not in self.settings.queries:
            near = registry.suggest(query, sorted(self.settings.queries))
            raise UnknownQuery(f"there is no query {query!r}{near}")
        streams = self.settings.queries[query].streams
        if stream is None:
            return [(each, query) for each in streams]
        self._known_stream(stream)
        if stream not in streams:
            raise QuestionRejected(f"query {query!r} is not asked of stream {stream!r}")
        return [(stream, query)]


async def _forgotten(parts: Parts, name: str) -> None:
    """Remove everything of a stream, from the engine and from the disk."""
    await parts.streams.forget(name)
    await parts.forget(name)


def _forget_metrics(old: Settings, new: Settings) -> None:
    """Remove the metrics of streams and queries that are gone."""
    for stream in old.streams.keys() - new.streams.keys():
        metrics.forget_stream(stream)
    for stream, query in places(old).keys() - places(new).keys():
        if query:
            metrics.forget(stream=stream, query=query)


async def _exchange(parts: Parts, urls: list[str], opened: dict[str, Sink]) -> None:
    """Serve exactly the sinks of `urls`; those of `opened` are new."""
    gone = {
        sink.name: sink for sink in (parts.sinks.pop(u) for u in [*parts.sinks] if u not in urls)
    }
    for url, sink in opened.items():
        if (old := gone.pop(sink.name, None)) is not None:
            await parts.sink_tasks.replace(old, sink)
        else:
            await parts.sink_tasks.add(sink)
        parts.sinks[url] = sink
    async with asyncio.TaskGroup() as group:
        for sink in gone.values():
            group.create_task(parts.sink_tasks.remove(sink), name=f"leave[{sink.name}]")
