"""Facts about the reconnect loop: it notices, tells, closes, reopens, for ever, and never takes others with it."""

import asyncio
import gc
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest

from stream_sttm.config.settings import StreamSettings
from stream_sttm.demo.camera import open_camera
from stream_sttm.errors import NotVideo, SourceDenied, SourceUnavailable
from stream_sttm.metrics import (
    FRAMES_DROPPED,
    QUEUE_DEPTH,
    STREAM_LAST_FRAME,
    STREAM_RECONNECTS,
    STREAM_UP,
)
from stream_sttm.sources import SOURCES, open_source
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Frame
from tests.support.resources import open_files, threads, until
from tests.support.rtsp_server import RtspCamera
from workers import ingest
from workers.ingest import Backoff, clip_channel

QUICK = Backoff(first=0.02, cap=0.1, settled=60.0)


class Watched:
    """A running ingest and everything it said."""

    def __init__(self, clips):
        self.clips, self.statuses, self.frames, self.taken = clips, [], [], []
        self.details, self.still = [], []
        self.task = None

    def report(self, status):
        """Keep a status that is news; another only for its details."""
        self.details.append(status.details)
        last = self.statuses[-1] if self.statuses else None
        if last is None or (last.state, last.reason) != (status.state, status.reason):
            self.statuses.append(status)

    @property
    def states(self):
        return [status.state.value for status in self.statuses]

    @property
    def reasons(self):
        return [status.reason for status in self.statuses]

    async def state(self, wanted, after=0):
        """Wait for a state beyond the first `after` reports; its status."""
        assert await until(lambda: wanted in self.states[after:], 25), self.statuses
        return self.statuses[after + self.states[after:].index(wanted)]


@asynccontextmanager
async def ingesting(
    url, name="cam", *, capacity=1000, backoff=QUICK, takes=False, opener=open_source, **settings
):
    watched = Watched(clip_channel(capacity))
    settings = {"fps": 10, "clip_frames": 2, "stall_after": 0.6} | settings

    async def take():
        while True:
            watched.taken.append(await watched.clips.receive())

    watched.task = asyncio.create_task(
        ingest.run(
            name,
            StreamSettings(source=url if isinstance(url, list) else str(url), **settings),
            clips=watched.clips,
            report=watched.report,
            on_frame=watched.frames.append,
            on_still=lambda _, since: watched.still.append(since),
            backoff=backoff,
            opener=opener,
        )
    )
    taking = asyncio.create_task(take()) if takes else None
    try:
        yield watched
    finally:
        for task in filter(None, (watched.task, taking)):
            task.cancel()
        await asyncio.wait([task for task in (watched.task, taking) if task is not None])


class Playing:
    """What the scripted source is to do at its next openings, and how often it was opened and closed."""

    script: ClassVar[list] = []
    urls: ClassVar[list] = []
    opened = closed = 0


@dataclass
class Scripted:
    """A source that follows a script: numbers are frames' times, errors are raised, "hang" waits for ever."""

    url: str
    stream: str
    fps: float
    max_side: int
    is_live: bool = field(default=True, init=False)

    def __post_init__(self):
        Playing.urls.append(self.url)
        self.acts = Playing.script.pop(0) if Playing.script else ["hang"]

    async def __aenter__(self):
        Playing.opened += 1
        return self

    async def __aexit__(self, *_):
        Playing.closed += 1

    async def frames(self):
        for act in self.acts:
            if isinstance(act, Exception):
                raise act
            if act == "hang":
                await asyncio.Event().wait()
            yield Frame(self.stream, np.zeros((2, 2, 3), np.uint8), act, 1000.0 + act)


@pytest.fixture
def play(monkeypatch):
    """Make script:// a source for this test; returns what sets the acts of each opening."""
    monkeypatch.setitem(SOURCES, "script", f"{__name__}:Scripted")
    Playing.opened = Playing.closed = 0
    Playing.urls = []

    def set_script(*openings):
        Playing.script = [list(acts) for acts in openings]
        return "script://me:sesame@x/"

    return set_script


