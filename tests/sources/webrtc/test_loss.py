"""Facts about loss over WebRTC: nothing that rests on a lost frame is shown, and a keyframe is asked for."""

import asyncio

import numpy as np
import pytest
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import RtpPacket

from stream_sttm.demo.camera import open_camera
from stream_sttm.metrics import FRAMES_DROPPED
from stream_sttm.sources import open_source
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.webrtc.loss import ASK_EVERY, MOST_WITHHELD, KeyframeBuffer, is_keyframe

VP8 = (b"\x10\0\0\x9d\x01\x2a", b"\x11\0\0abc")
H264 = (
    b"\0\0\0\1\x67sps\0\0\0\1\x68pps\0\0\1\x65idr",
    b"\0\0\0\1\x41slice",
)


@pytest.mark.parametrize(("key", "other"), [VP8, H264])
def test_keyframes_are_known(key, other):
    assert is_keyframe(key)
    assert not is_keyframe(other)
    assert not is_keyframe(b"")


class Line:
    """A buffer that gets frames of one packet each, and what it said."""

    def __init__(self):
        self.clock, self.dropped = 0.0, 0
        self.buffer = KeyframeBuffer(16, self._drop, lambda: self.clock)
        self.given, self.asked = [], 0

    def _drop(self):
        self.dropped += 1

    def send(self, numbers, key=(), kinds=VP8):
        for number in numbers:
            packet = RtpPacket(sequence_number=number, timestamp=number * 3000)
            packet._data = kinds[number not in key]
            asks, frame = self.buffer.add(packet)
            self.asked += asks
            if frame is not None:
                self.given.append(frame.timestamp // 3000)
            self.clock += 0.03


@pytest.mark.parametrize("kinds", [VP8, H264])
def test_between_a_loss_and_the_next_keyframe_nothing_is_given(kinds):
    line = Line()
    sent = [*range(20), *range(21, 100)]  # packet 20 is lost
    line.send(sent, key=(0, 50), kinds=kinds)
    shown = line.given.index(50)
    assert line.given[:shown] == list(range(19))
    assert line.given[shown:] == list(range(50, line.given[-1] + 1))
    assert line.given[-1] > 60
    assert line.dropped > 0
    assert line.asked > 1


def test_nothing_is_given_before_the_first_keyframe_and_one_is_asked_for_now_and_then():
    line = Line()
    line.send(range(100), key=(90,))
    assert line.given == list(range(90, 99))
    assert line.asked == 1 + int(90 * 0.03 / ASK_EVERY)


def test_a_packet_that_comes_late_is_no_loss():
    line = Line()
    line.send([0, 1, 2, 4, 3, 5, 6], key=(0,))
    assert line.given == [0, 1, 2, 3, 4, 5][: len(line.given)]
    assert line.dropped == 0


def test_an_encoder_without_keyframes_is_shown_after_a_while():
    line = Line()
    line.send(range(int(MOST_WITHHELD / 0.03) + 50))
    assert line.given


async def test_what_is_shown_of_a_line_that_loses_packets_is_what_the_camera_sees(monkeypatch):
    send, count = RTCDtlsTransport._send_rtp, 0

    async def losing(self, data):
        nonlocal count
        is_video = data[0] >> 6 == 2 and not 192 <= data[1] <= 223
        count += is_video
        if is_video and (count % 150 == 149 or data[1] & 0x7F not in primary):
            return
        await send(self, data)

    class Primary(set):
        """The first payload type that is seen; others are retransmissions."""

        def __contains__(self, kind):
            if not self:
                self.add(kind)
            return super().__contains__(kind)

    primary = Primary()
    monkeypatch.setattr(RTCDtlsTransport, "_send_rtp", losing)
    before = FRAMES_DROPPED.labels("lossy", "corrupt")._value.get()
    async with open_camera(Scene(7), fps=20.0) as camera, asyncio.timeout(40):
        source = open_source(camera.url, stream="lossy", fps=20, max_side=640)
        async with source:
            compared = 0
            async for frame in source.frames():
                then = camera.scene.render(camera.scene_time(frame.captured_at), 480).astype(int)
                assert np.abs(then - frame.image).mean() < 12
                compared += 1
                if compared > 30 and count > 450:
                    break
    assert FRAMES_DROPPED.labels("lossy", "corrupt")._value.get() > before
