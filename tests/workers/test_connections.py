"""Connections over real sockets: idle ones give way, late ones are closed, and descriptors are left for cameras."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.support.service import Service, until
from workers import gateway
from workers.connections import HEAD, UNREAD, WHOLE, Connections, raise_descriptor_limit

PART = b"GET / HTTP/1.1\r\nHost: x\r\n"
BODY = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
IDLE = {"nothing": b"", "a part of a head": PART, "a part of a body": BODY}


async def hello(_: Request) -> Response:
    return PlainTextResponse("hello")


async def body(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def endless(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.Event().wait()

    return StreamingResponse(chunks())


async def much(_: Request) -> Response:
    return Response(b"x" * 30_000_000)


async def sink(socket: WebSocket) -> None:
    await socket.accept()
    await socket.receive()


APP = Starlette(
    routes=[
        Route("/", hello),
        Route("/body", body, methods=["POST"]),
        Route("/endless", endless),
        Route("/much", much),
        WebSocketRoute("/ws", sink),
    ]
)
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Clock:
    """The time, as a test sets it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def serving(connections: Connections, host: str = "127.0.0.1") -> AsyncIterator[int]:
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work = gateway.run(APP, host, 0, ready=bound.set_result, connections=connections)
    task = asyncio.create_task(work)
    try:
        yield await bound
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(connections) == 0


class Peer:
    """One connection, made by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def is_over(self) -> bool:
        """Return that it was closed; waits until it is."""
        try:
            async with asyncio.timeout(20):
                while await self.reader.read(65_536):
                    pass
        except ConnectionError:
            pass
        self.writer.close()
        return True

    def is_open(self) -> bool:
        return not self.reader.at_eof()


async def peer(port: int, sent: bytes = b"", host: str = "127.0.0.1", **more: object) -> Peer:
    reader, writer = await asyncio.open_connection(host, port, **more)  # type: ignore[arg-type]
    writer.write(sent)
    return Peer(reader, writer)


async def got(port: int, host: str = "127.0.0.1") -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://{host}:{port}/")


@pytest.mark.parametrize("sent", IDLE.values(), ids=IDLE)
async def test_the_longest_idle_gives_way_to_a_new_request(sent: bytes) -> None:
    async with serving(Connections(8, 6)) as port:
        idle = [await peer(port, sent) for _ in range(40)]
        for _ in range(3):
            assert (await got(port)).text == "hello"
        assert await idle[0].is_over()
        for one in idle:
            one.writer.close()


async def test_one_address_does_not_take_the_places_of_all() -> None:
    connections = Connections(8, 5)
    async with serving(connections, "0.0.0.0") as port:
        held = [await peer(port, b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(5)]
        for one in held:
            await one.reader.readuntil(b"begun")
        refused = await got(port)
        assert refused.status_code == 503
        assert refused.json() == {"error": "too many connections; try again in a moment"}
        assert refused.headers["Retry-After"] == "2"
        other = await peer(port, PART + b"\r\n", "127.0.0.1", local_addr=("127.0.0.2", 0))
        assert (await other.reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        for one in [*held, other]:
            one.writer.close()


@pytest.mark.parametrize("sent", [b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n", UPGRADE])
async def test_what_is_being_answered_is_never_closed_for_another(sent: bytes) -> None:
    clock = Clock()
    connections = Connections(8, 6, clock=clock)
    async with serving(connections) as port:
        held = await peer(port, sent)
        await held.reader.readuntil(b"\r\n\r\n")
        idle = [await peer(port) for _ in range(20)]
        assert (await got(port)).text == "hello"
        clock.now = 10 * WHOLE
        connections.close_late()
        assert await idle[-1].is_over()
        assert held.is_open()
        held.writer.close()
        for one in idle:
            one.writer.close()


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (b"", HEAD),
        (PART, HEAD),
        (BODY, WHOLE),
        (b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n", UNREAD),
    ],
    ids=["nothing", "head", "body", "answer that is not read"],
)
async def test_what_does_not_go_on_is_closed_in_time(sent: bytes, seconds: float) -> None:
    clock = Clock()
    connections = Connections(8, 6, clock=clock)
    async with serving(connections) as port:
        late = await peer(port, sent)
        assert (await got(port)).text == "hello"  # so that what was sent has come
        clock.now = seconds - 0.1
        connections.close_late()
        assert len(connections) >= 1
        clock.now = seconds + 0.1
        connections.close_late()
        assert await late.is_over()


async def test_an_answer_that_is_read_slowly_is_sent_to_its_end() -> None:
    clock = Clock()
    connections = Connections(8, 6, clock=clock)
    async with serving(connections) as port:
        slow = await peer(port, b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        await slow.reader.readuntil(b"\r\n\r\n")
        read = 0
        while read < 30_000_000:
            read += len(await slow.reader.readexactly(3_000_000))
            clock.now += UNREAD - 1
            connections.close_late()
            assert read == 30_000_000 or (await got(port)).text == "hello"
        slow.writer.close()


async def test_a_head_that_comes_on_a_kept_connection_has_its_own_time() -> None:
    clock = Clock()
    connections = Connections(8, 6, clock=clock)
    async with serving(connections) as port:
        kept = await peer(port, PART + b"\r\n")
        await kept.reader.readuntil(b"hello")
        clock.now = HEAD - 1
        kept.writer.write(PART)
        await got(port)
        clock.now = HEAD + 1
        connections.close_late()
        kept.writer.write(b"\r\n")
        await kept.reader.readuntil(b"hello")
        kept.writer.close()


async def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    from workers.connections import _address

    class Transport:
        def __init__(self, host: str) -> None:
            self.host = host

        def get_extra_info(self, _: str) -> tuple[str, int]:
            return self.host, 1

    def of(host: str) -> str:
        return _address(Transport(host))  # type: ignore[arg-type]

    assert of("2001:db8::1") == of("2001:db8::ffff:2") != of("2001:db8:0:1::1")
    assert of("10.0.0.1") != of("10.0.0.2")


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 16_384])
def test_cameras_keep_a_part_of_the_descriptors(descriptors: int) -> None:
    connections = Connections.within(descriptors)
    assert 4 <= connections.each < connections.most <= descriptors // 2
    assert connections.most + 4 * connections.accepted_at_once <= descriptors


def test_soft_limit_is_raised_to_the_hard_one_within_bounds() -> None:
    script = (
        "import resource as r; from workers.connections import raise_descriptor_limit as f;"
        "r.setrlimit(r.RLIMIT_NOFILE, (128, 700)); print(f(), r.getrlimit(r.RLIMIT_NOFILE))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout == "700 (700, 700)\n"


@contextmanager
def idle_sockets(port: int, count: int) -> Iterator[list[socket.socket]]:
    raise_descriptor_limit()
    sockets = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(count)]
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()


def test_many_idle_sockets_take_neither_endpoints_nor_cameras_away(tmp_path: Path) -> None:
    streams = {"hall": {"source": "scene://hall", "enabled": False}}
    with Service(tmp_path, files=512, streams=streams) as service:
        port = service.http.base_url.port
        assert port is not None
        before = service.log.stat().st_size
        with idle_sockets(port, 1100):
            for _ in range(3):
                assert service.get("/v1/health/live") == {"status": "live"}
            switched = service.http.put("/api/v1/streams/hall/enabled", json={"enabled": True})
            assert switched.is_success
            until(lambda: service.state("hall") == "online", "the camera is read")
        assert service.log.stat().st_size - before < 10_000
