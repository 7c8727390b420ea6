"""Facts about everything that FFmpeg reads: order, ends, errors, and that nothing hangs or stays behind."""

import asyncio
import gc
import logging
from contextlib import asynccontextmanager
from itertools import pairwise

import av
import numpy as np
import pytest

from stream_sttm.errors import ConfigError, NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.metrics import FRAMES_DROPPED, FRAMES_RECEIVED
from stream_sttm.sources import open_source
from stream_sttm.sources.decoding.protocol import Limits
from stream_sttm.sources.images import Pace
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.video import VideoSource
from tests.support.http_server import write_certificate
from tests.support.resources import decoders, open_files, threads, until
from tests.support.rtsp_server import RtspCamera, write_video

PASSWORD, ENCODED = "se/same @7", "se%2Fsame%20%407"


def source_of(url, stream="cam", fps=30, max_side=640, **further):
    return open_source(str(url), stream=stream, fps=fps, max_side=max_side, **further)


async def some_frames(url, count, **options):
    async with asyncio.timeout(30), source_of(url, **options) as source:
        frames = []
        async for frame in source.frames():
            frames.append(frame)
            if len(frames) == count:
                break
        return frames


async def failure_of(url, **options):
    """The error that opening and reading `url` ends with; it must be one line."""
    with pytest.raises(SourceError) as caught:
        await some_frames(url, 100, **options)
    assert "\n" not in str(caught.value)
    return caught.value


@asynccontextmanager
async def server(talk):
    """A TCP server on a free port, `talk(reader, writer)` for each connection; yields host:port."""
    tasks = set()

    async def guarded(reader, writer):
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def accept(reader, writer):
        tasks.add(asyncio.create_task(guarded(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(head, body=b""):
    async def talk(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode())
        if not request.startswith(b"HEAD"):
            writer.write(body)
        await writer.drain()

    return talk


def blurting(text):
    async def talk(_reader, writer):
        writer.write(text)
        await writer.drain()

    return talk


async def silent(_reader, _writer):
    await asyncio.Event().wait()


# files


async def test_a_file_gives_every_frame_once_in_order_and_ends(scene_video):
    frames = await some_frames(f"file://{scene_video}", None)
    assert [round(frame.pts, 3) for frame in frames] == [round(i / 10, 3) for i in range(40)]
    for frame in frames[::7]:
        drawn = Scene(7).render(frame.pts, 240).astype(int)
        assert np.abs(drawn - frame.image).mean() < 6


async def test_a_file_waits_for_a_slow_consumer(scene_video):
    superseded = FRAMES_DROPPED.labels("slow", "superseded")
    async with source_of(f"file://{scene_video}", "slow") as source, asyncio.timeout(20):
        assert not source.is_live
        frames = source.frames()
        first = await anext(frames)
        assert not await until(lambda: superseded._value.get() > 0, 0.3)
        second = await anext(frames)
        assert (first.pts, round(second.pts, 3)) == (0.0, 0.1)


async def test_only_frames_that_are_sampled_are_converted_and_the_rest_is_counted(scene_video):
    reasons = [FRAMES_DROPPED.labels("two", word) for word in ("sampled_out", "not_decoded")]
    counts = [FRAMES_RECEIVED.labels("two"), *reasons]
    before = [count._value.get() for count in counts]
    frames = await some_frames(f"file://{scene_video}", None, stream="two", fps=2)
    received, *dropped = (c._value.get() - b for c, b in zip(counts, before, strict=True))
    assert [round(frame.pts, 3) for frame in frames] == [i / 2 for i in range(8)]
    assert (received, received - sum(dropped)) == (40, 8)


async def test_pictures_are_scaled_down_never_up(tmp_path, scene_video):
    small = await some_frames(f"file://{scene_video}", 1, max_side=100)
    same = await some_frames(f"file://{scene_video}", 1, max_side=4096)
    assert (small[0].image.shape, same[0].image.shape) == ((100, 100, 3), (240, 240, 3))


async def test_a_file_name_may_hold_any_character(tmp_path, scene_video):
    path = tmp_path / "a b%20ü#.mp4"
    path.write_bytes(scene_video.read_bytes())
    encoded = str(path).replace("%", "%25").replace(" ", "%20").replace("#", "%23")
    assert len(await some_frames(f"file://{encoded}", None)) == 40


def _audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


async def test_what_is_no_video_file_is_said_so(tmp_path, scene_video):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 1000)
    (tmp_path / "cut.mp4").write_bytes(scene_video.read_bytes()[:2000])
    _audio_only(tmp_path / "audio.wav")
    for name, kind, message in (
        ("missing.mp4", SourceUnavailable, "there is no such file"),
        ("folder", NotVideo, "is a folder"),
        ("empty.mp4", NotVideo, "is empty"),
        ("text.mp4", NotVideo, "not a video"),
        ("cut.mp4", NotVideo, "not a video"),
        ("audio.wav", NotVideo, "no video stream"),
    ):
        error = await failure_of(f"file://{tmp_path / name}")
        assert (type(error), name in str(error)) == (kind, True)
        assert message in str(error)


async def test_damaged_packets_are_counted_and_the_rest_is_shown(tmp_path):
    path = write_video(tmp_path / "x.avi", Scene(1).render, codec="mjpeg", size=96)
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 3000] = bytes(3000)
    path.write_bytes(damaged)
    frames = await some_frames(f"file://{path}", None)
    assert 20 < len(frames) <= 40


async def test_a_folder_is_its_videos_in_order_of_name_on_one_clock(tmp_path, scene_video, caplog):
    for name in ("b.MP4", "a.mp4", "10.mp4"):
        (tmp_path / name).write_bytes(scene_video.read_bytes())
    (tmp_path / "aa.mkv").write_text("no video " * 1000)
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / ".hidden.mp4").write_text("no video")
    async with asyncio.timeout(30), source_of(f"file://{tmp_path}/") as source:
        assert not source.is_live
        frames = [frame async for frame in source.frames()]
    assert [round(frame.pts, 3) for frame in frames] == [round(i / 10, 3) for i in range(120)]
    assert [line for line in caplog.messages if "skipped" in line and "aa.mkv" in line]
    assert len(caplog.messages) == 1


