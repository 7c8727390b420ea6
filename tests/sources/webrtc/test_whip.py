"""Facts about publishing by WHIP: real peers over a real HTTP server, and every way in which they may misbehave."""

import asyncio
import gc
import random
import resource
from contextlib import asynccontextmanager
from functools import partial

import httpx
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from starlette.responses import HTMLResponse

from stream_sttm.api import middleware
from stream_sttm.api import whip as routes
from stream_sttm.api.app import create_app
from stream_sttm.api.feed import Feed
from stream_sttm.config.http import HttpSettings
from stream_sttm.demo.camera import Camera, _SceneTrack
from stream_sttm.errors import AlreadyPublished, NotAnOffer, SourceUnavailable, TooManyOffers
from stream_sttm.metrics import FRAMES_DROPPED
from stream_sttm.sources import open_source
from stream_sttm.sources.scene import Scene
from stream_sttm.sources.webrtc import peer as peer_module
from stream_sttm.sources.webrtc import publishers as publishers_module
from stream_sttm.sources.webrtc.publishers import Publishers
from stream_sttm.sources.webrtc.track import DecodingDelay
from stream_sttm.storage.answers import AnswerStore
from tests.support.api_server import EchoService
from tests.support.publishing_browser import CHROMIUM, PAGE, browsing
from tests.support.resources import open_files, threads, until
from tests.support.service import Service
from tests.workers.test_ingest import ingesting
from workers import gateway

SDP = {"Content-Type": "application/sdp"}
TOKEN = "sesame"
PAGE_ORIGIN = "https://studio.example"
HTTP = HttpSettings.model_validate({"token": TOKEN, "cors": [PAGE_ORIGIN]})
ENDPOINT = "/api/v1/streams/door/whip"


@asynccontextmanager
async def serving(folder, streams=("door",)):
    """A service that takes publishers of `streams`; yields a client with its token, and who takes them."""
    feed, store = Feed(), AnswerStore(folder / "answers.db")
    app = create_app(EchoService(), store=store, feed=feed, http=HTTP)
    async with Publishers(streams) as publishers:
        app.include_router(routes.routes(publishers))
        bound = asyncio.get_running_loop().create_future()
        work = gateway.run(app, "127.0.0.1", 0, ready=bound.set_result, closing=feed.close)
        task = asyncio.create_task(work)
        url = f"http://127.0.0.1:{await bound}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
                client.app = app
                yield client, publishers
        finally:
            task.cancel()
            await asyncio.wait([task])
            store.close()


class Peer:
    """A camera that publishes Scene(7) by WHIP."""

    def __init__(self, *, audio=False, video=True, size=96, fps=10.0):
        self.camera = Camera(Scene(7), fps=fps, size=size)
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.location = None
        if audio:
            self.peer.addTrack(AudioStreamTrack())
        if video:
            self.peer.addTrack(_SceneTrack(self.camera))

    async def offer(self):
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return self.peer.localDescription.sdp

    async def publish(self, client):
        reply = await client.post(ENDPOINT, content=await self.offer(), headers=SDP)
        assert reply.status_code == 201, reply.text
        assert reply.headers["content-type"].startswith("application/sdp")
        self.location = reply.headers["location"]
        await self.peer.setRemoteDescription(RTCSessionDescription(reply.text, "answer"))
        return reply

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.peer.close()


def source_for(publishers, fps=10):
    return open_source("whip:", stream="door", fps=fps, max_side=640, publishers=publishers)


async def some_frames(source, count):
    frames = []
    async for frame in source.frames():
        frames.append(frame)
        if len(frames) == count:
            return frames
    return frames


async def an_offer():
    async with Peer() as peer:
        return await peer.offer()


# publishing


async def test_what_is_published_is_what_the_source_shows(tmp_path):
    async with asyncio.timeout(40), serving(tmp_path) as (client, publishers), Peer() as peer:
        opening = asyncio.create_task(source_for(publishers).__aenter__())
        await peer.publish(client)
        source = await opening
        frames = await some_frames(source, 6)
        for frame in frames[2:]:
            then = peer.camera.scene.render(peer.camera.scene_time(frame.captured_at), 96)
            assert np.abs(then.astype(int) - frame.image).mean() < 12
        assert [frame.pts for frame in frames] == sorted({frame.pts for frame in frames})
        assert (await client.delete(peer.location)).status_code == 200
        with pytest.raises(SourceUnavailable, match="publisher is gone"):
            await some_frames(source, 100)
        assert (await client.delete(peer.location)).status_code == 404
        await source.__aexit__(None, None, None)


