"""Facts about RTMP, read from a real server."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest

from stream_sttm.config.streams import StreamSettings
from stream_sttm.errors import SourceUnavailable
from stream_sttm.sources.decoding.protocol import Limits
from stream_sttm.sources.network.access import Access
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.video import VideoSource
from stream_sttm.types import StreamState
from tests.support.resources import decoders, until
from tests.support.rtmp_server import RtmpCamera, why_missing
from workers import ingest

pytestmark = pytest.mark.server
LIMITS = Limits(open=15.0)  # FFmpeg, as the server, is not quick to answer


@pytest.fixture
async def camera(scene_video):
    if (why := why_missing()) is not None:
        pytest.skip(why)
    async with RtmpCamera(scene_video) as running:
        yield running


@pytest.mark.parametrize("hosts", [None, ("127.0.0.1",)])
async def test_what_a_server_sends_is_seen_live(camera, hosts):
    source = VideoSource(
        camera.url, "door", 2.0, access=Access(hosts=hosts), limits=LIMITS, decode="full"
    )
    frames = []
    async with asyncio.timeout(60), source:
        assert source.is_live
        async for frame in source.frames():
            frames.append(frame)
            if len(frames) == 5:
                break
        assert source.details["video"]["codec"] == "h264"
        assert source.details["video"]["width"] == 240
    assert all(b.pts > a.pts and b.captured_at > a.captured_at for a, b in pairwise(frames))
    drawn = [Scene(7).render(place / 10, 240).astype(int) for place in range(40)]
    for frame in frames:
        assert min(np.abs(picture - frame.image).mean() for picture in drawn) < 6
    assert await until(lambda: not decoders())


async def test_a_server_that_goes_away_is_an_error(camera):
    async def watch():
        async with VideoSource(camera.url, "door", 10.0, limits=LIMITS) as source:
            frames = source.frames()
            await anext(frames)
            await camera.cut()
            async for _ in frames:
                pass

    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1"):
        async with asyncio.timeout(60):
            await watch()
    assert await until(lambda: not decoders())


async def test_a_stream_comes_back_when_its_server_does(camera):
    states, clips = [], ingest.clip_channel(1)
    settings = StreamSettings.model_validate({"source": camera.url, "fps": 5})
    run = ingest.run(
        "door", settings, clips=clips, report=lambda status: states.append(status.state)
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(run, name="ingest")
        assert await until(lambda: states[-1:] == [StreamState.ONLINE], 40)
        await camera.cut()
        assert await until(lambda: states[-1] is not StreamState.ONLINE, 40)
        assert await until(lambda: states[-1] is StreamState.ONLINE, 40)
        task.cancel()
    assert camera.viewers >= 2
