"""Facts about video over HTTP: what is shown, who is connected to, who is believed, and what ends in one clear line."""

import asyncio
import gc
import gzip
import hashlib
import re
import ssl
import subprocess
import zlib
from itertools import pairwise

import av
import numpy as np
import pytest

from stream_sttm.errors import NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.sources import open_source
from stream_sttm.sources.decoding.playout import played
from stream_sttm.sources.decoding.protocol import Limits
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.scene import Scene
from tests.support.http_server import site, write_certificate, write_playlist
from tests.support.resources import decoders, open_files, threads, until
from tests.support.rtsp_server import write_video

HERE = Access(hosts=("127.0.0.1", "localhost"))


async def frames_of(url, count=None, **options):
    source = open_source(url, stream="web", fps=30, max_side=640, **options)
    async with asyncio.timeout(40), source:
        frames = []
        async for frame in source.frames():
            frames.append(frame)
            if len(frames) == count:
                break
        return frames


async def failure_of(url, **options):
    with pytest.raises(SourceError) as caught:
        await frames_of(url, **options)
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Four seconds of 10 frames, whose index stands at the end of the file."""
    folder = tmp_path_factory.mktemp("web")
    return write_video(folder / "x.mp4", Scene(1).render, size=96).read_bytes()


@pytest.fixture(scope="module")
def playlist(tmp_path_factory):
    """The files of a playlist of four segments, by name."""
    folder = write_playlist(tmp_path_factory.mktemp("hls")).parent
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def publish(served, files, under="/"):
    for name, content in files.items():
        served.pages[under + name] = content


# what is shown


async def test_a_file_whose_index_is_at_its_end_is_read_by_ranges(video):
    async with site() as served:
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)
        assert len(await frames_of(served.url("/x.mp4"))) == 40
        assert any("Range: bytes=" in head for head in served.seen)


async def test_a_closed_playlist_is_a_file_with_every_frame(playlist):
    async with site() as served:
        publish(served, playlist)
        source = open_source(served.url("/live.m3u8"), stream="x", fps=30, max_side=640)
        async with source, asyncio.timeout(30):
            assert not source.is_live
            frames = [frame async for frame in source.frames()]
    assert [round(frame.pts, 2) for frame in frames] == [i / 10 for i in range(40)]


@pytest.mark.parametrize("kind", ["application/vnd.apple.mpegurl", "text/plain"])
async def test_a_playlist_is_known_by_its_type_or_its_first_line(playlist, kind):
    async with site() as served:
        publish(served, playlist)
        served.pages["/play"] = (200, [f"Content-Type: {kind}; x=y"], playlist["live.m3u8"])
        assert len(await frames_of(served.url("/play?session=1"), 3)) == 3


async def test_an_open_playlist_is_live_and_goes_on_with_its_next_segments(playlist):
    lines = playlist["live.m3u8"].decode().replace("#EXT-X-ENDLIST\n", "")
    heads, segments = lines[: lines.index("#EXTINF")], re.findall(r"#EXTINF.*\n.*\n", lines)
    asked = 0

    async def page(_head, writer):
        nonlocal asked
        asked += 1
        body = (heads + "".join(segments[: 1 + asked])).encode()
        writer.write(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with site() as served:
        publish(served, playlist)
        served.pages["/live.m3u8"] = page
        source = open_source(served.url("/live.m3u8"), stream="x", fps=30, max_side=640)
        async with source, asyncio.timeout(30):
            assert source.is_live
            times = []
            async for frame in source.frames():
                times.append(frame.pts)
                if any("/live3.ts" in head for head in served.seen) and len(times) > 5:
                    break
    assert asked > 1
    assert all(b > a for a, b in pairwise(times))


async def test_a_kept_connection_that_closes_under_a_request_costs_nothing(playlist):
    async with site() as served:
        publish(served, playlist)
        kept = served.pages["/live1.ts"]
        refused = []

        async def page(head, writer):
            if refused:
                writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + kept)
            refused.append(head)

        served.pages["/live1.ts"] = page
        assert len(await frames_of(served.url("/live.m3u8"))) == 40
        assert len(refused) == 2


class Tick:
    """A packet of one tenth of a second's clock."""

    def __init__(self, dts):
        self.dts, self.pts, self.time_base = dts, dts, 0.1