def counter(metric, *labels):
    return metric.labels(*labels)._value.get()


async def test_a_file_goes_through_whole_and_is_offline_at_its_end(scene_video):
    async with asyncio.timeout(30), ingesting(f"file://{scene_video}", fps=2, takes=True) as cam:
        await cam.task
        assert await until(lambda: len(cam.taken) == 4)
    assert cam.states == ["connecting", "online", "offline"]
    assert cam.statuses[-1].reason == "end of file"
    pts = [frame.pts for clip in cam.taken for frame in clip.frames]
    assert [round(t, 3) for t in pts] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    assert [clip.index for clip in cam.taken] == [0, 1, 2, 3]
    assert counter(STREAM_UP, "cam") == 0


async def test_a_file_waits_for_room_and_loses_nothing(scene_video):
    async with asyncio.timeout(30), ingesting(f"file://{scene_video}", capacity=1) as cam:
        assert await until(lambda: len(cam.clips) == 1)
        clips = [await cam.clips.receive() for _ in range(20)]
        await cam.task
    assert [clip.index for clip in clips] == list(range(20))


async def test_a_live_stream_drops_its_oldest_clip_and_counts_its_frames():
    before = counter(FRAMES_DROPPED, "busy", "queue_full")
    url = "scene://x?fps=60&size=32"
    async with asyncio.timeout(30), ingesting(url, "busy", capacity=2, fps=30) as cam:
        assert await until(lambda: counter(FRAMES_DROPPED, "busy", "queue_full") >= before + 6)
        assert len(cam.clips) == 2
        assert counter(QUEUE_DEPTH, "clips[busy]") == 2
        first, second = await cam.clips.receive(), await cam.clips.receive()
    assert first.index >= 3
    assert second.index == first.index + 1
    assert {len(first.frames), len(second.frames)} == {2}


async def test_online_is_said_at_the_first_frame_and_metrics_follow():
    async with asyncio.timeout(30), ingesting("scene://x?fps=30&size=32", "seen") as cam:
        status = await cam.state("online")
        assert cam.states == ["connecting", "online"]
        assert counter(STREAM_UP, "seen") == 1
        assert counter(STREAM_LAST_FRAME, "seen") >= status.last_frame_at
        assert cam.frames
    assert counter(STREAM_UP, "seen") == 0


async def test_a_break_is_told_and_the_stream_opened_again_with_time_going_on(play):
    url = play([0.0, 0.1, 0.2, SourceUnavailable("cut off")], [5.0, 5.1, 5.2, "hang"])
    before = counter(STREAM_RECONNECTS, "cut", "unavailable")
    async with asyncio.timeout(30), ingesting(url, "cut", stall_after=20) as cam:
        assert await until(lambda: len(cam.frames) == 6)
        assert cam.states == ["connecting", "online", "offline", "online"]
        assert cam.reasons[2] == "cut off"
        assert cam.statuses[-1].reconnects == 1
        assert counter(STREAM_RECONNECTS, "cut", "unavailable") == before + 1
        times = [frame.pts for frame in cam.frames]
        assert all(b > a for a, b in pairwise(times))
        assert times[-1] < 5  # the gap is as long as it was, not what the camera's clock says
        clips = [await cam.clips.receive() for _ in range(3)]
        assert [len(clip.frames) for clip in clips] == [2, 1, 2]  # no clip spans the break


async def test_clips_that_show_nothing_new_say_so_and_after_a_break_nothing_is_known(play):
    times = [n / 10 for n in range(8)]
    url = play([*times, SourceUnavailable("cut off")], [*times, "hang"])
    async with asyncio.timeout(30), ingesting(url, stall_after=20, takes=True) as cam:
        assert await until(lambda: len(cam.taken) == 8)
    assert [clip.index for clip in cam.taken] == list(range(8))
    assert [clip.same_as for clip in cam.taken] == [None, 0, 0, 0, None, 4, 4, 4]
    assert cam.still == [None, 1000.2, 1000.2, 1000.2, None, None, *[1000.2] * 3]


