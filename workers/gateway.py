"""The HTTP server as a task: uvicorn around an ASGI application.

Installs no signal handlers and configures no logging. It runs until cancelled and ends within two seconds then, open
event streams included. Knows nothing of the application's routes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from stream_sttm.errors import ConfigError
from workers.connections import Connections, protocol, raise_descriptor_limit

_MESSAGE = 65_536  # bytes of a message to a WebSocket
_GRACE = 1  # seconds that open requests get to end by themselves
_WAITING = 1024  # connections that the system holds until they are accepted


async def run(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    ready: Callable[[int], None] | None = None,
    closing: Callable[[], None] | None = None,
    connections: Connections | None = None,
) -> None:
    """Serve `app` until cancelled.

    There are as many `connections` as these allow, by default half of the files that the process may open.
    `ready` is called with the bound port once requests are taken. `closing` is called when the end begins, to end
    endless responses (`feed.close`). Raises ConfigError where the address can't be listened on.
    """
    if connections is None:
        connections = Connections.within(raise_descriptor_limit())
    with await _listen(host, port) as listening:
        server = _Server(_config(app, connections))
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(connections.watch(), name="connections")
            serving = group.create_task(server.serve(sockets=[listening]), name="http")
            try:
                await server.is_up.wait()
                listening.listen(_WAITING)
                if ready is not None:
                    ready(listening.getsockname()[1])
                await asyncio.shield(serving)
            finally:
                watching.cancel()
                if closing is not None:
                    closing()
                server.should_exit = True
                await asyncio.wait((serving,), timeout=2 * _GRACE)
                serving.cancel()


def _config(app: ASGIApp, connections: Connections) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        http=protocol(connections),
        ws="websockets-sansio",
        ws_max_size=_MESSAGE,
        timeout_graceful_shutdown=_GRACE,
        # asyncio accepts so many at once, each of which costs a descriptor before it can be refused.
        backlog=connections.accepted_at_once,
    )


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone and sets `is_up` once it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


async def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`; port 0 takes a free one."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return _bound(family, address)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(
            f"http: can't listen on {host}:{port}: {reason}; change http.host or http.port"
        ) from error


def _bound(family: int, address: Any) -> socket.socket:
    """Return a listening socket whose protocol says TCP.

    asyncio sets TCP_NODELAY only on connections of such a socket. Without it a kept connection waits for the client's
    delayed acknowledgement, 40 ms with each response. `socket.create_server` leaves the protocol at 0.
    """
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address[:2])
        listening.listen(_WAITING)
    except OSError:
        listening.close()
        raise
    return listening
