"""The sessions of all streams, and the archives beside them.

A session begins with its stream's first clip. A window that fails leaves it as it was. It can be saved and restored.
Only the engine's thread calls this. Knows no clips, no questions and no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from stream_sttm.config.settings import ReducerSettings
from stream_sttm.engine.checkpoint.archive_file import SavedPast
from stream_sttm.engine.checkpoint.session_file import SavedMemory
from stream_sttm.engine.checkpoint.tensor_file import misfit
from stream_sttm.engine.plan import MemoryPlan, reducer_for
from stream_sttm.engine.recall.archive import Archives
from stream_sttm.engine.recall.retrieval import search_layers
from stream_sttm.engine.session import StreamSession
from stream_sttm.errors import NoVideoYet, StateError
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Answer

# Fields of the plan that a saved memory does not depend on.
_NOT_IN_FINGERPRINT = (
    "retention",
    "evict_share",
    "fresh_frames",
    "question_tokens",
    "rebase_at",
    "recall",
)


class Sessions:
    """The memories of all known streams, laid out by one plan."""

    def __init__(
        self,
        model: VideoLLM,
        plan: MemoryPlan,
        reducer: ReducerSettings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._model, self._plan, self._reducer, self._clock = model, plan, reducer, clock
        self._rates: dict[str, float] = {}  # frames per second
        self._sessions: dict[str, StreamSession] = {}
        self._errors: dict[str, str] = {}  # why a stream's newest window was lost, where it was
        recall = plan.recall
        self._archives = (
            None
            if recall is None
            else Archives(
                most_bytes=recall.most_bytes, max_age=recall.max_age, folder=recall.folder
            )
        )
        reducer_for(model, reducer, 1.0)  # a wrong option is a fault at start, not at first use

    @property
    def streams(self) -> list[str]:
        """The names of the known streams, sorted."""
        return sorted(self._rates)

    def open(self, stream: str, fps: float) -> None:
        """Make a stream known. Its memory is allocated with its first clip."""
        self._rates[stream] = fps

    def close(self, stream: str) -> None:
        """Delete a stream, its memory and its past."""
        for kept in (self._rates, self._sessions, self._errors):
            kept.pop(stream, None)
        self.drop_past(stream)

    def of(self, stream: str) -> StreamSession | None:
        """Return a stream's session, None where it has none."""
        return self._sessions.get(stream)

    def create(self, stream: str) -> StreamSession:
        """Return an empty session for a stream. It becomes the stream's own by `put`."""
        fps = self._rates.get(stream, 1.0)
        reducer = reducer_for(self._model, self._reducer, fps / self._model.frames_per_token)
        session = StreamSession(self._model, reducer, self._plan, stream=stream, fps=fps)
        if self._archives is not None:
            session.archive = self._archives.for_new_session(stream)
        return session

    def put(self, session: StreamSession) -> None:
        """Make `session` its stream's session."""
        self._sessions[session.stream] = session
        self._errors.pop(session.stream, None)

    def drop(self, stream: str) -> None:
        """Delete a stream's session. Its archive stays."""
        self._sessions.pop(stream, None)

    def note_loss(self, stream: str, why: str) -> bool:
        """Note why a stream's window was lost. Returns whether the reason differs from that of the window before."""
        is_new = self._errors.get(stream) != why
        self._errors[stream] = why
        return is_new

    def drop_past(self, stream: str) -> None:
        """Delete what recall keeps of a stream."""
        if self._archives is not None:
            self._archives.drop(stream)

    def check(self, stream: str) -> None:
        """Raise NoVideoYet, with the reason, where a stream has no session to answer from."""
        if stream in self._sessions:
            return
        if stream in self._errors:
            raise NoVideoYet(f"nothing to answer from: {self._errors[stream]}")
        raise NoVideoYet(f"stream {stream!r} has shown no video yet; try again when it is online")

    def record(self, answer: Answer) -> None:
        """Add an answer to its stream's archive, where there is one."""
        if self._archives is not None:
            self._archives.record(answer)

    def saved(self, stream: str) -> SavedMemory | None:
        """Return the stream's memory as it is now, None where it has none.

        It is cheap, and later work does not change it.
        """
        session = self._sessions.get(stream)
        if session is None:
            return None
        numbering = None if session.archive is None else session.archive.numbering
        return SavedMemory(stream, self._clock(), self._fits(stream), session.saved(), numbering)

    @torch.inference_mode()
    def restore(self, saved: SavedMemory) -> None:
        """Make a saved memory its stream's session.

        Raises StateError where it does not fit this model and configuration.
        """
        why = misfit(saved.fits, self._fits(saved.stream))
        if why is not None:
            raise StateError(why)
        session = self.create(saved.stream)
        session.restore(saved.tensors)
        if session.archive is not None and saved.numbering is not None:
            session.archive.numbering = saved.numbering
        self.put(session)

    def saved_past(self, stream: str) -> SavedPast | None:
        """Return the stream's archive as it is now, None where it has none. As cheap as `saved`."""
        archive = self._archives.of(stream) if self._archives is not None else None
        if archive is None:
            return None
        return SavedPast(stream, self._clock(), self._past_fits(), archive.snapshot())

    def restore_past(self, saved: SavedPast) -> int:
        """Fill a stream's archive from a saved one. Call it after `restore`, if the memory is restored too.

        Returns how many windows are within today's bounds. Raises StateError as `restore` does.
        """
        why = misfit(saved.fits, self._past_fits())
        if why is not None or self._archives is None:
            raise StateError(why or "nothing of the past is to be kept")
        session = self._sessions.get(saved.stream)
        emitted = 0 if session is None else session.cache.deep.emitted
        archive = self._archives.get_or_create(saved.stream)
        archive.restore(saved.snapshot, emitted=emitted, now=self._clock())
        return len(archive)

    @property
    def past_age(self) -> float | None:
        """Seconds for which evicted tokens are kept, None where they are not."""
        return None if self._plan.recall is None else self._plan.recall.max_age

    def _past_fits(self) -> dict[str, Any]:
        return {"model": self._model.fingerprint, "layers": list(search_layers(self._model))}

    def _fits(self, stream: str) -> dict[str, Any]:
        """Return all that must be the same where a saved memory is restored, as values that a file can hold."""
        plan = {
            name: value
            for name, value in asdict(self._plan).items()
            if name not in _NOT_IN_FINGERPRINT
        }
        return {
            "model": self._model.fingerprint,
            "reducer.name": self._reducer.name,
            "fps": self._rates.get(stream, 1.0),
            **plan,
        }