async def test_audio_and_whatever_else_is_offered_is_declined(tmp_path):
    async with (
        asyncio.timeout(40),
        serving(tmp_path) as (client, publishers),
        Peer(audio=True) as peer,
    ):
        peer.peer.createDataChannel("chat")
        reply = await peer.publish(client)
        audio, video = (
            reply.text.split(f"m={kind}")[1].split("\nm=")[0] for kind in ("audio", "video")
        )
        assert "a=inactive" in audio
        assert "a=recvonly" in video
        async with source_for(publishers) as source:
            assert len(await some_frames(source, 3)) == 3


async def test_there_is_one_publisher_at_a_time_and_leaving_makes_room(tmp_path):
    async with asyncio.timeout(60), serving(tmp_path) as (client, publishers):
        async with Peer() as first:
            await first.publish(client)
            refused = await client.post(ENDPOINT, content=await an_offer(), headers=SDP)
            assert refused.status_code == 409
            assert "end its session first" in refused.json()["error"]
            async with source_for(publishers) as source:
                await some_frames(source, 2)
        assert await until(lambda: publishers._slots["door"].publisher is None)
        async with Peer() as second:
            await second.publish(client)
            async with source_for(publishers) as source:
                await some_frames(source, 2)


async def test_a_stream_waits_for_its_publisher_is_online_with_it_and_waits_again(tmp_path):
    async with asyncio.timeout(60), serving(tmp_path) as (client, publishers):
        opener = partial(open_source, publishers=publishers)
        async with ingesting("whip:", "door", stall_after=5, opener=opener) as cam:
            waiting = await cam.state("offline")
            assert waiting.reason == f"waits for a publisher at {ENDPOINT}"
            async with Peer() as peer:
                await peer.publish(client)
                await cam.state("online")
                assert cam.statuses[-1].details == {"source": "whip:"}
            assert await until(lambda: cam.states[-1] == "offline", 20)
            online = len(cam.states)
            async with Peer() as peer:
                await peer.publish(client)
                await cam.state("online", after=online)


async def test_a_publisher_that_sends_nothing_more_makes_room_for_the_next(tmp_path):
    async with asyncio.timeout(60), serving(tmp_path) as (client, publishers):
        opener = partial(open_source, publishers=publishers)
        async with ingesting("whip:", "door", stall_after=1, opener=opener) as cam, Peer() as mute:
            await mute.publish(client)
            await cam.state("online")
            mute.peer.getSenders()[0].replaceTrack(None)
            await cam.state("stalled")
            async with Peer() as next_one:
                assert await until(lambda: publishers._slots["door"].publisher is None)
                await next_one.publish(client)
                await cam.state("online", after=cam.states.index("stalled"))


async def test_a_running_service_answers_from_what_is_published_to_it(tmp_path):
    streams = {"door": {"source": "whip:"}}
    service = await asyncio.to_thread(Service(tmp_path, streams=streams).__enter__)
    try:
        assert "waits for a publisher" in service.get("/api/v1/streams/door")["reason"]
        async with asyncio.timeout(60), Peer(size=240) as peer:
            async with httpx.AsyncClient(base_url=service.http.base_url) as client:
                await peer.publish(client)
                assert await until(lambda: service.state("door") == "online", 30)
                ask = partial(service.ask, "door", "how many objects are there?")
                assert await until(lambda: ask().is_success, 30)
                assert (await client.delete(peer.location)).status_code == 200
            assert await until(lambda: service.state("door") == "offline")
        assert service.stop() == 0
    finally:
        service.__exit__()


@pytest.mark.server
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
async def test_a_browser_publishes_its_camera_from_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(middleware, "OPEN_PATHS", middleware.OPEN_PATHS | {"/publish"})
    page = PAGE.replace("ENDPOINT", ENDPOINT).replace("TOKEN", TOKEN)
    async with asyncio.timeout(90), serving(tmp_path) as (client, publishers):
        client.app.add_route("/publish", lambda _: HTMLResponse(page))
        opener = partial(open_source, publishers=publishers)
        async with ingesting("whip:", "door", stall_after=4, opener=opener) as cam:
            async with browsing(f"{client.base_url}/publish"):
                await cam.state("online")
                assert await until(lambda: len(cam.frames) > 5, 30)
            assert await until(lambda: cam.states[-1] != "online", 40)
    picture = cam.frames[-1].image
    assert min(picture.shape[:2]) >= 100
    assert (
        picture[..., 1].mean() > picture[..., 0].mean() + 30
    )  # the fake camera shows a green wall


async def test_frames_that_nobody_takes_are_drained_and_counted(tmp_path):
    dropped = FRAMES_DROPPED.labels("door", "superseded")
    before = dropped._value.get()
    async with asyncio.timeout(40), serving(tmp_path) as (client, _), Peer(fps=20) as peer:
        await peer.publish(client)
        assert await until(lambda: dropped._value.get() >= before + 10)


