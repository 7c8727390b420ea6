"""Facts about files that several processes decode: nothing differs from one, nobody runs ahead or stays behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest

from stream_sttm.errors import SourceError, SourceUnavailable
from stream_sttm.metrics import FRAMES_DROPPED, FRAMES_RECEIVED
from stream_sttm.sources import open_source
from stream_sttm.sources.decoding.mailbox import Mailbox, Picture
from stream_sttm.sources.decoding.parallel import SMALL, ParallelDecoder, processes
from stream_sttm.sources.decoding.segments import ROOM
from stream_sttm.sources.network.access import Access
from stream_sttm.sources.scene import Scene
from tests.support.resources import decoders, open_files, threads, until
from tests.support.rtsp_server import write_video

SCENE = Scene(7)
SLOWER = {"tune": "film", "preset": "veryfast"}  # settings with which x264 reorders pictures
OPEN_264 = SLOWER | {"bf": "3", "x264-params": "open-gop=1:b-pyramid=normal:scenecut=0"}
OPEN_265 = {"tune": "psnr", "x265-params": "open-gop=1:bframes=3:keyint=10:log-level=0"}
KINDS = {
    "closed.mp4": SLOWER | {"bf": "2"},
    "open.mp4": OPEN_264,
    "open.ts": OPEN_264,
    "open.mkv": {"codec": "libx265"} | OPEN_265,
    "open.mpg": {"codec": "mpeg2video", "fps": 25, "seconds": 6.0},
    "pictures.avi": {"codec": "mjpeg"},
    "untimed.h264": SLOWER | {"bf": "2"},
    "one-keyframe.mp4": {"keyframe_every": 1000, "sc_threshold": "0"},
    # its keyframes are none: the picture is renewed in stripes
    "stripes.mp4": {"preset": "veryfast", "intra-refresh": "1"},
}
WHOLE = ("untimed.h264", "one-keyframe.mp4", "stripes.mp4")  # can't be cut


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Writes a kind of video once, twelve seconds of Scene(7) where it says nothing else."""
    folder = tmp_path_factory.mktemp("kinds")

    def written(kind):
        path = folder / kind
        if not path.exists():
            write_video(path, SCENE.render, **{"seconds": 12.0, "size": 96} | KINDS[kind])
        return path

    return written


def several(path, count, fps=10.0, stream="cam", **further):
    return open_source(
        f"file://{path}", stream=stream, fps=fps, max_side=640, processes=count, **further
    )


async def seen(path, count, fps=10.0, **further):
    """Times and pixels of all frames, the error at the end, and how often another process was next."""
    frames, error = [], ""
    async with asyncio.timeout(60), several(path, count, fps, **further) as source:
        try:
            async for frame in source.frames():
                frames += [(frame.pts, frame.image.tobytes())]
        except SourceError as caught:
            error = str(caught)
        process = getattr(source, "_process", None)
        return frames, error, process._turn if isinstance(process, ParallelDecoder) else 0


def counted(stream):
    reasons = [FRAMES_DROPPED.labels(stream, word) for word in ("sampled_out", "not_decoded")]
    return [count._value.get() for count in (FRAMES_RECEIVED.labels(stream), *reasons)]


# what comes of them


@pytest.mark.parametrize("kind", KINDS)
async def test_several_processes_give_the_frames_and_times_of_one(video, kind):
    path = video(kind)
    for fps in (1.0, 2.0, 25.0):  # keyframes alone, without what no other refers to, everything
        alone, error, _ = await seen(path, 1, fps)
        together, same_error, turns = await seen(path, 3, fps)
        assert together == alone
        assert same_error == error == ""
        assert (turns > 0) == (kind not in WHOLE or (kind, fps) == ("stripes.mp4", 1.0))


async def test_every_packet_is_counted_once(video):
    before = counted("alone"), counted("together")
    await seen(video("open.mp4"), 1, 2.0, stream="alone")
    await seen(video("open.mp4"), 3, 2.0, stream="together")
    alone, together = (
        np.subtract(counted(stream), was)
        for stream, was in zip(("alone", "together"), before, strict=True)
    )
    assert list(alone) == list(together)
    assert alone[0] == 120


async def test_a_file_that_is_cut_off_gives_all_that_is_whole(video, tmp_path):
    path = tmp_path / "cut.mp4"
    options = {"movflags": "faststart"}  # else what is at its end were missing first
    with (
        av.open(str(video("closed.mp4"))) as whole,
        av.open(str(path), "w", options=options) as file,
    ):
        copy = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = copy
                file.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    alone, error, _ = await seen(path, 1)
    together, same_error, turns = await seen(path, 3)
    assert (together, same_error) == (alone, error)
    assert turns > 2
    assert 60 < len(alone) < 110
    # pictures before the last few follow without a gap; of these, some may be shown before others that are cut off
    assert [round(pts * 10) for pts, _ in alone[:-3]] == list(range(len(alone) - 3))


async def test_a_video_whose_size_changes_on_the_way_is_the_same_by_several(video, tmp_path):
    path = tmp_path / "two.ts"
    larger = write_video(tmp_path / "b.ts", SCENE.render, seconds=6.0, size=128, **OPEN_264)
    small = video("open.ts").read_bytes()
    path.write_bytes(small + larger.read_bytes() + small)
    alone, _, _ = await seen(path, 1)
    together, _, turns = await seen(path, 3)
    assert together == alone
    assert len({len(pixels) for _, pixels in alone}) == 2
    assert turns > 5


