"""How questions of one stream that look at the same become batches.

What a question recalls is its own. So each question that looks back gets a batch of its own, whose view is made in its
first step. All others share one batch. A question about the last seconds alone is shown nothing older.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.answering.history_prompt import history_prompt
from stream_sttm.engine.answering.isolation import alone
from stream_sttm.engine.recall.retrieval import RecallContext
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.snapshot import recall_context, take_view
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Question


def make_batches(
    model: VideoLLM, session: StreamSession, questions: Sequence[Question], formats: AnswerFormats
) -> list[AnswerBatch]:
    """Return at least one batch, from the memory as it is now, for questions that agree in their `look`."""
    window_s, fresh_frames = questions[0].look
    view = take_view(session, window_s, fresh_frames)
    is_plain = window_s is not None or all(question.recall == "never" for question in questions)
    past = None if is_plain else recall_context(session, view)
    if past is None:
        return [AnswerBatch(model, view, questions, formats)]
    lookback = [question for question in questions if past.recall_mode(question) == "always"]
    direct = [question for question in questions if past.recall_mode(question) != "always"]
    may_look_back = any(past.recall_mode(question) == "auto" for question in direct)
    batches = _lookback_batches(model, past, lookback, formats)
    if direct:
        context = past if may_look_back else None
        batches.insert(0, AnswerBatch(model, view, direct, formats, past=context))
    return batches


def split_lookback(
    model: VideoLLM, batch: AnswerBatch, formats: AnswerFormats
) -> list[AnswerBatch]:
    """Return batches for the questions of a batch that turned out to look back."""
    if batch.past is None:
        return []
    batches = _lookback_batches(model, batch.past, batch.looking_back, formats)
    batch.looking_back = []
    return batches


def _lookback_batches(
    model: VideoLLM, past: RecallContext, questions: Sequence[Question], formats: AnswerFormats
) -> list[AnswerBatch]:
    """Return a batch for each question, with a view that is yet to be made."""
    batches = []
    for question in questions:
        history = _history_for(past, question, formats)
        batch = AnswerBatch(model, past.view, [question], formats, history=history)
        batch.make_view = partial(past.recalled, question)
        batches.append(batch)
    return batches


def _history_for(past: RecallContext, question: Question, formats: AnswerFormats) -> str:
    """Return the newest earlier answers that a question has room for, as text.

    The question's own earlier answers are left out, or it would agree with itself.
    """
    others = [event for event in past.events if event.query != question.query]
    for count in range(min(past.plan.log, len(others)), 0, -1):
        with alone(question, []):  # fails again, and is told, where its own prompt does
            history = history_prompt(others[-count:], now=past.view.span[1])
            if len(formats.prompt(question, history)) + question.max_new_tokens <= past.text_room:
                return history
    return ""