async def test_who_offers_and_never_connects_loses_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_module, "CONNECT_TIMEOUT", 0.5)
    async with asyncio.timeout(40), serving(tmp_path) as (client, publishers):
        reply = await client.post(ENDPOINT, content=await an_offer(), headers=SDP)
        assert reply.status_code == 201
        assert await until(lambda: publishers._slots["door"].publisher is None)
        assert (await client.delete(reply.headers["location"])).status_code == 404


def test_a_track_is_behind_only_by_what_grows_steadily():
    delay = DecodingDelay()
    assert [delay.measure(t, t + 5.0) for t in range(5)] == [0.0] * 5
    behind = [delay.measure(5 + t, 10 + 1.5 * t) for t in range(30)]
    assert behind[-1] == 14.5
    assert delay.measure(1000.0, 60.0) == 0.0  # the other clock was set anew
    assert delay.measure(1001.0, 61.5) == 0.5


# refusals


async def test_every_wrong_request_is_refused_with_one_line(tmp_path):
    offer = await an_offer()
    async with asyncio.timeout(40), serving(tmp_path) as (client, publishers):
        many = offer + "a=candidate:1 1 udp 1 1.1.1.1 9 typ host\r\n" * 65
        no_video = offer.replace("m=video", "m=audio")
        for content, headers, status, words in (
            (offer, {"Content-Type": "text/plain"}, 415, "application/sdp"),
            (offer, {}, 415, "application/sdp"),
            ("x" * 70_000, SDP, 413, "larger than"),
            ("", SDP, 400, "SDP"),
            ("<html>", SDP, 400, "SDP"),
            (b"\xff\xfe", SDP, 400, "UTF-8"),
            ("v=0\r\nm=video\r\n", SDP, 400, "not an SDP offer"),
            (many, SDP, 400, "candidates"),
            (no_video, SDP, 400, "no video"),
            (offer.replace("a=sendrecv", "a=recvonly"), SDP, 400, "no video"),
        ):
            reply = await client.post(ENDPOINT, content=content, headers=headers)
            assert reply.status_code == status, (words, reply.text)
            assert words in reply.json()["error"]
            assert publishers._slots["door"].publisher is None


async def test_no_token_no_publisher(tmp_path):
    async with serving(tmp_path) as (client, _):
        wrong = {**SDP, "Authorization": "Bearer wrong"}
        for method, path in (("POST", ENDPOINT), ("DELETE", f"{ENDPOINT}/x"), ("OPTIONS", ENDPOINT)):  # fmt: skip
            assert (await client.request(method, path, headers=wrong)).status_code == 401


async def test_trickling_and_other_methods_are_answered_properly(tmp_path):
    async with asyncio.timeout(40), serving(tmp_path) as (client, _), Peer() as peer:
        options = await client.options(ENDPOINT)
        assert (options.status_code, options.headers["accept-post"]) == (204, "application/sdp")
        await peer.publish(client)
        trickle = {"Content-Type": "application/trickle-ice-sdpfrag"}
        reply = await client.patch(peer.location, content="a=end-of-candidates", headers=trickle)
        assert (reply.status_code, reply.headers["allow"]) == (405, "DELETE")
        assert "trickle" in reply.json()["error"]
        for method in ("GET", "PUT"):
            assert (await client.request(method, ENDPOINT)).status_code == 405
        assert (await client.post("/api/v1/streams/yard/whip")).status_code == 404
        assert (await client.delete(f"{ENDPOINT}/nobody")).status_code == 404


async def test_a_page_of_another_origin_may_read_what_it_needs_to_end_its_session(tmp_path):
    here = {"Origin": PAGE_ORIGIN}
    asking = {**here, "Access-Control-Request-Method": "DELETE"}
    async with asyncio.timeout(40), serving(tmp_path) as (client, _), Peer() as peer:
        client.headers.update(here)
        replies = [await peer.publish(client), await client.post(ENDPOINT, headers=SDP)]
        replies += [await client.options(ENDPOINT), await client.patch(peer.location)]
        for reply in replies:
            assert reply.headers["access-control-allow-origin"] == PAGE_ORIGIN
            exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
            assert {"location", "etag", "link", "accept-post", "retry-after"} <= set(exposed)
        preflight = await client.options(peer.location, headers=asking)
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        assert (await client.delete(peer.location)).status_code == 200