@pytest.mark.parametrize("is_limited", [False, True])
async def test_a_folder_of_files_is_the_same_by_several(video, tmp_path, is_limited):
    for name, kind in (("a.mp4", "open.mp4"), ("b.mkv", "open.mkv"), ("c.mp4", "stripes.mp4")):
        (tmp_path / name).write_bytes(video(kind).read_bytes())
    access = Access(folders=(str(tmp_path),)) if is_limited else Access()
    alone, _, _ = await seen(f"{tmp_path}/", 1, access=access)
    together, _, _ = await seen(f"{tmp_path}/", 2, access=access)
    assert together == alone
    assert len(alone) > 300


async def test_capture_times_never_go_back(video):
    async with asyncio.timeout(60), several(video("closed.mp4"), 3) as source:
        times = [frame.captured_at async for frame in source.frames()]
    assert times == sorted(times)


def test_small_files_are_left_to_one_process():
    assert processes(SMALL - 1) == 1
    assert processes(1 << 30) == min(4, len(os.sched_getaffinity(0)))


# bounds and trouble


def _ticks(pid):
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def _at_rest(pids):
    """Wait until none of the processes has done anything for a while."""
    spent, since = None, 0.0

    def is_still():
        nonlocal spent, since
        before, spent = spent, [_ticks(pid) for pid in pids]
        since = since if before == spent else time.monotonic()
        return time.monotonic() - since > 1.0

    assert await until(is_still, 40)


async def test_a_slow_reader_holds_the_processes_back(tmp_path):
    def large(t, size):
        return SCENE.render(t, size // 4).repeat(4, axis=0).repeat(4, axis=1)

    path = write_video(tmp_path / "large.mp4", large, seconds=24.0, size=640, fps=5)
    most = 2 * (ROOM // (640 * 640 * 3) + 2)  # pictures with two processes
    async with asyncio.timeout(100), several(path, 2, 5.0, stream="patient") as source:
        frames = source.frames()
        await anext(frames)
        await _at_rest(decoders())
        for _ in range(14):  # from both, which then tell what they have counted so far
            await anext(frames)
        assert FRAMES_RECEIVED.labels("patient")._value.get() <= 15 + most < 120
        assert len([frame async for frame in frames]) == 120 - 15


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_process_that_is_killed_is_an_error_and_no_gap(video, which):
    alone, _, _ = await seen(video("closed.mp4"), 1)
    given = []

    async def kill_one(frames):
        given.append(await anext(frames))
        assert await until(lambda: len(decoders()) == 3)
        os.kill(sorted(decoders())[which], signal.SIGKILL)
        async for frame in frames:
            given.append(frame)  # noqa: PERF401 - what came before the error counts

    async with asyncio.timeout(60), several(video("closed.mp4"), 3) as source:
        with pytest.raises(SourceUnavailable, match="decoder died"):
            await kill_one(source.frames())
    assert [(frame.pts, frame.image.tobytes()) for frame in given] == alone[: len(given)]
    assert await until(lambda: not decoders())


async def test_a_file_that_is_left_early_leaves_no_process_thread_or_file(video):
    async def cycle():
        for kind, count in (("closed.mp4", 1), ("closed.mp4", 30), ("stripes.mp4", 30)):
            async with asyncio.timeout(60), several(video(kind), 3) as source:
                frames = source.frames()
                for _ in range(count):
                    await anext(frames)

    await cycle()
    gc.collect()
    before = threads(), open_files()
    for _ in range(2):
        await cycle()
    gc.collect()
    assert await until(lambda: threads() <= before[0])
    assert await until(lambda: open_files() <= before[1])
    assert await until(lambda: not decoders())


# the mailbox


def _picture(pts, side=4):
    return Picture(np.zeros((side, side, 3), np.uint8), pts, 0.0, 0.0)


def test_who_opens_a_video_is_told_so_without_its_first_picture():
    mailbox = Mailbox()
    mailbox.mark(live=False)
    mailbox.put(_picture(0.0))
    message, image = mailbox.take(1.0)
    assert (message["live"], image) == (False, None)
    message, image = mailbox.take(1.0)
    assert (message["frame"]["pts"], image is None) == (0.0, False)


def test_notes_are_told_in_their_place_among_the_pictures():
    mailbox = Mailbox()
    mailbox.waits, mailbox.room = True, 1 << 10
    mailbox.note(video=1)
    mailbox.put(_picture(0.0))
    mailbox.mark(turn=True)
    mailbox.note(video=2)
    mailbox.put(_picture(1.0))
    mailbox.end({"end": True})
    told = [mailbox.take(1.0)[0] for _ in range(4)]
    assert [message.get("video") for message in told] == [1, None, 2, None]
    assert [message.get("turn") for message in told] == [None, True, None, None]
    assert [message.get("end") for message in told] == [None, None, None, True]


def test_a_live_picture_that_nobody_took_makes_room_for_the_next():
    mailbox = Mailbox()
    mailbox.mark(live=True)
    mailbox.note(video=1)
    for pts in (0.0, 1.0, 2.0):
        mailbox.put(_picture(pts))
    assert mailbox.take(1.0)[0]["live"]
    message, _ = mailbox.take(1.0)
    assert (message["frame"]["pts"], message["video"]) == (2.0, 1)
