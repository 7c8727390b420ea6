"""What becomes of an error that only one question has: its own failure, in words.

A tokenizer or a grammar may fail on a text with any exception. A panic of a Rust library derives from BaseException.
"""

from __future__ import annotations

import logging

from stream_sttm.errors import QuestionRejected, StreamSTTMError
from stream_sttm.types import Question

ENDS = (KeyboardInterrupt, SystemExit)  # these end the process, whoever raised them
_log = logging.getLogger(__name__)
_LONGEST = 200  # characters


def words_of(error: BaseException) -> str:
    """Return the first line of an error's text, valid Unicode and not long."""
    text = str(error).encode(errors="replace").decode()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:_LONGEST]


def as_rejection(question: Question, error: BaseException) -> StreamSTTMError:
    """Return any error of a question's admission as one of our own."""
    if isinstance(error, StreamSTTMError):
        return error
    kind, words = type(error).__name__, words_of(error)
    _log.error("stream %s: a question was refused: %s: %s", question.stream, kind, words)
    return QuestionRejected(f"the model can't read the question: {words}")
