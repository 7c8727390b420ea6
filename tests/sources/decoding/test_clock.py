"""Facts about a stream's time: it only goes forward, keeps the camera's steps, and survives whatever its clock does."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_sttm.sources.decoding.clock import JUMP, MOST_DELAY, ArrivalClock, FileClock

TICK = 1 / 90_000
WRAP = 2**32 * TICK
GAPS = st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60)


def stamped(media, arrivals):
    clock = ArrivalClock(TICK)
    return [clock.stamp(m, a) for m, a in zip(media, arrivals, strict=True)]


def arrivals_of(gaps):
    return list(accumulate(gaps, initial=1000.0))


@given(GAPS, st.data())
def test_whatever_the_cameras_clock_says_time_goes_forward_and_is_never_ahead(gaps, data):
    arrivals = arrivals_of(gaps)
    one = st.none() | st.floats(-1e6, 1e6)
    media = data.draw(st.lists(one, min_size=len(arrivals), max_size=len(arrivals)))
    times = stamped(media, arrivals)
    assert all(b > a for a, b in pairwise(times))
    for t, arrived in zip(times, arrivals, strict=True):
        behind = arrived - arrivals[0] - t
        assert -0.01 < behind < MOST_DELAY + JUMP + 0.01


@given(st.integers(1, 200), st.floats(0.01, 1.0))
@settings(max_examples=50)
def test_a_wrap_after_13_hours_leaves_every_step_as_it_was(before, step):
    start = WRAP - before * step
    media = [(start + i * step) % WRAP for i in range(before + 100)]
    times = stamped(media, [5000 + i * step for i in range(len(media))])
    assert all(b - a == pytest.approx(step, abs=1e-4) for a, b in pairwise(times))


def test_a_clock_that_wraps_for_days_stays_with_the_stream():
    step = 600.0
    media = [(i * step) % WRAP for i in range(1000)]
    times = stamped(media, [i * step for i in range(1000)])
    assert times[-1] == pytest.approx(999 * step, abs=0.1)


@given(st.floats(-1e5, 1e5).filter(lambda jump: abs(jump) > 2 * JUMP))
def test_a_jump_of_the_cameras_clock_is_no_jump_of_the_streams_time(jump):
    media = [100 + i * 0.1 + (jump if i >= 50 else 0.0) for i in range(100)]
    times = stamped(media, [7 + i * 0.1 for i in range(100)])
    assert all(b - a == pytest.approx(0.1, abs=1e-4) for a, b in pairwise(times))


@pytest.mark.parametrize("drift", [5e-4, -5e-4])
def test_drift_does_not_pile_up_over_a_day(drift):
    arrivals = [i * 1.0 for i in range(86_400)]
    times = stamped([a * (1 + drift) for a in arrivals], arrivals)
    assert max(a - t for a, t in zip(arrivals, times, strict=True)) < 0.05


@given(st.lists(st.floats(0, 0.8), min_size=200, max_size=200))
@settings(max_examples=30)
def test_jitter_of_the_network_does_not_reach_the_streams_time(delays):
    delays = [0.0, *delays]
    arrivals = list(accumulate((i * 0.1 + d for i, d in enumerate(delays)), max))
    times = stamped([i * 0.1 for i in range(len(delays))], arrivals)
    assert all(t == pytest.approx(i * 0.1, abs=0.03) for i, t in enumerate(times))


def test_after_a_stall_what_was_sent_meanwhile_keeps_its_own_time():
    arrivals = [i * 0.1 if i < 20 or i >= 50 else 5.0 + i * 1e-4 for i in range(80)]
    times = stamped([i * 0.1 for i in range(80)], sorted(arrivals))
    assert times[30] == pytest.approx(3.0, abs=0.01)


def test_a_clock_that_stands_still_is_given_up():
    times = stamped([7.0] * 600, [i * 0.1 for i in range(600)])
    assert times[-1] > 59.9 - MOST_DELAY - 0.2


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=50))
def test_a_files_time_never_goes_far_back(media):
    clock = FileClock(10.0)
    times = [clock.stamp(m) for m in media]
    assert times[0] == 0
    assert all(t >= newest - 1 for t, newest in zip(times, accumulate(times, max), strict=True))


def test_pictures_that_are_shown_out_of_order_keep_their_times():
    clock = FileClock(25.0)
    assert [round(clock.stamp(m), 2) for m in (0.0, 0.16, 0.08, 0.04, 0.12)] == [
        0.0,
        0.16,
        0.08,
        0.04,
        0.12,
    ]
