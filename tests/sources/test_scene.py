"""Facts about the drawn scene: pure, endless, never crowded, and its truth is what the picture shows."""

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise

import numpy as np
import pytest

from stream_sttm.errors import ConfigError
from stream_sttm.metrics import FRAMES_DROPPED
from stream_sttm.scene import world
from stream_sttm.scene.timeline import (
    APART,
    CHAPTER,
    CROWD,
    CROWD_SPAN,
    DIRECTIONS,
    REACH,
    region_of,
    things_between,
)
from stream_sttm.sources import open_source
from stream_sttm.sources.scene import Scene
from tests.support.resources import decoders, until

SEEDS = range(4)
HOUR = 3600.0


@pytest.fixture(params=SEEDS)
def scene(request):
    return Scene(request.param)


def test_any_moment_looks_the_same_however_it_is_reached():
    forwards = [Scene(3).render(t, 96) for t in (0.0, 4.5, 9 * CHAPTER + 0.5)]
    backwards = [Scene(3).render(t, 96) for t in (9 * CHAPTER + 0.5, 4.5, 0.0)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_picture_is_rgb_of_the_size_asked_for_and_seeds_differ():
    pictures = [Scene(seed).render(5.0, size) for seed in (1, 2) for size in (96, 100, 480)]
    for picture, size in zip(pictures, (96, 100, 480) * 2, strict=True):
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
    assert np.abs(pictures[0].astype(int) - pictures[3]).mean() > 5


def test_every_thing_has_its_colour_where_the_truth_says_it_is(scene):
    checked = set()
    for t in np.arange(0.0, 1200.0, 7.3):
        picture = scene.render(float(t), 480)
        for thing in scene.objects_at(t):
            x, y = (round(5 * c) for c in thing.centre(t))
            if 5 <= x < 475 and 5 <= y < 475:
                seen = picture[y - 4 : y + 4, x - 4 : x + 4].mean((0, 1)) / 255
                light = seen.sum() / sum(thing.paint)
                assert np.abs(seen / light - thing.paint).max() < 0.2
                checked.add(thing.name)
    assert len(checked) > 10


def test_things_never_touch_and_never_crowd(scene):
    for t in np.arange(0.0, HOUR, 1.7):
        things = scene.objects_at(t)
        for i, one in enumerate(things):
            for other in things[i + 1 :]:
                gap = np.subtract(one.centre(t), other.centre(t))
                assert np.hypot(*gap) > REACH * (one.radius + other.radius)
        recent = things_between(scene.seed, t, t + CROWD_SPAN)
        assert len(recent) <= CROWD
        assert len({thing.name for thing in recent}) == len(recent)


def test_the_scene_keeps_changing_but_one_thing_at_a_time(scene):
    things = things_between(scene.seed, 0.0, HOUR)
    for moments in (sorted(o.arrives for o in things), sorted(o.leaves for o in things)):
        gaps = np.diff(moments)
        assert gaps.min() >= APART - 1e-6
        assert gaps.max() < 120
        assert np.median(gaps) < 25


def test_nothing_to_four_things_are_in_view_and_seldom_nothing():
    counts = [
        len(Scene(seed).objects_at(t)) for seed in range(12) for t in np.arange(0.0, HOUR, 11)
    ]
    shares = [np.mean(np.equal(counts, n)) for n in range(5)]
    assert sum(shares) == 1
    assert 0 < shares[0] < 0.15
    assert max(shares) < 0.45
    assert min(shares) > 0.01


def test_moving_things_cover_the_distance_the_model_knows_and_still_ones_have_a_clear_place(scene):
    things = things_between(scene.seed, 0.0, HOUR)
    assert {thing.direction for thing in things} == {*DIRECTIONS, None}
    for thing in things:
        if thing.direction is None:
            assert region_of(*thing.origin) is not None
        else:
            assert 25 < 8 * thing.speed < 70


def test_a_scripted_scene_shows_its_script_and_nothing_else():
    thing = things_between(1, 0.0, HOUR)[0]
    scene = Scene(1, script=[thing])
    assert scene.things(0.0, HOUR) == [thing]
    assert scene.objects_at(thing.arrives - 1) == scene.objects_at(thing.leaves + 1) == []
    empty, shown = Scene(1, script=[]), 0.5 * (thing.clearly[0] + thing.clearly[1])
    assert (empty.render(shown, 96) != scene.render(shown, 96)).any()
    np.testing.assert_array_equal(
        empty.render(thing.arrives - 1, 96), scene.render(thing.arrives - 1, 96)
    )


async def test_a_scene_url_gives_frames_of_that_scene_in_real_time():
    source = open_source("scene://hall?seed=5&fps=50&size=120", stream="hall", fps=2, max_side=96)
    assert source.is_live
    frames = []
    async with source, asyncio.timeout(10):
        async for frame in source.frames():
            frames.append(frame)
            if len(frames) == 5:
                break
    assert [frame.stream for frame in frames] == ["hall"] * 5
    assert all(b.pts > a.pts for a, b in pairwise(frames))
    assert all(b.captured_at >= a.captured_at for a, b in pairwise(frames))
    for frame in frames:
        np.testing.assert_array_equal(frame.image, Scene(5).render(frame.pts, 96))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("scene://x?sed=1", "no option 'sed'; did you mean 'seed'"),
        ("scene://x?fps=fast", "fps must be a number"),
        ("scene://x?fps=0", "0 < fps"),
        ("scene://x?size=7", "32 <= size"),
        ("scene://x?seed=nan", "0 <= seed"),
        ("scene://x?seed=inf", "0 <= seed"),
    ],
)
def test_a_wrong_scene_option_is_one_clear_line(url, message):
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        open_source(url, stream="x", fps=2, max_side=640)
    assert message in str(caught.value)


async def test_sixteen_drawn_cameras_draw_nothing_in_the_service_s_own_process(monkeypatch):
    drawn = []
    monkeypatch.setattr(Scene, "render", lambda *_: drawn.append(1))
    urls = [f"scene://hall?seed={seed}&size=64" for seed in range(16)]
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        for url in urls:
            source = open_source(url, stream="hall", fps=2, max_side=64)
            await stack.enter_async_context(source)
            assert (await anext(source.frames())).image.shape == (64, 64, 3)
        assert len(decoders()) == 16
    assert drawn == []
    assert await until(lambda: not decoders())


async def test_a_drawn_camera_draws_only_what_is_due():
    stream = "due"
    source = open_source("scene://x?seed=1&fps=50&size=64", stream=stream, fps=2, max_side=64)
    async with source, asyncio.timeout(20):
        frames = source.frames()
        times = [(await anext(frames)).pts for _ in range(3)]
        left = FRAMES_DROPPED.labels(stream, "sampled_out")._value.get()
    assert [b - a >= 0.4 for a, b in pairwise(times)] == [True, True]
    assert left >= 20


def test_the_wall_is_drawn_once_for_a_scene_however_many_there_are(monkeypatch):
    painted = []
    paint = world.background
    monkeypatch.setattr(world, "background", lambda *args: painted.append(1) or paint(*args))
    scenes = [Scene(seed) for seed in range(20)]
    for t in range(3):
        for scene in scenes:
            scene.render(float(t), 32)
    assert len(painted) == 20
