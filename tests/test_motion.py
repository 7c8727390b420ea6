"""What counts as nothing new, what never does, and for how long at most it is believed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_sttm.motion import BLOCK, MotionGate
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Clip, Frame

FPS, HEIGHT, WIDTH = 2.0, 180, 320
Picture = NDArray[np.uint8]
Show = Callable[[int], NDArray[np.float64]]


def wall() -> NDArray[np.float64]:
    """A room with edges, textures and dark and bright parts."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    texture = np.random.default_rng(3).uniform(-12, 12, (HEIGHT, WIDTH, 1))
    grey = 60 + 0.3 * x + 25 * ((x // 40 + y // 30) % 2)
    return np.asarray(np.stack([grey, grey * 0.9, grey * 0.8], -1) + texture, np.float64)


WALL = wall()
GRAIN = np.random.default_rng(1).normal(0, 1, (2 * HEIGHT, 2 * WIDTH, 3))


def seen(picture: NDArray[np.float64], number: int, noise: float = 2.0) -> Picture:
    """What a camera makes of it: noise, rounded, cut off."""
    drawn = np.random.default_rng((5, number)).integers(0, (HEIGHT, WIDTH))
    grain = GRAIN[drawn[0] :, drawn[1] :][:HEIGHT, :WIDTH]
    return np.clip(picture + noise * grain, 0, 255).astype(np.uint8)


def judged(
    pictures: Iterable[Picture], *, longest: float = 10.0, clip_frames: int = 2
) -> list[Clip]:
    """The gate's verdict on each clip of them."""
    gate, frames, found = MotionGate(longest), list[Frame](), list[Clip]()
    for number, picture in enumerate(pictures):
        frames.append(Frame("cam", picture, number / FPS, 1000 + number / FPS))
        if len(frames) == clip_frames:
            found.append(gate.judge(Clip("cam", len(found), tuple(frames))))
            frames = []
    return found


def encoded(clips: Iterable[Clip]) -> list[int]:
    """Which clips have anything that is to be encoded, by a model that is given parts."""
    return [clip.index for clip in clips if is_whole(clip) or clip.changed is not None]


def whole(clips: Iterable[Clip]) -> list[int]:
    """Which are to be encoded as a whole."""
    return [clip.index for clip in clips if is_whole(clip)]


def is_whole(clip: Clip) -> bool:
    return clip.same_as is None or clip.wants_whole


def with_box(place: tuple[int, int], size: tuple[int, int], levels: float) -> NDArray[np.float64]:
    """The wall with something in front of it."""
    y, x = place
    picture = WALL.copy()
    picture[y : y + size[0], x : x + size[1]] += levels
    return picture


def light(gain: Callable[[float], float]) -> Show:
    return lambda number: WALL * gain(number / FPS)


STILL: dict[str, tuple[Show, float]] = {
    "nothing": (lambda _: WALL, 0.0),
    "noise": (lambda _: WALL, 2.0),
    "much_noise": (lambda _: WALL, 8.0),
    "noise_at_night": (lambda _: WALL * 0.15, 8.0),
    "a_flickering_lamp": (light(lambda t: 1 + 0.04 * np.sin(37 * t)), 2.0),
    "a_cloud": (light(lambda t: 1 - 0.08 * np.sin(np.pi * t / 30) ** 2), 2.0),
    "dusk": (light(lambda t: 1 - 0.2 * t / 60), 2.0),
    "exposure_that_hunts": (lambda number: WALL * (1 + 0.02 * (number % 3)) + number % 2, 2.0),
}


@pytest.mark.parametrize("clip_frames", [1, 2, 5])
@pytest.mark.parametrize("kind", STILL)
def test_what_shows_nothing_new_is_encoded_once_and_then_only_every_max_still_seconds(
    kind: str, clip_frames: int
) -> None:
    show, noise = STILL[kind]
    clips = judged((seen(show(n), n, noise) for n in range(120)), clip_frames=clip_frames)
    assert encoded(clips) == whole(clips)
    newest = [clip.frames[-1].pts for clip in clips if clip.same_as is None]
    assert len(newest) <= 1 + 60 / 10
    gaps = np.diff([*newest, clips[-1].frames[-1].pts])
    assert gaps.max() <= 10 + clip_frames / FPS


def test_a_scene_drawn_with_grain_and_changing_light_is_still() -> None:
    empty = Scene(4, script=())
    clips = judged(empty.render(n / FPS, 192) for n in range(80))
    assert encoded(clips) == [0, 10, 20, 30]


def filmed(pictures: Iterable[Picture]) -> list[Picture]:
    """The pictures after a camera's H.264 encoder, a keyframe a second, at few bits."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=int(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = int(FPS)
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "28"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_what_a_cameras_encoder_does_to_a_still_scene_is_no_change() -> None:
    clips = judged(filmed(seen(WALL, n, 4.0) for n in range(80)))
    assert encoded(clips) == [0, 10, 20, 30]


def test_in_what_a_cameras_encoder_leaves_of_it_a_small_thing_still_shows() -> None:
    shown = [WALL] * 20 + [with_box((90, 200), (16, 8), 40)] * 20
    clips = judged(filmed(seen(picture, n, 4.0) for n, picture in enumerate(shown)))
    assert encoded(clips) == [0, 10]


SEEN: dict[str, tuple[NDArray[np.float64], float]] = {
    "a_small_thing": (with_box((61, 203), (6, 6), 60), 2.0),
    "a_thing_no_brighter_than_the_wall": (
        with_box((60, 200), (20, 20), 0) + np.array([14, 0, -14]) * (with_box((60, 200), (20, 20), 1) - WALL),
        2.0,
    ),
    "a_faint_thing": (with_box((40, 100), (60, 40), 6), 2.0),
    "a_faint_thing_in_much_noise": (with_box((40, 100), (64, 64), 7), 10.0),
    "a_thing_at_the_edge": (with_box((174, 312), (6, 8), 50), 2.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEEN)
def test_what_appears_is_encoded_at_once_and_once_it_stays_it_is_spared(kind: str) -> None:
    picture, noise = SEEN[kind]
    shown = [WALL] * 12 + [picture] * 8
    clips = judged((seen(p, n, noise) for n, p in enumerate(shown)), longest=60)
    assert encoded(clips) == [0, 6, 7]
    assert whole(clips) == [0, 7]  # as one, once nothing changes any more
    assert [clip.same_as for clip in clips[6:]] == [0, 6, 7, 7]
    assert [clip.wants_whole for clip in clips[6:]] == [False, True, False, False]
    assert [clip.is_still for clip in clips[5:]] == [True, False, True, True, True]
    changed = clips[6].changed
    assert changed is not None
    there = np.abs(picture - WALL).max(axis=2) > 0
    for y, x in zip(*np.nonzero(there), strict=True):
        assert changed[y // BLOCK, x // BLOCK]
    assert changed.mean() < (0.5 if "faint" in kind else 3 * there.mean() + 0.05)


@pytest.mark.parametrize("picture", [with_box((0, 0), (180, 190), 40), WALL * 1.4])
def test_where_much_has_changed_all_is_encoded(picture: NDArray[np.float64]) -> None:
    shown = [WALL] * 12 + [picture] * 8
    clips = judged((seen(p, n) for n, p in enumerate(shown)), longest=60)
    assert encoded(clips) == whole(clips) == [0, 6]


def test_a_small_thing_is_seen_while_the_light_flickers() -> None:
    shown = [WALL] * 12 + [with_box((61, 203), (8, 8), 50)] * 8
    lit = [p * (1 + 0.04 * np.sin(9 * n)) for n, p in enumerate(shown)]
    assert encoded(judged((seen(p, n) for n, p in enumerate(lit)), longest=60)) == [0, 6, 7]


def test_what_moves_is_encoded_whenever_it_has_moved() -> None:
    clips = judged(seen(with_box((80, 5 * n), (24, 12), 50), n) for n in range(60))
    assert encoded(clips) == list(range(30))
    assert whole(clips) == [0, 10, 20]  # all of it as often as if nothing had moved


def test_what_is_encoded_in_part_shows_the_world_as_it_is() -> None:
    """Putting what is encoded onto what was encoded before gives each picture again, within what noise explains."""
    shown = [with_box((80, 5 * n), (24, 12), 50) for n in range(20)]
    mosaic = np.zeros_like(WALL)
    for clip in judged((seen(p, n) for n, p in enumerate(shown)), longest=60):
        where = np.ones((HEIGHT // BLOCK + 1, WIDTH // BLOCK), bool)
        if clip.same_as is not None:
            where = clip.changed if clip.changed is not None else ~where
        pixels = where.repeat(BLOCK, 0).repeat(BLOCK, 1)[:HEIGHT, :WIDTH]
        newest = clip.frames[-1].image
        mosaic[pixels] = newest[pixels]
        assert np.abs(mosaic - newest).max() < 25


def test_what_creeps_is_noticed_for_clips_are_held_against_what_was_encoded() -> None:
    creeping = (seen(with_box((80, 40 + n // 4), (40, 24), 50), n, 1.0) for n in range(160))
    found = encoded(judged(creeping, longest=1000))
    assert 160 / 4 / 8 < len(found) < 80  # by far less than a block a time


@pytest.mark.parametrize("period", [2, 3, 7])
def test_a_lamp_that_blinks_is_encoded_whenever_it_has_changed(period: int) -> None:
    lamp = with_box((20, 30), (5, 5), 90)
    shown = [lamp if n // period % 2 else WALL for n in range(84)]
    clips = judged((seen(p, n) for n, p in enumerate(shown)), longest=1000)
    lit = [[n // period % 2 for n in (2 * clip.index, 2 * clip.index + 1)] for clip in clips]
    for clip in clips:
        if not is_whole(clip) and clip.changed is None:  # it shows what that one's last did
            assert set(lit[clip.index]) == {lit[clip.same_as][-1]}
        elif clip.index and not clip.is_still:
            assert len({*lit[clip.index], *lit[clip.index - 1]}) == 2


def test_a_clip_within_which_something_moved_is_not_reused_though_all_stands_after_it() -> None:
    moved = with_box((80, 100), (24, 12), 50)
    clips = judged(seen(p, n) for n, p in enumerate([WALL] * 5 + [moved] * 7))
    assert encoded(clips) == [0, 2, 3, 4]
    assert whole(clips) == [0, 4]
    assert [clip.same_as for clip in clips[4:]] == [3, 4]
    first, second = clips[2].changed, clips[3].changed
    assert first is not None
    assert second is not None
    assert first[10, 13]  # it is where the thing is that the same is to be seen for once
    assert second[10, 13]


def test_max_still_of_zero_spares_nothing() -> None:
    clips = judged((seen(WALL, n) for n in range(10)), longest=0)
    assert encoded(clips) == [0, 1, 2, 3, 4]


def test_after_a_restart_nothing_is_taken_for_known() -> None:
    gate = MotionGate(10)
    clips = [Clip("cam", n, (Frame("cam", seen(WALL, n), n, n),)) for n in range(4)]
    assert [gate.judge(clip).same_as for clip in clips[:3]] == [None, 0, 0]
    gate.restart()
    assert gate.still_since is None
    assert gate.judge(clips[3]).same_as is None


def test_a_picture_of_another_size_is_new() -> None:
    small = seen(WALL, 0)[:90]
    pictures = [seen(WALL, 0), seen(WALL, 1), small, small, seen(WALL, 2)]
    assert encoded(judged(pictures, clip_frames=1)) == [0, 2, 4]


def test_since_when_all_is_still_outlasts_the_clips_that_are_encoded_all_the_same() -> None:
    gate, told = MotionGate(2.0), []
    for n in range(12):
        shown = with_box((61, 203), (8, 8), 60) if n >= 9 else WALL
        gate.judge(Clip("cam", n, (Frame("cam", seen(shown, n), float(n), 1000.0 + n),)))
        told.append(gate.still_since)
    assert told == [None, *[1001.0] * 8, None, 1010.0, 1010.0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=12),
    st.floats(0.0, 8.0),
    st.integers(1, 3),
)
def test_a_clip_is_spared_only_if_it_shows_what_the_newest_encoded_one_did_not_too_long_ago(
    spans: list[tuple[int, int]], longest: float, clip_frames: int
) -> None:
    shown = [kind for kind, count in spans for _ in range(count)]
    tiny = [np.full((32, 32, 3), 90, np.uint8) for _ in range(3)]
    tiny[1][8:14, 8:14] += 60
    tiny[2][20:28, 4:9] -= 50
    clips = judged((tiny[kind] for kind in shown), longest=longest, clip_frames=clip_frames)
    newest: Clip | None = None
    since = 0.0
    for clip in clips:
        if clip.same_as is None:
            newest, since = clip, clip.frames[-1].pts
            continue
        assert newest is not None
        assert clip.same_as == newest.index
        assert clip.frames[-1].pts - since < longest
        if clip.changed is not None:
            newest = clip
            continue
        # also where it is encoded all the same, for a model that was given no parts has no need to
        assert all(np.array_equal(f.image, newest.frames[-1].image) for f in clip.frames)
        if clip.wants_whole:
            newest, since = clip, newest.frames[-1].pts
