"""Clips and questions meet the engine: standing answers after each clip, on-demand ones at once, nothing left open."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from threading import current_thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest
from prometheus_client import REGISTRY

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings, MemorySettings
from stream_sttm.config.streams import StreamSettings
from stream_sttm.engine.answering import grammars
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.outcomes import Observed, Outcome
from stream_sttm.errors import (
    ModelError,
    NoVideoYet,
    QuestionExpired,
    QuestionRejected,
    Stopping,
    UnknownStream,
)
from stream_sttm.models import load_model
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.types import (
    Answer,
    AnswerType,
    Clip,
    Event,
    EventKind,
    Evidence,
    Form,
    Frame,
    Question,
    Structured,
    TokenCounts,
)
from workers import analysis
from workers.analysis import ON_DEMAND, Analysis
from workers.channel import Channel
from workers.engine_host import EngineHost

if TYPE_CHECKING:
    from llguidance import LLMatcher

LIMITS = AnsweringSettings(max_new_tokens=8)


def _clip(stream: str, index: int) -> Clip:
    image = np.full((96, 96, 3), 40 + index % 5, np.uint8)
    frames = tuple(Frame(stream, image, index + half, 5000.0 + index + half) for half in (0.0, 0.5))
    return Clip(stream, index, frames)


class Running:
    """An analysis with its channels and what it delivered."""

    def __init__(self, thread: ThreadPoolExecutor, **queries: QuerySettings) -> None:
        self.engine = Engine(load_model("demo"), memory=MemorySettings(), answering=LIMITS)
        self.clips: dict[str, Channel[Clip]] = {"door": Channel(2), "yard": Channel(2)}
        for name in self.clips:
            self.engine.open(name, fps=2)
        self.delivered: Channel[Answer] = Channel(100)
        self.host = EngineHost(self.engine, thread)
        self.analysis = Analysis(
            self.host, StandingQueries(queries, LIMITS), deliver=self.delivered.offer
        )

    async def ask(self, stream: str, text: str, timeout: float = 20) -> Answer:
        question = Question(uuid4().hex, stream, text, time.time(), 8, timeout=timeout)
        return await self.analysis.ask(question)

    async def show(self, stream: str, clips: int) -> None:
        for index in range(clips):
            await self.clips[stream].send(_clip(stream, index))
        while len(self.clips[stream]) or not self.engine.is_idle:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _running(**queries: QuerySettings) -> AsyncIterator[Running]:
    with ThreadPoolExecutor(1) as thread:
        running = Running(thread, **queries)
        task = asyncio.create_task(running.analysis.run(running.clips))
        try:
            yield running
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_standing_query_is_answered_in_its_rhythm_after_the_clip_it_is_due_with() -> None:
    query = QuerySettings(
        streams=["door"], ask="how many objects are there?", every=2, announce="always"
    )
    async with _running(count=query) as running:
        await running.show("door", 6)
        answers = [await running.delivered.receive() for _ in range(3)]
    newest = [answer.captured_at for answer in answers]
    assert newest == [5000.5, 5002.5, 5004.5]
    assert {answer.question.query for answer in answers} == {"count"}


async def test_on_change_answers_are_news_once() -> None:
    query = QuerySettings(streams=["door"], ask="how many objects are there?", every=1)
    async with _running(count=query) as running:
        await running.show("door", 3)
        answers = [await running.delivered.receive() for _ in range(3)]
    assert len({answer.text for answer in answers}) == 1
    assert [answer.news for answer in answers] == [True, False, False]


async def test_many_questions_at_once_are_all_answered() -> None:
    async with _running() as running:
        await running.show("door", 2)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(running.ask("door", f"is there a red circle? {i}"))
                for i in range(20)
            ]
    assert len({task.result().question.id for task in asked}) == 20
    assert running.engine.is_idle


async def test_many_who_look_at_a_memory_are_shown_the_same_and_the_frame_it_is_of() -> None:
    async with _running() as running:
        assert await running.analysis.mosaic("door") is None
        assert running.analysis.remembered("door") is None
        await running.show("door", 2)
        looking = (running.analysis.mosaic("door") for _ in range(50))
        mosaics = await asyncio.gather(*looking)
        assert all(mosaic is mosaics[0] for mosaic in mosaics)
        frame = running.analysis.remembered("door")
        assert mosaics[0] is not None
        assert frame is not None
        assert mosaics[0].captured_at == frame.captured_at == 5001.5
        assert not running.analysis._drawing


async def test_bad_questions_fail_alone() -> None:
    async with _running() as running:
        await running.show("door", 1)
        results = await asyncio.gather(
            running.ask("nowhere", "hi"),
            running.ask("yard", "hi"),
            running.ask("door", "  "),
            running.ask("door", "x" * 5000),
            running.ask("door", "is there a red circle?"),
            return_exceptions=True,
        )
    kinds = [type(result) for result in results]
    assert kinds == [UnknownStream, NoVideoYet, QuestionRejected, QuestionRejected, Answer]


async def test_a_question_that_can_not_be_answered_in_time_says_so_and_leaves_nothing_open() -> (
    None
):
    async with _running() as running:
        await running.show("door", 1)
        with pytest.raises(QuestionExpired, match="not answered within"):
            await running.ask("door", "is there a red circle?", timeout=1e-6)
        assert (await running.ask("door", "is there a red circle?")).text
        assert not running.analysis._asked


def _counted(outcome: str) -> float:
    labels = {"stream": "door", "query": ON_DEMAND, "outcome": outcome}
    return REGISTRY.get_sample_value("stream_sttm_answers_total", labels) or 0.0


async def test_questions_nobody_waits_for_any_more_are_not_worked_on_and_count_as_expired() -> None:
    before = {outcome: _counted(outcome) for outcome in ("answered", "expired")}
    async with _running() as running:
        await running.show("door", 1)
        given_up = [running.ask("door", f"is it {i}?", timeout=1e-4) for i in range(60)]
        results = await asyncio.gather(*given_up, return_exceptions=True)
        assert {type(result) for result in results} == {QuestionExpired}
        assert (await running.ask("door", "is there a red circle?")).text
        while not running.engine.is_idle:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0.01)
        # One batch may have been under way when its askers left; nothing else was taken up.
        assert len(running.delivered) <= 1 + LIMITS.max_batch
    assert _counted("expired") - before["expired"] == 60
    assert _counted("answered") - before["answered"] == 1


async def test_who_waits_for_an_answer_when_all_ends_is_told_so() -> None:
    async with asyncio.timeout(20), _running() as running:
        await running.show("door", 1)
        asked = [asyncio.create_task(running.ask("door", f"is it {i}?")) for i in range(50)]
        while not running.analysis._asked:  # noqa: ASYNC110 - a poll
            await asyncio.sleep(0)
    assert Stopping in {
        type(error) for error in await asyncio.gather(*asked, return_exceptions=True)
    }
    with pytest.raises(Stopping, match="ask again"):
        await running.ask("door", "is it over?")


async def test_a_stream_without_clips_does_not_hold_up_another() -> None:
    async with _running() as running:
        await running.show("yard", 4)
        assert (await running.ask("yard", "how many objects are there?")).question.stream == "yard"


async def test_streams_come_and_go_while_others_go_on() -> None:
    async with _running() as running:
        await running.show("door", 2)
        await running.analysis.forget("door")
        await running.show("yard", 2)
        with pytest.raises(UnknownStream):
            await running.ask("door", "hi")
        await running.host.open("door", StreamSettings(source="scene://door", fps=2))
        running.analysis.watch("door", running.clips["door"])
        await running.show("door", 1)
        async with asyncio.timeout(20):
            while running.engine.sessions.of("door") is None:  # noqa: ASYNC110 - a poll
                await asyncio.sleep(0.01)
        assert (await running.ask("door", "is there a red circle?")).span[1] == 5000.5
        assert (await running.ask("yard", "is there a red circle?")).text


# --- events, with an engine that says what it is told


class Saying:
    """An engine of the same shape that answers every question with the next of `says`."""

    def __init__(self, *says: Structured) -> None:
        self.says = list(says)
        self.formats = AnswerFormats(load_model("demo"))
        self.waiting: list[Outcome] = []

    @property
    def is_idle(self) -> bool:
        return not self.waiting

    def observe(self, clip: Clip) -> None:
        self.captured_at = clip.captured_at
        self.waiting.append(Observed(clip, 1, 1))

    def ask(self, question: Question) -> None:
        says, span = self.says.pop(0), (self.captured_at - 1, self.captured_at)
        tokens = TokenCounts(1, 1, 1, 1)
        self.waiting.append(
            Answer(question, str(says), span, tokens, "", 0.0, structured=says, confidence=0.9)
        )

    def step(self) -> list[Outcome]:
        done, self.waiting = self.waiting, []
        return done


class Told:
    """What an analysis with such an engine and one query delivers while clips come."""

    def __init__(self, query: QuerySettings, *says: Structured) -> None:
        self.engine, self.items = Saying(*says), list[object]()
        self.queries = StandingQueries({"person": query}, LIMITS)

    async def after(
        self, clips: list[Clip], clock: Callable[[], float] = time.time
    ) -> list[object]:
        channel: Channel[Clip] = Channel(len(clips))
        for clip in clips:
            channel.offer(clip)
        with ThreadPoolExecutor(1) as thread:
            analysis = Analysis(
                EngineHost(self.engine, thread),  # type: ignore[arg-type]
                self.queries,
                deliver=self.items.append,
                clock=clock,
            )
            task = asyncio.create_task(analysis.run({"door": channel}))
            idle = 0
            async with asyncio.timeout(20):
                while idle < 5:  # five looks in a row: nothing is on its way any more
                    await asyncio.sleep(0.01)
                    is_busy = len(channel) or self.engine.waiting or analysis.seconds_in_step()
                    idle = 0 if is_busy else idle + 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return self.items


def _person(**more: object) -> QuerySettings:
    told = {"streams": ["door"], "ask": "anyone?", "type": "yes_no", "every": 1, **more}
    return QuerySettings.model_validate(told)


def _clips(count: int) -> list[Clip]:
    return [_clip("door", index) for index in range(count)]


async def test_an_event_ends_with_its_hours_though_its_stream_shows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(analysis, "_HOURS_EVERY", 0.001)
    noon, night = 43_200.0, 86_400.0
    told = Told(_person(schedule={"zone": "UTC", "hours": ["08:00-18:00"]}), True)
    await told.after(_clips(1), clock=lambda: night if told.items else noon)
    events = [one for one in told.items if isinstance(one, Event)]
    assert [(event.kind, event.state) for event in events] == [
        (EventKind.NEW, True),
        (EventKind.END, None),
    ]


async def test_an_event_is_told_with_the_frame_that_its_first_answer_rests_on() -> None:
    told = await Told(_person(), False, True, True, False).after(_clips(4))
    events = [one for one in told if isinstance(one, Event)]
    assert [event.kind for event in events] == [EventKind.NEW, EventKind.END]
    assert events[0].has_snapshot
    (evidence,) = [one for one in told if isinstance(one, Evidence)]
    assert evidence.event == events[0].id
    assert evidence.frame.captured_at == events[0].started_at == 5001.5
    before = told[: told.index(events[0])]
    assert isinstance(before[-1], Evidence)  # at hand by the time that the event is told
    assert isinstance(before[-2], Answer)


async def test_an_answer_that_says_nothing_clear_is_counted_and_changes_nothing() -> None:
    name, labels = "stream_sttm_unclear_answers_total", {"stream": "door", "query": "person"}
    before = REGISTRY.get_sample_value(name, labels) or 0.0
    told = await Told(_person(), True, None, None).after(_clips(3))
    assert [one.kind for one in told if isinstance(one, Event)] == [EventKind.NEW]
    assert REGISTRY.get_sample_value(name, labels) == before + 2


async def test_a_late_answer_that_is_to_be_dropped_reaches_nobody() -> None:
    told = Told(_person(deadline=1, late="drop"), True)
    times = itertools.chain([100.0], itertools.repeat(200.0))
    assert await told.after(_clips(1), clock=lambda: next(times)) == []
    assert told.engine.says == []


async def test_a_still_clip_is_no_call_of_the_kind_change_though_it_may_be_encoded_anew() -> None:
    somewhere = np.array([[True, False]])
    marks = [(None, None, False), (0, None, True), (None, None, True), (2, somewhere, False),
             (3, None, True), (None, None, True)]  # fmt: skip
    clips = [
        replace(clip, same_as=same_as, changed=changed, is_still=is_still)
        for clip, (same_as, changed, is_still) in zip(_clips(6), marks, strict=True)
    ]
    query = _person(every=None, on_event=["change"], min_gap=0)
    told = await Told(query, False, False).after(clips)
    answers = [one for one in told if isinstance(one, Answer)]
    assert [answer.captured_at for answer in answers] == [5000.5, 5003.5]


def _json(schema: object) -> Form:
    return Form(AnswerType.JSON, (), json.dumps(schema))


async def test_grammars_are_compiled_neither_on_the_loop_nor_in_the_engines_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = list[str]()
    compiled = grammars.compiled

    def noted(*arguments: Any) -> LLMatcher:
        threads.append(current_thread().name)
        return compiled(*arguments)

    monkeypatch.setattr(grammars, "compiled", noted)
    standing = QuerySettings(
        streams=["door"], ask="how many?", type=AnswerType.NUMBER, every=1, max_new_tokens=8
    )
    async with _running(many=standing) as running:
        await running.show("door", 2)
        question = Question("j", "door", "how many?", time.time(), 8, timeout=20)
        forms = [_json({"type": "boolean"}), _json({"type": "null"}), _json({"type": "boolean"})]
        asked = [replace(question, id=f"j{at}", form=form) for at, form in enumerate(forms)]
        answers = await asyncio.gather(*map(running.analysis.ask, asked))
        await running.delivered.receive()
        running.host.end()
    assert [answer.structured in (True, False, None) for answer in answers] == [True] * 3
    assert [name.startswith("grammars") for name in threads] == [True] * 3  # each form once


async def test_a_schema_that_no_answer_can_follow_is_refused_and_others_go_on() -> None:
    async with _running() as running:
        await running.show("door", 1)
        question = Question("j", "door", "how many?", time.time(), 8, timeout=20)
        refused = replace(question, form=_json({"type": "string", "pattern": "["}))
        results = await asyncio.gather(
            running.analysis.ask(refused), running.ask("door", "who?"), return_exceptions=True
        )
        running.host.end()
    assert [type(result) for result in results] == [QuestionRejected, Answer]
    assert str(results[0]).startswith("json_schema: no answer can follow it")


async def test_a_panic_while_a_form_is_prepared_is_that_question_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Panic(BaseException):
        pass

    def panic(*_: object) -> None:
        raise Panic("index out of bounds")

    async with _running() as running:
        await running.show("door", 1)
        monkeypatch.setattr(grammars, "compiled", panic)
        number = Question("n", "door", "how many?", time.time(), 8, timeout=20)
        number = replace(number, form=Form(AnswerType.NUMBER))
        results = await asyncio.gather(
            running.analysis.ask(number), running.ask("door", "who?"), return_exceptions=True
        )
        running.host.end()
    assert [type(result) for result in results] == [ModelError, Answer]
    assert str(results[0]) == "the answer's form can't be prepared: index out of bounds"
