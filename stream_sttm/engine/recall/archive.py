"""A stream's archive: windows of tokens and earlier answers, kept beside its memory for questions about the past.

Of each window it keeps the survivors' features as they came from the vision tower, so that they can run through the
model again. With them it keeps their keys at a few layers, by which a question finds them. It is bounded by bytes and
by age, and the oldest windows are dropped first. It lives on the host. It knows no model, and of the memory only the
serials that are still held. A snapshot of it can fill another one after a restart.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.recall.archived import (
    NOT_HELD,
    ArchivedClip,
    ArchiveEntry,
    ArchiveSnapshot,
    EvictedTokens,
    PastAnswer,
    SerialLineage,
)
from stream_sttm.engine.recall.offload import DiskOffload, OffloadedTensor
from stream_sttm.types import Answer

_log = logging.getLogger(__name__)
EVENTS = 4096  # answers kept; one that repeats the answer before it is not counted
_SEGMENTS = 8  # files that a full archive is spread over


class Archive:
    """The past of one stream: at most `most_bytes`, nothing older than `max_age` seconds, in `folder` where one is
    given.
    """

    def __init__(
        self, stream: str, *, most_bytes: int, max_age: float, folder: Path | None = None
    ) -> None:
        self.stream = stream
        self.numbering = SerialLineage()
        self._id, self._begin = secrets.token_hex(8), 0
        self._most_bytes, self._max_age = most_bytes, max_age
        self._windows: deque[ArchivedClip] = deque()
        self._events: deque[PastAnswer] = deque(maxlen=EVENTS)
        self._offload = (
            None if folder is None else DiskOffload(folder, segment_bytes=most_bytes // _SEGMENTS)
        )
        self._is_failing = False
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def span(self) -> tuple[float, float] | None:
        """Wall clock of the oldest and the newest frame, None where it is empty."""
        return (
            (self._windows[0].captured[0], self._windows[-1].captured[1]) if self._windows else None
        )

    def add(
        self,
        entry: ArchiveEntry | None,
        *,
        first: int,
        captured: tuple[float, float],
    ) -> None:
        """Add a window's tokens and their keys, if there are any, and drop what exceeds the bounds.

        `first` is the serial of the first token. `captured` is the wall clock of the window's oldest and newest frame.
        """
        if entry is not None:
            tokens, keys = entry
            features = _to_host(tokens.features)
            boxes, sizes = tokens.boxes.to("cpu", torch.int32), tokens.sizes.to("cpu", torch.int32)
            window = ArchivedClip(features, _to_host(keys), boxes, sizes, captured, first)
            if window.nbytes <= self._most_bytes:
                window.features = self._offload_features(features)
                self._windows.append(window)
                self.nbytes += window.nbytes
        self._trim(captured[1])

    def mark(self) -> Mapping[str, Any]:
        """Return what `roll_back` needs to undo all that is added and dropped from now on."""
        marked = {name: getattr(self, name).copy() for name in ("_windows", "_events")}
        return marked | {name: getattr(self, name) for name in ("nbytes", "_begin")}

    def roll_back(self, mark: Mapping[str, Any]) -> None:
        """Become what the archive was when `mark` was made. Use a mark once."""
        for name, value in mark.items():
            setattr(self, name, value)

    def _trim(self, now: float) -> None:
        while self._windows and self._must_drop(self._windows[0], now):
            self.nbytes -= self._windows.popleft().nbytes
            self._begin += 1
        while self._events and self._events[0].until < now - self._max_age:
            self._events.popleft()

    def _must_drop(self, oldest: ArchivedClip, now: float) -> bool:
        return self.nbytes > self._most_bytes or oldest.captured[1] < now - self._max_age

    def _offload_features(self, features: Tensor) -> Tensor | OffloadedTensor:
        """Write features to disk where that is wanted and works. Returns where they are, or else the features."""
        if self._offload is None:
            return features
        try:
            offloaded = self._offload.put(features)
        except OSError as error:
            if not self._is_failing:  # not again for each window
                _log.error(
                    "stream %s: its past can't be kept on disk (%s) and stays in memory, within the same bounds",
                    self.stream,
                    error.strerror or error,
                )
            self._is_failing = True
            return features
        self._is_failing = False
        return offloaded

    def restart(self) -> None:
        """Note that the memory was lost: it holds none of these windows any more, and its serials begin at 0 again."""
        self.numbering = SerialLineage()
        for window in self._windows:
            window.first = NOT_HELD

    def snapshot(self) -> ArchiveSnapshot:
        """Return what the archive holds now."""
        windows = tuple(self._windows)
        firsts = tuple(window.first for window in windows)
        events = tuple(replace(event) for event in self._events)
        return ArchiveSnapshot(self._id, self.numbering, self._begin, windows, firsts, events)

    def restore(self, snapshot: ArchiveSnapshot, *, emitted: int, now: float) -> None:
        """Fill this archive, while it is empty, from a snapshot of another, within its own bounds at the time `now`.

        The memory beside it has given out `emitted` serials. Windows that the memory did not emit count as evicted. So
        do windows that came in after it was saved, since their serials are given out once more. From here on the
        lineage is a new one, so serials saved before are not taken for later ones. Memory and archive are saved one
        after the other. If the service was killed in between, one is from before a restart and the other from after it.
        """
        self._id, self._begin = snapshot.id, snapshot.begin
        common = self.numbering.common(snapshot.numbering, emitted)
        for window, first in zip(snapshot.windows, snapshot.firsts, strict=True):
            is_known = first + len(window) <= common
            features = self._offload_features(window.read())
            window = replace(window, features=features, first=first if is_known else NOT_HELD)
            self._windows.append(window)
            self.nbytes += window.nbytes
            self._trim(now)
        self._events.extend(snapshot.events)
        self._trim(now)
        self.numbering = SerialLineage(
            shared={snapshot.numbering.id: common, self.numbering.id: emitted}
        )

    def evicted(self, held: Tensor) -> EvictedTokens | None:
        """Return the archived tokens that the memory has lost, None where there are none.

        The memory still holds the serials `held` (M,).
        """
        windows = tuple(self._windows)
        if not windows:
            return None
        first = torch.tensor([window.first for window in windows])
        counts = torch.tensor([len(window) for window in windows])
        owner = torch.repeat_interleave(counts)
        row = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        is_evicted = (first[owner] == NOT_HELD) | ~torch.isin(first[owner] + row, held)
        if not bool(is_evicted.any()):
            return None
        return EvictedTokens(windows, owner[is_evicted], row[is_evicted])

    def record(self, answer: Answer) -> None:
        """Add a standing question's answer. One that equals the last is the same event, which then lasts longer."""
        query, at = answer.question.query, answer.captured_at
        if query is None:
            return
        last = next((event for event in reversed(self._events) if event.query == query), None)
        if (
            last is not None
            and last.answer == answer.text
            and last.question == answer.question.text
        ):
            last.until = max(last.until, at)
        else:
            self._events.append(PastAnswer(query, answer.question.text, answer.text, at, at))
        self._trim(at)

    def events(self, since: float, until: float) -> Iterator[PastAnswer]:
        """Return copies of what was answered between two moments, in the order of when it was first answered."""
        kept = (event for event in self._events if event.since <= until and event.until >= since)
        return (replace(event) for event in kept)


