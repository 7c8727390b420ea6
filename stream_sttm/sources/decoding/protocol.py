"""The protocol between a decoder process and ours, over one socket.

First a Request goes in. Then every byte that goes in asks for one message: JSON, and with a frame its pixels. So a
frame is the newest at the moment at which it is asked for. Knows no FFmpeg.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_sttm.sources.network.opening import Opening

Image = NDArray[np.uint8]
Message = dict[str, Any]

ASK = b"?"
MAX_PIXELS = 36_000_000  # a little more than 8K
_LENGTHS = struct.Struct("!II")  # bytes of JSON, bytes of pixels
_MOST_JSON = 1 << 20
_CHANGED = 0.2  # share by which a rate has to differ to be told anew


@dataclass(frozen=True, slots=True)
class Limits:
    """Timeouts of a decoder in seconds: for a connection, for data, for the first keyframe."""

    open: float = 5.0
    silence: float = 10.0
    keyframe: float = 20.0


@dataclass(frozen=True, slots=True)
class Share:
    """What of a file a process decodes: of its segments each `count`th, beginning with number `index`.

    `origin` is the time of the file's first frame, which whoever decodes the beginning finds out itself.
    """

    index: int = 0
    count: int = 1
    origin: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to decode: how it is opened, and its `url`, which is what it is called in errors, masked."""

    url: str
    opening: Opening
    stream: str
    fps: float
    max_side: int
    decode: str = "auto"
    max_pixels: int = MAX_PIXELS
    limits: Limits = field(default_factory=Limits)
    share: Share = field(default_factory=Share)


def is_news(video: Message, known: Message) -> bool:
    """Whether a description of a video says anything that the one before did not."""
    return any(_differs(value, known.get(key)) for key, value in video.items())


def _differs(new: Any, old: Any) -> bool:
    if isinstance(new, float) and isinstance(old, float):
        return abs(new - old) > _CHANGED * old
    return bool(new != old)


def tell(channel: socket.socket, message: Message, image: Image | None = None) -> None:
    """Send one message; blocks."""
    text = json.dumps(message, allow_nan=False).encode()
    channel.sendall(_LENGTHS.pack(len(text), 0 if image is None else image.nbytes) + text)
    if image is not None:
        channel.sendall(np.ascontiguousarray(image).data.cast("B"))


def read_request(channel: socket.socket) -> Request:
    """Read the request that begins a connection; blocks. Raises EOFError where the other side left instead."""
    head = _read(channel, _LENGTHS.size)
    fields = json.loads(_read(channel, _LENGTHS.unpack(head)[0]))
    parts = {
        "opening": Opening.restored(fields["opening"]),
        "limits": Limits(**fields["limits"]),
        "share": Share(**fields["share"]),
    }
    return Request(**{**fields, **parts})


def _read(channel: socket.socket, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = channel.recv(length - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts


async def request(channel: socket.socket, wanted: Request) -> None:
    """Say what is wanted, from the event loop; `channel` does not block."""
    text = json.dumps(asdict(wanted), allow_nan=False).encode()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(channel, _LENGTHS.pack(len(text), 0) + text)


async def ask(channel: socket.socket) -> tuple[Message, Image | None]:
    """Ask for the next message and wait for it; raises EOFError where the other side is gone."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(channel, ASK)
    head = await _receive(channel, bytearray(_LENGTHS.size))
    text, pixels = _LENGTHS.unpack(head)
    if text > _MOST_JSON:
        raise EOFError
    message: Message = json.loads(bytes(await _receive(channel, bytearray(text))))
    if not pixels:
        return message, None
    image = np.empty((*message["frame"]["shape"], 3), np.uint8)
    if image.nbytes != pixels:
        raise EOFError
    await _receive(channel, image.data.cast("B"))
    return message, image


async def _receive(channel: socket.socket, into: bytearray | memoryview) -> bytearray | memoryview:
    loop = asyncio.get_running_loop()
    view, got = memoryview(into), 0
    while got < len(view):
        count = await loop.sock_recv_into(channel, view[got:])
        if not count:
            raise EOFError
        got += count
    return into
