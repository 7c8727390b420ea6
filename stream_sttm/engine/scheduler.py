"""What the engine does next: decode open batches, then take questions, then append clips. There is no torch here.

A clip that has waited for `patience` seconds goes first, but never twice in a row while somebody waits for an answer.
So where clips alone are more than the engine can do, every other step still answers. Of a stream that is too fast, only
the newest clips stay. The others are handed back to be counted. Streams are served in the order of their oldest work.
Questions of a higher priority go before all others.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from stream_sttm.errors import TooManyQuestions
from stream_sttm.types import Clip, Question

CLIPS_WAITING = 2


@dataclass(frozen=True, slots=True)
class Append:
    """Put this clip into its stream's memory."""

    clip: Clip


@dataclass(frozen=True, slots=True)
class Ask:
    """Start a batch for these questions of one stream, which look at the same part of it."""

    stream: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """Run one step of the open batch with this number."""

    batch: int


Work = Append | Ask | Decode


class Scheduler:
    """The waiting clips and questions, and the numbers of the open batches."""

    def __init__(
        self, *, max_waiting: int, max_batch: int, max_open: int = 8, patience: float = 1.0
    ) -> None:
        self._max_open = max_open
        self.limit(max_waiting=max_waiting, max_batch=max_batch)
        self._patience = patience
        self._clips: dict[str, deque[tuple[float, Clip]]] = {}
        self._questions: deque[Question] = deque()
        self._open: deque[int] = deque()
        self._clip_went_first = False

    def limit(self, *, max_waiting: int, max_batch: int) -> None:
        """Set other limits from now on. What waits already stays."""
        self._max_waiting, self._max_batch = max_waiting, max_batch

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._questions or self._open or any(self._clips.values()))

    @property
    def clips_waiting(self) -> int:
        """How many clips of all streams are not yet in a memory."""
        return sum(len(waiting) for waiting in self._clips.values())

    @property
    def questions_waiting(self) -> int:
        """How many questions are not yet in a batch."""
        return len(self._questions)

    def add_clip(self, clip: Clip, now: float) -> Clip | None:
        """Queue a clip. Returns the stream's oldest waiting clip where that had to make room."""
        waiting = self._clips.setdefault(clip.stream, deque())
        waiting.append((now, clip))
        return waiting.popleft()[1] if len(waiting) > CLIPS_WAITING else None

    def add_question(self, question: Question) -> None:
        """Queue a question. Raises TooManyQuestions where too many wait already."""
        if len(self._questions) >= self._max_waiting:
            raise TooManyQuestions(
                f"{self._max_waiting} questions are waiting already; try again in a moment"
            )
        self._questions.append(question)

    def add_batch(self, batch: int) -> None:
        """Add an open batch, which has questions left to answer."""
        self._open.append(batch)

    def remove_batch(self, batch: int) -> None:
        """Remove a batch that is done."""
        if batch in self._open:
            self._open.remove(batch)

    def drop_stream(self, stream: str) -> list[Question]:
        """Remove all that waits for a stream. Returns its questions."""
        self._clips.pop(stream, None)
        removed = [question for question in self._questions if question.stream == stream]
        self._questions = deque(q for q in self._questions if q.stream != stream)
        return removed

    def take_expired(self, now: float, timeout: float) -> list[Question]:
        """Remove and return the questions that have waited too long.

        That is their own timeout or `timeout` seconds, whichever is shorter.
        """

        def is_late(question: Question) -> bool:
            own = timeout if question.timeout is None else min(timeout, question.timeout)
            return now - question.asked_at > own

        removed = [question for question in self._questions if is_late(question)]
        if removed:
            self._questions = deque(q for q in self._questions if not is_late(q))
        return removed

    def next(self, now: float) -> Work | None:
        """Remove the most pressing work from its queue and return it, None where there is none."""
        late = self._oldest_clip()
        is_answering = bool(self._open or self._questions)
        if late is not None and now - late[0] > self._patience:
            self._clip_went_first = is_answering and not self._clip_went_first
            if self._clip_went_first or not is_answering:
                return self._take_clip(late[1].stream)
        if self._open and (not self._questions or len(self._open) >= self._max_open):
            self._open.rotate(-1)
            return Decode(self._open[-1])
        if self._questions:
            return self._take_questions()
        if late is not None:
            return self._take_clip(late[1].stream)
        return None

    def _oldest_clip(self) -> tuple[float, Clip] | None:
        heads = [waiting[0] for waiting in self._clips.values() if waiting]
        return min(heads, key=lambda head: head[0], default=None)

    def _take_clip(self, stream: str) -> Append:
        return Append(self._clips[stream].popleft()[1])

    def _take_questions(self) -> Ask:
        first = max(self._questions, key=lambda question: question.priority)  # the oldest of these
        stream = first.stream
        matching = [
            question
            for question in self._questions
            if question.stream == stream and question.look == first.look
        ]
        matching.sort(key=lambda question: -question.priority)
        taken = tuple(matching[: self._max_batch])
        chosen = {id(question) for question in taken}
        self._questions = deque(q for q in self._questions if id(q) not in chosen)
        return Ask(stream, taken)
