"""The HTTP server as a task: says where it listens, leaves signals alone, ends promptly whatever is open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from contextlib import suppress

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from stream_sttm.errors import ConfigError
from workers import gateway


async def hello(_: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def endless(_: object) -> StreamingResponse:
    async def chunks():  # type: ignore[no-untyped-def]
        yield "begun\n"
        await asyncio.Event().wait()

    return StreamingResponse(chunks())


APP = Starlette(routes=[Route("/", hello), Route("/endless", endless)])


async def start(host: str = "127.0.0.1", port: int = 0) -> tuple[asyncio.Task[None], int]:
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(gateway.run(APP, host, port, ready=bound.set_result))
    await asyncio.wait((task, bound), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    return task, bound.result()


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_it_serves_on_a_free_port_that_it_names(host: str) -> None:
    task, port = await start(host)
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://{host}:{port}/")).text == "hello"
    await stop(task)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


def accepted(port: int) -> list[socket.socket]:
    """Return this process's own ends of the connections that the server on `port` has accepted."""
    ends = []
    for name in os.listdir("/proc/self/fd"):
        try:
            end = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket
            continue
        with suppress(OSError, IndexError):
            if end.getpeername() and end.getsockname()[1] == port:
                ends.append(end)
                continue
        end.close()
    return ends


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_answers_on_a_kept_connection_wait_for_no_acknowledgement(host: str) -> None:
    task, port = await start(host)
    url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    async with httpx.AsyncClient(trust_env=False) as client:
        for _ in range(2):
            assert (await client.get(url)).text == "hello"
        (end,) = accepted(port)
        with end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    await stop(task)


async def test_port_can_be_used_again_right_after() -> None:
    task, port = await start()
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{port}/")
    await stop(task)
    again, same = await start(port=port)
    assert same == port
    await stop(again)


async def test_port_in_use_is_one_line_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            await gateway.run(APP, "127.0.0.1", port)
    assert str(caught.value) == (
        f"http: can't listen on 127.0.0.1:{port}: Address already in use;"
        " change http.host or http.port"
    )


async def test_host_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"can't listen on no-such-host\.invalid:80"):
        await gateway.run(APP, "no-such-host.invalid", 80)


async def test_it_ends_promptly_with_streams_and_idle_connections_open() -> None:
    task, port = await start()
    idle = await asyncio.open_connection("127.0.0.1", port)
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{port}/")  # a connection kept alive
        async with client.stream("GET", f"http://127.0.0.1:{port}/endless") as response:
            parts = response.aiter_text()
            assert await anext(parts) == "begun\n"
            async with asyncio.timeout(10):  # for ever, if it did not end the stream itself
                await stop(task)
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(parts)
    idle[1].close()


async def test_signals_stay_with_the_process() -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    task, _ = await start()
    assert {s: signal.getsignal(s) for s in before} == before
    await stop(task)


async def test_no_task_and_no_socket_is_left() -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        task, port = await start()
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{port}/")
        await stop(task)
    assert asyncio.all_tasks() == before


def _other_end(address: tuple[str, int]) -> socket.socket:
    """Duplicate this process's socket whose peer is at `address`."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = socket.socket(fileno=os.dup(int(name)))
            with contextlib.suppress(OSError):
                if found.getpeername()[:2] == address:
                    return found
            found.close()
    raise AssertionError(f"no connection from {address}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
async def test_a_response_waits_for_no_delayed_acknowledgement(host: str) -> None:
    """Nagle's algorithm is off on accepted connections of either family, kept ones included."""
    try:
        task, port = await start(host)
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    reader, writer = await asyncio.open_connection(host, port)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await reader.readline()
        while (await reader.readline()).strip():
            pass
        await reader.readexactly(len("hello"))
        with _other_end(writer.get_extra_info("sockname")[:2]) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()
    await stop(task)