async def test_a_folder_that_is_left_early_leaves_nothing_open(tmp_path, scene_video):
    (tmp_path / "a.mp4").write_bytes(scene_video.read_bytes())
    await some_frames(f"file://{tmp_path}/", 2)
    gc.collect()
    before = threads(), open_files()
    for _ in range(5):
        await some_frames(f"file://{tmp_path}/", 2)
    assert await until(lambda: (threads(), open_files()) <= before)


async def test_a_folder_without_video_is_said_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_text("no video " * 1000)
    for name, kind, message in (
        ("none/", SourceUnavailable, "no such folder"),
        ("empty/", NotVideo, "no video in this folder"),
        ("bad/", NotVideo, "not a video"),
    ):
        error = await failure_of(f"file://{tmp_path}/{name}")
        assert type(error) is kind
        assert message in str(error)


@pytest.mark.parametrize("name", ["film.mp4", ""])
async def test_files_are_held_to_their_folders_wherever_links_lead(tmp_path, scene_video, name):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "film.mp4").write_bytes(scene_video.read_bytes())
    (tmp_path / "out.mp4").write_bytes(scene_video.read_bytes())
    access = Access(folders=(str(inside),))
    assert await some_frames(f"file://{inside}/{name}", 2, access=access)
    (inside / "film.mp4").unlink()
    (inside / "film.mp4").symlink_to(tmp_path / "out.mp4")
    assert type(await failure_of(f"file://{inside}/{name}", access=access)) is SourceDenied


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("v4l2:///dev/no-such-video7", SourceUnavailable, "is it plugged in"),
        ("v4l2:///dev/shm", NotVideo, "no device"),
        ("v4l2:///dev/null?video_size=640x480", SourceError, ""),
        ("srt://127.0.0.1:9", SourceError, ""),
    ],
)
async def test_what_is_not_there_or_not_built_in_is_one_line(url, kind, message):
    error = await failure_of(url)
    assert isinstance(error, kind)
    assert message in str(error)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("v4l2://dev/video0", "full path"),
        ("v4l2:///etc/passwd", "full path"),
        ("v4l2:///dev/video0?input_formt=mjpeg", "did you mean 'input_format'"),
        ("rtsp://me:sesame@cam/x#transprt=udp", "did you mean 'transport'"),
        ("rtsp://cam/x#transport=smoke", "transport must be tcp or udp or http"),
        ("rtsp://cam/x#verify=false", "no such option 'verify'"),
        ("rtsp://cam/x#video=h264", "no such option 'video'"),
        ("exec:ffmpeg -i sesame", "not understood here"),
        ("webrtc:ws://me:sesame@host/api/ws", "not understood here"),
    ],
)
def test_what_a_url_can_not_say_is_a_configuration_error(url, message):
    with pytest.raises(ConfigError) as caught:
        source_of(url)
    assert message in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_a_relative_file_url_is_a_configuration_error():
    with pytest.raises(ConfigError, match="full path"):
        source_of("file://videos/a.mp4")


