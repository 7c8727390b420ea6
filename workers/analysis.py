"""Clips and questions in, answers and events out.

The engine's host works in steps. Each step is handed the clips and questions that have come since the last one. Each
stream has at most one clip in the engine, so a slow engine shows as a full channel at that stream's ingest and never
as a growing queue here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from stream_sttm import metrics
from stream_sttm.engine.outcomes import Lost, Mosaic, Observed, Outcome, Progress, Unanswered
from stream_sttm.errors import QuestionExpired, Stopping, StreamSTTMError
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.types import Answer, Clip, Event, EventKind, Evidence, Frame, Question
from workers.channel import Channel
from workers.engine_host import EngineHost

_log = logging.getLogger(__name__)
ON_DEMAND = "on_demand"  # the label of questions that no standing query asked
_HOURS_EVERY = 1.0  # seconds between two looks at the schedules
LOST_IN_A_ROW = 5  # windows after which a stream's losses are told
_FRAMES_BACK = 4  # clips; an answer rests on the newest frame of one of the last


class Analysis:
    """Standing and on-demand questions over one engine; all calls are made from the event loop's thread."""

    def __init__(
        self,
        host: EngineHost,
        queries: StandingQueries,
        *,
        deliver: Callable[[Answer | Event | Evidence], None],
        on_losing: Callable[[str, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_losing` is called with a stream and why every window of it is lost; without a reason where that ends."""
        self._host, self._queries = host, queries
        self._deliver, self._on_losing, self._clock = deliver, on_losing, clock
        self._lost: dict[str, int] = {}  # windows in a row
        self._clips: deque[Clip] = deque()
        self._questions: deque[Question] = deque()
        self._feeds: dict[str, asyncio.Task[None]] = {}
        self._taken: dict[str, asyncio.Event] = {}
        self._shown: dict[str, deque[Frame]] = {}  # the newest of each of the last clips
        self._asked: dict[str, asyncio.Future[Answer]] = {}
        self._listening: dict[str, Callable[[str], None]] = {}
        self._drawing: dict[str, asyncio.Future[Mosaic | None]] = {}
        self._wake = asyncio.Event()
        self._stepping: float | None = None
        self._group: asyncio.TaskGroup | None = None
        self.has_begun = asyncio.Event()
        self._is_stopping = False

    async def run(self, clips: Mapping[str, Channel[Clip]]) -> None:
        """Serve all clips and questions until cancelled. Questions that still wait then fail with Stopping."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for stream, channel in clips.items():
                    self.watch(stream, channel)
                group.create_task(self._work(), name="engine")
                group.create_task(self._watch_hours(), name="hours")
                self.has_begun.set()
        finally:
            self._is_stopping = True
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(_stopping())

    def watch(self, stream: str, channel: Channel[Clip]) -> None:
        """Serve one more stream that the engine knows. Call it while `run` runs."""
        assert self._group is not None
        feed = self._feed(stream, channel)
        self._feeds[stream] = self._group.create_task(feed, name=f"feed[{stream}]")

    async def forget(self, stream: str) -> None:
        """Stop serving a stream and free its memory."""
        if (feed := self._feeds.pop(stream, None)) is not None:
            feed.cancel()
        self._taken.pop(stream, None)
        self._shown.pop(stream, None)
        self._count_lost(stream, "")
        self._clips = deque(clip for clip in self._clips if clip.stream != stream)
        self.settle(await self._host.close(stream))

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Pass on the engine's outcomes to whoever waits for them."""
        for outcome in outcomes:
            self._settle(outcome)

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer one question as soon as the engine can. Raises QuestionError or ModelError.

        `on_text` is called with the text of a streamed answer so far, whenever there is more.
        """
        if self._is_stopping:
            raise _stopping()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = future
        if on_text is not None:
            self._listening[question.id] = on_text
        self._put(question)
        try:
            async with asyncio.timeout(question.timeout):
                return await future
        except TimeoutError:
            raise QuestionExpired(
                f"stream {question.stream!r}: not answered within {question.timeout:g} s"
            ) from None
        finally:
            self._asked.pop(question.id, None)
            self._listening.pop(question.id, None)

    async def mosaic(self, stream: str) -> Mosaic | None:
        """Return what stands for a stream's newest frame, None before the first.

        Waits for the engine's present step. Callers that wait at the same time share one result.
        """
        if self._is_stopping:
            raise _stopping()
        drawing = self._drawing.get(stream)
        if drawing is None:
            drawing = asyncio.ensure_future(self._host.mosaic(stream))
            self._drawing[stream] = drawing
            drawing.add_done_callback(lambda _: self._drawing.pop(stream))
        return await asyncio.shield(drawing)

    def remembered(self, stream: str) -> Frame | None:
        """Return the newest frame in a stream's memory, of those seen since the start."""
        shown = self._shown.get(stream)
        return shown[-1] if shown else None

    def call(self, stream: str, query: str) -> bool:
        """Ask a standing query now. Returns False where it has to wait for its turn."""
        question = self._queries.call(stream, query, self._clock())
        if question is not None:
            self._put(question)
        return question is not None

    def publish(self, events: Iterable[Event]) -> None:
        """Count events and deliver them."""
        for event in events:
            metrics.EVENTS.labels(event.stream, event.query, event.kind.value).inc()
            self._deliver(event)

    def seconds_in_step(self) -> float:
        """Return the seconds that the present step has taken, 0 between two steps."""
        return time.monotonic() - self._stepping if self._stepping is not None else 0.0

    def _put(self, question: Question) -> None:
        self._questions.append(question)
        self._wake.set()

    async def _feed(self, stream: str, channel: Channel[Clip]) -> None:
        """Hand over one stream's clips, each when the one before it is in the memory."""
        taken = self._taken[stream] = asyncio.Event()
        while True:
            clip = await channel.receive()
            taken.clear()
            self._clips.append(clip)
            self._wake.set()
            await taken.wait()

    async def _work(self) -> None:
        while True:
            if self._host.is_idle and not (self._clips or self._questions):
                self._wake.clear()
                await self._wake.wait()
            clips, questions = tuple(self._clips), self._still_wanted()
            self._clips.clear()
            self._questions.clear()
            self._stepping = time.monotonic()
            outcomes = await self._host.step(clips, questions)
            self._stepping = None
            self.settle(outcomes)

    async def _watch_hours(self) -> None:
        """End what its schedule ends, on streams that show nothing too."""
        while True:
            await asyncio.sleep(_HOURS_EVERY)
            for stream in tuple(self._feeds):
                self.publish(self._queries.lapsed(stream, self._clock()))

    def _still_wanted(self) -> list[Question]:
        """Return the waiting questions whose askers still wait. The others are counted as expired.

        A question whose grammar is not compiled yet comes again when it is.
        """
        assert self._group is not None
        wanted = []
        for question in self._questions:
            if self._is_abandoned(question):
                _count(question, "expired")
            elif self._host.is_prepared(question.form):
                wanted.append(question)
            else:
                self._group.create_task(self._prepare(question), name=f"form[{question.stream}]")
        return wanted

    async def _prepare(self, question: Question) -> None:
        """Have a question's grammar compiled, then queue it again."""
        try:
            await self._host.prepare(question.form)
        except StreamSTTMError as error:
            self._settle(Unanswered(question, error, is_rejected=True))
        else:
            self._put(question)

    def _settle(self, result: Outcome) -> None:
        match result:
            case Observed(clip):
                self._observed(clip)
            case Lost(clip, error):
                self._has_taken(clip)
                self._count_lost(clip.stream, str(error))
            case Unanswered(question, error, is_rejected):
                outcome = "rejected" if is_rejected else "failed"
                _count(question, "expired" if isinstance(error, QuestionExpired) else outcome)
                self._queries.settled(question)
                future = self._asked.get(question.id)
                if future is not None and not future.done():
                    future.set_exception(error)
                elif question.query is not None:
                    _log.warning("query %s on %s: %s", question.query, question.stream, error)
            case Progress(question, text):
                if on_text := self._listening.get(question.id):
                    on_text(text)
            case Answer():
                self._answered(result)
            case _:
                assert_never(result)

    def _has_taken(self, clip: Clip) -> None:
        if (taken := self._taken.get(clip.stream)) is not None:  # else it was forgotten meanwhile
            taken.set()

    def _count_lost(self, stream: str, why: str) -> None:
        """Count a lost window, or with no reason the end of such a row. Tell whoever is to know."""
        if why and stream in self._feeds:
            self._lost[stream] = self._lost.get(stream, 0) + 1
            if self._lost[stream] >= LOST_IN_A_ROW:
                self._on_losing(stream, why)
        elif self._lost.pop(stream, 0) >= LOST_IN_A_ROW:
            self._on_losing(stream, "")

    def _observed(self, clip: Clip) -> None:
        """Ask the standing queries that are due with a clip that is now in the memory."""
        self._has_taken(clip)
        self._count_lost(clip.stream, "")
        stream, newest, now = clip.stream, clip.frames[-1], self._clock()
        if stream in self._feeds:
            self._shown.setdefault(stream, deque(maxlen=_FRAMES_BACK)).append(newest)
        due = self._queries.due(stream, pts=newest.pts, now=now, has_changed=not clip.is_still)
        self._questions.extend(due)
        self.publish(self._queries.lapsed(stream, now))

    def _answered(self, answer: Answer) -> None:
        question = answer.question
        frame = self._newest_under(answer)
        taken = self._queries.take(answer, self._clock(), has_snapshot=frame is not None)
        # The asker may have given up meanwhile. The answer is kept and published all the same.
        is_expired = self._is_abandoned(question) or not taken.is_kept
        _count(question, "expired" if is_expired else "late" if taken.is_late else "answered")
        if not taken.is_clear:
            metrics.UNCLEAR.labels(question.stream, question.query).inc()
        answer = replace(answer, news=taken.is_news)
        if taken.is_kept:
            self._deliver(answer)
        if taken.event is not None:
            if taken.event.kind is EventKind.NEW and frame is not None:
                self._deliver(Evidence(taken.event.id, frame))
            self.publish([taken.event])
        future = self._asked.get(question.id)
        if future is not None and not future.done():
            future.set_result(answer)

    def _newest_under(self, answer: Answer) -> Frame | None:
        """Return the newest frame that `answer` can rest on, of the last few clips."""
        shown = self._shown.get(answer.question.stream, ())
        known = [frame for frame in shown if frame.captured_at <= answer.captured_at]
        return known[-1] if known else None

    def _is_abandoned(self, question: Question) -> bool:
        """Return whether an on-demand question's asker has stopped waiting."""
        return question.query is None and question.id not in self._asked


def _stopping() -> Stopping:
    return Stopping("the service is stopping; ask again when it is back")


def _count(question: Question, outcome: str) -> None:
    metrics.ANSWERS.labels(question.stream, question.query or ON_DEMAND, outcome).inc()
