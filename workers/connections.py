"""The HTTP server's connections: how many there may be, for how long each may be idle, and who makes room.

Idle ones cost descriptors, and cameras need descriptors too. So connections take at most half of what the process may
open, and one address at most three quarters of these. Where there is no room, the connection that has been idle for
longest gives way: one that waits for a request, or has not sent the whole of it. None that is being answered does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

HEAD = 10.0  # seconds for a request's head
WHOLE = 60.0  # seconds for its body
UNREAD = 30.0  # seconds for which a peer may read nothing of an answer
_MOST = 2048
DESCRIPTORS = 16_384  # no more are asked for: what walks over all of them would take long
_LOOK_EVERY = 1.0
_FULL = "too many connections; try again in a moment"


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files towards the hard one. Returns the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = DESCRIPTORS if hard == unlimited else min(hard, DESCRIPTORS)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()
    BODY = auto()
    ANSWER = auto()


_PATIENCE = {Phase.HEAD: HEAD, Phase.BODY: WHOLE}


@dataclass(eq=False, slots=True)
class Connection:
    """One accepted connection. `since` is when its phase began, or its peer last read of an answer that piles up.

    `unread`: bytes that pile up, None where none do.
    """

    transport: asyncio.Transport
    address: str
    since: float
    phase: Phase = Phase.HEAD
    unread: int | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it may be closed for another's sake."""
        return self.phase is not Phase.ANSWER and self.unread is None


class Connections:
    """All accepted connections, at most `most`, and at most `each` of one address."""

    def __init__(
        self, most: int, each: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.each, self._clock = most, each, clock
        self._of: dict[str, set[Connection]] = {}
        self._idle: dict[Connection, None] = {}  # the longest idle first
        self._idle_of: dict[str, dict[Connection, None]] = {}
        self._all: set[Connection] = set()

    @classmethod
    def within(cls, descriptors: int) -> Connections:
        """Return limits that leave half of the process's descriptors to cameras, files and sinks."""
        most = max(8, min(_MOST, descriptors // 2))
        return cls(most, max(6, most * 3 // 4))

    @property
    def accepted_at_once(self) -> int:
        """How many are accepted before any of them is looked at."""
        return max(4, min(64, self.most // 8))

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, transport: asyncio.Transport) -> Connection | None:
        """Return a new connection's entry. Returns None where there is no room and none can be made."""
        address = _address(transport)
        own = self._of.setdefault(address, set())
        if len(own) >= self.each and not self._make_room(self._idle_of.get(address, {})):
            return None
        if len(self._all) >= self.most and not self._make_room(self._idle):
            return None
        connection = Connection(transport, address, self._clock())
        self._of.setdefault(address, set()).add(connection)
        self._all.add(connection)
        self._queue(connection)
        return connection

    def enter(self, connection: Connection, phase: Phase) -> None:
        """Note that a connection's phase begins now."""
        connection.phase = phase
        self._renew(connection)

    def block(self, connection: Connection, *, is_blocked: bool) -> None:
        """Note whether what is sent piles up, because the peer reads slowly or not at all."""
        size = connection.transport.get_write_buffer_size()
        connection.unread = size if is_blocked else None
        self._renew(connection)

    def release(self, connection: Connection) -> None:
        """Forget a connection that has ended. A second call does nothing."""
        self._all.discard(connection)
        self._unqueue(connection)
        if (own := self._of.get(connection.address)) is not None:
            own.discard(connection)
            if not own:
                del self._of[connection.address]

    def close_late(self) -> None:
        """Close what has been idle for too long, or reads nothing."""
        now = self._clock()
        for connection in list(self._all):
            patience = _PATIENCE.get(connection.phase)
            if connection.unread is not None:
                patience = UNREAD
                size = connection.transport.get_write_buffer_size()
                if size != connection.unread:
                    connection.unread, connection.since = size, now
            if patience is not None and now - connection.since > patience:
                self._drop(connection)

    async def watch(self) -> None:
        """Close what is late, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self.close_late()

    def _make_room(self, idle: dict[Connection, None]) -> bool:
        oldest = next(iter(idle), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def _drop(self, connection: Connection) -> None:
        self.release(connection)
        connection.transport.abort()  # to close would wait for a peer that reads nothing

    def _renew(self, connection: Connection) -> None:
        if connection in self._all:
            connection.since = self._clock()
            self._unqueue(connection)
            if connection.is_idle:
                self._queue(connection)

    def _queue(self, connection: Connection) -> None:
        self._idle[connection] = None
        self._idle_of.setdefault(connection.address, {})[connection] = None

    def _unqueue(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        if (own := self._idle_of.get(connection.address)) is not None:
            own.pop(connection, None)
            if not own:
                del self._idle_of[connection.address]


class Http(H11Protocol):
    """uvicorn's HTTP protocol, counted."""

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._connections = connections
        self._entry: Connection | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._entry = self._connections.admit(transport)
        if self._entry is None:
            transport.write(_refusal())
            transport.close()
        else:
            super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._entry is not None:
            self._connections.release(self._entry)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._entry is None:
            return
        if self._phase() is Phase.HEAD and not self.conn.trailing_data[0]:
            self._connections.enter(self._entry, Phase.HEAD)  # it begins with these bytes
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._entry is not None:
            self._connections.block(self._entry, is_blocked=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._entry is not None:
            self._connections.block(self._entry, is_blocked=False)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        entry, self._entry = self._entry, None  # the WebSocket's from here on
        assert entry is not None
        self._connections.enter(entry, Phase.ANSWER)
        kind = partial(WebSocket, self._connections, entry)
        self.ws_protocol_class = cast("type[asyncio.Protocol]", kind)
        super().handle_websocket_upgrade(event)

    def _phase(self) -> Phase:
        if self.cycle is None or self.cycle.response_complete:
            return Phase.HEAD
        return Phase.BODY if self.cycle.more_body else Phase.ANSWER

    def _note(self) -> None:
        if self._entry is not None and (phase := self._phase()) is not self._entry.phase:
            self._connections.enter(self._entry, phase)


class WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, counted as the HTTP connection that it was."""

    def __init__(self, connections: Connections, entry: Connection, **options: Any) -> None:
        super().__init__(**options)
        self._connections, self._entry = connections, entry

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.release(self._entry)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connections.block(self._entry, is_blocked=True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._connections.block(self._entry, is_blocked=False)


def protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Return what makes the protocol of a connection that `connections` counts."""
    return cast("type[asyncio.Protocol]", partial(Http, connections))


def _address(transport: asyncio.Transport) -> str:
    """Return who calls. An IPv6 caller owns a /64, so that is one address here."""
    peer = transport.get_extra_info("peername")
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (TypeError, IndexError, ValueError):  # it has gone already
        return ""
    if address.version == 4 or address.is_loopback:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _refusal() -> bytes:
    body = json.dumps({"error": _FULL}, allow_nan=False).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 2\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
