"""ONVIF cameras of the local network: who answers a WS-Discovery probe, which streams each has, as configuration.

The probe is one UDP multicast from each interface and needs no credentials. onvif-zeep-async (extra `onvif`) asks each
camera for its streams. A camera's text is untrusted: it is bounded, put on one line, and never expanded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit
from xml.etree import ElementTree

import yaml

from stream_sttm.errors import ConfigError, SourceDenied, SourceError, SourceUnavailable

MULTICAST = ("239.255.255.250", 3702)
ANSWER_TIMEOUT = 15.0  # seconds in which a camera has to name its streams
MAX_CAMERAS = 256
_ODD = (ValueError, LookupError, AttributeError, TypeError)  # what the library makes of odd answers
_NAME = "onvif://www.onvif.org/name/"
_ENCODING = re.compile(rb"""encoding=["']([A-Za-z0-9._-]{1,40})["']""")
_DECLARATION = re.compile(r"<\?xml[^>]{0,200}\?>")
_STRAY_AMPERSAND = re.compile(r"&(?!(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|amp|lt|gt|quot|apos);)")
_PREFIX = re.compile(r"(</?)[\w.-]{1,64}:(?=[\w.-])")
_PREFIXED_ATTRIBUTE = re.compile(r"""\s(?:xmlns|[\w.-]{1,64}:[\w.-]{1,64})=(?:"[^"<]*"|'[^'<]*')""")
_PROBE = """<?xml version="1.0" encoding="utf-8"?>
<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"
 xmlns:w="http://schemas.xmlsoap.org/ws/2004/08/addressing"
 xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery" xmlns:n="http://www.onvif.org/ver10/network/wsdl">
<e:Header><w:MessageID>urn:uuid:{id}</w:MessageID><w:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</w:To>
<w:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</w:Action></e:Header>
<e:Body><d:Probe><d:Types>n:NetworkVideoTransmitter</d:Types></d:Probe></e:Body></e:Envelope>"""


@dataclass(frozen=True)
class Camera:
    """A camera that answered: the URL of its ONVIF service, and its name, which may be empty."""

    service: str
    name: str


@dataclass(frozen=True)
class Profile:
    """One stream of a camera. `size` is width and height, zeros where the camera does not tell it."""

    url: str
    size: tuple[int, int]
    encoding: str


async def cameras(seconds: float, target: tuple[str, int] = MULTICAST) -> list[Camera]:
    """Return the cameras that answer within `seconds`. Raises SourceUnavailable where nothing can be sent."""
    loop = asyncio.get_running_loop()
    found: dict[str, Camera] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        udp.bind(("", 0))
        if not _probe(udp, target):
            raise SourceUnavailable("no interface takes a multicast: is the network up?")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(found) < MAX_CAMERAS:
                    answer, sender = await loop.sock_recvfrom(udp, 65536)
                    for camera in _matches(answer, sender[0]):
                        found.setdefault(camera.service, camera)
    return sorted(found.values(), key=lambda camera: camera.service)


async def profiles(camera: Camera, user: str, password: str) -> list[Profile]:
    """Return the camera's streams, the largest first. Raises SourceError, or ConfigError without the extra."""
    try:
        from onvif import ONVIFCamera, ONVIFError
        from zeep.exceptions import Error as ZeepError
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"discover needs the package {error.name!r}: pip install 'stream-sttm[onvif]'"
        ) from error
    parts = urlsplit(camera.service)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = str(parts.hostname) if parts.scheme == "http" else f"https://{parts.hostname}"

    class Device(ONVIFCamera):  # type: ignore[misc]
        """A camera whose device service is where it was found, and not at the usual path."""

        def get_definition(self, name: str, port_type: str | None = None) -> tuple[str, str, str]:
            """Return a service's address, description and binding."""
            address, description, binding = super().get_definition(name, port_type)
            return camera.service if name == "devicemgmt" else address, description, binding

    client = Device(host, port, user or None, password or None, adjust_time=True)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await client.update_xaddrs()
            media = await client.create_media_service()
            told = [await _profile(media, each) for each in await media.GetProfiles()]
    except TimeoutError:
        raise SourceUnavailable(f"{camera.service}: no answer in {ANSWER_TIMEOUT:g} s") from None
    except (ONVIFError, ZeepError, OSError, *_ODD) as error:
        why = _line(str(error) or type(error).__name__)
        if re.search("auth|401|403", why, re.IGNORECASE):
            raise SourceDenied(
                f"{camera.service}: access denied: check user and password"
            ) from error
        raise SourceUnavailable(f"{camera.service}: {why}") from error
    finally:
        await client.close()
    return sorted((one for one in told if one is not None), key=lambda one: one.size, reverse=True)


