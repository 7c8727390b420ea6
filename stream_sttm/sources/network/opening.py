"""How FFmpeg opens a URL of each scheme: the address it is given, and the options.

`prepare` checks in the event loop that a server is there and allowed. It returns plain data, which the decoder's
process opens. This module knows nothing of decoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlunsplit

import av
from av.container import InputContainer

from stream_sttm import registry, urls
from stream_sttm.config import source_url
from stream_sttm.errors import ConfigError, NotVideo, SourceDenied, SourceUnavailable
from stream_sttm.sources.network import tls
from stream_sttm.sources.network.access import EVERYTHING, Access
from stream_sttm.sources.network.hls import Progress, Segment
from stream_sttm.sources.network.http_client import NOTHING_ELSE, HttpClient
from stream_sttm.sources.network.preflight import PORTS, check_reachable
from stream_sttm.sources.network.rtsp_proxy import RtspProxy

Timeout = tuple[float, float]  # seconds for opening and for each read
_DEVICE = ("input_format", "video_size", "framerate", "pixel_format")  # of FFmpeg's v4l2


@dataclass(frozen=True)
class Opening:
    """What to open: an `address` for FFmpeg, or for us where `by` is web (HTTP), folder (a checked file) or scene."""

    address: str
    by: str = "ffmpeg"
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    access: Access = EVERYTHING
    verify: bool = True
    authorities: str = ""  # the file of trusted certificate authorities; empty: the usual
    size: int = 0  # bytes, of a file
    shown: Sequence[
        Sequence[int | str]
    ] = ()  # segments of a live playlist that were given out before

    @classmethod
    def restored(cls, fields: Mapping[str, Any]) -> Self:
        """Return an opening from what `dataclasses.asdict` made of one, JSON in between."""
        return cls(**{**fields, "access": Access(**fields["access"])})

    @contextlib.contextmanager
    def open(
        self,
        options: Mapping[str, str],
        timeout: Timeout | None,
        noted: Callable[[list[Segment]], None] = lambda _: None,
    ) -> Iterator[InputContainer]:
        """Open the container with the decoder's `options`. Blocks. Raises FFmpeg's errors and SourceError.

        `noted` is called with the segments of a live playlist that were given out, when there is another.
        """
        together = {**options, **self.options}
        if self.by == "web":
            assert timeout is not None
            trust = tls.context(verify=self.verify, believed=self.authorities)
            progress = Progress(self.shown, noted)
            web = HttpClient(
                self.address, self.access, trust=trust, timeout=timeout, progress=progress
            )
            with web.open(together) as container:
                yield container
        elif self.by == "folder":
            with (
                self.access.open_file(f"file://{quote(self.address)}", Path(self.address)) as file,
                av.open(file, mode="r", options=together | NOTHING_ELSE) as container,
            ):
                yield container
        else:
            with av.open(
                self.address, mode="r", format=self.format, options=together, timeout=timeout
            ) as container:
                yield container


async def prepare(url: str, access: Access) -> tuple[Opening, RtspProxy | None]:
    """Check that `url` is there. Returns how to open it, and the entered proxy where one is needed.

    Raises SourceError.
    """
    bare, options = source_url.options(url)
    scheme, verify = urls.split(bare).scheme, options.get("verify") != "false"
    access.check(bare)
    if scheme == "file":
        path = file_path(bare)
        size = await asyncio.to_thread(_check_file, bare, path)
        by = "ffmpeg" if access.folders is None else "folder"
        return Opening(str(path), by, access=access, size=size), None
    if scheme == "v4l2":
        return await asyncio.to_thread(_device, bare), None
    if scheme in ("http", "https"):
        await check_reachable(bare, access, verify=verify)
        believed = tls.authorities()
        return Opening(bare, "web", access=access, verify=verify, authorities=believed), None
    if scheme == "srt":
        (address, *_) = await access.resolve(bare, urls.split(bare).port or 0)
        return Opening(_at(bare, address, access)), None
    return await _streaming(bare, options, access)


async def _streaming(
    bare: str, options: Mapping[str, str], access: Access
) -> tuple[Opening, RtspProxy | None]:
    """Return how to open an RTSP or RTMP URL."""
    parts, verify = urls.split(bare), options.get("verify") != "false"
    scheme, transport = parts.scheme, options.get("transport", "tcp")
    speaks = "RTSP" if scheme.startswith("rtsp") and transport != "http" else None
    if access.limits_hosts and transport != "tcp":
        # over UDP and HTTP the other side names further addresses, which nobody checks
        raise SourceDenied(f"{urls.mask(bare)}: only transport=tcp can be held to sources.hosts")
    address = await check_reachable(bare, access, verify=verify, speaks=speaks)
    host, port = str(parts.hostname), parts.port or PORTS[scheme]
    if speaks == "RTSP" and access.limits_hosts:
        trust = tls.context(verify=verify) if scheme == "rtsps" else None
        proxy = await RtspProxy(address, port, trust, host).__aenter__()
        netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}".lstrip("@")
        inside = urlunsplit(("rtsp", netloc, parts.path, parts.query, ""))
        return Opening(inside, options={"rtsp_transport": "tcp"}), proxy
    given = {"rtsp_transport": transport} if scheme.startswith("rtsp") else {"rtmp_live": "live"}
    if scheme in ("rtsps", "rtmps"):
        given |= tls.ffmpeg(host, verify=verify)
    return Opening(_at(bare, address, access), options=given), None


def check_spelling(url: str) -> None:
    """Raise ConfigError where a file or device is named in a way that can't be."""
    scheme = urls.split(url).scheme
    if scheme == "file":
        file_path(url)
    elif scheme == "v4l2":
        _device_options(url)


