"""Facts about how real cameras are decoded: cheaply, honestly dated, within limits, in processes that can be killed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import struct
import time
from itertools import pairwise
from statistics import median

import av
import numpy as np
import pytest

from stream_sttm.errors import NotVideo, SourceError, SourceUnavailable
from stream_sttm.metrics import DECODE_CPU, DECODE_MODE, FRAMES_DROPPED
from stream_sttm.sources import open_source
from stream_sttm.sources.decoding import frame_selection, process
from stream_sttm.sources.decoding.mailbox import Mailbox
from stream_sttm.sources.decoding.protocol import Limits, Request
from stream_sttm.sources.images import jpeg
from stream_sttm.sources.network.opening import Opening
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.video import VideoSource
from tests.sources.test_video import _mjpeg, saying, server
from tests.support.resources import decoders, open_files, threads, until
from tests.support.rtsp_server import RtspCamera, why_missing, write_video

SCENE = Scene(7)


@pytest.fixture
def camera_of(tmp_path):
    """Starts RTSP cameras, each showing videos given as options of `write_video`; they end with the test."""
    if (why := why_missing()) is not None:
        pytest.skip(why)
    cameras = []

    def start(*videos, options=(), **common):
        files = [
            write_video(tmp_path / f"{len(cameras)}-{i}.mp4", SCENE.render, **{**common, **video})
            for i, video in enumerate(videos or ({},))
        ]
        cameras.append(RtspCamera(files, options=options).start())
        return cameras[-1]

    yield start
    for camera in cameras:
        camera.stop()


async def watched(url, count, **options):
    """The first frames of `url`, and what is known of its video then."""
    options = {"stream": "cam", "fps": 1.0, "max_side": 640} | options
    async with asyncio.timeout(40), open_source(str(url), **options) as source:
        frames = []
        async for frame in source.frames():
            frames.append(frame)
            if len(frames) == count:
                break
        return frames, source.details["video"]


async def to_the_end(source, meanwhile=lambda: None):
    """Open a source and read it until it ends."""
    async with asyncio.timeout(30), source:
        async for _ in source.frames():
            meanwhile()


async def failure(source):
    """The one line that opening and reading a source ends with."""
    with pytest.raises(SourceError) as caught:
        await to_the_end(source)
    assert "\n" not in str(caught.value)
    return caught.value


# what is decoded


@pytest.mark.server
async def test_a_camera_with_frequent_keyframes_has_them_alone_decoded_at_its_full_rate(camera_of):
    camera = camera_of()
    dropped = FRAMES_DROPPED.labels("cheap", "not_decoded")._value
    cpu = DECODE_CPU.labels("cheap")._value
    before = dropped.get()
    frames, video = await watched(camera.url, 5, stream="cheap")
    assert (video["codec"], video["width"], video["decode"]) == ("h264", 240, "keyframes")
    assert video["fps"] == pytest.approx(10, rel=0.2)
    assert video["keyframe_interval"] == pytest.approx(1, rel=0.2)
    drawn = [SCENE.render(tenth / 10, 240).astype(float) for tenth in range(40)]
    tenths = [np.argmin([abs(frame.image - one).mean() for one in drawn]) for frame in frames]
    assert all(tenth % 10 == 0 for tenth in tenths), tenths  # where the keyframes are
    gaps = [b.pts - a.pts for a, b in pairwise(frames)]
    assert 0.8 < median(gaps) < 1.2, gaps  # all of them, but where the reader is slow
    assert dropped.get() - before >= 18  # of 10 in each of the last GOPs
    assert cpu.get() > 0


@pytest.mark.server
async def test_a_keyframes_capture_time_is_its_own(camera_of):
    """With no rush of packets to lie about it: the second of the newest keyframe, not of what came after it."""
    camera = camera_of()
    async with (
        asyncio.timeout(30),
        open_source(camera.url, stream="cam", fps=1.0, max_side=640) as source,
    ):
        ages, taken = [], []
        async for frame in source.frames():
            ages.append(time.time() - frame.captured_at)
            taken.append(frame)
            if len(taken) == 4:
                break
    assert all(
        b.captured_at - a.captured_at == pytest.approx(b.pts - a.pts, abs=0.05)
        for a, b in pairwise(taken[1:])
    )
    assert 0 < min(ages) < 0.9


@pytest.mark.server
async def test_the_mode_is_chosen_anew_when_the_camera_changes(camera_of):
    camera = camera_of({"keyframe_every": 10}, {"keyframe_every": 40}, seconds=4.0)
    modes, times = [], []
    async with (
        asyncio.timeout(40),
        open_source(camera.url, stream="moody", fps=1.0, max_side=640) as source,
    ):
        async for frame in source.frames():
            times.append(frame.pts)
            if "video" in source.details:  # told when the first group of pictures is known
                modes.append(source.details["video"]["decode"])
            if {"keyframes", "references"} <= set(modes):
                break
        shown = {
            mode: DECODE_MODE.labels("moody", mode)._value.get()
            for mode in ("keyframes", "references", "full")
        }
    assert shown[modes[-1]] == 1
    assert sum(shown.values()) == 1
    assert max(b - a for a, b in pairwise(times)) < 2
    assert DECODE_MODE.labels("moody", modes[-1])._value.get() == 0  # nothing is, once it is left


async def test_reordered_video_gives_the_same_pictures_from_keyframes_alone(tmp_path):
    path = write_video(tmp_path / "b.mp4", SCENE.render, seconds=6.0, tune="film", bf="3")
    frames, video = await watched(f"file://{path}", None)
    assert video["decode"] == "keyframes"
    assert [round(frame.pts) for frame in frames] == list(range(6))
    for frame in frames:
        drawn = SCENE.render(round(frame.pts, 1), 240).astype(int)
        assert np.abs(drawn - frame.image).mean() < 6


@pytest.mark.parametrize("mode", ["keyframes", "references", "full"])
async def test_a_mode_asked_for_by_name_is_used(scene_video, mode):
    frames, video = await watched(f"file://{scene_video}", None, fps=2.0, decode=mode)
    assert video["decode"] == mode
    assert len(frames) == (4 if mode == "keyframes" else 8)


def test_keyframes_that_come_are_not_missed_where_packets_were_too_large_to_wait(
    scene_video, monkeypatch
):
    monkeypatch.setattr(frame_selection, "MOST_HELD", 1)
    opening = Opening(str(scene_video))
    request = Request(
        f"file://{scene_video}", opening, "cam", 0.5, 640, "keyframes", limits=Limits(keyframe=1.5)
    )
    mailbox = Mailbox()
    mailbox.waits, mailbox.room = True, 1 << 30
    with av.open(str(scene_video)) as container:
        video = container.streams.video[0]
        chosen = frame_selection.FrameSelection(request, video, mailbox, is_live=False)
        for place, packet in enumerate(p for p in container.demux(video) if p.size):
            chosen.add(frame_selection.Stamped(packet, place / 10))
    assert [mailbox.take(0)[0]["frame"]["pts"] for _ in range(2)] == [0.0, 2.0]


# trouble


@pytest.mark.server
async def test_a_decoder_that_hangs_is_left_in_time_and_killed(camera_of):
    camera = camera_of()
    async with (
        asyncio.timeout(30),
        open_source(camera.url, stream="cam", fps=10.0, max_side=640) as source,
    ):
        await anext(source.frames())
        (pid,) = decoders()
        os.kill(pid, signal.SIGSTOP)
    assert await until(lambda: not decoders())


@pytest.mark.server
async def test_a_decoder_that_dies_is_an_error_and_the_next_one_works(camera_of):
    camera = camera_of()
    source = open_source(camera.url, stream="cam", fps=10.0, max_side=640)

    def kill():
        for pid in decoders():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(SourceUnavailable, match="decoder died"):
        await to_the_end(source, kill)
    assert len((await watched(camera.url, 2))[0]) == 2


async def test_the_server_that_decoders_are_forked_from_is_replaced_when_it_dies(scene_video):
    await watched(f"file://{scene_video}", None)
    server_process = process._FORKS._process
    server_process.kill()
    server_process.wait()
    assert len((await watched(f"file://{scene_video}", None))[0]) == 4
    assert process._FORKS._process is not server_process


async def test_damaged_packets_are_counted_as_corrupt(tmp_path):
    path = write_video(tmp_path / "x.avi", SCENE.render, codec="mjpeg", size=96)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        places = [path.read_bytes().index(bytes(packet)) for packet in packets[5:9]]
    damaged = bytearray(path.read_bytes())
    for place in places:
        damaged[place : place + 300] = bytes(300)
    path.write_bytes(damaged)
    corrupt = FRAMES_DROPPED.labels("hurt", "corrupt")._value
    before = corrupt.get()
    frames, _ = await watched(f"file://{path}", None, stream="hurt", fps=10.0)
    assert corrupt.get() - before == len(places)
    assert len(frames) == 40 - len(places)


async def test_a_machine_that_is_slow_to_start_a_decoder_is_not_taken_for_a_silent_camera(
    scene_video, monkeypatch
):
    monkeypatch.setattr(process, "OPEN_MARGIN", 0.0)
    await watched(f"file://{scene_video}", 1)  # so that the server is there
    pictures = _mjpeg([jpeg(SCENE.render(0, 96))])
    async with server(pictures) as address, asyncio.timeout(40):
        source = VideoSource(f"http://{address}/x", limits=Limits(open=1.0))
        process._FORKS._process.send_signal(signal.SIGSTOP)
        try:
            opening = asyncio.create_task(source.__aenter__())
            assert not await until(opening.done, 2.2)
        finally:
            process._FORKS._process.send_signal(signal.SIGCONT)
        await opening
        await anext(source.frames())
        await source.__aexit__(None, None, None)


# bad input


@pytest.mark.server
async def test_a_stream_without_keyframes_is_given_up_with_advice(camera_of):
    camera = camera_of(options=["--one-keyframe"])
    limits = Limits(keyframe=2.0)
    async with open_source(camera.url, stream="first", fps=1.0, max_side=640) as first:
        await anext(first.frames())
        error = await failure(VideoSource(camera.url, "second", limits=limits))
    assert isinstance(error, SourceUnavailable)
    assert "no keyframe" in str(error)
    assert "keyframe interval" in str(error)


@pytest.mark.server
async def test_a_stream_of_audio_alone_is_no_video(camera_of):
    error = await failure(VideoSource(camera_of(options=["--audio-only"]).url))
    assert isinstance(error, NotVideo)
    assert "no video stream" in str(error)


@pytest.mark.server
async def test_a_thousand_frames_a_second_give_those_that_are_wanted(camera_of):
    camera = camera_of(fps=1000, size=64, seconds=2.0, keyframe_every=1000)
    frames, video = await watched(camera.url, 6, fps=2.0)
    assert video["fps"] > 500
    assert all(0.3 < b.pts - a.pts < 1.2 for a, b in pairwise(frames[1:]))


def _claiming(width, height):
    """A small JPEG whose header claims another size."""
    picture = bytearray(jpeg(SCENE.render(0, 96)))
    place = picture.index(b"\xff\xc0") + 5
    picture[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(picture)


@pytest.mark.parametrize(
    ("size", "most", "message"),
    [
        ((16384, 16384), 36_000_000, "max_pixels"),
        ((96, 96), 9000, "max_pixels"),
        ((0, 0), 9216, ""),
    ],
)
async def test_pictures_of_senseless_size_are_refused_before_they_take_memory(size, most, message):
    async with server(_mjpeg([_claiming(*size)])) as address:
        error = await failure(
            VideoSource(f"http://{address}/x", max_pixels=most, limits=Limits(open=3.0))
        )
    assert isinstance(error, SourceError)
    assert message in str(error)


async def test_endless_headers_end_in_an_error_in_time():
    greeted = False

    async def talk(reader, writer):
        nonlocal greeted
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n" if not greeted else b"RTSP/1.0 200 OK\r\n"
        )
        was_greeted, greeted = greeted, True
        while was_greeted:
            writer.write(b"X-More: " + b"x" * 4000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async with server(talk) as address:
        error = await failure(VideoSource(f"rtsp://{address}/x", limits=Limits(open=1.0)))
    assert isinstance(error, SourceUnavailable)
    assert "in time" in str(error)


@pytest.mark.server
async def test_bad_input_again_and_again_leaves_no_process_thread_or_file(camera_of):
    audio = camera_of(options=["--audio-only"]).url

    async def cycle():
        async with (
            server(_mjpeg([_claiming(16384, 16384)])) as huge,
            server(saying("HTTP/1.1 200 OK\r\n\r\n", b"no video" * 999)) as text,
        ):
            for url in (audio, f"http://{huge}/x", f"http://{text}/x", f"rtsp://{text}/x"):
                await failure(VideoSource(url, limits=Limits(open=3.0)))

    await cycle()
    gc.collect()
    files, running = open_files(), threads()
    for _ in range(2):
        await cycle()
    gc.collect()
    assert await until(lambda: threads() <= running)
    assert await until(lambda: open_files() <= files)
    assert await until(lambda: not decoders())
