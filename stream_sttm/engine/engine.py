"""The engine: clips and questions in, outcomes out, one bounded step at a time.

It is not thread-safe: one thread calls it. `observe` and `ask` only queue. All tensor work happens in `step`. What
fails is undone: a clip whose window fails is lost, and its stream's memory stays as it was.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import assert_never

import torch

from stream_sttm import metrics
from stream_sttm.config.settings import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine import attention, failures, forward, session_metrics, vision
from stream_sttm.engine.answering.admission import check
from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.answering.batching import make_batches, split_lookback
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.answering.isolation import ENDS, as_rejection
from stream_sttm.engine.answering.sequence import Completion
from stream_sttm.engine.outcomes import Lost, Mosaic, Observed, Outcome, Progress, Unanswered
from stream_sttm.engine.plan import plan_for
from stream_sttm.engine.scheduler import Append, Ask, Decode, Scheduler, Work
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.sessions import Sessions
from stream_sttm.engine.snapshot import draw_mosaic
from stream_sttm.errors import (
    ConfigError,
    DeviceLost,
    NotFinite,
    NoVideoYet,
    OutOfMemory,
    QuestionExpired,
    StreamSTTMError,
    UnknownStream,
)
from stream_sttm.models.family import VideoLLM
from stream_sttm.registry import suggest
from stream_sttm.types import Answer, Clip, Question

_log = logging.getLogger(__name__)
_HOPELESS = 16  # windows in a row that could not be added to a memory


class Engine:
    """One model, and one memory per stream."""

    def __init__(
        self,
        model: VideoLLM,
        *,
        reducer: ReducerSettings | None = None,
        memory: MemorySettings | None = None,
        answering: AnsweringSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        reducer = reducer or ReducerSettings()
        self._limits = answering or AnsweringSettings()
        self.plan = plan_for(model, reducer, memory or MemorySettings())
        self.sessions = Sessions(model, self.plan, reducer, clock=clock)
        self._clock = clock
        self._scheduler = Scheduler(
            max_waiting=self._limits.max_waiting, max_batch=self._limits.max_batch
        )
        self._regions: set[str] = set()  # streams that encode only what changed
        self._batches: dict[int, AnswerBatch] = {}
        self._asked: dict[int, StreamSession] = {}  # by batch, the memory that it answers from
        self.formats = AnswerFormats(model)
        self._batch_numbers = itertools.count()
        attention.register()
        forward.check(model)

    @property
    def is_idle(self) -> bool:
        """Whether `step` would do nothing."""
        return self._scheduler.is_idle

    def open(self, stream: str, *, fps: float, regions: bool = False) -> None:
        """Make a stream known. Its memory is allocated with its first clip.

        With `regions`, only what changed of its clips is encoded, where the model's family can do that.
        """
        self.sessions.open(stream, fps)
        self._regions.discard(stream)
        if regions:
            self._regions.add(stream)
        session_metrics.begin(stream)

    def limit(self, answering: AnsweringSettings) -> None:
        """Set other limits for questions from now on. Questions that were admitted already stay."""
        self._limits = answering
        self._scheduler.limit(max_waiting=answering.max_waiting, max_batch=answering.max_batch)

    def close(self, stream: str) -> list[Unanswered]:
        """Delete a stream and free its memory. Returns its questions, which now get no answer."""
        self.sessions.close(stream)
        self._regions.discard(stream)
        error = UnknownStream(f"stream {stream!r} was removed")
        return [Unanswered(question, error) for question in self._scheduler.drop_stream(stream)]

    def mosaic(self, stream: str) -> Mosaic | None:
        """Return what stands for the stream's newest frame, None where it has no memory. Call it between two steps."""
        session = self.sessions.of(stream)
        return draw_mosaic(session) if session is not None else None

    def observe(self, clip: Clip) -> Clip | None:
        """Queue a clip.

        Returns the stream's oldest waiting clip where that had to make room, and counts it as dropped.
        """
        skipped = self._scheduler.add_clip(clip, self._clock())
        if skipped is not None:
            metrics.FRAMES_DROPPED.labels(clip.stream, "engine_busy").inc(len(skipped.frames))
        return skipped

    def ask(self, question: Question) -> None:
        """Queue a question. Raises UnknownStream, NoVideoYet or QuestionRejected where it can't be answered."""
        try:
            self._admit(question)
        except ENDS:
            raise
        except BaseException as error:  # a panic of a Rust library is no Exception
            failure = as_rejection(question, error)
            metrics.ADMISSION_REJECTED.labels(type(failure).__name__).inc()
            raise failure from error

    def _admit(self, question: Question) -> None:
        known = self.sessions.streams
        if question.stream not in known:
            raise UnknownStream(
                f"there is no stream {question.stream!r}{suggest(question.stream, known)}"
            )
        check(question, formats=self.formats, plan=self.plan, limits=self._limits)
        self.sessions.check(question.stream)
        self._scheduler.add_question(question)

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Schedule the most pressing piece of work, run it and collect its outcomes.

        Returns none where nothing waits. Raises DeviceLost after a fault that only a new process can leave behind.
        """
        now = self._clock()
        outcomes = self._reject_expired(now)
        work = self._scheduler.next(now)
        if work is None:
            return outcomes
        metrics.ENGINE_STEPS.labels(type(work).__name__.lower()).inc()
        outcomes += self._run_safely(work)
        self._show_queues()
        return outcomes

    def _reject_expired(self, now: float) -> list[Outcome]:
        """Remove the questions that have waited too long. Returns an outcome for each."""
        timeout = self._limits.timeout
        return [
            Unanswered(question, QuestionExpired(f"not answered within {timeout:g} s"))
            for question in self._scheduler.take_expired(now, timeout)
        ]

    def _show_queues(self) -> None:
        """Set the metrics of a finished step: its time, and how much still waits."""
        metrics.ENGINE_LAST_STEP.set(self._clock())
        metrics.QUEUE_DEPTH.labels("engine_clips").set(self._scheduler.clips_waiting)
        metrics.QUEUE_DEPTH.labels("engine_questions").set(self._scheduler.questions_waiting)

    def _run_safely(self, work: Work) -> Sequence[Outcome]:
        """Run a piece of work. Where it fails, recover and return what is lost by it.

        Raises DeviceLost where nothing more can be done with this device.
        """
        try:
            return self._run(work)
        except ENDS:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever one stream's work does, the others go on
            failure = failures.detached(error, type(work).__name__.lower())
        if isinstance(failure, DeviceLost):
            raise failure
        outcomes = self._recover(work, failure)
        if isinstance(failure, OutOfMemory):
            metrics.OOM_RECOVERIES.inc()
            torch.cuda.empty_cache()  # nothing refers to what failed any more
        return outcomes

    def _run(self, work: Work) -> Sequence[Outcome]:
        match work:
            case Append(clip):
                return [self._append(clip)]
            case Ask(stream, questions):
                return self._start_batches(stream, questions)
            case Decode(number):
                return self._decode(number)
            case _:
                assert_never(work)

    def _append(self, clip: Clip) -> Observed:
        stream = clip.stream
        session = self.sessions.of(stream)
        # the clip that this one repeats may have been dropped or lost on its way
        is_repeat = clip.same_as is not None
        known = session if session and is_repeat and clip.same_as == session.shows else None
        is_same = is_repeat and clip.changed is None
        times, encoded = self._token_times(clip), 0
        if known is not None and is_same and not (clip.wants_whole and known.is_pieced):
            session = known
            done = session.repeat(times)
        else:
            encoded_clip = self._encode(clip, known)
            session = session or self.sessions.create(stream)
            done = session.append(encoded_clip.features, times)
            encoded, session.tower_state = encoded_clip.encoded, encoded_clip.kept
            session.is_pieced = encoded < encoded_clip.features[..., 0].numel()
        session.shows = clip.same_as if is_same and not clip.wants_whole else clip.index
        self.sessions.put(session)
        session_metrics.show(session, done, encoded=encoded)
        return Observed(clip, done.before_merge, done.after_merge)

    def _token_times(self, clip: Clip) -> list[float]:
        """Return the wall clock of each token frame, which is that of its newest picture."""
        captured = [frame.captured_at for frame in clip.frames]
        group = self.model.frames_per_token
        return [
            captured[min(end, len(captured)) - 1]
            for end in range(group, len(captured) + group, group)
        ]

    def _encode(self, clip: Clip, session: StreamSession | None) -> vision.EncodedClip:
        """Encode a clip. What has not changed since the newest features of `session`, if given, may be reused."""
        if clip.stream not in self._regions:
            return vision.encode_all(self.model, clip)
        kept, grid = (session.tower_state, session.grid) if session is not None else (None, (0, 0))
        return vision.encode_changed(self.model, clip, kept, grid)

    def _start_batches(self, stream: str, questions: Sequence[Question]) -> Sequence[Outcome]:
        """Make batches of a stream's questions and run the first step of the first batch."""
        session = self.sessions.of(stream)
        if session is None:
            error = NoVideoYet(f"stream {stream!r} has no memory at the moment; ask again")
            return [Unanswered(question, error) for question in questions]
        batches = make_batches(self.model, session, questions, self.formats)
        first, *_ = [self._register(batch, session) for batch in batches]
        del batches  # a failed one is to be free at once
        return self._run_safely(Decode(first))  # a failure concerns this batch alone

    def _decode(self, number: int) -> Sequence[Outcome]:
        """Run one step of a batch. Its questions that turned out to look back become batches of their own."""
        batch = self._batches[number]
        finished = batch.step()
        for lookback_batch in split_lookback(self.model, batch, self.formats):
            self._register(lookback_batch, self._asked[number])
        return self._collect_answers(number, finished)

    def _register(self, batch: AnswerBatch, session: StreamSession) -> int:
        """Give a batch a number and have it scheduled. Returns the number."""
        number = next(self._batch_numbers)
        self._batches[number], self._asked[number] = batch, session
        self._scheduler.add_batch(number)
        return number

    def _collect_answers(self, number: int, finished: Sequence[Completion]) -> list[Outcome]:
        """Return a batch's partial texts and the answers that are finished.

        Remove the batch where no question is left.
        """
        batch = self._batches[number]
        outcomes: list[Outcome] = [Progress(*partial) for partial in batch.partial_texts()]
        self._drop_unsound(self._asked[number], finished)
        if not batch.questions:
            del self._batches[number], self._asked[number]
            self._scheduler.remove_batch(number)
        now = self._clock()
        for completion in finished:
            question = completion.question
            if completion.error is not None:
                outcomes.append(Unanswered(question, completion.error))
                continue
            metrics.TIME_TO_ANSWER.labels(question.stream).observe(now - question.asked_at)
            answer = Answer(
                question,
                completion.text,
                batch.view.span,
                completion.tokens,
                self.model.name,
                now,
                structured=completion.structured,
                confidence=completion.confidence,
                seconds=batch.view.seconds,
            )
            outcomes.append(answer)
            self.sessions.record(answer)
        return outcomes

    def _drop_unsound(self, session: StreamSession, finished: Sequence[Completion]) -> None:
        """Let a stream begin with a new memory where an answer from this one was no number.

        What recall keeps of it goes, too, because it may be what is damaged.
        """
        stream = session.stream
        error = next((one.error for one in finished if isinstance(one.error, NotFinite)), None)
        if error is None or self.sessions.of(stream) is not session:  # or it did already
            return
        _log.error("stream %s: its memory starts anew: %s", stream, error)
        self.sessions.note_loss(stream, str(error))
        self.sessions.drop(stream)
        self.sessions.drop_past(stream)
        metrics.KV_REBUILDS.labels(stream, "not_finite").inc()

    def _recover(self, work: Work, failure: StreamSTTMError) -> Sequence[Outcome]:
        """Clean up after a failed piece of work.

        A clip that failed is lost, and a batch that failed is removed. Returns an outcome for the lost clip, or for
        each question that gets no answer.
        """
        match work:
            case Append(clip):
                return [self._lose(clip, failure)]
            case Ask(_, questions):
                return [Unanswered(question, failure) for question in questions]
            case Decode(number):
                batch = self._batches.pop(number)
                del self._asked[number]
                self._scheduler.remove_batch(number)
                open_questions = [*batch.questions, *batch.looking_back]
                return [Unanswered(question, failure) for question in open_questions]
            case _:
                assert_never(work)

    def _lose(self, clip: Clip, failure: StreamSTTMError) -> Lost:
        """Count a clip as lost. Its stream's memory is what it was before, and goes on with the next clip.

        Only where nothing could be added to it for many windows is it made anew. What is wrong may then be in it, or
        may be the room that it takes.
        """
        stream, session = clip.stream, self.sessions.of(clip.stream)
        is_hopeless = session is not None and session.failures >= _HOPELESS
        is_hopeless = is_hopeless and not isinstance(failure, ConfigError)
        is_news = self.sessions.note_loss(stream, str(failure))  # not again for each window
        if is_news or is_hopeless:
            memory = "starts anew" if is_hopeless else "stays as it was"
            _log.error("stream %s: a window was lost, its memory %s: %s", stream, memory, failure)
        if is_hopeless:
            self.sessions.drop(stream)
            metrics.KV_REBUILDS.labels(stream, "error").inc()
        metrics.FRAMES_DROPPED.labels(stream, "engine_error").inc(len(clip.frames))
        return Lost(clip, failure)
