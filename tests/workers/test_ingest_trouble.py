"""Facts about trouble between a camera and its memory: noticed in time, survived, told, and nobody else's business."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from itertools import pairwise

import pytest

from stream_sttm.config.settings import StreamSettings
from stream_sttm.metrics import FRAMES_DROPPED, STREAM_STATE, STREAM_UP
from stream_sttm.sources.scene import Scene
from stream_sttm.types import StreamState
from tests.support.resources import decoders, until
from tests.support.rtsp_server import RtspCamera, write_video
from tests.support.service import Service
from tests.support.service import until as service_until
from tests.support.tcp_proxy import Proxy
from tests.workers.test_ingest import ingesting
from workers.ingest import Backoff

AS_SHIPPED = {"backoff": Backoff(), "stall_after": StreamSettings(source="scene://x").stall_after}


def behind(proxy, camera):
    """The camera's URL through the proxy."""
    return camera.url.replace(str(camera.port), str(proxy.port))


def shown(stream):
    """The states that the metric says a stream is in."""
    values = {state: STREAM_STATE.labels(stream, state.value)._value.get() for state in StreamState}
    return [state.value for state, value in values.items() if value]


@pytest.mark.server
async def test_a_stall_is_noticed_within_5_seconds_and_over_within_10_of_its_end(rtsp_camera):
    async with asyncio.timeout(60), Proxy(rtsp_camera.port) as proxy:
        async with ingesting(behind(proxy, rtsp_camera), "half-open", **AS_SHIPPED) as cam:
            await cam.state("online")
            assert shown("half-open") == ["online"]
            proxy.stall()
            stalled_at = time.time()
            stalled = await cam.state("stalled")
            assert stalled.since - stalled_at < 5
            assert "no frame for 4 s" in stalled.reason
            assert shown("half-open") == ["stalled"]
            await cam.state("offline")  # nobody answers when it is opened again
            proxy.flow()
            back_at = time.time()
            online = await cam.state("online", after=cam.statuses.index(stalled))
            assert online.since - back_at < 10
            assert all(b.pts > a.pts for a, b in pairwise(cam.frames))
        assert await until(lambda: not decoders())


@pytest.mark.server
async def test_a_camera_that_is_gone_is_back_within_10_seconds_of_its_return(rtsp_camera):
    async with (
        asyncio.timeout(60),
        Proxy(rtsp_camera.port) as proxy,
        ingesting(behind(proxy, rtsp_camera), "gone", **AS_SHIPPED) as cam,
    ):
        await cam.state("online")
        await proxy.refuse()
        offline = await cam.state("offline")
        assert await until(lambda: len(cam.statuses) > 3 and "refused" in cam.reasons[-1])
        await proxy.listen()
        back_at = time.time()
        online = await cam.state("online", after=cam.statuses.index(offline))
        assert online.since - back_at < 10


@pytest.mark.server
async def test_a_connection_that_is_cut_is_opened_again(rtsp_camera):
    async with (
        asyncio.timeout(60),
        Proxy(rtsp_camera.port) as proxy,
        ingesting(behind(proxy, rtsp_camera), "cut") as cam,
    ):
        await cam.state("online")
        await proxy.cut()
        offline = await cam.state("offline")
        await cam.state("online", after=cam.statuses.index(offline))


@pytest.mark.server
async def test_a_throttled_camera_does_not_slow_another(rtsp_camera):
    async with (
        asyncio.timeout(60),
        Proxy(rtsp_camera.port) as proxy,
        ingesting(behind(proxy, rtsp_camera), "slow", stall_after=4.0) as slow,
        ingesting(rtsp_camera.url, "well") as well,
    ):
        await slow.state("online")
        await well.state("online")
        proxy.throttle(8_000)
        seen, before = len(well.frames), len(slow.frames)
        assert await until(lambda: len(well.frames) >= seen + 30)
        gaps = [b.captured_at - a.captured_at for a, b in pairwise(well.frames[seen:])]
        assert max(gaps) < 0.5
        assert len(slow.frames) - before < 25  # 30 would be its share
        assert well.states == ["connecting", "online"]