class Archives:
    """The archives of all streams, each within `most_bytes` and `max_age`. An archive outlives a lost memory."""

    def __init__(self, *, most_bytes: int, max_age: float, folder: Path | None) -> None:
        self._most_bytes, self._max_age, self._folder = most_bytes, max_age, folder
        self._archives: dict[str, Archive] = {}

    def of(self, stream: str) -> Archive | None:
        """Return a stream's archive, None where it has none."""
        return self._archives.get(stream)

    def get_or_create(self, stream: str) -> Archive:
        """Return a stream's archive, and create an empty one where there is none."""
        archive = self._archives.get(stream)
        if archive is None:
            archive = self._archives[stream] = Archive(
                stream, most_bytes=self._most_bytes, max_age=self._max_age, folder=self._folder
            )
        return archive

    def for_new_session(self, stream: str) -> Archive:
        """Return the archive for a new session of a stream. It keeps what an earlier session has left."""
        archive = self.get_or_create(stream)
        archive.restart()
        return archive

    def record(self, answer: Answer) -> None:
        """Add an answer to its stream's archive."""
        archive = self._archives.get(answer.question.stream)
        if archive is not None:
            archive.record(answer)

    def drop(self, stream: str) -> None:
        """Delete a stream's archive."""
        self._archives.pop(stream, None)


def _to_host(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU in 16 bits. Magnitudes beyond their range are clamped."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.to("cpu", copy=True)
    most = torch.finfo(torch.float16).max
    return tensor.clamp(-most, most).to("cpu", torch.float16, copy=True)
