"""Facts about pulling WebRTC: real peers on the loopback, and every way in which the other side may misbehave."""

import asyncio
import gc
from contextlib import asynccontextmanager
from itertools import pairwise

import httpx
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from stream_sttm.demo.camera import open_camera
from stream_sttm.errors import NotVideo, SourceDenied, SourceUnavailable
from stream_sttm.metrics import FRAMES_DROPPED
from stream_sttm.sources import open_source
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.webrtc.signalling import Answer
from tests.support.http_server import site, write_certificate
from tests.support.resources import open_files, threads, until

SECRET = "p@ss wörd"
ENCODED = "p%40ss%20w%C3%B6rd"


def pull(url, stream="cam", fps=10):
    return open_source(url, stream=stream, fps=fps, max_side=640)


@asynccontextmanager
async def impostor(answer):
    """An HTTP server that answers every request with what `answer(body)` returns; yields its WHEP address."""

    async def talk(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(x.split(b":")[1])
                    for x in head.lower().split(b"\r\n")
                    if b"content-length" in x
                ),
                0,
            )
            body = (await reader.readexactly(length)).decode()
            status, headers, text = await answer(body)
            lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(text.encode())}", *headers]
            writer.write("\r\n".join([*lines, "Connection: close", "", text]).encode())
            await writer.drain()
        finally:
            writer.close()

    tasks = set()

    def accept(reader, writer):
        tasks.add(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"whep://127.0.0.1:{server.sockets[0].getsockname()[1]}/cam/whep"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def always(status, text="", *headers):
    async def answer(_body):
        return status, headers, text

    return answer


async def test_frames_show_what_the_camera_shows_then():
    async with open_camera(Scene(7)) as camera, asyncio.timeout(20):
        async with pull(camera.url) as source:
            assert source.is_live
            frames = []
            async for frame in source.frames():
                frames.append(frame)
                if len(frames) == 8:
                    break
        for frame in frames[2:]:
            then = camera.scene.render(camera.scene_time(frame.captured_at), 480).astype(int)
            assert np.abs(then - frame.image).mean() < 8
        assert all(b.pts > a.pts and b.captured_at > a.captured_at for a, b in pairwise(frames))
        assert frames[0].pts >= 0


async def test_what_is_raised_while_it_is_open_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with open_camera(Scene(7), size=96) as camera, pull(camera.url):
            raise KeyError


@pytest.mark.parametrize(
    "offer", [b"", b"<html>", b"\xff\xfe", b"v=0\r\nm=video\r\n", b"v=0\r\n" * 999]
)
async def test_the_camera_refuses_what_is_no_offer(offer):
    async with open_camera(Scene(7), size=96) as camera, httpx.AsyncClient() as client:
        answer = await client.post(camera.url.replace("whep", "http", 1), content=offer)
        assert (answer.status_code, camera.viewers) == (400, 0)
        gone = await client.delete(camera.url.replace("whep", "http", 1) + "/nobody")
        assert gone.status_code == 404


async def test_pictures_are_scaled_at_the_source():
    async with open_camera(Scene(7), size=320) as camera, asyncio.timeout(20):
        source = open_source(camera.url, stream="cam", fps=5, max_side=100)
        async with source:
            frame = await anext(source.frames())
        assert frame.image.shape == (100, 100, 3)


async def test_leaving_ends_the_session_on_the_camera_too():
    async with open_camera(Scene(7)) as camera, asyncio.timeout(20):
        async with pull(camera.url) as source:
            await anext(source.frames())
            assert camera.viewers == 1
        assert camera.viewers == 0


async def test_a_camera_that_hangs_up_is_unavailable():
    async with open_camera(Scene(7)) as camera, asyncio.timeout(20), pull(camera.url) as source:
        frames = source.frames()
        await anext(frames)
        await camera.close()
        with pytest.raises(SourceUnavailable, match="ended the stream"):
            async for _ in frames:
                pass


async def test_frames_nobody_takes_are_replaced_by_newer_ones_and_counted():
    dropped = FRAMES_DROPPED.labels("slow", "superseded")
    before = dropped._value.get()
    async with (
        open_camera(Scene(7), fps=20, size=96) as camera,
        asyncio.timeout(20),
        pull(camera.url, "slow", fps=20) as source,
    ):
        frames = source.frames()
        first = await anext(frames)
        assert await until(lambda: dropped._value.get() >= before + 5)
        newer = await anext(frames)
        assert newer.pts - first.pts > 5 / 20 - 0.1


@pytest.mark.parametrize("form", ["whep://user:{}@{}", "whep://{1}?token={0}"])
async def test_the_password_in_the_url_opens_the_stream(form):
    async with open_camera(Scene(7), password=SECRET) as camera, asyncio.timeout(20):
        url = form.format(ENCODED, camera.url.removeprefix("whep://"))
        if "token" in form:
            url = url.replace(ENCODED, "plain")
            camera._password = "plain"
        async with pull(url) as source:
            await anext(source.frames())


@pytest.mark.parametrize("form", ["whep://user:sesame@{}", "whep://{}?token=sesame", "whep://{}"])
async def test_a_wrong_or_missing_password_is_denied_and_never_shown(form, caplog):
    caplog.set_level("DEBUG")
    async with open_camera(Scene(7), password=SECRET) as camera, asyncio.timeout(20):
        url = form.format(camera.url.removeprefix("whep://"))
        with pytest.raises(SourceDenied, match=r"^[^\n]*401[^\n]*$") as caught:
            async with pull(url):
                pass
        assert "sesame" not in str(caught.value) + caplog.text
        assert camera.viewers == 0


NO_CANDIDATES = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (always(403), SourceDenied, "403"),
        (always(404), SourceUnavailable, "no such stream"),
        (always(503), SourceUnavailable, "503"),
        (always(200, "<html>hello</html>"), NotVideo, "is it a WHEP address"),
        (always(303, "", "Location: /elsewhere"), NotVideo, "303"),
        (always(201, "v=0 and then rubbish\r\nm=\r\n"), NotVideo, "can't be used"),
        (
            always(201, NO_CANDIDATES + "m=video 9 x 96\r\na=fmtp:97 x=1\r\n"),
            NotVideo,
            "can't be used",
        ),
        (always(201, NO_CANDIDATES), NotVideo, "can't be used"),
        (always(201, "v=0\r\n" + "a=x\r\n" * 20_000), NotVideo, "can't be used"),
        (always(201, "v=0\r\n" + "a=x\r\n" * 200_000), NotVideo, "without SDP"),
        (always(201, NO_CANDIDATES, "Location: http://[bad"), NotVideo, "can't be used"),
    ],
)
async def test_every_wrong_answer_is_one_clear_line(answer, error, message):
    async with impostor(answer) as url, asyncio.timeout(20):
        with pytest.raises(error, match=r"^[^\n]*$") as caught:
            async with pull(url.replace("whep://", "whep://me:sesame@")):
                pass
        assert message in str(caught.value)
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "location", "ended"),
    [
        ("/door/whep", "/door/whep/7f3a", "/door/whep/7f3a"),  # MediaMTX
        ("/api/webrtc?src=door", "webrtc?id=1", "/api/webrtc?id=1"),  # go2rtc
    ],
)
async def test_the_addresses_of_media_servers_are_posted_to_as_they_are(path, location, ended):
    asked = []

    async def talk(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split(" HTTP/")[0])
        if head.startswith("POST"):
            assert "Content-Type: application/sdp\r\n" in head
            body = NO_CANDIDATES
            text = f"HTTP/1.1 201 x\r\nLocation: {location}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        else:
            text = "HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n"
        writer.write(text.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server, asyncio.timeout(20):
        port = server.sockets[0].getsockname()[1]
        for url in (f"whep://127.0.0.1:{port}{path}", f"webrtc:http://127.0.0.1:{port}{path}"):
            with pytest.raises(NotVideo):
                async with pull(url):
                    pass
            assert asked == [f"POST {path}", f"DELETE {ended}"]
            asked.clear()


async def test_a_camera_is_pulled_at_the_address_that_was_checked_or_not_at_all():
    here = Access(hosts=("localhost",))
    async with open_camera(Scene(7), size=96) as camera, asyncio.timeout(20):
        url = camera.url.replace("127.0.0.1", "localhost")
        options = {"stream": "cam", "fps": 10, "max_side": 640}
        with pytest.raises(SourceDenied, match="private"):
            async with open_source(url, access=EVERYTHING.for_strangers(), **options):
                pass
        source = open_source(url, access=here, **options)
        answer = "v=0\r\na=candidate:1 1 udp 1 {} 9 typ host\r\n"
        here_only = open_source(url, access=Access(hosts=("10.0.0.0/8",)), **options)
        assert "candidate" in here_only._allowed(
            Answer(answer.format("10.1.1.1"), "localhost", None)
        )
        for address in ("127.0.0.1", "192.168.1.1", "x.local", ""):
            assert "candidate" not in here_only._allowed(
                Answer(answer.format(address), "localhost", None)
            )
        async with source:
            assert (await anext(source.frames())).image.shape == (96, 96, 3)
        assert camera.viewers == 0


async def test_a_certificate_that_nobody_vouches_for_is_refused_unless_it_is_said_otherwise(
    tmp_path,
):
    async with site(certificate=write_certificate(tmp_path / "x.pem", "127.0.0.1")) as served:
        url = served.url("/cam/whep").replace("https", "wheps")
        with pytest.raises(SourceUnavailable, match="verify=false"):
            async with pull(url):
                pass
        with pytest.raises(SourceUnavailable, match="404"):
            async with pull(f"{url}#verify=false"):
                pass


async def test_a_camera_without_video_is_not_video():
    peers = []

    async def answer(body):
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peers.append(peer)
        await peer.setRemoteDescription(RTCSessionDescription(body, "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        return 201, ["Content-Type: application/sdp"], peer.localDescription.sdp

    async with impostor(answer) as url, asyncio.timeout(20):
        with pytest.raises(NotVideo, match="sends no video"):
            async with pull(url):
                pass
    for peer in peers:
        await peer.close()


async def test_nobody_there_is_unavailable():
    async with impostor(always(200)) as url:
        pass
    with pytest.raises(SourceUnavailable, match="no answer"):
        async with pull(url):
            pass


async def test_a_silent_server_can_be_left_at_once():
    asked = asyncio.Event()

    async def answer(_body):
        asked.set()
        await asyncio.Event().wait()

    async with impostor(answer) as url, asyncio.timeout(20):
        opening = asyncio.create_task(pull(url).__aenter__())
        await asked.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


async def test_waiting_for_a_frame_can_be_cancelled():
    async with open_camera(Scene(7), fps=0.2, size=96) as camera, asyncio.timeout(20):

        async def watch():
            async with pull(camera.url) as source:
                watching.set()
                async for _ in source.frames():
                    pass

        watching = asyncio.Event()
        task = asyncio.create_task(watch())
        await watching.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert camera.viewers == 0


async def test_opening_and_closing_leaves_no_thread_and_no_file():
    async with open_camera(Scene(7), fps=20, size=96) as camera, asyncio.timeout(60):

        async def cycle():
            async with pull(camera.url, fps=20) as source:
                await anext(source.frames())

        await cycle()
        gc.collect()
        files, running = open_files(), threads()
        for _ in range(10):
            await cycle()
        gc.collect()
        assert await until(lambda: threads() <= running)
        assert await until(lambda: open_files() <= files + 1)
        assert camera.viewers == 0


# redirects


def _redirecting(status, target, seen):
    """A page that sends a POST elsewhere, and keeps its head."""

    async def page(head, writer):
        seen.append(head.lower())
        reply = f"HTTP/1.1 {status} x\r\nLocation: {target}\r\nContent-Length: 0\r\n"
        writer.write(f"{reply}Connection: close\r\n\r\n".encode())
        await writer.drain()

    return page


def _whep(served, path, login="", query=""):
    return served.url(path, login).replace("http", "whep", 1) + query


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("access", [EVERYTHING, Access(hosts=("0.0.0.0/0",))])
async def test_a_redirect_is_followed_and_credentials_stay_with_the_first_host(status, access):
    first, second = [], []
    async with open_camera(Scene(7), size=96) as camera, site() as one, site() as other:
        camera_at = camera.url.replace("whep", "http", 1)
        one.pages["/door"] = _redirecting(status, "moved?x=1", first)
        one.pages["/moved"] = _redirecting(status, other.url("/there"), first)
        other.pages["/there"] = _redirecting(status, camera_at, second)
        for login, query in (("me:sesame@", ""), ("", "?token=sesame")):
            first.clear()
            second.clear()
            url = _whep(one, "/door", login, query)
            source = open_source(url, stream="cam", fps=10, max_side=640, access=access)
            async with asyncio.timeout(20), source:
                await anext(source.frames())
                assert camera.viewers == 1
            assert camera.viewers == 0  # the session was ended where it was opened
            assert ["authorization" in head for head in first] == [True, True]
            assert ["authorization" in head for head in second] == [False]
            assert "sesame" not in "".join(second)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("http://127.0.0.2:1/whep", SourceDenied, "sources.hosts"),
        ("ftp://127.0.0.1/x", NotVideo, "not HTTP"),
        ("/door", SourceUnavailable, "redirects more than 5 times"),
        ("http://[bad", SourceUnavailable, ""),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_one_line(target, error, message):
    async with site() as one:
        one.pages["/door"] = _redirecting(307, target, [])
        url = _whep(one, "/door", "me:sesame@")
        access = Access(hosts=("127.0.0.1",))
        with pytest.raises(error, match=r"^[^\n]*$") as caught:
            async with open_source(url, stream="cam", fps=10, max_side=640, access=access):
                pass
        assert message in str(caught.value)
        assert "sesame" not in str(caught.value)


async def test_another_host_that_wants_credentials_is_said_not_to_get_them():
    async with site() as one, site() as other:
        one.pages["/door"] = _redirecting(307, other.url("/there"), [])
        other.pages["/there"] = (401, ['WWW-Authenticate: Basic realm="x"'], b"")
        with pytest.raises(SourceDenied, match="redirects to another host"):
            async with pull(_whep(one, "/door", "me:sesame@")):
                pass


ONLY = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 {}\r\n"


@pytest.mark.parametrize("codec", ["H265/90000", "AV1/90000", "VP9/90000"])
async def test_an_answer_with_a_codec_we_lack_names_what_can_be_received(codec):
    async with impostor(always(201, ONLY.format(codec))) as url:
        with pytest.raises(NotVideo) as caught:
            async with pull(url):
                pass
    assert f"its video is {codec.partition('/')[0]};" in str(caught.value)
    assert "VP8" in str(caught.value)
    assert "H264" in str(caught.value)


@pytest.mark.parametrize("status", [400, 406, 415, 422])
async def test_a_refused_offer_tells_why_and_what_was_asked_for(status):
    refusal = always(status, "codecs not matched:\n video/H265")
    async with impostor(refusal) as url:
        with pytest.raises(SourceUnavailable, match=r"^[^\n]*$") as caught:
            async with pull(url):
                pass
    assert f"HTTP {status}" in str(caught.value)
    assert "codecs not matched: video/H265" in str(caught.value)
    assert "VP8" in str(caught.value)