@pytest.mark.server
async def test_a_hung_decoder_is_killed_and_its_stream_goes_on_while_others_never_noticed(
    rtsp_camera,
):
    async with asyncio.timeout(60), ingesting(rtsp_camera.url, "hung") as hung:
        await hung.state("online")
        (pid,) = decoders()
        async with ingesting(rtsp_camera.url, "well") as well:
            await well.state("online")
            os.kill(pid, signal.SIGSTOP)
            stalled = await hung.state("stalled")
            await hung.state("online", after=hung.statuses.index(stalled))
            assert well.states == ["connecting", "online"]
            assert pid not in decoders()


@pytest.mark.server
async def test_a_camera_that_comes_back_with_another_codec_and_size_begins_a_new_segment(tmp_path):
    old = write_video(tmp_path / "old.mp4", Scene(1).render, size=240)
    new = write_video(
        tmp_path / "new.mp4",
        Scene(1).render,
        size=320,
        codec="libx265",
        **{"x265-params": "log-level=none"},
    )
    camera = RtspCamera(old)
    with camera:
        context = ingesting(camera.url, "swapped", takes=True)
        cam = await context.__aenter__()
        await cam.state("online")
        assert await until(lambda: any(details.get("segment") == 1 for details in cam.details))
    try:
        offline = await cam.state("offline")
        with RtspCamera(new, port=camera.port, options=["--codec", "h265"]):
            await cam.state("online", after=cam.statuses.index(offline))
            assert await until(lambda: cam.details[-1].get("segment") == 2)
            assert cam.details[-1]["video"]["codec"] == "hevc"
            assert await until(lambda: cam.taken and cam.taken[-1].frames[0].image.shape[0] == 320)
    finally:
        await context.__aexit__(None, None, None)
    assert all(len({frame.image.shape for frame in clip.frames}) == 1 for clip in cam.taken)


@pytest.mark.server
async def test_a_camera_that_changes_its_size_without_a_word_begins_a_new_segment(tmp_path):
    videos = [
        write_video(tmp_path / f"{size}.mp4", Scene(1).render, size=size, seconds=2.0)
        for size in (240, 320)
    ]
    with RtspCamera(videos) as camera:
        async with asyncio.timeout(40), ingesting(camera.url, "changing", takes=True) as cam:
            assert await until(lambda: (cam.details or [{}])[-1].get("segment", 0) >= 3, 20)
            assert cam.states == ["connecting", "online"]
    shapes = [frame.image.shape[0] for clip in cam.taken for frame in clip.frames]
    assert {240, 320} == set(shapes)
    assert all(len({frame.image.shape for frame in clip.frames}) == 1 for clip in cam.taken)


@pytest.mark.server
async def test_frames_that_nobody_takes_are_dropped_and_counted(rtsp_camera):
    dropped = FRAMES_DROPPED.labels("full", "queue_full")._value
    async with asyncio.timeout(30), ingesting(rtsp_camera.url, "full", capacity=1) as cam:
        before = dropped.get()
        assert await until(lambda: dropped.get() >= before + 6)
        assert len(cam.clips) == 1


def test_a_disabled_stream_is_shown_as_disabled_and_answers_nothing(tmp_path):
    streams = {"off": {"source": "scene://x", "enabled": False}, "on": {"source": "scene://x"}}
    with Service(tmp_path, streams=streams) as service:
        service_until(lambda: service.state("on") == "online", "the other is online")
        assert service.state("off") == "disabled"
        metrics = service.http.get("/metrics").text
        assert 'stream_sttm_stream_state{state="disabled",stream="off"} 1.0' in metrics
        assert 'stream_sttm_stream_state{state="online",stream="on"} 1.0' in metrics
        refused = service.ask("off", "what is there?")
        assert not refused.is_success
        assert "disabled" in refused.text


async def test_states_are_shown_in_the_metric_one_at_a_time():
    async with asyncio.timeout(30), ingesting("scene://x?fps=30&size=32", "shown") as cam:
        await cam.state("online")
        assert shown("shown") == ["online"]
        assert STREAM_UP.labels("shown")._value.get() == 1