async def test_with_max_still_of_zero_every_clip_is_new(play):
    url = play([*(n / 10 for n in range(8)), "hang"])
    async with ingesting(url, stall_after=20, takes=True, max_still=0) as cam:
        assert await until(lambda: len(cam.taken) == 4)
    assert {clip.same_as for clip in cam.taken} == {None}
    assert cam.still == []


async def test_a_clock_that_goes_back_does_not_take_the_streams_time_back(play):
    url = play([0.0, 9.0, 1.0, 1.1, "hang"])
    async with asyncio.timeout(30), ingesting(url, stall_after=20) as cam:
        assert await until(lambda: len(cam.frames) == 4)
        assert all(b.pts > a.pts for a, b in pairwise(cam.frames))


async def test_no_frame_in_time_is_a_stall_and_the_source_is_closed_and_reopened(play):
    url = play([0.0, "hang"], [0.0, "hang"])
    async with asyncio.timeout(30), ingesting(url, "stuck", stall_after=0.1) as cam:
        stalled = await cam.state("stalled")
        await cam.state("online", after=cam.statuses.index(stalled))
        assert "no frame for 0.1 s" in stalled.reason
        assert "sesame" not in stalled.reason
        assert Playing.closed >= 1
        assert counter(STREAM_RECONNECTS, "stuck", "stalled") >= 1


async def test_a_camera_that_is_looked_at_rarely_does_not_count_as_stalled(rtsp_camera):
    source = f"rtsp://{rtsp_camera.address}"
    async with ingesting(source, fps=0.25, clip_frames=1, stall_after=2.0) as cam:
        await cam.state("online")
        seen = cam.frames[-1].captured_at
        assert await until(lambda: cam.frames[-1].captured_at - seen > 3, 25)
        assert cam.states == ["connecting", "online"]


async def test_it_never_gives_up(play):
    url = play(*[[SourceUnavailable("off")]] * 40, [0.0, "hang"])
    backoff = Backoff(first=0.001, cap=0.002)
    async with asyncio.timeout(30), ingesting(url, stall_after=20, backoff=backoff) as cam:
        await cam.state("online")
        assert cam.states == ["connecting", "offline", "online"]
        assert cam.statuses[-1].reconnects == 40