def test_packets_of_a_burst_are_given_out_when_their_time_has_come():
    clock = [100.0]

    def pause(seconds):
        clock[0] += seconds
        return True

    packets = played([Tick(i) for i in (50, 51, 52, 60)], pause, lambda: clock[0])
    given = [(packet.dts, round(clock[0], 6)) for packet in packets]
    assert given == [(50, 100.0), (51, 100.1), (52, 100.2), (60, 101.0)]


def test_a_burst_that_is_late_or_jumps_is_not_held_and_an_unwanted_one_is_left():
    clock, pauses = [100.0], []

    def pause(seconds):
        pauses.append(seconds)
        return False

    packets = [Tick(0), Tick(None), Tick(9000), Tick(-9000), Tick(-8999), Tick(-8998)]
    given = [packet.dts for packet in played(packets, pause, lambda: clock[0])]
    assert given == [0, None, 9000, -9000]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "begins", [[b"--x\r\n"], [b"\r\n--x\r\n"], [b"\r\n", b"-", b"-x", b"\r\n"]]
)
async def test_motion_jpeg_is_known_by_its_type_however_it_begins(tmp_path, begins):
    path = write_video(tmp_path / "x.avi", Scene(1).render, codec="mjpeg", size=96)
    with av.open(str(path)) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]

    async def page(_head, writer):
        kind = b"Content-Type: multipart/x-mixed-replace;boundary=x\r\n\r\n"
        writer.write(b"HTTP/1.0 200 OK\r\n" + kind)
        for begun in begins:  # each a segment of its own
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(begun)
        for picture in pictures * 10:
            writer.write(b"Content-Type: image/jpeg\r\n\r\n" + picture + b"\r\n--x\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with site() as served:
        served.pages["/"] = page
        assert (await frames_of(served.url("/"), 4))[3].image.shape == (96, 96, 3)


# who is asked, and what for


async def test_redirects_are_followed_and_a_playlist_is_relative_to_where_they_led(playlist):
    async with site() as first, site() as second:
        publish(second, playlist, "/deep/")
        first.pages["/x"] = (302, ["Location: /y"], b"")
        first.pages["/y"] = (307, [f"Location: {second.url('/deep/live.m3u8')}"], b"")
        assert len(await frames_of(first.url("/x"), 3)) == 3


@pytest.mark.parametrize(
    ("location", "kind", "message"),
    [
        ("/x", SourceUnavailable, "redirects more than 5 times"),
        ("file:///etc/passwd", NotVideo, "not HTTP"),
        ("rtsp://127.0.0.1/", NotVideo, "not HTTP"),
        ("http://[bad/", SourceError, ""),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_one_line(location, kind, message):
    async with site() as served:
        served.pages["/x"] = (302, [f"Location: {location}"], b"")
        error = await failure_of(served.url("/x", "me:sesame@"))
        assert isinstance(error, kind)
        assert message in str(error)


async def test_neither_a_redirect_nor_a_playlist_leads_to_where_no_source_may_go(playlist, video):
    async with site() as served, site("127.0.0.2") as forbidden:
        forbidden.pages["/x.mp4"] = forbidden.pages["/live0.ts"] = video
        served.pages["/hop"] = (302, [f"Location: {forbidden.url('/x.mp4')}"], b"")
        leading = playlist["live.m3u8"].replace(b"live0.ts", forbidden.url("/live0.ts").encode())
        served.pages["/live.m3u8"] = leading
        for path in ("/hop", "/live.m3u8"):
            error = await failure_of(served.url(path), access=HERE)
            assert type(error) is SourceDenied
            assert "sources.hosts" in str(error)
        assert forbidden.seen == []


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (b"file:///etc/passwd.ts", "not HTTP"),
        (b"rtsp://127.0.0.1/live.ts", ""),
        (b'#EXT-X-KEY:METHOD=AES-128,URI="key.bin"\nlive0.ts', "encrypted"),
    ],
)
async def test_what_a_playlist_may_not_name_is_not_opened(playlist, segment, message):
    async with site() as served:
        publish(served, playlist)
        served.pages["/key.bin"] = bytes(16)
        text = playlist["live.m3u8"]
        if b"KEY" in segment:
            text = text.replace(b"#EXTINF", segment.partition(b"\n")[0] + b"\n#EXTINF", 1)
        else:
            text = re.sub(rb"live\d.ts", segment, text)
        served.pages["/live.m3u8"] = text
        assert message in str(await failure_of(served.url("/live.m3u8")))


async def test_a_file_that_is_a_playlist_leads_nowhere_either(tmp_path, playlist):
    (tmp_path / "in").mkdir()
    async with site() as served:
        publish(served, playlist)
        for target in (served.url("/live0.ts"), str(tmp_path / "secret.ts")):
            (tmp_path / "secret.ts").write_bytes(playlist["live0.ts"])
            text = re.sub(rb"live\d.ts", target.encode(), playlist["live.m3u8"])
            (tmp_path / "in" / "x.m3u8").write_bytes(text)
            access = Access(folders=(str(tmp_path / "in"),))
            await failure_of(f"file://{tmp_path}/in/x.m3u8", access=access)
        assert served.seen == []


async def test_a_name_is_resolved_once_checked_and_still_called_by_its_name(video):
    async with site() as served:
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)
        port = served.address.partition(":")[2]
        assert await frames_of(f"http://localhost:{port}/x.mp4", 2, access=HERE)
        assert all(f"Host: localhost:{port}\r\n" in head for head in served.seen)