def configuration(
    found: Sequence[tuple[Camera, Sequence[Profile] | SourceError]], login: str
) -> str:
    """Return the `streams:` section for what was found. `login` (`user:${NAME}`, or empty) goes into each URL."""
    lines, names = ["streams:"], set[str]()
    for camera, told in found:
        lines.append(f"  # {_line(camera.name or 'a camera')} at {_line(camera.service)}")
        if isinstance(told, SourceError):
            lines.append(f"  # {_line(str(told))}")
            continue
        urls = [_with_login(one.url, login) for one in told]
        if not urls:
            lines.append("  # it names no stream")
            continue
        lines.extend(
            f"  # {one.size[0]}x{one.size[1]} {_line(one.encoding)}" for one in told if one.size[0]
        )
        name = _stream_name(camera, names)
        names.add(name)
        shown = json.dumps(urls[0] if len(urls) == 1 else urls[:8])
        lines.append(f"  {name}: {{source: {shown}}}")
    return "\n".join(lines)


def _probe(udp: socket.socket, target: tuple[str, int]) -> bool:
    """Send the probe out of every interface. Returns whether any took it."""
    text = _PROBE.format(id=uuid.uuid4()).encode()
    has_sent = False
    for index, _ in socket.if_nameindex():
        with contextlib.suppress(OSError):
            out = struct.pack("=4s4si", bytes(4), bytes(4), index)
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, out)
            udp.sendto(text, target)
            has_sent = True
    return has_sent


def _matches(answer: bytes, sender: str) -> list[Camera]:
    """Return the cameras that an answer names. None where it is no answer."""
    text = _text(answer)
    if "<!" in text.replace("<![CDATA[", "").replace("<!--", ""):
        return []
    tree = None
    for candidate in (text, _STRAY_AMPERSAND.sub("&amp;", text), _without_prefixes(text)):
        with contextlib.suppress(ElementTree.ParseError, ValueError):
            tree = ElementTree.fromstring(candidate)
            break
    if tree is None:
        return []
    return [
        Camera(service, _named(_child_text(match, "Scopes")))
        for match in tree.iterfind(".//{*}ProbeMatch")
        if (service := _service(_child_text(match, "XAddrs"), sender)) is not None
    ]


def _text(answer: bytes) -> str:
    """Return an answer as text, without XML declaration and what cameras send around the document."""
    declared = _ENCODING.search(answer[:200])
    names = ["utf-16"] if answer[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig"]
    names += [declared[1].decode("ascii")] if declared else []
    text = answer.decode("latin-1")
    for name in names:
        with contextlib.suppress(UnicodeError, LookupError):
            text = answer.decode(name)
            break
    return _DECLARATION.sub("", text.strip("\ufeff\0 \t\r\n"), count=1)


def _without_prefixes(text: str) -> str:
    """Return XML without prefixes of names, for senders that don't declare them, and stray ampersands."""
    bare = _PREFIX.sub(r"\1", _PREFIXED_ATTRIBUTE.sub("", text))
    return _STRAY_AMPERSAND.sub("&amp;", bare)


def _child_text(match: ElementTree.Element, name: str) -> str:
    """Return the text of a child by its local name: two versions of WS-Discovery have two namespaces."""
    return match.findtext(f"{{*}}{name}", "")


def _service(addresses: str, sender: str) -> str | None:
    """Return the address that the camera answered from, else the first that can be used."""
    usable = []
    for address in addresses.split()[:16]:
        with contextlib.suppress(ValueError):
            parts = urlsplit(address)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                usable.append(address)
    own = [address for address in usable if urlsplit(address).hostname == sender]
    return next(iter(own or usable), None)


def _named(scopes: str) -> str:
    name = next((scope for scope in scopes.split() if scope.startswith(_NAME)), "")
    return _line(unquote(name.removeprefix(_NAME)))


async def _profile(media: Any, told: Any) -> Profile | None:
    """Return a profile with its URL. None where it is nothing that we could read."""
    setup = {"Stream": "RTP-Unicast", "Transport": {"Protocol": "RTSP"}}
    answer = await media.GetStreamUri({"StreamSetup": setup, "ProfileToken": told.token})
    url = str(answer.Uri).strip()
    if urlsplit(url).scheme not in ("rtsp", "rtsps") or url != _line(url) or "${" in url:
        return None
    encoder = getattr(told, "VideoEncoderConfiguration", None)
    size = getattr(encoder, "Resolution", None)
    width, height = int(getattr(size, "Width", 0) or 0), int(getattr(size, "Height", 0) or 0)
    return Profile(url, (width, height), str(getattr(encoder, "Encoding", "") or ""))


def _with_login(url: str, login: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{login}@{host}" if login else host))


def _stream_name(camera: Camera, taken: set[str]) -> str:
    """Return a name that a stream may have and none has yet."""
    word = camera.name or str(urlsplit(camera.service).hostname)
    name = re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_")[:48] or "camera"
    if (
        yaml.safe_load(name) != name
    ):  # a number, or one of the words that YAML takes for something else
        name = f"camera_{name}"
    return next(
        one
        for n in range(1, MAX_CAMERAS + 2)
        if (one := name if n == 1 else f"{name}_{n}") not in taken
    )


def _line(text: str) -> str:
    """Return text from a camera as a piece of one line, at most 500 characters."""
    return "".join(char if char.isprintable() else " " for char in text)[:500]
