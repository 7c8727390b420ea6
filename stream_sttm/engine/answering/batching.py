"""How questions of one stream that look at the same become batches: most of them one, each that looks back its context.

What a question recalls is its context, so it gets a view of its context, made in a step of its context; all others share one.
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
    model: VideoLLM, session: StreamSession, questions: Sequence[Question], formats: AnswerFormats
) -> list[AnswerBatch]:
    """At least one batch, from the memory as it is now, for questions that agree in their `look`."""
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
    """Batches for the questions of a batch that turned out to look back."""
    if batch.past is None:
        return []
    batches = _lookback_batches(model, batch.past, batch.looking_back, formats)
    batch.looking_back = []
    return batches


def _lookback_batches(
    model: VideoLLM, past: RecallContext, questions: Sequence[Question], formats: AnswerFormats
) -> list[AnswerBatch]:
    batches = []
    for question in questions:
        history = _history_for(past, question, formats)
        batch = AnswerBatch(model, past.view, [question], formats, history=history)
        batch.make_view = partial(past.recalled, question)
        batches.append(batch)
    return batches


def _history_for(past: RecallContext, question: Question, formats: AnswerFormats) -> str:
    """The newest earlier answers that a question has room for; its context are left out, or it would agree with itself."""
    others = [event for event in past.events if event.query != question.query]
    for count in range(min(past.plan.log, len(others)), 0, -1):
        history = history_prompt(others[-count:], now=past.view.span[1])
        if len(formats.prompt(question, history)) + question.max_new_tokens <= past.text_room:
            return history
    return ""