def _digest_page(user, password, video):
    async def page(head, writer):
        given = dict(re.findall(r'(\w+)="?([^",\r]+)', head.partition("uthorization: Digest ")[2]))
        a1 = hashlib.md5(f"{user}:cam:{password}".encode()).hexdigest()
        a2 = hashlib.md5(f"GET:{given.get('uri')}".encode()).hexdigest()
        told = [a1, "n0nce", given.get("nc"), given.get("cnonce"), "auth", a2]
        wanted = hashlib.md5(":".join(map(str, told)).encode()).hexdigest()
        if given.get("response") == wanted:
            writer.write(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(video) + video)
        else:
            demand = b'WWW-Authenticate: Digest realm="cam", nonce="n0nce", qop="auth"\r\n'
            writer.write(b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n" + demand + b"\r\n")
        await writer.drain()

    return page


async def test_user_and_password_are_told_as_the_camera_demands_it(tmp_path):
    video = write_video(tmp_path / "x.mkv", Scene(1).render, size=96).read_bytes()
    async with site() as served:
        served.pages["/x.mkv"] = _digest_page("me", "open/sesame", video)
        assert await frames_of(served.url("/x.mkv", "me:open%2Fsesame@"), 2)
        assert type(await failure_of(served.url("/x.mkv", "me:sesame@"))) is SourceDenied
        assert "Basic" not in "".join(served.seen)


async def test_a_password_goes_to_the_camera_and_to_nobody_it_names():
    async with site() as served, site() as other:
        served.pages["/x"] = (302, [f"Location: {other.url('/y')}"], b"")
        other.pages["/y"] = (401, ['WWW-Authenticate: Basic realm="x"'], b"")
        assert type(await failure_of(served.url("/x", "me:sesame@"))) is SourceDenied
        assert "uthorization" not in "".join(other.seen)


# who is believed


async def test_a_certificate_that_nobody_vouches_for_is_refused_unless_it_is_said_otherwise(
    tmp_path, monkeypatch, video
):
    certificate = write_certificate(tmp_path / "camera.pem", "127.0.0.1")
    async with site(certificate=certificate) as served:
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)
        error = await failure_of(served.url("/x.mp4", "me:sesame@"))
        assert isinstance(error, SourceUnavailable)
        assert "#verify=false" in str(error)
        assert served.seen == []
        assert await frames_of(served.url("/x.mp4#verify=false"), 2)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        for access in (EVERYTHING, HERE):
            assert await frames_of(served.url("/x.mp4"), 2, access=access)


