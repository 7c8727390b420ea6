"""Errors that repeat fill no disk, and none is told less than once a minute."""

from __future__ import annotations

import logging

from workers.repeated_logs import OnceAMinute


class Told(logging.Handler):
    """What reaches the log, behind the filter, with a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.lines: list[str] = []
        self.addFilter(OnceAMinute(lambda: self.now))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def log_to(told: Told) -> logging.Logger:
    log = logging.Logger("x")
    log.addHandler(told)
    return log


def test_an_error_that_repeats_is_told_once_a_minute_with_their_number() -> None:
    told = Told()
    log = log_to(told)
    for told.now in (0.0, 1.0, 59.0, 60.0, 61.0, 121.0, 300.0):
        log.error("no room for %s", "you")
    assert told.lines == [
        "no room for you",
        "no room for you (and 2 times more since)",
        "no room for you (and 1 times more since)",
        "no room for you",
    ]


def test_one_place_that_tells_something_else_each_time_is_bounded_too() -> None:
    told = Told()
    log = log_to(told)
    for number in range(1000):
        log.warning("peer %d is wrong", number)
    assert len(told.lines) == 30
    log.warning("another place")
    told.now = 60.0
    for number in range(1000, 1001):
        log.warning("peer %d is wrong", number)
    assert told.lines[30:] == ["another place", "peer 1000 is wrong"]


def test_what_is_no_fault_is_always_told() -> None:
    told = Told()
    log = log_to(told)
    for _ in range(50):
        log.info("a start")
    assert told.lines == ["a start"] * 50


def test_what_is_remembered_is_bounded() -> None:
    told = Told()
    log = log_to(told)
    for number in range(5000):
        log.error("peer %d is wrong", number)
    (once,) = told.filters
    assert isinstance(once, OnceAMinute)
    assert len(once._left_out) <= 1024
