"""Facts about sampling: the wanted rate, no drift, no burst, nothing uncounted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sttm.metrics import FRAMES_DROPPED
from stream_sttm.sampling import Sampler
from stream_sttm.sources.images import Pace
from stream_sttm.types import Frame

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(pts, stream="cam"):
    return Frame(stream, IMAGE, pts, 1000.0 + pts)


def taken(times, fps, clip_frames=1):
    sampler = Sampler(fps, clip_frames)
    clips = [clip for t in times if (clip := sampler.add(frame(t))) is not None]
    clips += [clip] if (clip := sampler.flush()) is not None else []
    return clips


def pts_of(clips):
    return [f.pts for clip in clips for f in clip.frames]


def test_ten_frames_a_second_sampled_at_two_give_every_fifth():
    times = [i / 10 for i in range(1000)]
    assert pts_of(taken(times, 2)) == times[::5]


@pytest.mark.parametrize(("source", "wanted"), [(25, 2), (29.97, 2), (15, 4), (12.5, 1), (30, 7)])
def test_an_hour_at_any_rate_does_not_drift(source, wanted):
    times = np.arange(0, 3600, 1 / source)
    sampled = pts_of(taken(times, wanted))
    assert len(sampled) - 3600 * wanted in (0, 1)  # the last may come early
    late = np.array(sampled) - np.arange(len(sampled)) / wanted
    assert -0.1 / wanted - 1e-6 <= late.min()
    assert late.max() < 1 / source


def test_a_source_slower_than_wanted_gives_all_its_frames():
    times = [i * 0.7 for i in range(200)]
    assert pts_of(taken(times, 2)) == times


def test_frames_that_arrive_unevenly_still_give_the_rate():
    rng = np.random.default_rng(0)
    times = np.sort(np.arange(0, 600, 0.1) + rng.uniform(-0.04, 0.04, 6000))
    assert abs(len(pts_of(taken(times, 2))) - 1200) <= 1


def test_a_gap_is_not_made_up_for():
    times = [i / 10 for i in range(20)] + [60 + i / 10 for i in range(20)]
    assert len(pts_of(taken(times, 2))) == 8


def test_clips_are_numbered_and_the_last_may_be_shorter():
    clips = taken([i / 10 for i in range(45)], 2, clip_frames=4)
    assert [clip.index for clip in clips] == [0, 1, 2]
    assert [len(clip.frames) for clip in clips] == [4, 4, 1]
    assert clips[0].stream == "cam"
    assert clips[0].captured_at == 1001.5


def test_nothing_left_flushes_to_nothing():
    assert Sampler(2, 2).flush() is None


def test_every_frame_left_out_is_counted():
    counter = FRAMES_DROPPED.labels("counted", "sampled_out")
    before = counter._value.get()
    sampler = Sampler(2, 2)
    for i in range(50):
        sampler.add(frame(i / 10, "counted"))
    assert counter._value.get() - before == 40


@given(
    st.lists(st.floats(0.001, 3.0), min_size=1, max_size=200),
    st.floats(0.2, 30.0),
)
def test_a_source_that_keeps_pace_changes_nothing_for_the_sampler(gaps, fps):
    times = [float(t) for t in np.cumsum(gaps)]
    pace = Pace(fps)
    assert pts_of(taken([t for t in times if pace.wants(t)], fps)) == pts_of(taken(times, fps))


def test_a_camera_that_changes_its_size_begins_a_new_clip():
    sampler = Sampler(2, 3)
    large = np.zeros((4, 4, 3), np.uint8)
    frames = [frame(t) for t in (0.0, 0.5)]
    frames += [Frame("cam", large, t, 1000.0 + t) for t in (1.0, 1.5, 2.0)]
    clips = [clip for f in frames if (clip := sampler.add(f)) is not None]
    assert pts_of(clips) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [len({f.image.shape for f in clip.frames}) for clip in clips] == [1, 1]