async def test_a_certificate_for_another_name_is_refused(tmp_path, monkeypatch, video):
    certificate = write_certificate(tmp_path / "camera.pem", "camera.test", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with site(certificate=certificate) as served:
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)
        assert "certificate" in str(await failure_of(served.url("/x.mp4")))
        named = served.url("/x.mp4").replace("127.0.0.1", "localhost")
        for access in (EVERYTHING, HERE):
            assert await frames_of(named, 2, access=access)


def test_a_store_of_authorities_is_there():
    from stream_sttm.sources.network import tls

    assert ssl.create_default_context(cafile=tls.authorities()).get_ca_certs()


# trouble


async def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    async with site() as served:
        served.pages["/x"] = path.read_bytes()
        error = await failure_of(served.url("/x"))
    assert type(error) is NotVideo
    assert "no video stream" in str(error)


async def test_opening_and_closing_leaves_no_thread_and_no_file(playlist, video):
    async with site() as served:
        publish(served, playlist)
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)

        async def cycle():
            for path in ("/live.m3u8", "/x.mp4"):
                await frames_of(served.url(path), 2)
            await failure_of(served.url("/none"))

        await cycle()
        gc.collect()
        files, running = open_files(), threads()
        for _ in range(5):
            await cycle()
        gc.collect()
        assert await until(lambda: threads() <= running)
        assert await until(lambda: open_files() <= files + 4)  # the server's ends, while they close
        assert await until(lambda: not decoders())


async def test_headers_without_end_are_given_up():
    sent = 0

    async def page(_head, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 1000 + b"\r\n")
            await writer.drain()
            sent += 1000

    async with site() as served:
        served.pages["/x"] = page
        error = await failure_of(served.url("/x"), limits=Limits(open=2.0))
        assert isinstance(error, SourceUnavailable)
        assert sent < 50_000_000
    assert await until(lambda: not decoders())


@pytest.mark.parametrize("pause", [0.05, None])
async def test_a_server_that_dribbles_or_falls_silent_is_given_up(pause):
    async def page(_head, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100))
        await writer.drain()
        while pause is not None:
            writer.write(b"\0")
            await writer.drain()
            await asyncio.sleep(pause)
        await asyncio.Event().wait()

    async with site() as served:
        served.pages["/x"] = page
        error = await failure_of(served.url("/x"), limits=Limits(open=0.5, silence=1.0))
        assert isinstance(error, SourceUnavailable)
        assert "no data" in str(error) or "in time" in str(error)
    assert await until(lambda: not decoders())


# servers as they are


def _ranges(body, *, whole_at_start=False, lies=False, says="Accept-Ranges: bytes", shift=0):
    """A page that takes ranges; one that `lies` sends the whole; `shift` begins earlier than asked."""

    async def page(head, writer):
        asked = re.search(r"[Rr]ange: bytes=(\d+)-(\d*)", head)
        first, last = (int(asked[1]), asked[2]) if asked else (0, "")
        if asked and not lies and (first or last or not whole_at_start):
            first, end = max(0, first - shift), int(last) + 1 if last else len(body)
            part = body[first:end]
            lines = ["206 x", f"Content-Range: bytes {first}-{end - 1}/{len(body)}"]
        else:
            part, lines = body, ["200 x"]
        lines += [says] if says else []
        text = "\r\n".join(["HTTP/1.1 " + lines[0], *lines[1:], f"Content-Length: {len(part)}"])
        writer.write(text.encode() + b"\r\nConnection: close\r\n\r\n" + part)
        await writer.drain()

    return page


RANGES = [
    {},
    {"whole_at_start": True},
    {"lies": True},
    {"says": ""},
    {"says": "accept-ranges: Bytes", "shift": 10},
]


NO_RANGES = {"lies": True, "says": "Accept-Ranges: none"}


@pytest.mark.parametrize("server", [*RANGES, NO_RANGES, {"lies": True, "says": ""}])
async def test_a_file_with_its_index_at_the_end_is_read_however_ranges_are_answered(video, server):
    async with site() as served:
        served.pages["/x.mp4"] = _ranges(video, **server)
        assert len(await frames_of(served.url("/x.mp4"))) == 40


def _program_stream(folder):
    """An MPEG program stream, as recorders write it: FFmpeg goes back to its start after looking at it."""
    path = folder / "x.mpg"
    with av.open(str(path), "w", format="mpeg") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for index in range(50):
            image = Scene(1).render(index / 25, 96)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize("server", RANGES)