def test_the_pace_wants_what_is_due_and_a_little_before():
    pace = Pace(2)
    wanted = [i / 10 for i in range(21) if pace.wants(i / 10)]
    assert wanted == [0.0, 0.4, 0.5, 0.9, 1.0, 1.4, 1.5, 1.9, 2.0]


# any server


@pytest.mark.parametrize("scheme", ["rtsp", "http", "rtmp"])
async def test_nobody_there_is_unavailable(scheme):
    async with server(silent) as address:
        pass
    error = await failure_of(f"{scheme}://me:sesame@{address}/x")
    assert isinstance(error, SourceUnavailable)
    assert "refused" in str(error)
    assert "sesame" not in str(error)


async def test_an_unknown_host_is_unavailable():
    error = await failure_of("rtsp://no-such-host.invalid/x")
    assert isinstance(error, SourceUnavailable)


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https"])
async def test_a_silent_server_can_be_left_at_once(scheme):
    connected = asyncio.Event()

    async def talk(reader, writer):
        connected.set()
        await silent(reader, writer)

    before = threads()
    async with server(talk) as address, asyncio.timeout(20):
        opening = asyncio.create_task(source_of(f"{scheme}://{address}/x").__aenter__())
        await connected.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert await until(lambda: threads() <= before)


async def test_a_server_that_falls_silent_after_the_greeting_leaves_no_process():
    connections = 0

    async def talk(reader, writer):
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if connections == 1:
            writer.write(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n")
            return
        await silent(reader, writer)

    async with server(talk) as address, asyncio.timeout(20):
        source = VideoSource(f"rtsp://{address}/x", limits=Limits(open=1.0))
        with pytest.raises(SourceUnavailable, match="sends no video in time"):
            await source.__aenter__()
        connections = 0
        opening = asyncio.create_task(source_of(f"rtsp://{address}/x").__aenter__())
        assert await until(lambda: connections == 2)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert await until(lambda: not decoders())


@pytest.mark.parametrize(
    ("scheme", "talk", "kind", "message"),
    [
        ("rtsp", saying("HTTP/1.1 200 OK\r\n\r\n"), NotVideo, "does not speak RTSP"),
        ("rtsp", saying("x" * 200_000), NotVideo, "does not speak RTSP"),
        ("rtsp", saying(""), SourceUnavailable, "without an answer"),
        ("http", saying("SSH-2.0-OpenSSH_9.9\r\n"), NotVideo, "does not speak HTTP"),
        ("https", blurting(b"no TLS" * 99), SourceUnavailable, "no TLS there"),
        ("http", saying("HTTP/1.1 401 Unauthorized\r\n\r\n"), SourceDenied, "user and password"),
        ("http", saying("HTTP/1.1 403 Forbidden\r\n\r\n"), SourceDenied, "user and password"),
        ("http", saying("HTTP/1.1 404 Not Found\r\n\r\n"), SourceUnavailable, "404"),
        ("http", saying("HTTP/1.1 503 Busy\r\n\r\n"), SourceUnavailable, ""),
        (
            "http",
            saying("HTTP/1.1 200 OK\r\nContent-Length: 594\r\n\r\n", b"<html>" * 99),
            NotVideo,
            "not a video",
        ),
    ],
)
async def test_every_wrong_answer_is_one_clear_line(scheme, talk, kind, message, capfd):
    async with server(talk) as address:
        error = await failure_of(f"{scheme}://me:sesame@{address}/x?token=hush")
    assert type(error) is kind
    assert message in str(error)
    shown = str(error) + "".join(capfd.readouterr())
    assert "sesame" not in shown
    assert "hush" not in shown


def _mjpeg(pictures):
    """A camera that sends its pictures as multipart JPEG, over and over."""

    async def talk(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n"
        )
        while not request.startswith(b"HEAD"):
            for picture in pictures:
                head = (
                    f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                )
                writer.write(head.encode() + picture + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)

    return talk


async def test_motion_jpeg_over_http_is_a_live_stream(tmp_path):
    path = write_video(tmp_path / "x.avi", Scene(1).render, codec="mjpeg", size=96)
    with av.open(str(path)) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    async with server(_mjpeg(pictures)) as address, asyncio.timeout(20):
        async with source_of(f"http://{address}/mjpeg") as source:
            assert source.is_live
        frames = await some_frames(f"http://{address}/mjpeg", 6)
    assert frames[0].image.shape == (96, 96, 3)
    assert all(b.pts > a.pts for a, b in pairwise(frames))


async def test_a_file_over_http_is_no_live_stream(tmp_path):
    path = write_video(tmp_path / "x.mkv", Scene(1).render, size=96)
    body = path.read_bytes()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    async with server(saying(head, body)) as address:
        assert len(await some_frames(f"http://{address}/x.mkv", None)) == 40


async def test_a_server_that_speaks_no_rtmp_is_one_line():
    async with server(blurting(b"no RTMP " * 1000)) as address:
        error = await failure_of(f"rtmp://me:sesame@{address}/live/x")
    assert "sesame" not in str(error)


async def test_headers_without_end_on_an_rtsp_port_are_given_up():
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"RTSP/1.0 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async with server(talk) as address:
        url = f"rtsp://me:sesame@{address}/x"
        assert "in time" in str(await failure_of(url, limits=Limits(open=1.0)))
    assert await until(lambda: not decoders())


@pytest.mark.parametrize("line", ["RTSP/1.0 302 Moved", "RT\rSP/1.0\t  0301 x", "RTSP/9 +305"])
async def test_a_redirect_leads_nowhere_where_hosts_are_limited(line):
    visits = []

    async def elsewhere(reader, _writer):
        visits.append(await reader.read(1))

    async with server(elsewhere) as forbidden:

        async def talk(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: DESCRIBE\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            for part in (
                line[:7],
                line[7:],
                f"\r\nCSeq: 2\r\nLocation: rtsp://{forbidden}/x\r\n\r\n",
            ):
                writer.write(part.encode())
                await writer.drain()
                await asyncio.sleep(0.01)
            await reader.read()

        async with server(talk) as address:
            url = f"rtsp://me:sesame@{address}/x"
            error = await failure_of(url, access=Access(hosts=("127.0.0.1",)))
            assert type(error) is SourceDenied
            assert "redirects" in str(error)
            assert visits == []


# a real camera


@pytest.mark.server
@pytest.mark.parametrize("transport", ["tcp", "udp", "http"])
async def test_a_camera_is_read_over_every_transport(rtsp_camera, transport):
    frames = await some_frames(f"{rtsp_camera.url}#transport={transport}", 4)
    assert all(b.pts > a.pts for a, b in pairwise(frames))


@pytest.mark.server
async def test_a_camera_s_certificate_is_verified_unless_it_is_said_otherwise(
    tmp_path, scene_video, rtsp_camera, monkeypatch
):
    certificate = write_certificate(tmp_path / "camera.pem", "127.0.0.1", "localhost")
    locked = RtspCamera(scene_video, user="me", password="sesame", certificate=certificate)
    with locked as camera:
        url = f"rtsps://me:sesame@{camera.address}"
        error = await failure_of(url)
        assert isinstance(error, SourceUnavailable)
        assert "#verify=false" in str(error)
        assert await some_frames(f"{url}#verify=false", 2)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        by_name = url.replace("127.0.0.1", "localhost")
        assert await some_frames(by_name, 2)
        assert await some_frames(by_name, 2, access=Access(hosts=("localhost",)))
        certificate = write_certificate(tmp_path / "other.pem", "camera.test")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "certificate" in str(await failure_of(url))


@pytest.mark.server
async def test_a_camera_is_reached_at_the_address_that_was_checked_or_not_at_all(rtsp_camera):
    by_name = rtsp_camera.url.replace("127.0.0.1", "localhost")
    assert await some_frames(by_name, 2, access=Access(hosts=("localhost",)))
    for access in (Access(hosts=("10.0.0.0/8",)), EVERYTHING.for_strangers()):
        assert type(await failure_of(rtsp_camera.url, access=access)) is SourceDenied
    udp = f"{by_name}#transport=udp"
    assert type(await failure_of(udp, access=Access(hosts=("localhost",)))) is SourceDenied


@pytest.mark.server
async def test_a_camera_is_shown_in_real_time(rtsp_camera):
    frames = await some_frames(rtsp_camera.url, 8)
    assert all(b.pts > a.pts and b.captured_at > a.captured_at for a, b in pairwise(frames))
    assert all(0 <= frame.pts < 30 and frame.image.shape == (240, 240, 3) for frame in frames)
    originals = [Scene(7).render(i / 10, 240).astype(int) for i in range(40)]
    for frame in frames:
        assert min(np.abs(original - frame.image).mean() for original in originals) < 6


@pytest.mark.server
async def test_frames_nobody_takes_are_replaced_by_newer_ones_and_counted(rtsp_camera):
    dropped = FRAMES_DROPPED.labels("lazy", "superseded")
    async with asyncio.timeout(30), source_of(rtsp_camera.url, "lazy") as source:
        assert source.is_live
        frames = source.frames()
        first = await anext(frames)
        await some_frames(rtsp_camera.url, 10)  # as long as that nobody asks for more
        before = dropped._value.get()
        assert (await anext(frames)).pts > first.pts + 0.5
        assert dropped._value.get() >= before + 5


@pytest.mark.server
async def test_the_right_password_opens_and_a_wrong_one_is_denied_and_never_shown(
    scene_video, rtsp_camera, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    with RtspCamera(scene_video, user="me", password=PASSWORD) as locked:
        await some_frames(f"rtsp://me:{ENCODED}@{locked.address}", 1)
        for credentials in ("me:sesame@", "you:sesame@", ""):
            error = await failure_of(f"rtsp://{credentials}{locked.address}")
            assert type(error) is SourceDenied
            assert "user and password" in str(error)
            assert "sesame" not in str(error) + caplog.text + "".join(capfd.readouterr())
    assert PASSWORD not in caplog.text
    assert ENCODED not in caplog.text


@pytest.mark.server
async def test_a_wrong_path_and_a_dead_camera_are_unavailable(rtsp_camera):
    error = await failure_of(rtsp_camera.url + "x")
    assert isinstance(error, SourceUnavailable)
    assert "check the path" in str(error)
    async with asyncio.timeout(30), source_of(rtsp_camera.url) as source:
        frames = source.frames()
        await anext(frames)
        rtsp_camera.kill()
        with pytest.raises(SourceUnavailable, match=r"^rtsp://[^\n]*$"):
            async for _ in frames:
                pass


@pytest.mark.server
async def test_a_frozen_camera_can_be_left_and_leaves_no_thread(rtsp_camera):
    before = threads()
    async with asyncio.timeout(30):

        async def watch():
            async with source_of(rtsp_camera.url) as source:
                async for _ in source.frames():
                    watching.set()

        watching = asyncio.Event()
        reading = asyncio.create_task(watch())
        await watching.wait()
        rtsp_camera.freeze()
        opening = asyncio.create_task(source_of(rtsp_camera.url).__aenter__())
        for task in (opening, reading):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await until(lambda: threads() == before)


@pytest.mark.server
async def test_a_camera_that_pauses_shortly_goes_on_in_the_same_connection(rtsp_camera):
    async with asyncio.timeout(30), source_of(rtsp_camera.url) as source:
        frames = source.frames()
        last = await anext(frames)
        rtsp_camera.freeze()
        newest = asyncio.create_task(anext(frames))
        while True:
            done, _ = await asyncio.wait([newest], timeout=2.0)
            if not done:
                break
            last, newest = newest.result(), asyncio.create_task(anext(frames))
        rtsp_camera.thaw()
        while (await newest).pts < last.pts + 2:
            newest = asyncio.create_task(anext(frames))


@pytest.mark.server
async def test_opening_and_closing_leaves_no_thread_and_no_file(rtsp_camera, scene_video):
    urls = [rtsp_camera.url, f"file://{scene_video}", rtsp_camera.url + "x"]

    async def cycle():
        for url in urls:
            async with asyncio.timeout(20):
                try:
                    await some_frames(url, 1)
                except SourceUnavailable:
                    assert url.endswith("x")

    await cycle()
    gc.collect()
    files, running = open_files(), threads()
    for _ in range(10):
        await cycle()
    gc.collect()
    assert await until(lambda: threads() <= running)
    assert await until(lambda: open_files() <= files + 1)
    assert await until(lambda: not decoders())