def test_pauses_grow_to_a_cap_with_chance_and_are_longer_where_access_is_denied():
    backoff, broken = Backoff(), SourceUnavailable("x")
    for failures, longest in ((1, 0.5), (2, 1), (3, 2), (6, 5), (5000, 5)):
        pauses = [backoff.pause(failures, broken) for _ in range(200)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert 10 <= backoff.pause(99, SourceDenied("x")) <= 20
    assert backoff.pause(1, SourceDenied("x")) >= 1


async def test_a_stream_that_has_run_well_is_reopened_quickly_again(play, monkeypatch):
    asked = []

    class Noted(Backoff):
        def pause(self, failures, error):
            asked.append(failures)
            return 0.001

    off = [SourceUnavailable("off")]
    url = play(off, off, [0.0, *off], off, [0.0, "hang"])
    async with asyncio.timeout(30), ingesting(url, backoff=Noted(settled=0.0)) as cam:
        await cam.state("online", after=3)
    assert asked[0] == 1
    assert asked[2] == 1


@pytest.mark.parametrize(
    ("error", "label"),
    [(SourceDenied("no"), "denied"), (NotVideo("no"), "not_video"), (OSError("sesame"), "error")],
)
async def test_every_kind_of_trouble_is_named_in_the_metric_and_survived(
    play, error, label, caplog
):
    url = play([error], [0.0, "hang"])
    before = counter(STREAM_RECONNECTS, "trouble", label)
    async with asyncio.timeout(30), ingesting(url, "trouble", stall_after=20) as cam:
        await cam.state("online")
    assert counter(STREAM_RECONNECTS, "trouble", label) == before + 1
    if label == "error":
        assert "unexpected OSError" in cam.reasons[1]
        assert "ingest[trouble]" in caplog.text
    assert "sesame" not in caplog.text + "".join(cam.reasons)


MAIN, SUB = "script://me:sesame@x/main", "script://me:sesame@x/sub"


async def test_where_the_first_url_fails_the_next_runs_and_is_told(play):
    play([SourceUnavailable("main is off")], [0.0, "hang"])
    async with asyncio.timeout(30), ingesting([MAIN, SUB], stall_after=20) as cam:
        status = await cam.state("online")
        assert cam.states == ["connecting", "online"]
        assert "main is off" in status.reason
        assert status.details == {"source": "script://***@x/sub"}
        assert status.as_dict()["source"] == "script://***@x/sub"
        assert Playing.urls == [MAIN, SUB]


async def test_a_fallback_that_breaks_makes_way_for_the_first_url_again(play):
    off = SourceUnavailable("main is off")
    play([off], [0.0, SourceUnavailable("sub broke")], [0.0, "hang"])
    async with asyncio.timeout(30), ingesting([MAIN, SUB], stall_after=20) as cam:
        assert await until(lambda: cam.states[-2:] == ["offline", "online"])
        assert cam.reasons[-2:] == ["sub broke", ""]
        assert cam.statuses[-2].details == {}
        assert cam.statuses[-1].details == {"source": "script://***@x/main"}
        assert Playing.urls == [MAIN, SUB, MAIN]


async def test_where_every_url_fails_all_that_is_wrong_is_told_once_and_it_is_tried_on(play):
    fails = [[SourceUnavailable("main is off")], [SourceDenied("sub is locked")]]
    play(*(fails * 3), [0.0, "hang"])
    before = counter(STREAM_RECONNECTS, "both", "denied")
    slow = Backoff(first=0.001, cap=0.002)
    async with asyncio.timeout(30), ingesting([MAIN, SUB], "both", backoff=slow) as cam:
        status = await cam.state("offline")
        await cam.state("online")
        assert status.reason == "main is off; sub is locked"
        assert cam.states[:3] == ["connecting", "offline", "online"]
        assert counter(STREAM_RECONNECTS, "both", "denied") == before + 3


async def test_a_silent_url_is_left_for_the_next(play):
    play(["hang"], [0.0, "hang"])
    async with asyncio.timeout(30), ingesting([MAIN, SUB], stall_after=0.3) as cam:
        status = await cam.state("online")
        assert "no frame for 0.3 s" in status.reason
        assert "sesame" not in status.reason


async def test_that_nobody_s_certificate_is_asked_for_is_told(monkeypatch):
    monkeypatch.setitem(SOURCES, "rtsps", f"{__name__}:Scripted")
    Playing.script = [[0.0, "hang"]]
    url = "rtsps://me:sesame@x/live#verify=false"
    async with asyncio.timeout(30), ingesting(url, stall_after=20) as cam:
        status = await cam.state("online")
        assert status.details == {"source": "rtsps://***@x/live", "tls": "not verified"}


@pytest.mark.server
async def test_the_second_of_two_cameras_takes_over_when_the_first_is_killed(
    scene_video, rtsp_camera
):
    with RtspCamera(scene_video) as sub:
        urls = [rtsp_camera.url, sub.url]
        async with asyncio.timeout(60), ingesting(urls, "pair", stall_after=5) as cam:
            first = await cam.state("online")
            assert first.details["source"] == rtsp_camera.url
            rtsp_camera.kill()
            second = await cam.state("online", after=cam.statuses.index(first) + 1)
            assert second.details["source"] == sub.url
            assert "refused" in second.reason


async def test_one_streams_trouble_does_not_touch_another(play):
    url = play(*[[0.0, ValueError("bug")]] * 30)
    async with (
        asyncio.timeout(30),
        ingesting(url, "sick") as sick,
        ingesting("scene://x?fps=30&size=32", "well") as well,
    ):
        assert await until(lambda: len(sick.statuses) > 10 and len(well.frames) > 20)
        assert well.states == ["connecting", "online"]


@pytest.mark.parametrize(
    ("acts", "is_there"),
    [
        (["hang"], lambda cam: Playing.opened == 1),
        ([SourceUnavailable("x")], lambda cam: "offline" in cam.states),
        ([0.0, "hang"], lambda cam: cam.frames),
    ],
)
async def test_it_can_be_cancelled_while_it_opens_runs_or_pauses(play, acts, is_there):
    url = play(acts)
    slow = Backoff(first=1000.0, cap=1000.0)
    async with asyncio.timeout(30), ingesting(url, stall_after=20, backoff=slow) as cam:
        assert await until(lambda: is_there(cam))
        cam.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cam.task
    assert Playing.opened == Playing.closed == 1


async def test_a_configuration_error_is_told_and_does_not_end_the_task():
    async with asyncio.timeout(30), ingesting("gopher://me:sesame@x/", "odd") as cam:
        status = await cam.state("offline")
        assert "gopher" in status.reason
        assert "sesame" not in status.reason
        assert not cam.task.done()


async def test_webrtc_is_picked_up_again_after_the_camera_restarts():
    async with asyncio.timeout(60):
        async with open_camera(Scene(1), size=96) as camera:
            port = int(camera.url.split(":")[2].split("/")[0])
            context = ingesting(camera.url, "rtc", stall_after=5)
            cam = await context.__aenter__()
            await cam.state("online")
        try:
            offline = await cam.state("offline")
            async with open_camera(Scene(1), size=96, port=port):
                await cam.state("online", after=cam.statuses.index(offline))
        finally:
            await context.__aexit__(None, None, None)


@pytest.mark.server
async def test_a_killed_camera_goes_offline_and_comes_back_online(rtsp_camera):
    async with asyncio.timeout(60), ingesting(rtsp_camera.url, "killed", stall_after=5) as cam:
        await cam.state("online")
        rtsp_camera.kill()
        offline = await cam.state("offline")
        assert await until(lambda: "refused" in cam.reasons[-1])
        rtsp_camera.start()
        await cam.state("online", after=cam.statuses.index(offline))
        seen = len(cam.frames)
        assert await until(lambda: len(cam.frames) > seen + 3)
        assert all(b.pts > a.pts for a, b in pairwise(cam.frames))


@pytest.mark.server
async def test_a_frozen_camera_is_stalled_and_comes_back_when_it_thaws(rtsp_camera):
    async with asyncio.timeout(60), ingesting(rtsp_camera.url, "frozen") as cam:
        await cam.state("online")
        rtsp_camera.freeze()
        stalled = await cam.state("stalled")
        rtsp_camera.thaw()
        await cam.state("online", after=cam.statuses.index(stalled))
        assert counter(STREAM_RECONNECTS, "frozen", "stalled") >= 1


@pytest.mark.server
async def test_a_wrong_password_is_offline_and_never_shown(scene_video, rtsp_camera, caplog):
    caplog.set_level(logging.DEBUG)
    with RtspCamera(scene_video, user="me", password="right") as locked:
        url = f"rtsp://me:sesame@{locked.address}"
        async with asyncio.timeout(30), ingesting(url, "locked") as cam:
            status = await cam.state("offline")
            assert "user and password" in status.reason
            assert await until(lambda: counter(STREAM_RECONNECTS, "locked", "denied") >= 2)
    assert "sesame" not in caplog.text + "".join(cam.reasons)


@pytest.mark.server
async def test_kill_and_revive_cycles_leave_no_thread_and_no_file(rtsp_camera):
    async def cycle():
        async with asyncio.timeout(30), ingesting(rtsp_camera.url, "cycle", stall_after=5) as cam:
            await cam.state("online")
            rtsp_camera.kill()
            await cam.state("offline")
            rtsp_camera.start()
            await cam.state("online", after=2)

    await cycle()
    gc.collect()
    files, running = open_files(), threads()
    for _ in range(3):
        await cycle()
    gc.collect()
    assert await until(lambda: threads() <= running)
    assert await until(lambda: open_files() <= files + 1)
