"""Facts about what is decoded: as little as gives the wanted frames, chosen from what the camera sends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sttm.sources.decoding.gop import Grid, Mode, Policy


class Run:
    """A stream of packets (time, is keyframe) put through a policy, as the decoder would do it."""

    def __init__(self, packets, fps, asked="auto"):
        self.policy, self.grid = Policy(asked, fps), Grid(fps)
        self.taken, self.decoded, self.modes, chain = [], 0, [], []
        for t, is_key in packets:
            self.policy.add(t, is_key=is_key)
            if is_key:
                chain = []
                if self.policy.mode is Mode.KEYFRAMES and not self.grid.wants(t):
                    chain = [t]
                else:
                    self.decode([t])
            else:
                chain.append(t)
                if not self.policy.waits(t, self.grid.due):
                    self.decode(chain)
                    chain = []
            self.modes.append(self.policy.mode.value)

    def decode(self, times):
        self.decoded += len(times)
        self.taken += [t for t in times if self.grid.take(t)]


def packets(gop, seconds, rate=15, start=0.0):
    """A camera that sends a keyframe every `gop` seconds."""
    every = round(gop * rate)
    return [(start + i / rate, i % every == 0) for i in range(round(seconds * rate))]


def test_keyframes_alone_are_decoded_where_they_come_as_often_as_frames_are_wanted():
    run = Run(packets(1.0, 60), fps=1)
    assert run.modes[-1] == "keyframes"
    assert [round(t, 2) for t in run.taken[2:]] == [float(i) for i in range(2, 60)]
    assert run.decoded < 60 + 16  # all of the first GOP, before its length was known


@pytest.mark.parametrize(
    ("gop", "fps", "mode"),
    [
        (1, 1, "keyframes"),
        (0.5, 1, "keyframes"),
        (2, 0.5, "keyframes"),
        (2, 1, "references"),
        (1, 2, "references"),
        (4, 10, "full"),
    ],
)
def test_the_mode_follows_from_keyframes_and_wanted_rate(gop, fps, mode):
    run = Run(packets(gop, 20), fps)
    assert run.modes[-1] == mode


@given(st.floats(0.2, 5), st.floats(0.1, 10), st.integers(4, 60))
def test_at_any_rate_no_wanted_frame_is_later_than_half_a_period_beyond_its_due(gop, fps, rate):
    run = Run(packets(max(gop, 2 / rate), 30, rate), fps)
    longest = max(b - a for a, b in pairwise([*run.taken, 30.0]))
    assert longest <= max(1 / fps, 1 / rate) * 1.7 + 2 / rate + 1 / fps * 0.5


def test_the_end_of_a_gop_in_which_nothing_is_due_is_not_decoded():
    run = Run(packets(1.0, 60), fps=2)
    assert len(run.taken) in (119, 120)
    assert run.decoded < 0.65 * 900


def test_a_camera_that_sends_keyframes_more_rarely_all_at_once_loses_no_frame():
    run = Run(packets(1.0, 20) + packets(10.0, 40, start=20.0), fps=1)
    assert max(b - a for a, b in pairwise(run.taken)) < 1.8
    assert run.modes[-1] == "references"


def test_a_camera_that_sends_keyframes_often_again_is_decoded_cheaply_again():
    run = Run(packets(10.0, 20) + packets(1.0, 20, start=20.0), fps=1)
    assert run.modes[-1] == "keyframes"


@pytest.mark.parametrize("asked", ["keyframes", "references", "full"])
def test_what_is_asked_for_by_name_is_done(asked):
    run = Run(packets(4.0, 20), 2, asked)
    assert set(run.modes) == {asked}
    assert run.decoded == (5 if asked == "keyframes" else 300)


def test_a_decoder_that_is_too_slow_takes_keyframes_alone_for_a_while():
    policy = Policy("full", 5)
    policy.add(0.0, is_key=True)
    policy.relieve(0.1)
    assert policy.waits(0.2, 0.2)
    policy.add(20.0, is_key=True)
    assert policy.mode is Mode.KEYFRAMES
    policy.add(40.0, is_key=True)
    assert policy.mode is Mode.FULL
