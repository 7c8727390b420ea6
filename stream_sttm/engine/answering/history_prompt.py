"""Earlier answers about a stream, as text before a question that looks back. For models that follow instructions.

Only answers that began before the memory's oldest frame are used, since the rest can still be seen. Times are given as
how long ago they were, which needs no clock and no time zone. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream_sttm.engine.recall.archived import PastAnswer

_HEAD = "What was asked and answered about this video before:"
_LONGEST = 200  # characters of a question or an answer


def history_prompt(events: Sequence[PastAnswer], *, now: float) -> str:
    """Return one line for each event, in the order of when they began, under a heading. Empty where there are none."""
    if not events:
        return ""
    lines = [
        f"- {_when(event, now)}: {_shorten(event.question)} {_shorten(event.answer)}"
        for event in events
    ]
    return "\n".join([_HEAD, *lines, "", ""])


def _when(event: PastAnswer, now: float) -> str:
    first, last = _span(now - event.since), _span(now - event.until)
    return f"{first} ago" if first == last else f"{first} to {last} ago"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shorten(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
