"""What the engine does next: decode open batches, then take questions, then append clips. There is no torch here.

A clip that has waited for `patience` seconds goes first, but never twice in a row while somebody waits for an answer.
So where clips alone are more than the engine can do, every other step still answers. Of a stream that is too fast, only
the newest clips stay. The others are handed back to be counted. Streams are served in the order of their oldest work.
Questions of a higher priority go before all others. Among equals there are turns: between those who ask, then between
streams, so that whoever asks much waits for himself alone. None who asks has more than a share of what may wait, nor of
the batches that are open while others wait.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from stream_sttm.errors import TooManyQuestions
from stream_sttm.types import Clip, Question

CLIPS_WAITING = 2
_REMEMBERED = 1024  # of those who were served


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
Key = TypeVar("Key", bound=Hashable)
Party = tuple[str | None, str]  # a caller, or a stream


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
        self._turn = 0
        self._served: dict[Party, int] = {}  # the turn in which each was served, the last one last
        self._served_streams: dict[str, int] = {}
        self._asked_last: Party = None, ""
        self._leads: dict[int, Party] = {}  # whose question came first in an open batch
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
        """Queue a question. Raises TooManyQuestions where too many wait already, of all or of who asks."""
        if len(self._questions) >= self._max_waiting:
            raise TooManyQuestions(
                f"{self._max_waiting} questions are waiting already; try again in a moment"
            )
        share = max(1, self._max_waiting // 2)
        own = sum(other.caller == question.caller for other in self._questions)
        if question.caller is not None and own >= share:
            raise TooManyQuestions(
                f"{own} questions of yours are waiting already; try again in a moment"
            )
        self._questions.append(question)

    def add_batch(self, batch: int) -> None:
        """Add an open batch, which has questions left to answer."""
        self._open.append(batch)
        self._leads[batch] = self._asked_last

    def remove_batch(self, batch: int) -> None:
        """Remove a batch that is done."""
        if batch in self._open:
            self._open.remove(batch)
        self._leads.pop(batch, None)

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
        able = self._able() if len(self._open) < self._max_open else []
        if able:
            return self._take_questions(able)
        if self._open:
            self._open.rotate(-1)
            return Decode(self._open[-1])
        if late is not None:
            return self._take_clip(late[1].stream)
        return None

    def _oldest_clip(self) -> tuple[float, Clip] | None:
        heads = [waiting[0] for waiting in self._clips.values() if waiting]
        return min(heads, key=lambda head: head[0], default=None)

    def _take_clip(self, stream: str) -> Append:
        return Append(self._clips[stream].popleft()[1])

    def _able(self) -> list[Question]:
        """Return the questions whose askers may have one more batch open."""
        share = max(1, self._max_open // 2)
        leads = Counter(self._leads.values())
        return [question for question in self._questions if leads[_party(question)] < share]

    def _take_questions(self, able: list[Question]) -> Ask:
        """Return a batch for the question whose turn it is and for those that can be answered with it."""

        def turn(question: Question) -> tuple[int, int, int]:
            of_stream = self._served_streams.get(question.stream, 0)
            return -question.priority, self._served.get(_party(question), 0), of_stream

        first = min(able, key=turn)  # the oldest of these
        matching = [
            question
            for question in able
            if question.stream == first.stream and question.look == first.look
        ]
        before = Counter[tuple[Party, int]]()
        order: dict[int, tuple[int, int, int]] = {}  # of each asker the first, then each second
        for question in matching:
            party = _party(question)
            number = before[party, question.priority]
            order[id(question)] = -question.priority, number, self._served.get(party, 0)
            before[party, question.priority] += 1
        matching.sort(key=lambda question: order[id(question)])
        taken = tuple(matching[: self._max_batch])
        chosen = {id(question) for question in taken}
        self._questions = deque(q for q in self._questions if id(q) not in chosen)
        self._note_turn(taken)
        return Ask(first.stream, taken)

    def _note_turn(self, taken: tuple[Question, ...]) -> None:
        """Note whose turn it was. Of those who have asked, so many are remembered as may matter."""
        self._turn += 1
        self._asked_last = _party(taken[0])
        for party in map(_party, taken):
            _renew(self._served, party, self._turn)
        _renew(self._served_streams, taken[0].stream, self._turn)


def _renew(served: dict[Key, int], key: Key, turn: int) -> None:
    served.pop(key, None)
    served[key] = turn
    if len(served) > _REMEMBERED:
        del served[next(iter(served))]


def _party(question: Question) -> Party:
    """Return who waits: a caller, or a stream where nobody in particular asks."""
    return question.caller, "" if question.caller is not None else question.stream
