"""Clips and questions in, answers out: the one place where the network side meets the engine.

The engine runs in a thread of its own, one bounded step at a time; between two steps, and only then, the event loop
hands it clips and questions. Each stream has at most one clip in the engine, so a slow engine shows as a full channel
at that stream's ingest and never as a growing queue here.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stream_sttm import metrics
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import QuestionExpired, Stopping, StreamSTTMError
from stream_sttm.queries import StandingQueries
from stream_sttm.types import Answer, Clip, Lost, Observed, Outcome, Question, Recall, Unanswered
from workers.channel import Channel

_log = logging.getLogger(__name__)
ON_DEMAND = "on_demand"  # the label of questions that no standing query asked


class Analysis:
    """The engine thread's other half on the event loop."""

    def __init__(
        self,
        engine: Engine,
        queries: StandingQueries,
        *,
        thread: ThreadPoolExecutor,
        deliver: Callable[[Answer], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._queries = engine, queries
        self._thread, self._deliver, self._clock = thread, deliver, clock
        self._clips: deque[Clip] = deque()
        self._questions: deque[Question] = deque()
        self._taken: dict[str, asyncio.Event] = {}
        self._asked: dict[str, asyncio.Future[Answer]] = {}
        self._wake = asyncio.Event()
        self._stepping: float | None = None
        self._is_stopping = False

    async def run(self, clips: Mapping[str, Channel[Clip]]) -> None:
        """Serve every stream's clips and all questions until cancelled; who still waits then is told so."""
        try:
            async with asyncio.TaskGroup() as group:
                for stream, channel in clips.items():
                    group.create_task(self._feed(stream, channel), name=f"feed[{stream}]")
                group.create_task(self._work(), name="engine")
        finally:
            self._is_stopping = True
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(_stopping())

    async def ask(
        self,
        stream: str,
        text: str,
        *,
        max_new_tokens: int,
        timeout: float,
        recall: Recall | None = None,
    ) -> Answer:
        """Answer one question as soon as the engine can; raises QuestionError or ModelError where it can't."""
        if self._is_stopping:
            raise _stopping()
        question = Question(
            id=uuid.uuid4().hex,
            stream=stream,
            text=text,
            asked_at=self._clock(),
            max_new_tokens=max_new_tokens,
            timeout=timeout,
            recall=recall,
        )
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = future
        self._questions.append(question)
        self._wake.set()
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise QuestionExpired(f"stream {stream!r}: not answered within {timeout:g} s") from None
        finally:
            self._asked.pop(question.id, None)

    def seconds_in_step(self) -> float:
        """How long the engine has been at its present step, 0 while it waits."""
        return time.monotonic() - self._stepping if self._stepping is not None else 0.0

    async def _feed(self, stream: str, channel: Channel[Clip]) -> None:
        """Hand over one stream's clips, each when the one before is in its memory."""
        taken = self._taken[stream] = asyncio.Event()
        while True:
            clip = await channel.receive()
            taken.clear()
            self._clips.append(clip)
            self._wake.set()
            await taken.wait()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._engine.is_idle and not (self._clips or self._questions):
                self._wake.clear()
                await self._wake.wait()
            while self._clips:
                self._engine.observe(self._clips.popleft())
            while self._questions:
                self._admit(self._questions.popleft())
            self._stepping = time.monotonic()
            outcomes = await loop.run_in_executor(self._thread, self._engine.step)
            self._stepping = None
            for outcome in outcomes:
                self._settle(outcome)

    def _admit(self, question: Question) -> None:
        if self._is_abandoned(question):  # the place in the queue is for those who still wait
            _count(question, "expired")
            return
        try:
            self._engine.ask(question)
        except StreamSTTMError as error:
            self._settle(Unanswered(question, error), outcome="rejected")

    def _settle(self, result: Outcome, *, outcome: str = "failed") -> None:
        match result:
            case Observed(clip):
                self._taken[clip.stream].set()
                newest = clip.frames[-1]
                self._questions.extend(
                    self._queries.due(clip.stream, pts=newest.pts, now=self._clock())
                )
            case Lost(clip):
                self._taken[clip.stream].set()
            case Unanswered(question, error):
                _count(question, "expired" if isinstance(error, QuestionExpired) else outcome)
                self._queries.settled(question)
                future = self._asked.get(question.id)
                if future is not None and not future.done():
                    future.set_exception(error)
                elif question.query is not None:
                    _log.warning("query %s on %s: %s", question.query, question.stream, error)
            case Answer():
                self._answered(result)

    def _answered(self, answer: Answer) -> None:
        question = answer.question
        # Whoever gave up meanwhile was told so; what was worked out is kept and published all the same.
        _count(question, "expired" if self._is_abandoned(question) else "answered")
        self._queries.settled(question)
        if question.query is not None:
            answer = replace(answer, news=self._queries.is_news(answer))
        self._deliver(answer)
        future = self._asked.get(question.id)
        if future is not None and not future.done():
            future.set_result(answer)

    def _is_abandoned(self, question: Question) -> bool:
        """Whether somebody asked this and has stopped waiting."""
        return question.query is None and question.id not in self._asked


def _stopping() -> Stopping:
    return Stopping("the service is stopping; ask again when it is back")


def _count(question: Question, outcome: str) -> None:
    metrics.ANSWERS.labels(question.stream, question.query or ON_DEMAND, outcome).inc()
