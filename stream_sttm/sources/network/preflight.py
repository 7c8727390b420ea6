"""A check in the event loop, before a decoder is started: does a server answer that may be reached and speaks RTSP?

FFmpeg opens a connection in one long call that only its own timeout ends. So the common faults (no such host, refused,
silent, another protocol) are found here. Here waiting can be cancelled, and an error has a clear name. No credentials
are sent: a demand for them is an answer too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from urllib.parse import SplitResult, quote, urlunsplit

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceError, SourceUnavailable
from stream_sttm.sources.network import tls
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.network.challenges import FFMPEG, obstacle

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935, "rtmps": 443}
TIMEOUT = 5.0  # seconds for name, connection and the first line of an answer
_TLS = ("rtsps", "https", "rtmps")


async def check_reachable(
    url: str, access: Access = EVERYTHING, *, verify: bool = True, speaks: str | None = None
) -> str:
    """Return the address at which an allowed server answers. Raises SourceUnavailable, NotVideo, SourceDenied.

    `speaks` is its protocol, RTSP. With None nothing is sent: many small HTTP servers know no request but GET, and
    serve one client at a time.
    """
    parts, shown = urls.split(url), urls.mask(url)
    port = parts.port or PORTS[parts.scheme]
    try:
        async with asyncio.timeout(TIMEOUT):
            addresses = await access.resolve(url, port)
            trust = tls.context(verify=verify) if parts.scheme in _TLS else None
            reader, writer, address = await _connect(addresses, port, trust, str(parts.hostname))
            line = await _first_line(reader, writer, _request(parts, speaks))
    except TimeoutError:
        raise SourceUnavailable(
            f"{shown}: no answer within {TIMEOUT:g} s: is the camera on and reachable from here?"
        ) from None
    except OSError as error:
        raise SourceUnavailable(f"{shown}: {_why(error)}") from error
    if speaks is None:
        return address
    if line is None:
        raise SourceUnavailable(f"{shown}: the connection was closed without an answer")
    if not line.startswith(f"{speaks}/".encode()):
        raise NotVideo(f"{shown}: something answers there, but it does not speak {speaks}")
    return address


async def login_obstacle(url: str, access: Access, *, verify: bool) -> str | None:
    """Ask an RTSP server what login it wants. Returns why FFmpeg can't answer it, None where it can. Never raises."""
    parts = urls.split(url)
    port = parts.port or PORTS[parts.scheme]
    target = urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, "")
    )
    request = f"DESCRIBE {target} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    try:
        async with asyncio.timeout(TIMEOUT):
            addresses = await access.resolve(url, port)
            trust = tls.context(verify=verify) if parts.scheme in _TLS else None
            reader, writer, _ = await _connect(addresses, port, trust, str(parts.hostname))
            try:
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.transport.abort()
                await writer.wait_closed()
    except (OSError, SourceError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    lines = (line.partition(":") for line in head.decode(errors="replace").splitlines())
    return obstacle(
        [value for name, _, value in lines if name.strip().lower() == "www-authenticate"], FFMPEG
    )


def _why(error: OSError) -> str:
    """Return what is wrong with a connection, and what to do."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: is the camera on, and the port right?"
    if (why := tls.explained(error)) is not None:
        return why
    if isinstance(error, ssl.SSLError):
        return f"no TLS there: {error.reason}"
    return f"can't connect: {error.strerror or error}"


async def _connect(
    addresses: Sequence[str], port: int, trust: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """Return a connection to the first address that accepts one."""
    for address in addresses[:-1]:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(TIMEOUT / len(addresses)):  # TimeoutError is an OSError
                return *(await _open(address, port, trust, host)), address
    return *(await _open(addresses[-1], port, trust, host)), addresses[-1]


async def _open(
    address: str, port: int, trust: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        address, port, ssl=trust, server_hostname=host if trust is not None else None
    )


async def _first_line(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes | None:
    """Return the first line of the response to a request. None if there is none."""
    try:
        writer.write(request)
        return await reader.readuntil(b"\n") if request else None
    except asyncio.IncompleteReadError as error:
        return error.partial or None
    except asyncio.LimitOverrunError:
        return b""
    except ConnectionResetError:
        return None
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _request(parts: SplitResult, speaks: str | None) -> bytes:
    """Return the most harmless request of a protocol."""
    host = parts.netloc.rpartition("@")[2]
    if speaks == "RTSP":
        path = quote(parts.path or "/", safe="/%:;=+,!*'()")
        target = urlunsplit((parts.scheme, host, path, "", ""))
        return f"OPTIONS {target} RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: stream-sttm\r\n\r\n".encode()
    return b""
