"""The schedule of a standing query: days and hours in a local time zone, minus quiet hours.

Spans follow local time: an hour that a clock change skips is left out, one that it repeats counts twice. Pure: the
wall clock is passed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from stream_sttm.config.streams import Section

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_SPANS = 50
_DAY = "|".join(DAYS)
_SPAN = re.compile(
    rf"(?:((?:{_DAY})(?:-(?:{_DAY}))?(?:,(?:{_DAY})(?:-(?:{_DAY}))?)*) )?"
    r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)"
)
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Span:
    """A span of minutes on some days of the week. One that passes midnight belongs to the day on which it began."""

    days: frozenset[int]  # Monday is 0
    start: int  # minutes since midnight
    end: int

    def holds(self, day: int, minute: int) -> bool:
        """Return whether the minute of that day lies in it."""
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        has_begun = day in self.days and minute >= self.start
        return has_begun or ((day - 1) % 7 in self.days and minute < self.end)


@lru_cache(maxsize=1024)
def parse(text: str) -> Span:
    """Parse `mon-fri 08:00-18:00`, `sat,sun 22:00-06:00` or `00:00-24:00`. Raises ValueError for anything else."""
    match = _SPAN.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise ValueError("each must be HH:MM-HH:MM, after days where meant: mon-fri 08:00-18:00")
    days, *clock = match.groups()
    from_hour, from_minute, to_hour, to_minute = map(int, clock)
    start, end = from_hour * 60 + from_minute, to_hour * 60 + to_minute
    if start >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError("a day ends at 24:00, where no span can begin")
    if start == end:
        raise ValueError("a span of no length; the whole day is 00:00-24:00")
    return Span(_days(days), start, end)


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, count = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7
        found |= {(begin + step) % 7 for step in range(count + 1)}
    return frozenset(found)


class ScheduleSettings(Section):
    """The days and hours at which a query is asked."""

    zone: str | None = Field(
        None, description="Time zone by name, such as Europe/Berlin; null: this machine's own."
    )
    hours: list[str] = Field(
        [],
        max_length=MAX_SPANS,
        description="When it is asked, such as [mon-fri 08:00-18:00, sat 22:00-06:00]; empty: always.",
    )
    quiet: list[str] = Field(
        [],
        max_length=MAX_SPANS,
        description="When it is not asked all the same; written like hours, over which it wins.",
    )

    @field_validator("zone")
    @classmethod
    def _is_known(cls, zone: str | None) -> str | None:
        try:
            if zone is not None:
                ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                "no time zone of that name is known here; write one such as Europe/Berlin"
                " (a bare system may lack the package tzdata)"
            ) from None
        return zone

    @field_validator("hours", "quiet")
    @classmethod
    def _are_spans(cls, spans: list[str]) -> list[str]:
        for span in spans:
            parse(span)
        return spans

    def is_open(self, now: float) -> bool:
        """Return whether the wall clock `now` lies in the hours and in no quiet ones."""
        zone = ZoneInfo(self.zone) if self.zone is not None else None
        local = datetime.fromtimestamp(now, UTC).astimezone(zone)
        day, minute = local.weekday(), local.hour * 60 + local.minute
        is_in_hours = not self.hours or any(parse(each).holds(day, minute) for each in self.hours)
        return is_in_hours and not any(parse(each).holds(day, minute) for each in self.quiet)
