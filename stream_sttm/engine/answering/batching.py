"""How questions of one stream that look at the same become batches: most of them one, each that looks back its own.

What a question recalls is its own, so it gets a view of its own, made in a step of its own; all others share one.
Who asks of the last seconds alone is shown nothing older.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.answering.history_prompt import history_prompt
from stream_sttm.engine.recall.retrieval import RecallContext
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.snapshot import recall_context, take_view
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Question


def make_batches(
    model: VideoLLM, session: StreamSession, questions: Sequence[Question], known: AnswerFormats
) -> list[AnswerBatch]:
    """At least one batch, from the memory as it is now, for questions that agree in their `look`."""
    window_s, fresh_frames = questions[0].look
    view = take_view(session, window_s, fresh_frames)
    is_plain = window_s is not None or all(question.recall == "never" for question in questions)
    past = None if is_plain else recall_context(session, view)
    if past is None:
        return [AnswerBatch(model, view, questions, known)]
    back = [question for question in questions if past.recall_mode(question) == "always"]
    here = [question for question in questions if past.recall_mode(question) != "always"]
    may_turn = any(past.recall_mode(question) == "auto" for question in here)
    batches = _looking_back(model, past, back, known)
    if here:
        own = past if may_turn else None
        batches.insert(0, AnswerBatch(model, view, here, known, past=own))
    return batches


def split_lookback(model: VideoLLM, batch: AnswerBatch, known: AnswerFormats) -> list[AnswerBatch]:
    """Batches for the questions of a batch that turned out to look back."""
    if batch.past is None:
        return []
    more = _looking_back(model, batch.past, batch.looking_back, known)
    batch.looking_back = []
    return more


def _looking_back(
    model: VideoLLM, past: RecallContext, questions: Sequence[Question], known: AnswerFormats
) -> list[AnswerBatch]:
    batches = []
    for question in questions:
        before = _retold(past, question, known)
        batch = AnswerBatch(model, past.view, [question], known, before=before)
        batch.opening = partial(past.recalled, question)
        batches.append(batch)
    return batches


def _retold(past: RecallContext, question: Question, known: AnswerFormats) -> str:
    """The newest earlier answers that a question has room for; its own are left out, or it would agree with itself."""
    others = [event for event in past.events if event.query != question.query]
    for count in range(min(past.plan.log, len(others)), 0, -1):
        before = history_prompt(others[-count:], now=past.view.span[1])
        if len(known.prompt(question, before)) + question.max_new_tokens <= past.text_room:
            return before
    return ""
