"""What differs between two configurations, and what of it can be applied while the service runs.

Pure. Streams, queries, sinks, limits for answers, the rules for sources and the log level are live. Any other key waits
for a restart of the process and is named. Only keys are named, never values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stream_sttm import urls
from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import StreamSettings

LIVE = ("streams", "queries", "sinks", "answering", "sources", "log_level")
_MEMORY = ("fps", "clip_frames")  # settings of a stream that its memory depends on
_NOT_READ = (
    "enabled",
    "frigate",
)  # settings of a stream that reading it does not depend on


@dataclass(frozen=True, slots=True)
class Named:
    """The names of what was added, removed and changed."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def as_dict(self) -> dict[str, list[str]]:
        """Return them as JSON."""
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": list(self.changed),
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes from one configuration to the next. `waiting`: the keys that need a restart of the process."""

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
        """Return the only JSON form of what a reload did."""
        return {
            "streams": self.streams.as_dict(),
            "queries": self.queries.as_dict(),
            "sinks": self.sinks.as_dict(),
            "answering": self.answering,
            "sources": self.sources,
            "log_level": self.log_level,
            "needs_restart": list(self.waiting),
        }

    def summary(self) -> str:
        """Return the changes as one line."""
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
    """Compare `old` with `new`."""
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
    """Return `new` as far as it applies without a restart, the rest as in `old`."""
    return old.model_copy(update={name: getattr(new, name) for name in LIVE})


def keeps_memory(old: StreamSettings, new: StreamSettings) -> bool:
    """Return whether a stream's memory can be kept under other settings."""
    return all(getattr(old, name) == getattr(new, name) for name in _MEMORY)


def reads_alike(old: StreamSettings, new: StreamSettings) -> bool:
    """Return whether a stream is read in the same way, so that its reader can go on."""
    left_out = set(_NOT_READ)
    if type(old) is not type(new):  # what a stream may reach depends on where it was added
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
    """Yield the paths of the leaves that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _different(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path
