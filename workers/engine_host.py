"""The engine in a thread of its own, behind async methods: the only file of workers/ that knows the engine.

Every call runs in the engine's thread, one after the other, so a stream is never opened, saved or closed in the middle
of a step. Files are written in another thread, so a slow disk delays no answer. Another place for the engine (another
process, another machine) is another class with these methods.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Literal, ParamSpec, TypeVar

import torch

from stream_sttm import __version__, metrics
from stream_sttm.config.settings import AnsweringSettings, Settings
from stream_sttm.config.streams import StreamSettings
from stream_sttm.engine.answering.grammar_process import GrammarProcess
from stream_sttm.engine.answering.isolation import words_of
from stream_sttm.engine.checkpoint import archive_file, session_file
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.outcomes import Mosaic, Outcome, Unanswered
from stream_sttm.errors import ModelError, StateError, StreamSTTMError, TooManyQuestions
from stream_sttm.models import load_model
from stream_sttm.types import Clip, Form, Question

_log = logging.getLogger(__name__)
_SMALL_MODEL = 50_000_000  # parameters under which one CPU thread is fastest
_FORMS_WAITING = 16  # that are prepared one after the other
_P = ParamSpec("_P")
_T = TypeVar("_T")

Part = Literal["memory", "past"]  # of a stream: its rolling cache, and what recall keeps beside it
_FILES = {"memory": session_file, "past": archive_file}


@dataclass(frozen=True, slots=True)
class Restored:
    """A saved part that was found: its age in seconds, whether it was taken back, and how many windows it brought."""

    age: float
    is_taken: bool = True
    windows: int = 0


class EngineHost:
    """The engine of this process. All methods are called from the event loop's thread."""

    def __init__(
        self,
        engine: Engine,
        thread: ThreadPoolExecutor,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._thread, self._clock = engine, thread, clock
        self._disk = Lock()  # a cancelled save leaves its thread behind, which still writes
        self._removed: set[str] = set()  # streams of which nothing may be written any more
        self._grammars = GrammarProcess(lambda: engine.formats.vocabulary)
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._preparing: dict[Form, asyncio.Future[None]] = {}

    @classmethod
    async def start(cls, settings: Settings, thread: ThreadPoolExecutor) -> EngineHost:
        """Load the model and open every stream of `settings`; raises ConfigError or ModelError."""
        loop = asyncio.get_running_loop()
        return cls(await loop.run_in_executor(thread, _build, settings), thread)

    @property
    def is_idle(self) -> bool:
        """Whether a step without new clips and questions would do nothing."""
        return self._engine.is_idle

    @property
    def past_age(self) -> float | None:
        """Seconds for which recall keeps what leaves a memory, None where it keeps nothing."""
        return self._engine.sessions.past_age

    async def step(
        self, clips: Iterable[Clip] = (), questions: Iterable[Question] = ()
    ) -> list[Outcome]:
        """Queue clips and questions, then do one bounded piece of work. Returns what came of all that."""
        return await self._call(self._step, tuple(clips), tuple(questions))

    def is_prepared(self, form: Form) -> bool:
        """Return whether an answer's form needs no `prepare` any more."""
        return self._engine.formats.is_prepared(form)

    async def prepare(self, form: Form) -> None:
        """Compile the grammar of an answer's form, beside the engine's thread, and remember what came of it.

        Raises TooManyQuestions or ModelError where it could not be tried.
        """
        preparing = self._preparing.get(form)
        if preparing is None:
            if len(self._preparing) >= _FORMS_WAITING:
                raise TooManyQuestions(
                    f"{_FORMS_WAITING} new answer forms are being prepared; try again in a moment"
                )
            loop = asyncio.get_running_loop()
            preparing = loop.run_in_executor(self._compiling, self._prepare, form)
            self._preparing[form] = preparing
            preparing.add_done_callback(lambda done: self._has_prepared(form, done))
        await asyncio.shield(preparing)

    def end(self) -> None:
        """End what compiles grammars. No form can be prepared after that."""
        self._compiling.shutdown(wait=False, cancel_futures=True)
        self._grammars.close()

    async def open(
        self, name: str, settings: StreamSettings, *, anew: bool = False
    ) -> list[Unanswered]:
        """Make a stream known as `settings` say, with an empty memory where `anew`.

        Returns the questions that get no answer because of that.
        """
        self._removed.discard(name)
        return await self._call(self._open, name, settings, anew)

    async def close(self, name: str) -> list[Unanswered]:
        """Forget a stream and free its memory. Returns its questions that now get no answer."""
        self._removed.add(name)
        return await self._call(self._engine.close, name)

    async def limit(self, answering: AnsweringSettings) -> None:
        """Take other limits for questions from now on."""
        await self._call(self._engine.limit, answering)

    async def mosaic(self, name: str) -> Mosaic | None:
        """Return what stands for a stream's newest frame, None where it has no memory."""
        return await self._call(self._engine.mosaic, name)

    async def save(self, part: Part, folder: Path, name: str) -> bool:
        """Save a part of a stream in `folder`. Returns False where there is nothing to save; raises StateError."""
        try:
            write = await self._call(self._snapshot, part, folder, name)
            if write is None:
                return False
            await asyncio.to_thread(self._write, name, write)
        except RuntimeError as error:  # the device's own; what was saved before stays
            line = (str(error) or repr(error)).splitlines()[0]
            raise StateError(f"the {part} of stream {name!r} can't be read: {line}") from error
        return True

    async def restore(
        self, part: Part, folder: Path, name: str, *, max_age: float | None = None
    ) -> Restored | None:
        """Take back a saved part of a stream, unless it is older than `max_age` seconds.

        Returns None where nothing was saved. Raises StateError where the file is damaged or does not fit.
        """
        return await self._call(self._restore, part, folder, name, max_age)

    async def set_aside(self, part: Part, folder: Path, name: str) -> Path:
        """Rename a saved part that was refused, so that it is not read again. Returns its new path; raises OSError."""
        return await asyncio.to_thread(_FILES[part].set_aside, folder, name)

    async def remove(self, part: Part, folder: Path, name: str) -> None:
        """Delete what is saved of a part of a stream; raises OSError."""
        await asyncio.to_thread(self._remove, part, folder, name)

    async def saved_before(self, folder: Path, moment: float) -> list[str]:
        """Return the streams whose past was saved before the wall clock `moment`."""
        return await asyncio.to_thread(archive_file.saved_before, folder, moment)

    async def _call(self, work: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs) -> _T:
        """Run `work` in the engine's thread, after all that was called before it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(work, *arguments, **keywords))

    def _prepare(self, form: Form) -> None:
        try:
            self._engine.formats.prepare(form, self._grammars.check)
        except StreamSTTMError:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a Rust library, too
            raise ModelError(f"the answer's form can't be prepared: {words_of(error)}") from None

    def _has_prepared(self, form: Form, done: asyncio.Future[None]) -> None:
        del self._preparing[form]
        if not done.cancelled():
            done.exception()  # nobody may wait for it any more

    def _step(self, clips: Iterable[Clip], questions: Iterable[Question]) -> list[Outcome]:
        rejected: list[Outcome] = []
        for clip in clips:
            self._engine.observe(clip)
        for question in questions:
            try:
                self._engine.ask(question)
            except StreamSTTMError as error:
                rejected.append(Unanswered(question, error, is_rejected=True))
        return rejected + self._engine.step()

    def _open(self, name: str, settings: StreamSettings, anew: bool) -> list[Unanswered]:
        ended = self._engine.close(name) if anew else []
        self._engine.open(name, fps=settings.fps, regions=settings.encodes_regions)
        return ended

    def _snapshot(self, part: Part, folder: Path, name: str) -> Callable[[], object] | None:
        """Take a part as it is now. Returns how to write it, None where there is none."""
        sessions = self._engine.sessions
        if part == "past":
            past = sessions.saved_past(name)
            return None if past is None else partial(archive_file.write, folder, past)
        saved = sessions.saved(name)
        return None if saved is None else partial(session_file.write, folder, saved)

    def _restore(
        self, part: Part, folder: Path, name: str, max_age: float | None
    ) -> Restored | None:
        sessions = self._engine.sessions
        if part == "past":
            past = archive_file.read(folder, name)
            if past is None:
                return None
            age = self._clock() - past.saved_at
            return Restored(age, windows=sessions.restore_past(past))
        saved = session_file.read(folder, name)
        if saved is None:
            return None
        age = self._clock() - saved.saved_at
        if max_age is not None and age > max_age:
            return Restored(age, is_taken=False)
        sessions.restore(saved)
        return Restored(age)

    def _write(self, name: str, write: Callable[[], object]) -> None:
        with self._disk:
            if name not in self._removed:  # else it was closed meanwhile
                write()

    def _remove(self, part: Part, folder: Path, name: str) -> None:
        with self._disk:
            _FILES[part].remove(folder, name)


def _build(settings: Settings) -> Engine:
    """Load the model and build its engine; runs in the engine's thread."""
    started = time.perf_counter()
    model = load_model(settings.model, device=settings.device, dtype=settings.dtype)
    if model.device.type == "cpu":
        # Counted per calling thread, and this is the engine's.
        small = model.parameters < _SMALL_MODEL
        torch.set_num_threads(settings.threads or (1 if small else os.cpu_count() or 1))
    engine = Engine(
        model, reducer=settings.reducer, memory=settings.memory, answering=settings.answering
    )
    for name, stream in settings.streams.items():
        engine.open(name, fps=stream.fps, regions=stream.encodes_regions)
    metrics.BUILD_INFO.info({"version": __version__, "model": settings.model})
    _log.info(
        "model %s on %s, ready after %.1f s",
        settings.model,
        model.device,
        time.perf_counter() - started,
    )
    return engine
