"""What differs between two configurations, and which of it can be taken over while the service runs.

Pure. Streams, queries, sinks, limits for answers, the rules for sources and the log level are live; any other key waits
for a restart of the process and is named. Names keys, never values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stream_sttm import urls
from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import StreamSettings

LIVE = ("streams", "queries", "sinks", "answering", "sources", "log_level")
_MEMORY = ("fps", "clip_frames")  # of a stream, what its memory is cut to
_NOT_READ = (
    "enabled",
    "frigate",
)  # of a stream, what its source and frames have nothing to do with


@dataclass(frozen=True, slots=True)
class Named:
    """The names of what came, went and became different."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def as_dict(self) -> dict[str, list[str]]:
        """For JSON."""
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": list(self.changed),
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """From one configuration to the next; `waiting` are the keys that need a restart of the process."""

    streams: Named
    queries: Named
    sinks: Named  # masked URLs
    answering: bool
    sources: bool
    log_level: bool
    waiting: tuple[str, ...]

    def __bool__(self) -> bool:
        live = (self.streams, self.queries, self.sinks)
        flags = (self.answering, self.sources, self.log_level)
        return any(live) or any(flags) or bool(self.waiting)

    def as_dict(self) -> dict[str, Any]:
        """The one JSON shape of what a reload did."""
        return {
            "streams": self.streams.as_dict(),
            "queries": self.queries.as_dict(),
            "sinks": self.sinks.as_dict(),
            "answering": self.answering,
            "sources": self.sources,
            "log_level": self.log_level,
            "needs_restart": list(self.waiting),
        }

    def told(self) -> str:
        """The same as one line."""
        parts = [
            f"{kind} {word}: {', '.join(names)}"
            for kind, named in (
                ("streams", self.streams),
                ("queries", self.queries),
                ("sinks", self.sinks),
            )
            for word, names in named.as_dict().items()
            if names
        ]
        parts += ["answering"] if self.answering else []
        parts += ["the rules for sources"] if self.sources else []
        parts += ["log_level"] if self.log_level else []
        parts += [f"waiting for a restart: {', '.join(self.waiting)}"] if self.waiting else []
        return "; ".join(parts) or "nothing differs"


def between(old: Settings, new: Settings) -> Changes:
    """What `new` makes different from `old`."""
    sinks = Named(
        tuple(urls.mask(url) for url in new.sinks if url not in old.sinks),
        tuple(urls.mask(url) for url in old.sinks if url not in new.sinks),
    )
    held = [name for name in Settings.model_fields if name not in LIVE]
    waiting = (
        path for name in held for path in _different(_dumped(old, name), _dumped(new, name), name)
    )
    return Changes(
        streams=_named(old.streams, new.streams),
        queries=_named(old.queries, new.queries),
        sinks=sinks,
        answering=old.answering != new.answering,
        sources=old.sources != new.sources,
        log_level=old.log_level != new.log_level,
        waiting=tuple(waiting),
    )


def taken_over(old: Settings, new: Settings) -> Settings:
    """`new` as far as it can hold without a restart, the rest as in `old`."""
    return old.model_copy(update={name: getattr(new, name) for name in LIVE})


def keeps_memory(old: StreamSettings, new: StreamSettings) -> bool:
    """Whether a stream's memory can go on under other settings."""
    return all(getattr(old, name) == getattr(new, name) for name in _MEMORY)


def reads_alike(old: StreamSettings, new: StreamSettings) -> bool:
    """Whether a stream is read in the same way, so that what reads it can go on."""
    left_out = set(_NOT_READ)
    if type(old) is not type(new):  # what it may reach depends on where it came from
        return False
    return old.model_dump(exclude=left_out) == new.model_dump(exclude=left_out)


def _named(old: Mapping[str, object], new: Mapping[str, object]) -> Named:
    return Named(
        tuple(name for name in new if name not in old),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name in old and old[name] != new[name]),
    )


def _dumped(settings: Settings, name: str) -> Any:
    return settings.model_dump(include={name})[name]


def _different(old: Any, new: Any, path: str) -> Iterator[str]:
    """The paths of the leaves that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _different(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path
