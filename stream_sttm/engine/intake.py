"""How the questions of one stream become batches: most are answered together, each that looks back by itself.

What a question recalls is its own, so it gets a view of its own, made in a step of its own; all others share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stream_sttm.engine.answering import AnswerBatch
from stream_sttm.engine.archive import Archives
from stream_sttm.engine.plan import RecallPlan
from stream_sttm.engine.recall import Past
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.view import View
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Question


def archives_for(recall: RecallPlan | None) -> Archives | None:
    """Where the streams' pasts are kept, None where nothing is ever recalled."""
    if recall is None:
        return None
    return Archives(most_bytes=recall.most_bytes, max_age=recall.max_age, folder=recall.folder)


def in_batches(
    model: VideoLLM, session: StreamSession, questions: Sequence[Question]
) -> list[AnswerBatch]:
    """At least one batch, from the memory as it is now."""
    view = session.view()
    is_plain = all(question.recall == "never" for question in questions)
    past = None if is_plain else session.past(view)
    if past is None:
        return [AnswerBatch(model, view, questions)]
    back = [question for question in questions if past.wishes(question) == "always"]
    here = [question for question in questions if past.wishes(question) != "always"]
    may_turn = any(past.wishes(question) == "auto" for question in here)
    batches = [AnswerBatch(model, view, here, past=past if may_turn else None)] if here else []
    return batches + _looking_back(model, view, past, back)


def set_aside(model: VideoLLM, batch: AnswerBatch) -> list[AnswerBatch]:
    """Batches for the questions of a batch that turned out to look back."""
    if batch.past is None:
        return []
    back, batch.looking_back = batch.looking_back, []
    return _looking_back(model, batch.view, batch.past, back)


def _looking_back(
    model: VideoLLM, view: View, past: Past, questions: Sequence[Question]
) -> list[AnswerBatch]:
    return [
        AnswerBatch(model, view, [question], opening=partial(past.recalled, question))
        for question in questions
    ]
