"""Is anybody there who speaks RTSP or HTTP? Asked inside the event loop, before a decoder is let loose on an address.

FFmpeg opens a connection in one long call that nothing but its own timeout ends. So the common troubles (no such
host, refused, silent, another protocol) are found here, where waiting can be cancelled and an error has a clear name.
No credentials are sent: a demand for them is an answer too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from urllib.parse import SplitResult, quote, urlunsplit
from urllib.request import getproxies, proxy_bypass

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceUnavailable

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
TIMEOUT = 5.0  # seconds for name, connection and the first line of an answer


async def greet(url: str) -> None:
    """Return if a server of the URL's protocol answers; raises SourceUnavailable or NotVideo otherwise."""
    parts, shown = urls.split(url), urls.mask(url)
    host = parts.hostname
    if not host:
        raise SourceUnavailable(f"{shown}: the URL names no host")
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return  # FFmpeg will go through the proxy; what is behind it can't be told from here
    try:
        async with asyncio.timeout(TIMEOUT):
            line = await _first_line(parts, host)
    except TimeoutError:
        raise SourceUnavailable(
            f"{shown}: no answer within {TIMEOUT:g} s: is the camera on and reachable from here?"
        ) from None
    except ConnectionRefusedError as error:
        raise SourceUnavailable(
            f"{shown}: connection refused: is the camera on, and the port right?"
        ) from error
    except socket.gaierror as error:
        raise SourceUnavailable(f"{shown}: the host name is not known") from error
    except ssl.SSLError as error:
        raise SourceUnavailable(f"{shown}: no TLS there: {error.reason}") from error
    except OSError as error:
        raise SourceUnavailable(f"{shown}: can't connect: {error.strerror or error}") from error
    protocol = "RTSP" if parts.scheme.startswith("rtsp") else "HTTP"
    if line is None:
        raise SourceUnavailable(f"{shown}: the connection was closed without an answer")
    if not line.startswith(f"{protocol}/".encode()):
        raise NotVideo(f"{shown}: something answers there, but it does not speak {protocol}")


async def _first_line(parts: SplitResult, host: str) -> bytes | None:
    """The start of the answer to the most harmless request; None if there is none."""
    port = parts.port or PORTS[parts.scheme]
    tls = _any_certificate() if parts.scheme in ("rtsps", "https") else None
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        writer.write(_request(parts))
        return await reader.readuntil(b"\n")
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


def _request(parts: SplitResult) -> bytes:
    host = parts.netloc.rpartition("@")[2]
    path = quote(parts.path or "/", safe="/%:;=+,!*'()")
    if parts.scheme.startswith("rtsp"):
        target = urlunsplit((parts.scheme, host, path, "", ""))
        return f"OPTIONS {target} RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: stream-sttm\r\n\r\n".encode()
    return (
        f"HEAD {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: stream-sttm\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


def _any_certificate() -> ssl.SSLContext:
    """Cameras sign their own certificates, FFmpeg takes them, and no secret is sent from here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