@pytest.mark.parametrize("codec", ["H265/90000", "AV1/90000", "VP9/90000"])
async def test_an_offer_without_a_codec_that_can_be_received_names_those_that_can(tmp_path, codec):
    offer = "".join(
        f"{line}\r\n"
        for line in (await an_offer()).splitlines()
        if not line.startswith(("a=rtpmap", "a=fmtp", "a=rtcp-fb"))
    )
    payload = offer.partition("m=video ")[2].split()[2]
    async with serving(tmp_path) as (client, _):
        content = offer + f"a=rtpmap:{payload} {codec}\r\n"
        reply = await client.post(ENDPOINT, content=content, headers=SDP)
    assert reply.status_code == 400
    line = reply.json()["error"]
    assert codec.partition("/")[0] in line
    assert "VP8" in line
    assert "H264" in line


async def test_a_source_without_publishers_says_so():
    with pytest.raises(SourceUnavailable, match="nobody takes publishers"):
        async with source_for(None):
            pass


# many


def memory():
    """The largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def garbage(rng, offer):
    """An offer with something wrong in it."""
    lines = offer.splitlines()
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(lines))
        half, odd = lines[at][: len(lines[at]) // 2], ["m=video 9 x 96", "a=group:BUNDLE 7"]
        lines[at] = rng.choice(["", half, lines[at] * 3, *odd])
    return "\r\n".join([*lines, ""])


async def test_garbage_is_refused_without_a_trace_left(monkeypatch, caplog):
    monkeypatch.setattr(publishers_module, "OFFERS", 10**9)
    monkeypatch.setattr(peer_module, "CONNECT_TIMEOUT", 0.0)
    rng, offer = random.Random(7), await an_offer()
    async with asyncio.timeout(60), Publishers(["door"]) as publishers:

        async def ask(count):
            refused = 0
            for _ in range(count):
                try:
                    await publishers.publish("door", garbage(rng, offer))
                except NotAnOffer as error:
                    refused += "\n" not in str(error)
                assert await until(lambda: publishers._slots["door"].publisher is None)
            return refused

        await ask(20)
        gc.collect()
        files, running = open_files(), threads()
        assert await ask(200) > 50
        gc.collect()
        assert await until(lambda: threads() <= running)
        assert await until(lambda: open_files() <= files + 1)
    assert "Traceback" not in caplog.text


async def test_ten_thousand_posts_leave_no_thread_file_or_memory_behind(tmp_path):
    """Straight into the application, as the server would hand them over."""
    offer = (await an_offer()).encode()
    bodies = [b"", b"v=0", offer[: len(offer) // 2], b"x" * 60_000, offer]
    statuses = {}
    async with asyncio.timeout(100), serving(tmp_path) as (client, _):

        async def post(body):
            head = {b"content-type": b"application/sdp", b"authorization": b"Bearer sesame"}
            scope = {
                "type": "http",
                "method": "POST",
                "path": ENDPOINT,
                "root_path": "",
                "query_string": b"",
                "headers": list(head.items()),
                "server": ("door", 80),
                "client": ("peer", 9),
            }

            async def receive():
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message):
                if message["type"] == "http.response.start":
                    statuses[message["status"]] = statuses.get(message["status"], 0) + 1

            await client.app(scope, receive, send)

        async def many(count):
            for index in range(count):
                await post(bodies[index % len(bodies)])

        await many(500)
        gc.collect()
        files, running, used = open_files(), threads(), memory()
        await many(9_500)
        gc.collect()
        assert memory() - used < 30
        assert await until(lambda: threads() <= running)
        assert await until(lambda: open_files() <= files + 12)  # the one peer that waits
    assert sum(statuses.values()) == 10_000
    assert set(statuses) <= {201, 400, 409, 429}
    assert statuses[429] > 9_000


async def test_offers_are_counted_for_each_stream(monkeypatch):
    monkeypatch.setattr(publishers_module, "PER", 1000.0)
    offer = await an_offer()
    async with asyncio.timeout(30), Publishers(["door", "yard"]) as publishers:
        await publishers.publish("door", offer)
        for _ in range(publishers_module.OFFERS - 1):
            with pytest.raises(AlreadyPublished):
                await publishers.publish("door", offer)
        with pytest.raises(TooManyOffers):
            await publishers.publish("door", offer)
        await publishers.publish("yard", offer)


async def test_publishing_and_leaving_leaves_no_thread_and_no_file(tmp_path):
    async with asyncio.timeout(100), serving(tmp_path) as (client, publishers):
        publishers._slots["door"].offers = type("Never", (list,), {"append": lambda *_: None})()

        async def cycle():
            async with Peer(size=64) as peer:
                await peer.publish(client)
                async with source_for(publishers) as source:
                    await some_frames(source, 1)
            assert await until(lambda: publishers._slots["door"].publisher is None)

        await cycle()
        gc.collect()
        files, running = open_files(), threads()
        for _ in range(5):
            await cycle()
        gc.collect()
        assert await until(lambda: threads() <= running)
        assert await until(lambda: open_files() <= files + 1)
