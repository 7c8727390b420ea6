"""Questions, answers and statuses as the tests of the answering-out side need them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from stream_sttm.types import (
    FREE_TEXT,
    Answer,
    Event,
    EventKind,
    Form,
    Question,
    StreamState,
    StreamStatus,
    Structured,
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
    form: Form = FREE_TEXT,
    structured: Structured = None,
) -> Answer:
    """Return an answer with the id `q<number>`."""
    now = time.time() if answered_at is None else answered_at
    question = Question(f"q{number}", stream, "Is it red?", now - 0.2, 8, query, form=form)
    tokens = TokenCounts(visual=40, visual_before_merge=196, question=9, answer=2)
    return Answer(question, text, (now - 10.0, now - 0.5), tokens, "demo", now, news, structured)


def make_event(
    kind: EventKind = EventKind.NEW, *, number: int = 1, stream: str = "cam", query: str = "look"
) -> Event:
    """Return an event with the id `e<number>`."""
    now = time.time()
    ended_at = now if kind is EventKind.END else None
    span = (now - 5.0, now - 0.5)
    return Event(
        f"e{number}", kind, stream, query, now - 5, now, ended_at, True, 0.93, f"q{number}", span
    )


def make_status(
    stream: str = "cam", state: StreamState = StreamState.ONLINE, reason: str = ""
) -> StreamStatus:
    """Return a status since now."""
    return StreamStatus(stream, state, time.time(), reason, last_frame_at=time.time())


async def until(is_true: Callable[[], bool], *, within: float = 20.0) -> None:
    """Return as soon as `is_true()`; fail after `within` seconds."""
    async with asyncio.timeout(within):
        while not is_true():  # noqa: ASYNC110 - what is waited for lies in other processes too
            await asyncio.sleep(0.01)