async def test_what_goes_back_to_its_start_is_read_however_ranges_are_answered(tmp_path, server):
    async with site() as served:
        served.pages["/x.mpg"] = _ranges(_program_stream(tmp_path), **server)
        assert len(await frames_of(served.url("/x.mpg"))) > 40


@pytest.fixture(scope="module")
def fragmented(tmp_path_factory):
    """A playlist of fragmented MP4, and one of byte ranges of a single file."""
    folder = tmp_path_factory.mktemp("cmaf")
    options = {"hls_time": "1", "hls_list_size": "0", "hls_segment_type": "fmp4"}
    for name, more in (("cmaf", {}), ("one", {"hls_flags": "single_file"})):
        with av.open(
            str(folder / f"{name}.m3u8"), "w", format="hls", options=options | more
            | {"hls_fmp4_init_filename": f"{name}-init.mp4"},
        ) as container:  # fmt: skip
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = 96
            stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 10
            for index in range(40):
                image = Scene(1).render(index / 10, 96)
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("server", [*RANGES, NO_RANGES])
@pytest.mark.parametrize("name", ["cmaf", "one"])
async def test_segments_of_fragmented_mp4_are_read_however_ranges_are_answered(
    fragmented, name, server
):
    async with site() as served:
        publish(served, {path: _ranges(body, **server) for path, body in fragmented.items()})
        assert len(await frames_of(served.url(f"/{name}.m3u8"))) == 40


def _raw_deflate(body):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZip, identity", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", _raw_deflate),
        ("identity", bytes),
    ],
)
async def test_what_is_packed_though_nobody_asked_is_unpacked(playlist, coding, pack):
    async with site() as served:
        packed = {
            name: (200, [f"Content-Encoding: {coding}", "Accept-Ranges: bytes"], pack(body))
            for name, body in playlist.items()
        }
        publish(served, packed)
        assert len(await frames_of(served.url("/live.m3u8"))) == 40


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br"])
async def test_a_packing_that_is_not_known_is_named(coding):
    async with site() as served:
        served.pages["/x"] = (200, [f"Content-Encoding: {coding}"], b"packed")
        error = await failure_of(served.url("/x"))
        assert type(error) is NotVideo
        assert f"Content-Encoding {coding!r}" in str(error)


async def test_what_unpacks_without_end_does_not_take_the_memory():
    async with site() as served:
        headers = ["Content-Encoding: gzip", "Content-Type: application/vnd.apple.mpegurl"]
        served.pages["/x"] = (200, headers, gzip.compress(bytes(300 << 20)))
        assert isinstance(await failure_of(served.url("/x")), SourceError)
    assert await until(lambda: not decoders())


async def test_a_camera_that_knows_no_request_but_get_is_asked_no_other(video):
    async with site() as served:
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)
        assert await frames_of(served.url("/x.mp4"), 2)
        assert {head.partition(" ")[0] for head in served.seen} == {"GET"}


# servers as they are


@pytest.fixture(scope="module")
def fmp4(tmp_path_factory):
    """A closed playlist of fragmented MP4, whose initialisation is sought back to."""
    folder = tmp_path_factory.mktemp("fmp4")
    source = write_video(folder / "x.mp4", Scene(1).render, size=96)
    command = ["ffmpeg", "-loglevel", "error", "-i", source, "-c", "copy", "-f", "hls"]
    options = ["-hls_segment_type", "fmp4", "-hls_time", "1", "-hls_list_size", "0"]
    subprocess.run([*command, *options, folder / "live.m3u8"], check=True, cwd=folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".mp4"} | {
        "init.mp4": (folder / "init.mp4").read_bytes()
    }


def whole_for_the_first_range(body):
    """A server that answers a range from byte 0 with all of it, as the RFC allows, and others with the range."""

    async def page(head, writer):
        asked = re.search(r"(?mi)^range: bytes=(\d+)-", head)
        first = int(asked[1]) if asked else 0
        status = 206 if first else 200
        lines = (
            f"HTTP/1.1 {status} x\r\nAccept-Ranges: bytes\r\nContent-Length: {len(body) - first}"
        )
        writer.write(lines.encode() + b"\r\n\r\n" + body[first:])
        await writer.drain()

    return page


