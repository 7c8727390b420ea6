"""What becomes of an error that only one question has: its own failure, in words.

A tokenizer or a grammar may fail on a text with any exception. A panic of a Rust library derives from BaseException.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import torch

from stream_sttm.engine.answering.sequence import Completion
from stream_sttm.engine.failures import is_of_device
from stream_sttm.errors import AnswerFailed, QuestionRejected, StreamSTTMError
from stream_sttm.types import Question, TokenCounts

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


@contextmanager
def alone(question: Question, failed: list[Completion]) -> Generator[None]:
    """Let an error of what is done for one question end that question alone: it is added to `failed` in words.

    Where the device has no memory left, or fails, that concerns all.
    """
    try:
        yield
    except (*ENDS, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if is_of_device(error):
            raise
        failed.append(
            Completion(question, "", TokenCounts(0, 0, 0, 0), error=_as_failure(question, error))
        )


def _as_failure(question: Question, error: BaseException) -> StreamSTTMError:
    if isinstance(error, StreamSTTMError):
        return error
    kind, words = type(error).__name__, words_of(error)
    _log.error("stream %s: a question got no answer: %s: %s", question.stream, kind, words)
    return AnswerFailed(f"the answer could not be made: {words}")
