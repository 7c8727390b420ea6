"""Days and hours: what a span holds, past midnight and over clock changes, and the line for what is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream_sttm.config.schedule import DAYS, ScheduleSettings, parse

BERLIN = ZoneInfo("Europe/Berlin")
# 2025: summer time began on 30 March at 02:00 and ended on 26 October at 03:00.


def at(text: str, *, fold: int = 0) -> float:
    """A wall clock in Berlin as seconds since the epoch."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def berlin(*hours: str, quiet: tuple[str, ...] = ()) -> ScheduleSettings:
    return ScheduleSettings(zone="Europe/Berlin", hours=list(hours), quiet=list(quiet))


def test_a_span_begins_with_its_first_minute_and_ends_before_its_last() -> None:
    office = berlin("mon-fri 08:00-18:00")
    assert not office.is_open(at("2025-06-02T07:59:59.999"))
    assert office.is_open(at("2025-06-02T08:00:00"))
    assert office.is_open(at("2025-06-02T17:59:59.999"))
    assert not office.is_open(at("2025-06-02T18:00:00"))
    assert not office.is_open(at("2025-06-07T12:00:00"))  # a Saturday


def test_a_span_past_midnight_belongs_to_the_day_it_began_on() -> None:
    night = berlin("fri 22:00-06:00")
    assert night.is_open(at("2025-06-06T22:00:00"))
    assert night.is_open(at("2025-06-07T05:59:00"))
    assert not night.is_open(at("2025-06-06T05:59:00"))
    assert not night.is_open(at("2025-06-07T22:00:00"))
    assert berlin("sun 22:00-06:00").is_open(at("2025-06-09T01:00:00"))  # into Monday


def test_days_may_wrap_round_the_week_and_be_listed() -> None:
    assert parse("sat-mon 00:00-24:00").days == {5, 6, 0}
    assert parse("MON,wed-fri  08:00-09:00").days == {0, 2, 3, 4}
    assert parse("08:00-09:00").days == set(range(7))


def test_quiet_hours_win_over_hours() -> None:
    day = berlin("08:00-20:00", quiet=("13:00-14:00",))
    assert day.is_open(at("2025-06-02T12:59:59"))
    assert not day.is_open(at("2025-06-02T13:00:00"))
    assert day.is_open(at("2025-06-02T14:00:00"))
    assert berlin(quiet=("22:00-07:00",)).is_open(at("2025-06-02T07:00:00"))


def test_no_hours_are_all_hours() -> None:
    assert ScheduleSettings().is_open(0.0)
    assert ScheduleSettings(zone="UTC", hours=["thu 00:00-00:01"]).is_open(0.0)  # 1970 began on one


def test_an_hour_that_the_clock_leaps_over_is_no_hour_of_that_day() -> None:
    lost = berlin("02:00-03:00")
    before = at("2025-03-30T01:59:59")
    assert not any(lost.is_open(before + step) for step in (0, 1, 1800, 3600))
    assert lost.is_open(at("2025-03-31T02:30:00"))


def test_an_hour_that_the_clock_repeats_counts_both_times() -> None:
    twice = berlin("02:00-03:00")
    first, second = at("2025-10-26T02:30:00"), at("2025-10-26T02:30:00", fold=1)
    assert second - first == 3600
    assert twice.is_open(first)
    assert twice.is_open(second)
    assert not twice.is_open(at("2025-10-26T03:00:00"))


def test_a_night_over_a_clock_change_is_as_long_as_the_wall_says() -> None:
    night = berlin("22:00-06:00")
    for start, hours in (("2025-03-29T22:00:00", 7), ("2025-10-25T22:00:00", 9)):
        minutes = [at(start) + 60 * step for step in range(10 * 60)]
        assert sum(night.is_open(minute) for minute in minutes) == hours * 60


@given(
    now=st.floats(0, 4e9),
    days=st.lists(st.sampled_from(DAYS), max_size=3, unique=True),
    start=st.integers(0, 1439),
    length=st.integers(1, 1439),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
)
def test_hours_and_the_same_quiet_hours_divide_all_time_between_them(
    now: float, days: list[str], start: int, length: int, zone: str
) -> None:
    end = (start + length) % 1440
    span = f"{','.join(days)} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    asked = ScheduleSettings(zone=zone, hours=[span]).is_open(now)
    assert asked != ScheduleSettings(zone=zone, quiet=[span]).is_open(now)
    local = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    began = [local.replace(hour=start // 60, minute=start % 60, second=0, microsecond=0)]
    began.append(began[0] - timedelta(days=1))
    walls = [b <= local < b + timedelta(minutes=length) for b in began]
    is_day = [not days or DAYS[b.weekday()] in days for b in began]
    assert asked == any(wall and day for wall, day in zip(walls, is_day, strict=True))


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"hours": ["8-18"]}, "HH:MM-HH:MM"),
        ({"hours": ["mon-fry 08:00-18:00"]}, "HH:MM-HH:MM"),
        ({"hours": ["08:00-08:00"]}, "no length"),
        ({"hours": ["24:00-08:00"]}, "ends at 24:00"),
        ({"quiet": ["08:00-24:01"]}, "ends at 24:00"),
        ({"hours": ["08:60-09:00"]}, "HH:MM-HH:MM"),
        ({"hours": ["08:00-09:00"] * 51}, "at most 50"),
        ({"zone": "Europe/Bärlin"}, "no time zone of that name"),
        ({"zone": "Europe"}, "no time zone of that name"),
        ({"zone": "../../etc/passwd"}, "no time zone of that name"),
        ({"zone": ""}, "no time zone of that name"),
    ],
)
def test_what_is_no_schedule_is_told_in_a_line(told: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        ScheduleSettings.model_validate(told)