def no_ranges_after_all(body):
    """A server that names ranges and then sends all of it whatever is asked."""
    head = f"HTTP/1.1 200 x\r\nAccept-Ranges: bytes\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def page(_head, writer):
        writer.write(head + body)
        await writer.drain()

    return page


RANGES = {
    "ranges": lambda body: (200, ["Accept-Ranges: bytes"], body),
    "none": lambda body: (200, [], body),
    "whole for the first": whole_for_the_first_range,
    "none after all": no_ranges_after_all,
}


@pytest.mark.server
@pytest.mark.parametrize("ranges", sorted(RANGES))
async def test_segments_of_fragmented_mp4_are_read_whatever_a_server_makes_of_ranges(fmp4, ranges):
    async with site() as served:
        for name, content in fmp4.items():
            served.pages[f"/{name}"] = RANGES[ranges](content)
        assert len(await frames_of(served.url("/live.m3u8"))) == 40


@pytest.mark.parametrize("ranges", ["ranges", "whole for the first", "none after all"])
async def test_a_file_is_sought_in_whatever_a_server_makes_of_ranges(video, ranges):
    async with site() as served:
        served.pages["/x.mp4"] = RANGES[ranges](video)
        assert len(await frames_of(served.url("/x.mp4"))) == 40


@pytest.mark.parametrize(
    ("name", "encode"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)],
)
async def test_what_a_server_compresses_unasked_is_read(playlist, name, encode):
    async with site() as served:
        publish(served, playlist)
        encoded = encode(playlist["live.m3u8"])
        served.pages["/live.m3u8"] = (200, [f"Content-Encoding: {name}"], encoded)
        assert len(await frames_of(served.url("/live.m3u8"))) == 40


async def test_an_encoding_that_is_not_known_is_named(playlist):
    async with site() as served:
        served.pages["/live.m3u8"] = (200, ["Content-Encoding: br"], playlist["live.m3u8"])
        failure = await failure_of(served.url("/live.m3u8"))
    assert isinstance(failure, NotVideo)
    assert "'br'" in str(failure)


async def test_a_camera_that_hangs_up_on_head_is_asked_by_get(video):
    async with site() as served:
        served.pages["/x.mp4"] = (200, ["Accept-Ranges: bytes"], video)
        served.hangs_up_on_head = True
        assert len(await frames_of(served.url("/x.mp4"), 3)) == 3


@pytest.mark.parametrize(
    ("before", "head", "after"),
    [
        (b"", b"--x\r\nContent-Type: image/jpeg\r\n\r\n", b"\r\n"),
        (b"Content-Type: image/jpeg\r\n\r\n", b"", b"\r\n--x\r\nContent-Type: image/jpeg\r\n\r\n"),
        (b"", b"--x\r\n\r\n", b"\r\n"),
        (b"", b"--x\r\nContent-Type: image/jpg\r\n\r\n", b"\r\n"),
        (b"", b"x\r\nContent-Type: image/jpeg\r\n\r\n", b"\r\n"),
        (b"", b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: 7\r\n\r\n", b"\r\n"),
        (b"", b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: 9999999\r\n\r\n", b"\r\n"),
        (b"", b"", b""),
    ],
    ids=["plain", "no first", "no type", "jpg", "no dashes", "short length", "long length", "bare"],
)
async def test_motion_jpeg_is_shown_however_its_parts_are_written(tmp_path, before, head, after):
    path = write_video(tmp_path / "x.avi", Scene(1).render, codec="mjpeg", size=96)
    with av.open(str(path)) as container:
        pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]

    async def page(_head, writer):
        kind = b"Content-Type: multipart/x-mixed-replace;boundary=x\r\n\r\n"
        writer.write(b"HTTP/1.0 200 OK\r\n" + kind + before)
        for picture in pictures * 10:
            writer.write(head + picture + after)
            await writer.drain()
            await asyncio.sleep(0.02)

    async with site() as served:
        served.pages["/"] = page
        frames = await frames_of(served.url("/"), 4)
    assert frames[3].image.shape == (96, 96, 3)