def file_path(url: str) -> Path:
    """Return the path behind a file:// URL. Raises ConfigError where it names none."""
    parts = urls.split(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigError(
            f"{urls.mask(url)}: a file is named by its full path: file:///folder/name.mp4"
        )
    return Path(unquote(parts.path))


def _at(url: str, address: str, access: Access) -> str:
    """Return the URL, with the checked address in place of the host's name where hosts are limited."""
    if not access.limits_hosts:
        return url
    parts = urls.split(url)
    login, at, _ = parts.netloc.rpartition("@")
    host = f"[{address}]" if ":" in address else address
    netloc = f"{login}{at}{host}" + (f":{parts.port}" if parts.port else "")
    return urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))


def _check_file(url: str, path: Path) -> int:
    """Return the file's size. Raises SourceError where FFmpeg would say less, or wait for ever (pipes, devices)."""
    shown = urls.mask(url)
    try:
        if not path.exists():
            raise SourceUnavailable(f"{shown}: there is no such file")
        if path.is_dir():
            raise NotVideo(
                f"{shown}: is a folder: name one video file in it, or write a / behind it for all its videos"
            )
        if not path.is_file():
            raise NotVideo(f"{shown}: is not a regular file")
        if (size := path.stat().st_size) == 0:
            raise NotVideo(f"{shown}: the file is empty")
    except OSError as error:
        raise SourceUnavailable(f"{shown}: can't be read: {error.strerror}") from error
    return size


def _device(url: str) -> Opening:
    """Return how to open a camera of this machine. Raises SourceError."""
    path, shown = Path(unquote(urls.split(url).path)), urls.mask(url)
    try:
        is_device = stat.S_ISCHR(path.stat().st_mode)
    except FileNotFoundError:
        raise SourceUnavailable(f"{shown}: there is no such device: is it plugged in?") from None
    except OSError as error:
        raise SourceUnavailable(f"{shown}: can't be read: {error.strerror}") from error
    if not is_device:
        raise NotVideo(f"{shown}: is no device")
    return Opening(str(path), format="v4l2", options=_device_options(url))


def _device_options(url: str) -> dict[str, str]:
    parts, shown = urls.split(url), urls.mask(url)
    if parts.netloc or not parts.path.startswith("/dev/"):
        raise ConfigError(f"{shown}: a device is named by its full path: v4l2:///dev/video0")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for key in options:
        if key not in _DEVICE:
            hint = registry.suggest(key, list(_DEVICE))
            raise ConfigError(f"{shown}: v4l2:// has no option {key!r}{hint}")
    return options
