"""Questions, answers and statuses as the tests of the answering-out side need them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from stream_sttm.types import (
    Answer,
    Event,
    EventKind,
    Question,
    StreamState,
    StreamStatus,
    TokenCounts,
)


def make_answer(
    text: str = "yes",
    *,
    number: int = 1,
    stream: str = "cam",
    query: str | None = "look",
    news: bool = True,
    answered_at: float | None = None,
) -> Answer:
    """An answer with the id `q<number>`."""
    now = time.time() if answered_at is None else answered_at
    question = Question(f"q{number}", stream, "Is it red?", now - 0.2, 8, query)
    tokens = TokenCounts(visual=40, visual_before_merge=196, question=9, answer=2)
    return Answer(question, text, (now - 10.0, now - 0.5), tokens, "demo", now, news)


def make_event(number: int = 1, *, at: float = 1000.0) -> Event:
    """The beginning of an event with the id `number`, in 32 digits."""
    return Event(
        id=f"{number:032}",
        kind=EventKind.NEW,
        stream="cam",
        query="look",
        started_at=at,
        updated_at=at,
        ended_at=None,
        state=True,
        confidence=0.9,
        answer_id="q1",
        span=(at - 1.0, at),
    )


def make_status(
    stream: str = "cam", state: StreamState = StreamState.ONLINE, reason: str = ""
) -> StreamStatus:
    """A status since now."""
    return StreamStatus(stream, state, time.time(), reason, last_frame_at=time.time())


async def until(is_true: Callable[[], bool], *, within: float = 20.0) -> None:
    """Return as soon as `is_true()`; fail after `within` seconds."""
    async with asyncio.timeout(within):
        while not is_true():  # noqa: ASYNC110 - what is waited for lies in other processes too
            await asyncio.sleep(0.01)
